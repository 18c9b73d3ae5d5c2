"""Python's way in gives what the commands give."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import afactl
from afactl.cli.main import main
from afactl.datasets.images import read_image
from afactl.errors import CheckpointError, DataError, ShapeError, UsageError
from afactl.evaluation.pseudo_labels import pseudo_label_of, score_pseudo_labels
from afactl.evaluation.segmentation import evaluate_segmentation
from afactl.inference.cams import cam_record, query_maps
from afactl.inference.segmentation import segment
from afactl.inference.trained_run import open_run, open_split
from tests.conftest import TINY
from tests.test_accelerator import afactl as command

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def model(tiny_run, tmp_path_factory):
    """Of a copy, since scoring writes into the run."""
    folder = tmp_path_factory.mktemp("api") / "run"
    shutil.copytree(tiny_run, folder)
    return afactl.load(folder, device="cpu")


@pytest.fixture(scope="module")
def photo(tiny_data):
    return tiny_data / "images" / "val" / "0001.png"


def test_importing_is_cheap_and_the_names_are_there():
    code = (
        "import sys, afactl; heavy = {'torch', 'numpy', 'PIL', 'h5py', 'timm'} & set(sys.modules);"
        "assert not heavy, heavy;"
        "missing = [name for name in afactl.__all__ if not hasattr(afactl, name)]; assert not missing, missing;"
        "assert set(afactl.__all__) < set(dir(afactl))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    homes = [name for names in afactl._HOMES.values() for name in names]
    assert sorted(homes) == sorted(afactl.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        afactl.nothing  # noqa: B018  (raises)


@pytest.mark.parametrize("crf", [False, True])
def test_the_mask_is_that_of_the_command(model, photo, tiny_run, tmp_path, crf):
    command("predict", photo, "--out", tmp_path, "--run", tiny_run, *(["--crf"] if crf else []), device="cpu")
    with Image.open(tmp_path / "0001.png") as written:
        expected = np.array(written)
    found = model.predict(photo, crf=crf)
    assert found.mask.dtype == np.uint8 and np.array_equal(found.mask, expected)
    assert found.classes == ("background", *model.classes) and found.probabilities.shape == (7, 64, 64)
    np.testing.assert_allclose(found.probabilities.sum(axis=0), 1, atol=1e-5)
    if not crf:
        assert np.array_equal(found.probabilities.argmax(axis=0), found.mask)


def test_a_photo_may_be_a_path_an_image_or_an_array(model, photo, tmp_path):
    array = read_image(photo)
    expected = model.predict(photo).probabilities
    for given in (str(photo), Image.open(photo), array):
        np.testing.assert_array_equal(model.predict(given).probabilities, expected)
    grey = array[..., 1]
    np.testing.assert_array_equal(
        model.predict(grey).probabilities, model.predict(np.stack([grey] * 3, axis=-1)).probabilities
    )
    # Turned as it is stored, upright by its tag.
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(array).copy()).save(tmp_path / "turned.png", exif=exif)
    for given in (tmp_path / "turned.png", Image.open(tmp_path / "turned.png")):
        np.testing.assert_array_equal(model.predict(given).probabilities, expected)


def test_large_photos_keep_their_size(model, photo):
    small = model.run.preset.model_copy(
        update={name: getattr(model.preset, name).model_copy(update={"max_pixels": 1500}) for name in ("cam", "eval")}
    )
    bounded = afactl.Model(model.run._replace(preset=small))
    found, made = bounded.predict(photo), bounded.pseudo_labels(photo, [model.classes[0]])
    assert found.mask.shape == made.label.shape == (64, 64)
    assert found.probabilities.shape[1:] == made.rows["AFA"].shape == (38, 38)


def test_maps_are_those_of_the_run(model, photo):
    image = read_image(photo)
    record = cam_record(model.run, image, [0, 4])
    found = model.cams(photo, [model.classes[4], model.classes[0], model.classes[4]])
    assert found.classes == (model.classes[0], model.classes[4]) and np.array_equal(found.maps, record.cam)
    assert model.cams(photo).classes == model.labels(photo) != ()
    looked, maps = model.attention(photo, (40, 10)), query_maps(model.run, image, [(40, 10)])
    assert np.array_equal(looked.attention, maps.attention[0]) and np.array_equal(looked.affinity, maps.affinity[0])
    assert looked.attention.shape == record.grid and looked.attention.sum() == pytest.approx(1, abs=1e-4)
    affinity = model.affinity(photo)
    side = 2 * affinity.radius + 1
    assert affinity.windows.shape == (*record.grid, side**2)
    # The token of the query and its right neighbour.
    row, column = 10 * record.grid[0] // 64, 40 * record.grid[1] // 64
    neighbour = side**2 // 2 + 1
    assert affinity.windows[row, column, neighbour] == pytest.approx(looked.affinity[row, column + 1], abs=2e-3)
    assert affinity.windows[0, 0, 0] == 0, "outside the photo"


def test_pseudo_labels_are_those_that_are_judged(model, photo):
    names = [model.classes[1], model.classes[2]]
    made = model.pseudo_labels(photo, names)
    record = cam_record(model.run, read_image(photo), [1, 2])
    assert np.array_equal(made.label, pseudo_label_of(read_image(photo), record, model.preset, model.run.device))
    assert np.array_equal(made.rows["AFA + PAR"], made.label) and set(np.unique(made.label)) <= {0, 2, 3}
    assert [*made.rows] == [f"{row}{par}" for row in score_rows(model) for par in ("", " + PAR")]
    assert np.array_equal(
        model.pseudo_labels(photo, model.classes[1]).label, model.pseudo_labels(photo, names[:1]).label
    )


def score_rows(model):
    return score_pseudo_labels(model.run, open_split(model.run, "val", None, masks=True)).scores


def test_scores_are_those_of_the_commands(model):
    run = open_run(model.run.folder, model.run.device)
    split = open_split(run, "val", None, masks=True)
    found = afactl.evaluate(model, "val", crf=True)
    expected = evaluate_segmentation(run, split, "torch")
    assert [(name, score.miou) for name, score in found.items()] == [(score.name, score.miou) for score in expected]
    paper = afactl.evaluate(model, protocol="paper")
    assert paper["multi-scale + flip"].miou == evaluate_segmentation(run, split, protocol="paper")[1].miou
    judged = afactl.pseudo_eval(model, "val")
    assert judged["AFA + PAR"].miou == score_pseudo_labels(run, split).scores["AFA"][1].miou
    low, high = judged["AFA"].interval
    assert low <= judged["AFA"].miou <= high


def test_a_training_from_python(tiny_data, tmp_path):
    done = afactl.train("demo", data=tiny_data, settings=TINY, out=tmp_path / "run", device="cpu")
    assert done.steps == 4 and done.run == tmp_path / "run" and done.validation["val_seg_miou"] >= 0
    best = afactl.load(tmp_path / "run", device="cpu", checkpoint="best")
    assert "6 classes, step 4" in repr(best) and best.preset.train.max_iters == 4


def test_loading_keeps_freed_memory_as_the_commands_do(tiny_run, monkeypatch):
    calls = []
    monkeypatch.setattr("afactl.api.keep_freed_memory", lambda: calls.append("kept"))
    afactl.load(tiny_run, device="cpu")
    assert calls == ["kept"]


def test_bad_calls_are_told(model, photo, tmp_path):
    with pytest.raises(UsageError, match='labels: "triangel" is no class of the run.*triangle'):
        model.cams(photo, ["triangel"])
    with pytest.raises(UsageError, match="outside the photo, which is 64 x 64"):
        model.attention(photo, (64, 0))
    for array in (np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ShapeError, match="expected h x w x 3 or h x w uint8"):
            model.predict(array)
    with pytest.raises(DataError, match="expected an image file, found none"):
        model.predict(tmp_path / "none.jpg")
    with pytest.raises(UsageError, match="none"):
        afactl.load(tmp_path / "none")
    with pytest.raises(CheckpointError):
        (tmp_path / "empty").mkdir()
        shutil.copy(model.run.folder / "preset.yaml", tmp_path / "empty")
        afactl.load(tmp_path / "empty", device="cpu")


def test_the_page_runs_as_it_stands(tiny_run, tiny_data, tmp_path, monkeypatch, capsys):
    """Every block of docs/python.md, one after the other, where a reader stands."""
    shutil.copytree(tiny_run, tmp_path / "runs" / "demo")
    shutil.copytree(tiny_data, tmp_path / ".cache" / "afactl" / "demo")
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 5
    for package in ("onnxruntime", "transformers"):
        pytest.importorskip(package, reason="the last blocks need it")
    for form, out in (("onnx", "network.onnx"), ("torchscript", "network.pt"), ("hf", "hf")):
        with pytest.raises(SystemExit) as stopped:
            main(["export", "--format", form, "--out", out, "--run", str(tiny_run)])
        assert not stopped.value.code
    names = {"SETTINGS": TINY}
    for block in blocks:
        exec(block.replace('settings=["train.max_iters=870"]', f'data="{tiny_data}", settings=SETTINGS'), names)
    assert (tmp_path / "mask.png").is_file() and "mIoU" in capsys.readouterr().out
    run = open_run(tiny_run, torch.device("cpu"))
    single = segment(run.model, read_image(names["photo"]), run.device).argmax(0).numpy()
    with Image.open("mask-onnx.png") as written:
        assert np.array_equal(np.array(written), single)
    assert names["logits"].shape[1] == 7 and names["cam"].shape[1] == 6 and names["facts"]["classes"][0] == "background"
