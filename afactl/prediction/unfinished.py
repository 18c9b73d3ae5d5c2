"""What a killed job has done already: a line per item, in a hidden folder that goes when the job ends.

Before a file is written a line says so too, so that the next call knows which files are the killed one's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from afactl.errors import BusyError, UsageError
from afactl.files import Lock, lock, whole_file

FOLDER = ".unfinished"
# Several processes of one job look at once whether another job is at work.
IDLE_SECONDS = 1.0


class Unfinished:
    """The record of a job that writes into a folder; several processes may share it, each with its own file.

    Args:
        out: the job's output folder; the record is OUT/.unfinished/.
        settings: what the results depend on, JSON-able; a record made with others counts for nothing.
        process: number of this process.

    Raises:
        OSError: the folder cannot be written.
        UsageError: another job is writing into it, or its file system has no locks.
    """

    def __init__(self, out: Path, settings: dict[str, Any], process: int = 0) -> None:
        self.out, self.folder, self.settings = out, out / FOLDER, settings
        made = [folder for folder in (self.folder, out) if not folder.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = _lock_of(out, self.folder / f"lock-{process}")
        except BaseException:
            for folder in made:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise
        own = self.folder / f"done-{process}.jsonl"
        self._known = self.lines()
        # Written again, so that a line which a kill cut off does not spoil the next one.
        with whole_file(own) as fresh:
            fresh.write_text(
                "".join(json.dumps(line) + "\n" for line in (settings, *_all_lines(own, settings))), encoding="utf-8"
            )
        self._file: TextIO = open(own, "a", encoding="utf-8")  # noqa: SIM115  (open until `close`)

    def done(self, item: str, source: Path) -> dict[str, Any] | None:
        """The values noted for an item by an earlier call, if it was noted for this source as it is now."""
        line = self._known.get(item)
        return line["values"] if line and line["source"] == _signature(source) else None

    def begin(self, files: Iterable[Path]) -> None:
        """Note that this job is about to write these files, so that the next call may replace them."""
        self._write({"begun": [_below(self.out, file) for file in files]})

    def note(self, item: str, source: Path, **values: Any) -> None:
        """Note that an item is finished; call it when the results are on the disk."""
        self._write({"item": item, "source": _signature(source), "values": values, "time": time.time_ns()})

    def lines(self) -> dict[str, dict[str, Any]]:
        """The last line of every item, of all processes: "source" and "values"."""
        noted = [line for path in self.folder.glob("done-*.jsonl") for line in _lines(path, self.settings)]
        return {line["item"]: line for line in sorted(noted, key=lambda line: line["time"])}

    def finish(self) -> None:
        """The job is finished: nothing of the record is needed any more."""
        self._file.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release()

    def close(self) -> None:
        """Leave the record for the next call, or for the process that finishes the job."""
        self._file.close()
        self._lock.release()

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def require_idle(out: Path) -> None:
    """See that no job is writing into a folder; nothing is made or changed there.

    Raises:
        UsageError: one is.
    """
    for path in sorted((out / FOLDER).glob("lock-*")):
        _lock_of(out, path, IDLE_SECONDS).release()


def begun_files(out: Path, settings: dict[str, Any]) -> set[Path]:
    """The files that killed jobs with these settings wrote, or were about to write; nothing is made or changed."""
    return {
        out / name
        for path in (out / FOLDER).glob("done-*.jsonl")
        for line in _all_lines(path, settings)
        if isinstance(line, dict) and line.keys() == {"begun"}
        for name in line["begun"]
    }


def _lock_of(out: Path, path: Path, seconds: float = 0.0) -> Lock:
    try:
        return lock(path, seconds)
    except BusyError as error:
        raise UsageError(
            f"{out}: another job is writing there; wait for it, or give another folder with --out"
        ) from error


def _below(out: Path, file: Path) -> str:
    return os.path.relpath(file, out)


def _signature(source: Path) -> list[Any]:
    """Changes when the file does."""
    try:
        status = source.stat()
    except OSError:
        return [str(source)]
    return [str(source.resolve()), status.st_size, status.st_mtime_ns]


def _lines(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The items of one process, or none where they were made with other settings."""
    return [
        line
        for line in _all_lines(path, settings)
        if isinstance(line, dict) and line.keys() == {"item", "source", "values", "time"}
    ]


def _all_lines(path: Path, settings: dict[str, Any]) -> list[Any]:
    """The whole lines of one process, or none where they were made with other settings."""
    lines: list[Any] = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    if not lines or lines[0] != json.loads(json.dumps(settings)):
        return []
    return lines[1:]
