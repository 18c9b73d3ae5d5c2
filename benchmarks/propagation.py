"""Window mask, propagation and confusion matrix against their naive forms: python benchmarks/propagation.py"""

from functools import partial

import naive
import numpy as np
import torch
from ratio import compare, machine

from afactl.evaluation.metrics import confusion_matrix
from afactl.method.affinity import Walk, log_sigmoid, neighborhood_mask, random_walk
from afactl.network.model import AffinityHead


def in_halves(planes: torch.Tensor, affinity: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    """Once for the planes of each threshold."""
    return [naive.propagate(half, affinity, mask, 2.0) for half in planes.chunk(2, dim=1)]


def from_logits(planes: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """The walk from the logits of neighbours."""
    return random_walk(planes, log_sigmoid(logits), Walk(8))


def from_maps(head: AffinityHead, maps: tuple[torch.Tensor, torch.Tensor], planes: torch.Tensor) -> torch.Tensor:
    """The walk from queries and keys."""
    return from_logits(planes, head.windows(*maps, (planes.shape[2], planes.shape[3]), 8))


def naive_from_maps(
    head: AffinityHead, maps: tuple[torch.Tensor, torch.Tensor], planes: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """The same with the affinity of all pairs."""
    return naive.propagate(planes, head(*maps).sigmoid(), mask, 2.0)


if __name__ == "__main__":
    machine()
    torch.manual_seed(0)
    compare(
        "window mask 32 x 32, radius 8",
        lambda: neighborhood_mask(32, 32, 8),
        lambda: naive.window_mask(32, 32, 8),
        "double loop",
        rounds=3,
    )
    head = AffinityHead(16)
    for side in ((48, 48), (94, 125)):
        count = side[0] * side[1]
        queries, keys, planes = *torch.randn(2, 1, 16, count, 64), torch.rand(1, 8, *side)
        mask = neighborhood_mask(*side, 8)
        with torch.inference_mode():
            logits, affinity = head.windows(queries, keys, side, 8), head(queries, keys).sigmoid()
            walk = partial(from_logits, planes, logits)
            once = partial(naive.propagate, planes.flatten(2), affinity, mask, 2.0)
            twice = partial(in_halves, planes.flatten(2), affinity, mask)
            difference = (walk().flatten(2) - torch.cat(twice(), dim=1)).abs().max().item()
            compare(
                f"propagation {side[0]} x {side[1]}, both thresholds, 4 planes each, from logits",
                walk,
                twice,
                "N x N matrices from the affinity, once per threshold",
                rounds=5,
            )
            compare("  the same", walk, once, "N x N matrices from the affinity, once for both", rounds=5)
            compare(
                "  from queries and keys",
                partial(from_maps, head, (queries, keys), planes),
                partial(naive_from_maps, head, (queries, keys), planes.flatten(2), mask),
                "N x N matrices, once for both",
                rounds=5,
            )
        print(f"  largest difference {difference:.1e}")
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 21, (2, 375, 500)).astype(np.uint8)
    if not np.array_equal(confusion_matrix(truth, prediction, 21), naive.confusion_matrix(truth, prediction, 21)):
        raise SystemExit("the confusion matrices differ")
    compare(
        "confusion matrix 375 x 500, 21 classes",
        lambda: confusion_matrix(truth, prediction, 21),
        lambda: naive.confusion_matrix(truth, prediction, 21),
        "boolean masks",
    )
