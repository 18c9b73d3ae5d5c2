"""Timing two ways of doing the same in turns, so that the machine's moods meet both alike."""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image


def compare(title: str, ours: Callable[[], object], other: Callable[[], object], name: str, rounds: int = 5) -> None:
    """Print how many times longer the other way takes: best against best, and the median of the rounds."""
    pairs = in_turns(ours, other, rounds)
    mine, theirs = (min(column) for column in zip(*pairs, strict=True))
    median = statistics.median(b / a for a, b in pairs)
    print(
        f"{title}: {theirs / mine:.1f}x (median {median:.1f}x); "
        f"ours {1000 * mine:.1f} ms, {name} {1000 * theirs:.1f} ms"
    )


def in_turns(ours: Callable[[], object], other: Callable[[], object], rounds: int) -> list[tuple[float, float]]:
    """Seconds of both ways, round by round, after one round that is not counted."""
    ours(), other()
    return [(seconds(ours), seconds(other)) for _ in range(rounds)]


def seconds(job: Callable[[], object]) -> float:
    """Wall time of a job, the GPU's work included."""
    start = time.perf_counter()
    job()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def machine() -> None:
    """Print where and with what this is measured."""
    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    for line in information.read_text().splitlines() if information.is_file() else ():
        if line.startswith("model name"):
            processor = line.split(":")[1].strip()
            break
    print(f"{time.strftime('%Y-%m-%d')}, {processor}, {torch.get_num_threads()} threads, torch {torch.__version__}")


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """3 x h x w float RGB in 0..255: a generated scene with edges, texture and noise."""
    from afactl.datasets.demo import draw_image

    image, _, _ = draw_image(np.random.default_rng(seed), 256)
    return torch.from_numpy(np.array(Image.fromarray(image).resize((width, height)))).permute(2, 0, 1).float()


def resident(key: str) -> float:
    """MiB of this process in memory: now (VmRSS), or at the peak (VmHWM). Linux only."""
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) / 1024


def peak_memory(setup: str, job: str) -> float:
    """MiB that a job adds at its peak to what is resident before it, in a process of its own (Linux)."""
    code = f"""
import sys
sys.path.insert(0, "{Path(__file__).parent}")
from ratio import resident
{setup}
open("/proc/self/clear_refs", "w").write("5")  # the peak so far is forgotten
before = resident("VmRSS")
{job}
print(resident("VmHWM") - before)
"""
    return float(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()[-1]
    )
