"""Every encoding of a mask, in every mode and palette: the numbers that were drawn, or one line, never others."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from afactl.datasets.mask_encodings import voc_palette
from afactl.datasets.masks import indexed_png, read_mask
from afactl.errors import DataError, UnknownValueError

VOC = voc_palette()


def again(image, form="PNG"):
    """The image as it comes back from a file of this format."""
    buffer = io.BytesIO()
    image.save(buffer, form)
    return Image.open(io.BytesIO(buffer.getvalue()))


def paletted(indices, palette):
    image = Image.fromarray(indices).convert("L")
    image.putpalette(np.asarray(palette, np.uint8).ravel().tolist())
    return image


def shuffled(mask, palette, rng):
    """An indexed image that looks the same, with all 256 colours of the palette in another order."""
    order = rng.permutation(256)
    places = np.empty(256, np.uint8)
    places[order] = np.arange(256)
    return paletted(places[mask], np.asarray(palette)[order])


def compacted(mask, palette, rng):
    """What an editor leaves: the colours in use only, in some order."""
    used = rng.permutation(np.unique(mask))
    places = np.zeros(256, np.uint8)
    places[used] = np.arange(len(used))
    return paletted(places[mask], np.asarray(palette)[used])


def strange_palette(rng, classes):
    """Colours of which none is a class's."""
    palette = rng.integers(0, 256, (256, 3))
    palette[:, 0] |= 1  # VOC's channels are multiples of 32
    palette[:, 1] = palette[:, 0] ^ 255  # and this is no grey
    return palette


GREY = np.repeat(np.arange(256)[:, None], 3, axis=1)
RAMP = np.repeat(np.arange(256)[:, None] * 40 % 256, 3, axis=1)

# Name -> image of a mask; rng and C are at hand.
ENCODINGS = {
    "grey": lambda mask, rng, classes: Image.fromarray(mask),
    "16 bits": lambda mask, rng, classes: Image.fromarray(mask.astype(np.uint16)),
    "16 bits, white ignored": lambda mask, rng, classes: Image.fromarray(
        np.where(mask == 255, 65535, mask).astype(np.uint16)
    ),
    "our own": lambda mask, rng, classes: indexed_png(mask),
    "colours": lambda mask, rng, classes: Image.fromarray(VOC[mask]),
    "colours on nothing": lambda mask, rng, classes: Image.fromarray(
        np.dstack([np.where(mask[..., None] > 0, VOC[mask], rng.integers(0, 256)), (mask > 0) * 255]).astype(np.uint8)
    ),
    "grey in colours": lambda mask, rng, classes: Image.fromarray(mask).convert("RGB"),
    "indexed, strange palette": lambda mask, rng, classes: paletted(mask, strange_palette(rng, classes)),
    "indexed, grey palette": lambda mask, rng, classes: paletted(mask, GREY),
    "palette shuffled": lambda mask, rng, classes: shuffled(mask, VOC, rng),
    "palette compacted": lambda mask, rng, classes: compacted(mask, VOC, rng),
    "palette of an editor": lambda mask, rng, classes: Image.fromarray(VOC[mask]).convert(
        "P", palette=Image.Palette.ADAPTIVE
    ),
}
# Where a palette can be read in two ways, a line in place of numbers is right.
OR_REFUSED = {
    "palette of greys compacted": lambda mask, rng, classes: compacted(mask, GREY, rng),
    "palette of greys shuffled": lambda mask, rng, classes: shuffled(mask, GREY, rng),
}


@st.composite
def masks(draw):
    classes = draw(st.sampled_from([1, 2, 6, 20, 80]))
    values = draw(st.sets(st.integers(0, classes) | st.just(255), min_size=1, max_size=6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.choice(np.array(sorted(values), np.uint8), (5, 7)), classes, rng


def read(tmp_path_factory, image, classes, **more):
    path = tmp_path_factory.mktemp("mask") / "m.png"
    image.save(path, image.format or "PNG")
    return read_mask(path, classes, **more)


@settings(deadline=None, max_examples=150)
@given(masks(), st.sampled_from(sorted(ENCODINGS)), st.sampled_from(["PNG", "TIFF", "GIF", "BMP"]))
def test_the_numbers_that_were_drawn_come_back(tmp_path_factory, mask, encoding, form):
    mask, classes, rng = mask
    if encoding == "grey in colours" and classes > 60:
        classes = 60  # from 63 on some greys are VOC's colours
        mask = np.where((mask > classes) & (mask < 255), 1, mask).astype(np.uint8)
    image = ENCODINGS[encoding](mask, rng, classes)
    if form == "BMP" and (image.mode.startswith("I") or image.mode == "RGBA"):
        form = "PNG"  # has neither deep pixels nor transparency
    if form == "GIF" and not ("palette" in encoding and "indexed" not in encoding):
        form = "TIFF"  # GIF keeps colours; which index they have is its writer's affair
    assert np.array_equal(read(tmp_path_factory, again(image, form), classes), mask)


@settings(deadline=None, max_examples=60)
@given(masks(), st.sampled_from(sorted(OR_REFUSED)))
def test_what_can_be_read_in_two_ways_is_never_read_wrong(tmp_path_factory, mask, encoding):
    mask, classes, rng = mask
    try:
        found = read(tmp_path_factory, OR_REFUSED[encoding](mask, rng, classes), classes)
    except UnknownValueError:
        return
    if set(np.unique(mask)) <= {0, 255}:
        return  # black and white: what white means is said by the whole dataset
    assert np.array_equal(found, mask)


def test_a_palette_whose_only_grey_is_also_a_colour_of_vocs_is_refused(tmp_path_factory):
    """Grey 64 is the number 64, and VOC's colour of 56."""
    image = Image.fromarray(np.zeros((4, 4), np.uint8), "P")
    image.putpalette([64, 64, 64])
    with pytest.raises(UnknownValueError, match="greys .64. are VOC's colours of other classes"):
        read(tmp_path_factory, image, 80)
    assert (read(tmp_path_factory, image, 60) == 56).all(), "with fewer classes it can only be the colour"


@pytest.mark.parametrize("colors", [VOC, GREY])
def test_a_mask_of_background_alone_is_told_by_the_colours_that_it_does_not_use(tmp_path_factory, colors):
    """Black stands at 2, where the second class would be."""
    order = [1, 2, 0, *range(3, 256)]
    image = paletted(np.full((3, 4), 2, np.uint8), np.asarray(colors)[order])
    if colors is VOC:
        assert not read(tmp_path_factory, image, 6).any()
        return
    with pytest.raises(UnknownValueError, match="the palette has grey 1 at 0: either may be the class"):
        read(tmp_path_factory, image, 6)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("kind", ["one bit", "palette"])
def test_two_tones_are_the_one_class_or_refused(tmp_path_factory, form, kind):
    drawn = np.random.default_rng(0).random((5, 7)) < 0.5
    image = Image.fromarray(drawn)
    if kind == "palette":
        image = paletted(drawn.astype(np.uint8), [[0, 0, 0], [255, 255, 255]])
    assert np.array_equal(read(tmp_path_factory, again(image, form), 1), drawn)
    with pytest.raises(UnknownValueError, match="m.png: black and white only, which does not say which of 3 classes"):
        read(tmp_path_factory, again(image, form), 3)
    nothing = Image.fromarray(np.zeros_like(drawn))
    assert not read(tmp_path_factory, again(nothing, form), 3).any()


@pytest.mark.parametrize("used", [[0, 1], [0], [1]])
def test_white_in_the_place_of_background_is_refused(tmp_path_factory, used):
    image = paletted(np.array([used * 4], np.uint8), [[255, 255, 255], [0, 0, 0]])
    with pytest.raises(UnknownValueError, match="the palette has white at 0, where background belongs"):
        read(tmp_path_factory, image, 1)


@pytest.mark.parametrize(
    ("palette", "message"),
    [
        ([[0, 0, 0], VOC[15], [1, 2, 3]], "the palette has VOC's colour of 15 at 1, but #010203 is no class's"),
        ([[0, 0, 0], VOC[2], VOC[2]], "the palette has VOC's colour of 2 at 1, but others share a colour"),
        ([[0, 0, 0], VOC[2], VOC[21]], "the palette has VOC's colour of 2 at 1, but #804080 is no class's"),
        ([[0, 0, 0], [5, 5, 5], [9, 9, 9]], "the palette has grey 5 at 1: either may be the class"),
    ],
)
def test_a_palette_that_does_not_fit_is_a_defect(tmp_path_factory, palette, message):
    image = paletted(np.array([[0, 1, 2]], np.uint8), palette)
    with pytest.raises(UnknownValueError, match=f"m.png: {message}; save class numbers as a grey PNG"):
        read(tmp_path_factory, image, 20)


@pytest.mark.parametrize(
    "palette",
    [
        [[0, 0, 0], VOC[1], [1, 2, 3]],  # in its place, whatever the others are
        [[255, 255, 255], [200, 3, 4], [1, 2, 3]],
        [[0, 0, 0], [40, 40, 40], [80, 80, 80]],
        [[0, 0, 0], [127, 127, 127], [255, 255, 255]],
        [[0, 0, 0], [0, 0, 0], [0, 0, 0]],
    ],
)
def test_any_other_palette_is_decoration(tmp_path_factory, palette):
    mask = np.array([[0, 1, 2]], np.uint8)
    assert np.array_equal(read(tmp_path_factory, paletted(mask, palette), 20), mask)


def test_deep_masks_hold_class_numbers(tmp_path_factory):
    for wrong in (256, 300, 257):
        with pytest.raises(UnknownValueError, match=f"expected class numbers up to 255, got {wrong}"):
            read(tmp_path_factory, Image.fromarray(np.array([[0, wrong]], np.uint16)), 20)
    with pytest.raises(UnknownValueError, match="expected mask values 0..20 or 255, got 21 in 1 pixels"):
        read(tmp_path_factory, Image.fromarray(np.array([[0, 21]], np.uint16)), 20)
    with pytest.raises(DataError, match="got mode F"):
        read(tmp_path_factory, again(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF"), 20)


def test_white_is_ignored_or_the_class(tmp_path_factory):
    mask = np.array([[0, 255]], np.uint8)
    for image in (Image.fromarray(mask), Image.fromarray(mask).convert("RGB"), Image.fromarray(mask * np.uint16(257))):
        assert read(tmp_path_factory, image, 1).tolist() == [[0, 255]]
        assert read(tmp_path_factory, image, 1, white=1).tolist() == [[0, 1]]
