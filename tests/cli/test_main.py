"""Every command on tiny data, as a user calls it; and what it says when something is wrong."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import typer
from rich.console import Console

from afactl.cli.main import app, main
from afactl.datasets import demo
from afactl.datasets.images import read_image
from afactl.datasets.masks import read_mask, write_mask
from tests.conftest import TINY, make_voc

COMMANDS = [
    "train",
    "pseudo-eval",
    "eval",
    "dump-cams",
    "ablate",
    "viz-attn",
    "viz-heads",
    "viz-cams",
    "viz-par",
    "report",
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
SETS = [part for override in TINY for part in ("--set", override)]


@pytest.fixture
def call(capsys):
    """Runs a command in this process: (exit code, standard output, standard error)."""

    def run(*arguments):
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return run


def refused(result, code, *parts):
    """One line on the standard error, with the right exit code, holding the parts."""
    found, _, err = result
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert found == code and len(lines) == 1, err
    assert "Traceback" not in err
    for part in parts:
        assert part in lines[0], lines[0]


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


def test_help_needs_no_torch():
    code = "import sys; from afactl.cli.main import main\n"
    code += "try: main(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "False"


def test_without_arguments_the_help_is_shown(call):
    code, out, _ = call()
    assert code == 0 and "afactl train demo" in out


def test_train_prints_steps_validation_and_the_run(call, tmp_path, tiny_data):
    code, out, err = call("train", "demo", "--data", tiny_data, "--out", tmp_path / "run", "--device", "cpu", *SETS)
    assert code == 0 and "weights: random weights" in err
    assert "step 4 of 4: phase propagated labels" in err
    assert re.search(r"4 steps, 0:\d\d here, peak memory \d+\.\d GiB", out)
    assert "segmentation" in out and out.splitlines()[-1] == f"run: {tmp_path / 'run'}"


def test_train_takes_a_file_and_starting_weights(call, tmp_path, tiny_data, tiny_run):
    call("presets", "demo", "--copy", tmp_path / "mine.yaml")
    weights = tiny_run / "checkpoints/last/weights.safetensors"
    code, _, err = call(
        "train", tmp_path / "mine.yaml", "--data", tiny_data, "--init", weights, "--out", tmp_path / "run", *SETS
    )
    assert code == 0 and "all weights from" in err


def test_pseudo_eval_prints_table_3_and_reuses_the_caches(call, run_copy, tmp_path):
    code, out, _ = call(
        "pseudo-eval", "--split", "val", "--run", run_copy, "--json", tmp_path / "t.json", "--per-class"
    )
    assert code == 0 and "Table 3, pseudo labels of val" in out and "without PAR" in out and "with PAR" in out
    for row in ("w/o AFA: give --without-afa RUN", "AFA (w/o prop.)", "AFA (prop. with MHSA)", "AFA"):
        assert row in out
    for fact in (
        "split val, 4 images",
        "scales 1, 1.5 with flip",
        "PAR 2 iterations",
        "after softmax",
        "image-level truth was used",
        "last checkpoint, step 4",
    ):
        assert fact in out, fact
    assert "4 images went through the network" in out and "triangle" in out
    figures = json.loads((tmp_path / "t.json").read_text())
    assert figures["images"] == 4 and set(figures["miou"]["AFA"]) == {"without_par", "with_par"}
    code, again, _ = call("pseudo-eval", "--split", "val", "--run", run_copy)
    assert "no forward pass: all 4 images came from the cache" in again
    assert [line for line in again.splitlines() if line.startswith("│")] == [
        line for line in out.splitlines() if line.startswith("│")
    ][:4]


def test_pseudo_eval_shows_a_run_without_the_branch(call, run_copy, tmp_path, tiny_data):
    call("train", "demo", "--data", tiny_data, "--out", tmp_path / "plain", *SETS, "--set", "affinity.enabled=false")
    code, out, _ = call("pseudo-eval", "--split", "val", "--run", run_copy, "--without-afa", tmp_path / "plain")
    assert code == 0 and "give --without-afa" not in out and "w/o AFA" in out
    refused(
        call("pseudo-eval", "--split", "val", "--run", run_copy, "--without-afa", run_copy), 2, "affinity.enabled=false"
    )


def test_eval_prints_its_rows(call, run_copy, tmp_path):
    code, out, _ = call("eval", "--split", "val", "--run", run_copy, "--json", tmp_path / "e.json")
    assert code == 0 and "single scale" in out and "multi-scale + flip" in out and "CRF" not in out
    assert "no image-level truth was used" in out
    assert set(json.loads((tmp_path / "e.json").read_text())["miou"]) == {"single scale", "multi-scale + flip"}


def test_eval_with_crf(call, run_copy):
    code, out, _ = call("eval", "--split", "val", "--run", run_copy, "--crf")
    assert code == 0 and "multi-scale + flip + CRF" in out


def test_dump_cams_then_nothing_is_left_to_do(call, run_copy):
    assert "4 images, 4 of them made now" in call("dump-cams", "--split", "val", "--run", run_copy)[1]
    assert "4 images, 0 of them made now" in call("dump-cams", "--split", "val", "--run", run_copy)[1]
    assert "4 images went" not in call("pseudo-eval", "--split", "val", "--run", run_copy)[1]


def test_ablate_prints_our_figures_beside_the_papers(call, run_copy, tmp_path):
    code, out, _ = call("ablate", "table4", "--run", run_copy, "--split", "val", "--json", tmp_path / "a.json")
    assert (
        code == 0 and "the paper's on VOC" in out and "52.9" in out and "5 rows measured now, 0 finished before" in out
    )
    assert "0 rows measured now, 5 finished before" in call("ablate", "table4", "--run", run_copy, "--split", "val")[1]
    assert json.loads((tmp_path / "a.json").read_text())["rows"][0]["paper"] == [48.2]
    refused(call("ablate", "table3"), 2, "expected one of table1, table2")
    refused(call("ablate", "table2"), 2, "--preset")


def test_in_a_terminal_bars_are_drawn_one_at_a_time(call, tmp_path, tiny_data, monkeypatch):
    monkeypatch.setattr("afactl.machine.terminal.log", Console(stderr=True, force_terminal=True, width=120))
    arguments = ("--data", tiny_data, "--out", tmp_path / "rows", "--set", "par.iterations=1", *SETS)
    code, out, err = call("ablate", "table4", "--preset", "demo", "--split", "val", *arguments)
    assert code == 0 and "5 rows measured now" in out, err
    assert call("eval", "--run", tmp_path / "rows/base", "--split", "val")[0] == 0


def test_pseudo_eval_shows_predicted_labels_beside_the_true_ones(call, run_copy):
    code, out, _ = call("pseudo-eval", "--split", "val", "--run", run_copy, "--labels", "predicted")
    assert code == 0 and "AFA, predicted labels" in out and "F1 against the truth" in out
    assert "image-level truth was used but in the rows that say otherwise" in out
    again = call("pseudo-eval", "--split", "val", "--run", run_copy, "--labels", "predicted")[1]
    assert "no forward pass" in again


def test_viz_attn_writes_a_picture(call, run_copy, tiny_data):
    photo = tiny_data / "images/val/0001.png"
    code, out, _ = call("viz-attn", photo, "--query", "32,40", "--query", "5,60", "--run", run_copy)
    picture = run_copy / "figures" / "attention-0001.png"
    assert code == 0 and f"picture: {picture}" in out and picture.stat().st_size > 10000


def test_predict_writes_masks(call, run_copy, tiny_data):
    code, out, _ = call("predict", tiny_data / "images/val", "--run", run_copy, "--overlay")
    assert code == 0 and "4 of 4 photos as png and overlay" in out and "1 disc" in out
    assert read_mask(run_copy / "predictions" / "0000.png", 6).shape == (64, 64)


def test_predict_names_a_broken_photo_and_does_the_others(call, run_copy, tiny_data, tmp_path):
    shutil.copytree(tiny_data / "images/val", tmp_path / "photos")
    (tmp_path / "photos" / "0001.png").write_bytes(b"\x89PNG cut off")
    result = call("predict", tmp_path / "photos", "--run", run_copy)
    refused(result, 1, "0001.png")
    assert "3 of 4 photos as png" in result[1]


def test_presets_are_listed_printed_and_copied(call, tmp_path):
    code, out, _ = call("presets")
    assert code == 0 and all(name in out for name in ("animals", "coco", "demo", "voc"))
    assert "max_iters: 20000" in call("presets", "voc")[1]
    assert call("presets", "voc", "--copy", tmp_path / "mine.yaml")[0] == 0
    refused(call("presets", "voc", "--copy", tmp_path / "mine.yaml"), 2, "the file exists")
    refused(call("presets", "vok"), 2, 'did you mean "voc"')
    refused(call("presets", "--copy", tmp_path / "x.yaml"), 2, "which preset?")


def test_export_writes_weights_that_start_another_training(call, run_copy, tmp_path, tiny_data):
    code, out, _ = call("export", "--run", run_copy)
    assert (
        code == 0 and f"weights: {run_copy / 'weights.safetensors'} (" in out and "trained from random weights" in out
    )
    assert (
        call(
            "export",
            "--run",
            run_copy,
            "--format",
            "authors",
            "--out",
            tmp_path / "deep" / "w.pth",
            "--checkpoint",
            "best",
        )[0]
        == 0
    )
    for weights in (run_copy / "weights.safetensors", tmp_path / "deep" / "w.pth"):
        code, _, err = call(
            "train", "demo", "--data", tiny_data, "--init", weights, "--out", tmp_path / weights.stem, *SETS
        )
        assert code == 0 and "all weights from" in err
    assert "w.pth, whose licence holds for these too" in call("export", "--run", tmp_path / "w")[1]
    refused(call("export", "--run", tmp_path), 2, "expected a run folder")
    refused(call("export", "--run", run_copy, "--out", tmp_path / "deep" / "w.pth" / "x"), 2, "cannot be written")


def test_data_check_finds_nothing_or_names_every_defect(call, tiny_data, tmp_path):
    data = demo.generate(tmp_path / "data", train=24, val=4, size=64)
    code, out, _ = call("data", "check", data)
    assert code == 0 and "no defects" in out and "triangle" in out and "photos by number of labels" in out
    (tmp_path / "data/images/val/0001.png").write_bytes(b"\x89PNG cut")
    code, out, _ = call("data", "check", "demo", "--data", tmp_path / "data", "--json", tmp_path / "c.json")
    assert code == 1 and "photo cannot be read: 1" in out and "1 defects" in out
    report = json.loads((tmp_path / "c.json").read_text())
    assert report["defects"][0]["where"].endswith("0001.png") and [one["images"] for one in report["splits"]] == [24, 4]
    (tmp_path / "empty").mkdir()
    refused(call("data", "check", tmp_path / "empty"), 1, "expected labels.csv, labels.json")
    refused(call("data", "check", tiny_data, "--data", tiny_data), 2, "leave --data out")
    refused(call("data", "check", "vok"), 2, 'did you mean "voc"')


def test_data_prepare_folder_writes_the_table(call, tiny_data, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    refused(call("data", "prepare", "folder", "--data", data), 2, "labels.csv: is there already; --overwrite")
    code, out, _ = call("data", "prepare", "folder", "--data", data, "--labels-from", "masks", "--overwrite")
    assert code == 0 and "all photos" in out and f"labels: {data / 'labels.csv'}" in out
    (data / "masks/val/0000.png").unlink()
    assert (
        "1 photos have no mask"
        in call("data", "prepare", "folder", "--data", data, "--labels-from", "masks", "--overwrite")[1]
    )
    refused(
        call("data", "prepare", "folder", "--data", data, "--overwrite", "--val", "0.2"),
        2,
        "belong to a split val already",
    )
    refused(call("data", "prepare", "folder", "--data", tmp_path / "no"), 1, "expected a folder, found nothing")


def test_beside_data_a_name_is_a_preset_even_where_a_folder_has_it(call, tmp_path, monkeypatch):
    data = demo.generate(tmp_path / "data", train=24, val=4, size=64)
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    refused(call("data", "check", "demo"), 1, "expected labels.csv, labels.json")
    assert call("data", "check", "demo", "--data", data)[0] == 0


def test_data_preview_draws_a_contact_sheet(call, tiny_data, tmp_path):
    sheet = tmp_path / "deep" / "sheet.png"
    code, out, _ = call("data", "preview", tiny_data, "--split", "val", "--out", sheet)
    assert code == 0 and "4 photos of val" in out and min(read_image(sheet).shape[:2]) > 200
    assert call("data", "preview", "demo", "--data", tiny_data, "--count", "3", "--out", tmp_path / "s.svg")[0] == 0
    refused(call("data", "preview", tiny_data, "--out", tmp_path / "s.xyz"), 2, "give a .png, .svg or .pdf file")
    refused(call("data", "preview", tiny_data, "--split", "no"), 1, "splits there: train, val")


def test_doctor_reports(call):
    code, out, _ = call("doctor")
    assert code == 0 and "torch" in out and "CUDA" in out


def test_the_newest_run_is_taken_and_named(call, run_copy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AFACTL_RUN", raising=False)
    refused(call("eval"), 2, "no run under runs/")
    (tmp_path / "runs").mkdir()
    run_copy.rename(tmp_path / "runs" / "mine")
    assert "run: runs/mine (the newest under runs)" in call("eval")[2]
    monkeypatch.setenv("AFACTL_RUN", str(tmp_path / "runs" / "mine"))
    assert "from AFACTL_RUN" in call("eval")[2]


def test_usage_errors_are_one_line_with_code_2(call, run_copy, tiny_data, tmp_path):
    refused(call("trian"), 2, "trian")
    refused(call("eval", "--spilt", "val"), 2, "--spilt")
    refused(call("train"), 2, "expected a preset, one of animals, coco, demo, voc")
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
    refused(call("eval", "--run", run_copy, "--json", tmp_path / "no" / "x.json"), 2, "--json", "cannot be written")
    refused(call("train", "voc"), 2, "give --data DIR")


def test_cuda_that_is_absent_is_told(call, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    refused(call("train", "demo", "--device", "cuda"), 2, "no usable CUDA device")


def test_failed_jobs_are_one_line_with_code_1(call, run_copy, tiny_data, tmp_path):
    refused(call("eval", "--run", run_copy, "--split", "tset"), 1, 'split "tset" is empty; splits there: train, val')
    refused(call("train", "demo", "--data", tmp_path / "no"), 1, "expected a folder, found nothing")
    (run_copy / "checkpoints" / "last" / "weights.safetensors").write_bytes(b"x")
    code, _, err = call("eval", "--run", run_copy)
    assert code == 0 and "checkpoints/last is damaged or unfinished (checksum); using last.old" in err.replace(
        "\n", " "
    )
    shutil.rmtree(run_copy / "checkpoints" / "last.old")
    refused(call("eval", "--run", run_copy), 1, "checkpoints/last damaged or unfinished (checksum)")


def test_weights_of_another_architecture_are_told(call, run_copy, tiny_data, tmp_path):
    weights = run_copy / "checkpoints/last/weights.safetensors"
    result = call(
        "train",
        "demo",
        "--data",
        tiny_data,
        "--init",
        weights,
        "--out",
        tmp_path / "r",
        "--set",
        "model.backbone=mit_b0",
    )
    refused(result, 1, "weights of another architecture")
    assert not (tmp_path / "r").exists()


def test_a_mask_with_a_value_that_is_no_class_is_named(call, run_copy, tiny_data, tmp_path):
    shutil.copytree(tiny_data, tmp_path / "data")
    write_mask(tmp_path / "data/masks/val/0002.png", np.full((64, 64), 9, np.uint8))
    refused(
        call("eval", "--run", run_copy, "--data", tmp_path / "data"),
        1,
        "0002.png",
        "expected mask values 0..6 or 255, got 9",
    )


def test_a_cache_of_other_weights_is_told_and_made_anew_on_request(call, run_copy, tiny_data, tmp_path):
    call("dump-cams", "--split", "val", "--run", run_copy)
    call("train", "demo", "--data", tiny_data, "--out", tmp_path / "other", *SETS, "--set", "train.seed=1")
    shutil.copytree(tmp_path / "other/checkpoints/last", run_copy / "checkpoints/last", dirs_exist_ok=True)
    refused(call("pseudo-eval", "--split", "val", "--run", run_copy), 1, "weights (", "--overwrite")
    assert call("pseudo-eval", "--split", "val", "--run", run_copy, "--overwrite")[0] == 0


def test_crf_without_the_package_is_one_line_before_any_work(call, run_copy, tiny_data, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("pydensecrf")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    backend = ("--crf", "--crf-backend", "pydensecrf", "--run", run_copy)
    refused(call("predict", tiny_data / "images/val", *backend), 1, "pip install 'afactl[crf]'", "--crf-backend torch")
    refused(call("eval", *backend), 1, "pip install 'afactl[crf]'")
    assert not (run_copy / "predictions").exists()


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_training_keeps_its_checkpoint_and_says_how_to_go_on(tmp_path, tiny_data, number):
    sets = [
        *SETS,
        "--set",
        "train.max_iters=400",
        "--set",
        "train.cls_warmup_iters=400",
        "--set",
        "train.checkpoint_iters=400",
        "--set",
        "train.eval_iters=400",
    ]
    command = [
        sys.executable,
        "-m",
        "afactl",
        "train",
        "demo",
        "--data",
        str(tiny_data),
        "--out",
        str(tmp_path / "run"),
        *sets,
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
    metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 60
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"afactl train --resume --out {tmp_path / 'run'}" in err and "Traceback" not in err
    assert (tmp_path / "run/checkpoints/last/weights.safetensors").is_file()


def test_data_prepare_tells_what_it_found(call, tmp_path):
    root = make_voc(tmp_path / "VOC2012", {"train": ["t1"], "val": ["v1"]}, {"t1": [0, 12], "v1": [0, 12]})
    (root / "Annotations").mkdir()
    (root / "Annotations" / "t1.xml").write_text("<a><filename>t1.jpg</filename><object><name>cat</name></object></a>")
    code, out, _ = call("data", "prepare", "voc", "--data", root, "--labels-from", "xml", "--json", tmp_path / "p.json")
    assert code == 0 and "1464" in out and "no masks of SBD: train on the plain list" in out
    assert "1 photos whose mask and XML disagree" in out and "t1: only in the mask: dog; only in the XML: cat" in out
    assert json.loads((tmp_path / "p.json").read_text())["counts"] == {"train": 1, "val": 1}
    refused(call("data", "prepare", "voc", "--data", tmp_path), 1, "expected JPEGImages/")
    refused(call("data", "prepare", "coco", "--data", tmp_path), 1, "instances_train2014.json")
    refused(call("data", "prepare", "coco", "--data", tmp_path, "--year", "2017"), 2, "expected 2014")
