"""Which device a job runs on, and how much memory it took."""

from __future__ import annotations

import os
import random
import shutil
import sys

import numpy as np
import torch

from afactl.errors import DependencyError, UsageError


def choose_device(name: str) -> torch.device:
    """The device for `auto`, `cpu` or `cuda`; auto takes a GPU where there is one.

    Raises:
        UsageError: CUDA was asked for and is absent, or the name is none of the three.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f'--device: expected auto, cpu or cuda, got "{name}"')
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UsageError("--device cuda: no usable CUDA device here (see afactl doctor); use --device cpu or auto")
    if not available or name == "cpu":
        return torch.device("cpu")
    # torchrun numbers the processes of a machine: each gets a GPU of its own.
    return torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda")


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
    """The most bytes this process has held so far: on the GPU, or else resident in memory.

    None on systems that do not count it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
