"""A file whose changes reach the disk all together or not at all, whenever the process is killed.

HDF5 changes its index in place with many small writes; killed between two of them, a file is lost
as a whole. So what is written is kept in memory until a commit, then written to `FILE.journal` with a
checksum, and only then applied. Opening applies a journal that is whole and drops one that is not.

HDF5 calls these methods from C, through which no error of the disk finds its way as one. So they only read and
keep; what may fail, on a full disk say, is `commit`, which the owner of the file calls.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
from pathlib import Path

from afactl.files import whole_file

_HEAD = struct.Struct("<QQ")
# In place of a length: the change is a truncation to the offset.
_TRUNCATE = 2**64 - 1
_DIGEST = hashlib.sha256().digest_size


class JournaledFile:
    """An open file for `h5py.File(JournaledFile(path), ...)`; `commit` makes everything before it permanent.

    Args:
        path: made where it is missing. fresh: start with nothing in it.

    Raises:
        OSError: the file cannot be opened, or a journal that was left cannot be applied.
    """

    def __init__(self, path: Path, fresh: bool = False) -> None:
        self._journal = path.with_name(path.name + ".journal")
        if fresh:
            self._journal.unlink(missing_ok=True)
        self._file = open(path, "w+b" if fresh or not path.exists() else "r+b", buffering=0)  # noqa: SIM115  (open until `close`)
        self._pending: list[tuple[int, bytes | None]] = []
        self._recover()
        self._size = os.fstat(self._file.fileno()).st_size
        self._position = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As for any file."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        """As for any file."""
        return self._position

    def readinto(self, buffer: memoryview) -> int:
        """As for any file; what is pending lies over what is on the disk."""
        view, start = memoryview(buffer).cast("B"), self._position
        count = max(0, min(len(view), self._size - start))
        view[:count] = bytes(count)
        os.lseek(self._file.fileno(), start, os.SEEK_SET)
        read = 0
        while read < count and (got := self._file.readinto(view[read:count])):
            read += got
        for offset, data in self._pending:
            if data is None:  # truncated there, and perhaps extended again with zeros
                cut = max(0, offset - start)
                view[cut:count] = bytes(max(0, count - cut))
                continue
            low, high = max(offset, start), min(offset + len(data), start + count)
            if low < high:
                view[low - start : high - start] = data[low - offset : high - offset]
        self._position += count
        return count

    def read(self, count: int = -1) -> bytes:
        """As for any file."""
        buffer = bytearray(max(0, self._size - self._position) if count < 0 else count)
        return bytes(buffer[: self.readinto(memoryview(buffer))])

    def write(self, data: bytes) -> int:
        """Keep a change until the next commit."""
        data = bytes(data)
        self._pending.append((self._position, data))
        self._position += len(data)
        self._size = max(self._size, self._position)
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        """Keep a change of the size until the next commit."""
        size = self._position if size is None else size
        if size != self._size:
            self._pending.append((size, None))
            self._size = size
        return size

    def flush(self) -> None:
        """HDF5 has handed over all of its changes. They stay in memory."""

    def commit(self) -> None:
        """Make all changes so far permanent, together.

        Raises:
            OSError: as the system says it; the file is as before, or will be as after when it is opened again.
        """
        if not self._pending:
            return
        parts = [
            _HEAD.pack(offset, _TRUNCATE) if data is None else _HEAD.pack(offset, len(data)) + data
            for offset, data in self._pending
        ]
        body = b"".join(parts)
        # Whole or not at all: a journal that an earlier commit could not apply must not be lost to a full disk.
        with whole_file(self._journal) as fresh:
            fresh.write_bytes(body + hashlib.sha256(body).digest())
        self._apply(self._pending)
        self._journal.unlink()
        self._pending = []

    def close(self) -> None:
        """Close the file; changes after the last commit are dropped."""
        self._file.close()

    def _apply(self, changes: list[tuple[int, bytes | None]]) -> None:
        for offset, data in changes:
            if data is None:
                self._file.truncate(offset)
            else:
                self._file.seek(offset)
                view = memoryview(data)
                while view:
                    view = view[self._file.write(view) :]

    def _recover(self) -> None:
        if not self._journal.is_file():
            return
        content = self._journal.read_bytes()
        body, digest = content[:-_DIGEST], content[-_DIGEST:]
        if hashlib.sha256(body).digest() == digest:  # whole, so its changes count
            changes: list[tuple[int, bytes | None]] = []
            place = 0
            while place < len(body):
                offset, length = _HEAD.unpack_from(body, place)
                place += _HEAD.size
                if length == _TRUNCATE:
                    changes.append((offset, None))
                else:
                    changes.append((offset, body[place : place + length]))
                    place += length
            self._apply(changes)
        self._journal.unlink()
