import pytest
import torch

from afactl.errors import ShapeError
from afactl.method.refinement.pamr import pixel_adaptive_mask_refinement
from afactl.method.refinement.par import pixel_adaptive_refinement

DIRECTIONS = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]


def slow_pamr(image, scores, dilations, iterations, smoothness):
    """Pixel by pixel, in float64. image 3 x h x w, scores P x h x w."""
    image, scores = image.double(), scores.double()
    _, height, width = image.shape
    steps = [(d * dy, d * dx) for d in dilations for dy, dx in DIRECTIONS]
    for _ in range(iterations):
        refined = torch.zeros_like(scores)
        for y in range(height):
            for x in range(width):
                near = [(min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)) for dy, dx in steps]
                colors = torch.stack([image[:, ny, nx] for ny, nx in near])
                difference = (colors - image[:, y, x]).abs()
                kappa = -(difference / (smoothness * (colors.std(dim=0) + 1e-8))).mean(dim=1)
                kernel = torch.softmax(kappa, dim=0)
                refined[:, y, x] = sum(k * scores[:, ny, nx] for k, (ny, nx) in zip(kernel, near, strict=True))
        scores = refined
    return scores.float()


@pytest.mark.parametrize("dilations", [(1,), (2, 5)])
def test_equals_the_slow_loop(dilations):
    torch.manual_seed(0)
    image = (torch.rand(3, 7, 9) * 255).round()
    image[:, 2:5, 3:6] = 80.0
    scores = torch.rand(2, 7, 9)
    found = pixel_adaptive_mask_refinement(image[None], scores[None], dilations, 2, 0.2)[0]
    torch.testing.assert_close(found, slow_pamr(image, scores, dilations, 2, 0.2), atol=1e-5, rtol=0)


def test_rows_sum_to_one_as_there_is_no_position_term():
    found = pixel_adaptive_mask_refinement(torch.rand(1, 3, 12, 15) * 255, torch.ones(1, 1, 12, 15))
    torch.testing.assert_close(found, torch.ones(1, 1, 12, 15), atol=1e-5, rtol=0)


def test_it_is_not_par():
    torch.manual_seed(0)
    image, scores = torch.rand(1, 3, 12, 15) * 255, torch.rand(1, 2, 12, 15)
    par = pixel_adaptive_refinement(image, scores, w3=0.0)
    assert (pixel_adaptive_mask_refinement(image, scores) - par).abs().max() > 0.01


def test_refuses_what_does_not_fit():
    with pytest.raises(ShapeError, match="expected"):
        pixel_adaptive_mask_refinement(torch.rand(1, 4, 8, 8), torch.rand(1, 2, 8, 8))
