"""The golden files themselves: whole, small, and described."""

import pytest

from tests import golden

FILES = sorted(path for path in golden.FOLDER.iterdir() if path.suffix in (".npz", ".json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_is_larger_than_a_megabyte(path):
    assert path.stat().st_size <= 1_000_000


@pytest.mark.parametrize(
    ("name", "key", "shape"),
    [
        ("pseudo", "seg_logits", (2, 21, 128, 160)),
        ("pseudo", "images", (2, 128, 160, 3)),
        ("trace_mit_trace_128", "images", (14, 2, 128, 128, 3)),
        ("trace_mit_trace_128", "start/decoder.linear_fuse.conv.weight", (256, 1024, 1, 1)),
    ],
)
def test_arrays_are_whole_though_files_were_cut(name, key, shape):
    assert golden.arrays(name)[key].shape == shape


def test_pieces_come_in_their_order(tmp_path, monkeypatch):
    import numpy as np

    monkeypatch.setattr(golden, "FOLDER", tmp_path)
    np.savez(tmp_path / "a.npz", plain=np.arange(3))
    np.savez(tmp_path / "a-2.npz", rows=np.array([[2], [3]]))
    np.savez(tmp_path / "a-1.npz", rows=np.array([[0], [1]]))
    np.savez(tmp_path / "a_b.npz", rows=np.array([[9]]))
    found = golden.arrays("a")
    assert found["plain"].tolist() == [0, 1, 2] and found["rows"].ravel().tolist() == [0, 1, 2, 3]


def test_the_trace_starts_from_every_weight_of_its_network():
    """Counters are left out; they start at 0."""
    names = {name: shape for name, shape in golden.table("state_mit_trace").items() if "num_batches" not in name}
    start = {key.removeprefix("start/"): value for key, value in golden.arrays("trace_mit_trace_128").items()}
    assert {name: list(start[name].shape) for name in names} == names


def test_the_readme_describes_every_file():
    text = (golden.FOLDER / "README.md").read_text(encoding="utf-8")
    for path in FILES:
        name = path.name.split("-")[0].removesuffix(path.suffix)
        family = {"net": "net_<backbone>_HxW", "state": "state_*"}.get(name.split("_")[0], name)
        assert f"`{family}{path.suffix}`" in text, path.name
