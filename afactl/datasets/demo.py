"""The generated dataset of the `demo` preset: shapes with a distinctive part on cluttered ground.

Every object is a pale, textured body in the hue of its class that carries a saturated "head"
with the pattern of the class. A classifier can live on the head alone, so a raw class
activation map finds the head and under-covers the body, as it does on photos of animals. The
ground is muted noise and stripes with greyish things of other outlines.

Image i of a split depends on (seed, split, i) alone.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from afactl.datasets.folder import FORMAT as FOLDER_FORMAT
from afactl.datasets.masks import write_mask
from afactl.errors import BusyError, DataError
from afactl.files import lock

CLASSES = ("disc", "square", "triangle", "star", "ring", "cross")
VERSION = 2
TRAIN, VAL, SIZE, SEED = 400, 80, 160, 0

# Hue of each class in degrees; far enough apart to survive the shading.
HUES = (8, 48, 110, 185, 235, 305)
# Side of an object as a share of the image, for one, two and three objects in it.
SIDES = {1: (0.66, 1.0), 2: (0.52, 0.68), 3: (0.44, 0.52)}
COUNTS, COUNT_WEIGHTS = (1, 2, 3), (0.45, 0.35, 0.20)
# The head as a share of the object's side.
HEAD = 0.33
# Strength of the grain on bodies. Clean colour would let a colour filter alone fill the body.
BODY_GRAIN = 0.5
BODY_SATURATION = (0.26, 0.44)
# Shapes are drawn this much larger and shrunk, for smooth outlines.
OVERSAMPLE = 3
# Share of an earlier object that a later one may hide.
MAX_HIDDEN = 0.2
MIN_VISIBLE = 150

Array = np.ndarray


def draw_image(rng: np.random.Generator, size: int) -> tuple[Array, Array, tuple[int, ...]]:
    """One picture.

    Args:
        rng: source of all randomness. size: side in pixels.

    Returns:
        (size x size x 3 uint8, size x size uint8 mask with 0..6, sorted class indices present).
    """
    canvas = _ground(rng, size)
    mask = np.zeros((size, size), np.uint8)
    count = int(rng.choice(COUNTS, p=COUNT_WEIGHTS))
    owners: list[Array] = []
    for kind in rng.choice(len(CLASSES), size=count, replace=False):
        side = rng.uniform(*SIDES[count]) * size
        cover = _free_place(rng, size, int(kind), side, owners)
        if cover is None:
            continue
        outline, head = cover
        canvas = _paint(rng, canvas, outline, head, int(kind))
        for owner in owners:
            owner &= outline < 0.5
        owners.append(outline >= 0.5)
        mask[outline >= 0.5] = kind + 1
    # A trace of sensor noise, so that no area is perfectly flat.
    canvas += rng.normal(0, 0.015, canvas.shape)
    labels = tuple(int(value) - 1 for value in np.unique(mask) if value)
    return (canvas.clip(0, 1) * 255).round().astype(np.uint8), mask, labels


def _noise(rng: np.random.Generator, size: int, cell: float) -> Array:
    """Smooth noise in [-1, 1] with features of about `cell` pixels."""
    coarse = max(2, round(size / cell))
    grid = Image.fromarray(rng.uniform(-1, 1, (coarse, coarse)).astype(np.float32), mode="F")
    return np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC))


def _stripes(rng: np.random.Generator, size: int, period: float) -> Array:
    """Plane waves in [-1, 1] in a random direction."""
    angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:size, :size]
    waves: Array = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period + phase)
    return waves


def _ground(rng: np.random.Generator, size: int) -> Array:
    """Muted, textured ground with greyish clutter: size x size x 3 in about [0, 1]."""
    shade = 0.42 + 0.16 * _noise(rng, size, size / 3) + 0.07 * _noise(rng, size, 9) + 0.04 * _noise(rng, size, 3)
    shade += rng.uniform(0, 0.05) * _stripes(rng, size, rng.uniform(6, 20))
    tint = rng.uniform(-0.05, 0.05, 3)
    canvas = shade[..., None] + tint + 0.03 * _noise(rng, size, size / 4)[..., None] * rng.uniform(-1, 1, 3)
    for _ in range(rng.integers(2, 6)):
        spot = _clutter(rng, size)
        grey = rng.uniform(0.2, 0.75) + rng.uniform(-0.04, 0.04, 3)
        texture = 0.08 * _noise(rng, size, rng.uniform(3, 10))[..., None]
        canvas = _blend(canvas, grey + texture, spot)
    return canvas


def _clutter(rng: np.random.Generator, size: int) -> Array:
    """Coverage of one distractor: an ellipse, a rod or a blob, none of them a class."""
    angle = rng.uniform(0, np.pi)
    cy, cx = rng.uniform(0, size, 2)
    y, x = np.mgrid[:size, :size]
    u = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
    v = -(x - cx) * np.sin(angle) + (y - cy) * np.cos(angle)
    long, short = rng.uniform(0.08, 0.24) * size, rng.uniform(0.025, 0.09) * size
    edge = _noise(rng, size, size / 6) * rng.uniform(0, 0.35)
    cover: Array = np.clip((1 + edge - np.sqrt((u / long) ** 2 + (v / short) ** 2)) * short, 0, 1)
    return cover


def _blend(canvas: Array, color: Array, cover: Array) -> Array:
    blended: Array = canvas * (1 - cover[..., None]) + color * cover[..., None]
    return blended


def _polygon(kind: int) -> list[list[tuple[float, float]]]:
    """Outlines of a class in the unit circle; where two are given, the second is a hole."""
    turn = np.linspace(0, 2 * np.pi, 49)[:-1]
    circle = [(float(np.cos(t)), float(np.sin(t))) for t in turn]
    corner = 0.86
    arm = 0.34
    name = CLASSES[kind]
    if name == "disc":
        return [[(0.92 * x, 0.92 * y) for x, y in circle]]
    if name == "square":
        return [[(-corner, -corner), (corner, -corner), (corner, corner), (-corner, corner)]]
    if name == "triangle":
        return [[(float(np.sin(t)), float(-np.cos(t))) for t in np.arange(3) * 2 * np.pi / 3]]
    if name == "star":
        radii = [1.0, 0.5] * 5
        return [
            [
                (float(r * np.sin(t)), float(-r * np.cos(t)))
                for r, t in zip(radii, np.arange(10) * np.pi / 5, strict=True)
            ]
        ]
    if name == "ring":
        return [circle, [(0.42 * x, 0.42 * y) for x, y in circle]]
    return [
        [
            (-arm, -1),
            (arm, -1),
            (arm, -arm),
            (1, -arm),
            (1, arm),
            (arm, arm),
            (arm, 1),
            (-arm, 1),
            (-arm, arm),
            (-1, arm),
            (-1, -arm),
            (-arm, -arm),
        ]
    ]


def _free_place(
    rng: np.random.Generator, size: int, kind: int, side: float, owners: list[Array]
) -> tuple[Array, Array] | None:
    """Coverage in [0, 1] of an object and of its head, where it hides little of the others."""
    for _ in range(20):
        reach = 0.42 * side
        cy, cx = rng.uniform(reach, size - reach, 2)
        angle, squeeze = rng.uniform(0, 2 * np.pi), rng.uniform(0.85, 1.0)
        outline = _raster(size, kind, cy, cx, side / 2, angle, squeeze)
        solid = outline >= 0.5
        hidden = [(owner & solid).sum() / max(1, owner.sum()) for owner in owners]
        if solid.sum() < MIN_VISIBLE or any(share > MAX_HIDDEN for share in hidden):
            continue
        # The head sits off centre, on whatever part of the body lies there.
        y, x = np.nonzero(solid)
        far = (y - cy) * np.sin(angle) + (x - cx) * np.cos(angle)
        anchor = np.argsort(far)[int(0.8 * (len(far) - 1))]
        yy, xx = np.mgrid[:size, :size]
        distance = np.hypot(yy - y[anchor], xx - x[anchor])
        head = np.clip(HEAD * side / 2 - distance, 0, 1) * outline
        return outline, head
    return None


def _raster(size: int, kind: int, cy: float, cx: float, radius: float, angle: float, squeeze: float) -> Array:
    """Smooth coverage of a turned outline: size x size in [0, 1]."""
    big = Image.new("L", (size * OVERSAMPLE, size * OVERSAMPLE), 0)
    draw = ImageDraw.Draw(big)
    for number, outline in enumerate(_polygon(kind)):
        points = []
        for x, y in outline:
            y *= squeeze
            px = cx + radius * (x * np.cos(angle) - y * np.sin(angle))
            py = cy + radius * (x * np.sin(angle) + y * np.cos(angle))
            points.append((px * OVERSAMPLE, py * OVERSAMPLE))
        draw.polygon(points, fill=0 if number else 255)
    return np.asarray(big.resize((size, size), Image.Resampling.BOX), np.float32) / 255


def _paint(rng: np.random.Generator, canvas: Array, outline: Array, head: Array, kind: int) -> Array:
    """Put one object on the canvas: shadow rim, body, head."""
    size = len(canvas)
    hue = HUES[kind] + rng.uniform(-9, 9)
    light, saturation = rng.uniform(0.52, 0.82), rng.uniform(*BODY_SATURATION)
    grain = 0.5 * _noise(rng, size, 3) + 0.3 * _noise(rng, size, 8) + 0.35 * _stripes(rng, size, rng.uniform(5, 14))
    shading = 0.13 * _noise(rng, size, size / 2)
    body = _color(hue, saturation, light + BODY_GRAIN * grain + shading)
    pattern = _PATTERNS[kind](rng, size)
    vivid = _color(hue, 0.9, 0.45 + 0.35 * pattern)
    # A soft dark rim, as a shadow makes it: the outline stays visible on ground of equal shade.
    rim = Image.fromarray((outline * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1.5))
    canvas = canvas * (1 - 0.25 * np.asarray(rim, np.float32)[..., None] / 255)
    return _blend(_blend(canvas, body, outline), vivid, head)


def _color(hue: float, saturation: float, value: Array) -> Array:
    """HSV with one hue and saturation and a map of values -> size x size x 3."""
    k = (np.array([5.0, 3.0, 1.0]) + hue / 60) % 6
    weight = 1 - saturation * np.clip(np.minimum(k, 4 - k), 0, 1)
    color: Array = value[..., None] * weight
    return color


def _checks(rng: np.random.Generator, size: int) -> Array:
    period = rng.uniform(6, 9)
    y, x = np.mgrid[:size, :size]
    checks: Array = ((y // (period / 2) + x // (period / 2)) % 2) * 2.0 - 1
    return checks


def _rings(rng: np.random.Generator, size: int) -> Array:
    y, x = np.mgrid[:size, :size]
    cy, cx = rng.uniform(0, size, 2)
    rings: Array = np.sign(np.sin(2 * np.pi * np.hypot(y - cy, x - cx) / rng.uniform(6, 9)))
    return rings


def _dots(rng: np.random.Generator, size: int) -> Array:
    period = rng.uniform(6, 9)
    y, x = np.mgrid[:size, :size]
    return np.where(np.hypot(y % period - period / 2, x % period - period / 2) < period * 0.3, 1.0, -0.6)


def _bars(rng: np.random.Generator, size: int) -> Array:
    bars: Array = np.sign(_stripes(rng, size, rng.uniform(6, 9)))
    return bars


def _zigzag(rng: np.random.Generator, size: int) -> Array:
    y, x = np.mgrid[:size, :size]
    period = rng.uniform(8, 11)
    zigzag: Array = np.sign(np.sin(2 * np.pi * (y + np.abs(x % period - period / 2) * 1.4) / (period * 0.8)))
    return zigzag


def _plain(rng: np.random.Generator, size: int) -> Array:
    return 0.8 * _noise(rng, size, 5)


_PATTERNS: tuple[Callable[[np.random.Generator, int], Array], ...] = (_checks, _bars, _dots, _rings, _zigzag, _plain)


def default_folder() -> Path:
    """Where the demo data lives: `$AFACTL_CACHE/demo`, or else `~/.cache/afactl/demo`."""
    cache = os.environ.get("AFACTL_CACHE")
    return (Path(cache) if cache else Path.home() / ".cache" / "afactl") / "demo"


def generate(folder: Path, *, train: int = TRAIN, val: int = VAL, size: int = SIZE, seed: int = SEED) -> Path:
    """Make the dataset in `folder` once, in the format of `folder.py`; later calls return at once.

    It is drawn beside its place and moved there when it is whole.

    Raises:
        DataError: the folder holds something else, or cannot be written.
    """
    recipe = {"version": VERSION, "train": train, "val": val, "size": size, "seed": seed}
    if _recipe(folder) == recipe:
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with lock(folder.with_name(f"{folder.name}.lock"), 600.0):
            # Another process may have made it while this one waited.
            if _recipe(folder) != recipe:
                _replace(folder, recipe)
    except BusyError as error:
        raise DataError(
            f"{folder}: another process has been generating it for ten minutes; stop that one first"
        ) from error
    except OSError as error:
        reason = error.strerror or error
        raise DataError(
            f"{folder}: the demo data cannot be written there ({reason}); set AFACTL_CACHE to a folder that can"
        ) from error
    return folder


def _recipe(folder: Path) -> dict[str, int] | None:
    """How the data in a folder was made; None where there is none."""
    try:
        recipe: dict[str, int] = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return recipe


def _replace(folder: Path, recipe: dict[str, int]) -> None:
    if folder.exists() and any(folder.iterdir()) and _recipe(folder) is None:
        raise DataError(
            f"{folder}: expected an empty folder or generated demo data, found other files; "
            "set AFACTL_CACHE to another folder"
        )
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    rows = []
    for number, split in enumerate(("train", "val")):
        (fresh / "images" / split).mkdir(parents=True)
        for i in range(recipe[split]):
            image, mask, labels = draw_image(np.random.default_rng((recipe["seed"], number, i)), recipe["size"])
            name = f"{split}/{i:04d}"
            Image.fromarray(image).save(fresh / "images" / f"{name}.png", compress_level=1)
            write_mask(fresh / "masks" / f"{name}.png", mask)
            rows.append((f"images/{name}.png", split, "|".join(CLASSES[c] for c in labels)))
    (fresh / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    with open(fresh / "labels.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("image", "split", "labels"), *rows])
    (fresh / "dataset.json").write_text(json.dumps(recipe), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(fresh, folder)


FORMAT = dataclasses.replace(FOLDER_FORMAT, generate=lambda: generate(default_folder()))
