"""Which environments are a launch by torchrun, and which only look like one."""

import pytest

from afactl.errors import UsageError
from afactl.machine.launch import VARIABLES, Launched, launched, unlaunched_note

TORCHRUN = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def environment(monkeypatch):
    def pretend(**values):
        for name in ("TORCHELASTIC_RUN_ID", *VARIABLES):
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return pretend


def test_torchrun_is_known_by_its_own_variable_and_others_by_all_of_the_usual_ones(environment):
    environment(TORCHELASTIC_RUN_ID="none", **TORCHRUN)
    assert launched() == Launched(3, 1, 4) and unlaunched_note() == ""
    environment(**TORCHRUN)
    assert launched() == Launched(3, 1, 4) and unlaunched_note() == ""


@pytest.mark.parametrize(
    ("values", "note"),
    [
        ({}, ""),
        ({"WORLD_SIZE": ""}, ""),
        ({"WORLD_SIZE": "1"}, ""),
        ({"WORLD_SIZE": "many"}, ""),
        ({"WORLD_SIZE": "8"}, "WORLD_SIZE=8 is set, but not by torchrun: this process works alone"),
        ({"WORLD_SIZE": "8", "RANK": "0", "MASTER_ADDR": "pod-0", "MASTER_PORT": "23456"}, "works alone"),
        ({**TORCHRUN, "LOCAL_RANK": ""}, "works alone"),
        ({"RANK": "3", "LOCAL_RANK": "3"}, ""),
    ],
)
def test_what_a_cluster_sets_for_every_program_is_no_launch(environment, values, note):
    environment(**values)
    assert launched() is None and (note in unlaunched_note() if note else unlaunched_note() == "")


def test_one_process_works_alone(environment):
    environment(TORCHELASTIC_RUN_ID="x", **{**TORCHRUN, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"})
    assert launched() is None and unlaunched_note() == ""


@pytest.mark.parametrize(("name", "value"), [("RANK", "one"), ("WORLD_SIZE", ""), ("LOCAL_RANK", "-1")])
def test_a_number_that_is_none_is_said(environment, name, value):
    environment(TORCHELASTIC_RUN_ID="x", **{**TORCHRUN, name: value})
    with pytest.raises(UsageError, match=f'{name}: expected a number as torchrun sets it, got "{value}"'):
        launched()
