"""A trained network as an ONNX file, which runs without afactl and without torch."""

from __future__ import annotations

import importlib
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afactl.datasets.transforms import MEAN, STD
from afactl.errors import AfactlError, DependencyError, first_line
from afactl.files import whole_file, writing
from afactl.inference.trained_run import TrainedRun
from afactl.network.model import AFA

OUTPUTS = ("segmentation", "cam", "affinity")
# The file is compared with the network at these (photos, height, width), which it was not made with.
CHECKED = ((1, 96, 128), (2, 160, 96), (1, 131, 197))
TOLERANCE = 1e-3
_MADE_WITH = (2, 64, 96)


class _Outputs(nn.Module):
    """The network with all its outputs at once."""

    def __init__(self, model: AFA) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        encoded = self.model(image)
        logits = F.interpolate(self.model.segment(encoded), size=image.shape[2:], mode="bilinear", align_corners=False)
        return logits, self.model.activate(encoded), self.model.affinity(encoded)


def export_onnx(run: TrainedRun, out: Path) -> float:
    """Write the network of a run as ONNX, once onnxruntime gives what torch gives.

    Input `image`: B x 3 x h x w float32, (RGB in 0..255 - mean) / std, any B, h and w. Outputs: `segmentation`
    B x K x h x w logits; `cam` B x C x hs x ws, raw class activation maps (before ReLU and scaling); `affinity`
    B x N x N in (0, 1). Metadata: `classes` (K names, background first), `mean`, `std` and `stride` as JSON.

    Args:
        run: opened on the CPU.

    Returns:
        The largest difference of an output from torch's, over CHECKED.

    Raises:
        DependencyError: the extra [onnx] is missing. AfactlError: the backbone cannot be expressed, or the outputs
            differ. UsageError: `out` cannot be written.
    """
    packages = [_package(name) for name in ("onnx", "onnxruntime", "onnxscript")]
    network = _Outputs(run.model).eval()
    content = _translate(network, run.architecture.backbone).SerializeToString()
    content = _with_metadata(packages[0], content, run)
    difference = _largest_difference(packages[1], content, network)
    if not difference <= TOLERANCE:
        raise AfactlError(
            f"export --format onnx: the outputs of {run.architecture.backbone} differ by {difference:.2g} "
            "from torch's; nothing was written"
        )
    with writing(f"--out {out}", "give another file"), whole_file(out) as fresh:
        fresh.write_bytes(content)
    return difference


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DependencyError(f"export --format onnx needs {name}: pip install 'afactl[onnx]'") from error


def _translate(network: nn.Module, backbone: str) -> Any:
    """The network as an ONNX model, with any number of photos of any size."""
    image = torch.zeros(_MADE_WITH[0], 3, *_MADE_WITH[1:])
    free = torch.export.Dim.DYNAMIC
    # The exporter tells of its own deprecations and guesses, and of nothing that a user could change.
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network,
                (image,),
                dynamo=True,
                verbose=False,
                input_names=["image"],
                output_names=list(OUTPUTS),
                dynamic_shapes={"image": {0: free, 2: free, 3: free}},
            )
    except Exception as error:
        raise AfactlError(
            f"export --format onnx: the backbone {backbone} cannot be expressed ({first_line(error)}); "
            "export its weights instead (--format safetensors)"
        ) from error
    finally:
        logging.disable(level)
    if program is None:
        raise AfactlError("export --format onnx: torch gave no model")
    return program.model_proto


def _with_metadata(onnx: Any, content: bytes, run: TrainedRun) -> bytes:
    model = onnx.load_from_string(content)
    facts = {
        "classes": ["background", *run.architecture.classes],
        "mean": MEAN,
        "std": STD,
        "stride": run.model.backbone.stride,
    }
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in facts.items()})
    serialized: bytes = model.SerializeToString()
    return serialized


def _largest_difference(onnxruntime: Any, content: bytes, network: nn.Module) -> float:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    differences: list[float] = []
    for photos, height, width in CHECKED:
        image = torch.randn(photos, 3, height, width, generator=generator)
        with torch.inference_mode():
            expected = network(image)
        found = session.run(list(OUTPUTS), {"image": image.numpy()})
        differences += [float(np.abs(one - other.numpy()).max()) for one, other in zip(found, expected, strict=True)]
    return float(np.max(differences))  # NaN, if any is
