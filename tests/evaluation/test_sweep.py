"""Rows of Table 3 over thresholds, against the rows at one."""

import numpy as np
import pytest

from afactl.errors import UsageError
from afactl.evaluation.pseudo_labels import score_pseudo_labels
from afactl.evaluation.sweep import Choice, Sweep, choices, parse_thresholds, sweep_pseudo_labels
from afactl.pictures.figures import draw_sweep


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0.2:0.7:0.05", [0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7]), ("0.5:0.5:1", [0.5])],
)
def test_a_range_of_thresholds(text, expected):
    assert parse_thresholds(text) == pytest.approx(expected, abs=1e-9)
    assert all(value == round(value, 6) for value in parse_thresholds(text)), "as they are printed"


@pytest.mark.parametrize("text", ["0:0.7:0.1", "0.2:1:0.1", "0.7:0.2:0.1", "0.2:0.7:0", "0.2:0.7", "a:b:c", "nan:1:2"])
def test_a_range_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match="expected FROM:TO:STEP between 0 and 1"):
        parse_thresholds(text)
    with pytest.raises(UsageError, match="take a larger step"):
        parse_thresholds("0.1:0.9:0.001")


@pytest.mark.parametrize("enabled", [True, False])
def test_each_threshold_gives_what_a_preset_with_it_gives(run, val, enabled):
    """0.45 and 0.35 are the preset's own; 0.6 is scored by another preset, from the same CAMs."""
    affinity = run.preset.affinity.model_copy(update={"enabled": enabled})
    run = run._replace(preset=run.preset.model_copy(update={"affinity": affinity}))
    swept = sweep_pseudo_labels(run, val, [0.6])
    assert swept.thresholds == (0.35, 0.45, 0.6) and swept.split == "val"
    own = score_pseudo_labels(run, val).scores
    assert [*swept.miou] == [name for row in own for name in (row, f"{row} + PAR")]
    sections = {name: getattr(run.preset, name).model_copy(update={"background": 0.6}) for name in ("cam", "affinity")}
    other = score_pseudo_labels(run._replace(preset=run.preset.model_copy(update=sections)), val, overwrite=True).scores
    for row, pair in own.items():
        threshold = 0.45 if row in ("AFA (w/o prop.)", "w/o AFA") else 0.35
        for name, score, there in zip((row, f"{row} + PAR"), pair, other[row], strict=True):
            assert swept.at(name, threshold) == pytest.approx(score.miou, abs=1e-9), name
            assert swept.at(name, 0.6) == pytest.approx(there.miou, abs=1e-9), name
    assert any(np.ptp(curve) > 0 for curve in swept.miou.values())


def test_the_best_threshold_is_that_of_the_split_it_is_chosen_on(run):
    values, ends = (0.35, 0.45, 0.5), ("", " + PAR")
    here = Sweep("val", values, {"AFA": np.array([1.0, 5.0, 3.0]), "AFA + PAR": np.array([7.0, 2.0, 7.0])}, ends)
    there = Sweep("train", values, {"AFA": np.array([1.0, 2.0, 3.0]), "AFA + PAR": np.array([0.0, 9.0, 8.0])}, ends)
    assert choices(here, run.preset) == [
        Choice("AFA", (0.35, 1.0), (0.45, 5.0)),
        Choice("AFA + PAR", (0.35, 7.0), (0.35, 7.0)),
    ]
    assert [one.chosen for one in choices(here, run.preset, there)] == [(0.5, 3.0), (0.45, 2.0)]


def test_the_picture_has_a_panel_for_each_column(run, val):
    drawn = draw_sweep(run, sweep_pseudo_labels(run, val, [0.3, 0.6]))
    assert drawn == run.folder / "figures" / "sweep-val.png" and drawn.stat().st_size > 10_000
