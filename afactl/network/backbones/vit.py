"""Plain Vision Transformers out of timm: DeiT, AugReg, CLIP, DINOv2 (with and without registers), DINOv3.

Class and register tokens take part in the attention and are left out of S and of the features. A photo whose sides
are no multiple of the patch is padded at the right and the bottom, and every map is cut back to the cells that show
some of it. Learned positions are resized to the patch grid, bicubically; rotary ones are computed for it.

A plain ViT has one grid. A simple feature pyramid (Li et al., arXiv:2203.16527) makes finer maps of it for the
decoder; it is the one part without published weights.

Shapes: B batch, D width, p side of a patch, N = h * w tokens of the patch grid, P class and register tokens, n heads.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afactl.errors import PresetError
from afactl.network.backbones.base import BackboneOutput
from afactl.network.backbones.timm_models import ATTENTION_BLOCKS, TimmBackbone, last_blocks, queries_and_keys

# Modules of timm whose models have the parts that are used here.
FAMILIES = ("vision_transformer", "deit", "eva")


class FeaturePyramid(nn.Module):
    """Maps at 4, 2 and 1 times the resolution of one map, finest first, by transposed convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half, quarter = width // 2, width // 4
        self.four = nn.Sequential(
            nn.ConvTranspose2d(width, half, 2, 2),
            nn.GroupNorm(1, half),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, 2),
        )
        self.two = nn.ConvTranspose2d(width, half, 2, 2)
        self.out_channels = (quarter, half, width)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """B x D x h x w -> maps on 4h x 4w, 2h x 2w, h x w."""
        return self.four(features), self.two(features), features


class VisionTransformer(TimmBackbone):
    """A plain ViT of timm.

    Args:
        name: timm's, such as `vit_small_patch14_dinov2` or `deit_small_patch16_224`.
        drop_path: stochastic depth of the last block; rises linearly from 0 over all blocks.

    Raises:
        PresetError: no such model, or one with a token for distillation.
    """

    fresh = ("pyramid",)

    def __init__(self, name: str, drop_path: float) -> None:
        if "distilled" in name:
            raise PresetError(f'model.backbone: "{name}" has a token for distillation; take the model without it')
        super().__init__(name, num_classes=0, drop_path_rate=drop_path, dynamic_img_size=True)
        attention = self.body.blocks[-1].attn
        self.patch: int = self.body.patch_embed.patch_size[0]
        self.strides = (self.patch / 4, self.patch / 2, self.patch)
        self.pyramid = FeaturePyramid(self.body.embed_dim)
        self.out_channels = self.pyramid.out_channels
        self.attention_layers, self.attention_heads = ATTENTION_BLOCKS, ATTENTION_BLOCKS * attention.num_heads

    def block_names(self) -> list[tuple[str, ...]]:
        """One entry per block; the last norm goes with the last one."""
        last = len(self.body.blocks) - 1
        return [(f"body.blocks.{i}", *(["body.norm"] if i == last else [])) for i in range(last + 1)]

    def forward(self, image: Tensor) -> BackboneOutput:
        """B x 3 x h x w, normalised -> pyramid of the last block's features, and queries and keys of the last two."""
        size = image.shape[2:]
        image = F.pad(image, (0, -size[1] % self.patch, 0, -size[0] % self.patch))
        patches = self.body.patch_embed.proj(image)
        grid = (patches.shape[2], patches.shape[3])
        tokens = self.body.norm_pre(
            self._positioned(self.body.patch_embed.norm(patches.flatten(2).transpose(1, 2)), grid)
        )
        rotary = getattr(self.body, "rope", None)
        rotation = None if rotary is None else rotary.get_embed(shape=grid)
        prefix, blocks, recent = self.body.num_prefix_tokens, self.body.blocks, []
        for number, block in enumerate(blocks, ATTENTION_BLOCKS - len(blocks)):
            if number >= 0:
                queries, keys = queries_and_keys(block.attn, block.norm1(tokens))
                recent.append((self._own(queries, block, rotation, prefix), self._own(keys, block, rotation, prefix)))
            tokens = block(tokens) if rotary is None else block(tokens, rope=rotation)
        features = self.body.norm(tokens)[:, prefix:].transpose(1, 2).unflatten(2, grid)
        maps = [
            x[:, :, : math.ceil(size[0] / stride), : math.ceil(size[1] / stride)]
            for x, stride in zip(self.pyramid(features), self.strides, strict=True)
        ]
        return BackboneOutput(tuple(maps), *last_blocks(recent))

    def _positioned(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """B x N x D patches -> B x (P + N) x D tokens with their learned positions."""
        body, batch = self.body, len(patches)
        first = [token.expand(batch, -1, -1) for token in (body.cls_token, body.reg_token) if token is not None]
        positions: Tensor | None = body.pos_embed
        if positions is None:
            return torch.cat([*first, patches], dim=1)
        prefix = 0 if body.no_embed_class else body.num_prefix_tokens
        native = body.patch_embed.grid_size
        if grid != tuple(native):
            plane = positions[:, prefix:].transpose(1, 2).reshape(1, -1, *native)
            plane = F.interpolate(plane, size=grid, mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
            positions = torch.cat([positions[:, :prefix], plane], dim=1)
        if body.no_embed_class:
            return torch.cat([*first, patches + positions], dim=1)
        return torch.cat([*first, patches], dim=1) + positions

    def _own(self, heads: Tensor, block: Any, rotation: Tensor | None, prefix: int) -> Tensor:
        """Queries or keys of the patches alone, turned by their rotary position where the model has one."""
        patches = heads[:, :, prefix:]
        if rotation is None:
            return patches
        from timm.layers.pos_embed_sincos import apply_rot_embed_cat

        turned: Tensor = apply_rot_embed_cat(patches, rotation, half=getattr(block.attn, "rotate_half", False))
        return turned.type_as(heads)
