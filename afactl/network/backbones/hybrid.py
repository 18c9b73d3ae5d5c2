"""A convolutional network of timm as stages 1 to 3, MiT's blocks as stage 4.

The convolutions bring what they learned on ImageNet, the blocks the attention that AFA teaches. The blocks start from
random weights, so their branches begin at a tenth of their strength (a learned factor, as in CaiT's layer scale):
the classifier sees the convolutional features first, and the attention grows into them.

Shapes: B batch, D channels of stage 4, N = h * w tokens, n heads, d head width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from afactl.errors import PresetError
from afactl.network.backbones.base import BackboneOutput
from afactl.network.backbones.mit import HEADS, Block, PatchEmbedding, drop_path, to_map
from afactl.network.backbones.timm_models import ATTENTION_BLOCKS, TimmBackbone, last_blocks

STRIDES = (4, 8, 16, 16)
WIDTH = 256
START = 0.1


class ScaledBlock(Block):
    """A block of MiT whose two branches are multiplied by learned factors, one per channel."""

    def __init__(self, dim: int, heads: int, drop_path: float) -> None:
        super().__init__(dim, heads, reduction=1, drop_path=drop_path)
        self.scale1 = nn.Parameter(torch.full((dim,), START))
        self.scale2 = nn.Parameter(torch.full((dim,), START))

    def forward(self, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """As `Block.forward`."""
        attended, q, k = self.attn(self.norm1(x), grid)
        x = x + drop_path(self.scale1 * attended, self.drop_path, self.training)
        x = x + drop_path(self.scale2 * self.mlp(self.norm2(x), grid), self.drop_path, self.training)
        return x, q, k


class Hybrid(TimmBackbone):
    """Stages of a convolutional network at strides 4, 8 and 16, and two Transformer blocks on the last one.

    Args:
        name: timm's name of a network whose last stride can be set to 1, such as `tf_efficientnet_lite0`.
        drop_path: stochastic depth of the last block.

    Raises:
        PresetError: no such network, or one without maps at these strides.
    """

    strides = STRIDES
    fresh = ("embed", "blocks", "norm")

    def __init__(self, name: str, drop_path: float) -> None:
        super().__init__(name, features_only=True, output_stride=16)
        reductions = self.body.feature_info.reduction()
        missing = [stride for stride in STRIDES[:3] if stride not in reductions]
        if missing:
            raise PresetError(f"model.backbone: hybrid:{name} has maps at strides {reductions}, expected 4, 8 and 16")
        # The last map at a stride is the one that has seen the most; at 16 that is what the blocks get.
        self.taken = [len(reductions) - 1 - reductions[::-1].index(stride) for stride in STRIDES[:3]]
        channels = [self.body.feature_info.channels()[i] for i in self.taken]
        # Depthwise convolutions and batch norm are quicker so, forward and backward (docs/performance.md).
        self.body.to(memory_format=torch.channels_last)
        self.embed = PatchEmbedding(channels[-1], WIDTH, kernel=1, stride=1)
        rates = torch.linspace(0, drop_path, ATTENTION_BLOCKS).tolist()
        self.blocks = nn.ModuleList(ScaledBlock(WIDTH, HEADS[-1], rate) for rate in rates)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.out_channels = (*channels, WIDTH)
        self.attention_layers, self.attention_heads = ATTENTION_BLOCKS, ATTENTION_BLOCKS * HEADS[-1]

    def block_names(self) -> list[tuple[str, ...]]:
        """One entry per convolutional block; the two Transformer blocks are fresh, and always learn."""
        entries: list[tuple[str, ...]] = []
        merging: tuple[str, ...] = ()
        for name in _sequential_names(self.body):
            if name.rpartition(".")[0].endswith("downsample"):
                merging = (*merging, f"body.{name}")
            else:
                entries.append((*merging, f"body.{name}"))
                merging = ()
        return entries

    def forward(self, image: Tensor) -> BackboneOutput:
        """B x 3 x h x w, normalised -> stage features, and queries and keys of the two blocks."""
        maps = self.body(image.contiguous(memory_format=torch.channels_last))
        features = [maps[i] for i in self.taken]
        tokens, grid = self.embed(features[-1])
        parts = []
        for block in self.blocks:
            tokens, queries, keys = block(tokens, grid)
            parts.append((queries, keys))
        return BackboneOutput((*features, to_map(self.norm(tokens), grid)), *last_blocks(parts))


def _sequential_names(module: nn.Module) -> list[str]:
    """Names of the members of all sequences in a network, in order; a sequence of sequences gives those inside."""
    names = []
    for name, child in module.named_children():
        if isinstance(module, nn.Sequential) and not isinstance(child, nn.Sequential):
            names.append(name)
        else:
            names += [f"{name}.{inner}" for inner in _sequential_names(child)]
    return names
