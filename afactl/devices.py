"""Which device a job runs on."""

from __future__ import annotations

import torch

from afactl.errors import UsageError


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
    return torch.device("cuda" if available and name != "cpu" else "cpu")
