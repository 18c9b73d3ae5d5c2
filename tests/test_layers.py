"""The structure of the package: imports point down only, and rooms keep their size."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "afactl"

# A module imports from rows below its own only. Modules of one row do not know each other.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"cli_around", "cli_data", "cli_viz", "training_view"},
    {"ablation", "report"},
    {"figures"},
    {"prediction", "training", "options"},
    {"tensorboard_log"},
    {"exports", "terminal"},
    {"visualization"},
    {"palettes", "label_studio", "fonts"},
    {"training_step"},
    {"evaluation"},
    {"inference"},
    {"checkpoints"},
    {"foreign_weights", "runs", "doctor", "devices"},
    {"datasets.training_stream", "datasets.registry", "datasets.checking", "datasets.preparing"},
    {"datasets.voc", "datasets.coco", "datasets.folder", "datasets.demo"},
    {"datasets.mask_labels", "datasets.tables"},
    {"datasets.images", "datasets.transforms", "datasets.samples", "presets", "cache", "parallel", "ablation_tables"},
    {"journal"},
    {"pseudo_labels", "model"},
    {"refinement.registry"},
    {"cam", "affinity", "losses", "metrics", "schedule", "refinement.par", "refinement.pamr", "refinement.crf", "backbones"},
    {"backbones.mit", "refinement.lattice", "refinement.neighborhood"},
    {"backbones.registry", "batch_norm"},
    {"distributed", "unfinished"},
    {"errors", "allocator", "files", "labels"},
    {"__init__", "datasets", "refinement"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
MATHEMATICS = {"cam", "affinity", "losses", "metrics", "schedule", "pseudo_labels", "model",
               "refinement.par", "refinement.pamr", "refinement.crf", "refinement.registry", "refinement.lattice", "refinement.neighborhood"}  # fmt: skip
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imported(path):
    """Modules of the package that a file imports at run time, wherever in the file."""
    tree = ast.parse(path.read_text())
    typing_only = {
        node for block in ast.walk(tree) if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node not in typing_only and (node.module or "").split(".")[0] == "afactl":
            base = node.module.removeprefix("afactl").lstrip(".")
            for alias in node.names:
                full = f"{base}.{alias.name}".lstrip(".")
                yield full if full in LEVEL else base or "__init__"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path):
    name = name_of(path)
    assert name in LEVEL, f"give {name} a place in the layers"
    # A package's own __init__ may gather its modules.
    wrong = [other for other in imported(path) if LEVEL[other] <= LEVEL[name] and not other.startswith(f"{name}.")]
    assert not wrong, f"{name} imports {wrong}, which lie no lower"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_the_mathematics_takes_no_preset(path):
    if name_of(path) in MATHEMATICS:
        assert "presets" not in set(imported(path))
    assert path.stem not in {"utils", "helpers", "common", "misc"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_input_is_never_checked_by_assert(path):
    assert not [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert)]


def test_every_module_has_its_tests():
    tests = Path(__file__).resolve().parent
    without = {"__main__", "__init__", "datasets", "refinement", "backbones", "datasets.samples", "backbones.mit",
               "backbones.registry", "datasets.registry", "datasets.mask_labels", "refinement.neighborhood", "ablation_tables", "options", "cli_around", "cli_data", "cli_viz"}  # fmt: skip
    files = {name: [*name.split(".")[:-1], f"test_{name.split('.')[-1]}.py"] for name in LEVEL if name not in without}
    missing = [name for name, parts in files.items() if not tests.joinpath(*parts).is_file()]
    assert not missing


def test_no_pickle_is_loaded_and_yaml_is_safe():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords), path
            if isinstance(node, ast.Import):
                assert not {alias.name for alias in node.names} & {"pickle", "marshal", "shelve"}, path
