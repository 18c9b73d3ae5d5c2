"""Mix Transformer (SegFormer, arXiv:2105.15203), with the last stride 2 -> 1 (paper 6.1).

Four stages at strides 4, 8, 16, 16. Each stage: overlapped patch embedding, blocks of
spatially reduced self-attention and Mix-FFN, LayerNorm. Module names are those of the
published ImageNet weights, so that a `mit_b*.pth` loads without renaming.

Shapes: B batch, D channels of a stage, h x w its grid, N = h * w tokens, n heads, d = D / n.
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afactl.network.backbones.base import Backbone, BackboneOutput, stage_block_names

HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)
KERNELS = (7, 3, 3, 3)
PATCH_STRIDES = (4, 2, 2, 1)
MLP_RATIO = 4
# The affinity head reads S of this many blocks at the end of stage 4 (facts of the published model).
ATTENTION_BLOCKS = 2


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Stochastic depth: zero the residual branch of a sample with probability `rate`.

    Args:
        x: B x ...; kept samples are divided by 1 - rate, so the expectation stays.
    """
    if rate == 0.0 or not training:
        return x
    keep = torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), device=x.device) >= rate
    return x * (keep / (1.0 - rate)).to(x.dtype)


def to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """B x N x D tokens as a B x D x h x w map, a view in channels-last order."""
    # By transpose and view, one image alone would not be known for channels-last, and every convolution would copy it.
    return torch.unflatten(tokens, 1, grid).permute(0, 3, 1, 2)


def to_tokens(features: Tensor) -> Tensor:
    """B x D x h x w map as B x N x D tokens, row by row."""
    return features.flatten(2).transpose(1, 2)


class PatchEmbedding(nn.Module):
    """Overlapped patch embedding: strided convolution with padding k // 2, then LayerNorm."""

    def __init__(self, in_channels: int, dim: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel, stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(dim, eps=1e-5)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """B x D' x h' x w' -> (B x N x D, (h, w))."""
        x = self.proj(x)
        return self.norm(to_tokens(x)), (x.shape[2], x.shape[3])


class Attention(nn.Module):
    """Self-attention whose keys and values come from a grid reduced by `reduction` per side."""

    def __init__(self, dim: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.reduction = reduction
        if reduction > 1:
            self.sr = nn.Conv2d(dim, dim, reduction, reduction)
            self.norm = nn.LayerNorm(dim, eps=1e-5)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """B x N x D -> (B x N x D, queries B x n x N x d, keys B x n x N' x d)."""
        q = self.q(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        reduced = self._reduce(to_map(x, grid)) if self.reduction > 1 else x
        # B N' 2 n d -> 2 B n N' d
        k, v = self.kv(reduced).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2)), q, k

    def _reduce(self, features: Tensor) -> Tensor:
        """B x D x h x w -> B x N' x D."""
        # A picture smaller than one reduced cell (32 pixels in stage 1) is padded up to one.
        missing = [max(0, self.reduction - side) for side in features.shape[2:]]
        if any(missing):
            features = F.pad(features, (0, missing[1], 0, missing[0]))
        tokens: Tensor = self.norm(to_tokens(self.sr(features)))
        return tokens


class DepthwiseConv(nn.Module):
    """The 3 x 3 depthwise convolution that stands in for position codes."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        return to_tokens(self.dwconv(to_map(x, grid)))


class MixFFN(nn.Module):
    """linear -> depthwise 3 x 3 -> GELU -> linear."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, MLP_RATIO * dim)
        self.dwconv = DepthwiseConv(MLP_RATIO * dim)
        self.fc2 = nn.Linear(MLP_RATIO * dim, dim)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.dwconv(self.fc1(x), grid)))
        return out


class Block(nn.Module):
    """Pre-norm Transformer block with stochastic depth."""

    def __init__(self, dim: int, heads: int, reduction: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads, reduction)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MixFFN(dim)
        self.drop_path = drop_path

    def forward(self, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """B x N x D -> (B x N x D, queries, keys) with the shapes of `Attention`."""
        attended, q, k = self.attn(self.norm1(x), grid)
        x = x + drop_path(attended, self.drop_path, self.training)
        x = x + drop_path(self.mlp(self.norm2(x), grid), self.drop_path, self.training)
        return x, q, k


class MixTransformer(Backbone):
    """MiT with stage strides 4, 8, 16, 16.

    Args:
        dims: D of the four stages; each a multiple of its number of heads (1, 2, 5, 8).
        depths: blocks per stage; the last at least two, since the affinity reads two blocks.
        drop_path: stochastic depth of the last block; rises linearly from 0 over all blocks.
    """

    strides = (4, 8, 16, 16)

    def __init__(self, dims: tuple[int, ...], depths: tuple[int, ...], drop_path: float) -> None:
        super().__init__()
        self.out_channels = tuple(dims)
        self.attention_layers, self.attention_heads = ATTENTION_BLOCKS, ATTENTION_BLOCKS * HEADS[-1]
        rates = torch.linspace(0, drop_path, sum(depths)).tolist()
        in_channels = (3, *dims[:-1])
        for i in range(4):
            embed = PatchEmbedding(in_channels[i], dims[i], KERNELS[i], PATCH_STRIDES[i])
            blocks = [Block(dims[i], HEADS[i], REDUCTIONS[i], rates.pop(0)) for _ in range(depths[i])]
            self.add_module(f"patch_embed{i + 1}", embed)
            self.add_module(f"block{i + 1}", nn.ModuleList(blocks))
            self.add_module(f"norm{i + 1}", nn.LayerNorm(dims[i], eps=1e-6))
        self.apply(_initialize)

    def block_names(self) -> list[tuple[str, ...]]:
        """One entry per block; a stage's embedding goes with its first block, its norm with its last."""
        entries: list[tuple[str, ...]] = []
        for i in range(1, 5):
            entries += stage_block_names(f"patch_embed{i}", f"block{i}", f"norm{i}", len(getattr(self, f"block{i}")))
        return entries

    def forward(self, image: Tensor) -> BackboneOutput:
        """B x 3 x h x w, normalised -> stage features, and queries and keys of the last two blocks."""
        features, x = [], image
        for i in range(1, 5):
            tokens, grid = getattr(self, f"patch_embed{i}")(x)
            # Of all queries and keys only those of the last blocks of the last stage are kept.
            recent: list[tuple[Tensor, Tensor]] = []
            for block in getattr(self, f"block{i}"):
                tokens, q, k = block(tokens, grid)
                recent = [*recent, (q, k)][-ATTENTION_BLOCKS:]
            x = to_map(getattr(self, f"norm{i}")(tokens), grid)
            features.append(x)
        queries, keys = (torch.cat(parts, dim=1) for parts in zip(*recent, strict=True))
        return BackboneOutput(tuple(features), queries, keys)


def _initialize(module: nn.Module) -> None:
    """Truncated normal for linear layers, fan-out normal for convolutions, as in SegFormer's text."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, 0, math.sqrt(2.0 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


VARIANTS = {
    "mit_b0": ((32, 64, 160, 256), (2, 2, 2, 2)),
    "mit_b1": ((64, 128, 320, 512), (2, 2, 2, 2)),
    "mit_b2": ((64, 128, 320, 512), (3, 4, 6, 3)),
    "mit_b3": ((64, 128, 320, 512), (3, 4, 18, 3)),
    "mit_b4": ((64, 128, 320, 512), (3, 8, 27, 3)),
    "mit_b5": ((64, 128, 320, 512), (3, 6, 40, 3)),
    # Not of the paper: small enough for the demo to train from random weights on two cores.
    "mit_demo": ((32, 64, 120, 160), (2, 2, 2, 2)),
}

mit_b0, mit_b1, mit_b2, mit_b3, mit_b4, mit_b5, mit_demo = (partial(MixTransformer, *v) for v in VARIANTS.values())
