"""How time and memory of pseudo labels grow: python benchmarks/growth.py [PLOT.png]

Every point is measured in a process of its own: MiT-B1, CAM at scales 1, 0.5, 1.5 with flip, random
walk, PAR and dense CRF of one photo; and the whole of `pseudo-eval` over many small pictures.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from ratio import machine, picture, resident

from afactl.datasets.demo import generate
from afactl.datasets.transforms import normalize
from afactl.evaluation.pseudo_labels import score_pseudo_labels
from afactl.inference.refiners import build_refiner
from afactl.inference.trained_run import open_run, open_split
from afactl.machine.allocator import keep_freed_memory
from afactl.method.affinity import Walk, log_sigmoid
from afactl.method.pseudo_labels import background_planes, propagate, refine_planes
from afactl.method.refinement.crf import dense_crf
from afactl.network.model import AFA
from afactl.presets import load_preset
from afactl.training import launch

POINTS = {
    "image side": (128, 192, 256, 384, 512, 768, 1024),
    "classes present": (1, 2, 5, 10, 20),
    "images": (10, 30, 100, 300, 1000),
}


def photo(side: int, classes: int) -> dict[str, float]:
    """Seconds of each part for one square photo."""
    model = AFA("mit_b1", 20).eval()
    refine = build_refiner("par")
    image = picture(side, side)
    present = torch.arange(classes)
    spent: dict[str, float] = {}

    def clock(name, job):
        start = time.perf_counter()
        result = job()
        spent[name] = time.perf_counter() - start
        return result

    with torch.inference_mode():
        passed = clock("CAM", lambda: model.multi_scale_cam(normalize(image[None]), (1.0, 0.5, 1.5), 1.5))
        cam = passed.cam[0, present]

        def affinity_and_walk() -> torch.Tensor:
            logits = model.affinity_head.windows(passed.queries, passed.keys, passed.grid, 8)
            return propagate(cam, log_sigmoid(logits)[0], (0.55, 0.35), Walk(8))

        walked = clock("affinity and walk", affinity_and_walk)
        clock("PAR", lambda: refine_planes(image, walked, present, refine))
        planes = background_planes(cam, (0.45,))[0]
        clock("CRF", lambda: dense_crf(image, planes))
    return spent


def images(count: int) -> dict[str, float]:
    """Seconds of `pseudo-eval` over generated pictures of 64 pixels."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        generate(data, train=8, val=count, size=64)
        short = [
            "train.max_iters=1",
            "train.cls_warmup_iters=1",
            "train.aff_warmup_iters=0",
            "train.batch_size=2",
            "train.crop_size=64",
        ]
        # Validated on the eight pictures of train: the time of val is what is measured below.
        preset = load_preset("demo", launch.preset_changes(data, None, [*short, "data.val_split=train"]))
        trained = launch.start(launch.Request(preset, out=Path(folder) / "run"))
        run = open_run(trained.run, torch.device("cpu"))
        split = open_split(run, "val", data, masks=True)
        start = time.perf_counter()
        score_pseudo_labels(run, split)
        return {"pseudo-eval": time.perf_counter() - start}


def point(axis: str, value: int) -> None:
    """Measure one point, the best of three times, and print `name seconds` lines and the peak in MiB."""
    keep_freed_memory()
    job = {"image side": lambda n: photo(n, 2), "classes present": lambda n: photo(512, n), "images": images}[axis]
    rounds = [job(value) for _ in range(1 if axis == "images" else 3)]
    for name in rounds[0]:
        print(f"{name}\t{min(spent[name] for spent in rounds)}")
    print(f"peak memory\t{resident('VmHWM')}")


def exponent(x: list[int], y: list[float]) -> float:
    """Slope of the upper half of the points on logarithmic axes."""
    half = len(x) // 2
    return float(np.polyfit(np.log(x[half:]), np.log(y[half:]), 1)[0])


def plot(measured: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Log-log curves: time above, memory below."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(12, 6.5), sharex="col", layout="constrained")
    for column, (axis, curves) in enumerate(measured.items()):
        for name, values in curves.items():
            row = int(name == "peak memory")
            axes[row, column].loglog(
                POINTS[axis], values, marker="o", label=f"{name} (exponent {exponent(POINTS[axis], values):.1f})"
            )
        axes[0, column].set_ylabel("seconds")
        axes[1, column].set_ylabel("peak memory of the process, MiB")
        axes[1, column].set_xlabel(axis)
        for row in range(2):
            axes[row, column].grid(True, which="major", alpha=0.3)
            axes[row, column].legend(fontsize=8, loc="upper left")
            axes[row, column].set_xticks(POINTS[axis], labels=map(str, POINTS[axis]))
            axes[row, column].minorticks_off()
        low, high = axes[0, column].get_ylim()
        axes[0, column].set_ylim(low, high * (high / low) ** 0.35)  # room for the legend
        axes[1, column].set_ylim(100, 10_000)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        point(sys.argv[1], int(sys.argv[2]))
        raise SystemExit
    machine()
    measured: dict[str, dict[str, list[float]]] = {}
    for axis, values in POINTS.items():
        curves = measured.setdefault(axis, {})
        for value in values:
            done = subprocess.run(
                [sys.executable, __file__, axis, str(value)], capture_output=True, text=True, check=True
            )
            for line in done.stdout.splitlines():
                if "\t" in line:
                    name, number = line.split("\t")
                    curves.setdefault(name, []).append(float(number))
        print(f"| {axis} | {' | '.join(map(str, values))} | exponent |\n|{'---|' * (len(values) + 2)}")
        for name, numbers in curves.items():
            digits = 0 if name == "peak memory" else 3
            unit = "MiB" if name == "peak memory" else "s"
            print(
                f"| {name}, {unit} | {' | '.join(f'{n:.{digits}f}' for n in numbers)} "
                f"| {exponent(values, numbers):.2f} |"
            )
        print()
    if len(sys.argv) == 2:
        plot(measured, Path(sys.argv[1]))
