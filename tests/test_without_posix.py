"""The main job without the calls that only POSIX systems have: Windows and others have none of them."""

import json
import os
import subprocess
import sys

import pytest

from afactl.datasets.masks import read_mask
from tests.conftest import ROOT, TINY

# What is hidden from every process of a command, before anything else is imported. Worker processes are spawned.
HIDDEN = """
import multiprocessing, os, platform, signal, sys

for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("fork", "forkpty", "getuid", "geteuid", "killpg", "sched_getaffinity", "statvfs", "mkfifo", "setsid"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "setitimer", "pthread_kill"):
    if hasattr(signal, name):
        delattr(signal, name)
platform.libc_ver = lambda *given, **options: ("", "")
multiprocessing.set_start_method("spawn")
"""


@pytest.fixture(scope="module")
def hidden(tmp_path_factory):
    """A call of the command line in a process where those calls are hidden."""
    place = tmp_path_factory.mktemp("hidden")
    (place / "sitecustomize.py").write_text(HIDDEN)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(place), str(ROOT)])}

    def call(*arguments, cwd):
        command = [sys.executable, "-m", "afactl", *map(str, arguments)]
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done

    return call


def test_they_are_hidden(hidden, tmp_path):
    code = "import os, sys; print(hasattr(os, 'fork'), 'fcntl' in sys.modules, sys.modules.get('fcntl'))"
    (tmp_path / "sitecustomize.py").write_text(HIDDEN)
    told = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert told.stdout.split() == ["False", "True", "None"]


def test_the_main_job(hidden, tiny_data, tmp_path):
    """Training with worker processes, going on, labels, scores, masks and the page."""
    sets = [part for value in [*TINY, "train.workers=1"] for part in ("--set", value)]
    trained = hidden("train", "demo", "--data", tiny_data, "--out", "run", *sets, cwd=tmp_path)
    assert "4 steps" in trained.stdout and "peak memory" not in trained.stdout, "nothing there counts it"
    hidden("train", "--resume", "--out", "run", "--allow-changes", "--set", "train.max_iters=5", cwd=tmp_path)
    hidden("pseudo-eval", "--run", "run", "--json", "table3.json", cwd=tmp_path)
    hidden("eval", "--run", "run", "--crf", cwd=tmp_path)
    hidden("predict", tiny_data / "images" / "val", "--run", "run", "--out", "masks", cwd=tmp_path)
    hidden("report", "run", cwd=tmp_path)
    assert json.loads((tmp_path / "table3.json").read_text())["images"] == 8
    assert [read_mask(path, 6).shape for path in sorted((tmp_path / "masks").glob("*.png"))] == [(64, 64)] * 4
    assert (tmp_path / "run" / "report.html").is_file()
    assert not list(tmp_path.rglob("*.part")), "no file is left"
