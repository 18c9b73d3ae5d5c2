"""Weighted means over dilated neighbourhoods: which pixel is whose neighbour, and with what weight."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from afactl.errors import ShapeError
from afactl.method.refinement.neighborhood import DILATIONS, color_kernel, distances, refine_by_neighbors

STEPS = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]


def at(kernel, shape, pad):
    """J x L weights as J x h x w: what falls into the padding is waste."""
    height, width = shape
    return kernel.view(len(kernel), height, width + 2 * pad)[:, :, :width]


def test_distances_are_the_dilation_or_its_diagonal():
    assert distances((1, 3)) == pytest.approx(
        [d * length for d in (1, 3) for length in (2**0.5, 1, 2**0.5, 1, 1, 2**0.5, 1, 2**0.5)]
    )
    assert len(distances(DILATIONS)) == 48


@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.lists(st.integers(1, 7), min_size=1, max_size=3, unique=True),
    st.integers(0, 7),
)
def test_a_kernel_of_one_neighbour_moves_the_picture(height, width, dilations, number):
    """Weight 1 on one neighbour: every pixel takes that neighbour's score, the nearest one beyond the border."""
    pad, count = max(dilations), 8 * len(dilations)
    chosen = number % count

    def one_neighbor(image):
        kernel = torch.zeros(count, height * (width + 2 * pad))
        kernel[chosen] = 1
        return kernel

    scores = torch.arange(height * width, dtype=torch.float32).view(1, 1, height, width)
    found = refine_by_neighbors(torch.zeros(1, 3, height, width), scores, dilations, 1, one_neighbor)[0, 0]
    dy, dx = (dilations[chosen // 8] * step for step in STEPS[chosen % 8])
    for y in range(height):
        for x in range(width):
            near = min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)
            assert found[y, x] == scores[0, 0, near[0], near[1]]


@pytest.mark.parametrize("power", [1, 2])
def test_weights_equal_the_formula_at_every_pixel(power):
    torch.manual_seed(0)
    image, dilations, smoothness = (torch.rand(3, 4, 5) * 255).round().double(), (1, 2), 0.3
    kernel = at(color_kernel(image, dilations, smoothness, power), (4, 5), 2)
    for y in range(4):
        for x in range(5):
            near = [
                image[:, min(max(y + d * dy, 0), 3), min(max(x + d * dx, 0), 4)] for d in dilations for dy, dx in STEPS
            ]
            widths = (smoothness * (torch.stack(near).std(dim=0, unbiased=True) + 1e-8)).tolist()
            kappa = [
                -sum((abs(float(one[c] - image[c, y, x])) / widths[c]) ** power for c in range(3)) / 3 for one in near
            ]
            weights = [math.exp(k - max(kappa)) for k in kappa]
            expected = [weight / sum(weights) for weight in weights]
            assert kernel[:, y, x].tolist() == pytest.approx(expected, abs=1e-9)


def test_on_one_colour_all_neighbours_count_alike():
    kernel = at(color_kernel(torch.full((3, 3, 3), 77.0), (1, 4), 0.3, 2), (3, 3), 4)
    torch.testing.assert_close(kernel, torch.full((16, 3, 3), 1 / 16))


def test_no_iteration_only_brings_the_scores_to_the_image():
    scores = torch.rand(1, 2, 5, 7)
    found = refine_by_neighbors(torch.zeros(1, 3, 5, 7), scores, (1,), 0, lambda image: torch.zeros(8, 5 * 9))
    torch.testing.assert_close(found, scores)


@pytest.mark.parametrize("dilations", [(), (0,), (1, -2)])
def test_distances_below_one_are_refused(dilations):
    with pytest.raises(ShapeError, match="dilations: expected positive distances"):
        refine_by_neighbors(torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4), dilations, 1, lambda image: image)


def test_no_gradient_flows_into_labels():
    scores = torch.rand(1, 1, 4, 4, requires_grad=True)
    image = torch.rand(1, 3, 4, 4)
    assert not refine_by_neighbors(image, scores, (1,), 1, lambda one: color_kernel(one, (1,), 0.3, 2)).requires_grad
