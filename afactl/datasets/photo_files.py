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
# Pillow opens some of them as the small preview that they hold, which is not the photo.
RAW_SUFFIXES = (
    *(".3fr", ".arw", ".cr2", ".cr3", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf"),
    *(".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
)
LAYER_SUFFIXES = (".psd", ".psb", ".xcf", ".afphoto", ".kra", ".clip")
VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".m4v", ".mpg", ".mpeg", ".mts", ".m2ts", ".wmv", ".webm", ".3gp")
# What to do about files that hold pictures and are no photos here: (kind, suffixes, advice).
_KINDS = (
    ("camera RAW", RAW_SUFFIXES, "export as JPEG"),
    ("pictures in layers", LAYER_SUFFIXES, "export as JPEG or PNG"),
    ("video", VIDEO_SUFFIXES, "save single frames as JPEG"),
)
_PICTURES = frozenset((*RAW_SUFFIXES, *LAYER_SUFFIXES, *VIDEO_SUFFIXES))
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
        others: files of other suffixes below it, by suffix; directly in it only those that hold pictures.
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
        elif entry.name != CLASS_TABLE and (folder != top or entry.suffix.lower() in _PICTURES):
            files.others[entry.suffix.lower() or entry.name] += 1


def passed_over(files: FoundFiles, homeless: int = 0) -> tuple[str, ...]:
    """What is to be said about a search: a line for each kind of file that holds pictures, and one for the rest.

    Args:
        homeless: photos that lie in no class folder.
    """
    notes = tuple(f"passed over: {note}" for note in unread_pictures(files.others))
    parts = []
    rest = Counter({suffix: count for suffix, count in files.others.items() if suffix not in _PICTURES})
    if rest:
        parts.append(f"{counted(rest.total(), 'other file')} ({_by_suffix(rest)})")
    if files.hidden:
        names = ", ".join("hidden files" if name == ".*" else name for name in sorted(files.hidden))
        parts.append(f"{counted(files.hidden.total(), 'hidden or system entry', 'hidden or system entries')} ({names})")
    if homeless:
        parts.append(f"{counted(homeless, 'photo')} in no class folder")
    return (*notes, f"passed over: {'; '.join(parts)}") if parts else notes


def unread_pictures(suffixes: Counter[str]) -> tuple[str, ...]:
    """A line for each kind of file that holds pictures and is not read: camera RAW, layers, videos; and what to do.

    Args:
        suffixes: numbers of files by suffix, in lower case.
    """
    notes = []
    for kind, members, advice in _KINDS:
        found = Counter({suffix: suffixes[suffix] for suffix in members if suffixes[suffix]})
        if found:
            files = counted(found.total(), "file")
            notes.append(f"{files} of {kind} ({_by_suffix(found)}), not read here: {advice}")
    return tuple(notes)


def _by_suffix(counts: Counter[str]) -> str:
    return ", ".join(f"{suffix} {count}" for suffix, count in sorted(counts.items()))
