"""Whatever comes in: one clear error of ours or a result, never a traceback of another kind, never code that runs."""

import io
import os
import pickle
import shutil

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from afactl.datasets.images import decoded_photo, read_image
from afactl.datasets.registry import load_split
from afactl.datasets.tables import read_rows
from afactl.errors import AfactlError, CheckpointError, DataError, PresetError
from afactl.network.model import AFA
from afactl.pictures.drawing import parse_query
from afactl.presets import field_names, load_preset, save_preset
from afactl.runs.cache import Cache, CacheHeader
from afactl.runs.starting_weights import initialize
from tests.conftest import make_voc

SLOW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def only_ours(job, *arguments):
    """Run it; what it gives, to be looked at, or None after one line of ours. For jobs that never give None."""
    try:
        return job(*arguments)
    except AfactlError as error:
        told = str(error)
    assert told.strip() and "\n" not in told, "one line"
    return None


@SLOW
@given(
    st.sampled_from(["data", "model", "train", "cam", "par", "affinity", "loss", "optim", "eval", "crf"]),
    st.text(max_size=8)
    | st.sampled_from(
        ["name", "scales", "max_iters", "lr", "dilations", "betas", "crop_size", "scale_range", "background"]
    ),
    VALUES,
)
def test_presets_of_any_content(tmp_path, section, key, value):
    import yaml

    path = tmp_path / "p.yaml"
    path.write_text(
        yaml.safe_dump({section: {key: value}}, allow_unicode=True), encoding="utf-8", errors="surrogatepass"
    )
    preset = only_ours(load_preset, str(path))
    if preset is not None:  # what was written is there, or what stands for it: 1.0 for 1, a tuple for a list
        found = getattr(getattr(preset, section), key)
        assert found == value or list(found) == value


@SLOW
@given(st.text(max_size=60))
def test_overrides_and_files_of_any_text(tmp_path, text):
    preset = only_ours(load_preset, "demo", [text])
    name = text.partition("=")[0].strip()
    assert preset is None or name in field_names(), "nothing but a key that there is"
    (tmp_path / "p.yaml").write_text(text, encoding="utf-8", errors="replace")
    preset = only_ours(load_preset, str(tmp_path / "p.yaml"))
    if preset is not None:
        save_preset(preset, tmp_path / "again.yaml")
        assert load_preset(str(tmp_path / "again.yaml")) == preset


@SLOW
@given(st.text(max_size=20))
def test_queries_of_any_text(text):
    found = only_ours(parse_query, text)
    assert found is None or (len(found) == 2 and all(isinstance(number, int) for number in found))


@SLOW
@given(st.binary(max_size=120), st.sampled_from(["labels.csv", "labels.json", "annotations.json"]))
def test_tables_of_any_bytes(tmp_path, content, name):
    root = tmp_path / name.replace(".", "-")
    root.mkdir(exist_ok=True)
    for whole in (content, b"image,split,labels\n" + content):
        (root / name).write_bytes(whole)
        rows = only_ours(read_rows, root)
        assert rows is None or (rows and all(row.image and row.split and ".." not in row.image for row in rows))
        assert rows is None or all(one.strip() == one and one for row in rows for one in row.names)


@pytest.mark.parametrize("form", ["jpeg", "png", "tiff", "webp", "avif", "gif", "bmp"])
def test_a_hundred_mutated_photos(tmp_path, form):
    """Each is a photo or one line, and the check of the data says what training would meet."""
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    smooth = np.kron(rng.integers(0, 256, (6, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    exif = Image.Exif()
    exif.update({0x0112: 6, 0x010F: "maker", 0x011A: 72.0})
    Image.fromarray(smooth).save(buffer, form, exif=exif, lossless=True)
    whole = bytearray(buffer.getvalue())
    outcomes = []
    for number in range(100):
        content = bytearray(whole)
        # Every other one is hurt where formats keep what describes the pixels.
        for place in rng.integers(0, 300 if number % 2 else len(content), number % 7):
            content[place % len(content)] = rng.integers(0, 256)
        (tmp_path / "x").write_bytes(content[: rng.integers(2, len(content))] if number % 4 == 0 else content)
        image = only_ours(read_image, tmp_path / "x")
        checked = only_ours(decoded_photo, tmp_path / "x")
        assert (image is None) == (checked is None)
        if image is not None:
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape == (*checked[0], 3)
        outcomes.append(image is None)
    assert 5 < sum(outcomes) < 100, "some are refused, some still read"


def test_sixty_mutated_caches(tmp_path):
    header = CacheHeader("cams", {"a": [1.0]}, "w", "d")
    with Cache.open(tmp_path / "whole.h5", header) as cache:
        for number in range(3):
            cache.append(f"i{number}", {"cam": np.full((2, 40, 40), number, np.float16)})
    whole = (tmp_path / "whole.h5").read_bytes()
    rng = np.random.default_rng(0)

    def use(path):
        with Cache.open(path, header) as cache:
            return {image_id: cache.read(image_id)["cam"].shape for image_id in cache.ids()}

    outcomes = []
    for number in range(60):
        content = bytearray(whole)
        for place in rng.integers(0, 3000 if number % 2 else len(content), 4):
            content[place] = rng.integers(0, 256)
        (tmp_path / "x.h5").write_bytes(content)
        shapes = only_ours(use, tmp_path / "x.h5")
        assert shapes is None or all(shape[1:] == (40, 40) for shape in shapes.values())
        outcomes.append(shapes)
    assert any(outcomes) and None in outcomes, "some are refused, some still read"


ATTRIBUTE = st.one_of(
    st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=12),
    st.integers(-(2**40), 2**40),
    st.floats(),
    st.lists(st.integers(0, 9), min_size=1, max_size=3),
    st.sampled_from(["[1]", "3", "{", '{"a": {"b": 1}}', "null", "cams", "w", "d"]),
)


@SLOW
@given(
    st.dictionaries(
        st.sampled_from(["schema", "stage", "settings", "weights", "data", "complete"]),
        st.none() | ATTRIBUTE,
        min_size=1,
    )
)
def test_cache_headers_of_any_content(tmp_path, attributes):
    """None takes the attribute away. What is opened is a cache of these very settings."""
    path, header = tmp_path / "c.h5", CacheHeader("cams", {"a": [1.0]}, "w", "d")
    path.unlink(missing_ok=True)  # what the example before left may be a whole cache
    with Cache.open(path, header) as cache:
        cache.append("i", {"cam": np.zeros(3)})
    with h5py.File(path, "r+") as file:
        for name, value in attributes.items():
            del file.attrs[name]
            if value is not None:
                file.attrs[name] = value
    cache = only_ours(Cache.open, path, header)
    if cache is not None:
        with cache:
            assert cache.ids() in ([], ["i"])
        with h5py.File(path) as file:
            assert file.attrs["stage"] == "cams" and file.attrs["weights"] == "w" and file.attrs["data"] == "d"


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_no_pickle_runs(tmp_path):
    trap = tmp_path / "trap"
    torch.save({"state_dict": Evil(trap)}, tmp_path / "evil.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Evil(trap)))
    (tmp_path / "evil.safetensors").write_bytes(pickle.dumps(Evil(trap)))
    for name in ("evil.pth", "raw.pth", "evil.safetensors"):
        with pytest.raises(CheckpointError):
            initialize(AFA("mit_demo", 2), str(tmp_path / name))
    assert not trap.exists()


def test_no_pickle_runs_on_resume(run_copy, tmp_path):
    from afactl.runs.checkpoints import restore_training

    trap = tmp_path / "trap"
    folder = run_copy / "checkpoints" / "last"
    torch.save({"optimizer": Evil(trap), "iteration": 1}, folder / "training.pt")
    model = AFA("mit_demo", 6, decoder_width=16)
    with pytest.raises(CheckpointError, match="training.pt: cannot be read"):
        restore_training(folder, model, torch.optim.AdamW(model.parameters()))
    assert not trap.exists()


def test_a_yaml_tag_makes_no_object(tmp_path):
    (tmp_path / "p.yaml").write_text(f"train: !!python/object/apply:os.mkdir ['{tmp_path}/trap']\n")
    with pytest.raises(PresetError):
        load_preset(str(tmp_path / "p.yaml"))
    with pytest.raises(PresetError):
        load_preset("demo", [f"train.seed=!!python/object/apply:os.mkdir ['{tmp_path}/trap']"])
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("image_id", ["../../x", "/etc/x", "a/../../x"])
def test_ids_never_leave_the_folder(tmp_path, image_id):
    root = make_voc(tmp_path / "VOC2012", {"train": [image_id]}, {"x": [0, 0]})
    with pytest.raises(DataError):
        load_split("voc", root, "train")


def test_an_id_that_a_loader_lets_through_is_still_refused(tmp_path, monkeypatch):
    from afactl.datasets import registry
    from afactl.datasets.samples import DatasetFormat, Sample, Split

    monkeypatch.setattr(registry.FORMATS, "_registered", {})
    strange = DatasetFormat(lambda root, split: Split(split, ("a",), (Sample("../../x", root / "x.jpg", ()),)), list)
    registry.register("strange", strange)
    with pytest.raises(DataError, match="leaves the folder that results go to"):
        load_split("strange", tmp_path, "train")


def test_a_cache_keeps_plain_arrays_only(tmp_path):
    header = CacheHeader("cams", {}, "w", "d")
    with Cache.open(tmp_path / "c.h5", header) as cache:
        with pytest.raises(AfactlError, match="only plain arrays"):
            cache.append("x", {"cam": np.array([Evil(tmp_path / "trap")], dtype=object)})
        cache.append("../../x", {"cam": np.zeros(2)})
    with h5py.File(tmp_path / "c.h5") as file:
        assert list(file["images"]) == ["..%2F..%2Fx"]


def test_weights_with_other_content_are_explained(tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError):
        initialize(AFA("mit_demo", 2), str(tmp_path / "w.safetensors"))
    shutil.copy(tmp_path / "w.safetensors", tmp_path / "w.pth")
    with pytest.raises(CheckpointError):
        initialize(AFA("mit_demo", 2), str(tmp_path / "w.pth"))
