"""The golden values of this folder (see its README.md), and the weights that they were made with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).resolve().parent


def arrays(name: str) -> dict[str, np.ndarray]:
    """One golden file; rows of an array that lie in several files are put together in their order."""
    parts: dict[str, list[np.ndarray]] = {}
    for path in (FOLDER / f"{name}.npz", *sorted(FOLDER.glob(f"{name}-[0-9].npz"))):
        with np.load(path) as file:
            for key in file:
                parts.setdefault(key, []).append(file[key])
    return {key: rows[0] if len(rows) == 1 else np.concatenate(rows) for key, rows in parts.items()}


def load(name: str) -> dict[str, Tensor]:
    """One golden file as tensors."""
    return {key: torch.from_numpy(np.asarray(value)) for key, value in arrays(name).items()}


def table(name: str) -> Any:
    """One golden table, `NAME.json`."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def formula_weights(backbone: str) -> dict[str, Tensor]:
    """The state dict that README.md describes, in the authors' names."""
    shapes = table(f"state_{backbone}")
    state = {}
    for i, name in enumerate(sorted(shapes)):
        shape = shapes[name]
        s = np.sin(0.7390851 * np.arange(int(np.prod(shape))) + 1.3247179 * i).reshape(shape)
        if name.endswith("num_batches_tracked"):
            state[name] = torch.zeros((), dtype=torch.long)
            continue
        if name.endswith("running_var"):
            value = 1 + s**2 / 2
        elif name.endswith("running_mean"):
            value = 0.1 * s
        elif len(shape) == 1 and name.endswith("weight"):
            value = 1 + 0.1 * s
        elif name.endswith("bias"):
            value = 0.05 * s
        else:
            value = s * np.sqrt(2 / int(np.prod(shape[1:])))
            if ".attn.q." in name or ".attn.kv." in name:
                value = 0.12 * value
        state[name] = torch.from_numpy(np.asarray(value)).float()
    return state
