"""A trained network as a TorchScript file, which `torch.jit.load` runs without afactl."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch

from afactl.errors import AfactlError, first_line
from afactl.files import whole_file, writing
from afactl.inference.network_outputs import (
    MADE_WITH,
    NetworkOutputs,
    facts,
    largest_difference,
    require_equal,
)
from afactl.inference.trained_run import TrainedRun

# Of the file, beside the network: what `facts` gives.
METADATA = "afactl.json"


def export_torchscript(run: TrainedRun, out: Path) -> float:
    """Write the network of a run as TorchScript, once it gives what torch gives; see `NetworkOutputs` for both ends.

    It is traced, so photos must be at least as large as a token of the first stage sees (64 pixels do).

    Args:
        run: opened on the CPU.

    Returns:
        The largest difference of an output from torch's, over CHECKED.

    Raises:
        AfactlError: the backbone cannot be expressed, or the outputs differ. UsageError: `out` cannot be written.
    """
    network, backbone = NetworkOutputs(run.model).eval(), run.architecture.backbone
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of traced comparisons; what they may spoil is compared below
            image = torch.zeros(MADE_WITH[0], 3, *MADE_WITH[1:])
            traced = torch.jit.trace(network, image, check_trace=False)  # type: ignore[no-untyped-call]  # of torch
            difference = largest_difference(traced, network)
    except Exception as error:  # whatever a backbone does that tracing does not follow
        raise AfactlError(
            f"export --format torchscript: the backbone {backbone} cannot be expressed ({first_line(error)}); "
            "export its weights instead (--format safetensors)"
        ) from error
    require_equal(difference, "torchscript", backbone)
    with (
        writing(f"--out {out}", "give another file", also=(RuntimeError,)),
        whole_file(out) as fresh,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # torch would rather have programs of torch.export
        torch.jit.save(traced, str(fresh), _extra_files={METADATA: json.dumps(facts(run))})
    return difference
