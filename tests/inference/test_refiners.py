"""The refiners by name, and with the settings that a preset has for them."""

import pytest
import torch

from afactl.errors import PresetError, UsageError
from afactl.inference.refiners import REFINERS, build_refiner, preset_refiner, refiner_settings, register
from afactl.method.refinement.crf import dense_crf
from afactl.method.refinement.pamr import pixel_adaptive_mask_refinement
from afactl.method.refinement.par import pixel_adaptive_refinement
from afactl.method.refinement.stacks import Refinement
from afactl.presets import load_preset

PRESET = load_preset("demo", ["par.iterations=3", "par.w1=0.4", "crf.bilateral_sxy=20"])


@pytest.fixture
def stacks():
    """An image and two stacks of three planes at half its size."""
    torch.manual_seed(0)
    return torch.rand(1, 3, 12, 16) * 255, torch.rand(2, 3, 6, 8).softmax(1)


@pytest.mark.parametrize("name", REFINERS.names())
def test_every_refiner_gives_every_plane_of_every_stack(stacks, name):
    refined = build_refiner(name, **refiner_settings(load_preset("demo"), name))(*stacks)
    assert refined.shape == (2, 3, 12, 16) and torch.isfinite(refined).all()
    # Stacks do not see each other.
    alone = build_refiner(name, **refiner_settings(load_preset("demo"), name))(stacks[0], stacks[1][1:])
    torch.testing.assert_close(refined[1:], alone, atol=1e-6, rtol=0)


def test_the_names_mean_the_functions(stacks):
    image, planes = stacks
    resized = torch.nn.functional.interpolate(planes, size=(12, 16), mode="bilinear", align_corners=True)
    torch.testing.assert_close(build_refiner("none")(image, planes), resized)
    torch.testing.assert_close(
        build_refiner("par", iterations=3)(image, planes)[1:],
        pixel_adaptive_refinement(image, planes[1:], iterations=3),
    )
    torch.testing.assert_close(
        build_refiner("pamr")(image, planes)[1:], pixel_adaptive_mask_refinement(image, planes[1:])
    )
    torch.testing.assert_close(build_refiner("crf")(image, planes)[0], dense_crf(image[0], resized[0]))


def test_an_unknown_refiner_is_refused():
    with pytest.raises(UsageError, match='did you mean "pamr"'):
        build_refiner("pamrr")


def test_a_refiner_of_ones_own_has_a_name_of_its_own(monkeypatch, stacks):
    monkeypatch.setattr(REFINERS, "_registered", {})
    register("darker", lambda image, stacks: stacks / 2)
    assert torch.equal(build_refiner("darker")(*stacks), stacks[1] / 2)
    with pytest.raises(UsageError, match='cam.refiner: "darker" is taken by this program'):
        register("darker", lambda image, stacks: stacks)
    with pytest.raises(UsageError, match='cam.refiner: "par" is taken by afactl itself'):
        register("par", lambda image, stacks: stacks)
    register("text", "no function")
    with pytest.raises(PresetError, match='"text" of this program is a str; expected a function'):
        build_refiner("text")


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
