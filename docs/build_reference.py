"""Write docs/cli.md and docs/presets.md from the code: python docs/build_reference.py"""

from __future__ import annotations

import json
from pathlib import Path

import typer.main
from typer.cli import get_docs_for_click

from afactl.cli import app
from afactl.presets import Preset, preset_names, preset_summary

HERE = Path(__file__).resolve().parent


def cli_page() -> str:
    """Every command with its options, by Typer's own writer."""
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="afactl")
    page = get_docs_for_click(obj=command, ctx=context, name="afactl", title="Command line")
    return "<!-- written by docs/build_reference.py -->\n" + page.strip() + "\n"


def presets_page() -> str:
    """Every key of a preset with its default, which is the paper's for PASCAL VOC."""
    lines = [
        "<!-- written by docs/build_reference.py -->",
        "# Presets",
        "",
        "A preset is one complete YAML file. `afactl presets NAME --copy FILE` gives one to change;",
        "`--set section.key=value` changes a value for one run. What a file leaves out takes the default.",
        "",
        "| preset | what |",
        "|---|---|",
        *(f"| `{name}` | {preset_summary(name)} |" for name in preset_names()),
    ]
    for section, field in Preset.model_fields.items():
        lines += ["", f"## {section}", "", field.annotation.__doc__, "", "| key | default | what |", "|---|---|---|"]
        for key, one in field.annotation.model_fields.items():
            shown = one.default if isinstance(one.default, str) else json.dumps(one.default)
            lines.append(f"| `{section}.{key}` | {shown} | {one.description} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for name, page in (("cli.md", cli_page()), ("presets.md", presets_page())):
        (HERE / name).write_text(page, encoding="utf-8")
        print(HERE / name)
