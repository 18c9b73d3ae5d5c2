"""`afactl train` as a user calls it."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.cli.conftest import SETS, refused


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


def test_cuda_that_is_absent_is_told(call, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    refused(call("train", "demo", "--device", "cuda"), 2, "no usable CUDA device")


@pytest.mark.parametrize("whom", ["the job", "all its processes"])  # as kill does, or a terminal and a scheduler
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_training_keeps_its_checkpoint_and_says_how_to_go_on(tmp_path, tiny_data, number, whom):
    sets = [
        *SETS,
        "--set",
        "train.workers=2",
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
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ, start_new_session=True)
    metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 60
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    if whom == "the job":
        process.send_signal(number)
    else:
        os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"afactl train --resume --out {tmp_path / 'run'}" in err and "Traceback" not in err
    assert (tmp_path / "run/checkpoints/last/weights.safetensors").is_file()


def test_the_former_name_of_a_preset_still_works_and_is_told(call, tmp_path):
    code, _, err = call("train", "animals", "--data", tmp_path / "none", "--out", tmp_path / "run")
    assert code and "preset: animals is called photos now" in err and "expected a folder, found nothing" in err
    assert "is called" not in call("train", "photos", "--data", tmp_path / "none", "--out", tmp_path / "run")[2]
