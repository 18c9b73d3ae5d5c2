"""Boxes of a batch at once, against each image cut out by itself."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from afactl.method.boxes import cut_boxes, half_sizes, inside_boxes, paste_boxes

SIZE = (17, 23)


@st.composite
def boxes(draw):
    """Two boxes inside SIZE, as small as one pixel."""
    found = []
    for _ in range(2):
        y0, x0 = draw(st.integers(0, SIZE[0] - 1)), draw(st.integers(0, SIZE[1] - 1))
        found.append([y0, draw(st.integers(y0 + 1, SIZE[0])), x0, draw(st.integers(x0 + 1, SIZE[1]))])
    return torch.tensor(found)


@given(boxes())
def test_inside_is_what_the_slices_say(box):
    inside = inside_boxes(box, SIZE)
    for one, (y0, y1, x0, x1) in zip(inside, box.tolist(), strict=True):
        expected = torch.zeros(SIZE, dtype=torch.bool)
        expected[y0:y1, x0:x1] = True
        assert torch.equal(one, expected)


@pytest.mark.parametrize("align_corners", [True, False])
@given(boxes(), st.integers(0, 9))
def test_boxes_are_cut_as_each_alone(align_corners, box, seed):
    planes = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(seed))
    sizes = half_sizes(box)
    canvas = cut_boxes(planes, box, sizes, (9, 12), align_corners)
    for i, (y0, y1, x0, x1) in enumerate(box.tolist()):
        size = (max(1, (y1 - y0) // 2), max(1, (x1 - x0) // 2))
        assert size == tuple(sizes[i].tolist())
        part = planes[i : i + 1, :, y0:y1, x0:x1]
        alone = F.interpolate(part, size=size, mode="bilinear", align_corners=align_corners)[0]
        torch.testing.assert_close(canvas[i, :, : size[0], : size[1]], alone, rtol=0, atol=1e-5)


@given(boxes(), st.integers(0, 9))
def test_boxes_are_pasted_as_each_alone(box, seed):
    planes = torch.rand(2, 3, 9, 12, generator=torch.Generator().manual_seed(seed))
    sizes = half_sizes(box)
    canvas = paste_boxes(planes, sizes, box, SIZE)
    for i, (y0, y1, x0, x1) in enumerate(box.tolist()):
        part = planes[i : i + 1, :, : sizes[i, 0], : sizes[i, 1]]
        alone = F.interpolate(part, size=(y1 - y0, x1 - x0), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(canvas[i, :, y0:y1, x0:x1], alone, rtol=0, atol=1e-5)
