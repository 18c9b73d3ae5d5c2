import pytest

from afactl.method.schedule import Phase, learning_rate, phase_at, phase_starts
from tests import golden


def test_golden_learning_rate():
    table = golden.table("lr_schedule")
    assert len(table) > 10
    for step, rate in table.items():
        assert learning_rate(int(step), 6e-5, 20000, 1500) == pytest.approx(rate, rel=1e-9)


def test_rate_rises_then_falls_to_almost_nothing():
    rates = [learning_rate(step, 1.0, 100, 10) for step in range(100)]
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[0] == pytest.approx(1e-6) and rates[99] == pytest.approx(0.01)


def test_the_decay_counts_from_the_first_step():
    assert learning_rate(10, 1.0, 100, 10) == pytest.approx(0.9)
    assert learning_rate(75, 1.0, 100, 10, power=0.5) == pytest.approx(0.5)


def test_phases_of_the_voc_schedule():
    phases = [phase_at(step, 2000, 4000) for step in (0, 1999, 2000, 5999, 6000, 19999)]
    first, second, third = Phase.CLASSIFICATION, Phase.REFINED, Phase.PROPAGATED
    assert phases == [first, first, second, second, third, third]
    assert phase_at(19999, 2000, 4000, affinity=False) is second


def test_phases_start_where_they_begin():
    for affinity in (True, False):
        starts = phase_starts(3, 4, affinity)
        seen = {}
        for step in range(12):
            seen.setdefault(phase_at(step, 3, 4, affinity).value, step)
        assert starts == seen
