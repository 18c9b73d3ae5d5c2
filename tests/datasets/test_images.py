import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from afactl.datasets import images
from afactl.datasets.images import decoded_photo, open_stored, read_image
from afactl.errors import DataError


@pytest.fixture
def photo():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (20, 30, 3)).astype(np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_lossless_formats_come_back(tmp_path, photo, suffix):
    path = tmp_path / f"ä b.c{suffix}"
    Image.fromarray(photo).save(path)
    assert np.array_equal(read_image(path), photo)
    assert decoded_photo(path)[0] == (20, 30)


def test_other_modes_become_rgb(tmp_path):
    grey = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(grey).convert("P").save(tmp_path / "palette.png")
    expected = np.repeat(grey[..., None], 3, axis=2)
    for name in ("grey", "deep", "palette"):
        assert np.array_equal(read_image(tmp_path / f"{name}.png"), expected), name


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_deep_grey_photos_are_as_bright_as_their_bits_in_use(tmp_path, bits, suffix):
    grey = np.arange(20, 256, dtype=np.uint16).reshape(4, 59)
    Image.fromarray(grey << (bits - 8)).save(tmp_path / f"deep{suffix}")
    assert np.array_equal(read_image(tmp_path / f"deep{suffix}"), np.repeat(grey[..., None], 3, axis=2))


def test_deep_pixels_that_no_rule_makes_colours_of_are_refused(tmp_path):
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    for name, stored, message in (
        ("f.tif", values / 24, "floating-point pixels"),
        ("i.tif", values.astype(np.int32) - 5, r"expected grey values 0\.\.65535, got -5\.\.18"),
        ("h.tif", values.astype(np.int32) << 20, r"expected grey values 0\.\.65535, got 0\.\.24117248"),
    ):
        Image.fromarray(stored).save(tmp_path / name)
        for read in (read_image, decoded_photo):
            with pytest.raises(DataError, match=f"{name}: {message}"):
                read(tmp_path / name)


def deep_png(pixels):
    """h x w x 3 (or 4) uint16 as PNG, which Pillow cannot write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, {3: 2, 4: 6}[pixels.shape[2]], 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_deep_colours_are_read_by_their_upper_bits_or_refused(tmp_path, photo):
    path = tmp_path / "d.png"
    path.write_bytes(deep_png(photo.astype(np.uint16) * 257))
    assert np.array_equal(read_image(path), photo)
    for bits in (8, 10, 12, 14):
        path.write_bytes(deep_png(photo.astype(np.uint16) << (bits - 8)))
        with pytest.raises(DataError, match=f"d.png: uses at most {bits} of its 16 bits a channel"):
            read_image(path)
        alpha = np.full((*photo.shape[:2], 1), 65535, np.uint16)
        path.write_bytes(deep_png(np.concatenate([photo.astype(np.uint16) << (bits - 8), alpha], axis=2)))
        with pytest.raises(DataError, match=f"uses at most {bits} of"):
            decoded_photo(path)


def test_transparency_lies_on_white(tmp_path):
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "t.png")
    found = read_image(tmp_path / "t.png")
    assert found[0, 0].tolist() == [0, 0, 0] and found[1, 1].tolist() == [255, 255, 255]


# Where row 0 and column 0 of the stored pixels are to be seen (EXIF 2.32, table 6).
SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def upright(stored, orientation):
    """Pixel by pixel, from the table."""
    rows, columns = stored.shape[:2]
    row_side, column_side = SIDES[orientation]
    turned = row_side in ("left", "right")
    out = np.zeros((columns, rows, 3) if turned else (rows, columns, 3), np.uint8)
    for y in range(rows):
        for x in range(columns):
            place = {"top": y, "bottom": rows - 1 - y, "left": y, "right": rows - 1 - y}[row_side]
            other = {"top": x, "bottom": columns - 1 - x, "left": x, "right": columns - 1 - x}[column_side]
            out[(other, place) if turned else (place, other)] = stored[y, x]
    return out


def tags(orientation, more=b""):
    """An EXIF block of the orientation and perhaps another entry of 12 bytes."""
    entries = struct.pack("<HHII", 0x0112, 3, 1, orientation) + more
    block = b"II*\0" + struct.pack("<IH", 8, len(entries) // 12) + entries + struct.pack("<I", 0)
    return b"Exif\0\0" + block + struct.pack("<iiii", -1, 0, -1, 0)


def xmp(orientation):
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="{orientation}"></x:xmpmeta>'.encode()


def picture(mode):
    """5 x 7 pixels that are all different, in any mode of Pillow."""
    values = (np.arange(35) * 7 + 3).astype(np.uint8).reshape(5, 7)
    if mode == "I;16":
        return Image.fromarray(values.astype(np.uint16) * 256)
    if mode == "P transparent":
        image = Image.fromarray(np.dstack([values, values[::-1], values])).quantize(64)
        image.info["transparency"] = 3
        return image
    if mode == "RGB transparent":
        image = Image.fromarray(np.dstack([values, values[::-1], values]))
        image.info["transparency"] = (3, 199, 3)
        return image
    alpha = {"LA": 1, "PA": 1, "RGBA": 3}.get(mode)
    image = Image.fromarray(np.dstack([values, values[::-1], values, 255 - values])).convert("RGBA" if alpha else "RGB")
    return image.convert(mode)


def saved(path, image, tag=None, orientation=1):
    """Whether the format holds this mode and tag."""
    more = {}
    if tag == "exif":
        more = {"exif": tags(orientation)}
    elif tag == "beside a broken rational":  # XResolution, -1/0 as two signed numbers
        more = {"exif": tags(orientation, struct.pack("<HHII", 0x011A, 10, 1, 8 + 2 + 24 + 4))}
    elif tag == "xmp" and path.suffix == ".png":
        more = {"pnginfo": PngImagePlugin.PngInfo()}
        more["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp(orientation).decode())
    elif tag == "xmp" and path.suffix == ".tif":
        more = {"tiffinfo": {700: xmp(orientation)}}
    elif tag == "xmp":
        more = {"xmp": xmp(orientation)}
    if "transparency" in image.info:
        more["transparency"] = image.info["transparency"]
    try:
        image.save(path, lossless=True, **more)
    except (OSError, ValueError):
        return False
    return True


MODES = ["1", "L", "P", "P transparent", "RGB", "RGB transparent", "RGBA", "LA", "PA", "CMYK", "YCbCr", "I;16"]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P transparent", "RGB transparent"])
def test_every_kind_of_transparency_lies_on_white(tmp_path, mode):
    saved(tmp_path / "t.png", picture(mode))
    with Image.open(tmp_path / "t.png") as image:
        rgba = np.asarray(image.convert("RGBA")).astype(float)
    alpha = rgba[..., 3:] / 255
    assert alpha.min() < 0.1 and alpha.max() > 0.9
    found = read_image(tmp_path / "t.png")
    assert np.abs(found - (alpha * rgba[..., :3] + (1 - alpha) * 255)).max() <= 1


# How many of the modes each format can be written in; Pillow mends a broken rational when it writes TIFF and AVIF.
FORMATS = {".png": 9, ".jpg": 6, ".tif": 12, ".webp": 12, ".avif": 12}


@pytest.mark.parametrize(
    ("suffix", "tag"),
    [(suffix, tag) for suffix in FORMATS for tag in ("exif", "xmp")]
    + [(suffix, "beside a broken rational") for suffix in (".png", ".jpg", ".webp")],
)
def test_orientation_is_honoured_for_every_mode_and_format(tmp_path, suffix, tag):
    modes = 0
    for mode in MODES:
        plain, path = tmp_path / f"plain{suffix}", tmp_path / f"turned{suffix}"
        if not saved(plain, picture(mode)):
            continue
        stored = read_image(plain)
        modes += 1
        for orientation in SIDES:
            assert saved(path, picture(mode), tag, orientation)
            found = read_image(path)
            assert np.array_equal(found, upright(stored, orientation)), (mode, orientation)
            assert decoded_photo(path)[0] == found.shape[:2]
    assert modes == FORMATS[suffix]


@pytest.mark.parametrize("value", [0, 9, 70000])
def test_an_orientation_that_is_none_changes_nothing(tmp_path, photo, value):
    Image.fromarray(photo).save(tmp_path / "p.png", exif=tags(value))
    assert np.array_equal(read_image(tmp_path / "p.png"), photo)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 70), st.integers(0, 255), st.sampled_from([".png", ".jpg", ".webp"]))
def test_a_photo_with_a_damaged_tag_is_read_and_never_a_crash(tmp_path, photo, place, value, suffix):
    """Pixels are those of the photo, in one of the eight positions; the check of the data says the same as training."""
    block = bytearray(tags(6, struct.pack("<HHII", 0x011A, 10, 1, 38)))
    block[place % len(block)] = value
    Image.fromarray(photo).save(tmp_path / f"plain{suffix}", lossless=True)
    Image.fromarray(photo).save(tmp_path / f"p{suffix}", lossless=True, exif=bytes(block))
    try:
        found = read_image(tmp_path / f"p{suffix}")
    except DataError:
        with pytest.raises(DataError):
            decoded_photo(tmp_path / f"p{suffix}")
        return
    stored = read_image(tmp_path / f"plain{suffix}")
    assert any(np.array_equal(found, upright(stored, orientation)) for orientation in SIDES)
    assert decoded_photo(tmp_path / f"p{suffix}")[0] == found.shape[:2]


def test_broken_files_are_named(tmp_path, photo):
    path = tmp_path / "photo.jpg"
    with pytest.raises(DataError, match="photo.jpg: expected an image file, found none"):
        read_image(path)
    path.symlink_to("gone.jpg")
    with pytest.raises(
        DataError, match="photo.jpg: expected an image file, found a link to gone.jpg, which is not there"
    ):
        read_image(path)
    path.unlink()
    path.write_bytes(b"")
    with pytest.raises(DataError, match="photo.jpg: the file is empty"):
        read_image(path)
    path.write_bytes(b"text")
    with pytest.raises(DataError, match="photo.jpg: no image format"):
        read_image(path)
    Image.fromarray(photo).resize((300, 200)).save(path)
    path.write_bytes(path.read_bytes()[:-800])
    with pytest.raises(DataError, match="photo.jpg: truncated"):
        read_image(path)


def test_an_image_over_pillows_limit_is_refused(tmp_path, photo, monkeypatch):
    Image.fromarray(photo).save(tmp_path / "p.png")
    for limit in (500, 200):  # Pillow warns up to twice the limit, and raises above
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DataError, match=f"more than the {limit} pixels"):
            read_image(tmp_path / "p.png")


def test_an_image_can_be_opened_without_being_decoded(tmp_path, photo, monkeypatch):
    Image.fromarray(photo).save(tmp_path / "p.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "p.png").read_bytes()[:60])
    for name in ("p.png", "cut.png"):
        with open_stored(tmp_path / name) as image:
            assert image.size == photo.shape[1::-1]
    (tmp_path / "x.png").write_text("nothing")
    (tmp_path / "empty.png").touch()
    with pytest.raises(DataError, match="x.png: no image format that Pillow knows"):
        open_stored(tmp_path / "x.png")
    with pytest.raises(DataError, match="empty.png: the file is empty"):
        open_stored(tmp_path / "empty.png")
    with pytest.raises(DataError, match="none.png: expected an image file, found none"):
        open_stored(tmp_path / "none.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match="p.png: more than the 10 pixels"):
        open_stored(tmp_path / "p.png")


def test_heic_is_read_where_its_reader_is_and_named_where_not(tmp_path, monkeypatch):
    heif = pytest.importorskip("pillow_heif", reason="HEIC needs the extra [heic]")
    image = heif.from_pillow(Image.new("RGB", (64, 48), (200, 30, 30)))
    image.save(tmp_path / "a.jpg", quality=90)  # telephones name them so now and then
    found = read_image(tmp_path / "a.jpg")
    assert found.shape == (48, 64, 3) and np.abs(found.astype(int) - (200, 30, 30)).max() < 8
    with open_stored(tmp_path / "a.jpg") as stored:
        assert stored.size == (64, 48)
    monkeypatch.setattr(images, "_open", lambda content: (_ for _ in ()).throw(UnidentifiedImageError))
    with pytest.raises(DataError, match=r"a.jpg: HEIC, for which pillow-heif is needed: pip install 'afactl\[heic\]'"):
        read_image(tmp_path / "a.jpg")
