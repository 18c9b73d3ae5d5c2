"""Write the pages that follow from the code: python docs/build_reference.py

docs/cli.md, docs/presets.md, docs/errors.md, and the tree of the package in docs/architecture.md.
"""

from __future__ import annotations

import ast
import html
import json
import re
from pathlib import Path

import typer.main
from typer.cli import get_docs_for_click

from afactl import errors
from afactl.cli.main import app
from afactl.presets import Preset, preset_names, preset_summary, weights_licence

HERE = Path(__file__).resolve().parent
TREE_START, TREE_END = "<!-- tree: written by docs/build_reference.py -->\n```\n", "\n```\n"


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
        "| preset | what | licence of its weights |",
        "|---|---|---|",
        *(f"| `{name}` | {preset_summary(name)} | {weights_licence(name)} |" for name in preset_names()),
    ]
    for section, field in Preset.model_fields.items():
        lines += ["", f"## {section}", "", field.annotation.__doc__, "", "| key | default | what |", "|---|---|---|"]
        for key, one in field.annotation.model_fields.items():
            shown = one.default if isinstance(one.default, str) else json.dumps(one.default)
            lines.append(f"| `{section}.{key}` | {shown} | {one.description} |")
    return "\n".join(lines) + "\n"


def errors_page() -> str:
    """Every message that a command can end with, by its kind; what is filled in stands in capitals."""
    kinds = {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.AfactlError)
    }
    found: dict[str, set[str]] = {name: set() for name in kinds}
    for path in sorted(Path(errors.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in kinds):
                continue
            if node.args and (text := _template(node.args[0])):
                found[node.func.id].add(text)
    lines = [
        "<!-- written by docs/build_reference.py -->",
        "# All errors",
        "",
        "Every message is one line. What is filled in stands in capitals.",
        "",
    ]
    for name, kind in kinds.items():
        if found[name]:
            lines += [f"## {name}", "", f"{kind.__doc__.strip().splitlines()[0]} Exit code {kind.exit_code}.", ""]
            lines += [
                f"- <code>{html.escape(text, quote=False).replace('|', '&#124;')}</code>"
                for text in sorted(found[name])
            ] + [""]
    return "\n".join(lines).rstrip() + "\n"


def architecture_page() -> str:
    """docs/architecture.md with the tree of the package as it is now."""
    before, _, rest = (HERE / "architecture.md").read_text(encoding="utf-8").partition(TREE_START)
    return before + TREE_START + package_tree() + TREE_END + rest.partition(TREE_END)[2]


def package_tree() -> str:
    """Rooms and modules, each with the first sentence of its docstring."""
    package = Path(errors.__file__).parent
    lines = []

    def add(folder: Path, depth: int) -> None:
        lines.append(_line(f"{folder.name}/", depth, _first_sentence(folder / "__init__.py")))
        inside = [path for path in folder.iterdir() if path.name not in ("__init__.py", "__pycache__", ".DS_Store")]
        for path in sorted(inside, key=lambda path: (path.is_dir(), path.name)):
            if (path / "__init__.py").is_file():
                add(path, depth + 1)
            elif path.is_file():
                lines.append(_line(path.name, depth + 1, _first_sentence(path)))

    add(package, 0)
    return "\n".join(lines)


def _line(name: str, depth: int, text: str) -> str:
    return f"{'    ' * depth + name:<34}{text}".rstrip()


def _first_sentence(path: Path) -> str:
    if path.suffix != ".py":
        return ""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.split(r"(?<=[^.]\.)\s+(?=[A-Z])", text.partition("\n\n")[0].replace("\n", " "))[0]


def _template(node: ast.expr) -> str:
    """A message with its placeholders named; "" where it is made elsewhere."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if not isinstance(node, ast.JoinedStr):
        return ""
    parts = []
    for part in node.values:
        if isinstance(part, ast.Constant):
            parts.append(str(part.value))
        elif not (
            isinstance(part.value, ast.Call) and ast.unparse(part.value.func) == "nearest"
        ):  # a hint, not always there
            names = [
                one.attr if isinstance(one, ast.Attribute) else one.id
                for one in ast.walk(part.value)
                if isinstance(one, ast.Attribute | ast.Name)
            ]
            parts.append(names[0].upper() if names else "...")
    return "".join(parts)


if __name__ == "__main__":
    pages = {"cli": cli_page, "presets": presets_page, "errors": errors_page, "architecture": architecture_page}
    for name, page in pages.items():
        (HERE / f"{name}.md").write_text(page(), encoding="utf-8")
        print(HERE / f"{name}.md")
