"""Dense CRF (Krähenbühl and Koltun 2011) through pydensecrf.

Mean-field inference of a fully connected CRF with Potts compatibility, a Gaussian kernel over
position and a bilateral kernel over position and colour.
"""

from __future__ import annotations

import numpy as np

from afactl.errors import DependencyError, ShapeError

# Probabilities are clipped here before the logarithm, so that no class is ruled out for good.
FLOOR = 1e-5


def require_pydensecrf() -> None:
    """Fail early, before any image is read.

    Raises:
        DependencyError: pydensecrf is not installed; says how to get it.
    """
    try:
        import pydensecrf.densecrf  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            "--crf needs pydensecrf, which is not installed: pip install 'afactl[crf]' (needs a C++ compiler)"
        ) from error


def dense_crf(
    image: np.ndarray,
    probabilities: np.ndarray,
    iterations: int = 10,
    gaussian_sxy: float = 3.0,
    gaussian_weight: float = 3.0,
    bilateral_sxy: float = 64.0,
    bilateral_srgb: float = 5.0,
    bilateral_weight: float = 4.0,
) -> np.ndarray:
    """Refine class probabilities along the edges of a photo.

    Args:
        image: h x w x 3 uint8 RGB.
        probabilities: K x h x w, sum to 1 over K.
        iterations: of mean-field inference.
        gaussian_sxy, bilateral_sxy: standard deviations in pixels.
        bilateral_srgb: standard deviation in grey levels.
        gaussian_weight, bilateral_weight: of the two kernels.

    Returns:
        K x h x w float32, sums to 1 over K.

    Raises:
        DependencyError: pydensecrf is not installed. ShapeError: sizes differ, or not finite.
    """
    require_pydensecrf()
    from pydensecrf.densecrf import DenseCRF2D

    classes, height, width = probabilities.shape
    if image.shape != (height, width, 3):
        raise ShapeError(f"image: expected {(height, width, 3)} for probabilities {probabilities.shape}, got {image.shape}")
    if not np.isfinite(probabilities).all():
        raise ShapeError("probabilities: expected finite values, got NaN or infinity")
    unary = -np.log(np.clip(probabilities, FLOOR, 1.0)).reshape(classes, -1)
    crf = DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(np.ascontiguousarray(unary, dtype=np.float32))
    crf.addPairwiseGaussian(sxy=gaussian_sxy, compat=gaussian_weight)
    crf.addPairwiseBilateral(
        sxy=bilateral_sxy, srgb=bilateral_srgb, rgbim=np.array(image, order="C"), compat=bilateral_weight
    )
    return np.asarray(crf.inference(iterations), dtype=np.float32).reshape(classes, height, width)
