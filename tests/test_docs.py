"""The documentation says what the code does: every command, option and key; every command line in it runs or parses."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from afactl.cli import app, main
from afactl.presets import field_names, load_preset, preset_names
from tests.conftest import TINY

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def every_command(commands, before=""):
    """(full name, command), those of groups too."""
    for name, command in commands.items():
        below = getattr(command, "commands", None)
        yield from every_command(below, f"{before}{name} ") if below else [(f"{before}{name}", command)]


COMMANDS = dict(every_command(typer.main.get_command(app).commands))


def command_lines(page):
    """Lines of a page's console blocks that call afactl, without what a shell would take from them."""
    for block in re.findall(r"```(?:console|bash|sh|)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.removeprefix("$ ").strip()
            if line.startswith("afactl ") and "[OPTIONS]" not in line:
                yield shlex.split(line, comments=True)[1:]


CALLS = [pytest.param(page, call, id=f"{page.name}: {shlex.join(call)}") for page in PAGES for call in command_lines(page)]


def test_the_pages_show_commands():
    shown = {call.values[1][0] for call in CALLS}
    assert len(CALLS) > 12 and shown >= {"train", "pseudo-eval", "eval", "ablate", "viz-attn", "predict"}


@pytest.mark.parametrize(("page", "call"), CALLS)
def test_every_command_line_of_the_docs_parses(page, call):
    length = next(n for n in (3, 2, 1) if shlex.join(call[:n]) in COMMANDS)
    name, arguments = " ".join(call[:length]), call[length:]
    context = COMMANDS[name].make_context(name, list(arguments))
    if name == "train" and (preset := context.params["preset"]) in preset_names():
        load_preset(preset, context.params["overrides"] or [])


@pytest.mark.parametrize("name", COMMANDS)
def test_the_reference_holds_every_option(name):
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    section = page.split(f"## `afactl {name}`")[1].split("\n## ")[0]
    for parameter in COMMANDS[name].params:
        if parameter.param_type_name == "option":
            assert f"`{max(parameter.opts, key=len)}" in section, f"run python docs/build_reference.py: {parameter.name}"
            assert not parameter.help or parameter.help in section, f"run python docs/build_reference.py: {parameter.name}"


def test_the_reference_of_presets_is_current():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        from build_reference import presets_page
    finally:
        sys.path.pop(0)
    page = (ROOT / "docs" / "presets.md").read_text(encoding="utf-8")
    assert page == presets_page(), "run python docs/build_reference.py"
    assert all(f"`{name}`" in page for name in field_names())


def test_the_first_commands_of_the_readme_run(tmp_path, tiny_data, monkeypatch, capsys):
    lines = re.search(r"<!-- by hand -->\n```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1].splitlines()
    calls = [shlex.split(line, comments=True) for line in lines if line.startswith("afactl ")]
    assert [call[1] for call in calls] == ["train", "pseudo-eval", "eval", "viz-attn", "predict"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AFACTL_RUN", raising=False)
    (tmp_path / "photos").symlink_to(tiny_data / "images" / "val")
    for _, name, *arguments in calls:
        if name == "train":
            arguments += ["--data", str(tiny_data), *(part for override in TINY for part in ("--set", override))]
        with pytest.raises(SystemExit) as stopped:
            main([name, *arguments])
        assert not stopped.value.code, f"{name}: {capsys.readouterr().err}"
    assert len(list(tmp_path.glob("runs/demo-*/predictions/*.png"))) >= 4


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_make_shows_what_it_would_do():
    """The Makefile parses and its demo goes through the four commands."""
    result = subprocess.run(["make", "--dry-run", "demo", "VENV=/nowhere"], cwd=ROOT, capture_output=True, text=True, check=True, env=os.environ)
    for part in ("train demo", "pseudo-eval --split train", "viz-attn --query 60,50", "--crf"):
        assert part in result.stdout
