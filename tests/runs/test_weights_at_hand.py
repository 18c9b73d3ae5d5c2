"""Whether a training needs a network for its weights: the hub's cache, the installed package, files."""

import importlib.util
from functools import partial

import huggingface_hub
import pytest

from afactl.presets import preset_names
from afactl.runs import weights_at_hand
from afactl.runs.weights_at_hand import LITE0_PACKAGE, fetched_repositories, needed_weights


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of the hub, which is empty; gives what puts a repository with one file into it."""
    scan = partial(huggingface_hub.scan_cache_dir, tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", scan)

    def put(repository, name):
        folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        revision = "a" * 40
        for path, text in (("refs/main", revision), (f"snapshots/{revision}/{name}", "weights")):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        (folder / "blobs").mkdir(exist_ok=True)

    return put


def here(preset):
    return next(weights.here for weights in needed_weights() if preset in weights.presets)


def test_without_a_cache_nothing_was_fetched(cache):
    assert fetched_repositories() == set()
    assert not here("voc") and not here("voc-pvtv2-b1")


def test_what_was_fetched_is_here_in_either_form(cache):
    cache("nvidia/mit-b1", "pytorch_model.bin")
    cache("timm/pvt_v2_b1.in1k", "model.safetensors")
    cache("timm/deit_small_patch16_224.fb_in1k", "config.json")  # a download that broke off before the weights
    assert fetched_repositories() == {"nvidia/mit-b1", "timm/pvt_v2_b1.in1k"}
    assert here("voc") and here("coco") and here("voc-pvtv2-b1") and not here("voc-deit-s16")


def test_another_model_of_a_like_name_is_not_it(cache):
    cache("timm/pvt_v2_b1_wide.in1k", "model.safetensors")
    cache("timm/vit_base_patch14_dinov2.other", "model.safetensors")
    assert not here("voc-pvtv2-b1") and not here("voc-dinov2-b14")


@pytest.mark.parametrize("installed", [True, False])
def test_the_package_of_photos_is_as_good_as_the_hub(cache, monkeypatch, installed):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        weights_at_hand.importlib.util,
        "find_spec",
        lambda name: (installed or None) if name == LITE0_PACKAGE else find(name),
    )
    assert here("photos") is installed


def test_a_file_is_here_where_it_lies(tmp_path):
    assert not weights_at_hand.weights_at_hand("mit_b1", str(tmp_path / "mit_b1.pth"), [])
    (tmp_path / "mit_b1.pth").touch()
    assert weights_at_hand.weights_at_hand("mit_b1", str(tmp_path / "mit_b1.pth"), [])


def test_every_preset_that_starts_from_weights_is_named_once():
    named = [preset for weights in needed_weights() for preset in weights.presets]
    assert sorted(named) == sorted(set(preset_names()) - {"demo"})
    assert all(weights.licence for weights in needed_weights())
