"""The structure of the package: rooms, the walls between them, and a file of tests for every file of code."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "afactl"
MODULES = sorted(PACKAGE.rglob("*.py"))

# What a room may import beside itself. "*": every room that stands below it.
WALLS = {
    "__main__": "cli",
    "cli": "*",
    "api": "*",
    "ablation": "*",
    "training": "*",
    "explorer": "*",
    "prediction": "*",
    "pictures": "*",
    "evaluation": "*",
    "inference": "*",
    "runs": "*",
    "network": "*",
    "method": "labels errors",
    "datasets": "presets labels files registry errors",
    "machine": "presets labels files errors",
    "presets": "files errors",
    "labels": "",
    "files": "errors",
    "registry": "errors",
    "errors": "",
    "__init__": "",
}
# Rooms beside each other, which do not know each other although the list above has an order.
BESIDE = [{"training", "explorer", "prediction"}, {"method", "datasets", "machine"}]


def name_of(path):
    """The dotted name below `afactl`; a package goes by its own name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


NAMES = {name_of(path) for path in MODULES}


def room_of(name):
    return name.split(".")[0]


def allowed(room):
    """The rooms that a room may import."""
    if WALLS[room] != "*":
        return {*WALLS[room].split(), room, "__init__"}
    rooms = list(WALLS)
    beside = set().union(*(row for row in BESIDE if room in row))
    return {room, "__init__", *rooms[rooms.index(room) + 1 :]} - (beside - {room})


def imported(path):
    """Modules of the package that a file imports at run time, wherever in the file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    typing_only = {node for block in blocks for node in ast.walk(block)}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ImportFrom)
            and node not in typing_only
            and (node.module or "").split(".")[0] == "afactl"
        ):
            base = node.module.removeprefix("afactl").lstrip(".")
            for alias in node.names:
                full = f"{base}.{alias.name}".lstrip(".")
                yield full if full in NAMES else base or "__init__"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path):
    name = name_of(path)
    assert room_of(name) in WALLS, f"{name}: give its room a line in WALLS"
    wrong = [other for other in imported(path) if room_of(other) not in allowed(room_of(name))]
    assert not wrong, f"{name} imports {wrong}, which do not lie below it"


def test_within_a_room_nothing_imports_in_circles():
    # A package's own __init__ may gather its modules.
    graph = {
        name_of(path): {other for other in imported(path) if not other.startswith(f"{name_of(path)}.")}
        for path in MODULES
    }
    graphlib.TopologicalSorter(graph).prepare()


def test_at_the_top_lies_only_what_everything_stands_on():
    assert (
        len([path for path in MODULES if path.parent == PACKAGE and path.name not in ("__init__.py", "__main__.py")])
        <= 6
    )
    assert not [path for path in MODULES if path.stem in {"utils", "helpers", "common", "misc"}]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_input_is_never_checked_by_assert(path):
    assert not [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Assert)]


@pytest.mark.parametrize("path", [p for p in MODULES if not p.stem.startswith("__")], ids=name_of)
def test_the_tests_mirror_the_package(path):
    place = path.relative_to(PACKAGE)
    assert (ROOT / "tests" / place.parent / f"test_{place.name}").is_file()


def test_no_pickle_is_loaded_and_yaml_is_safe():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords), path
            if isinstance(node, ast.Import):
                assert not {alias.name for alias in node.names} & {"pickle", "marshal", "shelve"}, path
