"""What every file of a whole network gives, whatever runs it, and the comparison that comes before it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afactl.datasets.transforms import MEAN, STD
from afactl.errors import AfactlError
from afactl.inference.trained_run import TrainedRun
from afactl.network.model import AFA

OUTPUTS = ("segmentation", "cam", "affinity")
# A translated network is compared with torch's at these (photos, height, width), with which it was not made.
CHECKED = ((1, 96, 128), (2, 160, 96), (1, 131, 197))
MADE_WITH = (2, 64, 96)
TOLERANCE = 1e-3


class NetworkOutputs(nn.Module):
    """The network with all its outputs at once.

    Input: B x 3 x h x w float32, (RGB in 0..255 - mean) / std, any B, h and w. Outputs, in the order of OUTPUTS:
    B x K x h x w segmentation logits; B x C x hs x ws raw class activation maps (before ReLU and scaling);
    B x N x N affinity in (0, 1).
    """

    def __init__(self, model: AFA) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        encoded = self.model(image)
        logits = F.interpolate(self.model.segment(encoded), size=image.shape[2:], mode="bilinear", align_corners=False)
        return logits, self.model.activate(encoded), self.model.affinity(encoded)


def facts(run: TrainedRun) -> dict[str, Any]:
    """What a program needs to know beside the file: `classes` (K names, background first), `mean`, `std`, `stride`."""
    return {
        "classes": ["background", *run.architecture.classes],
        "mean": MEAN,
        "std": STD,
        "stride": run.model.backbone.stride,
    }


def checked_outputs(
    translated: Callable[[Tensor], Sequence[Tensor]], network: NetworkOutputs
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """The outputs of a translated network beside the network's own, for noise of each size of CHECKED."""
    generator = torch.Generator().manual_seed(0)
    for photos, height, width in CHECKED:
        image = torch.randn(photos, 3, height, width, generator=generator)
        with torch.inference_mode():
            pairs = list(zip(translated(image), network(image), strict=True))
        yield pairs


def largest_difference(translated: Callable[[Tensor], Sequence[Tensor]], network: NetworkOutputs) -> float:
    """Of any output from the network's own, over CHECKED; NaN, if any is."""
    sizes = checked_outputs(translated, network)
    return float(np.max([float((one - other).abs().max()) for pairs in sizes for one, other in pairs]))


def require_equal(difference: float, form: str, backbone: str) -> None:
    """See that a translated network gives what torch gives.

    Raises:
        AfactlError: it does not.
    """
    if not difference <= TOLERANCE:
        raise AfactlError(
            f"export --format {form}: the outputs of {backbone} differ by {difference:.2g} from torch's; "
            "nothing was written"
        )
