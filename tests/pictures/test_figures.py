import numpy as np
import pytest
from PIL import Image

from afactl.datasets import demo
from afactl.datasets.images import read_image
from afactl.errors import UsageError
from afactl.inference.refiners import REFINERS
from afactl.inference.trained_run import open_split
from afactl.method.refinement.stacks import refine_par
from afactl.pictures import figures
from afactl.pictures.figures import (
    Attended,
    draw_attention,
    draw_cams,
    draw_heads,
    draw_ranked,
    draw_refiners,
    first_photos,
)


@pytest.fixture
def rows(monkeypatch):
    """The rows of every panel that is drawn."""
    seen = []
    original = figures.panel
    monkeypatch.setattr(figures, "panel", lambda rows, *others: seen.append(rows) or original(rows, *others))
    return seen


def test_a_photo_of_the_dataset_is_drawn_from_the_cache(run, monkeypatch):
    sample = open_split(run, "val", None, masks=False).samples[1]
    first = draw_attention(run, sample.image_path, Attended([(32, 40)]))
    assert "one forward pass" in first.source
    assert all(run.architecture.classes[label] in first.source for label in sample.labels)
    monkeypatch.setattr("afactl.inference.cams.cam_record", None)
    second = draw_attention(run, sample.image_path, Attended([(32, 40), (5, 5)]))
    assert "no forward pass" in second.source
    assert second.file == run.folder / "figures" / f"attention-{sample.image_path.stem}.png"
    assert min(Image.open(second.file).size) > 300


def test_any_photo_can_be_looked_at(run, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 60, 3)).astype(np.uint8)).save(tmp_path / "p.png")
    drawn = draw_attention(run, tmp_path / "p.png", Attended([]), out=tmp_path / "deep" / "panel.svg")
    assert "not a photo of the run's dataset" in drawn.source and drawn.file.stat().st_size > 1000
    assert not list(run.folder.glob("cache/*"))


def test_without_a_photo_the_first_of_the_validation_split_is_taken(run):
    first = open_split(run, "val", None, masks=False).samples[0]
    assert draw_attention(run, None, Attended([])).file.name == f"attention-{first.image_path.stem}.png"


def test_own_photos_without_a_validation_split_show_those_of_training(run, tmp_path):
    data = demo.generate(tmp_path / "own", train=3, val=0, size=64)
    first = open_split(run, "train", data, masks=False).samples[0]
    assert first_photos(run, data, 1) == [first.image_path]
    assert draw_attention(run, None, Attended([]), data).file.name == f"attention-{first.image_path.stem}.png"


def test_wrong_queries_and_outputs_cost_no_work(run, monkeypatch, tmp_path):
    sample = open_split(run, "val", None, masks=False).samples[0]
    with pytest.raises(UsageError, match="give another .png, .svg or .pdf file"):
        draw_attention(run, sample.image_path, Attended([]), out=tmp_path / "panel.xyz")
    monkeypatch.setattr(run.model, "multi_scale_cam", None)
    with pytest.raises(UsageError, match="outside the photo, which is 64 x 64"):
        draw_attention(run, sample.image_path, Attended([(64, 3)]), overwrite=True)


def test_reading_the_photo_honours_its_orientation(run, tmp_path):
    image = Image.fromarray(np.zeros((40, 80, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (80, 40, 3)
    with pytest.raises(UsageError, match="which is 40 x 80 pixels"):
        draw_attention(run, tmp_path / "turned.jpg", Attended([(60, 10)]))


def test_a_layer_or_head_in_place_of_the_mean(run, rows, monkeypatch):
    monkeypatch.setattr(figures, "resize_map", lambda values, size: values)  # which clips
    sample = open_split(run, "val", None, masks=False).samples[0]
    for heads in (None, (1, None), (2, None), (2, 3)):
        draw_attention(run, sample.image_path, Attended([(5, 5)], heads=heads))
    columns = [dict(one[0][2]) for one in rows]
    mean, first, second = (
        columns[i][name] for i, name in enumerate(["MHSA (mean of heads)", "MHSA (layer 1)", "MHSA (layer 2)"])
    )
    np.testing.assert_allclose((first + second) / 2, mean, atol=1e-6)
    assert not np.allclose(columns[3]["MHSA (layer 2, head 3)"], second, atol=1e-4)
    for heads, message in (
        ((3, None), "--layer: expected 1..2"),
        ((0, None), "--layer"),
        ((1, 9), "--head: expected 1..8"),
    ):
        with pytest.raises(UsageError, match=message):
            draw_attention(run, sample.image_path, Attended([], heads=heads))


def test_an_affinity_that_was_never_trained_is_not_drawn(run, rows, tmp_path):
    section = run.preset.affinity.model_copy(update={"enabled": False})
    plain = run._replace(preset=run.preset.model_copy(update={"affinity": section}))
    draw_attention(plain, None, Attended([(5, 5)]))
    titles = [title for title, _ in rows[0][0][2]]
    assert titles == ["photo and query", "MHSA (mean of heads)", "CAM", "w/o AFA + PAR"]
    draw_cams(plain, first_photos(plain, None, 1))
    titles = [title for title, _ in rows[1][0][2]]
    assert titles == ["photo", "CAM", "spread by MHSA", "truth"]


def test_a_run_without_afa_is_drawn_beside(run, rows):
    draw_attention(run, None, Attended([(5, 5)], compared=run))
    titles = [title for title, _ in rows[0][0][2]]
    assert titles == [
        "photo and query",
        "MHSA (mean of heads), w/o AFA",
        "MHSA (mean of heads)",
        "learned affinity",
        "CAM",
        "w/o AFA + PAR",
        "AFA (w/o prop.) + PAR",
        "AFA + PAR",
    ]


def test_weights_of_heads(run, monkeypatch):
    seen = []
    original = figures.head_chart
    monkeypatch.setattr(figures, "head_chart", lambda weights, bias: seen.append(weights) or original(weights, bias))
    drawn = draw_heads(run)
    assert min(Image.open(drawn.file).size) > 300
    assert np.array_equal(seen[0].ravel(), run.model.affinity_head.weight.detach().numpy()) and seen[0].shape == (2, 8)
    section = run.preset.affinity.model_copy(update={"enabled": False})
    with pytest.raises(UsageError, match="trained without the affinity branch"):
        draw_heads(run._replace(preset=run.preset.model_copy(update={"affinity": section})))


def test_cams_side_by_side(run, rows, tmp_path):
    photos = first_photos(run, None, 2)
    drawn = draw_cams(run, photos, out=tmp_path / "cams.pdf", without_afa=run)
    assert drawn.file.read_bytes().startswith(b"%PDF")
    assert [title for title, _ in rows[0][1][2]] == [
        "photo",
        "CAM, w/o AFA",
        "CAM",
        "spread by MHSA",
        "spread by affinity",
        "truth",
    ]
    for _, _, cells in rows[0]:
        for title, content in cells[2:5]:
            assert (
                content.shape == (64, 64) and content.dtype == np.float32 and 0 <= content.min() <= content.max() <= 1
            ), title
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "own.png")
    draw_cams(run, [photos[0], tmp_path / "own.png"], out=tmp_path / "mixed.png")
    assert {len(cells) for _, _, cells in rows[1]} == {4}, "a photo without a mask takes the column away"


def test_refiners_and_iterations(run, rows, tmp_path):
    drawn = draw_refiners(run, None, out=tmp_path / "par.png", animation=tmp_path / "par.gif")
    compared, moves = (dict(cells) for _, _, cells in rows[0])
    assert list(compared) == ["photo", "CAM", "CAM, cut", "PAMR", "dense CRF", "PAR", "truth"] and drawn.file.exists()
    assert np.array_equal(moves["PAR, 0 iterations"], compared["CAM, cut"])
    animation = Image.open(tmp_path / "par.gif")
    assert animation.n_frames >= 2 and animation.size == (64, 64)


def test_an_own_refiner_is_shown_beside_the_others(run, rows, tmp_path, monkeypatch):
    monkeypatch.setitem(REFINERS._registered, "mine", lambda image, stacks: refine_par(image, stacks, iterations=1))
    cam = run.preset.cam.model_copy(update={"refiner": "mine"})
    run = run._replace(preset=run.preset.model_copy(update={"cam": cam}))
    draw_refiners(run, None, out=tmp_path / "par.png")
    compared = dict(rows[0][0][2])
    assert list(compared)[-3:] == ["PAR", "mine", "truth"]
    draw_attention(run, None, Attended(), out=tmp_path / "attention.png")
    titles = [title for title, _ in rows[1][0][2]]
    assert titles[-2:] == ["AFA (w/o prop.) + mine", "AFA + mine"]


def test_images_by_rank(run, monkeypatch):
    split = open_split(run, "val", None, masks=True)
    seen = []
    monkeypatch.setattr(
        figures,
        "draw_examples",
        lambda run, split, samples, scores, out, palette: seen.append([s.image_id for s in samples]) or out,
    )
    scores, ids = np.array([40.0, np.nan, 10.0, 90.0]), [sample.image_id for sample in split.samples]
    draw_ranked(run, split, scores, "worst", 2)
    draw_ranked(run, split, scores, "examples", 2)
    draw_ranked(run, split, scores, "worst", 16)
    assert seen == [[ids[2], ids[0]], [ids[2], ids[3]], [ids[2], ids[0], ids[3]]]


def test_examples_are_drawn(run):
    split = open_split(run, "val", None, masks=True)
    assert min(Image.open(draw_ranked(run, split, np.arange(4.0), "worst", 3)).size) > 300
