"""Fixtures for all tests: photographs from outside, and a cache folder that is not the user's."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from afactl.datasets.masks import write_mask
from tests import stand_in_accelerator  # noqa: F401  (before the first backward pass)

ROOT = Path(__file__).resolve().parent.parent
# A job in the background ignores Ctrl-C, and so would the processes that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
# How long an example takes tells of the machine, not of the code.
settings.register_profile("afactl", deadline=None)
settings.load_profile("afactl")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with photographs (`$AFACTL_SHARED`, default `../shared`); the test is skipped without it."""
    folder = Path(os.environ.get("AFACTL_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"needs photographs: put them under {folder / 'data'}, or set AFACTL_SHARED (see CONTRIBUTING.md)")
    return folder


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Keep generated data out of the user's cache folder."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("AFACTL_CACHE")
    os.environ["AFACTL_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["AFACTL_CACHE"]
    else:
        os.environ["AFACTL_CACHE"] = before


TINY = [
    "train.max_iters=4",
    "train.cls_warmup_iters=1",
    "train.aff_warmup_iters=1",
    "train.batch_size=2",
    "train.crop_size=64",
    "train.workers=0",
    "train.log_iters=1",
    "train.eval_iters=4",
    "train.checkpoint_iters=2",
    "model.decoder_width=16",
    "par.iterations=2",
]


def tiny_preset(data, *changes):
    """The demo's preset for four steps on pictures of 64 pixels, with changes."""
    from afactl.presets import load_preset
    from afactl.training.launch import preset_changes

    return load_preset("demo", preset_changes(data, None, [*TINY, *changes]))


def train_tiny(data, out, *changes, device="cpu", observers=()):
    """A training of `tiny_preset` from its start to its end."""
    from afactl.training.launch import Request, start

    return start(Request(tiny_preset(data, *changes), out=out, device=device, observers=observers))


def until(condition, seconds=20.0):
    """Wait for what another thread does; the last answer, whatever it is."""
    end = time.monotonic() + seconds
    while not (answer := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return answer


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """Eight training and four validation pictures of 64 pixels."""
    from afactl.datasets import demo

    return demo.generate(tmp_path_factory.mktemp("data") / "demo", train=8, val=4, size=64)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, tiny_data):
    """A run that went through all three phases in four steps. Tests that change it copy it first."""
    return train_tiny(tiny_data, tmp_path_factory.mktemp("runs") / "tiny").run


@pytest.fixture
def run_copy(tmp_path, tiny_run):
    """A copy of the tiny run without its caches."""
    copy = tmp_path / "run"
    shutil.copytree(tiny_run, copy)
    shutil.rmtree(copy / "cache")
    return copy


def make_voc(root, lists, masks):
    """The layout of VOC 2012: ids by list, and the one row of pixels of each official mask."""
    folder = root / "ImageSets" / "Segmentation"
    folder.mkdir(parents=True)
    (root / "JPEGImages").mkdir()
    for split, ids in lists.items():
        (folder / f"{split}.txt").write_text("".join(f"{image_id}\n" for image_id in ids))
    for image_id, row in masks.items():
        write_mask(root / "SegmentationClass" / f"{image_id}.png", np.array([row] * 4, np.uint8))
    return root


@pytest.fixture
def run(run_copy):
    """The tiny run, opened on the CPU."""
    from afactl.inference.trained_run import open_run

    return open_run(run_copy, torch.device("cpu"))


@pytest.fixture
def val(run):
    """Its validation split: four photos with masks."""
    from afactl.inference.trained_run import open_split

    return open_split(run, "val", None, masks=True)
