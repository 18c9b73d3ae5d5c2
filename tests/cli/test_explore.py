"""`afactl explore` as a user calls it."""

import builtins
import signal
import subprocess
import sys
import urllib.request

import pytest

from afactl.explorer.server import listen
from tests.cli.conftest import refused


@pytest.fixture
def serving(tmp_path):
    """Starts the command in a process of its own: it, and the line with the address."""
    started = []

    def start(*arguments):
        command = [sys.executable, "-m", "afactl", "explore", *map(str, arguments), "--no-open", "--device", "cpu"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(process)
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("page: "):
                break
        return process, lines

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_it_serves_until_it_is_stopped_and_says_where_the_list_is(serving, run_copy):
    process, lines = serving(run_copy)
    url = lines[-1].split()[1]
    assert url.startswith("http://127.0.0.1:") and "this machine only" in lines[-1]
    assert b"afactl explore" in urllib.request.urlopen(url).read()
    asked = urllib.request.Request(f"{url}api/verdict?split=val&photo=val/0000&verdict=keep", method="POST")
    assert b'"keep":1' in urllib.request.urlopen(asked).read()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in out
    assert f"review list: {run_copy / 'review.csv'} (1 keep, 0 wrong, 0 unsure)" in out


def test_without_the_dataset_it_says_so_and_serves_all_the_same(serving, run_copy, tmp_path):
    process, lines = serving("--run", run_copy, "--data", tmp_path / "nothing")
    assert "no photos of the run's dataset" in lines[0] and "drop some of your own" in lines[0]
    assert process.poll() is None


def test_bad_calls_are_one_line(call, run_copy, tmp_path, monkeypatch):
    refused(call("explore", tmp_path / "no"), 2, "expected a run folder")
    refused(call("explore", run_copy, "--run", run_copy), 2, "give the run once")
    with listen(None) as taken:
        port = taken.getsockname()[1]
        refused(call("explore", run_copy, "--port", port), 2, f"--port {port}: cannot be used", "a free one")
    (run_copy / "review.csv").write_text("a,b\n")
    refused(call("explore", run_copy, "--no-open"), 1, "review.csv: expected the columns image, split, verdict")

    kept = builtins.__import__

    def without(name, *rest, **more):
        if name.partition(".")[0] == "uvicorn":
            raise ModuleNotFoundError("No module named 'uvicorn'", name="uvicorn")
        return kept(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, "afactl.explorer.server")
    refused(call("explore", run_copy), 1, "explore: needs uvicorn; pip install 'afactl[explore]'")
