"""When what happens in training: the learning rate and the three phases (paper 4.1)."""

from __future__ import annotations

import enum


class Phase(enum.Enum):
    """What a step is supervised by.

    CLASSIFICATION: image-level labels alone.
    REFINED: also the affinity and the segmentation, by labels refined with PAR.
    PROPAGATED: the segmentation by labels propagated with the learned affinity.
    """

    CLASSIFICATION = "classification"
    REFINED = "refined labels"
    PROPAGATED = "propagated labels"


def phase_at(step: int, cls_warmup_iters: int, aff_warmup_iters: int, affinity: bool = True) -> Phase:
    """The phase of a step.

    Args:
        step: from 0.
        cls_warmup_iters: steps of classification alone.
        aff_warmup_iters: steps after those in which the affinity is not yet used.
        affinity: False for a run without the affinity branch, which never propagates.

    Example:
        >>> [phase_at(step, 2000, 4000).name for step in (0, 2000, 6000)]
        ['CLASSIFICATION', 'REFINED', 'PROPAGATED']
    """
    if step < cls_warmup_iters:
        return Phase.CLASSIFICATION
    if not affinity or step < cls_warmup_iters + aff_warmup_iters:
        return Phase.REFINED
    return Phase.PROPAGATED


def phase_starts(cls_warmup_iters: int, aff_warmup_iters: int, affinity: bool = True) -> dict[str, int]:
    """The first step of each phase, by its name; arguments as in `phase_at`.

    Example:
        >>> phase_starts(2000, 4000)
        {'classification': 0, 'refined labels': 2000, 'propagated labels': 6000}
    """
    starts = {Phase.CLASSIFICATION: 0, Phase.REFINED: cls_warmup_iters}
    if affinity:
        starts[Phase.PROPAGATED] = cls_warmup_iters + aff_warmup_iters
    return {phase.value: step for phase, step in starts.items()}


def learning_rate(
    step: int, base: float, max_iters: int, warmup_iters: int, warmup_ratio: float = 1e-6, power: float = 1.0
) -> float:
    """Learning rate used at a step: linear warm-up, then polynomial decay.

    base * (1 - (1 - step / warmup_iters)(1 - warmup_ratio)) during the warm-up, and
    base * (1 - step / max_iters)^power after it. The decay is not re-based: it counts from step 0.

    Args:
        step: from 0 to max_iters - 1.

    Example:
        >>> [f"{learning_rate(step, 6e-5, 20000, 1500):.1e}" for step in (0, 750, 1500, 10000)]
        ['6.0e-11', '3.0e-05', '5.6e-05', '3.0e-05']
    """
    if step < warmup_iters:
        return base * (1 - (1 - step / warmup_iters) * (1 - warmup_ratio))
    return float(base * (1 - step / max_iters) ** power)
