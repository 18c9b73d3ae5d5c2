"""A trained network as an ONNX file, which runs without afactl and without torch."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from afactl.errors import AfactlError, DependencyError, first_line
from afactl.files import whole_file, writing
from afactl.inference.network_outputs import (
    MADE_WITH,
    OUTPUTS,
    NetworkOutputs,
    checked_outputs,
    facts,
    largest_difference,
    require_equal,
)
from afactl.inference.trained_run import TrainedRun


def export_onnx(run: TrainedRun, out: Path) -> float:
    """Write the network of a run as ONNX, once onnxruntime gives what torch gives.

    Its input is `image`, its outputs have the names of OUTPUTS; see `NetworkOutputs` for both. Metadata: what `facts`
    gives, as JSON.

    Args:
        run: opened on the CPU.

    Returns:
        The largest difference of an output from torch's, over CHECKED.

    Raises:
        DependencyError: the extra [onnx] is missing. AfactlError: the backbone cannot be expressed, or the outputs
            differ. UsageError: `out` cannot be written.
    """
    packages = [_package(name) for name in ("onnx", "onnxruntime", "onnxscript")]
    network, backbone = NetworkOutputs(run.model).eval(), run.architecture.backbone
    content = _translate(network, backbone).SerializeToString()
    content = _with_metadata(packages[0], content, run)
    difference = largest_difference(_session(packages[1], content), network)
    require_equal(difference, "onnx", backbone)
    with writing(f"--out {out}", "give another file"), whole_file(out) as fresh:
        fresh.write_bytes(content)
    return difference


class Int8(NamedTuple):
    """What 8-bit weights changed.

    Attributes:
        same: share of pixels whose class stayed, of noise at the sizes of CHECKED. ratio: size of the file against
            that with float32 weights.
    """

    same: float
    ratio: float


def export_int8(run: TrainedRun, out: Path) -> Int8:
    """As `export_onnx`, with the weights of linear layers as 8-bit integers (onnxruntime's dynamic quantisation).

    The file with float32 weights is compared with torch first. How much the rounding costs depends on the photos;
    score it before use.

    Raises:
        As `export_onnx`.
    """
    quantization = _package("onnxruntime.quantization")
    with tempfile.TemporaryDirectory() as folder:
        exact, rounded = Path(folder) / "exact.onnx", Path(folder) / "rounded.onnx"
        export_onnx(run, exact)
        linear = ["MatMul", "Gemm"]
        with _silent():
            quantization.quantize_dynamic(
                exact, rounded, weight_type=quantization.QuantType.QInt8, op_types_to_quantize=linear
            )
        # It leaves a mark of its own among the metadata.
        content = _with_metadata(_package("onnx"), rounded.read_bytes(), run)
        size = exact.stat().st_size
    sizes = checked_outputs(_session(_package("onnxruntime"), content), NetworkOutputs(run.model).eval())
    same = [float((one.argmax(1) == other.argmax(1)).float().mean()) for (one, other), *_ in sizes]
    with writing(f"--out {out}", "give another file"), whole_file(out) as fresh:
        fresh.write_bytes(content)
    return Int8(sum(same) / len(same), len(content) / size)


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DependencyError(f"export --format onnx needs {name}: pip install 'afactl[onnx]'") from error


def _translate(network: nn.Module, backbone: str) -> Any:
    """The network as an ONNX model, with any number of photos of any size."""
    image = torch.zeros(MADE_WITH[0], 3, *MADE_WITH[1:])
    free = torch.export.Dim.DYNAMIC
    try:
        with _silent():
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
    if program is None:
        raise AfactlError("export --format onnx: torch gave no model")
    return program.model_proto


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Exporters tell of their own deprecations and guesses, and of nothing that a user could change."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _with_metadata(onnx: Any, content: bytes, run: TrainedRun) -> bytes:
    model = onnx.load_from_string(content)
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in facts(run).items()})
    serialized: bytes = model.SerializeToString()
    return serialized


def _session(onnxruntime: Any, content: bytes) -> Callable[[Tensor], list[Tensor]]:
    """The file in onnxruntime, as a function of an image."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda image: [torch.from_numpy(found) for found in session.run(list(OUTPUTS), {"image": image.numpy()})]
