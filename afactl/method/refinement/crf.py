"""Dense CRF (Krähenbühl and Koltun 2011): on the permutohedral lattice, and through pydensecrf.

Mean-field inference of a fully connected CRF with Potts compatibility, a Gaussian kernel over
position and a bilateral kernel over position and colour, each normalised symmetrically:

    Q <- softmax(log p + sum_m w_m N_m K_m N_m Q),   N_m = diag(K_m 1)^(-1/2)

Both functions compute the same; pydensecrf (C++) is the cross-check.

Shapes: K classes, h x w image, n = h * w points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from afactl.errors import DependencyError, ShapeError
from afactl.method.refinement.lattice import (
    Lattice,
    bilateral_features,
    build_lattice,
    lattice_filter,
    position_features,
)

# Probabilities are clipped here before the logarithm, so that no class is ruled out for good.
FLOOR = 1e-5


@dataclass(frozen=True)
class DenseCrf:
    """The kernels of a dense CRF and how long it runs.

    Attributes:
        iterations: of mean-field inference.
        gaussian_sxy, bilateral_sxy: standard deviations in pixels.
        bilateral_srgb: standard deviation in grey levels.
        gaussian_weight, bilateral_weight: of the two kernels.
        drop_below: classes nowhere above this take no part and stay at 0; saves their time.
    """

    iterations: int = 10
    gaussian_sxy: float = 3.0
    gaussian_weight: float = 3.0
    bilateral_sxy: float = 64.0
    bilateral_srgb: float = 5.0
    bilateral_weight: float = 4.0
    drop_below: float = 0.0


DEFAULT = DenseCrf()


@torch.no_grad()
def dense_crf(image: Tensor, probabilities: Tensor, settings: DenseCrf = DEFAULT) -> Tensor:
    """Refine class probabilities along the edges of a photo.

    Args:
        image: 3 x h x w RGB in 0..255.
        probabilities: K x h x w, sum to 1 over K.

    Returns:
        K x h x w float32, sums to 1 over K.

    Raises:
        ShapeError: sizes differ, or values are not finite.

    Example:
        >>> probabilities = torch.tensor([0.6, 0.4]).view(2, 1, 1).repeat(1, 4, 6)
        >>> probabilities[:, 2, 3] = torch.tensor([0.4, 0.6])  # one pixel of another mind
        >>> bool((dense_crf(torch.zeros(3, 4, 6), probabilities)[0] > 0.9).all())  # on one colour it gives in
        True
    """
    _check(image, probabilities)
    classes, height, width = probabilities.shape
    alive = _alive(probabilities, settings.drop_below)
    log_unary = probabilities[alive].float().clamp(FLOOR, 1.0).log().flatten(1).T.contiguous()
    gaussian = _position_kernel(height, width, settings.gaussian_sxy, image.device)
    bilateral = _normalized(
        build_lattice(bilateral_features(image[None], settings.bilateral_sxy, settings.bilateral_srgb)[0])
    )
    q, energy = torch.empty_like(log_unary), log_unary.clone()
    _softmax(energy, out=q)
    for _ in range(settings.iterations):  # into the same memory: fresh pages cost as much as the sums
        torch.add(log_unary, lattice_filter(q, gaussian), alpha=settings.gaussian_weight, out=energy)
        energy.add_(lattice_filter(q, bilateral), alpha=settings.bilateral_weight)
        _softmax(energy, out=q)
    refined = q.new_zeros(height * width, classes).index_copy_(1, alive, q) if len(alive) < classes else q
    return refined.T.contiguous().view(classes, height, width)


@torch.no_grad()
def dense_crfs(image: Tensor, stacks: Tensor, sizes: Tensor, settings: DenseCrf = DEFAULT) -> Tensor:
    """`dense_crf` of all stacks of all images at once, for an accelerator: few large operations, not many small ones.

    Args:
        image: B x 3 x h x w RGB in 0..255, each at the top left.
        stacks: B x T x K x h x w probabilities; a plane of zeros stands for a class that the stack lacks.
        sizes: B x 2 (h, w) of each image; what lies beyond takes no part, and its probabilities are waste.

    Returns:
        B x T x K x h x w float32.

    Example:
        >>> image, values = torch.zeros(1, 3, 4, 6), torch.tensor([0.6, 0.4, 0.0])
        >>> stacks = values.view(1, 1, 3, 1, 1).repeat(1, 1, 1, 4, 6)
        >>> alone = dense_crf(image[0], stacks[0, 0, :2])
        >>> torch.allclose(dense_crfs(image, stacks, torch.tensor([[4, 6]]))[0, 0, :2], alone, atol=1e-6)
        True
    """
    batch, count, classes, height, width = stacks.shape
    # A point beyond an image is one of its border with no weight: it adds no vertex and gives nothing to any.
    rows, columns = (
        torch.arange(side, device=sizes.device).minimum(sizes[:, axis, None] - 1)
        for axis, side in enumerate((height, width))
    )
    source = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
    real = source == torch.arange(height * width, device=sizes.device)
    peak = (stacks.flatten(3) * real[:, None, None]).amax(3)
    alive = (peak >= peak.amax(2, keepdim=True).clamp_max(settings.drop_below)) & (peak > 0)
    log_unary = stacks.float().clamp(FLOOR, 1.0).log().masked_fill(~alive[..., None, None], -torch.inf)
    log_unary = log_unary.permute(0, 3, 4, 1, 2).reshape(-1, count, classes)  # points x T x K
    kernels = []
    for features in (
        position_features(height, width, settings.gaussian_sxy, image.device).expand(batch, -1, -1),
        bilateral_features(image, settings.bilateral_sxy, settings.bilateral_srgb),
    ):
        features = features.gather(1, source[..., None].expand(-1, -1, features.shape[2]))
        kernels.append(_normalized(build_lattice(features), real.flatten().float()))
    q = log_unary.softmax(-1)
    for _ in range(settings.iterations):
        energy = log_unary
        for kernel, weight in zip(kernels, (settings.gaussian_weight, settings.bilateral_weight), strict=True):
            energy = energy + weight * lattice_filter(q.flatten(1), kernel).view_as(q)
        q = energy.softmax(-1)
    return torch.unflatten(q, 0, (batch, height, width)).permute(0, 3, 4, 1, 2).contiguous()


def _softmax(energy: Tensor, out: Tensor) -> None:
    """softmax over the last axis of n x K; overwrites `energy`."""
    if energy.shape[1] >= 16:
        torch.softmax(energy, dim=1, out=out)
        return
    # Over fewer than 16 values torch's kernel takes up to eight times as long as these steps.
    torch.exp(energy.sub_(energy.amax(dim=1, keepdim=True)), out=out)
    out.div_(out @ out.new_ones(out.shape[1], 1))


def _normalized(lattice: Lattice, real: Tensor | None = None) -> Lattice:
    """The lattice whose filter is N K N with N = diag(K 1)^(-1/2); N goes into the weights of splat and slice.

    Args:
        real: n, 1 for a point that takes part, 0 for one that does not; None: all do.
    """
    ones = lattice.weights.new_ones(len(lattice.weights)) if real is None else real
    root = (lattice_filter(ones[:, None], lattice) + 1e-20).rsqrt()
    spread = lattice.point_weights * (ones * root[:, 0])[lattice.points]
    return lattice._replace(point_weights=spread, weights=lattice.weights * root)


@lru_cache(maxsize=4)
def _position_kernel(height: int, width: int, sxy: float, device: torch.device) -> Lattice:
    # Photos of a dataset come in a few sizes, and this kernel depends on nothing else.
    return _normalized(build_lattice(position_features(height, width, sxy, device)))


def _alive(probabilities: Tensor, drop_below: float) -> Tensor:
    """Indices of the classes that are somewhere at least as probable; never none at all."""
    peak = probabilities.flatten(1).amax(1)
    return (peak >= min(drop_below, float(peak.max()))).nonzero()[:, 0]


def _check(image: Tensor, probabilities: Tensor) -> None:
    if probabilities.ndim != 3 or 0 in probabilities.shape:
        raise ShapeError(f"probabilities: expected K x h x w, got {tuple(probabilities.shape)}")
    expected = (3, *probabilities.shape[1:])
    if tuple(image.shape) != expected:
        raise ShapeError(
            f"image: expected {expected} for probabilities {tuple(probabilities.shape)}, got {tuple(image.shape)}"
        )
    if not torch.isfinite(probabilities).all():
        raise ShapeError("probabilities: expected finite values, got NaN or infinity")


def require_pydensecrf() -> None:
    """Fail early, before any image is read.

    Raises:
        DependencyError: pydensecrf is not installed; says how to get it.

    Example:
        >>> require_pydensecrf()  # says nothing where it is installed
    """
    try:
        import pydensecrf.densecrf  # noqa: F401  (to see whether it is there and loads)
    except ImportError as error:
        raise DependencyError(
            "--crf-backend pydensecrf needs pydensecrf, which is not installed: pip install 'afactl[crf]' "
            "(needs a C++ compiler), or use --crf-backend torch"
        ) from error


def dense_crf_pydensecrf(image: Tensor, probabilities: Tensor, settings: DenseCrf = DEFAULT) -> Tensor:
    """The same as `dense_crf` by pydensecrf, on the CPU.

    Raises:
        DependencyError: pydensecrf is not installed. ShapeError: as in `dense_crf`.

    Example:
        >>> probabilities = torch.tensor([0.6, 0.4]).view(2, 1, 1).repeat(1, 4, 6)
        >>> dense_crf_pydensecrf(torch.zeros(3, 4, 6), probabilities).shape
        torch.Size([2, 4, 6])
    """
    require_pydensecrf()
    from pydensecrf.densecrf import DenseCRF2D

    _check(image, probabilities)
    classes, height, width = probabilities.shape
    alive = _alive(probabilities, settings.drop_below)
    unary = -probabilities[alive].cpu().float().clamp(FLOOR, 1.0).log().flatten(1)
    crf = DenseCRF2D(width, height, len(alive))
    crf.setUnaryEnergy(np.ascontiguousarray(unary.numpy()))
    crf.addPairwiseGaussian(sxy=settings.gaussian_sxy, compat=settings.gaussian_weight)
    pixels = image.permute(1, 2, 0).to("cpu", torch.uint8).numpy().copy(order="C")
    crf.addPairwiseBilateral(
        sxy=settings.bilateral_sxy, srgb=settings.bilateral_srgb, rgbim=pixels, compat=settings.bilateral_weight
    )
    q = torch.from_numpy(np.asarray(crf.inference(settings.iterations), dtype=np.float32))
    refined = torch.zeros(classes, height * width, device=probabilities.device)
    refined[alive] = q.to(probabilities.device)
    return refined.view(classes, height, width)


# What `--crf-backend` offers.
CRF_BACKENDS: dict[str, Callable[[Tensor, Tensor, DenseCrf], Tensor]] = {
    "torch": dense_crf,
    "pydensecrf": dense_crf_pydensecrf,
}


def crf_label(photo: tuple[Tensor, Tensor], backend: str, settings: DenseCrf) -> Tensor:
    """The refined label of one photo, in a form that can be mapped over many, in other processes too.

    Args:
        photo: (3 x h x w image in 0..255, K x h x w logits).
        backend: one of CRF_BACKENDS.

    Returns:
        h x w uint8.

    Example:
        >>> photo = torch.zeros(3, 4, 6), torch.tensor([0.0, 2.0]).view(2, 1, 1).repeat(1, 4, 6)  # image, logits
        >>> crf_label(photo, "torch", DenseCrf()).unique()
        tensor([1], dtype=torch.uint8)
    """
    image, logits = photo
    return CRF_BACKENDS[backend](image, logits.softmax(0), settings).max(dim=0).indices.to(torch.uint8)
