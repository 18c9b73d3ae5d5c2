"""AFA: backbone, classifier, affinity head and SegFormer decoder (Fig. 3).

Shapes: B batch, C foreground classes, K = C + 1, h x w image, hs x ws token grid, N = hs * ws,
n heads of the last blocks, d head width, D_i channels of stage i.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afactl.errors import UsageError, check_shape
from afactl.method.affinity import affinity_logits, affinity_rows, affinity_windows
from afactl.method.cam import class_activation_map, fuse_cams, top_k_pooling
from afactl.network.backbones import BackboneOutput, build_backbone
from afactl.network.batch_norm import BatchNorm

POOLING_PERCENT = {"gmp": 0.0, "gap": 100.0}


class CamPass(NamedTuple):
    """What the multi-scale pass gives.

    Attributes:
        cam: B x C x h x w in [0, 1), fused over scales and flips.
        queries, keys: B x n x N x d of the un-flipped image at the asked scale, from which
            `AffinityHead.windows` and `affinity.attention_windows` follow where they are needed.
        grid: (hs, ws) of that scale.
        views: per scale (raw map of the image, raw map of the mirrored image), what `cam` was fused from.
    """

    cam: Tensor
    queries: Tensor
    keys: Tensor
    grid: tuple[int, int]
    views: tuple[tuple[Tensor, Tensor], ...]


class Decoder(nn.Module):
    """SegFormer's all-MLP decoder: linear per stage, upsample, fuse, predict."""

    def __init__(self, in_channels: Sequence[int], width: int, classes: int) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in in_channels)
        self.fuse = nn.Conv2d(width * len(in_channels), width, 1, bias=False)
        self.norm = BatchNorm(width)
        self.dropout = nn.Dropout2d(0.1)
        self.predict = nn.Conv2d(width, classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Stage maps, finest first -> B x K x h1 x w1 logits.

        The fusion of the concatenated stages is a sum of one 1 x 1 convolution per stage, and
        that commutes with bilinear upsampling: each stage is projected and fused on its own
        grid and upsampled last, which is equal and cheaper.
        """
        size = features[0].shape[2:]
        # Concatenation order is coarsest first.
        slices = self.fuse.weight.chunk(len(features), dim=1)[::-1]
        fused: Tensor | float = 0.0
        for features_i, project, weight in zip(features, self.project, slices, strict=True):
            x = F.conv2d(project(features_i), weight)
            fused = fused + (x if x.shape[2:] == size else _resize(x, size))
        logits: Tensor = self.predict(self.dropout(torch.relu(self.norm(fused))))
        return logits


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


class AffinityHead(nn.Module):
    """The MLP of Eq. 3: one weight per head and a bias."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads))
        self.bias = nn.Parameter(torch.zeros(()))
        bound = heads**-0.5
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """B x n x N x d twice -> B x N x N logits."""
        return affinity_logits(queries, keys, self.weight, self.bias)

    def windows(self, queries: Tensor, keys: Tensor, grid: tuple[int, int], radius: int) -> Tensor:
        """The logits of neighbours alone: B x n x N x d twice -> B x hs x ws x W in window form (see `affinity`)."""
        return affinity_windows(queries, keys, self.weight, self.bias, grid, radius)

    def rows(self, queries: Tensor, keys: Tensor, tokens: Sequence[int]) -> Tensor:
        """The logits of Q tokens with all: B x n x N x d twice -> B x Q x N."""
        return affinity_rows(queries, keys, self.weight, self.bias, tokens)


class AFA(nn.Module):
    """The whole network. A call encodes an image, once; what is wanted of it is then asked for by name:

        encoded = model(image)
        classes, segmentation = model.classify(encoded), model.segment(encoded)

    Args:
        backbone: name of a registered backbone.
        classes: C, foreground classes.
        pooling: "gmp", "gap", or the per cent of top-k pooling (Table 1).
        decoder_width: channels of the decoder.
        drop_path: stochastic depth of the backbone's last block.
    """

    def __init__(
        self,
        backbone: str,
        classes: int,
        pooling: str | float = "gmp",
        decoder_width: int = 256,
        drop_path: float = 0.1,
    ) -> None:
        super().__init__()
        self.backbone = build_backbone(backbone, drop_path)
        channels = self.backbone.out_channels
        self.pooling_percent = POOLING_PERCENT[pooling] if isinstance(pooling, str) else float(pooling)
        self.classifier = nn.Parameter(torch.empty(classes, channels[-1]))
        nn.init.kaiming_uniform_(self.classifier, a=math.sqrt(5))
        self.affinity_head = AffinityHead(self.backbone.attention_heads)
        self.decoder = Decoder(channels, decoder_width, classes + 1)

    @property
    def classes(self) -> int:
        """C, the number of foreground classes."""
        return self.classifier.shape[0]

    def forward(self, image: Tensor) -> BackboneOutput:
        """B x 3 x h x w, normalised -> features, queries and keys: what every output below is made of.

        Raises:
            ShapeError: the image has other axes or channels.
        """
        check_shape("image", image, "B 3 h w", **{"3": 3})
        encoded: BackboneOutput = self.backbone(image)
        return encoded

    if TYPE_CHECKING:  # nn.Module's own says nothing of what comes back

        def __call__(self, image: Tensor) -> BackboneOutput: ...

    def classify(self, encoded: BackboneOutput) -> Tensor:
        """B x C logits: pool the last stage, then the linear classifier without bias."""
        return top_k_pooling(encoded.features[-1], self.pooling_percent) @ self.classifier.T

    def activate(self, encoded: BackboneOutput) -> Tensor:
        """B x C x hs x ws raw class activation maps, W_c . F of Eq. 2 before the ReLU; no product of autocast."""
        features = encoded.features[-1]
        with torch.autocast(features.device.type, enabled=False):
            return class_activation_map(features.to(self.classifier.dtype), self.classifier)

    def affinity(self, encoded: BackboneOutput) -> Tensor:
        """B x N x N affinity in (0, 1), symmetric: sigmoid(A) of Eq. 3."""
        return torch.sigmoid(self.affinity_head(encoded.queries, encoded.keys))

    def segment(self, encoded: BackboneOutput) -> Tensor:
        """B x K x h1 x w1 logits, on the backbone's finest map (for MiT a quarter of the image)."""
        logits: Tensor = self.decoder(encoded.features)
        return logits

    @torch.no_grad()
    def multi_scale_cam(
        self, image: Tensor, scales: Sequence[float], affinity_scale: float, as_trained: bool = False
    ) -> CamPass:
        """CAM over scales and flips, in evaluation mode, without gradient and without decoder.

        The image is resized to floor(s h) x floor(s w), bilinearly, and passed with its mirror
        image. The network's mode is restored afterwards; its statistics stay untouched. Under autocast the passes
        are in the lower precision, what is made of them is not.

        Args:
            image: B x 3 x h x w, normalised.
            scales: factors s; `affinity_scale` is one of them.
            affinity_scale: the scale whose un-flipped queries and keys are given.
            as_trained: pass in the mode that the network is in, and through the decoder too, whose batch norm
                counts each scale's pass in training (the authors' way).

        Raises:
            UsageError: `affinity_scale` is not among the scales.
        """
        if affinity_scale not in scales:
            raise UsageError(f"cam.scales: expected {affinity_scale} among them for the affinity, got {tuple(scales)}")
        height, width = image.shape[2:]
        views = []
        with contextlib.nullcontext() if as_trained else evaluation_mode(self):
            for scale in scales:
                scaled = image
                if scale != 1.0:
                    scaled = _resize(image, (max(1, math.floor(scale * height)), max(1, math.floor(scale * width))))
                encoded = self(torch.cat([scaled, scaled.flip(-1)]))
                if as_trained:
                    self.segment(encoded)
                plain, mirrored = self.activate(encoded).chunk(2)
                views.append((plain, mirrored))
                if scale == affinity_scale:
                    exact = self.classifier.dtype  # also under autocast
                    queries, keys = encoded.queries.chunk(2)[0].to(exact), encoded.keys.chunk(2)[0].to(exact)
                    grid = encoded.grid
        return CamPass(fuse_cams(views, (height, width)), queries, keys, grid, tuple(views))


@torch.no_grad()
def widen_heads(model: AFA) -> None:
    """Draw the first values of the affinity head and of the fusing convolution as the authors' code does.

    Both by Kaiming over the outputs, which is wider than over the inputs: the affinity's weights are normal with
    deviation 1 / sqrt(3) (one output, slope sqrt(5)), those of the fusion sqrt(2 / width).
    """
    head, fuse = model.affinity_head, model.decoder.fuse
    nn.init.normal_(head.weight, std=3**-0.5)
    nn.init.uniform_(head.bias, -(len(head.weight) ** -0.5), len(head.weight) ** -0.5)
    nn.init.normal_(fuse.weight, std=(2 / fuse.out_channels) ** 0.5)


@contextlib.contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block, the former mode after it."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
