"""docs/photos-to-masks.ipynb runs from its first cell to its last, and shows what it gave when it was run whole."""

import pytest

from tests.conftest import ROOT, TINY

nbformat = pytest.importorskip("nbformat", reason="the notebook needs nbclient and ipykernel, which make test installs")
nbclient = pytest.importorskip("nbclient", reason="the notebook needs nbclient and ipykernel, which make test installs")
PAGE = ROOT / "docs" / "photos-to-masks.ipynb"


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs_of(cell):
    """What a cell printed, its value as text, and how many pictures it drew."""
    text = "".join(
        output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in cell.get("outputs", ())
    )
    return text, sum("image/png" in output.get("data", {}) for output in cell.get("outputs", ()))


def test_it_runs(tmp_path, monkeypatch):
    """On eight small pictures and for four steps: the cells as they stand, but for these numbers."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("AFACTL_CACHE", str(tmp_path / "cache"))
    notebook = nbformat.read(PAGE, 4)
    changes = {
        'settings = ["train.max_iters=870"]': f"settings = {TINY!r}",
        "train=240, val=40, size=160": "train=8, val=4, size=64",
    }
    for old, new in changes.items():
        (cell,) = [cell for cell in code_cells(notebook) if old in cell.source]
        cell.source = cell.source.replace(old, new)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    told = [outputs_of(cell) for cell in code_cells(notebook)]
    assert sum(pictures for _, pictures in told) == 3 and "4 masks; 0 background, 1 disc" in told[-1][0]
    assert len(list((tmp_path / "masks").glob("*.png"))) == 4


def test_it_shows_what_it_gave():
    cells = code_cells(nbformat.read(PAGE, 4))
    told = [outputs_of(cell) for cell in cells]
    assert sum(pictures for _, pictures in told) == 3
    assert any("870 steps in" in text for text, _ in told) and any("AFA + PAR" in text for text, _ in told)
    assert all("/home/" not in text and "/root" not in text and "/tmp/" not in text for text, _ in told)
    assert PAGE.stat().st_size < 500_000
