import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from afactl.prediction.label_studio import brush_rle, labeling_config


def unpack(rle):
    """rle-pack read bit by bit: a run (1) or so many values (0), counted by one of four counters."""
    bits = "".join(f"{byte:08b}" for byte in rle)
    at = 0

    def read(width):
        nonlocal at
        at += width
        assert at <= len(bits)
        return int(bits[at - width : at], 2)

    count, word = read(32), read(5) + 1
    counters = [read(4) + 1 for _ in range(4)]
    values = []
    while len(values) < count:
        run, length = read(1), None
        length = read(counters[read(2)]) + 1
        values += [read(word)] * length if run else [read(word) for _ in range(length)]
    assert len(values) == count and set(bits[at:]) <= {"0"} and len(bits) - at < 8
    return np.array(values)


@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_masks_come_back_in_all_four_channels(mask):
    channels = unpack(brush_rle(mask)).reshape(*mask.shape, 4)
    assert np.array_equal(channels, np.repeat(255 * mask[..., None], 4, axis=2))


@pytest.mark.parametrize("columns", [16383, 16384, 16385, 3 * 16384])
def test_long_runs_are_cut(columns):
    mask = np.zeros((2, columns), bool)
    mask[1] = True
    assert np.array_equal(unpack(brush_rle(mask))[::4] > 0, mask.ravel())


def test_a_mask_as_label_studio_packs_it():
    """Read by the decoder of label-studio-sdk 2.1.2: [[0, 1], [1, 1]] in four channels."""
    assert brush_rle(np.array([[False, True], [True, True]])) == [0, 0, 0, 16, 57, 27, 255, 0, 3, 0, 224, 1, 127, 224]


def test_names_are_escaped_in_the_interface():
    root = ElementTree.fromstring(labeling_config(['a "b" <c> & d'], [(0, 0, 0), (255, 0, 16)]))
    (label,) = root.find("BrushLabels")
    assert label.attrib == {"value": 'a "b" <c> & d', "background": "#ff0010"}
