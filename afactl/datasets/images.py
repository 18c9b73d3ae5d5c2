"""Reading photos from files."""

from __future__ import annotations

import hashlib
import importlib
import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from afactl.errors import DataError, first_line

# Pillow raises beyond twice its limit and only warns before; here such a file is refused all the same.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# A tag that it cannot read is dropped with a warning on the terminal, in the middle of a progress bar.
warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")

ORIENTATION = 0x0112
# What makes a stored photo upright, by EXIF orientation.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Depths that cameras and scanners have, in bits.
_DEPTHS = (8, 10, 12, 14, 16)


def read_image(path: Path) -> np.ndarray:
    """A photo as h x w x 3 uint8 RGB, upright, an array of its own.

    EXIF orientation is honoured whatever the format; where the tag cannot be read, the photo is taken as it is
    stored. Grey and palette images become RGB, transparency lies on white. Of grey pictures with more than 8 bits
    the upper 8 of the bits in use count: 8, 10, 12, 14 or 16, the least that hold the brightest pixel.

    Raises:
        DataError: missing, empty, truncated, no image, larger than Pillow's limit, or with pixels that have no
            colours of 8 bits.
    """
    return np.array(_photo(path, _content(path)))


def decode_image(name: str, content: bytes) -> np.ndarray:
    """What `read_image` gives, of a photo that is no file.

    Args:
        name: for the message.

    Raises:
        DataError: as `read_image`.
    """
    return np.array(_photo(Path(name), _not_empty(Path(name), content)))


def rgb_array(image: Image.Image) -> np.ndarray:
    """An image that is open already, as `read_image` gives a photo.

    Raises:
        DataError: as `read_image`.
    """
    return np.array(_turn(_rgb(Path("photo"), image), _orientation(image)))


def decoded_photo(path: Path) -> tuple[tuple[int, int], bytes]:
    """(height, width) as `read_image` gives them, and the SHA-256 of the file; the whole photo is decoded.

    Raises:
        DataError: as `read_image`.
    """
    content = _content(path)
    return _photo(path, content).size[::-1], hashlib.sha256(content).digest()


def open_upright(path: Path) -> Image.Image:
    """A decoded image in the mode that it is stored in, upright; every way in which a file can be broken is one line.

    Raises:
        DataError: missing, empty, truncated, no image, larger than Pillow's limit, or with colours of 16 bits whose
            upper 8 hold next to nothing.
    """
    image, cut = _decode(path, _content(path))
    if cut:
        _require_bright(path, image)
    return _turn(image, _orientation(image))


def open_stored(path: Path) -> Image.Image:
    """An image that is not decoded yet, for what its file says of it; to be closed.

    Raises:
        DataError: missing, empty, no image, or larger than Pillow's limit.
    """
    try:
        try:
            return Image.open(path)
        except UnidentifiedImageError:
            return _open(_content(path))  # HEIC, perhaps under another suffix
    except Image.DecompressionBombError as error:
        raise _too_large(path) from error
    except (OSError, ValueError, SyntaxError) as error:
        raise _unknown(path, _content(path)) from error


def _photo(path: Path, content: bytes) -> Image.Image:
    """An RGB image, upright."""
    image, cut = _decode(path, content)
    orientation = _orientation(image)  # conversions lose it
    if cut:
        _require_bright(path, image)
    return _turn(_rgb(path, image), orientation)


def _require_bright(path: Path, image: Image.Image) -> None:
    """See that the upper 8 of 16 bits hold the picture: of 12 bits in use they hold next to nothing."""
    used = 8 + int(np.asarray(image.convert("RGB")).max()).bit_length()
    if used < 15:
        raise DataError(
            f"{path}: uses at most {used} of its 16 bits a channel, and Pillow reads the upper 8; "
            "save it with 8 bits a channel"
        )


def _rgb(path: Path, image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise DataError(f"{path}: floating-point pixels, of which no value is known as white; save it with 8 bits")
    if image.mode.startswith("I"):
        return _grey(path, np.asarray(image)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey(path: Path, values: np.ndarray) -> Image.Image:
    """h x w integers -> 8 bits, of the bits that are in use."""
    lowest, highest = int(values.min()), int(values.max())
    depth = next((bits for bits in _DEPTHS if highest < 1 << bits), None)
    if depth is None or lowest < 0:
        raise DataError(f"{path}: expected grey values 0..65535, got {lowest}..{highest}; save it with 8 or 16 bits")
    return Image.fromarray((values >> (depth - 8)).astype(np.uint8))


def _orientation(image: Image.Image) -> int:
    """1..8, what EXIF (or XMP) says of a decoded image; 1 where it says nothing that can be read."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow raises many kinds on a damaged tag; what is meant is lost in any case
        return 1
    return value if isinstance(value, int) and value in _UPRIGHT else 1


def _turn(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        instead = f"a link to {path.readlink()}, which is not there" if path.is_symlink() else "none"
        raise DataError(f"{path}: expected an image file, found {instead}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    return _not_empty(path, content)


def _not_empty(path: Path, content: bytes) -> bytes:
    if not content:
        raise DataError(f"{path}: the file is empty; copy it again or take it off the list")
    return content


def _too_large(path: Path) -> DataError:
    return DataError(f"{path}: more than the {Image.MAX_IMAGE_PIXELS} pixels that Pillow accepts; reduce the image")


def _unknown(path: Path, content: bytes) -> DataError:
    what = "HEIC, for which pillow-heif is needed: pip install 'afactl[heic]'" if _is_heic(content) else ""
    return DataError(f"{path}: {what or 'no image format that Pillow knows'}; convert it to JPEG or PNG")


def _is_heic(content: bytes) -> bool:
    return content[4:8] == b"ftyp" and content[8:12] not in (b"avif", b"avis")


def _open(content: bytes) -> Image.Image:
    """An image that is not decoded yet; HEIC is read where pillow-heif is installed."""
    try:
        return Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        if not _is_heic(content):
            raise
        try:
            importlib.import_module("pillow_heif").register_heif_opener()
        except ImportError:
            raise UnidentifiedImageError from None
        return Image.open(io.BytesIO(content))


def _decode(path: Path, content: bytes) -> tuple[Image.Image, bool]:
    """The image as it is stored, and whether its channels of 16 bits were cut to the upper 8 on the way."""
    try:
        image = _open(content)
        if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError
        # Pillow has no colours of 16 bits; how the file keeps its pixels is known before they are decoded only.
        tiles = getattr(image, "tile", None)
        stored = str(tiles[0].args) if tiles else ""
        image.load()
    except Image.DecompressionBombError as error:
        raise _too_large(path) from error
    except UnidentifiedImageError as error:
        raise _unknown(path, content) from error
    except Exception as error:  # damaged files end in errors of many kinds
        raise DataError(
            f"{path}: truncated or damaged ({first_line(error)}); copy it again or take it off the list"
        ) from error
    return image, ";16" in stored and not image.mode.startswith("I")


def reduce_image(image: np.ndarray, pixels: int | None) -> np.ndarray:
    """The photo, h x w x 3 uint8, or a smaller one of the same shape with at most so many pixels; None: no limit."""
    height, width = image.shape[:2]
    if pixels is None or height * width <= pixels:
        return image
    factor = (pixels / (height * width)) ** 0.5
    size = (max(1, int(width * factor)), max(1, int(height * factor)))
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))
