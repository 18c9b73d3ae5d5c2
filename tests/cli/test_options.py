"""The run, the device and the CRF that a command line chooses."""

import dataclasses
import sys
from typing import Annotated

import pytest
import typer

from afactl.cli.main import app
from afactl.cli.options import Backend, Palette, Protocol, spread_options
from afactl.errors import UsageError
from afactl.method.refinement.crf import CRF_BACKENDS
from afactl.pictures.palettes import PALETTES
from afactl.prediction.registry import WRITERS
from afactl.presets import PROTOCOLS
from tests.cli.conftest import refused


def test_choices_are_what_there_is():
    """These are said twice, since the command line may not import torch."""
    assert [choice.value for choice in Backend] == list(CRF_BACKENDS)
    assert [choice.value for choice in Palette] == list(PALETTES)
    assert [choice.value for choice in Protocol] == list(PROTOCOLS)


def test_forms_of_predict_are_those_of_the_registry(monkeypatch):
    predict = typer.main.get_command(app).commands["predict"]
    for form in WRITERS.names():
        assert predict.make_context("predict", ["x", "--format", form]).params["form"] == form
    with pytest.raises(UsageError, match="--format mine: expected one of png, grey, overlay, .*label-studio"):
        predict.make_context("predict", ["x", "--format", "mine"])
    monkeypatch.setattr(WRITERS, "_registered", {"mine": object})
    assert predict.make_context("predict", ["x", "--format", "mine"]).params["form"] == "mine"


@dataclasses.dataclass(frozen=True)
class Shared:
    """Options of two commands."""

    size: Annotated[int, typer.Option("--size", help="of it")] = 3
    loud: Annotated[bool, typer.Option("--loud")] = False


def test_shared_options_are_said_once():
    found = []
    group = typer.Typer()

    @group.command()
    @spread_options
    def first(name: str = "x", *, options: Shared) -> None:
        """The first."""
        found.append((name, options))

    @group.command()
    @spread_options
    def second(options: Shared) -> None:
        found.append(options)

    commands = typer.main.get_command(group).commands
    assert [parameter.name for parameter in commands["first"].params] == ["name", "size", "loud"]
    assert commands["first"].help == "The first." and commands["first"].params[1].help == "of it"
    for words in (["first"], ["first", "--size", "5", "--name", "y"], ["second", "--loud"]):
        typer.main.get_command(group).main(words, standalone_mode=False)
    assert found == [("x", Shared()), ("y", Shared(size=5)), Shared(loud=True)]


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
