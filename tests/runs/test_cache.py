import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afactl.errors import CacheError, StaleCacheError
from afactl.runs.cache import Cache, CacheHeader, cache_path, decode_id, encode_id
from afactl.runs.journal import JournaledFile

HEADER = CacheHeader("cams", {"cam": {"scales": [1.0, 0.5]}}, "abc", "def")
IDS = st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=30)

# Appends images 0, 1, 2, ... for ever; the arrays of image i are made of i.
WRITER = """
import sys, numpy as np
from pathlib import Path
from afactl.runs.cache import Cache, CacheHeader
with Cache.open(Path(sys.argv[1]), CacheHeader("cams", {"cam": {"scales": [1.0, 0.5]}}, "abc", "def")) as cache:
    print("open", flush=True)
    for i in range(len(cache), 100000):
        if str(i) not in cache:
            cache.append(str(i), {"cam": np.full((2, 40, 50), i % 97, np.float16), "keys": np.array([i])})
"""


@given(IDS)
def test_ids_are_names_and_come_back(image_id):
    name = encode_id(image_id)
    assert "/" not in name and "\0" not in name and name not in (".", "..")
    assert decode_id(name) == image_id


@given(IDS, IDS)
def test_different_ids_have_different_names(first, second):
    assert (encode_id(first) == encode_id(second)) == (first == second)


def test_a_run_has_a_file_for_each_stage_and_split(tmp_path):
    assert cache_path(tmp_path, "cams", "train_aug") == tmp_path / "cache" / "cams-train_aug.h5"


def test_the_empty_id_is_refused():
    with pytest.raises(CacheError, match="empty"):
        encode_id("")


@settings(max_examples=15, deadline=None)
@given(st.lists(IDS, min_size=1, max_size=6, unique=True))
def test_any_id_is_a_key(tmp_path_factory, ids):
    path = tmp_path_factory.mktemp("ids") / "c.h5"
    with Cache.open(path, HEADER) as cache:
        for i, image_id in enumerate(ids):
            cache.append(image_id, {"x": np.array([i])})
    with Cache.open(path, HEADER) as cache:
        assert cache.ids() == ids and len(cache) == len(ids)
        assert [cache.read(image_id)["x"].item() for image_id in ids] == list(range(len(ids)))


def test_arrays_come_back_as_they_were(tmp_path):
    arrays = {
        "cam": np.random.default_rng(0).random((2, 30, 40)).astype(np.float16),
        "keys": np.array([3, 5]),
        "none": np.zeros((0, 4, 4), np.float16),
        "label": np.full((50, 60), 255, np.uint8),
    }
    with Cache.open(tmp_path / "c.h5", HEADER) as cache:
        cache.append("a/b.c", arrays)
        found = cache.read("a/b.c")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)


def test_the_layout_is_what_other_tools_expect(tmp_path):
    with Cache.open(tmp_path / "c.h5", HEADER) as cache:
        cache.append("2007_000032", {"cam": np.zeros((1, 4, 4), np.float16)})
    with h5py.File(tmp_path / "c.h5") as file:
        assert file["images/2007_000032/cam"].dtype == np.float16
        assert file["images/2007_000032"].attrs["complete"]
        assert (file.attrs["stage"], file.attrs["weights"], file.attrs["data"]) == ("cams", "abc", "def")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (HEADER._replace(weights="xyz"), r"weights \(abc there, xyz now\)"),
        (HEADER._replace(data="xyz"), r"data \(def there, xyz now\)"),
        (HEADER._replace(stage="labels"), r"stage \(cams there, labels now\)"),
        (HEADER._replace(settings={"cam": {"scales": [1.0]}}), r"cam\.scales \(\[1\.0, 0\.5\] there, \[1\.0\] now\)"),
    ],
)
def test_a_cache_made_by_others_is_refused_and_kept(tmp_path, header, message):
    path = tmp_path / "c.h5"
    with Cache.open(path, HEADER) as cache:
        cache.append("a", {"x": np.array([1])})
    with pytest.raises(CacheError, match=message) as caught:
        Cache.open(path, header)
    assert "--overwrite" in str(caught.value)
    with Cache.open(path, HEADER) as cache:
        assert cache.ids() == ["a"]
    with Cache.open(path, header, overwrite=True) as cache:
        assert cache.ids() == []


def test_a_cache_of_an_earlier_version_is_refused_in_one_line(tmp_path):
    path = tmp_path / "c.h5"
    with Cache.open(path, HEADER) as cache:
        cache.append("a", {"x": np.array([1])})
    with h5py.File(path, "r+") as file:
        file.attrs["schema"] = 1
    with pytest.raises(CacheError, match=r"another version of afactl \(format 1, now 2\); --overwrite makes it again$"):
        Cache.open(path, HEADER)
    with Cache.open(path, HEADER, overwrite=True) as cache:
        assert cache.ids() == []


def test_what_is_missing_or_there_twice_is_named(tmp_path):
    with Cache.open(tmp_path / "c.h5", HEADER) as cache:
        cache.append("a", {"x": np.array([1])})
        with pytest.raises(CacheError, match="no complete b"):
            cache.read("b")
        with pytest.raises(CacheError, match="a is there already"):
            cache.append("a", {"x": np.array([2])})
        with pytest.raises(CacheError, match="Python objects"):
            cache.append("b", {"x": np.array([None])})
        assert cache.read("a")["x"].item() == 1


def test_an_incomplete_image_is_done_again(tmp_path):
    path = tmp_path / "c.h5"
    with Cache.open(path, HEADER) as cache:
        cache.append("whole", {"x": np.array([1])})
    with h5py.File(path, "r+") as file:
        file["images"].create_group("half").create_dataset("x", data=np.array([0]))
    with Cache.open(path, HEADER) as cache:
        assert "half" not in cache and cache.ids() == ["whole"]
        cache.append("half", {"x": np.array([2])})
        assert cache.read("half")["x"].item() == 2


@pytest.mark.parametrize("content", [b"no HDF5", b"\x89HDF\r\n\x1a\n" + b"\0" * 500])
def test_a_file_that_is_no_cache_is_refused(tmp_path, content):
    (tmp_path / "c.h5").write_bytes(content)
    with pytest.raises(CacheError, match="--overwrite"):
        Cache.open(tmp_path / "c.h5", HEADER)
    with Cache.open(tmp_path / "c.h5", HEADER, overwrite=True) as cache:
        assert len(cache) == 0


def test_a_cache_killed_while_it_was_made_is_made_again(tmp_path):
    h5py.File(tmp_path / "c.h5", "w").close()
    with Cache.open(tmp_path / "c.h5", HEADER) as cache:
        assert len(cache) == 0
    (tmp_path / "c.h5").write_bytes(b"")
    with Cache.open(tmp_path / "c.h5", HEADER) as cache:
        cache.append("a", {"x": np.array([1])})


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="cannot be written"):
        Cache.open(tmp_path / "file" / "c.h5", HEADER)


@pytest.mark.parametrize("place", ["_journal", "_apply"])
def test_a_full_disk_is_told_and_what_was_finished_is_kept(tmp_path, monkeypatch, place):
    """In the middle of the journal, or of taking it over into the file."""
    path, journal = tmp_path / "c.h5", tmp_path / "c.h5.journal"

    def full(*arguments):
        raise OSError(28, "No space left on device")

    with Cache.open(path, HEADER) as cache:
        cache.append("a", {"x": np.arange(5000)})
        with monkeypatch.context() as patch:
            patch.setattr(*((Path, "write_bytes") if place == "_journal" else (JournaledFile, "_apply")), full)
            with pytest.raises(
                CacheError, match=r"No space left on device\); what was finished is kept: make room, then call again"
            ):
                cache.append("b", {"x": np.arange(5000)})
    with Cache.open(path, HEADER) as cache:
        # A whole journal is as good as the file.
        assert cache.ids() == (["a"] if place == "_journal" else ["a", "b"])
        assert all((cache.read(image_id)["x"] == np.arange(5000)).all() for image_id in cache.ids())
    assert not journal.exists()


def test_a_disk_that_becomes_full_in_earnest(tmp_path):
    """A limit on the size of files stands for the end of the disk: the system itself refuses."""
    pytest.importorskip("resource", reason="limits are those of Unix")
    limited = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n" + WRITER
    done = subprocess.run(
        [sys.executable, "-c", limited, str(tmp_path / "c.h5")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if "Error" in line and not line.startswith(" ")][-1].endswith(
        "make room, then call again"
    )
    assert "SystemError" not in done.stderr and "ignored" not in done.stderr
    with Cache.open(tmp_path / "c.h5", HEADER) as cache:
        assert len(cache) > 3 and all(
            (cache.read(image_id)["cam"] == int(image_id) % 97).all() for image_id in cache.ids()
        )


def test_a_journal_that_still_finds_no_room_is_kept(tmp_path, monkeypatch):
    with Cache.open(tmp_path / "c.h5", HEADER) as cache, monkeypatch.context() as patch:
        patch.setattr(
            JournaledFile, "_apply", lambda *arguments: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        )
        with pytest.raises(CacheError, match="make room"):
            cache.append("a", {"x": np.arange(5000)})
        cache.close()
        with pytest.raises(CacheError, match="make room"):
            Cache.open(tmp_path / "c.h5", HEADER)
    with Cache.open(tmp_path / "c.h5", HEADER) as cache:
        assert cache.ids() == ["a"]


def start_writer(path):
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, env=os.environ)
    assert process.stdout.readline() == b"open\n"
    return process


def test_killed_writers_lose_at_most_the_image_at_hand(tmp_path):
    path, rng, before = tmp_path / "c.h5", np.random.default_rng(0), 0
    for _ in range(8):
        process = start_writer(path)
        time.sleep(rng.uniform(0.0, 0.25))
        process.send_signal(signal.SIGKILL)
        process.wait()
        with Cache.open(path, HEADER) as cache:
            count = len(cache)
            assert count >= before, "an image was lost"
            assert cache.ids() == [str(i) for i in range(count)], "none twice, none left out"
            for i in range(max(0, count - 20), count):
                assert (cache.read(str(i))["cam"] == i % 97).all()
        before = count
    assert before > 20


def test_a_second_process_is_told_to_wait(tmp_path):
    process = start_writer(tmp_path / "c.h5")
    try:
        with pytest.raises(CacheError, match="another process is writing it"):
            Cache.open(tmp_path / "c.h5", HEADER)
    finally:
        process.kill()
        process.wait()


def test_only_a_file_that_is_of_no_use_is_called_stale(tmp_path, monkeypatch):
    """What is stale may be thrown away: not what another process writes, nor what a failing disk keeps back."""
    path = tmp_path / "c.h5"
    path.write_bytes(b"cut off")
    with pytest.raises(StaleCacheError, match="not a readable HDF5 cache"):
        Cache.open(path, HEADER)
    with Cache.open(path, HEADER, overwrite=True) as cache:
        cache.append("a", {"x": np.array([1])})
        with pytest.raises(CacheError, match="another process is writing it") as caught:
            Cache.open(path, HEADER)
    assert not isinstance(caught.value, StaleCacheError)
    with pytest.raises(StaleCacheError, match="made with other weights"):
        Cache.open(path, HEADER._replace(weights="other"))
    for error in (OSError(5, "Input/output error"), MemoryError()):
        with monkeypatch.context() as patch, pytest.raises(CacheError) as caught:
            patch.setattr("h5py.File", lambda *arguments, error=error: (_ for _ in ()).throw(error))
            Cache.open(path, HEADER, overwrite=True)
        assert not isinstance(caught.value, StaleCacheError)
    with Cache.open(path, HEADER) as cache:
        assert cache.ids() == ["a"]
