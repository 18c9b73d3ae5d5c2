"""Affinity from attention and the random walk (Eq. 3, 6, 7; supplementary 6.2).

Shapes: B batch, n heads, d head width, hs x ws token grid, N = hs * ws, P planes to propagate.
Tokens are counted row by row; two tokens are neighbours when their Chebyshev distance on the
grid is at most the radius r.

Window form: of an N x N matrix the walk needs only the pairs of neighbours. They are kept as
B x hs x ws x W with W = (2r + 1)^2: entry (y, x, j) is the pair of token (y, x) and its j-th
neighbour, counted row by row from (y - r, x - r), and -inf where that one lies outside the grid.

The walk takes the logarithm of the affinity. The logits of a trained network reach from -160 to
+190; there sigmoid and its square are exact zeros, and a token with nothing but zeros in its row
would walk nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from afactl.errors import ShapeError, check_shape
from afactl.labels import IGNORE

# Tokens per side of a tile: smaller ones cost calls, larger ones multiply by more zeros.
_TILE = (8, 16)


@dataclass(frozen=True)
class Walk:
    """How CAMs are propagated (Eq. 6, 7).

    Attributes:
        radius: r of the window in tokens; 0 leaves a token with itself alone.
        alpha: element-wise power of the affinity, above 0.
        eps: added to the row sums. With 0 each row of T sums to 1, whatever the affinity; the authors' code
            adds 0.1, and there a row of tiny affinities vanishes.

    Raises:
        ShapeError: a value outside its range.
    """

    radius: int = 8
    alpha: float = 2.0
    eps: float = 0.0

    def __post_init__(self) -> None:
        if not (self.radius >= 0 and self.alpha > 0 and self.eps >= 0):
            raise ShapeError(f"walk: expected radius >= 0, alpha > 0 and eps >= 0, got {self}")


def attention_logits(queries: Tensor, keys: Tensor) -> Tensor:
    """S = Q K^T, before scaling and softmax (Eq. 1).

    Args:
        queries, keys: B x n x N x d.

    Returns:
        B x n x N x N.

    Example:
        >>> queries = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).view(1, 1, 2, 2)  # B x n x N x d
        >>> attention_logits(queries, queries)[0, 0]
        tensor([[1., 0.],
                [0., 4.]])
    """
    return queries @ keys.transpose(-2, -1)


def mean_attention(queries: Tensor, keys: Tensor) -> Tensor:
    """Average over the heads of softmax(S / sqrt(d)): the plain MHSA as affinity (Table 3).

    Args:
        queries, keys: B x n x N x d.

    Returns:
        B x N x N, rows sum to 1.

    Example:
        >>> mean_attention(torch.zeros(1, 8, 4, 16), torch.randn(1, 8, 4, 16))[0, 0]  # indifferent queries
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
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

    Example:
        >>> queries, keys = torch.tensor([[1.0], [2.0]]).view(1, 1, 2, 1), torch.tensor([[3.0], [5.0]]).view(1, 1, 2, 1)
        >>> affinity_logits(queries, keys, torch.ones(1), torch.tensor(0.5))[0]  # off the diagonal 1 x 5 + 2 x 3 + 0.5
        tensor([[ 6.5000, 11.5000],
                [11.5000, 20.5000]])
    """
    weighted, plain = _side_by_side(queries, keys, weight)
    product = weighted @ plain.transpose(1, 2)
    return (product + product.transpose(1, 2)).add_(bias)


def affinity_rows(queries: Tensor, keys: Tensor, weight: Tensor, bias: Tensor, tokens: Sequence[int]) -> Tensor:
    """Some rows of `affinity_logits`, without the others.

    Args:
        queries, keys, weight, bias: as in `affinity_logits`.
        tokens: Q indices in [0, N).

    Returns:
        B x Q x N.

    Raises:
        ShapeError: as `affinity_logits`.

    Example:
        >>> (queries, keys), weight, bias = torch.randn(2, 1, 4, 9, 8), torch.ones(4), torch.zeros(())
        >>> rows = affinity_rows(queries, keys, weight, bias, tokens=[5, 0])
        >>> torch.allclose(rows, affinity_logits(queries, keys, weight, bias)[:, [5, 0]], atol=1e-4)
        True
    """
    weighted, plain = _side_by_side(queries, keys, weight)
    rows = list(tokens)
    return weighted[:, rows] @ plain.transpose(1, 2) + plain[:, rows] @ weighted.transpose(1, 2) + bias


def _side_by_side(queries: Tensor, keys: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The queries times the weights of their heads, and the keys: B n N d -> B N (n d)."""
    check_shape("queries", queries, "B n N d", n=weight.numel())
    if keys.shape != queries.shape:
        raise ShapeError(f"keys: expected {tuple(queries.shape)} as the queries, got {tuple(keys.shape)}")
    weighted = queries * weight.view(1, -1, 1, 1)
    return weighted.transpose(1, 2).flatten(2), keys.transpose(1, 2).flatten(2)


def neighborhood_mask(height: int, width: int, radius: int, device: torch.device | str = "cpu") -> Tensor:
    """Which pairs of tokens lie within the Chebyshev radius (supplementary 6.2, Fig. 8).

    Args:
        height, width: token grid. radius: r >= 0 in tokens; 0 leaves a token with itself alone.

    Returns:
        N x N bool, symmetric, True on the diagonal.

    Raises:
        ShapeError: an empty grid or a negative radius.

    Example:
        >>> neighborhood_mask(1, 3, radius=1).int()
        tensor([[1, 1, 0],
                [1, 1, 1],
                [0, 1, 1]], dtype=torch.int32)
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

    Example:
        >>> affinity_label(torch.tensor([[[1, 1, 0, 255]]]), grid=(1, 4), radius=8)[0]
        tensor([[  1,   1,   0, 255],
                [  1,   1,   0, 255],
                [  0,   0,   1, 255],
                [255, 255, 255, 255]], dtype=torch.uint8)
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


def window_reach(radius: int, grid: tuple[int, int]) -> int:
    """The radius, or what of it a grid (hs, ws) can use: beyond its longer side lie no further neighbours.

    Example:
        >>> window_reach(8, grid=(3, 5)), window_reach(2, grid=(3, 5))
        (4, 2)
    """
    return min(radius, max(grid) - 1)


def affinity_windows(
    queries: Tensor, keys: Tensor, weight: Tensor, bias: Tensor, grid: tuple[int, int], radius: int
) -> Tensor:
    """`affinity_logits` of neighbours alone, tile by tile: the N x N matrix never exists.

    Args:
        queries, keys, weight, bias: as in `affinity_logits`.
        grid: (hs, ws) with hs * ws = N. radius: r in tokens.

    Returns:
        B x hs x ws x W float32, logits in window form; `random_walk` takes their `log_sigmoid`.

    Raises:
        ShapeError: as `affinity_logits`, or another number of tokens than the grid has.

    Example:
        >>> queries, weight, bias = torch.ones(1, 1, 3, 1), torch.ones(1), torch.zeros(())
        >>> affinity_windows(queries, queries, weight, bias, grid=(1, 3), radius=1)[0, 0, :, 3:6]  # in its row
        tensor([[-inf, 2., 2.],
                [2., 2., 2.],
                [2., 2., -inf]])
    """
    _check_grid(queries, grid)
    weighted, plain = (torch.unflatten(side, 1, grid) for side in _side_by_side(queries, keys, weight))
    reach = window_reach(radius, grid)
    frame = F.pad(plain, (0, 0, reach, reach, reach, reach))
    products = plain.new_empty(len(plain), *grid, 2 * reach + 1, 2 * reach + 1, dtype=torch.float32)
    for tile in _tiles(grid, reach):
        near = frame[:, tile.frame_rows, tile.frame_columns].flatten(1, 2)
        block = weighted[:, tile.rows, tile.columns].flatten(1, 2) @ near.transpose(1, 2)
        products[:, tile.rows, tile.columns] = _sliding(block.float(), tile)
    products = products.flatten(3)
    return _transposed(products).add_(products).add_(bias)


def log_sigmoid(logits: Tensor) -> Tensor:
    """The logarithm of the affinity, from its logits: min(S, 0) - log(1 + exp(-|S|)).

    For any logits that a float can hold; -inf stays. Close to 0 the error is 1e-7, not 1e-7 of the value: torch's own
    form has those digits too and takes three times as long, but in A^alpha they are lost again.

    Example:
        >>> log_sigmoid(torch.tensor([-300.0, 0.0, 300.0, -torch.inf]))
        tensor([-300.0000,   -0.6931,    0.0000,      -inf])
    """
    return logits.abs().neg_().exp_().add_(1).log_().neg_().add_(logits.clamp_max(0))


def attention_windows(queries: Tensor, keys: Tensor, grid: tuple[int, int], radius: int) -> Tensor:
    """The logarithm of `mean_attention` of neighbours alone, tile by tile; `random_walk` takes it.

    Args:
        queries, keys: B x n x N x d. grid: (hs, ws) with hs * ws = N. radius: r in tokens.

    Returns:
        B x hs x ws x W float32, at most 0, in window form.

    Raises:
        ShapeError: another number of tokens than the grid has.

    Example:
        >>> queries = torch.zeros(1, 1, 3, 1)  # indifferent: a third for each token
        >>> attention_windows(queries, queries, grid=(1, 3), radius=1)[0, 0, :, 3:6].exp()
        tensor([[0.0000, 0.3333, 0.3333],
                [0.3333, 0.3333, 0.3333],
                [0.3333, 0.3333, 0.0000]])
    """
    _check_grid(queries, grid)
    batch, heads = queries.shape[:2]
    asked = torch.unflatten(queries.shape[-1] ** -0.5 * queries, 2, grid)
    reach = window_reach(radius, grid)
    frame = F.pad(torch.unflatten(keys, 2, grid), (0, 0, reach, reach, reach, reach))
    windows = queries.new_empty(batch, *grid, 2 * reach + 1, 2 * reach + 1, dtype=torch.float32)
    for tile in _tiles(grid, reach):
        targets = asked[:, :, tile.rows, tile.columns].flatten(2, 3)
        near = frame[:, :, tile.frame_rows, tile.frame_columns].flatten(2, 3)
        maps = []
        for head in range(heads):  # the scores of one head over the whole grid are what takes memory here
            total = attention_logits(targets[:, head], keys[:, head]).float().logsumexp(-1, keepdim=True)
            maps.append(attention_logits(targets[:, head], near[:, head]).float() - total)
        windows[:, tile.rows, tile.columns] = _sliding(torch.stack(maps).logsumexp(0) - math.log(heads), tile)
    return _close_outside(windows, reach)


def half_windows(windows: Tensor) -> Tensor:
    """Of a symmetric matrix in window form, B x hs x ws x W, the pairs with neighbours that come before, and itself.

    Returns:
        B x hs x ws x (W + 1) / 2; `whole_windows` gives the rest back.

    Example:
        >>> half_windows(torch.zeros(1, 4, 4, 9)).shape
        torch.Size([1, 4, 4, 5])
    """
    return windows[..., : windows.shape[-1] // 2 + 1]


def whole_windows(half: Tensor) -> Tensor:
    """The window form of a symmetric matrix from its half: B x hs x ws x (W + 1) / 2 -> B x hs x ws x W.

    Example:
        >>> queries, weight, bias = torch.randn(1, 4, 12, 8), torch.ones(4), torch.zeros(())
        >>> windows = affinity_windows(queries, queries, weight, bias, grid=(3, 4), radius=1)
        >>> torch.equal(whole_windows(half_windows(windows)), windows)
        True
    """
    count = half.shape[-1]
    lower = half.new_full((*half.shape[:3], 2 * count - 1), -torch.inf)
    lower[..., :count] = half
    return torch.maximum(lower, _transposed(lower))


def _transposed(windows: Tensor) -> Tensor:
    """The transposed matrix in window form."""
    side = math.isqrt(windows.shape[-1])
    reach = side // 2
    # (y, x, a, b) of it is the pair of token (y + a - r, x + b - r) with its (-a, -b)-th neighbour.
    turned = F.pad(windows.flip(-1), (0, 0, reach, reach, reach, reach), value=-torch.inf)
    batch, y, x, a, b = torch.unflatten(turned, 3, (side, side)).stride()
    shape = (*windows.shape[:3], side, side)
    return turned.as_strided(shape, (batch, y, x, y + a, x + b)).flatten(3)


def random_walk(planes: Tensor, log_affinity: Tensor, walk: Walk) -> Tensor:
    """M_aff = T vec(M) with T = D^-1 A^alpha inside the window (Eq. 6, 7), one step.

    With eps = 0 a row of T is the softmax over the window of alpha log A, so it sums to 1 for every alpha and every
    log A that a float can hold. With eps the sum of A^alpha + eps divides, and tiny rows vanish.

    A tile of target tokens reaches no further than the tile grown by the radius, so each tile multiplies with one
    small block. A plane of ones rides along: its product gives the row sums D.

    Args:
        planes: B x P x hs x ws on the token grid of the affinity.
        log_affinity: B x hs x ws x W in window form, finite inside the grid.

    Returns:
        B x P x hs x ws.

    Raises:
        ShapeError: grid, radius and affinity do not fit.

    Example:
        >>> planes = torch.tensor([[[[0.0, 0.0, 9.0]]]])
        >>> alike = attention_windows(torch.zeros(1, 1, 3, 1), torch.zeros(1, 1, 3, 1), grid=(1, 3), radius=1)
        >>> random_walk(planes, alike, Walk(radius=1))  # the mean of the neighbours, itself among them
        tensor([[[[0.0000, 3.0000, 4.5000]]]])
    """
    check_shape("planes", planes, "B P hs ws")
    batch, count, *grid = planes.shape
    reach = window_reach(walk.radius, (grid[0], grid[1]))
    side = 2 * reach + 1
    if log_affinity.shape != (batch, *grid, side * side):
        expected = f"{batch} x {grid[0]} x {grid[1]} x {side * side} for radius {walk.radius}"
        raise ShapeError(f"log_affinity: expected {expected}, got {tuple(log_affinity.shape)}")
    weights = torch.unflatten(_powers(log_affinity.to(planes.dtype), walk), 3, (side, side))
    source = torch.cat([planes, planes.new_ones(batch, 1, *grid)], dim=1)
    source = F.pad(source, (reach, reach, reach, reach))
    walked = torch.empty_like(source[:, :, : grid[0], : grid[1]])
    for tile in _tiles((grid[0], grid[1]), reach):
        block = planes.new_zeros(batch, tile.tokens, tile.framed)
        _sliding(block, tile).copy_(weights[:, tile.rows, tile.columns])
        # (planes x frame) (frame x targets): the other way round, with its few columns, the same product
        # takes three times as long.
        product = source[:, :, tile.frame_rows, tile.frame_columns].flatten(2) @ block.transpose(1, 2)
        walked[:, :, tile.rows, tile.columns] = torch.unflatten(product, 2, tile.size)
    return walked[:, :count] / (walked[:, count:] + walk.eps)


def _powers(log_affinity: Tensor, walk: Walk) -> Tensor:
    """A^alpha; with eps = 0 each row divided by its largest value, which the row sums take back."""
    if walk.eps > 0:
        return (walk.alpha * log_affinity).exp_()
    top = log_affinity.amax(dim=-1, keepdim=True)  # first the difference: alpha times the logarithm could overflow
    return (log_affinity - top).mul_(walk.alpha).exp_()


class _Tile(NamedTuple):
    """A rectangle of target tokens, and its frame: the tokens in reach, counted on the grid padded by the radius."""

    rows: slice
    columns: slice
    frame_rows: slice
    frame_columns: slice
    size: tuple[int, int]
    reach: int

    @property
    def tokens(self) -> int:
        return self.size[0] * self.size[1]

    @property
    def framed(self) -> int:
        return (self.size[0] + 2 * self.reach) * (self.size[1] + 2 * self.reach)


def _tiles(grid: tuple[int, int], reach: int) -> Iterator[_Tile]:
    for top in range(0, grid[0], _TILE[0]):
        for left in range(0, grid[1], _TILE[1]):
            bottom, right = min(grid[0], top + _TILE[0]), min(grid[1], left + _TILE[1])
            yield _Tile(
                slice(top, bottom),
                slice(left, right),
                slice(top, bottom + 2 * reach),
                slice(left, right + 2 * reach),
                (bottom - top, right - left),
                reach,
            )


def _sliding(block: Tensor, tile: _Tile) -> Tensor:
    """Products of a tile with its frame, B x targets x framed -> windows, B x height x width x 2r+1 x 2r+1, a view."""
    (height, width), side = tile.size, 2 * tile.reach + 1
    across, down = tile.framed, width + 2 * tile.reach
    shape = (len(block), height, width, side, side)
    # One target further down (right), the window lies one row (column) further in the frame.
    return block.contiguous().as_strided(shape, (height * width * across, width * across + down, across + 1, down, 1))


def _close_outside(windows: Tensor, reach: int) -> Tensor:
    """B x hs x ws x 2r+1 x 2r+1 -> window form: -inf where the neighbour lies outside the grid."""
    steps = torch.arange(-reach, reach + 1, device=windows.device)
    for axis in (1, 2):
        length = windows.shape[axis]
        place = torch.arange(length, device=windows.device)[:, None] + steps
        shape = [1, 1, 1, 1, 1]
        shape[axis], shape[axis + 2] = place.shape
        windows.masked_fill_(((place < 0) | (place >= length)).view(shape), -torch.inf)
    return windows.flatten(3)


def _check_grid(queries: Tensor, grid: tuple[int, int]) -> None:
    if queries.ndim != 4 or queries.shape[2] != grid[0] * grid[1]:
        raise ShapeError(
            f"queries: expected B x n x {grid[0] * grid[1]} x d for the grid {grid}, got {tuple(queries.shape)}"
        )
