"""Affinity from attention and the random walk (Eq. 3, 6, 7; supplementary 6.2).

Shapes: B batch, n heads, d head width, hs x ws token grid, N = hs * ws, P planes to propagate.
Tokens are counted row by row; two tokens are neighbours when their Chebyshev distance on the
grid is at most the radius r.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from afactl.errors import ShapeError, check_shape
from afactl.labels import IGNORE

# Tokens per side of a tile of `random_walk`: smaller ones cost calls, larger ones multiply by more zeros.
_TILE = (8, 16)


def attention_logits(queries: Tensor, keys: Tensor) -> Tensor:
    """S = Q K^T, before scaling and softmax (Eq. 1).

    Args:
        queries, keys: B x n x N x d.

    Returns:
        B x n x N x N.
    """
    return queries @ keys.transpose(-2, -1)


def mean_attention(queries: Tensor, keys: Tensor) -> Tensor:
    """Average over the heads of softmax(S / sqrt(d)): the plain MHSA as affinity (Table 3).

    Args:
        queries, keys: B x n x N x d.

    Returns:
        B x N x N, rows sum to 1.
    """
    scale = queries.shape[-1] ** -0.5
    heads = queries.shape[1]
    mean = torch.zeros((), device=queries.device)
    for head in range(heads):  # one map at a time: n maps of N x N would be the peak of memory
        mean = mean + torch.softmax(scale * attention_logits(queries[:, head], keys[:, head]), -1) / heads
    return mean


def affinity_logits(queries: Tensor, keys: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A = sum_h w_h (S_h + S_h^T) + b (Eq. 3), before the sigmoid.

    sum_h w_h q_h k_h^T is one product of the heads laid side by side, so that the n maps of
    N x N never exist.

    Args:
        queries, keys: B x n x N x d.
        weight: n, one weight per head. bias: scalar.

    Returns:
        B x N x N, symmetric.

    Raises:
        ShapeError: queries and keys differ, or `weight` has another number of heads.
    """
    check_shape("queries", queries, "B n N d", n=weight.numel())
    if keys.shape != queries.shape:
        raise ShapeError(f"keys: expected {tuple(queries.shape)} as the queries, got {tuple(keys.shape)}")
    # B n N d -> B N (n d)
    weighted = (queries * weight.view(1, -1, 1, 1)).transpose(1, 2).flatten(2)
    product = weighted @ keys.transpose(1, 2).flatten(2).transpose(1, 2)
    return (product + product.transpose(1, 2)).add_(bias)


def neighborhood_mask(height: int, width: int, radius: int, device: torch.device | str = "cpu") -> Tensor:
    """Which pairs of tokens lie within the Chebyshev radius (supplementary 6.2, Fig. 8).

    Args:
        height, width: token grid. radius: r >= 0 in tokens; 0 leaves a token with itself alone.

    Returns:
        N x N bool, symmetric, True on the diagonal.

    Raises:
        ShapeError: an empty grid or a negative radius.
    """
    if height < 1 or width < 1 or radius < 0:
        raise ShapeError(
            f"neighborhood: expected a grid of 1 x 1 or more and r >= 0, got {height} x {width}, r = {radius}"
        )
    rows = _band(height, radius, device)
    columns = _band(width, radius, device)
    return (rows[:, None, :, None] & columns[None, :, None, :]).reshape(height * width, height * width)


def _band(length: int, radius: int, device: torch.device | str) -> Tensor:
    """length x length bool: positions at most `radius` apart."""
    position = torch.arange(length, device=device)
    return (position[:, None] - position[None, :]).abs() <= radius


def affinity_label(label: Tensor, grid: tuple[int, int], radius: int) -> Tensor:
    """Pseudo affinity label Y_aff from refined labels (3.3).

    The label is nearest-resized to the tokens. The authors resize it to h // 16 x w // 16, which is the grid of their
    backbone where 16 divides the sides; elsewhere their tokens are more than that, and only the grid itself fits.

    Args:
        label: B x h x w, classes 0..C and 255 where ignored.
        grid: (hs, ws), the token grid of the affinity it supervises.
        radius: r in tokens.

    Returns:
        B x N x N uint8: 1 same class, 0 different, 255 where either is ignored or the pair lies
        outside the window.

    Raises:
        ShapeError: `label` is not B x h x w, or has fewer pixels than tokens along a side.
    """
    check_shape("label", label, "B h w")
    if label.shape[1] < grid[0] or label.shape[2] < grid[1]:
        raise ShapeError(f"label: expected at least a pixel for each of {grid} tokens, got {tuple(label.shape[1:])}")
    # float32 holds the values 0..255 exactly; nearest interpolation wants floats on CPU.
    tokens = F.interpolate(label[:, None].float(), size=grid, mode="nearest").flatten(1)
    ignored = tokens == IGNORE
    same = (tokens[:, :, None] == tokens[:, None, :]).to(torch.uint8)
    unused = ignored[:, :, None] | ignored[:, None, :] | ~neighborhood_mask(*grid, radius, label.device)
    return same.masked_fill_(unused, IGNORE)


def transition_matrix(
    affinity: Tensor, grid: tuple[int, int], radius: int, alpha: float = 2.0, eps: float = 0.0
) -> Tensor:
    """T = D^-1 A^alpha with A zeroed outside the window (Eq. 6).

    `random_walk` gives T times planes without building T; this is for looking at it.

    Args:
        affinity: B x N x N, non-negative. grid: (hs, ws) with hs * ws = N.
        alpha: element-wise power. eps: added to the row sums (the authors' code adds 0.1).

    Returns:
        B x N x N; with eps = 0 each row sums to 1, or is all zero where no affinity is left.
    """
    _check_affinity(affinity, grid)
    weights = _power(affinity * neighborhood_mask(*grid, radius, affinity.device), alpha)
    return weights / _nonzero(weights.sum(dim=-1, keepdim=True) + eps)


def random_walk(planes: Tensor, affinity: Tensor, radius: int, alpha: float = 2.0, eps: float = 0.0) -> Tensor:
    """M_aff = T vec(M) (Eq. 7), one step, without building the N x N matrix T.

    A tile of target tokens reaches no further than the tile grown by the radius, so each tile
    needs a small block of A. A plane of ones rides along: its product gives the row sums D.

    Args:
        planes: B x P x hs x ws on the token grid of the affinity.
        affinity: B x N x N, non-negative.
        radius, alpha, eps: as in `transition_matrix`.

    Returns:
        B x P x hs x ws.

    Raises:
        ShapeError: grid and affinity do not fit.
    """
    check_shape("planes", planes, "B P hs ws")
    batch, count, height, width = planes.shape
    _check_affinity(affinity, (height, width))
    source = torch.cat([planes, planes.new_ones(batch, 1, height, width)], dim=1)
    weights = affinity.view(batch, height, width, height, width)
    rows = _band(height, radius, affinity.device).to(affinity.dtype)
    columns = _band(width, radius, affinity.device).to(affinity.dtype)
    walked = torch.empty_like(source)
    for y in _tiles(height, _TILE[0], radius):
        for x in _tiles(width, _TILE[1], radius):
            window = rows[y.targets, None, y.reach, None] * columns[None, x.targets, None, x.reach]
            block = _power(weights[:, y.targets, x.targets, y.reach, x.reach] * window, alpha)
            # (planes x tokens in reach) (tokens in reach x targets): the other way round, with its
            # few columns, the same product takes three times as long.
            product = source[:, :, y.reach, x.reach].flatten(2) @ block.flatten(3).flatten(1, 2).transpose(1, 2)
            walked[:, :, y.targets, x.targets] = product.reshape(*product.shape[:2], *block.shape[1:3])
    return walked[:, :count] / _nonzero(walked[:, count:] + eps)


class _Tile(NamedTuple):
    """Along one axis: the tokens of a tile, and those in reach of any of them."""

    targets: slice
    reach: slice


def _tiles(length: int, size: int, radius: int) -> list[_Tile]:
    """One axis cut into tiles, and how far each reaches with the radius."""
    return [
        _Tile(
            slice(start, min(length, start + size)), slice(max(0, start - radius), min(length, start + size + radius))
        )
        for start in range(0, length, size)
    ]


def _check_affinity(affinity: Tensor, grid: tuple[int, int]) -> None:
    tokens = grid[0] * grid[1]
    if affinity.ndim != 3 or affinity.shape[1:] != (tokens, tokens):
        raise ShapeError(f"affinity: expected B x {tokens} x {tokens} for the grid {grid}, got {tuple(affinity.shape)}")


def _power(values: Tensor, alpha: float) -> Tensor:
    # The default alpha of 2 as a product: pow costs several times as much.
    return values * values if alpha == 2.0 else values.pow(alpha)


def _nonzero(sums: Tensor) -> Tensor:
    """Row sums safe to divide by: a row without any affinity stays a row of zeros."""
    return sums.clamp_min(torch.finfo(sums.dtype).tiny)
