"""The photos of a run's splits as the page of `afactl explore` lists them: searched, in the order that is asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from afactl.datasets.registry import dataset_folder, split_names
from afactl.datasets.samples import Sample, Split
from afactl.errors import AfactlError, DataError, UsageError, first_line
from afactl.evaluation.doubt import Doubt, doubts
from afactl.evaluation.segmentation import kept_photo_scores
from afactl.inference.trained_run import TrainedRun, open_split
from afactl.runs.folder import read_scores

ORDERS = ("list", "worst", "doubt")
# Where a page of the list ends, and the next one has to be asked for.
PAGE = 60


class _Doubting:
    """The doubts of a split, as far as they are known; a thread of its own passes the photos."""

    def __init__(self) -> None:
        self.known: dict[str, Doubt] = {}
        self.error = ""


class _Scored(NamedTuple):
    """mIoU in per cent of the photos of a split, and when the files of the run changed that they come from."""

    changed: tuple[int, ...]
    values: dict[str, float]


def require_folder(run: TrainedRun) -> None:
    """The run may be removed while somebody looks at it.

    Raises:
        DataError: it was.
    """
    if not run.folder.is_dir():
        raise DataError(f"{run.folder}: the run is gone; bring it back, or stop this page and explore another one")


class PhotoList:
    """The photos of the dataset of a run.

    Args:
        run: trained. data: where its dataset lies, if not where it was trained from.
        network: held while the network is used.

    Attributes:
        root: folder of the dataset. split_names: in their order. missing: why there are no photos, or "".
    """

    def __init__(self, run: TrainedRun, data: Path | None, network: threading.RLock) -> None:
        self._run, self._data, self._network = run, data, network
        self.root, self.split_names, self.missing = Path(), list[str](), ""
        settings = run.preset.data
        try:
            self.root = dataset_folder(settings.name, settings.folder(data))
            self.split_names = split_names(settings.name, self.root)
        except AfactlError as error:  # own photos can be dropped all the same
            self.missing = str(error)
        self._splits: dict[str, Split] = {}
        self._doubting: dict[str, _Doubting] = {}
        self._scored: dict[str, _Scored] = {}
        self._lock = threading.RLock()

    def split(self, name: str) -> Split:
        """A split, read at the first call.

        Raises:
            DataError: there is no dataset, or no such split.
        """
        if self.missing:
            raise DataError(self.missing)
        with self._lock:
            if name not in self._splits:
                self._splits[name] = open_split(self._run, name, self._data, masks=False)
            return self._splits[name]

    def sample(self, split: str, image_id: str) -> Sample:
        """A photo of a split.

        Raises:
            DataError, UsageError: no such split, or no such photo in it.
        """
        for sample in self.split(split).samples:
            if sample.image_id == image_id:
                return sample
        raise UsageError(f"split {split}: has no photo {image_id}")

    def page(
        self, split: str, search: str, order: str, start: int, verdict: Callable[[str, Sample], str]
    ) -> dict[str, Any]:
        """A page of the photos of a split; arguments and result as in `Session.photos`.

        Args:
            verdict: what the review list says of a photo of the split, or "".
        """
        if order not in ORDERS:
            raise UsageError(f"order: expected one of {', '.join(ORDERS)}, got {order}")
        opened, note = self.split(split), ""
        scores = self._scores(opened) if order == "worst" else {}
        doubting = self._doubts(opened) if order == "doubt" else _Doubting()
        word = search.strip().casefold()
        samples = [sample for sample in opened.samples if not word or word in _words(opened, sample)]
        if order == "worst":
            samples = sorted((s for s in samples if s.image_id in scores), key=lambda s: scores[s.image_id])
        if order == "doubt":
            known = doubting.known
            samples = sorted((s for s in samples if s.image_id in known), key=lambda s: -known[s.image_id].value)
            note = doubting.error
        shown = [
            _entry(opened.classes, sample, scores, doubting.known) | {"verdict": verdict(split, sample)}
            for sample in samples[start : start + PAGE]
        ]
        counts = {"known": len(doubting.known), "all": len(opened.samples)} if order == "doubt" else {}
        return {"photos": shown, "total": len(samples), "note": note, **counts}

    def _scores(self, split: Split) -> dict[str, float]:
        """mIoU in per cent of the photos of a split, as `afactl eval` left it; read again when it has run again."""
        require_folder(self._run)
        split.require_masks("the order by score")
        changed = tuple(path.stat().st_mtime_ns for path in sorted((self._run.folder / "scores").glob("*")))
        if split.name not in self._scored or self._scored[split.name].changed != changed:
            values = kept_photo_scores(self._run, split, read_scores(self._run.folder))
            if values is None:
                raise UsageError(
                    f"split {split.name}: not scored with these weights; "
                    f"run `afactl eval --split {split.name} --run {self._run.folder}` first"
                )
            found = {s.image_id: float(v) for s, v in zip(split.samples, values, strict=False) if np.isfinite(v)}
            self._scored[split.name] = _Scored(changed, found)
        return self._scored[split.name].values

    def _doubts(self, split: Split) -> _Doubting:
        """The doubts as far as they are known; the first call begins to work them out."""
        with self._lock:
            if split.name not in self._doubting or self._doubting[split.name].error:
                require_folder(self._run)
                self._doubting[split.name] = _Doubting()
                threading.Thread(target=self._doubt, args=(split,), daemon=True).start()
            return self._doubting[split.name]

    def _doubt(self, split: Split) -> None:
        doubting = self._doubting[split.name]
        try:
            walk = doubts(self._run, split)
            while True:
                with self._network:
                    found = next(walk, None)
                if found is None:
                    return
                doubting.known = {**doubting.known, found[0]: found[1]}
        except AfactlError as error:
            doubting.error = str(error)
        except OSError as error:  # the run was removed
            doubting.error = first_line(error)


def _words(split: Split, sample: Sample) -> str:
    return "\n".join([sample.image_id, *(split.classes[label] for label in sample.labels)]).casefold()


def _entry(
    classes: tuple[str, ...], sample: Sample, scores: Mapping[str, float], known: Mapping[str, Doubt]
) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": sample.image_id, "labels": [classes[label] for label in sample.labels]}
    if sample.image_id in scores:
        entry["miou"] = scores[sample.image_id]
    if sample.image_id in known:
        doubt = known[sample.image_id]
        entry["entropy"] = doubt.entropy
        entry["denied"] = [classes[label] for label in doubt.denied]
        entry["missed"] = [classes[label] for label in doubt.missed]
    return entry
