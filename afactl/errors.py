"""Errors a user can act on. Each says what was expected, what came, and what to do.

Every error is one line of text and carries the exit code of the command that meets it:
2 for a call that cannot work as it was written, 1 for a job that failed on the way.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class AfactlError(Exception):
    """Base of all errors that `afactl` reports as one line. `exit_code` is the command's."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        # What came in is often part of the message, and may hold line breaks.
        super().__init__(" ".join(message.splitlines()))


class UsageError(AfactlError):
    """The call itself cannot work: a bad option, a folder that holds something else."""

    exit_code = 2


class PresetError(UsageError):
    """A preset is unknown, has an unknown key or a value of the wrong type or range."""


class DataError(AfactlError):
    """A photo, mask, label file or split is missing, broken or contradicts itself."""


class MissingDataError(DataError):
    """The call names a dataset, split or photo that is not there."""

    exit_code = 2


class UnknownValueError(DataError):
    """A mask holds a value or colour that is no class."""


class BusyError(AfactlError):
    """Another process is at work where only one may be."""


class CacheError(AfactlError):
    """An HDF5 cache was made by other weights or settings, or cannot be read."""


class StaleCacheError(CacheError):
    """Nothing of a cache can be used: it was made by other weights, settings or data, or is damaged."""


class CheckpointError(AfactlError):
    """Weights are missing, unreadable, or belong to another architecture."""


class DependencyError(AfactlError):
    """An optional package is needed for what was asked."""


class ShapeError(AfactlError, ValueError):
    """A tensor has another shape than the function's docstring states."""


def check_shape(name: str, tensor: torch.Tensor, axes: str, **sizes: int) -> None:
    """Raise unless `tensor` has one axis per letter of `axes`, with the sizes that are given.

    Args:
        name: what the caller calls the tensor, for the message.
        axes: axis names separated by blanks, such as ``"B C h w"``.
        sizes: expected sizes of some of those axes.

    Raises:
        ShapeError: the number of axes or a size differs.
    """
    letters = axes.split()
    if tensor.ndim != len(letters):
        raise ShapeError(f"{name}: expected {len(letters)} axes ({axes}), got shape {tuple(tensor.shape)}")
    for letter, size in zip(letters, tensor.shape, strict=True):
        if letter in sizes and sizes[letter] != size:
            raise ShapeError(
                f"{name}: expected {letter} = {sizes[letter]} in ({axes}), got shape {tuple(tensor.shape)}"
            )


# So many names of a list are one line that a person still reads.
LISTED = 30


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint such as `; did you mean "voc"?`, or the list, or its beginning, where nothing is close."""
    known = list(known)
    folded = {one.casefold(): one for one in reversed(known)}
    close = [folded[one] for one in difflib.get_close_matches(name.casefold(), folded, n=1)]
    more = f" and {len(known) - LISTED} more" if len(known) > LISTED else ""
    return f'; did you mean "{close[0]}"?' if close else f"; known: {', '.join(known[:LISTED])}{more}"


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number of things in words.

    Args:
        plural: of the noun, where it is not the noun with an "s".

    Example:
        >>> counted(1, "photo"), counted(2, "photo"), counted(0, "class", "classes")
        ('1 photo', '2 photos', '0 classes')
    """
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def first_line(error: BaseException) -> str:
    """The first line of a library's message, or the error's name where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
