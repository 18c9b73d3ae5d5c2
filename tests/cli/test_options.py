"""The run, the device and the CRF that a command line chooses."""

import sys

from tests.cli.conftest import refused


def test_the_newest_run_is_taken_and_named(call, run_copy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AFACTL_RUN", raising=False)
    refused(call("eval"), 2, "no run under runs/")
    (tmp_path / "runs").mkdir()
    run_copy.rename(tmp_path / "runs" / "mine")
    assert "run: runs/mine (the newest under runs)" in call("eval")[2]
    monkeypatch.setenv("AFACTL_RUN", str(tmp_path / "runs" / "mine"))
    assert "from AFACTL_RUN" in call("eval")[2]


def test_crf_without_the_package_is_one_line_before_any_work(call, run_copy, tiny_data, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("pydensecrf")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    backend = ("--crf", "--crf-backend", "pydensecrf", "--run", run_copy)
    refused(call("predict", tiny_data / "images/val", *backend), 1, "pip install 'afactl[crf]'", "--crf-backend torch")
    refused(call("eval", *backend), 1, "pip install 'afactl[crf]'")
    assert not (run_copy / "predictions").exists()
