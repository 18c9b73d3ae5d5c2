"""What the chain of labels calls: all planes of all stacks come back, and stacks do not see each other."""

import pytest
import torch

from afactl.method.refinement import stacks as refiners
from afactl.method.refinement.crf import dense_crf
from afactl.method.refinement.pamr import pixel_adaptive_mask_refinement
from afactl.method.refinement.par import pixel_adaptive_refinement


@pytest.fixture
def photo():
    torch.manual_seed(0)
    return torch.rand(1, 3, 12, 16) * 255


@pytest.fixture
def stacks():
    torch.manual_seed(1)
    return torch.rand(2, 3, 6, 8).softmax(1)


def one_by_one(refine, photo, stacks):
    """Every stack alone, which is what the fast forms have to equal."""
    return torch.cat([refine(photo, stack[None]) for stack in stacks])


def test_par_and_pamr_filter_all_stacks_at_once(photo, stacks):
    par = one_by_one(lambda image, planes: pixel_adaptive_refinement(image, planes, iterations=2), photo, stacks)
    torch.testing.assert_close(refiners.refine_par(photo, stacks, iterations=2), par)
    pamr = one_by_one(pixel_adaptive_mask_refinement, photo, stacks)
    torch.testing.assert_close(refiners.refine_pamr(photo, stacks), pamr)


def test_the_crf_refines_each_stack_alone_at_the_size_of_the_photo(photo, stacks):
    large = refiners.resize_stacks(photo, stacks)
    assert large.shape == (2, 3, 12, 16)
    expected = torch.stack([dense_crf(photo[0], stack) for stack in large])
    torch.testing.assert_close(refiners.refine_crf(photo, stacks), expected)


def test_the_corners_of_a_resized_plane_stay_what_they_are(photo, stacks):
    large = refiners.resize_stacks(photo, stacks)
    torch.testing.assert_close(large[..., 0, 0], stacks[..., 0, 0])
    torch.testing.assert_close(large[..., -1, -1], stacks[..., -1, -1])
