"""Names of any characters, through every command, table, file and page.

Class names and file names come from anywhere: none is markup, none ends a command, none is shown as another.
"""

import csv
import json
import os
import re
import shutil

import h5py
import numpy as np
import pytest
from PIL import Image

from afactl.datasets.masks import write_mask
from afactl.machine.terminal import visible
from tests.cli.conftest import SETS, call, refused  # noqa: F401  (a fixture)

CLASSES = ["dog [adult]", "[/red]", ":cat:", "<b>&amp;\"'</b>", "$x_1^2$ 50% {name}", "\u00fc \U0001f415"]
# The last one is Latin-1, as an old disk has it.
PHOTOS = [
    "a [1]",
    "[bold]b[/bold]",
    "$c$ {y} %s",
    "<i>&d",
    "\u00e9 \U0001f415 #e:",
    "two\nlines",
    os.fsdecode(b"caf\xe9"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A table cannot hold all of these names, so the tags come from JSON, which can."""
    root, rng, tags = tmp_path_factory.mktemp("names") / "d [x] \u00e9", np.random.default_rng(0), {}
    for number, name in enumerate(PHOTOS):
        split = "train" if number < 3 else "val"
        for where in ["train", "val"] if number == 3 else [split]:
            path = root / "images" / where / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(str(path), format="PNG")
            mask = np.zeros((64, 64), np.uint8)
            mask[:32] = number % len(CLASSES) + 1
            if number == 0:  # all classes occur in training
                mask[:60] = np.arange(60)[:, None] // 10 + 1
            write_mask(root / "masks" / where / f"{name}.png", mask)
            tags[f"images/{where}/{name}.png"] = [CLASSES[number % len(CLASSES)]]
    tags["images/train/a [1].png"] = CLASSES
    (root / "labels.json").write_text(json.dumps(tags))
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    from afactl.cli.main import main

    run = tmp_path_factory.mktemp("runs") / "r [y] {z}"
    with pytest.raises(SystemExit) as stopped:
        main(["train", "demo", "--data", str(data), "--out", str(run), *SETS])
    assert not stopped.value.code
    return run


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / trained.name)


def done(result, *names):
    """The command went well, and shows these names as they are."""
    code, out, err = result
    assert code == 0 and "error" not in err, err
    for name in names:
        assert visible(name) in out, name
    assert "\x1b" not in out
    return out


def test_data_check(call, data, tmp_path):  # noqa: F811  (a fixture)
    done(call("data", "check", data, "--json", tmp_path / "c.json"), *CLASSES)
    assert json.loads((tmp_path / "c.json").read_text())["classes"] == CLASSES
    broken = shutil.copytree(data, tmp_path / "broken")
    for name in PHOTOS[3:]:
        (broken / "images" / "val" / f"{name}.png").write_bytes(b"cut")
    code, out, _ = call("data", "check", broken, "--json", tmp_path / "d.json")
    assert code == 1 and all(f"{visible(name)}.png" in out for name in PHOTOS[3:])
    found = {one["where"] for one in json.loads((tmp_path / "d.json").read_text())["defects"]}
    assert {str(broken / "images" / "val" / f"{name}.png") for name in PHOTOS[3:]} <= found, "not a character lost"


def test_data_preview(call, data, tmp_path):  # noqa: F811  (a fixture)
    done(call("data", "preview", data, "--split", "val", "--out", tmp_path / "sheet [1].png"), "sheet [1].png")


def test_data_prepare_folder(call, data, tmp_path):  # noqa: F811  (a fixture)
    copy = shutil.copytree(data, tmp_path / "copy")
    refused(
        call("data", "prepare", "folder", "--data", copy),
        1,
        "'images/val/caf\\udce9.png' is no UTF-8",
        "rename the photo",
    )
    tags = json.loads((copy / "labels.json").read_text())
    (copy / "labels.json").write_text(json.dumps({name: tag for name, tag in tags.items() if "caf" not in name}))
    done(call("data", "prepare", "folder", "--data", copy), *CLASSES)
    with open(copy / "labels.csv", encoding="utf-8", newline="") as file:
        rows = {row["image"]: row["labels"].split("|") for row in csv.DictReader(file)}
    assert rows == {name: tag for name, tag in tags.items() if "caf" not in name}
    done(call("data", "check", copy), *CLASSES)


def test_a_class_whose_name_is_no_utf8_is_named(call, tmp_path):  # noqa: F811  (a fixture)
    for name in ("dog", os.fsdecode(b"caf\xe9")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(str(tmp_path / name / "a.png"), format="PNG")
    for command in (["data", "check", tmp_path], ["train", "photos", "--data", tmp_path]):
        refused(call(*command), 1, "the class 'caf\\udce9' is no UTF-8; rename it")


def test_dump_cams(call, run):  # noqa: F811  (a fixture)
    done(call("dump-cams", "--split", "val", "--run", run, "--format", "npy"), run.name)
    with h5py.File(run / "cache/cams-val.h5") as file:
        assert len(file["images"]) == 4
    assert sorted(path.name for path in (run / "cache/cams-val").rglob("*.npy")) == sorted(
        f"{name}.npy" for name in PHOTOS[3:]
    )


def test_pseudo_eval_and_eval(call, run, tmp_path):  # noqa: F811  (a fixture)
    done(call("pseudo-eval", "--split", "val", "--run", run, "--per-class", "--json", tmp_path / "p.json"), *CLASSES)
    assert json.loads((tmp_path / "p.json").read_text())["run"] == str(run)
    done(call("eval", "--split", "val", "--run", run, "--per-class", "--worst", "4"), *CLASSES, run.name)


@pytest.mark.parametrize("name", PHOTOS[3:])
def test_viz_attn(call, data, run, name):  # noqa: F811  (a fixture)
    photo = data / "images/val" / f"{name}.png"
    done(call("viz-attn", photo, "--run", run), CLASSES[PHOTOS.index(name) % len(CLASSES)], f"attention-{name}.png")
    assert (run / "figures" / f"attention-{name}.png").is_file()


def test_viz_cams_and_viz_par(call, data, run):  # noqa: F811  (a fixture)
    photos = [data / "images/val" / f"{name}.png" for name in PHOTOS[3:]]
    done(call("viz-cams", *photos, "--run", run))
    done(call("viz-par", photos[-1], "--run", run), "par-caf")


def test_report(call, data, run):  # noqa: F811  (a fixture)
    call("eval", "--split", "val", "--run", run)
    call("viz-attn", data / "images/val" / f"{PHOTOS[-1]}.png", "--run", run)
    done(call("report", run), run.name)
    page = (run / "report.html").read_text(encoding="utf-8")
    for name in CLASSES:
        escaped = name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        assert escaped.replace('"', "&#34;").replace("'", "&#39;") in page, name
    assert "<b>" not in re.sub("<b>[A-Za-z ]*</b>", "", page) and "caf\\udce9" in page


@pytest.mark.parametrize("form", ["png", "coco-rle", "label-studio", "probabilities"])
def test_predict(call, data, run, tmp_path, form):  # noqa: F811  (a fixture)
    out = tmp_path / "m [1] {x}"
    done(
        call("predict", data / "images/val", "--run", run, "--out", out, "--format", form, "--overlay"),
        *CLASSES,
        out.name,
    )
    assert {path.name for path in out.glob("*_overlay.png")} == {f"{name}_overlay.png" for name in PHOTOS[3:]}
    if form == "png":
        assert {path.name for path in out.iterdir() if "_overlay" not in path.name} == {
            "classes.csv",
            *(f"{name}.png" for name in PHOTOS[3:]),
        }
    if form == "coco-rle":
        entries = json.loads((out / "results.json").read_text())
        assert {entry["file_name"] for entry in entries} <= {f"{name}.png" for name in PHOTOS[3:]}


def test_predict_names_what_it_cannot_do(call, data, run, tmp_path):  # noqa: F811  (a fixture)
    out = ("--run", run, "--out", tmp_path / "out", "--format")
    refused(call("predict", data / "images/val", *out, "cvat"), 2, "cannot hold ':cat:'")
    refused(
        call("predict", data / "images/val", *out, "voc-server"), 2, "is no UTF-8, or of two lines; rename the photo"
    )
    broken = tmp_path / os.fsdecode(b"br\xe9k [red].png")
    broken.write_bytes(b"cut")
    refused(call("predict", broken, *out, "png"), 1, "br\\udce9k [red].png")


def test_the_folder_of_the_data_may_have_any_name(call, data, tmp_path):  # noqa: F811  (a fixture)
    copy = shutil.copytree(data, tmp_path / os.fsdecode(b"d\xe9 [x]"))
    run = tmp_path / os.fsdecode(b"r\xe9 [x]")
    refused(
        call("train", "demo", "--data", copy, "--out", run, *SETS), 2, "the name is no UTF-8", "give another folder"
    )
    assert not run.exists()
    code, _, err = call("train", "demo", "--data", copy, "--out", tmp_path / "run", *SETS)
    assert code == 0, err
    done(call("eval", "--run", tmp_path / "run"))
