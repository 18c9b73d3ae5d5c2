"""Commands that are killed at random moments and called again: nothing is lost, nothing is done twice.

Together 30 kills: six for each of five commands. The commands run in processes that a server forks,
which has torch loaded already, so that the kills fall into the work and not into the start.
"""

import json
import multiprocessing
import os
import random
import shutil
import time

import numpy as np
import pytest
import torch

from afactl.datasets import demo
from afactl.datasets.masks import read_mask
from afactl.inference.cams import cam_cache_path, open_cam_cache
from afactl.inference.trained_run import open_run, open_split
from afactl.runs.cache import Cache, CacheHeader

KILLS = 6
IMAGES = 30


def call(arguments, log):
    """One command line in a process of its own; every pass of the network leaves a byte in `log`."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    torch.set_num_threads(1)
    from afactl.cli import main as cli
    from afactl.inference import cams as inference
    from afactl.prediction import predict as prediction

    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for module, name in ((inference, "cam_record"), (prediction, "segment")):
        original = getattr(module, name)

        def counted(*given, original=original):
            os.write(handle, b".")
            return original(*given)

        setattr(module, name, counted)
    cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def server():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["afactl.ablation.measuring", "afactl.prediction.predict", "afactl.cli.main", "matplotlib"]
    )
    # The first process waits until the server has everything loaded.
    first = context.Process(target=time.sleep, args=(0,))
    first.start()
    first.join()
    return context


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Enough pictures that a call is not over before the kill."""
    return demo.generate(tmp_path_factory.mktemp("kills") / "data", train=IMAGES, val=2, size=64)


def run_to_the_end(server, arguments, log):
    process = server.Process(target=call, args=(arguments, log))
    start = time.monotonic()
    process.start()
    process.join(120)
    assert process.exitcode == 0, f"{arguments} ended with {process.exitcode}"
    return time.monotonic() - start


def kill_and_call_again(server, arguments, log, seconds):
    """KILLS kills at random moments of the time that a call took, then a call to the end."""
    rng = random.Random(0)
    killed = 0
    for _ in range(KILLS):
        process = server.Process(target=call, args=(arguments, log))
        process.start()
        process.join(rng.uniform(0.05, 0.3) * seconds)
        killed += process.exitcode is None
        process.kill()
        process.join()
    assert killed > KILLS / 2, "the kills came too late to be any"
    run_to_the_end(server, arguments, log)
    return killed


def passes(log):
    return log.stat().st_size if log.exists() else 0


def test_dump_cams(server, tmp_path, run_copy, data):
    fresh = tmp_path / "fresh"
    shutil.copytree(run_copy, fresh)
    seconds = run_to_the_end(server, ["dump-cams", "--run", fresh, "--data", data], tmp_path / "a")
    killed = kill_and_call_again(server, ["dump-cams", "--run", run_copy, "--data", data], tmp_path / "b", seconds)
    assert passes(tmp_path / "a") == IMAGES and IMAGES <= passes(tmp_path / "b") <= IMAGES + killed, (
        "at most one image is redone for each kill"
    )
    one, other = (open_run(folder, torch.device("cpu")) for folder in (fresh, run_copy))
    split = open_split(one, "train", data, masks=False)
    with open_cam_cache(one, split) as expected, open_cam_cache(other, split) as found:
        assert found.ids() == expected.ids() and len(found) == IMAGES
        for image_id in found.ids():
            mine, theirs = found.read(image_id), expected.read(image_id)
            assert all(np.array_equal(mine[name], theirs[name]) for name in theirs)


def test_pseudo_eval(server, tmp_path, run_copy, data):
    fresh = tmp_path / "fresh"
    shutil.copytree(run_copy, fresh)
    seconds = run_to_the_end(
        server, ["pseudo-eval", "--run", fresh, "--data", data, "--json", tmp_path / "a.json"], tmp_path / "a"
    )
    killed = kill_and_call_again(
        server,
        ["pseudo-eval", "--run", run_copy, "--data", data, "--json", tmp_path / "b.json"],
        tmp_path / "b",
        seconds,
    )
    assert passes(tmp_path / "a") == IMAGES and IMAGES <= passes(tmp_path / "b") <= IMAGES + killed
    assert (
        json.loads((tmp_path / "a.json").read_text())["miou"] == json.loads((tmp_path / "b.json").read_text())["miou"]
    )


@pytest.mark.parametrize("form", ["png", "cvat"])
def test_predict(server, tmp_path, tiny_run, data, form):
    arguments = ["predict", data / "images/train", "--run", tiny_run, "--format", form, "--out"]
    seconds = run_to_the_end(server, [*arguments, tmp_path / "one"], tmp_path / "a")
    killed = kill_and_call_again(server, [*arguments, tmp_path / "two"], tmp_path / "b", seconds)
    once = passes(tmp_path / "a")  # scales of every photo
    assert once % IMAGES == 0 and once <= passes(tmp_path / "b") <= once + killed * once // IMAGES
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*"))
    assert sorted(path.relative_to(tmp_path / "two") for path in (tmp_path / "two").rglob("*")) == files
    for path in files:
        if path.suffix == ".png":
            assert np.array_equal(read_mask(tmp_path / "one" / path, 6), read_mask(tmp_path / "two" / path, 6))


def test_ablate(server, tmp_path, run_copy, data):
    fresh = tmp_path / "fresh"
    shutil.copytree(run_copy, fresh)
    seconds = run_to_the_end(
        server, ["ablate", "table4", "--run", fresh, "--data", data, "--json", tmp_path / "a.json"], tmp_path / "a"
    )
    killed = kill_and_call_again(
        server,
        ["ablate", "table4", "--run", run_copy, "--data", data, "--json", tmp_path / "b.json"],
        tmp_path / "b",
        seconds,
    )
    # The row at hand is scored again, but from the cache: no image passes the network more than once for each kill.
    assert IMAGES <= passes(tmp_path / "b") <= IMAGES + killed
    assert (
        json.loads((tmp_path / "a.json").read_text())["rows"] == json.loads((tmp_path / "b.json").read_text())["rows"]
    )


def test_data_prepare_coco(server, tmp_path, shared):
    pytest.importorskip("pycocotools", reason="COCO needs the extra [coco]")
    from afactl.datasets.registry import load_all

    for name in ("one", "two"):
        shutil.copytree(shared / "data/coco-mini", tmp_path / name)
        shutil.rmtree(tmp_path / name / "prepared", ignore_errors=True)
    seconds = run_to_the_end(server, ["data", "prepare", "coco", "--data", tmp_path / "one"], tmp_path / "a")
    kill_and_call_again(server, ["data", "prepare", "coco", "--data", tmp_path / "two"], tmp_path / "b", seconds)
    for expected, found in zip(load_all("coco", tmp_path / "one"), load_all("coco", tmp_path / "two"), strict=True):
        assert [(s.image_id, s.labels) for s in found.samples] == [(s.image_id, s.labels) for s in expected.samples]
        for sample, other in zip(expected.samples, found.samples, strict=True):
            assert np.array_equal(expected.masks.read(sample), found.masks.read(other))


def test_two_processes_on_one_cache(tmp_path, run_copy, server):
    """The second one stops with a line and code 1, and the first one's work is whole."""
    run = open_run(run_copy, torch.device("cpu"))
    split = open_split(run, "train", None, masks=False)
    with open_cam_cache(run, split):
        process = server.Process(
            target=call, args=(["dump-cams", "--run", run_copy, "--split", "train"], tmp_path / "log")
        )
        process.start()
        process.join(60)
        assert process.exitcode == 1 and passes(tmp_path / "log") == 0
    header = CacheHeader("other", {}, "w", "d")
    with pytest.raises(Exception, match="made with other stage"):
        Cache.open(cam_cache_path(run, "train"), header)
