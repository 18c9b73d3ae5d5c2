"""PVTv2 (Wang et al., arXiv:2106.13797) out of timm, with the last stride 2 -> 1 as the paper does for MiT.

The freely licensed sibling of the Mix Transformer: four stages of overlapped patch embedding and spatially reduced
attention; the last stage's attention is not reduced, so its S is N x N.

Shapes: B batch, D_i channels of stage i, N = h * w tokens of the last stage, n heads, d head width.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from afactl.errors import PresetError
from afactl.network.backbones.base import BackboneOutput, stage_block_names
from afactl.network.backbones.timm_models import ATTENTION_BLOCKS, TimmBackbone, last_blocks, split_heads

# Modules of timm whose models have the parts that are used here.
FAMILIES = ("pvt_v2",)


class PyramidVisionTransformer(TimmBackbone):
    """PVTv2 with stage strides 4, 8, 16, 16.

    Args:
        name: timm's, `pvt_v2_b0` to `pvt_v2_b5`.
        drop_path: stochastic depth of the last block; rises linearly from 0 over all blocks.

    Raises:
        PresetError: no such model, or one whose last stage pools its keys (`pvt_v2_b2_li`).
    """

    strides = (4, 8, 16, 16)

    def __init__(self, name: str, drop_path: float) -> None:
        super().__init__(name, num_classes=0, drop_path_rate=drop_path)
        last = self.body.stages[-1]
        attention = last.blocks[-1].attn
        if attention.sr is not None:
            raise PresetError(
                f'model.backbone: "{name}" pools the keys of its last stage, so S is not N x N; use pvt_v2_b2'
            )
        last.downsample.proj.stride = (1, 1)
        self.out_channels = tuple(stage["num_chs"] for stage in self.body.feature_info)
        self.attention_layers, self.attention_heads = ATTENTION_BLOCKS, ATTENTION_BLOCKS * attention.num_heads

    def block_names(self) -> list[tuple[str, ...]]:
        """One entry per block; a stage's merging goes with its first block, its norm with its last."""
        entries: list[tuple[str, ...]] = []
        for i, stage in enumerate(self.body.stages):
            name = f"body.stages.{i}"
            merging = f"{name}.downsample" if i else "body.patch_embed"
            entries += stage_block_names(merging, f"{name}.blocks", f"{name}.norm", len(stage.blocks))
        return entries

    def forward(self, image: Tensor) -> BackboneOutput:
        """B x 3 x h x w, normalised -> stage features, and queries and keys of the last two blocks."""
        x, features = self.body.patch_embed(image), []
        *stages, last = self.body.stages
        for stage in stages:
            x = stage(x)
            features.append(x)
        x = last.downsample(x)  # B h w D
        grid, tokens = x.shape[1:3], x.flatten(1, 2)
        recent = []
        for number, block in enumerate(last.blocks, ATTENTION_BLOCKS - len(last.blocks)):
            if number >= 0:
                recent.append(_queries_and_keys(block.attn, block.norm1(tokens)))
            tokens = block(tokens, grid)
        features.append(last.norm(tokens).transpose(1, 2).unflatten(2, grid))
        return BackboneOutput(tuple(features), *last_blocks(recent))


def _queries_and_keys(attention: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """B x N x D -> queries and keys, B x n x N x d; the weights of keys and values are one matrix, keys first."""
    width, weight, bias = attention.dim, attention.kv.weight, attention.kv.bias
    keys = F.linear(tokens, weight[:width], None if bias is None else bias[:width])
    return split_heads(attention.q(tokens), attention.num_heads), split_heads(keys, attention.num_heads)
