"""Reading photos from files."""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from afactl.errors import DataError

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
    image = open_image(path)
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


def open_image(path: Path) -> Image.Image:
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
