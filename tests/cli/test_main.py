"""The command line as a whole: its commands, its help, and what it says when something is wrong."""

import errno
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys

import pytest
import typer

import afactl
from afactl.cli.main import app, main
from tests.cli.conftest import refused

COMMANDS = [
    "train",
    "pseudo-eval",
    "eval",
    "compare",
    "dump-cams",
    "ablate",
    "viz-attn",
    "viz-heads",
    "viz-cams",
    "viz-par",
    "explore",
    "report",
    "runs",
    "predict",
    "presets",
    "export",
    "doctor",
    "data check",
    "data preview",
    "data prepare voc",
    "data prepare coco",
    "data prepare folder",
]


def flattened(commands, before=""):
    """Commands by their full names, those of groups too."""
    for name, command in commands.items():
        below = getattr(command, "commands", None)
        yield from flattened(below, f"{before}{name} ") if below else [f"{before}{name}"]


def test_the_commands_are_these():
    found = [*flattened(typer.main.get_command(app).commands)]
    assert sorted(found) == sorted(COMMANDS)


def test_alone_it_names_five_commands_that_parse(call):
    code, out, _ = call()
    lines = [line.split("   ")[0].split() for line in out.splitlines() if line.startswith("  afactl ")]
    assert code == 0 and [line[1] for line in lines] == ["train", "pseudo-eval", "viz-attn", "predict", "report"]
    for line in lines:
        typer.main.get_command(app).commands[line[1]].make_context(line[1], line[2:])


def test_the_shell_completes_commands_and_options():
    def completed(words):
        environment = {
            **os.environ,
            "_AFACTL_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        }
        return subprocess.run([sys.executable, "-m", "afactl"], env=environment, capture_output=True, text=True).stdout

    assert completed("afactl viz").split() == ["viz-attn", "viz-heads", "viz-cams", "viz-par"]
    assert "--per-class" in completed("afactl eval --per")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(call, command):
    code, out, _ = call(*command.split(), "--help")
    assert code == 0 and f"Example: afactl {command}" in out and "--help" in out


def test_the_version_is_that_of_the_package(call):
    code, out, err = call("--version")
    assert (code, out, err) == (0, f"afactl {afactl.__version__}\n", "")
    assert importlib.metadata.version("afactl") == afactl.__version__


@pytest.mark.parametrize("group", [(), ("data",), ("data", "prepare")], ids=" ".join)
def test_no_line_of_a_list_of_commands_is_cut_off(call, monkeypatch, group):
    monkeypatch.setenv("COLUMNS", "80")
    listed = call(*group, "--help")[1].split("Commands:")[1]
    assert len(listed.split("\n")) > 3 and "..." not in listed


def test_help_needs_no_torch():
    code = "import sys; from afactl.cli.main import main\n"
    code += "try: main(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "False"


def test_without_arguments_the_help_is_shown(call):
    code, out, _ = call()
    assert code == 0 and "afactl train demo" in out


@pytest.mark.parametrize("size", ["", "1", "4", "many"])
def test_a_world_size_that_no_launcher_set_changes_nothing(call, tiny_data, run_copy, monkeypatch, size):
    monkeypatch.setenv("WORLD_SIZE", size)
    assert call("--help")[0] == call("eval", "--help")[0] == call("presets")[0] == call("doctor")[0] == 0
    code, _, err = call("predict", tiny_data / "images/val/0000.png", "--run", run_copy)
    assert code == 0
    assert ("WORLD_SIZE=4 is set, but not by torchrun: this process works alone" in err) == (size == "4")


def test_help_needs_no_other_process(call, monkeypatch):
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    for words in (["--help"], ["--version"], ["data", "check", "--help"], ["train", "-h"]):
        assert call(*words)[0] == 0
    refused(call("data", "check", "."), 2, "afactl data: runs in one process")
    monkeypatch.setenv("WORLD_SIZE", "two")
    refused(call("train", "demo"), 2, 'WORLD_SIZE: expected a number as torchrun sets it, got "two"')


def test_a_file_system_without_locks_is_said_and_used_at_ones_own_risk(call, run_copy, tiny_data, monkeypatch):
    def none_here(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", none_here)
    commands = [
        ["dump-cams", "--split", "val", "--run", run_copy],
        ["predict", tiny_data / "images/val", "--run", run_copy],
        ["train", "--resume", "--out", run_copy, "--set", "train.max_iters=5", "--allow-changes"],
    ]
    for command in commands:
        refused(call(*command), 2, "this file system has no locks (No locks available)", "--no-lock")
        assert call(*command, "--no-lock")[0] == 0
    refused(call(*commands[0]), 2, "no locks")


def test_usage_errors_are_one_line_with_code_2(call, run_copy, tiny_data, tmp_path):
    refused(call("trian"), 2, "trian")
    refused(call("eval", "--spilt", "val"), 2, "--spilt")
    refused(call("train"), 2, "expected a preset, one of coco, demo, photos, voc")
    refused(call("train", "dmo"), 2, 'did you mean "demo"')
    refused(
        call("train", "demo", "--set", "train.max_iter=3", "--set", "optim.lr=x"),
        2,
        'did you mean "train.max_iters"',
        "expected a number",
    )
    refused(call("train", "demo", "--data", tiny_data, "--out", run_copy), 2, "holds a run already", "--resume")
    refused(call("pseudo-eval", "--run", tmp_path / "no"), 2, "expected a run folder")
    refused(
        call("viz-attn", tiny_data / "images/val/0000.png", "--query", "64,3", "--run", run_copy),
        2,
        "which is 64 x 64 pixels",
    )
    refused(call("viz-attn", "--query", "3", "--run", run_copy), 2, "expected X,Y")
    refused(call("predict", tmp_path / "none", "--run", run_copy), 2, "expected a photo")
    refused(
        call("eval", "--run", run_copy, "--json", run_copy / "preset.yaml" / "x.json"), 2, "--json", "cannot be written"
    )
    refused(call("train", "voc"), 2, "give --data DIR")
    refused(call("eval", "--run", run_copy, "--split", "tset"), 2, 'split "tset" is empty; splits there: train, val')
    refused(call("train", "demo", "--data", tmp_path / "no"), 2, "expected a folder, found nothing")


def test_failed_jobs_are_one_line_with_code_1(call, run_copy, tiny_data, tmp_path):
    refused(call("eval", "--run", run_copy, "--split", "tset"), 2, 'split "tset" is empty; splits there: train, val')
    refused(call("train", "demo", "--data", tmp_path / "no"), 2, "expected a folder, found nothing")
    (run_copy / "checkpoints" / "last" / "weights.safetensors").write_bytes(b"x")
    code, _, err = call("eval", "--run", run_copy)
    assert code == 0 and "checkpoints/last is damaged or unfinished (checksum); using last.old" in err.replace(
        "\n", " "
    )
    shutil.rmtree(run_copy / "checkpoints" / "last.old")
    refused(call("eval", "--run", run_copy), 1, "checkpoints/last damaged or unfinished (checksum)")


def test_a_bug_is_told_in_one_line_and_shown_with_verbose(call, run_copy, monkeypatch):
    def broken(*arguments):
        raise ZeroDivisionError("inside")

    monkeypatch.setattr("afactl.evaluation.segmentation.evaluate_segmentation", broken)
    refused(call("eval", "--run", run_copy), 1, "unexpected ZeroDivisionError", "--verbose")
    with pytest.raises(ZeroDivisionError):
        main(["eval", "--run", str(run_copy), "--verbose"])


def test_a_full_disk_is_no_bug(call, run_copy, monkeypatch):
    """Met where no command expects it: while the scores are kept."""

    def full(*arguments):
        raise OSError(28, "No space left on device", "scores/segmentation-val.json")

    monkeypatch.setattr("afactl.evaluation.scores.write_scores", full)
    result = call("eval", "--run", run_copy)
    refused(result, 1, "scores/segmentation-val.json: No space left on device; mend that, then call again")
    assert "bug" not in result[2]


NOTHING = [  # calls that name something that is not there, or a folder that holds something else
    "train voc --data NOTHING",
    "train voc --data EMPTY",
    "train coco --data EMPTY",
    "train photos --data EMPTY",
    "train demo --init NOTHING",
    "train NOTHING",
    "train --resume --out NOTHING",
    "eval --run NOTHING",
    "eval --run RUN --data NOTHING",
    "eval --run RUN --split NOTHING",
    "eval --run RUN --checkpoint NOTHING",
    "pseudo-eval --run RUN --split NOTHING",
    "pseudo-eval --run RUN --data NOTHING",
    "pseudo-eval --run RUN --split val --without-afa NOTHING",
    "dump-cams --run RUN --split NOTHING",
    "predict NOTHING --run RUN",
    "predict EMPTY --run RUN",
    "viz-attn NOTHING --run RUN",
    "viz-attn EMPTY --run RUN",
    "viz-cams NOTHING --run RUN",
    "viz-par NOTHING --run RUN",
    "explore NOTHING",
    "report NOTHING",
    "report EMPTY",
    "runs NOTHING",
    "export --run NOTHING",
    "compare RUN NOTHING",
    "compare --masks NOTHING EMPTY --truth EMPTY",
    "ablate table4 --run NOTHING",
    "presets NOTHING",
    "data check NOTHING",
    "data check EMPTY",
    "data check voc --data NOTHING",
    "data preview NOTHING",
    "data prepare voc --data NOTHING",
    "data prepare voc --data EMPTY",
    "data prepare coco --data EMPTY",
    "data prepare folder --data NOTHING",
    "data prepare folder --data EMPTY",
]


@pytest.mark.parametrize("text", NOTHING)
def test_what_a_call_names_and_is_not_there_is_the_calls_fault(call, run_copy, tmp_path, text):
    """Exit code 2, as docs/troubleshooting.md says, and one line."""
    (tmp_path / "empty").mkdir()
    names = {"NOTHING": tmp_path / "nothing", "EMPTY": tmp_path / "empty", "RUN": run_copy}
    refused(call(*(names.get(word, word) for word in text.split())), 2)
    assert not (tmp_path / "nothing").exists() and not [*(tmp_path / "empty").iterdir()]


@pytest.mark.parametrize(
    "text", ["predict", "eval --bogus", "data check --bogus", "data prepare voc --bogus", "viz-attn --layer x"]
)
def test_errors_of_options_point_to_the_help_of_their_command(call, text):
    name = " ".join(word for word in text.split() if word not in ("--bogus", "--layer", "x"))
    refused(call(*text.split()), 2, f"(see afactl {name} --help)")


@pytest.mark.parametrize("group", ["data", "data prepare"])
def test_a_group_alone_shows_its_commands(call, group):
    code, out, err = call(*group.split())
    assert code == 0 and not err and out.startswith(f"Usage: afactl {group}")
    assert len(out.splitlines()) > 6, "in lines"
    refused(call(*group.split(), "bogus"), 2, "bogus", f"(see afactl {group} --help)")


@pytest.mark.parametrize("command", COMMANDS)
def test_what_an_option_takes_is_shown_in_words(call, command):
    """FILE, N or X,Y, or the choices themselves, and no type."""
    options = call(*command.split(), "--help")[1].split("Options:")[1]
    assert not re.search(r"--[\w-]+ +(<(path|str|int|float)\b|\b(PATH|TEXT|INTEGER|FLOAT)\b)", options), options


def test_one_thing_has_one_name(call, run_copy, tiny_data, tmp_path):
    """A run and a dataset may be given as an argument and as an option; former names are understood."""
    scored = (["eval"], ["pseudo-eval", "--split", "val"], ["dump-cams", "--split", "val"])
    for words in (*scored, ["viz-heads"], ["export"]):
        assert call(*words, run_copy)[0] == call(*words, "--run", run_copy)[0] == 0
        refused(call(*words, run_copy, "--run", run_copy), 2, "give the run once, as RUN or as --run RUN")
    for words in (["data", "preview", "--out", tmp_path / "sheet.png", "--overwrite"], ["data", "check"]):
        codes = [
            call(*words, *where)[0] for where in ([tiny_data], ["--data", tiny_data], ["demo", "--data", tiny_data])
        ]
        assert len(set(codes)) == 1, codes
        refused(call(*words), 2, "expected a preset or the folder of a dataset")
    for kind in ("voc", "coco", "folder"):
        words = ["data", "prepare", kind]
        nowhere = tmp_path / "nowhere"
        assert call(*words, nowhere) == call(*words, "--data", nowhere)
        refused(call(*words), 2, "expected one folder of the dataset, as FOLDER or as --data FOLDER, got none")
        refused(call(*words, nowhere, "--data", nowhere), 2, "expected one folder")
    sheet = ("data", "preview", tiny_data, "--out", tmp_path / "few.png", "--overwrite")
    assert (
        "2 photos of train" in call(*sheet, "--count", "2")[1]
        and "2 photos of train" in call(*sheet, "--photos", "2")[1]
    )
    photo = tiny_data / "images/val/0000.png"
    for name in ("--compare", "--without-afa"):
        refused(call("viz-attn", photo, "--run", run_copy, name, tmp_path / "no"), 2, "expected a run folder")
