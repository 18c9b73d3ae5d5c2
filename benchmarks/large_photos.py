"""Every command on photos as large as a phone's: python benchmarks/large_photos.py [PHOTOS] [SIDE]

A folder of JPEGs of 4000 x 3000 pixels (SIDE: the longer side) with masks goes through the whole chain with the preset
`photos` and random weights. Time and peak memory of each command, cache per photo; the exit status is 1 if one failed.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from ratio import machine

from afactl.datasets import demo

STEPS = 10
SIDE = 4000  # 12 megapixels at 4:3


class Done(NamedTuple):
    """A command, the seconds and GiB that it took, and its exit status and last lines."""

    command: str
    seconds: float
    memory: float
    status: int
    tail: str


def make_folder(folder: Path, photos: int, side: int) -> Path:
    """A folder set whose one half trains and the other validates; the masks are as large as the photos.

    Both halves show the same scenes in other noise: `data check` has nothing to say of the classes.
    """
    size, rows, rng = (side, side * 3 // 4), [], np.random.default_rng(0)
    for number in range(photos):
        split = "val" if number % 2 else "train"
        image, mask, labels = demo.draw_image(np.random.default_rng(number // 2), 512)
        for kind, array, way, ending in (
            ("images", image, Image.Resampling.BICUBIC, ".jpg"),
            ("masks", mask, Image.Resampling.NEAREST, ".png"),
        ):
            path = folder / kind / split / f"{number:03}{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            large = Image.fromarray(array).resize(size, way)
            if kind == "images":  # a camera's noise, else the JPEG is smaller than any real one
                noise = rng.normal(0, 4, (size[1], size[0], 1)).astype(np.float32)
                large = Image.fromarray((np.asarray(large) + noise).clip(0, 255).astype(np.uint8))
            large.save(path)
        rows.append([f"images/{split}/{number:03}.jpg", split, "|".join(demo.CLASSES[label] for label in labels)])
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in demo.CLASSES))
    with open(folder / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([["image", "split", "labels"], *rows])
    return folder


def chain(data: Path, run: Path) -> list[list[str]]:
    """The commands, in an order in which each finds what it needs."""
    steps = [f"train.max_iters={STEPS}", "train.cls_warmup_iters=4", "train.aff_warmup_iters=3", "train.workers=1"]
    settings = [part for step in steps for part in ("--set", step)]
    photo, where = str(next((data / "images" / "val").iterdir())), ["--run", str(run)]
    return [
        ["data", "check", str(data)],
        ["train", "photos", "--data", str(data), "--init", "none", "--out", str(run), *settings],
        ["dump-cams", "--split", "train", *where],
        ["pseudo-eval", "--split", "train", *where],
        ["pseudo-eval", "--split", "val", *where],
        ["eval", "--split", "val", *where],
        ["viz-attn", photo, "--query", "900,700", *where],
        ["viz-cams", *where],
        ["viz-heads", *where],
        ["viz-par", photo, *where],
        ["predict", str(data / "images"), "--crf", *where],
        ["report", *where],
    ]


def call(command: list[str], folder: Path) -> Done:
    """Run one command of ours in a process of its own."""
    log, start = folder / "log.txt", time.perf_counter()
    with open(log, "w") as file:
        job = subprocess.Popen([sys.executable, "-m", "afactl", *command], stdout=file, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(job.pid, 0)
    job.returncode = os.waitstatus_to_exitcode(status)  # Popen would wait for it again
    seconds, tail = time.perf_counter() - start, "\n".join(log.read_text().splitlines()[-8:])
    words = " ".join(part for part in command if not Path(part).is_absolute())
    return Done(words.split(" --set")[0], seconds, used.ru_maxrss / 2**20, job.returncode, tail)


def cache_megabytes(run: Path, photos: int) -> float:
    """What the caches of a run take on the disk, per photo."""
    return sum(path.stat().st_size for path in (run / "cache").rglob("*.h5")) / 1e6 / photos


def main(photos: int = 10, side: int = SIDE) -> int:
    machine()
    with tempfile.TemporaryDirectory() as scratch:
        folder, run = Path(scratch), Path(scratch) / "run"
        data = make_folder(folder / "data", photos, side)
        size = sum(path.stat().st_size for path in (data / "images").rglob("*.jpg")) / 1e6 / photos
        print(f"{photos} JPEGs of {side} x {side * 3 // 4} pixels, {size:.1f} MB each\n")
        print("| command | s | GiB | exit |\n|---|---|---|---|")
        whole = []
        for command in chain(data, run):
            done = call(command, folder)
            whole.append(done)
            print(f"| {done.command} | {done.seconds:.0f} | {done.memory:.2f} | {done.status} |", flush=True)
            if done.status:
                print(done.tail, file=sys.stderr)
        print(
            f"| **all** | {sum(done.seconds for done in whole):.0f} | {max(done.memory for done in whole):.2f} | |\n\n"
            f"cache: {cache_megabytes(run, photos):.2f} MB a photo"
        )
    return int(any(done.status for done in whole))


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
