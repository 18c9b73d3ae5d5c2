"""A network as ONNX against torch: python benchmarks/onnx_file.py RUN [DATA] [SPLIT]

Time of a pass over one photo by one scale (torch; onnxruntime with float32 weights, and with 8-bit ones), and the mIoU
of each over the split.
"""

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from ratio import machine, seconds

from afactl.datasets.images import read_image
from afactl.datasets.transforms import normalize
from afactl.evaluation.metrics import confusion_matrix, mean_iou
from afactl.inference.onnx_export import export_int8, export_onnx
from afactl.inference.segmentation import segment
from afactl.inference.trained_run import open_run, open_split, to_tensor

ROUNDS = 5


def opened(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """A file in onnxruntime, with as many threads as torch."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options)

    def forward(image: np.ndarray) -> np.ndarray:
        pixels = normalize(to_tensor(image, torch.device("cpu"))).numpy()
        return session.run(["segmentation"], {"image": pixels})[0][0]

    return forward


if __name__ == "__main__":
    machine()
    run = open_run(Path(sys.argv[1]), torch.device("cpu"))
    data = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    split = open_split(run, sys.argv[3] if len(sys.argv) > 3 else "val", data, masks=True)
    with tempfile.TemporaryDirectory() as folder:
        exact, rounded = Path(folder) / "exact.onnx", Path(folder) / "rounded.onnx"
        export_onnx(run, exact)
        export_int8(run, rounded)
        sizes = exact.stat().st_size, rounded.stat().st_size
        files = [opened(exact), opened(rounded)]
    classes, masks = len(split.classes) + 1, split.require_masks()
    passes = {
        "torch": lambda image: segment(run.model, image, run.device).numpy(),
        "onnxruntime": files[0],
        "onnxruntime, 8-bit": files[1],
    }
    confusions = {name: np.zeros((classes, classes), np.int64) for name in passes}
    spent = dict.fromkeys(passes, 0.0)
    for number, sample in enumerate(split.samples):
        image, truth = read_image(sample.image_path), masks.read(sample)
        for name, forward in passes.items():
            confusions[name] += confusion_matrix(truth, forward(image).argmax(0), classes)
            if number < ROUNDS:
                spent[name] += min(seconds(partial(forward, image)) for _ in range(ROUNDS))
    print(f"{len(split.samples)} photos of {split.name}; {sizes[0] / 1e6:.1f} MB, 8-bit {sizes[1] / 1e6:.1f} MB")
    for name, confusion in confusions.items():
        ratio = spent["torch"] / spent[name]
        print(
            f"  {name}: {1000 * spent[name] / ROUNDS:.0f} ms a photo, {ratio:.2f}x as quick as torch; "
            f"mIoU {100 * mean_iou(confusion):.2f}"
        )
