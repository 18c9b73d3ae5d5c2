"""Writing files whole or not at all, by one process at a time, and over nothing that somebody else wrote."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import re
import secrets
import stat
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from filelock import FileLock, Timeout

from afactl.errors import AfactlError, BusyError, UsageError, first_line

try:
    import fcntl
except ImportError:  # Windows, where a file that was left is known by nothing, and stays
    fcntl = None  # type: ignore[assignment]  # a module elsewhere

# What the system says of a file system that knows no locks.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
# Set by `without_locks`.
_locking = True
# Folders in which this process has looked for what killed ones left.
_swept: set[str] = set()


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Inside the block, the name to write under; when it ends well, the file there takes the place of `path`.

    Whatever stops the block leaves the former `path` as it was. Missing folders are made. Every writer has a name
    of its own, so that several may write one path: the last one's file stands there, whole. What a killed process
    left in the folder is removed, once it is certain that no process writes it any more. A device or a pipe is
    written as it is.

    Raises:
        OSError: as the system says it; the half-written file is removed.
    """
    if is_device(path):
        yield path
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent)
    fresh, alive = _new_file(path.parent)
    try:
        os.utime(fresh, ns=(0, 0))  # so that any write is seen
        untouched = os.stat(fresh).st_mtime_ns
        yield fresh
        if os.stat(fresh).st_mtime_ns == untouched:
            raise FileNotFoundError(errno.ENOENT, "nothing was written", str(path))
        os.replace(fresh, path)
    except BaseException:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise
    finally:
        if alive is not None:
            os.close(alive)


@contextlib.contextmanager
def writing(
    what: str,
    advice: str,
    kind: type[AfactlError] = UsageError,
    also: tuple[type[Exception], ...] = (),
) -> Iterator[None]:
    """Inside the block, what the system has against writing becomes one line.

    Args:
        what: is written, as the user knows it: an option with its value, or a file.
        advice: what to do about it.
        kind: of the error.
        also: what a library raises in place of an OSError where the disk is full.

    Raises:
        AfactlError: of that kind.
    """
    try:
        yield
    except OSError as error:
        raise kind(f"{what}: cannot be written ({error.strerror or first_line(error)}); {advice}") from error
    except also as error:
        raise kind(f"{what}: cannot be written ({first_line(error)}); {advice}") from error


def is_device(path: Path) -> bool:
    """Whether a name stands for a device, a pipe or an open file (/dev/stdout) and not for a file of its own."""
    folder = os.path.realpath(path.parent)
    if folder == "/dev" or folder.startswith("/proc/"):
        return True
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


@lru_cache(maxsize=1)
def _kernel() -> str:
    """8 hex digits of the running system: a lock tells whether a process lives to those of the same one only."""
    try:
        name = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        name = platform.node()
    return hashlib.sha256(name.encode(errors="replace")).hexdigest()[:8]


def _new_file(folder: Path) -> tuple[Path, int | None]:
    """An empty file of a new name, and the handle whose lock tells other processes that its writer lives."""
    while True:
        fresh = folder / f".afactl-{_kernel()}-{secrets.token_hex(8)}.part"
        handle = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        if fcntl is None:
            os.close(handle)
            return fresh, None
        # Without locks nothing that is left can be told from what is being written, and nothing is removed.
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(fresh), os.fstat(handle)):
                return fresh, handle
        os.close(handle)  # another process took it for left, before it was locked


def _sweep(folder: Path) -> None:
    """Remove what killed processes left in a folder, the first time this process writes there."""
    key = os.path.realpath(folder)
    if fcntl is None or key in _swept:
        return
    _swept.add(key)
    pattern = re.compile(rf"\.afactl-{_kernel()}-[0-9a-f]{{16}}\.part")
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for name in [entry.path for entry in entries if pattern.fullmatch(entry.name)]:
            with contextlib.suppress(OSError):
                handle = os.open(name, os.O_RDWR)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails where its writer lives
                    os.unlink(name)
                finally:
                    os.close(handle)


def is_utf8(name: str) -> bool:
    """Whether a name can be written as UTF-8. Names of files need not: Python keeps those by halves of characters."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def nearest_existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    while not path.exists():
        path = path.parent
    return path


def require_free(
    outputs: Iterable[tuple[str, Path | None]], overwrite: bool = False, inputs: Iterable[Path] = ()
) -> None:
    """See that a command may write the files that its user names. Called before any work; the rule for all of them:

    - Nothing is replaced that is there already, unless the user says so.
    - What the command reads, such as a photo, is never replaced.
    - No two results have one name, nor two that some systems take for one ("A.png" and "a.png").

    What a command names itself in a run folder, such as a figure, is its own. A device or a pipe is no file. Looked at
    once: what another program puts there while the command works is replaced at its end.

    Args:
        outputs: pairs of the option, as the user knows it, and a file; None where the option was not given.
        overwrite: the user says so.
        inputs: files that the command reads.

    Raises:
        UsageError: what is in the way, and what to do.
    """
    files = [(option, path) for option, path in outputs if path is not None and not is_device(path)]
    read = {key for path in inputs if (key := _identity(path)) is not None}
    names: dict[str, Path] = {}
    there: dict[str, list[Path]] = {}
    for option, path in files:
        name = _folded(path)
        if name in names:
            both = path if names[name] == path else f"{names[name]} and {path}"
            raise UsageError(f"{option}: two results would be one file ({both}); give them different names or folders")
        names[name] = path
        if path.is_dir():
            raise UsageError(f"{option}: {path} is a folder; give another name")
        if not os.path.lexists(path):
            _require_writable(option, path)
            continue
        if _identity(path) in read:
            raise UsageError(f"{option}: {path} is read by this command and never overwritten; give another name")
        there.setdefault(option, []).append(path)
    for option, paths in there.items() if not overwrite else ():
        more = f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""
        raise UsageError(
            f"{option}: {paths[0]}{more} is there already; give another name, or --overwrite to replace it"
        )


def _require_writable(option: str, path: Path) -> None:
    """See that the folders which are missing can be made, so that a long job does not end at its last line."""
    folder = path.parent
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise UsageError(f"{option} {path}: cannot be written ({folder} is no folder); give another name")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{option} {path}: cannot be written (no permission in {folder}); give another name")


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file a name stands for, whatever the name; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _folded(path: Path) -> str:
    """Equal for names that a file system may take for one: they may differ in case, or in how an accent is written."""
    return unicodedata.normalize("NFC", os.path.realpath(path.parent) + os.sep + path.name).casefold()


class Lock:
    """Keeps other processes out until it is released, or until this process ends, however it ends."""

    def __init__(self, held: FileLock | None) -> None:
        self._held = held

    def release(self) -> None:
        """Let others in; a second time changes nothing."""
        if self._held is not None:
            self._held.release()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def lock(path: Path, seconds: float = 0.0) -> Lock:
    """Keep other processes out.

    Args:
        path: an empty file that the lock is tied to. It stays: one that was removed would lock nobody out.
        seconds: to wait for another process.

    Raises:
        BusyError: another process has it. UsageError: the file system has no locks. OSError: as the system says it.
    """
    if not _locking:
        return Lock(None)
    _require_locks(path.parent)
    held = FileLock(path)
    try:
        held.acquire(timeout=seconds)
    except Timeout as error:
        raise BusyError(f"{path.parent}: another process is at work there; wait for that one to end") from error
    return Lock(held)


@contextlib.contextmanager
def without_locks() -> Iterator[None]:
    """Inside the block nothing is locked: for file systems that know no locks, at the user's own risk."""
    global _locking
    before, _locking = _locking, False
    try:
        yield
    finally:
        _locking = before


def _require_locks(folder: Path) -> None:
    """See that a folder's file system knows locks; some versions of `filelock` wait for ever where it does not."""
    if fcntl is None:
        return
    with tempfile.TemporaryFile(dir=folder) as probe:
        try:
            fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            raise UsageError(
                f"{folder}: this file system has no locks ({error.strerror}), which keep two commands from writing one "
                "file; use a folder on another one, or add --no-lock and see yourself that one command works there"
            ) from error
