import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from afactl.datasets.images import read_image, voc_palette
from afactl.errors import UsageError
from afactl.inference import open_run, open_split
from afactl.visualization import attention_panel, draw_attention, overlay, parse_query, query_token, resize_map


@pytest.fixture()
def run(run_copy):
    return open_run(run_copy, torch.device("cpu"))


@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_every_pixel_has_the_token_that_covers_it(height, width, data):
    grid = (data.draw(st.integers(1, height)), data.draw(st.integers(1, width)))
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    row, column = divmod(query_token((x, y), (height, width), grid), grid[1])
    assert row <= y * grid[0] / height < row + 1 and column <= x * grid[1] / width < column + 1


@pytest.mark.parametrize("query", [(64, 0), (0, 48), (-1, 0), (500, 500)])
def test_a_query_outside_names_the_size(query):
    with pytest.raises(UsageError, match="outside the photo, which is 64 x 48 pixels"):
        query_token(query, (48, 64), (3, 4))


@pytest.mark.parametrize("text", ["", "3", "3,4,5", "a,b", "1.5,2"])
def test_a_query_that_is_none_is_explained(text):
    with pytest.raises(UsageError, match="expected X,Y in pixels"):
        parse_query(text)
    assert parse_query("32,40") == (32, 40)


def test_overlay_keeps_background_and_colours_classes():
    image = np.full((2, 2, 3), 100, np.uint8)
    mask = np.array([[0, 1], [2, 255]], np.uint8)
    found = overlay(image, mask, opacity=0.5)
    assert found[0, 0].tolist() == [100, 100, 100]
    assert found[0, 1].tolist() == ((100 + voc_palette()[1].astype(int)) / 2).round().tolist()
    assert (image == 100).all()


def test_maps_are_enlarged_smoothly():
    found = resize_map(np.array([[0.0, 1.0], [0.0, 1.0]]), (20, 30))
    assert found.shape == (20, 30) and np.all(np.diff(found[10, 5:25]) >= 0)
    assert found.min() == 0 and found.max() == 1


def test_a_panel_has_a_row_per_query_and_a_star_in_each_picture():
    image, tokens = np.zeros((32, 48, 3), np.uint8), np.random.default_rng(0).random((6, 6))
    labels = [("one", np.ones((32, 48), np.uint8)), ("two", np.full((32, 48), 255, np.uint8))]
    figure = attention_panel(image, [(1, 2), (40, 30)], tokens, tokens, (2, 3), np.zeros((32, 48)), labels, ("cat",))
    panels = [axis for axis in figure.axes if axis.lines]
    figure.draw_without_rendering()
    assert len({tuple(np.round(axis.get_window_extent().size)) for axis in panels}) == 1, "all pictures have one size"
    assert len(panels) == 2 * 6
    assert {tuple(float(v[0]) for v in axis.lines[0].get_data()) for axis in panels} == {(1.0, 2.0), (40.0, 30.0)}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["cat", "ignored"]


def test_a_photo_of_the_dataset_is_drawn_from_the_cache(run, monkeypatch):
    sample = open_split(run, "val", None, masks=False).samples[1]
    first = draw_attention(run, sample.image, [(32, 40)])
    assert "one forward pass" in first.source
    assert all(run.architecture.classes[label] in first.source for label in sample.labels)
    monkeypatch.setattr(run.model, "multi_scale_cam", None)
    second = draw_attention(run, sample.image, [(32, 40), (5, 5)])
    assert "no forward pass" in second.source
    assert second.file == run.folder / "figures" / f"attention-{sample.image.stem}.png"
    assert min(Image.open(second.file).size) > 300


def test_any_photo_can_be_looked_at(run, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 60, 3)).astype(np.uint8)).save(tmp_path / "p.png")
    drawn = draw_attention(run, tmp_path / "p.png", [], out=tmp_path / "deep" / "panel.svg")
    assert "not a photo of the run's dataset" in drawn.source and drawn.file.stat().st_size > 1000
    assert not list(run.folder.glob("cache/*"))


def test_without_a_photo_the_first_of_the_validation_split_is_taken(run):
    first = open_split(run, "val", None, masks=False).samples[0]
    assert draw_attention(run, None, []).file.name == f"attention-{first.image.stem}.png"


def test_wrong_queries_and_outputs_cost_no_work(run, monkeypatch, tmp_path):
    sample = open_split(run, "val", None, masks=False).samples[0]
    with pytest.raises(UsageError, match="give a .png, .svg or .pdf file"):
        draw_attention(run, sample.image, [], out=tmp_path / "panel.xyz")
    monkeypatch.setattr(run.model, "multi_scale_cam", None)
    with pytest.raises(UsageError, match="outside the photo, which is 64 x 64"):
        draw_attention(run, sample.image, [(64, 3)], overwrite=True)


def test_reading_the_photo_honours_its_orientation(run, tmp_path):
    image = Image.fromarray(np.zeros((40, 80, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (80, 40, 3)
    with pytest.raises(UsageError, match="which is 40 x 80 pixels"):
        draw_attention(run, tmp_path / "turned.jpg", [(60, 10)])
