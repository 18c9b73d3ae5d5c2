"""Own photos of as few and as many classes as `photos` is for: 2 and 200, through every step to the masks."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from afactl.datasets.masks import write_mask
from tests.cli.conftest import SETS, call  # noqa: F401  (a fixture)

SIDE = 64


def coloured(path, number, count, seed):
    """A photo whose middle has the colour of its class, on noise; gives the mask."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[16:48, 16:48] = number + 1
    picture = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    picture[mask > 0] = [number * 255 // count, 255 - number * 255 // count, number * 37 % 256]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    return mask


@pytest.fixture(params=[2, 200])
def folder(request, tmp_path):
    """A training photo of each class, and validation photos of the first and the last one, with masks."""
    count, root = request.param, tmp_path / "own"
    rows = [("train", number) for number in range(count)] + [("val", 0), ("val", count - 1)]
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "split", "labels"])
        for seed, (split, number) in enumerate(rows):
            name = f"{split}/{number:03}.png"
            mask = coloured(root / "images" / name, number, count, seed)
            if split == "val":
                (root / "masks" / "val").mkdir(parents=True, exist_ok=True)
                write_mask(root / "masks" / name, mask)
            table.writerow([f"images/{name}", split, f"class{number:03}"])
    (tmp_path / "rows.csv").rename(root / "labels.csv")
    return root, count


def test_few_and_many_classes_go_the_whole_way(call, folder, tmp_path):  # noqa: F811  (a fixture)
    root, count = folder
    run, scores, pseudo, masks = (tmp_path / name for name in ("run", "scores.json", "pseudo.json", "masks"))
    assert call("data", "check", root)[0] == 0
    small = [*SETS, "--init", "none", "--set", "optim.freeze=nothing", "--set", "model.backbone=mit_demo"]
    assert call("train", "photos", "--data", root, "--out", run, *small)[0] == 0
    assert call("eval", "--run", run, "--split", "val", "--json", scores)[0] == 0
    assert call("pseudo-eval", "--run", run, "--split", "val", "--json", pseudo)[0] == 0
    assert call("predict", root / "images" / "val", "--crf", "--run", run, "--out", masks)[0] == 0
    assert call("report", run)[0] == 0

    names = ["background", *(f"class{number:03}" for number in range(count))]
    assert [row["name"] for row in csv.DictReader((masks / "classes.csv").open())] == names
    for number in (0, count - 1):
        with Image.open(masks / f"{number:03}.png") as mask:
            assert mask.size == (SIDE, SIDE) and np.asarray(mask).max() <= count
    assert json.loads(scores.read_text()) and json.loads(pseudo.read_text())
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(value) for line in metrics for value in line.values() if isinstance(value, float))
