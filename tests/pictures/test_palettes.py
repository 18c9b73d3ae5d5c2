import numpy as np

from afactl.datasets.mask_encodings import voc_palette
from afactl.pictures.palettes import PALETTES, as_seen, safe_palette


def closest(colors):
    """The smallest distance of two colours, as seen in the worst of the three ways."""
    seen = as_seen(colors.astype(float))
    apart = np.linalg.norm(seen[:, :, None] - seen[:, None], axis=-1)
    return apart[:, ~np.eye(len(colors), dtype=bool)].min()


def test_lab_of_known_colours():
    lab = as_seen(np.array([[255, 255, 255], [255, 0, 0], [0, 0, 0]]))[0]
    np.testing.assert_allclose(lab, [[100, 0, 0], [53.2, 80.1, 67.2], [0, 0, 0]], atol=0.3)


def test_twenty_classes_can_be_told_apart_by_all_eyes():
    assert closest(safe_palette()[1:21]) > 15 > 5 * closest(voc_palette()[1:21])


def test_every_palette_has_256_distinct_colours():
    for palette in PALETTES.values():
        colors = palette()
        assert colors.shape == (256, 3) and colors.dtype == np.uint8 and colors[0].tolist() == [0, 0, 0]
        assert len(np.unique(colors, axis=0)) == 256
