"""Window mask, propagation and confusion matrix against their textbook forms: python benchmarks/propagation.py"""

from functools import partial

import numpy as np
import textbook
import torch
from ratio import compare, machine

from afactl.evaluation.metrics import confusion_matrix
from afactl.method.affinity import neighborhood_mask, random_walk


def in_halves(planes: torch.Tensor, affinity: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    """Once for the planes of each threshold."""
    return [textbook.propagate(half, affinity, mask, 2.0) for half in planes.chunk(2, dim=1)]


if __name__ == "__main__":
    machine()
    torch.manual_seed(0)
    compare(
        "window mask 32 x 32, radius 8",
        lambda: neighborhood_mask(32, 32, 8),
        lambda: textbook.window_mask(32, 32, 8),
        "double loop",
        rounds=3,
    )
    for side in ((48, 48), (94, 125)):
        count = side[0] * side[1]
        affinity, planes = torch.rand(1, count, count), torch.rand(1, 8, count)
        mask = neighborhood_mask(*side, 8)
        walk = partial(random_walk, planes.view(1, 8, *side), affinity, 8, 2.0)
        once = partial(textbook.propagate, planes, affinity, mask, 2.0)
        twice = partial(in_halves, planes, affinity, mask)
        difference = (walk().flatten(2) - torch.cat(twice(), dim=1)).abs().max().item()
        compare(
            f"propagation {side[0]} x {side[1]}, both thresholds, 4 planes each",
            walk,
            twice,
            "N x N matrices, once per threshold",
            rounds=5,
        )
        compare("  the same", walk, once, "N x N matrices, once for both", rounds=5)
        print(f"  largest difference {difference:.1e}")
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 21, (2, 375, 500)).astype(np.uint8)
    if not np.array_equal(confusion_matrix(truth, prediction, 21), textbook.confusion_matrix(truth, prediction, 21)):
        raise SystemExit("the confusion matrices differ")
    compare(
        "confusion matrix 375 x 500, 21 classes",
        lambda: confusion_matrix(truth, prediction, 21),
        lambda: textbook.confusion_matrix(truth, prediction, 21),
        "boolean masks",
    )
