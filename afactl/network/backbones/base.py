"""What the rest of the project asks of a backbone."""

from __future__ import annotations

import abc
import math
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

from afactl.errors import PresetError, ShapeError

if TYPE_CHECKING:
    from typing_extensions import Self


class BackboneOutput(NamedTuple):
    """What one pass of a backbone gives.

    Attributes:
        features: one B x D_i x h_i x w_i map per stage, finest first. The last one is on the
            hs x ws token grid, N = hs * ws.
        queries: B x n x N x d, the queries of all n heads of the last blocks, the last block's
            heads last. S of Eq. 1 (before scaling) is queries @ keys^T.
        keys: B x n x N x d, the keys of the same heads.
    """

    features: tuple[Tensor, ...]
    queries: Tensor
    keys: Tensor

    @property
    def grid(self) -> tuple[int, int]:
        """(hs, ws), the token grid of this pass."""
        height, width = self.features[-1].shape[2:]
        return height, width


class Backbone(nn.Module, abc.ABC):
    """Turns normalised images into a `BackboneOutput`; a new one is a class with these attributes and a `forward`.

    Labels, losses and caches lie on the token grid that a pass gives, and calling a backbone checks that this grid is
    the one its strides promise.

    Attributes:
        out_channels: D_i per stage.
        strides: pixels of the image per cell, per stage, finest first; the last one, of the tokens, is whole.
        attention_layers: L, the last blocks whose queries and keys come out.
        attention_heads: n, the heads of these blocks together, as many in each.
        fresh: names of its parts that no published weights exist for; they learn at the rate of the heads.
        frozen: modules that stay in evaluation mode whatever mode is set (`freezing.freeze`).
    """

    out_channels: tuple[int, ...]
    strides: tuple[float, ...]
    attention_layers: int
    attention_heads: int
    fresh: tuple[str, ...] = ()
    frozen: tuple[nn.Module, ...] = ()

    @abc.abstractmethod
    def forward(self, image: Tensor) -> BackboneOutput:
        """B x 3 x h x w, normalised, of any size -> maps with ceil or floor of h / stride rows; queries and keys."""

    def __call__(self, image: Tensor) -> BackboneOutput:
        """`forward`, whose output is held against what the attributes say.

        Raises:
            ShapeError: it is something else; says which part.
        """
        output: BackboneOutput = super().__call__(image)
        self._check(image, output)
        return output

    def block_names(self) -> list[tuple[str, ...]]:
        """Names of its pretrained blocks in the order of a pass, for `optim.freeze: N`.

        An entry is a block with what comes right before or after it, such as the merging at the start of a stage or
        the norm at its end. What no entry names, such as the first embedding, goes with the first block. A backbone
        that names none can only be frozen as a whole.
        """
        return []

    def train(self, mode: bool = True) -> Self:
        """torch's own, but for what is frozen."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    @property
    def stride(self) -> int:
        """Pixels of the image per token and side."""
        return int(self.strides[-1])

    def _check(self, image: Tensor, output: BackboneOutput) -> None:
        name, size = type(self).__name__, image.shape[2:]
        if len(output.features) != len(self.strides):
            raise ShapeError(
                f"{name}: expected {len(self.strides)} maps as its strides say, got {len(output.features)}"
            )
        for features, channels, stride in zip(output.features, self.out_channels, self.strides, strict=True):
            rows, columns = ((max(1, math.floor(side / stride)), math.ceil(side / stride)) for side in size)
            shape = tuple(features.shape)
            if shape[:2] != (len(image), channels) or shape[2] not in rows or shape[3] not in columns:
                raise ShapeError(
                    f"{name}: expected a map of {len(image)} x {channels} x {rows[1]} x {columns[1]} "
                    f"at stride {stride:g} of {size[0]} x {size[1]} pixels, got {shape}"
                )
        tokens = output.grid[0] * output.grid[1]
        for what, heads in (("queries", output.queries), ("keys", output.keys)):
            if heads.shape[:3] != (len(image), self.attention_heads, tokens):
                raise ShapeError(
                    f"{name}: expected {what} of {len(image)} x {self.attention_heads} x {tokens} x d "
                    f"(one per cell of the last map, no class token), got {tuple(heads.shape)}"
                )


def stage_block_names(merging: str, block: str, norm: str, depth: int) -> list[tuple[str, ...]]:
    """A stage's part of `Backbone.block_names`: its merging goes with the first block, its norm with the last.

    Args:
        merging, block, norm: names of the stage's modules; block j is `block.j`.
        depth: blocks of the stage.
    """
    entries: list[tuple[str, ...]] = [(f"{block}.{j}",) for j in range(depth)]
    entries[0] = (merging, *entries[0])
    entries[-1] = (*entries[-1], norm)
    return entries


def require_sound(backbone: object, name: str) -> Backbone:
    """A backbone whose attributes go together.

    Args:
        name: as in `model.backbone`, for the message.

    Raises:
        PresetError: it is no `Backbone`, or its attributes contradict each other.
    """
    if not isinstance(backbone, Backbone):
        kind = type(backbone).__name__
        raise PresetError(
            f'model.backbone: "{name}" is a {kind}, expected a subclass of afactl.network.backbones.Backbone'
        )
    missing = [part for part in Backbone.__annotations__ if not hasattr(backbone, part)]
    if missing:
        raise PresetError(f'model.backbone: "{name}" does not say its {", ".join(missing)}')
    channels, strides = backbone.out_channels, backbone.strides
    if not len(channels) == len(strides) > 0 or list(strides) != sorted(strides) or strides[-1] != backbone.stride:
        raise PresetError(
            f'model.backbone: "{name}" has out_channels {tuple(channels)} and strides {tuple(strides)}; expected '
            "one of each per stage, finest first, the last stride a whole number"
        )
    if backbone.attention_layers < 1 or backbone.attention_heads % backbone.attention_layers:
        raise PresetError(
            f'model.backbone: "{name}" has {backbone.attention_heads} attention_heads in {backbone.attention_layers} '
            "attention_layers; expected at least one layer, and as many heads in each"
        )
    return backbone


def require_whole_tokens(backbone: Backbone, crop_size: int) -> None:
    """A view of training is cut into whole tokens.

    Raises:
        PresetError: its side is no multiple of the backbone's stride; names the two next ones that are.
    """
    stride = backbone.stride
    if crop_size % stride:
        below = crop_size - crop_size % stride
        fitting = " or ".join(str(side) for side in (below, below + stride) if side)
        raise PresetError(
            f"train.crop_size: expected a multiple of the backbone's stride of {stride} pixels, got {crop_size}; "
            f"take {fitting}"
        )


def smaller_crop(backbone: Backbone, crop_size: int) -> int:
    """About half the side of a view, in whole tokens; at least 32 pixels, the least that a preset takes."""
    stride = backbone.stride
    return max(math.ceil(32 / stride), crop_size // 2 // stride) * stride
