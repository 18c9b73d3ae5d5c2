"""`afactl data check` against decoding the same files: python benchmarks/checking.py DIR"""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from ratio import machine, seconds

from afactl.datasets.checking import check_splits
from afactl.datasets.registry import format_of, load_all


def decode(path: Path) -> None:
    image = Image.open(path)
    np.asarray(image if image.mode in ("L", "P") else image.convert("RGB"))


if __name__ == "__main__":
    machine()
    root = Path(sys.argv[1])
    splits = load_all(format_of(root), root)
    paths = [
        path
        for split in splits
        for sample in split.samples
        for path in (sample.image_path, split.masks.path(sample) if split.masks else None)
        if path is not None
    ]

    def decode_all() -> None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(decode, paths))

    decode_all()
    pairs = [(seconds(lambda: check_splits(splits, splits[0].name)), seconds(decode_all)) for _ in range(3)]
    ours, alone = (min(column) for column in zip(*pairs, strict=True))
    print(f"{len(paths)} files: checking takes {ours / alone:.2f}x of decoding them; {ours:.2f} against {alone:.2f} s")
