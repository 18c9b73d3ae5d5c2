"""Which device a job runs on, and how much memory it took."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from afactl.errors import AfactlError, DependencyError, UsageError, first_line
from afactl.machine.launch import launched
from afactl.machine.terminal import log

# Kinds of devices besides the CPU that torch itself knows, in the order in which `auto` takes them: NVIDIA's and
# AMD's GPUs, Apple's, Intel's. Only CUDA has been tried on a real one.
ACCELERATORS = ("cuda", "mps", "xpu")
NVIDIA, DISPLAY = "0x10de", "0x03"  # of the PCI bus
PCI_DEVICES = Path("/sys/bus/pci/devices")


def choose_device(name: str) -> torch.device:
    """The device for `auto`, `cpu`, or a kind of accelerator with or without a number: `cuda`, `cuda:1`, `mps`, `xpu`.

    `auto` takes the accelerator that torch finds here, else the CPU, and tells where a GPU lies idle for want of a
    driver. Of several processes that torchrun starts, each gets the device of its number on the machine.

    Raises:
        UsageError: the device is not there (says why), or the name is none of these.
    """
    there = accelerators()
    kind, colon, number = name.partition(":")
    if kind == "cpu" and not colon:
        return torch.device("cpu")
    if kind == "auto" and not colon:
        if not there:
            _tell_idle_gpu()
            return torch.device("cpu")
        kind = next(iter(there))
    elif kind not in {*ACCELERATORS, *there} or (colon and not number.isdecimal()):
        raise UsageError(f'--device: expected auto, cpu, {", ".join(ACCELERATORS)} or such as cuda:1, got "{name}"')
    if kind not in there:
        raise UsageError(
            f"--device {name}: no usable {kind.upper()} device here ({why_not(kind)}; see afactl doctor); "
            "use --device cpu or auto"
        )
    if colon and int(number) >= len(there[kind]):
        raise UsageError(f"--device {name}: expected {kind}:0 to {kind}:{len(there[kind]) - 1}, which are here")
    if not colon:
        # torchrun numbers the processes of a machine: each gets a GPU of its own.
        place = launched()
        if place and place.local_rank >= len(there[kind]):
            raise UsageError(
                f"--device {name}: process {place.local_rank} of this machine finds {len(there[kind])} {kind.upper()} "
                "devices; start as many processes as there are devices, or use --device cpu"
            )
        number = str(place.local_rank) if place else ""
    return torch.device(f"{kind}:{number}" if number else kind)


def accelerators() -> dict[str, list[str]]:
    """The kinds of accelerators that can be used here, the preferred one first, and the names of their devices."""
    kinds = list(ACCELERATORS)
    current = torch.accelerator.current_accelerator() if hasattr(torch, "accelerator") else None  # torch 2.6 brought it
    if current is not None and current.type != "cpu":
        kinds = [current.type, *(kind for kind in kinds if kind != current.type)]
    return {kind: _names(kind) for kind in kinds if _is_available(kind)}


def _is_available(kind: str) -> bool:
    module = getattr(torch, kind, None)
    if module is None or not hasattr(module, "is_available"):
        return False
    with warnings.catch_warnings():  # CUDA warns at length where the driver is too old; `why_not` says it in one line
        warnings.simplefilter("ignore")
        return bool(module.is_available())


def _names(kind: str) -> list[str]:
    module = getattr(torch, kind)
    if not hasattr(module, "get_device_name"):
        return [kind] * module.device_count()
    return [module.get_device_name(number) for number in range(module.device_count())]


def why_not(kind: str) -> str:
    """Why torch cannot use a kind of accelerator here, in one line."""
    if kind != "cuda":
        return f"torch {torch.__version__} finds none"
    built = torch.version.cuda
    if built is None and torch.version.hip is None:
        return f"torch {torch.__version__} is built without CUDA: install one built with it, see pytorch.org"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.cuda.init()  # type: ignore[no-untyped-call]  # torch leaves it so
    except (RuntimeError, AssertionError) as error:
        driver = re.search(r"too old \(found version (\d+)", str(error))
        if driver:  # such as 12040 for 12.4
            version = f"{int(driver[1]) // 1000}.{int(driver[1]) % 1000 // 10}"
            return (
                f"torch is built for CUDA {built} and the NVIDIA driver is too old, it knows CUDA up to {version}: "
                "update the driver, or install a torch built for that"
            )
        if "no NVIDIA driver" in str(error):
            return f"torch is built for CUDA {built} and there is no NVIDIA driver"
        return first_line(error)
    return "CUDA_VISIBLE_DEVICES hides them" if "CUDA_VISIBLE_DEVICES" in os.environ else "no device is found"


def _has_nvidia_card() -> bool:
    """Whether the PCI bus has a display device of NVIDIA; containers without its driver see it too (Linux)."""
    for device in PCI_DEVICES.glob("*"):
        with contextlib.suppress(OSError):
            if (device / "vendor").read_text().strip() == NVIDIA and (device / "class").read_text().startswith(DISPLAY):
                return True
    return False


@functools.cache
def _tell_idle_gpu() -> None:
    """One line, once, where there is a GPU of NVIDIA and torch cannot use it: a mistake that costs hours otherwise."""
    why = why_not("cuda")
    if "too old" in why or _has_nvidia_card():
        log.print(f"device: the CPU, though there is an NVIDIA GPU ({why})", markup=False)


class Answers:
    """Numbers on their way from a device to the host.

    They set out when this is made, behind what the device was given to do before; what it is given afterwards does
    not have to be waited for when they are read.

    Args:
        values: any shape.
    """

    def __init__(self, values: torch.Tensor) -> None:
        self._values, self._arrived = values.detach(), None
        if values.device.type == "cuda":
            self._values = self._values.to("cpu", non_blocking=True)  # into pinned memory
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it so
            self._arrived.record()

    def read(self) -> torch.Tensor:
        """The numbers, on the CPU; waits for them."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values.cpu()


@contextlib.contextmanager
def memory_advice(device: torch.device, advice: str) -> Iterator[None]:
    """Let a device that runs out of memory inside the block end the job in one line.

    Args:
        advice: what was asked of the device, and what to try.

    Raises:
        AfactlError: it ran out of memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise AfactlError(f"{device}: out of memory {advice}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the CPU, had no memory left; not every kind of device has an exception of its own for it."""
    kinds = (MemoryError, torch.cuda.OutOfMemoryError)
    texts = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, kinds) or (
        isinstance(error, RuntimeError) and any(text in str(error).lower() for text in texts)
    )


def require_compiler() -> None:
    """torch.compile writes C++ (and on a GPU Triton's launchers) and needs something to build it with.

    Raises:
        DependencyError: neither $CXX nor g++ nor clang++ is there.
    """
    if not any(shutil.which(name) for name in (os.environ.get("CXX") or "g++", "clang++")):
        raise DependencyError(
            "train.compile=true needs a C++ compiler (g++, clang++ or $CXX), found none; "
            "install one, or set it to false"
        )


def seed_everything(seed: int, deterministic: bool) -> None:
    """Seed Python, NumPy and torch; with `deterministic` allow torch those operations only that repeat themselves.

    An operation without such a form then ends the job with torch's own message, which names it.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if deterministic:
        # cuBLAS reads it when it starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = False


def peak_memory(device: torch.device) -> int | None:
    """The most bytes this process has held so far: on the device where that counts them, or else resident in memory.

    None on systems that do not count it.
    """
    if device.type != "cpu" and hasattr(getattr(torch, device.type), "max_memory_allocated"):
        return int(getattr(torch, device.type).max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
