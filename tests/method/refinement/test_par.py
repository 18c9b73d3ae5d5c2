import pytest
import torch
from torch.nn.functional import interpolate

from afactl.errors import ShapeError
from afactl.method.refinement.neighborhood import refine_by_neighbors, refine_together
from afactl.method.refinement.pamr import pamr_kernel
from afactl.method.refinement.par import DILATIONS, par_kernel, pixel_adaptive_refinement
from tests import golden

DIRECTIONS = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]


def slow_par(image, scores, dilations, iterations, w1, w2, w3):
    """Eq. 8-10 pixel by pixel, in float64. image 3 x h x w, scores P x h x w."""
    image, scores = image.double(), scores.double()
    _, height, width = image.shape
    steps = [(d * dy, d * dx) for d in dilations for dy, dx in DIRECTIONS]
    distance = torch.tensor([(dy * dy + dx * dx) ** 0.5 for dy, dx in steps], dtype=torch.float64)
    position = torch.softmax(-((distance / (w2 * (distance.std() + 1e-8))) ** 2), dim=0)
    for _ in range(iterations):
        refined = torch.zeros_like(scores)
        for y in range(height):
            for x in range(width):
                near = [(min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)) for dy, dx in steps]
                colors = torch.stack([image[:, ny, nx] for ny, nx in near])
                difference = (colors - image[:, y, x]).abs()
                kappa = -((difference / (w1 * (colors.std(dim=0) + 1e-8))) ** 2).mean(dim=1)
                kernel = torch.softmax(kappa, dim=0) + w3 * position
                refined[:, y, x] = sum(k * scores[:, ny, nx] for k, (ny, nx) in zip(kernel, near, strict=True))
        scores = refined
    return scores.float()


@pytest.mark.parametrize("dilations", [(1,), (1, 3), (2, 5)])
def test_equals_the_slow_loop(dilations):
    torch.manual_seed(0)
    image = (torch.rand(3, 7, 9) * 255).round()
    image[:, 2:5, 3:6] = 80.0  # flat ground, where the deviation is small
    scores = torch.rand(2, 7, 9)
    found = pixel_adaptive_refinement(image[None], scores[None], dilations, 2, 0.3, 0.4, 0.05)[0]
    torch.testing.assert_close(found, slow_par(image, scores, dilations, 2, 0.3, 0.4, 0.05), atol=1e-5, rtol=0)


def test_an_image_of_one_colour_is_smoothed_evenly():
    image = torch.full((1, 3, 6, 6), 128.0)
    found = pixel_adaptive_refinement(image, torch.rand(1, 2, 6, 6), iterations=3)
    assert torch.isfinite(found).all()


def test_scores_grow_by_one_plus_w3():
    image = torch.rand(1, 3, 12, 15) * 255
    found = pixel_adaptive_refinement(image, torch.ones(1, 1, 12, 15), iterations=10)
    torch.testing.assert_close(found, torch.full_like(found, 1.01**10), atol=1e-4, rtol=0)


def test_images_of_a_batch_do_not_touch_each_other():
    torch.manual_seed(0)
    image, scores = torch.rand(3, 3, 20, 26) * 255, torch.rand(3, 2, 20, 26)
    together = pixel_adaptive_refinement(image, scores)
    alone = torch.cat([pixel_adaptive_refinement(image[i : i + 1], scores[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_small_scores_are_brought_to_the_image_with_aligned_corners():
    torch.manual_seed(0)
    image, scores = torch.rand(1, 3, 16, 20) * 255, torch.rand(1, 2, 4, 5)
    resized = interpolate(scores, size=(16, 20), mode="bilinear", align_corners=True)
    assert torch.equal(pixel_adaptive_refinement(image, scores), pixel_adaptive_refinement(image, resized))


def test_nothing_is_changed_in_place():
    image, scores = torch.rand(1, 3, 8, 8) * 255, torch.rand(1, 2, 8, 8)
    before = image.clone(), scores.clone()
    pixel_adaptive_refinement(image, scores)
    assert torch.equal(image, before[0]) and torch.equal(scores, before[1])


@pytest.mark.parametrize(
    ("image", "scores", "dilations"),
    [
        ((1, 4, 8, 8), (1, 2, 8, 8), DILATIONS),
        ((1, 3, 8, 8), (2, 2, 8, 8), DILATIONS),
        ((1, 3, 8, 8), (1, 2, 8, 8), ()),
    ],
)
def test_refuses_what_does_not_fit(image, scores, dilations):
    with pytest.raises(ShapeError, match="expected"):
        pixel_adaptive_refinement(torch.rand(image), torch.rand(scores), dilations)


@pytest.mark.parametrize("case", [0, 1, 2])
@pytest.mark.parametrize("iterations", [1, 10])
def test_golden(case, iterations):
    values = golden.load("par")
    image = values[f"{case}_image"].permute(2, 0, 1)[None]
    found = pixel_adaptive_refinement(image, values[f"{case}_mask"], iterations=iterations)
    torch.testing.assert_close(found, values[f"{case}_out_{iterations}"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("kernel_of", [par_kernel, pamr_kernel])
@pytest.mark.parametrize("dilations", [(1, 2, 4), (1, 3, 12)])
def test_images_side_by_side_are_refined_as_each_alone(kernel_of, dilations):
    """The form of accelerators, here on the CPU: images of different sizes in one batch."""
    torch.manual_seed(0)
    sizes = torch.tensor([[9, 14], [16, 5], [1, 1], [16, 18]])
    image, planes = torch.randint(0, 256, (4, 3, 16, 18)).float(), torch.rand(4, 5, 16, 18)
    kernel = kernel_of(dilations)
    together = refine_together(image, planes, sizes, dilations, 3, kernel)
    for i, (height, width) in enumerate(sizes.tolist()):
        part = slice(i, i + 1), slice(None), slice(height), slice(width)
        alone = refine_by_neighbors(image[part], planes[part], dilations, 3, kernel)
        torch.testing.assert_close(together[part], alone, rtol=1e-5, atol=1e-6)
