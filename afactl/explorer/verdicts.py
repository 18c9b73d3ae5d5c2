"""Verdicts that somebody gives about photos on the page of `afactl explore`, and the review list that keeps them."""

from __future__ import annotations

import threading
from pathlib import Path

from afactl.datasets.samples import Sample
from afactl.errors import UsageError
from afactl.explorer.photo_list import require_folder
from afactl.inference.trained_run import TrainedRun
from afactl.runs.review import REVIEW, VERDICTS, Reviewed, photo_key, read_review, review_text, write_review


class Verdicts:
    """The review list of a run.

    Args:
        dataset: its folder, below which photos are named.

    Raises:
        DataError: a list that is there cannot be read.
    """

    def __init__(self, run: TrainedRun, dataset: Path) -> None:
        self._run, self._dataset = run, dataset
        self._given = read_review(run.folder / REVIEW)
        self._lock = threading.Lock()

    def of(self, split: str, sample: Sample) -> str:
        """The verdict about a photo, or ""."""
        return self._given.get(self._key(split, sample), "")

    def give(self, split: str, sample: Sample, verdict: str) -> dict[str, int]:
        """Keep a verdict about a photo, in the run's review list as well; "" takes it back.

        Returns:
            How many photos have each verdict.

        Raises:
            UsageError: no such verdict. DataError: the run is gone; the verdict is kept here, and in `text`.
        """
        if verdict not in ("", *VERDICTS):
            raise UsageError(f"verdict: expected one of {', '.join(VERDICTS)}, got {verdict}")
        with self._lock:
            if verdict:
                self._given[self._key(split, sample)] = verdict
            else:
                self._given.pop(self._key(split, sample), None)
            require_folder(self._run)
            write_review(self._run.folder / REVIEW, self._given)
            return self.counts()

    def counts(self) -> dict[str, int]:
        """How many photos have each verdict."""
        return {verdict: list(self._given.values()).count(verdict) for verdict in VERDICTS}

    def text(self) -> str:
        """The review list as it is here, whatever became of the run."""
        return review_text(self._given)

    def _key(self, split: str, sample: Sample) -> Reviewed:
        return Reviewed(photo_key(sample.image_path, self._dataset), split)
