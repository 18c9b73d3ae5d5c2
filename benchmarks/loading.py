"""Loading photos for training against decoding them alone: python benchmarks/loading.py PRESET DATA [PHOTOS]"""

import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from ratio import machine, seconds
from torch.utils.data import DataLoader, Dataset

from afactl.datasets.images import read_image
from afactl.datasets.registry import load_split
from afactl.datasets.training_stream import Crops, TrainingStream
from afactl.datasets.transforms import image_view, normalize, random_window
from afactl.machine.allocator import keep_freed_memory
from afactl.presets import load_preset

WORKERS = 2


class Decoding(Dataset):
    """Every photo decoded to RGB and thrown away."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: int) -> int:
        return np.array(Image.open(self.paths[item]).convert("RGB")).size


def after_the_first(loader: DataLoader, use) -> float:
    """Wall time per photo set, from the first batch on, so that the start of the workers is left out."""
    batches = iter(loader)
    next(batches)
    start = time.perf_counter()
    for batch in batches:
        use(batch)
    return time.perf_counter() - start


if __name__ == "__main__":
    machine()
    torch.set_num_threads(1)  # two workers are all the cores of a small machine
    keep_freed_memory()
    preset = load_preset(sys.argv[1])
    split = load_split(preset.data.name, Path(sys.argv[2]), preset.data.train_split, preset.data.labels)
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 2000
    job = preset.train
    stream = TrainingStream(split, Crops(job.crop_size, job.scale_range), 0, range(count))
    order = np.concatenate(
        [
            np.random.default_rng((0, 0, epoch)).permutation(len(split.samples))
            for epoch in range(1 + count // len(split.samples))
        ]
    )[:count]
    decoding = Decoding([split.samples[i].image_path for i in order])
    first = range(min(count, 400))
    one_by_one = [sum(seconds(partial(source.__getitem__, i)) for i in first) for source in (stream, decoding)]
    rounds = [
        (
            after_the_first(DataLoader(stream, 8, num_workers=WORKERS), lambda batch: normalize(batch["image"])),
            after_the_first(DataLoader(decoding, 8, num_workers=WORKERS), lambda batch: None),
        )
        for _ in range(3)
    ]
    ours, alone = (min(column) for column in zip(*rounds, strict=True))
    print(
        f"{count} photos, {WORKERS} workers, crop {job.crop_size}: "
        f"loading takes {ours / alone:.2f}x of decoding alone; "
        f"{count / ours:.0f} against {count / alone:.0f} photos/s"
    )
    print(f"  in one process, without normalising and handing over: {one_by_one[0] / one_by_one[1]:.2f}x")
    photos = [read_image(decoding.paths[i]) for i in first]
    sizes = [photo.shape[:2] for photo in photos]
    crops = stream.crops
    windows = [random_window(size, np.random.default_rng(i), *crops) for i, size in enumerate(sizes)]
    parts = {
        "decoding alone": decoding.__getitem__,
        "reading, upright and checked": lambda i: read_image(decoding.paths[i]),
        "drawing a window": lambda i: random_window(sizes[i], np.random.default_rng((0, 1, i)), *crops),
        "cutting and resampling": lambda i: image_view(photos[i], windows[i]),
        "the whole item": stream.__getitem__,
    }
    for name, part in parts.items():
        best = min(sum(seconds(partial(part, i)) for i in first) for _ in range(3))
        print(f"    {name}: {1000 * best / len(first):.2f} ms a photo")
