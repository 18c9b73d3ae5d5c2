"""Refiners with the settings that a preset has for them."""

import pytest
import torch

from afactl.errors import PresetError
from afactl.inference.refiners import preset_refiner, refiner_settings
from afactl.method.refinement.registry import REFINERS, build_refiner, register
from afactl.method.refinement.stacks import Refinement
from afactl.presets import load_preset

PRESET = load_preset("demo", ["par.iterations=3", "par.w1=0.4", "crf.bilateral_sxy=20"])


@pytest.fixture
def stacks():
    torch.manual_seed(0)
    return torch.rand(1, 3, 12, 16) * 255, torch.rand(2, 3, 6, 8).softmax(1)


def test_a_refiner_takes_its_section_of_the_preset():
    assert refiner_settings(PRESET, "par") == PRESET.par.model_dump()
    assert refiner_settings(PRESET, "crf") == PRESET.crf.model_dump()
    assert refiner_settings(PRESET, "pamr") == {"dilations": PRESET.par.dilations, "iterations": 3}
    assert refiner_settings(PRESET, "none") == {}


def test_the_refiner_of_a_preset_is_set_up_as_the_preset_says(stacks):
    expected = build_refiner("par", **PRESET.par.model_dump())(*stacks)
    assert torch.equal(preset_refiner(PRESET)(*stacks), expected)
    changed = preset_refiner(PRESET, "par", iterations=1)(*stacks)
    assert torch.equal(changed, build_refiner("par", **{**PRESET.par.model_dump(), "iterations": 1})(*stacks))
    assert not torch.equal(changed, expected)


def test_a_refiner_of_others_takes_values_of_the_preset_too(monkeypatch, stacks):
    monkeypatch.setattr(REFINERS, "_registered", {})
    register(
        "scaled",
        Refinement(lambda image, planes, iterations, w1: planes * iterations * w1, ("par.iterations", "par.w1")),
    )
    torch.testing.assert_close(preset_refiner(PRESET, "scaled")(*stacks), stacks[1] * 3 * 0.4)
    register("greedy", Refinement(lambda image, planes: planes, ("par.iteration",)))
    with pytest.raises(PresetError, match='"par.iteration" is no value of a preset; did you mean "par.iterations"'):
        preset_refiner(PRESET, "greedy")
