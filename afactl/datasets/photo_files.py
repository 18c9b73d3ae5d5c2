"""Which files of a folder are photos, and what is passed over on the way."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from afactl.errors import counted
from afactl.labels import CLASS_TABLE

# What Pillow reads; HEIC by the extra afactl[heic].
HEIC_SUFFIXES = (".heic", ".heif")
PHOTO_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".gif", ".tif", ".tiff", ".bmp"),
    *HEIC_SUFFIXES,
)
# Folders that systems and network disks leave beside photos; hidden ones begin with a dot.
SYSTEM_FOLDERS = frozenset(
    (
        *("__MACOSX", "__pycache__", "System Volume Information", "lost+found"),
        *("$RECYCLE.BIN", "RECYCLER", "@eaDir", "@Recycle", "@Recently-Snapshot", "#recycle", "#snapshot"),
    )
)


class FoundFiles(NamedTuple):
    """What a folder holds.

    Attributes:
        photos: sorted, links to files and folders followed.
        others: files of other suffixes below it, but not directly in it, by suffix.
        hidden: hidden files and folders, and those of systems, by name.
    """

    photos: list[Path]
    others: Counter[str]
    hidden: Counter[str]


def is_hidden(name: str) -> bool:
    """Whether a file or folder belongs to a system and not to the user."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def find_files(folder: Path, leave_out: Collection[str] = ()) -> FoundFiles:
    """Search a folder through.

    Args:
        leave_out: names of folders directly in it that hold something else; nothing is said of them.
    """
    files = FoundFiles([], Counter(), Counter())
    _search(folder, folder, frozenset(), leave_out, files)
    files.photos.sort()
    return files


def _search(top: Path, folder: Path, above: frozenset[str], leave_out: Collection[str], files: FoundFiles) -> None:
    here = os.path.realpath(folder)
    if here in above:  # a link back to where it lies
        return
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and folder == top and entry.name in leave_out:
            continue
        if is_hidden(entry.name):
            files.hidden[entry.name if entry.is_dir() else ".*"] += 1
        elif entry.is_dir():
            _search(top, entry, above | {here}, leave_out, files)
        elif entry.suffix.lower() in PHOTO_SUFFIXES:
            files.photos.append(entry)
        elif folder != top and entry.name != CLASS_TABLE:
            files.others[entry.suffix.lower() or entry.name] += 1


def passed_over(files: FoundFiles, homeless: int = 0) -> tuple[str, ...]:
    """What is to be said about a search, in at most one line.

    Args:
        homeless: photos that lie in no class folder.
    """
    parts = []
    if files.others:
        kinds = ", ".join(f"{suffix} {count}" for suffix, count in sorted(files.others.items()))
        parts.append(f"{counted(files.others.total(), 'other file')} ({kinds})")
    if files.hidden:
        names = ", ".join("hidden files" if name == ".*" else name for name in sorted(files.hidden))
        parts.append(f"{counted(files.hidden.total(), 'hidden or system entry', 'hidden or system entries')} ({names})")
    if homeless:
        parts.append(f"{counted(homeless, 'photo')} in no class folder")
    return (f"passed over: {'; '.join(parts)}",) if parts else ()
