"""Masks as Label Studio's brush keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import quoteattr

import numpy as np

# Length of a run in the packed form: 16 bits, of which 0 stands for one value.
LONGEST = 2**16


def brush_rle(mask: np.ndarray) -> list[int]:
    """A mask as the bytes of `value.rle` in Label Studio's "brushlabels" (the format "rle-pack").

    The values are those of an RGBA picture, row by row: 255 in all four channels inside, 0 outside. Bits:
    number of values (32); bits per value - 1 (5); the four lengths of counters - 1 (4 each; here 3, 4, 8, 16); then
    for each run 1, which counter (2; here always the last), length - 1 (16), value (8).

    Args:
        mask: h x w bool.

    Returns:
        Integers in 0..255.
    """
    values = mask.ravel()
    starts = np.flatnonzero(np.diff(values, prepend=~values[:1]))
    lengths = 4 * np.diff(starts, append=values.size)
    pieces = -(-lengths // LONGEST)
    counts = np.full(pieces.sum(), LONGEST)
    counts[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * LONGEST
    inside = np.repeat(values[starts], pieces)
    runs = np.left_shift(0b111 << 16 | counts - 1, 8) | np.where(inside, 255, 0)
    header = [(4 * values.size, 32), (8 - 1, 5), (3 - 1, 4), (4 - 1, 4), (8 - 1, 4), (16 - 1, 4)]
    bits = [np.fromiter(f"{value:0{width}b}", np.uint8) for value, width in header]
    bits.append((runs[:, None] >> np.arange(26, -1, -1) & 1).astype(np.uint8).ravel())
    return [int(byte) for byte in np.packbits(np.concatenate(bits))]


def labeling_config(classes: Sequence[str], colors: Sequence[Sequence[int]]) -> str:
    """The labeling interface for brush masks of these classes.

    Args:
        classes: C names. colors: RGB of the background, then of each class.
    """
    labels = "".join(
        f'    <Label value={quoteattr(name)} background="#{"".join(f"{part:02x}" for part in color)}"/>\n'
        for name, color in zip(classes, colors[1:], strict=False)
    )
    return (
        '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
        f'  <BrushLabels name="tag" toName="image">\n{labels}  </BrushLabels>\n</View>\n'
    )
