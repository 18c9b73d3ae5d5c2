import pytest
import torch

from afactl.errors import DependencyError, UsageError
from afactl.machine.devices import choose_device, peak_memory, require_compiler


def test_auto_takes_the_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").type == "cuda" and choose_device("cpu").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"


def test_cuda_that_is_absent_and_unknown_names_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no usable CUDA device"):
        choose_device("cuda")
    with pytest.raises(UsageError, match='expected auto, cpu or cuda, got "tpu"'):
        choose_device("tpu")


def test_peak_memory_counts_what_was_held():
    before = peak_memory(torch.device("cpu"))
    held = torch.ones(2**27 // 4 * 3)  # 384 MiB beyond whatever the process holds is always seen
    now = peak_memory(torch.device("cpu"))
    assert now >= max(before, held.nbytes) and now < 2**38


def test_a_compiler_is_asked_for_before_anything_starts(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(DependencyError, match="needs a C\\+\\+ compiler"):
        require_compiler()
