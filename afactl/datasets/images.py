"""Reading photos and masks from files, and writing masks."""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from afactl.errors import DataError, UnknownValueError
from afactl.files import whole_file
from afactl.labels import IGNORE

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
# Pillow raises beyond twice its limit and only warns before; here such a file is refused all the same.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_image(path: Path) -> np.ndarray:
    """A photo as h x w x 3 uint8 RGB, an array of its own.

    EXIF orientation is honoured. Grey and palette images become RGB, 16-bit ones are scaled to
    8 bit, and transparency lies on white.

    Raises:
        DataError: missing, empty, truncated, no image, or larger than Pillow's limit.
    """
    image = _open(path)
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    elif image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    ImageOps.exif_transpose(image, in_place=True)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def decoded_photo(path: Path) -> tuple[tuple[int, int], bytes]:
    """(height, width) as `read_image` gives them, and the SHA-256 of the file; the whole photo is decoded.

    Raises:
        DataError: as `read_image`.
    """
    content = _content(path)
    image = _decode(path, content)
    return _upright_size(image), hashlib.sha256(content).digest()


def _open(path: Path) -> Image.Image:
    """A decoded image; every way in which a file can be broken becomes one line."""
    return _decode(path, _content(path))


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        found = f"a link to {path.readlink()}, which is not there" if path.is_symlink() else "none"
        raise DataError(f"{path}: expected an image file, found {found}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not content:
        raise DataError(f"{path}: the file is empty; copy it again or take it off the list")
    return content


def _decode(path: Path, content: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(content))
        if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError
        image.load()
    except Image.DecompressionBombError as error:
        limit = Image.MAX_IMAGE_PIXELS
        raise DataError(f"{path}: more than the {limit} pixels that Pillow accepts; reduce the image") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: no image format that Pillow knows; convert it to JPEG or PNG") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise DataError(f"{path}: truncated or damaged ({error}); copy it again or take it off the list") from error
    return image


def reduce_image(image: np.ndarray, pixels: int) -> np.ndarray:
    """The photo, h x w x 3 uint8, or a smaller one of the same shape with at most so many pixels."""
    height, width = image.shape[:2]
    if height * width <= pixels:
        return image
    factor = (pixels / (height * width)) ** 0.5
    size = (max(1, int(width * factor)), max(1, int(height * factor)))
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))


def enlarge_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An h x w uint8 mask at another size (h, w), by the nearest pixel."""
    if mask.shape == size:
        return mask
    return np.array(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) as `read_image` gives them, without decoding.

    Raises:
        DataError: missing or no image.
    """
    try:
        with Image.open(path) as image:
            return _upright_size(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path}: expected an image file ({error})") from error


def _upright_size(image: Image.Image) -> tuple[int, int]:
    # Orientations 5 to 8 turn the photo by a quarter.
    turned = image.getexif().get(0x0112, 1) >= 5
    return image.size if turned else image.size[::-1]


def read_mask(path: Path, classes: int) -> np.ndarray:
    """A true mask as h x w uint8: background 0, class c as c + 1, ignored 255.

    Args:
        path: an indexed or grey PNG, or one in the colours of VOC.
        classes: C; values above it and below 255 are refused.

    Raises:
        DataError: missing or damaged. UnknownValueError: a value that is no class, or a colour that VOC does not use.
    """
    image = _open(path)
    if image.mode in ("RGB", "RGBA"):
        mask = _indices_of(path, np.asarray(image.convert("RGB")))
    elif image.mode in ("P", "L", "1"):
        mask = np.array(image.convert("L") if image.mode == "1" else image)
    else:
        raise DataError(
            f"{path}: expected an indexed, grey or colour-coded mask, got mode {image.mode}; save class numbers as PNG"
        )
    counts = np.array(Image.fromarray(mask).histogram())
    wrong = np.flatnonzero(counts[classes + 1 : IGNORE]) + classes + 1
    if len(wrong):
        raise UnknownValueError(
            f"{path}: expected mask values 0..{classes} or 255, got {wrong[0]} in {counts[wrong[0]]} pixels; "
            "check the class list against the masks"
        )
    return mask


def values_of(mask: np.ndarray) -> list[int]:
    """The values that occur in an h x w uint8 mask, sorted, without 0 and 255."""
    # Pillow counts bytes as they are; NumPy would make integers of eight bytes of them first.
    counts = Image.fromarray(mask).histogram()
    return [value for value in range(1, IGNORE) if counts[value]]


def _indices_of(path: Path, colors: np.ndarray) -> np.ndarray:
    """h x w x 3 in the colours of VOC -> h x w uint8."""
    steps = np.array([1 << 16, 1 << 8, 1])
    known = voc_palette().astype(np.int64) @ steps
    order = np.argsort(known)
    codes, place = np.unique(colors.astype(np.int64) @ steps, return_inverse=True)
    found = order[np.searchsorted(known, codes, sorter=order).clip(max=255)]
    strange = codes[known[found] != codes]
    if len(strange):
        raise UnknownValueError(
            f"{path}: colour #{strange[0]:06x} is none of VOC's; save class numbers as an indexed PNG, or use VOC's colours"
        )
    return found.astype(np.uint8)[place].reshape(colors.shape[:2])


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write an h x w uint8 mask as an indexed PNG with the VOC palette, whole or not at all."""
    with whole_file(path) as fresh:
        indexed_png(mask).save(fresh, format="PNG")


def indexed_png(mask: np.ndarray) -> Image.Image:
    """An h x w uint8 mask as an indexed image with the VOC palette."""
    image = Image.fromarray(mask).convert("L")
    image.putpalette(voc_palette().ravel().tolist())
    return image


def voc_palette() -> np.ndarray:
    """The colours of PASCAL VOC: 256 x 3 uint8; bit k of a class number goes to bit 7 - k // 3 of channel k % 3."""
    numbers = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        palette[:, bit % 3] |= (((numbers >> bit) & 1) << (7 - bit // 3)).astype(np.uint8)
    return palette
