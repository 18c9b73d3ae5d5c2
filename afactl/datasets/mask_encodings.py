"""Which class numbers the pixels of an image stand for: the encodings in which people keep masks.

grey        the number itself, with 8 or 16 bits
colours     those of VOC (`voc_palette`), or greys that are the number itself
indexed     the index is the number; but where the palette has VOC's colours in another order, as an editor
            leaves them, the colours count
two tones   one bit, or a palette of black and white: white is the class where there is only one

Whatever can be read in two ways with different results is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, TypeGuard

import numpy as np
from PIL import Image

from afactl.errors import DataError, UnknownValueError
from afactl.labels import IGNORE

BLACK, WHITE = 0x000000, 0xFFFFFF
# Colours as one number 0xRRGGBB.
CHANNELS = np.array([1 << 16, 1 << 8, 1])
ADVICE = "save class numbers as a grey PNG"


class Encoded(NamedTuple):
    """An h x w uint8 mask as it is stored, and whether it is black and white only: then 255 is white."""

    values: np.ndarray
    two_tones: bool


def voc_palette() -> np.ndarray:
    """The colours of PASCAL VOC: 256 x 3 uint8; bit k of a class number goes to bit 7 - k // 3 of channel k % 3."""
    numbers = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        palette[:, bit % 3] |= (((numbers >> bit) & 1) << (7 - bit // 3)).astype(np.uint8)
    return palette


_VOC: dict[int, int] = {code: value for value, code in enumerate((voc_palette() @ CHANNELS).tolist())}


def decode(path: Path, image: Image.Image, classes: int) -> Encoded:
    """The class numbers of an image.

    Args:
        path: of the file, for messages.
        image: a decoded mask in the mode that it is stored in.
        classes: C; numbers above it are no classes, which tells one encoding from another.

    Returns:
        Values as stored: 0 background, 255 ignored or white; numbers above C are for the caller to refuse.

    Raises:
        DataError: a mode that holds no class numbers. UnknownValueError: no encoding fits, or more than one does.
    """
    if image.mode == "1":
        return Encoded(np.array(image.convert("L")), True)
    if image.mode == "L":
        return Encoded(np.array(image), False)
    if image.mode == "P":
        return _indexed(path, image, classes)
    if image.mode.startswith("I"):
        return Encoded(_deep(path, np.asarray(image)), False)
    if image.mode in ("RGB", "RGBA", "LA"):
        return Encoded(_coloured(path, image, classes), False)
    raise DataError(
        f"{path}: expected an indexed, grey or colour-coded mask, got mode {image.mode}; save class numbers as PNG"
    )


def _deep(path: Path, values: np.ndarray) -> np.ndarray:
    """Class numbers of 16 bits or more, whose white is 65535."""
    known = np.where(values == 65535, IGNORE, values)
    wrong = known[(known < 0) | (known > IGNORE)]
    if len(wrong):
        raise UnknownValueError(f"{path}: expected class numbers up to {IGNORE}, got {wrong[0]}; {ADVICE}")
    return known.astype(np.uint8)


def _coloured(path: Path, image: Image.Image, classes: int) -> np.ndarray:
    """h x w in colours -> numbers; what is transparent is background."""
    colors = np.asarray(image.convert("RGB")) @ CHANNELS
    if image.mode != "RGB":
        colors[np.asarray(image.getchannel("A")) == 0] = BLACK
    codes, place = np.unique(colors, return_inverse=True)
    used = codes.tolist()
    # Some greys are VOC's colours, others are the number itself.
    complete = [
        values for values in ([_VOC.get(code) for code in used], [_grey(code) for code in used]) if None not in values
    ]
    fitting = [values for values in complete if all(_fits(value, classes) for value in values)]
    for values in (*fitting, *complete):
        numbers: np.ndarray = np.array(values, np.uint8)[place].reshape(colors.shape)
        return numbers
    strange = next(code for code in used if code not in _VOC)
    raise UnknownValueError(f"{path}: colour #{strange:06x} is none of VOC's; {ADVICE}, or use VOC's colours")


def _indexed(path: Path, image: Image.Image, classes: int) -> Encoded:
    indices = np.array(image)
    palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    if np.array_equal(palette, voc_palette()[: len(palette)]):
        return Encoded(indices, False)
    codes = (palette @ CHANNELS).tolist()
    if WHITE in codes and set(codes) <= {BLACK, WHITE}:
        if codes[0] == WHITE:
            raise UnknownValueError(f"{path}: the palette has white at 0, where background belongs; {ADVICE}")
        white = [index for index, code in enumerate(codes) if code == WHITE]
        return Encoded(np.isin(indices, white) * np.uint8(IGNORE), True)
    try:
        by_color = _by_color(values_of(indices, 0, 256), codes, classes)
    except UnknownValueError as error:
        raise UnknownValueError(f"{path}: {error}; {ADVICE}") from error
    if by_color is None:
        return Encoded(indices, False)
    table = np.zeros(256, np.uint8)
    table[list(by_color)] = list(by_color.values())
    return Encoded(table[indices], False)


def _by_color(used: list[int], codes: list[int], classes: int) -> dict[int, int] | None:
    """Index -> class number where the palette's colours count; None where the index is the number.

    Args:
        used: indices that occur. codes: the palette as 0xRRGGBB.

    Raises:
        UnknownValueError: the palette has colours of classes, and they do not fit the indices.
    """
    colors = {index: codes[index] for index in used if index < len(codes)}
    distinct = len(set(colors.values())) == len(used)
    voc = {index: value for index in colors if _fits(value := _VOC.get(colors[index]), classes)}
    # A photo of nothing but background tells by the colours that it does not use.
    evidence = dict(enumerate(codes)) if any(value == 0 < index for index, value in voc.items()) else colors
    moved = next((i for i, code in evidence.items() if _names_another(code, i, classes)), None)
    if moved is not None:
        if distinct and len(voc) == len(used):
            greys = {index: value for index in colors if _fits(value := _grey(colors[index]), classes)}
            if greys != voc and len(greys) == len(used):
                raise UnknownValueError(
                    f"the palette's greys {sorted(greys.values())} are VOC's colours of other classes"
                )
            return voc
        strange = [f"#{color:06x} is no class's" for index, color in colors.items() if index not in voc]
        raise UnknownValueError(
            f"the palette has VOC's colour of {_VOC[codes[moved]]} at {moved}, "
            f"but {(strange or ['others share a colour'])[0]}"
        )
    grey = {index: value for index in colors if _fits(value := _grey(colors[index]), classes)}
    shades = {index: value for index, code in evidence.items() if _fits(value := _grey(code), classes)}
    moved = next((index for index, value in shades.items() if value not in (0, index)), None)
    # White alone is no number: it may be the end of a ramp.
    if moved is None or len(grey) < len(used) or not distinct or set(shades.values()) <= {0, IGNORE}:
        return None
    if all(_fits(index, classes) for index in used):
        raise UnknownValueError(f"the palette has grey {shades[moved]} at {moved}: either may be the class")
    return grey


def _names_another(code: int, index: int, classes: int) -> bool:
    """Whether a colour is VOC's of a class, and neither this nor the grey is the index at which it stands."""
    value = _VOC.get(code)
    return _fits(value, classes) and value not in (0, index) and _grey(code) != index


def values_of(mask: np.ndarray, first: int = 1, end: int = IGNORE) -> list[int]:
    """The values from `first` to before `end` that occur in an h x w uint8 mask, sorted; by default the classes."""
    counts = pixels_of(mask)
    return [value for value in range(first, end) if counts[value]]


def pixels_of(mask: np.ndarray) -> list[int]:
    """How many pixels of an h x w uint8 mask have each of the 256 values."""
    # Pillow counts bytes as they are; NumPy would make integers of eight bytes of them first.
    return Image.fromarray(mask).histogram()


def _grey(color: int) -> int | None:
    red, green, blue = color >> 16, color >> 8 & 255, color & 255
    return red if red == green == blue else None


def _fits(value: int | None, classes: int) -> TypeGuard[int]:
    return value is not None and (value <= classes or value == IGNORE)
