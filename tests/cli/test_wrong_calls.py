"""The call was wrong: exit code 2, whatever option names what is not there, is of another kind or out of range."""

import re
import shutil

import pytest
import typer

from afactl.cli.main import app
from tests.cli.conftest import refused
from tests.cli.test_overwriting import options
from tests.conftest import make_voc

# The least call of each command that comes as far as its options; capital words stand for what is there.
CALLS = {
    "train": ["demo", "--data", "DATA", "--out", "NEW"],
    "pseudo-eval": ["--run", "RUN", "--split", "val"],
    "eval": ["--run", "RUN"],
    "compare": ["RUN", "RUN"],
    "dump-cams": ["--run", "RUN"],
    "ablate": ["table4", "--run", "RUN", "--split", "val"],
    "predict": ["PHOTO", "--run", "RUN", "--out", "NEW"],
    "viz-attn": ["PHOTO", "--run", "RUN"],
    "viz-heads": ["--run", "RUN"],
    "viz-cams": ["PHOTO", "--run", "RUN"],
    "viz-par": ["PHOTO", "--run", "RUN"],
    "report": ["RUN", "--photos", "0"],
    "runs": ["RUNS"],
    "explore": ["--no-open", "--run", "RUN"],
    "presets": ["voc"],
    "export": ["--run", "RUN"],
    "doctor": [],
    "data check": ["demo", "--data", "DATA"],
    "data preview": ["demo", "--data", "DATA", "--out", "NEW.png"],
    "data prepare voc": ["--data", "VOC"],
    "data prepare coco": ["--data", "NEW"],
    "data prepare folder": ["--data", "DATA"],
}
# What is wrong for an option, wherever it occurs: NOTHING is not there, FILE is a text, EMPTY a folder.
WRONG = {
    "--run": ["NOTHING", "FILE", "EMPTY"],
    "--without-afa": ["NOTHING", "FILE", "EMPTY"],
    "--data": ["NOTHING", "FILE", "EMPTY"],
    "--split": ["nosuch"],
    "--sweep-from": ["nosuch"],
    "--init": ["NOTHING", "EMPTY"],
    "--preset": ["NOTHING", "EMPTY"],
    "--checkpoint": ["NOTHING", "EMPTY"],
    "--sbd": ["NOTHING", "FILE", "EMPTY"],
    "--truth": ["NOTHING", "FILE", "EMPTY"],
    "--classes": ["NOTHING", "EMPTY"],
    "--json": ["EMPTY", "FILE/x.json"],
    "--out": ["FILE/x"],
    "--gif": ["EMPTY", "FILE/x.gif"],
    "--copy": ["EMPTY", "FILE/x.yaml"],
    "--device": ["gpu", "cuda:x"],
    "--set": ["nosuch", "nosuch.key=1", "train.max_iters=x"],
    "--format": ["nosuch"],
    "--crf-backend": ["nosuch"],
    "--palette": ["nosuch"],
    "--protocol": ["nosuch"],
    "--labels": ["nosuch"],
    "--labels-from": ["nosuch"],
    "--refiner": ["nosuch"],
    "--thresholds": ["nosuch", "0.2:1.2:0.1"],
    "--query": ["3", "x,y", "640,640", "-1,2"],
    "--layer": ["0", "99", "x"],
    "--head": ["0", "99"],
    "--worst": ["-1", "101", "x"],
    "--examples": ["-1", "101"],
    "--limit": ["0", "-1", "x"],
    "--window": ["63", "x"],
    "--photos": ["-1", "101", "x"],
    "--seed": ["-1"],
    "--val": ["-0.1", "0.95"],
    "--exclude": ["NOTHING", "EMPTY"],
    "--port": ["0", "65536", "x"],
    "--year": ["2017", "x"],
}
# What an option needs beside it.
BESIDE = {
    "--sweep-from": ["--sweep"],
    "--thresholds": ["--sweep"],
    "--head": ["--layer", "1"],
    "--truth": ["--masks", "MASKS", "MASKS"],
    "--classes": ["--masks", "MASKS", "MASKS", "--truth", "MASKS"],
}
# Where another text or number than the rest is right: those that stay wrong there.
EXCEPT = {("data preview", "--photos"): ["0", "201", "x"], ("data prepare folder", "--classes"): ["cat"]}
# The page says itself that the photos are not there, and stays.
EXCEPT[("explore", "--data")] = []
# Which only switch something, or may be any text.
FREE = {"--overwrite", "--per-class", "--crf", "--overlay", "--sweep", "--resume", "--allow-changes", "--int8"}
FREE |= {"--tensorboard", "--mlflow", "--wandb", "--difficult", "--masks"}
FREE |= {"--only-kept", "--from-keywords", "--no-open"}


def wrong_calls():
    for command, option in options(typer.main.get_command(app).commands):
        for value in EXCEPT.get((command, option), WRONG.get(option, ())) if option.startswith("--") else ():
            yield command, option, value


def test_every_option_is_looked_at():
    found = {option for _, option in options(typer.main.get_command(app).commands) if option.startswith("--")}
    assert found - FREE == WRONG.keys()


@pytest.fixture(scope="module")
def places(tmp_path_factory, tiny_run, tiny_data):
    """What stands for a capital word."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "text").write_text("a text\n")
    (folder / "empty").mkdir()
    voc = make_voc(folder / "voc", {"train": ["t1"], "val": ["v1"]}, {"t1": [0, 12], "v1": [0, 12]})
    here = {"NOTHING": folder / "nothing", "FILE": folder / "text", "EMPTY": folder / "empty", "NEW": folder / "new"}
    photo = tiny_data / "images" / "val" / "0001.png"
    run = shutil.copytree(tiny_run, folder / "runs" / "tiny")
    here |= {"RUN": run, "RUNS": run.parent, "DATA": tiny_data, "PHOTO": photo, "VOC": voc}
    return here | {"MASKS": tiny_data / "masks" / "val"}


def placed(text, places):
    name, mark, rest = re.match(r"(\w*)([./]?)(.*)", text, re.DOTALL).groups()
    return f"{places[name]}{mark}{rest}" if name in places else text


@pytest.mark.parametrize(("command", "option", "value"), [*wrong_calls()])
def test_a_wrong_value_is_a_wrong_call(call, places, command, option, value):
    masks = command == "compare" and option in ("--truth", "--classes")  # in place of runs
    beside = BESIDE.get(option, ()) if masks or option not in ("--truth", "--classes") else ()
    words = [*command.split(), *([] if masks else CALLS[command]), *beside, option, value]
    refused(call(*(placed(word, places) for word in words)), 2)
    assert not places["NEW"].exists() and not (places["RUN"] / "scores").exists(), "before any work"


@pytest.mark.parametrize(
    "words",
    [
        ["train", "NOTHING"],
        ["train", "EMPTY"],
        ["train", "FILE"],
        ["compare", "RUN", "NOTHING"],
        ["compare", "--masks", "MASKS", "NOTHING", "--truth", "MASKS"],
        ["ablate", "table99"],
        ["predict", "NOTHING", "--run", "RUN"],
        ["predict", "EMPTY", "--run", "RUN"],
        ["viz-attn", "NOTHING", "--run", "RUN"],
        ["viz-attn", "EMPTY", "--run", "RUN"],
        ["viz-cams", "NOTHING", "--run", "RUN"],
        ["viz-par", "NOTHING", "--run", "RUN"],
        ["report", "NOTHING"],
        ["runs", "NOTHING"],
        ["runs", "FILE"],
        ["presets", "nosuch"],
        ["data", "check", "NOTHING"],
        ["data", "check", "EMPTY"],
        ["data", "check", "FILE"],
        ["data", "preview", "NOTHING"],
    ],
    ids=" ".join,
)
def test_a_wrong_argument_is_a_wrong_call(call, places, words):
    refused(call(*(placed(word, places) for word in words)), 2)
