"""Fonts for the names of classes and photos in pictures, whatever script they are in."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

# Matplotlib brings it along; it has Latin, Greek, Cyrillic, Arabic and more.
DEFAULT = "DejaVu Sans"
# A character that no font here has is drawn as a box; docs/troubleshooting.md says what to install.
warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
# It would tell that a font has one weight only, once for each text.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)


@lru_cache(maxsize=64)
def families_for(text: str) -> list[str]:
    """The default font, then installed ones that have the characters it lacks."""
    chosen, missing = [], _drawn(text)
    for name, path in _installed():
        covered = missing & _characters(path) if missing else set()
        if covered or name == DEFAULT:
            chosen.append(name)
            missing -= covered
    return chosen


@lru_cache(maxsize=64)
def font_file(text: str) -> Path:
    """The first font that has all characters of a text; the default one where none has."""
    needed, fonts = _drawn(text), list(_installed())
    return next((path for _, path in fonts if needed <= _characters(path)), fonts[0][1])


def _drawn(text: str) -> set[int]:
    return {ord(character) for character in text if not character.isspace()}


def _installed() -> Iterator[tuple[str, Path]]:
    """Name and file of each installed family, the default one first."""
    from matplotlib import font_manager

    yield DEFAULT, Path(font_manager.findfont(DEFAULT))
    upright = [font for font in font_manager.fontManager.ttflist if font.style == "normal"]
    for font in sorted(upright, key=lambda font: (abs(int(font.weight) - 400), font.name)):
        # "Last Resort" has a box for every character there is.
        if font.name != DEFAULT and "Last Resort" not in font.name:
            yield font.name, Path(font.fname)


@lru_cache(maxsize=512)
def _characters(path: Path) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(path)).get_charmap())
