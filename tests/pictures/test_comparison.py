"""The same photos by several runs, in one picture."""

from PIL import Image

from afactl.pictures import comparison
from afactl.pictures.comparison import draw_comparison


def test_a_row_has_photo_truth_and_a_mask_of_each_run(run, val, tmp_path, monkeypatch):
    cells = []
    original = comparison.picture_grid
    monkeypatch.setattr(
        comparison, "picture_grid", lambda made, columns: cells.append((columns, made)) or original(made, columns)
    )
    target = draw_comparison([run, run], val, [(2, [12.34, 56.78]), (0, [1.0, 2.0])], tmp_path / "c.png")
    ((columns, made),) = cells
    titles = [title for title, _ in made]
    name, ids = run.folder.name, [sample.image_id for sample in val.samples]
    assert columns == 4 and titles == [
        *(ids[2], "truth", f"{name} 12.3 %", f"{name} 56.8 %"),
        *(ids[0], "truth", f"{name} 1.0 %", f"{name} 2.0 %"),
    ]
    with Image.open(target) as picture:
        assert picture.width > 600
