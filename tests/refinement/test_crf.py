import builtins
import sys

import numpy as np
import pytest

from afactl.errors import DependencyError, ShapeError
from afactl.refinement.crf import dense_crf

pytest.importorskip("pydensecrf.densecrf", reason="the dense CRF needs the extra [crf]")


def slow_mean_field(image, probabilities, iterations, gaussian, gaussian_weight):
    """Mean field with the exact Gaussian kernel of position, every pair of pixels. Potts model."""
    classes, height, width = probabilities.shape
    y, x = np.mgrid[:height, :width].reshape(2, -1)
    distance = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2
    kernel = np.exp(-distance / (2 * gaussian**2))
    kernel /= np.sqrt(kernel.sum(0))[:, None] * np.sqrt(kernel.sum(0))
    unary = -np.log(probabilities.reshape(classes, -1).clip(1e-5, 1))
    q = np.exp(-unary) / np.exp(-unary).sum(0)
    for _ in range(iterations):
        q = np.exp(-unary + gaussian_weight * q @ kernel)
        q /= q.sum(0)
    return q.reshape(classes, height, width)


@pytest.fixture()
def scene():
    rng = np.random.default_rng(0)
    image = np.full((20, 24, 3), 60, np.uint8)
    image[:, 12:] = 190
    truth = (np.arange(24) >= 12).astype(int)
    confident = 0.5 + 0.2 * np.where(truth, 1, -1) + rng.normal(0, 0.25, (20, 24))
    foreground = confident.clip(0.02, 0.98)
    return image, np.stack([1 - foreground, foreground]).astype(np.float32), np.repeat(truth[None], 20, axis=0)


def test_noise_is_cleared_along_the_edge(scene):
    image, probabilities, truth = scene
    refined = dense_crf(image, probabilities)
    assert refined.shape == probabilities.shape and refined.dtype == np.float32
    np.testing.assert_allclose(refined.sum(0), 1, atol=1e-5)
    assert (probabilities.argmax(0) != truth).mean() > 0.1
    assert (refined.argmax(0) != truth).mean() < 0.02


def test_close_to_the_exact_mean_field(scene):
    """The lattice inside pydensecrf approximates the kernel; labels agree nearly everywhere."""
    image, probabilities, _ = scene
    found = dense_crf(image, probabilities, 5, gaussian_sxy=2.0, gaussian_weight=2.0, bilateral_weight=1e-9)
    exact = slow_mean_field(image, probabilities, 5, 2.0, 2.0)
    assert (found.argmax(0) == exact.argmax(0)).mean() > 0.97


def test_what_does_not_fit_is_refused(scene):
    image, probabilities, _ = scene
    with pytest.raises(ShapeError, match=r"expected \(20, 24, 3\)"):
        dense_crf(image[:5], probabilities)
    with pytest.raises(ShapeError, match="NaN"):
        dense_crf(image, probabilities * np.nan)


def test_without_the_package_one_line_says_how_to_get_it(scene, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.startswith("pydensecrf"):
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    for name in [name for name in sys.modules if name.startswith("pydensecrf")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DependencyError, match=r"pip install 'afactl\[crf\]'"):
        dense_crf(*scene[:2])
