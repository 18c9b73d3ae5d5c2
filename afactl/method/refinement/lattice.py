"""Permutohedral lattice: Gaussian filtering in any number of feature dimensions (Adams et al. 2010).

The value of every point is spread over the d + 1 vertices of the lattice simplex around it
(splat), blurred along the d + 1 lattice axes, and read back (slice). So the sum over all pairs
of points, exp(-|f_i - f_j|^2 / 2) v_j, costs time linear in the points.

All three steps are weighted sums over lists of rows, for which torch has one quick kernel on every
device, `embedding_bag`.

Shapes: n points, d feature dimensions, m lattice vertices, c channels of values.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from afactl.errors import ShapeError

# Beyond this many standard deviations single precision no longer tells neighbouring simplices apart.
LIMIT = 1e5
# Of a key of a vertex; a margin for the rounding of their logarithms.
BITS = 63 - 1e-3


class Lattice(NamedTuple):
    """Where each of n points lies among m vertices. Built by `build_lattice`, used by `lattice_filter`.

    Attributes:
        vertices: n x (d+1) int32, the vertices around each point.
        weights: n x (d+1), their barycentric weights; each row sums to 1.
        points: n (d+1) int32, the points of each vertex, vertex after vertex.
        point_weights: n (d+1), the weights in that order.
        starts: m + 1 int32, where each vertex's points start; the last entry is the empty row m.
        neighbors: (d+1) x (m+1) x 3 int32, per axis: the vertex, the one behind, the one ahead;
            m where there is none.
    """

    vertices: Tensor
    weights: Tensor
    points: Tensor
    point_weights: Tensor
    starts: Tensor
    neighbors: Tensor

    @property
    def dimensions(self) -> int:
        """d."""
        return self.vertices.shape[1] - 1

    @property
    def size(self) -> int:
        """m, the number of vertices."""
        return len(self.starts) - 1


def build_lattice(features: Tensor) -> Lattice:
    """Place points on the lattice.

    Args:
        features: n x d (one set of points) or B x n x d (B sets that do not see each other, whose
            points are then numbered through), divided by the standard deviations.

    Raises:
        ShapeError: no points, not finite, or so far spread that the keys leave 63 bits.

    Example:
        >>> lattice = build_lattice(torch.tensor([[0.1, 0.2], [0.1, 0.2], [5.0, 5.0]]))
        >>> lattice.dimensions, lattice.size  # two triangles, each with three vertices
        (2, 6)
    """
    if features.ndim not in (2, 3) or 0 in features.shape:
        raise ShapeError(f"features: expected n x d or B x n x d, got {tuple(features.shape)}")
    sets = features.shape[0] if features.ndim == 3 else 1
    flat = features.detach().reshape(-1, features.shape[-1])
    # What is out of bounds is told at the end, by the one question that the host asks; until then it is cut off.
    nearest, rank, weights = _enclosing_simplex(torch.nan_to_num(flat, nan=LIMIT).clamp_(-LIMIT, LIMIT))
    keys, steps, bits = _vertex_keys(nearest, rank, sets)

    count, corners = len(flat), len(weights)
    ordered, order = keys.flatten().sort()
    first = torch.ones_like(ordered, dtype=torch.bool)
    torch.ne(ordered[1:], ordered[:-1], out=first[1:])
    number = first.cumsum(0, dtype=torch.int32) - 1
    size = _size(flat, number, bits)
    starts = torch.searchsorted(number, torch.arange(size + 1, dtype=torch.int32, device=flat.device), out_int32=True)
    vertices = torch.empty_like(number)
    vertices[order] = number
    return Lattice(
        vertices=vertices.view(corners, count).T.contiguous(),
        weights=weights.T.contiguous(),
        points=(order % count).int(),
        point_weights=weights.flatten()[order],
        starts=starts,
        neighbors=_neighbors(ordered[starts[:-1].long()], steps),
    )


def _size(features: Tensor, number: Tensor, bits: Tensor) -> int:
    """How many vertices there are, if the features can be placed at all: everything that the host has to know, at once.

    Args:
        features: n x d. number: of the vertex of each corner in the order of the keys. bits: that the keys need.

    Raises:
        ShapeError: as `build_lattice`.
    """
    peak = features.abs().max() * features.shape[-1]  # NaN where one is
    facts = torch.stack([number[-1] + 1, torch.isfinite(peak), peak <= LIMIT, bits < BITS]).tolist()
    size, finite, near, fit = int(facts[0]), *map(bool, facts[1:])
    if not finite:
        raise ShapeError("features: expected finite values, got NaN or infinity")
    if not near:
        raise ShapeError(
            f"features: expected values up to {LIMIT:g} / d, got {features.abs().max():g}; "
            "use larger standard deviations"
        )
    if not fit:
        raise ShapeError(
            f"features: spread so far that the keys of vertices need {bits:.1f} bits, which do not fit 63; "
            "use larger standard deviations"
        )
    return size


def _enclosing_simplex(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The simplex around each of n points in d dimensions.

    Returns:
        nearest: (d+1) x n int64, the vertex of remainder 0. rank: (d+1) x n int64, the order of
        the coordinates' distances from it, 0 the largest. weights: (d+1) x n, barycentric, of
        the vertices of remainder 0..d.
    """
    count, d = features.shape
    # Scaled so that the blur of the lattice has standard deviation 1 (Adams et al., 3.1). Rounded
    # where pydensecrf rounds: colours are whole numbers, so many points lie on the border of two
    # simplices, and the last bit decides which vertices there are.
    unit = torch.tensor((2 / 3) ** 0.5 * (d + 1), dtype=torch.float32).item()
    scale = [unit / ((i + 1) * (i + 2)) ** 0.5 for i in range(d)]
    elevated = features.new_empty(d + 1, count)
    total = features.new_zeros(count)
    for i in range(d, 0, -1):
        coordinate = features[:, i - 1] * scale[i - 1]
        elevated[i] = total - i * coordinate
        total = total + coordinate
    elevated[0] = total

    shrink = 1 / (d + 1)
    rounded = (elevated * shrink).round_()
    excess = rounded.sum(0).long()
    nearest = rounded.mul_(d + 1)
    offset = elevated - nearest
    rank = torch.zeros(d + 1, count, dtype=torch.int64, device=features.device)
    for i in range(d):
        for j in range(i + 1, d + 1):
            behind = offset[i] < offset[j]
            rank[i] += behind
            rank[j] += ~behind
    # Back onto the plane where the coordinates sum to zero.
    rank += excess
    wrap = (rank < 0).long() - (rank > d).long()
    rank += wrap * (d + 1)
    nearest = nearest.long() + wrap * (d + 1)

    offset = (elevated - nearest) * shrink
    by_rank = torch.empty_like(offset).scatter_(0, rank, offset)
    # Weight of remainder k: b_k = v_(d-k) - v_(d-k+1), and b_0 = 1 + v_(d) - v_(0).
    falling = by_rank.flip(0)
    weights = falling - torch.cat([by_rank[:1] - 1, falling[:-1]])
    return nearest, rank, weights


def _vertex_keys(nearest: Tensor, rank: Tensor, sets: int) -> tuple[Tensor, Tensor, Tensor]:
    """One int64 per vertex of each simplex, what to add to a key for a step along each axis, and the bits of a key.

    A vertex is known by its first d coordinates. They are packed in mixed radix with a margin of
    one step, so a step never carries into the next coordinate.
    """
    corners, count = nearest.shape
    d = corners - 1
    low, high = nearest[:d].amin(1) - 2 * corners, nearest[:d].amax(1) + 2 * corners
    spans = high - low + 1
    bits = spans.float().log2().sum() + math.log2(sets)
    # Entry i is the product of the spans before it; the last one is the room of a whole set.
    radix = torch.cat([torch.ones_like(spans[:1]), spans]).cumprod(0)
    base = torch.zeros(count, dtype=torch.int64, device=nearest.device)
    for i in range(d):
        base += (nearest[i] - low[i]) * radix[i]
    if sets > 1:
        numbers = torch.arange(sets, device=nearest.device).repeat_interleave(count // sets)
        base += numbers * radix[-1]
    # From remainder k - 1 to k all coordinates grow by 1, but the one of rank d - k + 1 falls by d.
    weights = torch.cat([radix[:d], torch.zeros_like(radix[:1])])
    by_rank = torch.empty_like(rank).scatter_(0, rank, weights[:, None].expand(-1, count))
    keys = torch.empty_like(nearest)
    keys[0] = base
    whole = weights.sum()
    for k in range(1, corners):
        torch.sub(keys[k - 1] + whole, by_rank[d - k + 1], alpha=corners, out=keys[k])
    return keys, whole - corners * weights, bits


def _neighbors(unique: Tensor, steps: Tensor) -> Tensor:
    """(d+1) x (m+1) x 3 rows: the vertex, the one a step behind and the one a step ahead, or m.

    Args:
        unique: m keys, sorted. steps: d + 1, what a step along each axis adds to a key.
    """
    size = len(unique)
    wanted = unique + steps[:, None]
    place = torch.searchsorted(unique, wanted).clamp_max_(size - 1)
    itself = torch.arange(size + 1, device=unique.device).expand(len(steps), -1)
    ahead = torch.full_like(itself, size)
    ahead[:, :-1] = torch.where(unique[place] == wanted, place, size)
    # A step ahead is a step behind for the other one; the empty row takes what has no match.
    behind = torch.full_like(itself, size).scatter_(1, ahead, itself)
    behind[:, -1].fill_(size)
    return torch.stack([itself, behind, ahead], dim=2).int()


class _Filter(torch.autograd.Function):
    """A v with A = alpha S^T B_d .. B_0 S; each blur B_i is symmetric, so A^T only turns their order."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, lattice: Lattice, adjoint: bool) -> Tensor:
        ctx.lattice, ctx.adjoint = lattice, adjoint
        return _splat_blur_slice(values, lattice, adjoint)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _splat_blur_slice(gradient, ctx.lattice, not ctx.adjoint), None, None


def lattice_filter(values: Tensor, lattice: Lattice, adjoint: bool = False) -> Tensor:
    """Filter values with the Gaussian of unit standard deviation over the lattice's features.

    Approximates sum_j exp(-|f_i - f_j|^2 / 2) v_j, the point itself included, up to a nearly
    constant factor; divide by the filtered ones where a mean is wanted. The operator is linear and
    not exactly symmetric; gradients are its exact adjoint.

    Args:
        values: n x c float32, in the order of the lattice's points.
        adjoint: apply the transposed operator.

    Returns:
        n x c.

    Raises:
        ShapeError: not as many rows as the lattice has points.

    Example:
        >>> lattice = build_lattice(torch.tensor([[0.0, 0.0], [0.0, 0.0], [50.0, 50.0]]))
        >>> ones = torch.ones(3, 1)
        >>> (lattice_filter(torch.tensor([[1.0], [3.0], [9.0]]), lattice) / lattice_filter(ones, lattice)).flatten()
        tensor([2., 2., 9.])
    """
    if values.ndim != 2 or len(values) != len(lattice.vertices):
        raise ShapeError(f"values: expected {len(lattice.vertices)} x c, got {tuple(values.shape)}")
    filtered: Tensor = _Filter.apply(values, lattice, adjoint)
    return filtered


def _splat_blur_slice(values: Tensor, lattice: Lattice, adjoint: bool) -> Tensor:
    values = values.contiguous()
    # The last bag is empty: row m stays zero and stands for neighbours that are not there.
    rows = F.embedding_bag(
        lattice.points, values, lattice.starts, mode="sum", per_sample_weights=lattice.point_weights.to(values.dtype)
    )
    blur = values.new_full((lattice.size + 1, 3), 0.5)
    blur[:, 0].fill_(1.0)
    axes = list(lattice.neighbors.flip(0) if adjoint else lattice.neighbors)
    for number, neighbors in enumerate(axes, start=1):
        if number == len(axes):
            # The blur's own gain, as Krähenbühl and Koltun take it out.
            blur = blur / (1 + 2.0**-lattice.dimensions)
        rows = F.embedding_bag(neighbors, rows, mode="sum", per_sample_weights=blur)
        rows[-1].zero_()
    return F.embedding_bag(lattice.vertices, rows, mode="sum", per_sample_weights=lattice.weights.to(values.dtype))


def position_features(height: int, width: int, sigma_xy: float, device: torch.device) -> Tensor:
    """n x 2: (x, y) of each pixel, in standard deviations; n = height * width, row by row.

    Example:
        >>> position_features(1, 3, 2.0, torch.device("cpu")).tolist()
        [[0.0, 0.0], [0.5, 0.0], [1.0, 0.0]]
    """
    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1).float() / sigma_xy


def bilateral_features(image: Tensor, sigma_xy: float, sigma_rgb: float) -> Tensor:
    """B x n x 5: (x, y, r, g, b) of each pixel of B x 3 x h x w images in 0..255, in standard deviations.

    Example:
        >>> bilateral_features(torch.full((1, 3, 1, 2), 30.0), 1.0, 10.0).tolist()
        [[[0.0, 0.0, 3.0, 3.0, 3.0], [1.0, 0.0, 3.0, 3.0, 3.0]]]
    """
    height, width = image.shape[2:]
    positions = position_features(height, width, sigma_xy, image.device)
    colors = image.float().flatten(2).transpose(1, 2) / sigma_rgb
    return torch.cat([positions.expand(len(image), -1, -1), colors], dim=2)
