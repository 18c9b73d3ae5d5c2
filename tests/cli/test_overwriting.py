"""Nothing that the user has is overwritten: every command that writes a file which the user names."""

import os
import shutil

import pytest
import typer

from afactl.cli.main import app
from tests.cli.conftest import refused
from tests.conftest import make_voc, train_tiny

# Every option that names a file to write, and a call that does.
CALLS = {
    ("eval", "--json"): ["--run", "RUN"],
    ("pseudo-eval", "--json"): ["--run", "RUN", "--split", "val"],
    ("compare", "--json"): ["RUN", "RUN"],
    ("compare", "--out"): ["RUN", "OTHER"],
    ("ablate", "--json"): ["table4", "--run", "RUN", "--split", "val"],
    ("viz-attn", "--out"): ["PHOTO", "--run", "RUN"],
    ("viz-heads", "--out"): ["--run", "RUN"],
    ("viz-cams", "--out"): ["PHOTO", "--run", "RUN"],
    ("viz-par", "--out"): ["PHOTO", "--run", "RUN"],
    ("viz-par", "--gif"): ["PHOTO", "--run", "RUN"],
    ("report", "--out"): ["RUN", "--photos", "0"],
    ("runs", "--json"): ["RUNS"],
    ("doctor", "--json"): [],
    ("export", "--out"): ["--run", "RUN"],
    ("presets", "--copy"): ["voc"],
    ("data check", "--json"): ["DATA"],
    ("data preview", "--out"): ["DATA", "--photos", "1"],
    ("data prepare voc", "--json"): ["--data", "VOC"],
}
SUFFIXES = {"--json": ".json", "--out": ".png", "--gif": ".gif", "--copy": ".yaml"}
# Folders, which have rules of their own.
FOLDERS = {("train", "--out"), ("predict", "--out"), ("ablate", "--out")}


def options(commands, before=""):
    for name, command in commands.items():
        below = getattr(command, "commands", None)
        if below:
            yield from options(below, f"{before}{name} ")
        else:
            yield from ((f"{before}{name}", option) for one in command.params for option in one.opts)


def test_no_option_is_forgotten():
    found = {pair for pair in options(typer.main.get_command(app).commands) if pair[1] in SUFFIXES}
    assert found == CALLS.keys() | FOLDERS


@pytest.fixture(scope="module")
def other_run(tmp_path_factory, tiny_data):
    """A run that says something else."""
    return train_tiny(tiny_data, tmp_path_factory.mktemp("other") / "run", "train.seed=1").run


@pytest.fixture
def places(tmp_path, run_copy, other_run, tiny_data):
    """What stands for a capital word in CALLS."""
    shutil.copytree(tiny_data, tmp_path / "data")
    voc = make_voc(tmp_path / "voc", {"train": ["t1"], "val": ["v1"]}, {"t1": [0, 12], "v1": [0, 12]})
    photo = tmp_path / "data" / "images" / "val" / "0001.png"
    runs = {"RUN": run_copy, "OTHER": other_run, "RUNS": run_copy.parent}
    return {**runs, "PHOTO": photo, "DATA": tmp_path / "data", "VOC": voc}


def snapshot(folder):
    return {path: os.lstat(path).st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("pair", CALLS, ids=" ".join)
def test_a_file_that_is_there_is_replaced_only_where_the_user_says_so(call, tmp_path, places, pair):
    command, option = pair
    mine = tmp_path / f"mine{SUFFIXES[option]}"
    mine.write_text("mine")
    arguments = [*command.split(), *(places.get(text, text) for text in CALLS[pair]), option, mine]
    before = snapshot(tmp_path)
    refused(call(*arguments), 2, option, f"{mine} is there already; give another name, or --overwrite to replace it")
    assert mine.read_text() == "mine" and snapshot(tmp_path) == before, "before any work"
    code, _, err = call(*arguments, "--overwrite")
    assert code in (0, 1) and "error" not in err and mine.read_bytes() != b"mine"


@pytest.mark.parametrize(("command", "option"), [pair for pair, words in CALLS.items() if "PHOTO" in words])
def test_a_photo_is_never_replaced(call, places, command, option):
    photo = places["PHOTO"]
    before = photo.read_bytes()
    arguments = [command, *(places.get(text, text) for text in CALLS[command, option]), option, photo]
    for more in ([], ["--overwrite"]):
        refused(call(*arguments, *more), 2, "0001.png is read by this command and never overwritten")
    assert photo.read_bytes() == before


def test_pictures_of_a_dataset_are_not_replaced_by_its_sheet(call, places):
    result = call("data", "preview", places["DATA"], "--split", "val", "--out", places["PHOTO"], "--overwrite")
    refused(result, 2, "never overwritten")


def test_figures_in_a_run_are_its_own(call, places):
    for _ in range(2):
        assert call("viz-attn", places["PHOTO"], "--run", places["RUN"])[0] == 0
        assert call("export", "--run", places["RUN"])[0] == 0
