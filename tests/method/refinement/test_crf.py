"""The dense CRF: against the exact Gaussian by brute force, and the two implementations against each other."""

import builtins
import importlib.util
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from afactl.errors import DependencyError, ShapeError
from afactl.method.refinement.crf import CRF_BACKENDS, DenseCrf, dense_crf, dense_crf_pydensecrf, dense_crfs

BACKENDS = list(CRF_BACKENDS) if importlib.util.find_spec("pydensecrf") else ["torch"]
needs_pydensecrf = pytest.mark.skipif(len(BACKENDS) == 1, reason="the cross-check needs the extra [crf]")


def slow_mean_field(image, probabilities, iterations, gaussian, gaussian_weight, xy, rgb, bilateral_weight):
    """Mean field with exact Gaussian kernels, every pair of pixels. Potts model."""
    classes, height, width = probabilities.shape
    y, x = np.mgrid[:height, :width].reshape(2, -1)
    distance = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2
    colors = image.reshape(3, -1).astype(float)
    contrast = ((colors[:, :, None] - colors[:, None]) ** 2).sum(0)
    kernels = [np.exp(-distance / (2 * gaussian**2)), np.exp(-distance / (2 * xy**2) - contrast / (2 * rgb**2))]
    kernels = [kernel / np.sqrt(kernel.sum(0))[:, None] / np.sqrt(kernel.sum(0)) for kernel in kernels]
    unary = -np.log(probabilities.reshape(classes, -1).clip(1e-5, 1))
    q = np.exp(-unary) / np.exp(-unary).sum(0)
    for _ in range(iterations):
        q = np.exp(-unary + gaussian_weight * q @ kernels[0] + bilateral_weight * q @ kernels[1])
        q /= q.sum(0)
    return q.reshape(classes, height, width)


@pytest.fixture
def scene():
    rng = np.random.default_rng(0)
    image = np.full((3, 20, 24), 60, np.uint8)
    image[:, :, 12:] = 190
    truth = (np.arange(24) >= 12).astype(int)
    confident = 0.5 + 0.2 * np.where(truth, 1, -1) + rng.normal(0, 0.25, (20, 24))
    foreground = confident.clip(0.02, 0.98)
    probabilities = np.stack([1 - foreground, foreground]).astype(np.float32)
    return torch.from_numpy(image), torch.from_numpy(probabilities), np.repeat(truth[None], 20, axis=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_noise_is_cleared_along_the_edge(scene, backend):
    image, probabilities, truth = scene
    refined = CRF_BACKENDS[backend](image, probabilities)
    assert refined.shape == probabilities.shape and refined.dtype == torch.float32
    torch.testing.assert_close(refined.sum(0), torch.ones(20, 24), atol=1e-4, rtol=0)
    before, after = ((p.numpy().argmax(0) != truth).mean() for p in (probabilities, refined))
    assert before > 0.1 and after < 0.01


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_mean_field_with_the_exact_kernels(scene, backend):
    """The lattice approximates the Gaussian, so the agreement is coarse; a wrong sign or weight is far off."""
    image, probabilities, _ = scene
    arguments = {
        "iterations": 5,
        "gaussian_sxy": 2.0,
        "gaussian_weight": 1.5,
        "bilateral_sxy": 8.0,
        "bilateral_srgb": 40.0,
        "bilateral_weight": 1.0,
    }
    found = CRF_BACKENDS[backend](image, probabilities, DenseCrf(**arguments))
    exact = slow_mean_field(image.numpy(), probabilities.numpy(), *arguments.values())
    assert abs(found.numpy() - exact).mean() < 0.02
    assert abs(probabilities.numpy() - exact).mean() > 0.15


@needs_pydensecrf
@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (33, 47)])
@pytest.mark.parametrize("classes", [1, 2, 6])
def test_both_backends_give_the_same(shape, classes):
    rng = np.random.default_rng(classes)
    image = torch.from_numpy(rng.integers(0, 256, (3, *shape)).astype(np.uint8))
    probabilities = torch.from_numpy(rng.dirichlet(np.ones(classes), shape).astype(np.float32)).permute(2, 0, 1)
    torch.testing.assert_close(
        dense_crf(image, probabilities), dense_crf_pydensecrf(image, probabilities), atol=1e-4, rtol=0
    )


def coarse_scores(mask, classes, seed):
    """Probabilities as a network gives them: the mask at low resolution with errors, smoothly enlarged."""
    rng = torch.Generator().manual_seed(seed)
    truth = torch.nn.functional.one_hot(torch.from_numpy(np.where(mask == 255, 0, mask)).long(), classes)
    small = (mask.shape[0] // 24, mask.shape[1] // 24)
    logits = torch.nn.functional.interpolate(truth.permute(2, 0, 1)[None].float(), size=small, mode="area")
    logits = 4 * (logits + 0.3 * torch.randn(logits.shape, generator=rng))
    return torch.nn.functional.interpolate(logits, size=mask.shape, mode="bilinear").softmax(1)[0]


@needs_pydensecrf
def test_photos_of_voc_equal_pydensecrf(shared):
    """At the settings of the paper: at least 99.9 % of pixels equal, no Q further off than 1e-3."""
    root = shared / "data/voc-mini/VOCdevkit/VOC2012"
    names = (root / "ImageSets/Segmentation/val.txt").read_text().split()
    for number, name in enumerate(names[::9]):
        image = torch.from_numpy(np.array(Image.open(root / f"JPEGImages/{name}.jpg").convert("RGB"))).permute(2, 0, 1)
        scores = coarse_scores(np.array(Image.open(root / f"SegmentationClass/{name}.png")), 21, number)
        ours, theirs = dense_crf(image, scores), dense_crf_pydensecrf(image, scores)
        assert (ours.argmax(0) == theirs.argmax(0)).float().mean() >= 0.999, name
        assert (ours - theirs).abs().max() < 1e-3, name
        assert (ours.argmax(0) != scores.argmax(0)).float().mean() > 0.01, "the CRF has something to do"
        dropped = dense_crf(image, scores, DenseCrf(drop_below=1e-3))
        assert (dropped - theirs).abs().max() < 2e-3 and (dropped.argmax(0) == theirs.argmax(0)).float().mean() >= 0.999


@pytest.mark.parametrize("backend", BACKENDS)
def test_odd_pictures_are_refined_too(backend):
    flat = torch.full((3, 9, 11), 77, dtype=torch.uint8)
    probabilities = torch.rand(3, 9, 11).softmax(0)
    probabilities[2] = 0  # a class that is nowhere
    for image, scores in (
        (flat, probabilities),
        (flat[:, :1], probabilities[:, :1]),
        (flat[:, :1, :1], probabilities[:, :1, :1]),
    ):
        refined = CRF_BACKENDS[backend](image, scores / scores.sum(0))
        assert torch.isfinite(refined).all() and refined[2].max() < 0.01


def test_dropped_classes_stay_at_zero(scene):
    image, probabilities, _ = scene
    three = torch.cat([probabilities * 0.9999, torch.full((1, 20, 24), 1e-4)])
    dropped = dense_crf(image, three, DenseCrf(drop_below=1e-3))
    assert dropped[2].max() == 0
    torch.testing.assert_close(dropped[:2], dense_crf(image, three)[:2], atol=1e-3, rtol=0)
    assert torch.isfinite(dense_crf(image, three, DenseCrf(drop_below=1.0))).all(), "one class at least stays"


@pytest.mark.parametrize("backend", BACKENDS)
def test_input_that_does_not_fit_is_refused(scene, backend):
    image, probabilities, _ = scene
    with pytest.raises(ShapeError, match=r"expected \(3, 20, 24\)"):
        CRF_BACKENDS[backend](image[:, :5], probabilities)
    with pytest.raises(ShapeError, match="NaN"):
        CRF_BACKENDS[backend](image, probabilities * float("nan"))
    with pytest.raises(ShapeError, match="expected K x h x w"):
        CRF_BACKENDS[backend](image, probabilities[0])


def test_without_the_package_one_line_says_how_to_get_it(scene, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("pydensecrf")]:
        monkeypatch.delitem(sys.modules, name)
    original = builtins.__import__

    def missing(name, *arguments, **options):
        if name.startswith("pydensecrf"):
            raise ImportError(name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(DependencyError, match=r"pip install 'afactl\[crf\]'"):
        dense_crf_pydensecrf(*scene[:2])
    assert torch.isfinite(dense_crf(*scene[:2])).all(), "the one in torch needs nothing"


@pytest.mark.parametrize("drop_below", [0.0, 0.3])
def test_a_batch_is_each_stack_of_each_image_alone(drop_below):
    """Images of several sizes side by side, stacks with several classes; what lies beyond an image changes nothing."""
    torch.manual_seed(0)
    settings = DenseCrf(iterations=4, bilateral_sxy=20.0, bilateral_srgb=20.0, drop_below=drop_below)
    image = (60 * torch.rand(3, 3, 1, 1) + 40 * torch.rand(3, 3, 18, 22)).round()
    sizes, classes = torch.tensor([[18, 22], [11, 22], [5, 7]]), (4, 2, 3)
    stacks = torch.zeros(3, 2, 4, 18, 22)
    for stack, count in zip(stacks, classes, strict=True):
        scales = torch.rand(2, count, 1, 1) * 3
        stack[:, :count] = (scales * torch.randn(2, count, 18, 22)).softmax(1)
    stacks[0, 0, 3] *= 1e-3  # nowhere above a threshold
    for stack, (height, width) in zip(stacks, sizes.tolist(), strict=True):
        stack[..., height:, :] = stack[..., :, width:] = 1
    together = dense_crfs(image, stacks, sizes, settings)
    for number, ((height, width), count) in enumerate(zip(sizes.tolist(), classes, strict=True)):
        inside = together[number, :, :, :height, :width]
        assert not inside[:, count:].any()
        for refined, stack in zip(inside, stacks[number], strict=True):
            alone = dense_crf(image[number, :, :height, :width], stack[:count, :height, :width], settings)
            torch.testing.assert_close(refined[:count], alone, atol=1e-5, rtol=0)
