"""HDF5 store of a stage's results, one group per image.

/images/<id>/<array>        plain arrays
/images/<id> @complete      without it the image does not count
/ @schema @stage @settings @weights @data @complete

One image is appended at a time. HDF5 writes its tree to disk in no safe order, so it goes through a
journal (`journal.py`): all of an image reaches the file, or nothing.

Ids are percent-encoded, since "/" and "." have a meaning in HDF5 paths.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import h5py
import numpy as np

from afactl.errors import BusyError, CacheError, StaleCacheError, first_line
from afactl.files import Lock, lock, writing
from afactl.runs.journal import JournaledFile

# 2: affinity and attention inside their window alone, as logarithms.
SCHEMA = 2
LOCK_SECONDS = 2.0
# What h5py raises on a file whose bytes are not what they should be.
DAMAGE = (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError, MemoryError)
# Below this an array is stored as it is: compression would cost more than it saves.
COMPRESS_BYTES = 1024


class CacheHeader(NamedTuple):
    """What a cache was made with; a later job must agree with all of it.

    Attributes:
        stage: which job's results. settings: the preset values they depend on, JSON-able.
        weights: hash of the weights. data: fingerprint of the split.
    """

    stage: str
    settings: dict[str, Any]
    weights: str
    data: str


def cache_path(run: Path, stage: str, split: str) -> Path:
    """Where a run keeps the results of a stage for a split."""
    return run / "cache" / f"{stage}-{split}.h5"


def encode_id(image_id: str) -> str:
    """A name for HDF5 from any image id; `decode_id` gives the id back.

    Raises:
        CacheError: the empty id.
    """
    if not image_id:
        raise CacheError("cache: expected an image id, got an empty one")
    name = quote(image_id, safe=" ", errors="surrogatepass")
    # HDF5 gives "." a meaning as a whole name only.
    return name.replace(".", "%2E") if set(name) == {"."} else name


def decode_id(name: str) -> str:
    """The image id of an encoded name."""
    return unquote(name, errors="surrogatepass")


class Cache:
    """An open cache; made by `Cache.open`. A context manager, which closes the file."""

    def __init__(self, path: Path, file: h5py.File, disk: JournaledFile, held: Lock) -> None:
        self.path, self._file, self._disk, self._lock = path, file, disk, held
        self._complete = {name for name, group in file["images"].items() if group.attrs.get("complete")}

    @classmethod
    def open(cls, path: Path, header: CacheHeader, overwrite: bool = False) -> Cache:
        """Open a cache for appending, or make it.

        Args:
            overwrite: throw away what is there, where nothing of it can be used.

        Raises:
            StaleCacheError: made by other weights, data, settings or version (says which), or not a cache.
            CacheError: another process has it open, or the folder cannot be written.
            UsageError: the file system has no locks.
        """
        try:
            with _writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                held = lock(path.with_name(f"{path.name}.lock"), LOCK_SECONDS)
        except BusyError as error:
            raise CacheError(f"{path}: another process is writing it; wait for that one to end") from error
        try:
            return cls._open_locked(path, header, overwrite, held)
        except BaseException:
            held.release()
            raise

    @classmethod
    def _open_locked(cls, path: Path, header: CacheHeader, overwrite: bool, held: Lock) -> Cache:
        try:
            return cls(path, *_open_file(path, header), held)
        except StaleCacheError:
            if not overwrite:
                raise
        except DAMAGE as error:
            # What the system says of the disk or the memory says nothing of the file.
            known = isinstance(error, MemoryError) or getattr(error, "errno", None)
            text = f"{path}: not a readable HDF5 cache ({first_line(error)})"
            if known:
                raise CacheError(f"{text}; mend that, then call again") from error
            if not overwrite:
                raise StaleCacheError(f"{text}; --overwrite makes it again") from error
        return cls(path, *_create(path, header), held)

    def __enter__(self) -> Cache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and let others in."""
        self._file.close()
        self._lock.release()

    def __contains__(self, image_id: str) -> bool:
        return encode_id(image_id) in self._complete

    def __len__(self) -> int:
        return len(self._complete)

    def ids(self) -> list[str]:
        """Ids of the complete images, in the order in which they came."""
        return [decode_id(name) for name in self._file["images"] if name in self._complete]

    def append(self, image_id: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Add an image. What a killed writer left of it is replaced.

        Raises:
            CacheError: the image is complete already, an array holds Python objects, or the disk is full.
        """
        name = encode_id(image_id)
        if name in self._complete:
            raise CacheError(f"{self.path}: {image_id} is there already")
        for key, array in arrays.items():
            if array.dtype.hasobject:
                raise CacheError(f"{self.path}: {key} of {image_id} holds Python objects; only plain arrays are kept")
        images = self._file["images"]
        if name in images:
            del images[name]
        group = images.create_group(name, track_order=True)
        for key, array in arrays.items():
            packed = (
                {"compression": "gzip", "compression_opts": 1, "shuffle": True} if array.nbytes > COMPRESS_BYTES else {}
            )
            group.create_dataset(key, data=array, **packed)
        group.attrs["complete"] = True
        _commit(self.path, self._file, self._disk)  # all of the image reaches the disk, or nothing
        self._complete.add(name)

    def read(self, image_id: str) -> dict[str, np.ndarray]:
        """All arrays of an image.

        Raises:
            CacheError: the image is not there, or not whole.
        """
        name = encode_id(image_id)
        if name not in self._complete:
            raise CacheError(f"{self.path}: holds no complete {image_id}; dump it first: afactl dump-cams")
        try:
            return {key: dataset[()] for key, dataset in self._file["images"][name].items()}
        except DAMAGE as error:
            raise CacheError(
                f"{self.path}: {image_id} cannot be read ({error}); remove the file, which is then made again"
            ) from error


def _open_file(path: Path, header: CacheHeader) -> tuple[h5py.File, JournaledFile]:
    if not path.exists():
        return _create(path, header)
    disk = _open_disk(path)
    file = h5py.File(disk, "r+")
    if not file.attrs.get("complete"):  # killed while the header was being written: nothing is lost
        file.close()
        return _create(path, header)
    if (schema := file.attrs.get("schema")) != SCHEMA:
        file.close()
        raise StaleCacheError(
            f"{path}: written by another version of afactl (format {schema}, now {SCHEMA}); --overwrite makes it again"
        )
    differences = _differences(file, header)
    if differences:
        file.close()
        raise StaleCacheError(f"{path}: made with other {'; '.join(differences)}; --overwrite makes it again")
    return file, disk


def _create(path: Path, header: CacheHeader) -> tuple[h5py.File, JournaledFile]:
    disk = _open_disk(path, fresh=True)
    file = h5py.File(disk, "w", track_order=True)
    file.create_group("images", track_order=True)
    for key, value in {"schema": SCHEMA, **_attributes(header)}.items():
        file.attrs[key] = value
    file.attrs["complete"] = True
    _commit(path, file, disk)
    return file, disk


def _open_disk(path: Path, fresh: bool = False) -> JournaledFile:
    with _writing(path):
        return JournaledFile(path, fresh)


def _commit(path: Path, file: h5py.File, disk: JournaledFile) -> None:
    file.flush()
    with _writing(path):
        disk.commit()


def _writing(path: Path) -> AbstractContextManager[None]:
    return writing(str(path), "what was finished is kept: make room, then call again", CacheError)


def _attributes(header: CacheHeader) -> dict[str, Any]:
    settings = json.dumps(header.settings, sort_keys=True)
    return {
        "stage": header.stage,
        "settings": settings,
        "weights": header.weights,
        "data": header.data,
    }


def _differences(file: h5py.File, header: CacheHeader) -> list[str]:
    """What of the header differs, in words."""
    out = []
    for key, value in _attributes(header).items():
        stored = file.attrs.get(key)
        if stored is not None:
            stored = str(stored)
        if stored == value:
            continue
        if key == "settings":
            out += _setting_differences(json.loads(stored or "{}"), header.settings)
        else:
            out.append(f"{key} ({stored} there, {value} now)")
    return out


def _setting_differences(there: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    out = []
    for key in sorted(there.keys() | now.keys()):
        old, new = there.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            out += _setting_differences(old, new, f"{prefix}{key}.")
        elif old != new:
            out.append(f"{prefix}{key} ({old} there, {new} now)")
    return out
