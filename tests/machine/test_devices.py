import pytest
import torch

from afactl.errors import AfactlError, DependencyError, UsageError
from afactl.machine import devices
from afactl.machine.devices import (
    accelerators,
    choose_device,
    is_out_of_memory,
    memory_advice,
    peak_memory,
    require_compiler,
    why_not,
)
from afactl.machine.launch import VARIABLES

KINDS = ("cuda", "mps", "xpu")


@pytest.fixture
def machine(monkeypatch):
    """Pretend which kinds of devices there are, and how many of each."""

    def pretend(**counts):
        for name in ("TORCHELASTIC_RUN_ID", *VARIABLES):
            monkeypatch.delenv(name, raising=False)
        for kind in KINDS:
            count = counts.get(kind, 0)
            monkeypatch.setattr(getattr(torch, kind), "is_available", lambda count=count: count > 0)
            monkeypatch.setattr(getattr(torch, kind), "device_count", lambda count=count: count)
            if hasattr(getattr(torch, kind), "get_device_name"):
                monkeypatch.setattr(getattr(torch, kind), "get_device_name", lambda i, kind=kind: f"{kind} card {i}")

    return pretend


@pytest.mark.parametrize("kind", KINDS)
def test_auto_takes_the_accelerator_where_there_is_one(machine, kind):
    machine(**{kind: 1})
    assert choose_device("auto").type == choose_device(kind).type == kind and choose_device("cpu").type == "cpu"
    machine()
    assert choose_device("auto") == torch.device("cpu")


def test_devices_have_numbers(machine, monkeypatch):
    machine(cuda=2)
    assert choose_device("cuda:1") == torch.device("cuda", 1) and choose_device("cuda") == torch.device("cuda")
    assert accelerators() == {"cuda": ["cuda card 0", "cuda card 1"]}
    with pytest.raises(UsageError, match="--device cuda:2: expected cuda:0 to cuda:1"):
        choose_device("cuda:2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("cuda") == torch.device("cuda"), "that alone is no launch"
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("RANK", "5"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda", 1)
    assert choose_device("cuda:0") == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UsageError, match="process 2 of this machine finds 2 CUDA devices; start as many processes"):
        choose_device("cuda")
    assert choose_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert choose_device("cuda") == torch.device("cuda"), "one process works alone, whatever its number"


@pytest.mark.parametrize("kind", KINDS)
def test_a_device_that_is_absent_is_refused(machine, kind):
    machine()
    with pytest.raises(UsageError, match=f"no usable {kind.upper()} device"):
        choose_device(kind)


@pytest.mark.parametrize("name", ["tpu", "cuda:", "cuda:one", "cpu:0", "auto:1", "", "cuda:-1"])
def test_unknown_names_are_refused(machine, name):
    machine(cuda=1)
    with pytest.raises(UsageError, match=f'expected auto, cpu, cuda, mps, xpu or such as cuda:1, got "{name}"'):
        choose_device(name)


def test_why_there_is_no_cuda_is_one_line(monkeypatch):
    def fails(text):
        def init():
            raise RuntimeError(text)

        monkeypatch.setattr(torch.cuda, "init", init)

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    fails("Found no NVIDIA driver on your system. Please check ...")
    assert why_not("cuda") == "torch is built for CUDA 13.0 and there is no NVIDIA driver"
    fails("The NVIDIA driver on your system is too old (found version 12040). Please update ...\nmore")
    assert "the NVIDIA driver is too old, it knows CUDA up to 12.4: update the driver" in why_not("cuda")
    fails("CUDA unknown error\nmore")
    assert why_not("cuda") == "CUDA unknown error"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in why_not("cuda")


def test_a_gpu_that_lies_idle_is_told_once(machine, monkeypatch, capsys, tmp_path):
    machine()
    monkeypatch.setattr(devices, "why_not", lambda kind: "there is no NVIDIA driver")
    monkeypatch.setattr(devices, "PCI_DEVICES", tmp_path)
    devices._tell_idle_gpu.cache_clear()
    choose_device("auto")
    assert capsys.readouterr().err == "", "a machine without a GPU"
    card = tmp_path / "0000:01:00.0"
    card.mkdir()
    (card / "vendor").write_text("0x10de\n")
    (card / "class").write_text("0x030200\n")
    devices._tell_idle_gpu.cache_clear()
    choose_device("cpu")
    choose_device("auto"), choose_device("auto")
    line = "device: the CPU, though there is an NVIDIA GPU (there is no NVIDIA driver)\n"
    assert capsys.readouterr().err == line
    (card / "class").write_text("0x040300\n")  # its sound
    devices._tell_idle_gpu.cache_clear()
    choose_device("auto")
    assert capsys.readouterr().err == ""
    devices._tell_idle_gpu.cache_clear()


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried ..."),
        MemoryError(),
    ],
)
def test_out_of_memory_is_one_line_with_advice(error):
    with (
        pytest.raises(AfactlError, match=r"^cuda:0: out of memory at batch 8; try 4$"),
        memory_advice(torch.device("cuda:0"), "at batch 8; try 4"),
    ):
        raise error


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shapes"), memory_advice(torch.device("cpu"), ""):
        raise RuntimeError("shapes do not fit")
    assert not is_out_of_memory(ValueError("out of memory"))


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
