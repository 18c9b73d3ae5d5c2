"""Drawing from arrays: overlays, maps, panels and charts. Nothing here knows of runs; `figures.py` does.

Shapes: h x w photo, hs x ws tokens, C foreground classes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from afactl.errors import UsageError
from afactl.labels import IGNORE
from afactl.machine.terminal import visible
from afactl.pictures.fonts import families_for, font_file
from afactl.pictures.palettes import safe_palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Perceptually uniform: equal steps of the value look like equal steps.
MAP_COLORS = "magma"
CELL_INCHES = 2.4
# So many characters of a title lie over a picture of a grid.
TITLE_CHARACTERS = 34


# What a column of a panel shows: a map (h x w float), a mask (h x w uint8) or a picture (h x w x 3).
Content = np.ndarray


def parse_query(text: str) -> tuple[int, int]:
    """`"32,40"` -> (32, 40).

    Raises:
        UsageError: not two whole numbers.
    """
    parts = text.split(",")
    try:
        x, y = (int(part) for part in parts)
    except ValueError as error:
        raise UsageError(f'--query: expected X,Y in pixels, such as 32,40, got "{text}"') from error
    return x, y


def resize_map(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """hs x ws floats, smoothly (bicubic) to (h, w), within the range of the given values."""
    picture = Image.fromarray(values.astype(np.float32), mode="F")
    smooth = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BICUBIC))
    return smooth.clip(values.min(), values.max())  # bicubic overshoots


def overlay(
    image: np.ndarray, mask: np.ndarray, palette: np.ndarray, opacity: float = 0.6, classes: Sequence[str] = ()
) -> np.ndarray:
    """The photo with its mask's colours over it, and a contour around every region; background stays the photo.

    Args:
        image: h x w x 3 uint8. mask: h x w uint8, 255 becomes pale.
        palette: 256 x 3 uint8. opacity: of the colours.
        classes: names of the foreground classes; where they are given, they are written into the largest
            piece of each class.

    Returns:
        h x w x 3 uint8.
    """
    colors = palette[mask].astype(np.float32)
    weight = np.where(mask == 0, 0.0, opacity)[..., None]
    blended = (image * (1 - weight) + colors * weight).round().astype(np.uint8)
    edge = _contour(mask, max(1, min(mask.shape) // 250))
    blended[edge] = palette[mask[edge]]
    return _with_names(blended, mask, classes) if classes else blended


def _contour(mask: np.ndarray, width: int) -> np.ndarray:
    """Pixels of a region within `width` of another one."""
    edge = np.zeros(mask.shape, bool)
    for axis in (0, 1):
        for step in range(1, width + 1):
            differs = np.take(mask, range(step, mask.shape[axis]), axis) != np.take(
                mask, range(mask.shape[axis] - step), axis
            )
            for start in (0, step):
                index = [slice(None), slice(None)]
                index[axis] = slice(start, start + differs.shape[axis])
                edge[tuple(index)] |= differs
    edge &= mask != 0
    return edge


def _with_names(picture: np.ndarray, mask: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    drawn = Image.fromarray(picture)
    draw = ImageDraw.Draw(drawn)
    size = max(9, min(mask.shape) // 22)
    for value in range(1, len(classes) + 1):
        if not (place := _inside(mask == value)):
            continue
        y, x = map(float, place)
        name = classes[value - 1]
        font = ImageFont.load_default(size) if name.isascii() else ImageFont.truetype(font_file(name), size)
        box = draw.textbbox((x, y), name, font=font, anchor="mm")
        # A name near the border is moved inside.
        x += max(0, 1 - box[0]) - max(0, box[2] + 1 - drawn.width)
        y += max(0, 1 - box[1]) - max(0, box[3] + 1 - drawn.height)
        draw.text(
            (x, y), name, font=font, anchor="mm", fill="white", stroke_width=max(1, size // 9), stroke_fill="black"
        )
    return np.array(drawn)


def _inside(region: np.ndarray) -> tuple[int, int] | None:
    """(y, x) deep inside the region, in its thickest part; None where there is none."""
    if not region.any():
        return None
    step = max(1, max(region.shape) // 128)
    small = np.pad(region[::step, ::step], 1)
    place = (0, 0)
    # Worn away layer by layer; what is left last lies deepest.
    while small.any():
        y, x = np.argwhere(small)[small.sum() // 2]
        place = (int(y), int(x))
        small = small & np.roll(small, 1, 0) & np.roll(small, -1, 0) & np.roll(small, 1, 1) & np.roll(small, -1, 1)
    if place == (0, 0):  # thinner than the steps
        y, x = np.argwhere(region)[0]
        return int(y), int(x)
    return (place[0] - 1) * step, (place[1] - 1) * step


def panel(
    rows: Sequence[tuple[np.ndarray, tuple[int, int] | None, Sequence[tuple[str, Content]]]],
    classes: Sequence[str],
    palette: np.ndarray,
) -> Figure:
    """Rows of pictures, as many in each, with a legend of the classes in the masks; a title is shown where it changes.

    Args:
        rows: (photo h x w x 3, query (x, y) or None, (title, content) of each column). A query is marked by a star.
        classes: names of the foreground classes. palette: 256 x 3 uint8.
    """
    columns = len(rows[0][2])
    heights = [CELL_INCHES * image.shape[0] / image.shape[1] + 0.4 for image, _, _ in rows]
    names = (*classes, *(title for title, _ in rows[0][2]))
    figure, axes = _figure((CELL_INCHES * columns, sum(heights) + 0.6), len(rows), columns, heights, names)
    present: set[int] = set()
    for row, (image, query, cells) in enumerate(rows):
        for column, (title, content) in enumerate(cells):
            axis = axes[row, column]
            axis.set_axis_off()
            if row == 0 or title != rows[row - 1][2][column][0]:
                axis.set_title(title, fontsize=9, parse_math=False)
            if content.ndim == 3:
                axis.imshow(content)
            elif content.dtype == np.uint8:
                axis.imshow(overlay(image, content, palette, opacity=0.7))
                present |= set(np.unique(content).tolist())
            else:
                _draw_map(figure, axis, image, content)
            if query is not None:
                axis.plot(*query, marker="*", markersize=13, color="#ffd400", markeredgecolor="black", clip_on=False)
    _legend(figure, sorted(present - {0}), classes, palette)
    return figure


def _figure(
    inches: tuple[float, float], rows: int, columns: int, heights: Sequence[float], names: Sequence[str] = ()
) -> tuple[Figure, np.ndarray]:
    """A figure that belongs to no window, and its rows x columns axes; its fonts have what `names` are written with."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    matplotlib.rcParams["font.family"] = families_for("".join(names))
    figure = Figure(figsize=inches, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, height_ratios=list(heights))


def _legend(figure: Figure, values: Sequence[int], classes: Sequence[str], palette: np.ndarray) -> None:
    from matplotlib.patches import Patch

    names = {value: "ignored" if value == IGNORE else classes[value - 1] for value in values}
    patches = [Patch(color=palette[value] / 255, label=name) for value, name in names.items()]
    if patches:
        figure.legend(handles=patches, loc="outside lower right", ncols=6, fontsize=8, frameon=False)


def picture_grid(cells: Sequence[tuple[str, np.ndarray]], columns: int = 6) -> Figure:
    """Pictures (h x w x 3 uint8) with a title each, row by row."""
    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    titles = [
        "\n".join(textwrap.fill(visible(line), TITLE_CHARACTERS) for line in title.splitlines()) for title, _ in cells
    ]
    figure, axes = _figure((2.2 * columns, 2.3 * rows), rows, columns, [1] * rows, titles)
    for axis in axes.ravel():
        axis.set_axis_off()
    for axis, title, (_, image) in zip(axes.ravel(), titles, cells, strict=False):
        axis.imshow(image)
        axis.set_title(title, fontsize=7, parse_math=False)
    return figure


def head_chart(weights: np.ndarray, bias: float) -> Figure:
    """Fig. 14: the learned weight of each head in the affinity (Eq. 3), one bar per head.

    Args:
        weights: L x n, heads of the last L blocks, the last block last. bias: of Eq. 3.
    """
    layers, heads = weights.shape
    figure, axes = _figure((max(5.0, 0.42 * layers * heads + 1.5), 3.2), 1, 1, [1])
    axis = axes[0, 0]
    colors = safe_palette()[[5, 1, 3, 7]] / 255
    for layer, row in enumerate(weights):
        places = np.arange(heads) + layer * (heads + 1)
        name = f"layer {layer + 1}{' (the last block)' if layer == layers - 1 else ''}"
        axis.bar(places, row, color=colors[layer % len(colors)], edgecolor="black", linewidth=0.5, label=name)
    places = [layer * (heads + 1) + head for layer in range(layers) for head in range(heads)]
    axis.set_xticks(places, [str(head) for _ in range(layers) for head in range(1, heads + 1)], fontsize=8)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set(xlabel="head", ylabel="learned weight", title=f"weights of the heads in the affinity (bias {bias:.3g})")
    axis.legend(fontsize=8, frameon=False, loc="best")
    return figure


def map_over(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A map in [0, 1] over the grey photo, in the colours of the panels.

    Args:
        image: h x w x 3 uint8. values: h x w.

    Returns:
        h x w x 3 uint8.
    """
    import matplotlib

    colors = matplotlib.colormaps[MAP_COLORS](values.clip(0, 1))[..., :3] * 255
    grey = image.mean(axis=2, keepdims=True)
    picture: np.ndarray = (grey * 0.28 + colors * 0.72).round().astype(np.uint8)
    return picture


def curve_chart(title: str, series: Mapping[str, Sequence[tuple[int, float]]], borders: Mapping[str, int]) -> Figure:
    """Lines over the steps of a training, with the phases marked.

    Args:
        series: (step, value) pairs by name. borders: first step of each phase, by name.
    """
    figure, axes = _figure((6.4, 3.6), 1, 1, [1])
    axis = axes[0, 0]
    styles = ["-", "--", "-.", ":"]
    for number, (name, points) in enumerate(series.items()):
        steps, values = zip(*points, strict=True)
        marker = "o" if len(points) < 25 else None
        axis.plot(
            steps,
            values,
            styles[number % 4],
            color=safe_palette()[[5, 6, 3, 7, 1][number % 5]] / 255,
            marker=marker,
            markersize=3,
            label=name,
        )
    last = max(point[0] for points in series.values() for point in points)
    for name, step in borders.items():
        if step <= last:
            axis.axvline(step, color="0.6", linewidth=0.8)
            axis.text(step, 1.01, f" {name}", transform=axis.get_xaxis_transform(), fontsize=7, color="0.35")
    axis.set_xlabel("step")
    axis.set_title(title, fontsize=10, pad=16)
    axis.legend(fontsize=8, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def threshold_chart(
    thresholds: Sequence[float], panels: Mapping[str, Mapping[str, Sequence[float]]], marks: Mapping[str, float]
) -> Figure:
    """mIoU over thresholds, a panel per column of Table 3.

    Args:
        panels: by title, T values in per cent by row. marks: the preset's threshold of each row, where it has a dot.
    """
    figure, axes = _figure((4.6 * len(panels), 3.6), 1, len(panels), [1])
    every = [value for rows in panels.values() for values in rows.values() for value in values]
    for axis, (title, rows) in zip(axes[0], panels.items(), strict=True):
        for number, (name, values) in enumerate(rows.items()):
            color, style = safe_palette()[[5, 6, 3, 7][number % 4]] / 255, ["-", "--", "-.", ":"][number % 4]
            axis.plot(thresholds, values, style, color=color, label=name)
            axis.plot([marks[name]], [values[list(thresholds).index(marks[name])]], "o", color=color, markersize=5)
        axis.set_ylim(min(every) - 2, max(every) + 2)
        axis.set_xlabel("background threshold (dot: the preset's)")
        axis.set_title(title, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("mIoU %")
    axes[0, 0].legend(fontsize=8, frameon=False)
    return figure


def confusion_chart(confusion: np.ndarray, names: Sequence[str]) -> Figure:
    """A confusion matrix, each row in per cent of its true pixels.

    Args:
        confusion: K x K counts, rows the truth. names: K.
    """
    sums = confusion.sum(axis=1, keepdims=True)
    shares = 100 * confusion / np.maximum(sums, 1)
    side = 1.6 + 0.42 * len(names)
    figure, axes = _figure((side + 1, side), 1, 1, [1], names)
    axis = axes[0, 0]
    drawn = axis.imshow(shares, cmap="cividis", vmin=0, vmax=100)
    if len(names) <= 25:
        for row, column in np.argwhere(shares >= 1):
            light = shares[row, column] > 55
            axis.text(
                column,
                row,
                f"{shares[row, column]:.0f}",
                ha="center",
                va="center",
                fontsize=7,
                color="black" if light else "white",
            )
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=7, parse_math=False)
    axis.set_yticks(range(len(names)), names, fontsize=7, parse_math=False)
    axis.set(xlabel="predicted", ylabel="truth")
    figure.colorbar(drawn, ax=axis, shrink=0.7, label="%")
    return figure


def _draw_map(figure: Figure, axis: Axes, image: np.ndarray, values: np.ndarray) -> None:
    """A map over the grey photo, with its range."""
    axis.imshow(image.mean(axis=2), cmap="gray", vmin=0, vmax=255)
    drawn = axis.imshow(values, cmap=MAP_COLORS, alpha=0.72)
    # An inset, so that pictures with and without a range have the same size.
    bar = figure.colorbar(drawn, cax=axis.inset_axes((0, -0.08, 1, 0.045)), orientation="horizontal")
    low, high = float(values.min()), float(values.max())
    bar.set_ticks([low, high] if high > low else [low], labels=[f"{low:.2g}", f"{high:.2g}"][: 2 if high > low else 1])
    bar.ax.tick_params(labelsize=7, length=2)
