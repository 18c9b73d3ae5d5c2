"""A package that adds a backbone, a dataset format, a refiner and a form of `predict`, used as a user would."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT, TINY

TINY_PACKAGE = '''
"""One of everything that can be added."""

import dataclasses

import torch
from torch import nn

from afactl.datasets.folder import FORMAT as FOLDER
from afactl.files import whole_file
from afactl.method.refinement.stacks import Refinement
from afactl.network.backbones import Backbone, BackboneOutput
from afactl.prediction.writers import Writer


class Small(Backbone):
    out_channels, strides = (16,), (8,)
    attention_layers, attention_heads = 1, 2

    def __init__(self, drop_path):
        super().__init__()
        self.patches, self.attention = nn.Conv2d(3, 16, 8, 8), nn.Linear(16, 32)

    def forward(self, image):
        rows, columns = image.shape[2:]
        features = self.patches(nn.functional.pad(image, (0, -columns % 8, 0, -rows % 8)))
        tokens = self.attention(features.flatten(2).transpose(1, 2))
        queries, keys = tokens.unflatten(2, (2, 2, 8)).permute(2, 0, 3, 1, 4)
        return BackboneOutput((features,), queries, keys)


def halve(image, stacks, iterations):
    large = nn.functional.interpolate(stacks, size=image.shape[2:], mode="bilinear")
    return large / 2**iterations


HALVE = Refinement(halve, ("par.iterations",))


class Counts(Writer):
    """How many pixels each class has."""

    def target(self, path):
        return self.out / path.with_suffix(".txt")

    def add(self, labelled):
        with whole_file(self.target(labelled.path)) as fresh:
            fresh.write_text(" ".join(str(int((labelled.full == c).sum())) for c in range(len(self.classes) + 1)))


# Own photos of which the training split alone counts, in a folder that says so.
FORMAT = dataclasses.replace(
    FOLDER, splits=lambda root: ["train"], recognizes=lambda root: (root / "tiny.txt").exists()
)
'''


def install(folder, name, module, points):
    """What an installation leaves behind: a module, and a dist-info folder with the entry points."""
    (folder / f"{name}.py").write_text(module)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
    lines = [line for group, point in points for line in (f"[afactl.{group}]", point)]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """An environment with the package, and with a broken one beside it."""
    site = tmp_path_factory.mktemp("site")
    install(
        site,
        "tiny_addition",
        TINY_PACKAGE,
        [
            ("backbones", "small = tiny_addition:Small"),
            ("datasets", "tiny = tiny_addition:FORMAT"),
            ("refiners", "halve = tiny_addition:HALVE"),
            ("writers", "counts = tiny_addition:Counts"),
        ],
    )
    install(
        site,
        "broken_addition",
        "import a_module_that_is_not_there",
        [(group, "broken = broken_addition:Thing") for group in ("backbones", "datasets", "refiners", "writers")],
    )
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(site)])}


@pytest.fixture
def afactl(environment, tmp_path):
    def call(*arguments):
        words = [str(argument) for argument in arguments]
        done = subprocess.run(
            [sys.executable, "-m", "afactl", *words], capture_output=True, text=True, env=environment, cwd=tmp_path
        )
        return done.returncode, done.stdout, done.stderr

    return call


def sets(*overrides):
    return [part for override in (*TINY, *overrides) for part in ("--set", override)]


def test_all_four_are_used_from_the_command_line(afactl, tiny_data, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    (data / "tiny.txt").touch()
    code, out, err = afactl("data", "check", data)
    assert code == 0 and "train" in out and "val" not in out and "no defects" in out, err + out
    chosen = sets("model.backbone=small", "data.name=tiny", "cam.refiner=halve", "train.workers=1")
    code, out, err = afactl("train", "demo", "--data", data, "--out", "run", "--device", "cpu", *chosen)
    assert code == 0 and "step 4 of 4: phase propagated labels" in err, err
    preset = (tmp_path / "run/preset.yaml").read_text()
    assert all(name in preset for name in ("backbone: small", "name: tiny", "refiner: halve"))
    photo = data / "images/val/0000.png"
    code, out, err = afactl("predict", photo, "--run", "run", "--out", "out", "--format", "counts")
    assert code == 0 and "1 of 1 photo as counts" in out, err
    counts = np.array((tmp_path / "out/0000.txt").read_text().split(), int)
    assert counts.sum() == 64 * 64 and len(counts) == 7


def test_the_command_line_offers_them_and_the_doctor_lists_them(afactl):
    code, out, _ = afactl("predict", "--help")
    assert code == 0 and "broken|counts" in "".join(out.split()) and "png" in out
    code, out, _ = afactl("doctor")
    assert code == 0, "what others broke is no reason to fail"
    for name in ("model.backbone small", "data.name tiny", "cam.refiner halve", "--format counts"):
        assert name in out
    assert "from the package tiny-addition" in out
    assert 'model.backbone: "broken" of the package broken-addition cannot be imported' in out


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "demo", *sets("model.backbone=broken")),
        ("train", "demo", *sets("data.name=broken")),
        ("train", "demo", *sets("cam.refiner=broken")),
    ],
    ids=["backbone", "dataset", "refiner"],
)
def test_a_package_that_cannot_be_imported_is_named_in_one_line(afactl, arguments, tiny_data, tmp_path):
    code, _, err = afactl(*arguments, "--data", tiny_data, "--out", "run")
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 1 and '"broken" of the package broken-addition cannot be imported' in line
    assert "No module named 'a_module_that_is_not_there'" in line and "Traceback" not in err
    assert not (tmp_path / "run").exists()
