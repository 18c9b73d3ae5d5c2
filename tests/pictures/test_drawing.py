import numpy as np
import pytest

from afactl.datasets.mask_encodings import voc_palette
from afactl.errors import UsageError
from afactl.pictures.drawing import (
    head_chart,
    overlay,
    panel,
    parse_query,
    picture_grid,
    resize_map,
)

VOC = voc_palette()


@pytest.mark.parametrize("text", ["", "3", "3,4,5", "a,b", "1.5,2"])
def test_a_query_that_is_none_is_explained(text):
    with pytest.raises(UsageError, match="expected X,Y in pixels"):
        parse_query(text)
    assert parse_query("32,40") == (32, 40)


def test_overlay_keeps_background_and_colours_classes():
    image = np.full((40, 40, 3), 100, np.uint8)
    mask = np.zeros((40, 40), np.uint8)
    mask[10:30, 10:20], mask[10:30, 20:30] = 1, 2
    found = overlay(image, mask, VOC, opacity=0.5)
    assert found[0, 0].tolist() == [100, 100, 100]
    assert found[20, 15].tolist() == ((100 + VOC[1].astype(int)) / 2).round().tolist()
    assert (image == 100).all()


def test_overlay_draws_contours_along_every_border():
    image, mask = np.full((30, 30, 3), 100, np.uint8), np.zeros((30, 30), np.uint8)
    mask[5:25, 5:15], mask[5:25, 15:25] = 1, 2
    found = overlay(image, mask, VOC)
    pure = (found == VOC[mask]).all(-1) & (mask > 0)
    expected = np.zeros((30, 30), bool)
    for y in range(30):
        for x in range(30):
            around = mask[max(0, y - 1) : y + 2, x].tolist() + mask[y, max(0, x - 1) : x + 2].tolist()
            expected[y, x] = mask[y, x] > 0 and any(value != mask[y, x] for value in around)
    assert np.array_equal(pure, expected)


@pytest.mark.parametrize("box", [(0, 60, 0, 80), (0, 6, 0, 80), (50, 60, 70, 80), (30, 31, 0, 80)])
def test_class_names_are_written_inside_their_region_and_the_picture(box):
    image, mask = np.full((60, 80, 3), 90, np.uint8), np.zeros((60, 80), np.uint8)
    mask[box[0] : box[1], box[2] : box[3]] = 1
    plain, named = overlay(image, mask, VOC), overlay(image, mask, VOC, classes=("cat", "dog"))
    ys, xs = np.nonzero((plain != named).any(-1))
    assert len(ys) > 15, "a name is there"
    assert box[0] - 12 <= ys.mean() <= box[1] + 12 and box[2] - 20 <= xs.mean() <= box[3] + 20


def test_maps_are_enlarged_smoothly():
    found = resize_map(np.array([[0.0, 1.0], [0.0, 1.0]]), (20, 30))
    assert found.shape == (20, 30) and np.all(np.diff(found[10, 5:25]) >= 0)
    assert found.min() == 0 and found.max() == 1


def test_a_panel_has_a_row_per_query_and_a_star_in_each_picture():
    image, matrix = np.zeros((32, 48, 3), np.uint8), np.random.default_rng(0).random((2, 3))
    columns = [
        ("photo", image),
        ("map", resize_map(matrix, (32, 48))),
        ("CAM", np.zeros((32, 48))),
        ("one", np.ones((32, 48), np.uint8)),
        ("two", np.full((32, 48), 255, np.uint8)),
    ]
    figure = panel([(image, (1, 2), columns), (image, (40, 30), columns)], ("cat",), VOC)
    pictures = [axis for axis in figure.axes if axis.lines]
    figure.draw_without_rendering()
    assert len({tuple(np.round(axis.get_window_extent().size)) for axis in pictures}) == 1, "all pictures have one size"
    assert len(pictures) == 2 * 5
    assert {tuple(float(v[0]) for v in axis.lines[0].get_data()) for axis in pictures} == {(1.0, 2.0), (40.0, 30.0)}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["cat", "ignored"]
    assert [axis.get_title() for axis in pictures] == ["photo", "map", "CAM", "one", "two", "", "", "", "", ""]
    drawn = pictures[6].images[-1].get_array()
    (bar,) = pictures[6].child_axes
    low, high = drawn.min(), drawn.max()
    assert [label.get_text() for label in bar.get_xticklabels()] == [f"{low:.2g}", f"{high:.2g}"], (
        "maps tell their range"
    )


def test_titles_are_shown_where_they_change():
    image = np.zeros((20, 20, 3), np.uint8)
    figure = panel([(image, None, [("a", image), ("b", image)]), (image, None, [("a", image), ("c", image)])], (), VOC)
    assert [axis.get_title() for axis in figure.axes] == ["a", "b", "", "c"] and not figure.legends


def test_the_chart_of_heads_has_a_bar_for_each():
    weights = np.arange(16, dtype=float).reshape(2, 8) - 4
    axis = head_chart(weights, 0.5).axes[0]
    assert [bar.get_height() for bar in axis.patches] == weights.ravel().tolist()
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["layer 1", "layer 2 (the last block)"]
    assert "0.5" in axis.get_title()


def test_a_grid_keeps_names_as_they_are():
    figure = picture_grid([("cost $5 and $6", np.zeros((4, 4, 3), np.uint8))] * 8)
    assert [axis.get_title() for axis in figure.axes][:8] == ["cost $5 and $6"] * 8
    figure.draw_without_rendering()


def test_long_titles_are_broken_into_lines():
    picture = np.zeros((20, 30, 3), np.uint8)
    figure = picture_grid([("an id\n" + ", ".join(["potted plant"] * 6), picture), ("short", picture)])
    long, short = (axis.get_title() for axis in figure.axes[:2])
    assert long.startswith("an id\npotted plant, potted") and max(map(len, long.split("\n"))) <= 34
    assert " ".join(long.split()) == "an id " + ", ".join(["potted plant"] * 6) and short == "short"
