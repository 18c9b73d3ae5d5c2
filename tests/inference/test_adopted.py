"""A file of trained weights as a run: what it gives, and what is refused."""

import shutil

import pytest
import torch

from afactl.datasets.voc import CLASSES
from afactl.errors import CheckpointError, UsageError
from afactl.inference.adopted import adopt
from afactl.inference.segmentation import photo_mask
from afactl.inference.trained_run import open_run
from afactl.network.model import AFA
from afactl.presets import load_preset
from afactl.runs.checkpoints import export_weights
from afactl.runs.folder import read_manifest, run_preset
from afactl.runs.foreign_weights import to_authors
from afactl.training.launch import resume

CPU = torch.device("cpu")


@pytest.mark.parametrize("form", ["authors", "safetensors"])
def test_weights_of_a_run_give_its_masks_in_another(run, tmp_path, form):
    weights = tmp_path / ("iter_1200.pth" if form == "authors" else "w.safetensors")
    export_weights(run.folder / "checkpoints" / "last", weights, form)
    folder = adopt(weights, run.preset, "demo", tmp_path / "adopted")
    again = open_run(folder, CPU)
    assert again.iteration == (1200 if form == "authors" else 0) and run_preset(folder) == run.preset
    assert read_manifest(folder)["preset"] == "demo" and again.architecture == run.architecture
    image = torch.randint(0, 256, (40, 48, 3), dtype=torch.uint8).numpy()
    assert (photo_mask(again, image) == photo_mask(run, image)).all()
    with pytest.raises(UsageError, match="was made of weights alone; start a training from them: --init"):
        resume(folder)
    before = (folder / "manifest.json").stat().st_mtime_ns
    assert adopt(weights, run.preset, "demo", folder) == folder, "made once"
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match=r"was made of .* with other values \(cam.background: 0.45 -> 0.3"):
        adopt(weights, load_preset(str(folder / "preset.yaml"), ["cam.background=0.3"]), "demo", folder)


def test_the_folder_is_named_by_file_and_content(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "wetr.pth"
    export_weights(run.folder / "checkpoints" / "last", weights, "authors")
    first = adopt(weights, run.preset, "demo")
    assert first.parent.name == "runs" and first.name.startswith("wetr-")
    state = torch.load(weights, weights_only=True)
    torch.save({**state, "classifier.weight": state["classifier.weight"] + 1}, weights)
    assert adopt(weights, run.preset, "demo") != first


def test_voc_needs_no_data_to_know_its_classes(tmp_path):
    preset = load_preset("voc", ["model.backbone=mit_demo", "model.decoder_width=32", "model.init=none"])
    torch.save(to_authors(AFA("mit_demo", 20, "gmp", 32, 0.1).state_dict()), tmp_path / "w.pth")
    assert open_run(adopt(tmp_path / "w.pth", preset, "voc", tmp_path / "run"), CPU).architecture.classes == CLASSES
    with pytest.raises(UsageError, match="the folder of the folder dataset is needed; give --data DIR"):
        adopt(tmp_path / "w.pth", load_preset("photos"), "photos", tmp_path / "other")


def test_what_is_no_trained_network_of_the_preset_is_refused_and_leaves_nothing(run, tmp_path):
    state = {f"module.{name}": value for name, value in run.model.state_dict().items()}
    heads = {name: value for name, value in state.items() if not name.startswith("module.backbone.")}
    body = {name: value for name, value in state.items() if name not in heads}
    broken = {**state, "module.classifier": state["module.classifier"] * torch.nan}
    cases = {
        "holds a backbone without the classifier.*afactl train demo --init": body,
        "weights of another architecture, .* choose the matching model.backbone": {
            name: value[:1] for name, value in state.items() if value.ndim
        },
        "1 of .* tensors hold NaN": broken,
    }
    for message, content in cases.items():
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match=message):
            adopt(tmp_path / "w.pth", run.preset, "demo", tmp_path / "new")
        assert not (tmp_path / "new").exists()
    torch.save(state, tmp_path / "w.pth")
    shutil.copytree(run.folder, tmp_path / "full")
    with pytest.raises(UsageError, match="the folder holds a run already"):
        adopt(tmp_path / "w.pth", run.preset, "demo", tmp_path / "full")
