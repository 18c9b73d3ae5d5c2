import sys
from types import SimpleNamespace

import pytest

from afactl.errors import DependencyError
from afactl.presets import values_by_key
from afactl.runs.folder import run_preset
from afactl.runs.metrics import read_metrics
from afactl.training.observers.wandb import WandbLog
from tests.conftest import train_tiny, until


def records(content):
    """What stands in a W&B file, without the headers at which its blocks of 32 KiB cut it into pieces."""
    place, pieces = 7, []
    while place + 7 <= len(content):
        room = 32768 - place % 32768
        if room < 7:
            place += room
            continue
        length = int.from_bytes(content[place + 4 : place + 6], "little")
        pieces.append(content[place + 7 : place + 7 + length])
        place += 7 + length
    return b"".join(pieces)


def test_an_offline_run_is_written(tmp_path, tiny_data, monkeypatch):
    """By wandb itself; its file is looked through for the names of what was logged."""
    pytest.importorskip("wandb", reason="W&B needs the extra [wandb]")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)  # a key of the user sends nothing either
    run = train_tiny(tiny_data, tmp_path / "run", observers=(WandbLog(),)).run
    (file,) = (run / "wandb").glob("offline-run-*/run-*.wandb")
    names = (b"loss_cls", b"val_seg_miou", b"train.max_iters", b"from_step", b"pseudo label")

    def whole():
        content = records(file.read_bytes())
        return all(name in content for name in names)

    assert until(whole, 60)  # a process of wandb's own writes it, on a slow disk after the training has ended


def test_what_is_logged_is_what_the_run_has(tmp_path, tiny_data, monkeypatch):
    """The calls, by a wandb that only notes them."""
    calls, settings = [], {}

    def init(**given):
        settings.update(given)
        return SimpleNamespace(
            log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("end")
        )

    fake = SimpleNamespace(init=init, Settings=dict, Image=lambda picture: picture.shape)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run = train_tiny(tiny_data, tmp_path / "run", observers=(WandbLog(),)).run
    assert settings["mode"] == "offline" and settings["dir"] == str(run) and settings["name"] == "run"
    assert settings["config"] == {**values_by_key(run_preset(run)), "from_step": 0}
    assert calls[-1] == "end"
    logged = [call for call in calls if call != "end"]
    assert [step for step, _ in logged] == sorted(step for step, _ in logged), "W&B drops a step that goes back"
    lines = read_metrics(run)
    for name in ("loss", "lr", "val_seg_miou"):
        expected = [(line["step"], line[name]) for line in lines if name in line]
        assert [(step, pytest.approx(values[name])) for step, values in logged if name in values] == expected
    pictures = [name for _, values in logged for name, value in values.items() if value == (64, 64, 3)]
    assert len(pictures) == 4 * 4


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(DependencyError, match="pip install 'afactl\\[wandb\\]'"):
        WandbLog()
