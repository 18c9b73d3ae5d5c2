"""Where the time of a cold `pseudo-eval` goes, and what a second one takes.

Called as python benchmarks/pseudo_eval.py RUN DATA [SPLIT].
"""

import sys
import time
from pathlib import Path

from ratio import machine

from afactl.evaluation import pseudo_labels as evaluation
from afactl.inference import cams as inference
from afactl.inference.trained_run import open_run, open_split
from afactl.machine.allocator import keep_freed_memory
from afactl.machine.devices import choose_device

spent: dict[str, float] = {}


def clocked(module, name: str) -> None:
    """Let a function of a module count its seconds."""
    original = getattr(module, name)

    def call(*arguments, **options):
        start = time.perf_counter()
        try:
            return original(*arguments, **options)
        finally:
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - start

    setattr(module, name, call)


def seconds(run, split) -> tuple[float, evaluation.Table3]:
    start = time.perf_counter()
    table = evaluation.score_pseudo_labels(run, split)
    return time.perf_counter() - start, table


if __name__ == "__main__":
    machine()
    keep_freed_memory()
    run = open_run(Path(sys.argv[1]), choose_device("auto"))
    split = open_split(run, sys.argv[3] if len(sys.argv) > 3 else "val", Path(sys.argv[2]), masks=True)
    for module, name in ((inference, "cam_record"), (evaluation, "pseudo_labels_of")):
        clocked(module, name)
    for name in ("cams", "pseudo-labels"):
        (run.folder / "cache" / f"{name}-{split.name}.h5").unlink(missing_ok=True)
    cold, first = seconds(run, split)
    share = sum(spent.values()) / cold
    warm, second = seconds(run, split)
    print(
        f"{len(split.samples)} images, cold: {cold:.1f} s, of which network {spent['cam_record']:.1f} s, "
        f"refiners and propagation {spent['pseudo_labels_of']:.1f} s: {100 * share:.1f} %"
    )
    same = all(
        (a.confusion == b.confusion).all()
        for row in first.scores
        for a, b in zip(first.scores[row], second.scores[row], strict=True)
    )
    print(
        f"second time: {warm:.2f} s, 1/{cold / warm:.0f}; forward passes {second.passes}; "
        f"{'the same table' if same else 'ANOTHER TABLE'}"
    )
