"""What tags alone can teach, and what they cannot: said before a training, of a dataset without any defect."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence

from afactl.datasets.checking import SplitFacts, median_long_side
from afactl.datasets.samples import Split
from afactl.datasets.tables import SEPARATORS

# A rule of thumb, not measured.
FEW = 20
# A view of less than a third of a photo's side shows its object seldom.
LARGE = 3
# A token of a view of 160 pixels, 10 x 10 tokens, is a hundredth of it.
TINY = 0.01


def tag_advice(split: Split) -> list[str]:
    """Why the tags of a training split may teach less than one hopes, a line each.

    - All photos have the same tags, or one is in every photo: nothing tells the class from what is around it.
    - Two classes occur only together: nothing tells one from the other.
    - A class has few photos.
    - Two names differ in nothing but case, and may be one class; or one holds what stands between names elsewhere.
    """
    photos = defaultdict(set)
    for number, sample in enumerate(split.samples):
        for label in sample.labels:
            photos[label].add(number)
    names, total = split.classes, len(split.samples)
    notes = []
    if total > 1 and len({sample.labels for sample in split.samples}) == 1:
        tags = ", ".join(names[label] for label in split.samples[0].labels) or "none"
        notes.append(
            f"every photo of {split.name} has the same tags ({tags}): there is nothing to learn from; "
            "add photos without them, and photos of other classes"
        )
    else:
        everywhere = [names[label] for label in sorted(photos) if len(photos[label]) == total > 1]
        if everywhere:
            notes.append(
                f"in every photo of {split.name}: {', '.join(everywhere)}; what is always there cannot be told from "
                "the background, add photos without it"
            )
        together = [
            f"{names[one]} and {names[other]}"
            for one, other in itertools.combinations(sorted(photos), 2)
            if photos[one] == photos[other] and len(photos[one]) < total
        ]
        if together:
            notes.append(
                f"only together in {split.name}: {'; '.join(together[:3])}{' ...' * (len(together) > 3)}; tags cannot "
                "tell them apart, add photos of one without the other"
            )
    few = [f"{names[label]} {len(photos[label])}" for label in sorted(photos) if len(photos[label]) < FEW]
    if few:
        notes.append(
            f"classes with fewer than {FEW} photos in {split.name}: {', '.join(few)}; so few teach little, add more"
        )
    folded = defaultdict(list)
    for name in names:
        folded[name.casefold()].append(name)
    alike = [" and ".join(same) for same in folded.values() if len(same) > 1]
    if alike:
        notes.append(f"class names that differ only in case: {'; '.join(alike)}; one of each, if they mean the same")
    joined = [name for name in names if set(name) & set(SEPARATORS) or name != name.strip()]
    if joined:
        notes.append(
            f"class names with {' '.join(SEPARATORS)} or blanks at their ends: {', '.join(map(repr, joined))}; "
            "in tables they may be read as several names, so rename them"
        )
    return notes


def object_advice(facts: SplitFacts, classes: Sequence[str]) -> list[str]:
    """Which classes cover so little of their photos that the network hardly sees them, where masks tell it."""
    tiny = [
        f"{name} {100 * share:.1f} %"
        for name, share in zip(classes, facts.shares, strict=True)
        if share is not None and share < TINY
    ]
    if not tiny:
        return []
    return [
        f"tiny objects in {facts.name} (share of the photo, median): {', '.join(tiny)}; "
        f"below {100 * TINY:.0f} % little is learned, cut the photos closer to them"
    ]


def size_advice(split: Split, crop: int, long_side: int | None) -> list[str]:
    """Whether views of training would show a small part of most photos.

    Args:
        crop: `train.crop_size`. long_side: `data.long_side`, which reduces photos first.
    """
    if long_side is not None:
        return []
    median = median_long_side(split)
    if median <= LARGE * crop:
        return []
    return [
        f"half of the photos are {median} pixels long or more, over {LARGE} times train.crop_size={crop}: a view shows "
        f"a small part of them; --set data.long_side={LARGE * crop} reduces them first"
    ]
