"""The scripts in benchmarks/ go with the code: a renamed function would break them where nobody looks."""

import importlib
import sys

import pytest
import torch

from benchmarks import gpu_report
from benchmarks.agreement import agreement
from tests import stand_in_accelerator
from tests.conftest import ROOT
from tests.stand_in_accelerator import DEVICE, stand_in


@pytest.fixture(autouse=True)
def beside_each_other(monkeypatch):
    """They import each other as scripts of one folder do."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_a_benchmark_can_be_imported(path):
    sys.modules.pop(path.stem, None)
    importlib.import_module(path.stem)


@pytest.mark.parametrize(("precision", "least"), [(torch.float32, 0.999), (torch.bfloat16, 0.8)])
def test_labels_of_two_devices_are_compared(tiny_run, precision, least):
    """Here the stand-in has the CPU's arithmetic; the network of the tiny run knows next to nothing."""
    if not stand_in_accelerator.available():
        pytest.skip("this torch has no backends in Python, or a real accelerator")
    with stand_in():
        shares = agreement(tiny_run, DEVICE, precision, 1)
    assert len(shares) == 8 and not {name: share for name, share in shares.items() if not least <= share <= 1}
    same = {name: share for name, share in shares.items() if name.endswith("same CAM")}
    assert len(same) == 3 and min(same.values()) >= 0.999


def test_the_report_of_a_gpu_is_written(tmp_path, monkeypatch, own_cache):
    """On the CPU with small sizes, but for the tests that it would start."""
    monkeypatch.setenv("AFACTL_CACHE", str(own_cache))
    page = tmp_path / "report.md"
    sections = "speed,parts,waits,memory,demo,labels,launches"
    assert gpu_report.main(["--quick", "--device", "cpu", "--out", str(page), "--sections", sections]) == 0
    text = page.read_text()
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert all("%" in rows[name] for name, _, _ in gpu_report.PARTS), "every part of the step has its time"
    assert "**failed" not in text and "| PAR, same CAM | 100.000 |" in text and "propagated labels" in text


def test_a_section_that_fails_does_not_lose_the_others(tmp_path, monkeypatch):
    def fails(*arguments):
        raise ValueError("no such thing")

    monkeypatch.setattr(gpu_report, "memory", fails)
    page = tmp_path / "report.md"
    assert gpu_report.main(["--quick", "--device", "cpu", "--out", str(page), "--sections", "memory,launches"]) == 1
    assert "**failed: ValueError: no such thing**" in page.read_text() and "CUDA only." in page.read_text()
