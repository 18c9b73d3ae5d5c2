"""What the values of a label mean. A label is an h x w array of uint8: 0 background, class c of C as c + 1, IGNORE."""

from __future__ import annotations

# The value of a pixel (or pair of tokens) that takes no part in losses and scores.
IGNORE = 255
# The table beside masks that names their values.
CLASS_TABLE = "classes.csv"
