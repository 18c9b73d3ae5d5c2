"""Python's way in: a trained run as an object, and the jobs of the command line as functions with typed results.

Everything here is also a name of `afactl` itself: `afactl.load`, `afactl.train`, `afactl.evaluate`, ...

Shapes: C foreground classes, K = C + 1 with background 0, P present classes, h x w photo, h' x w' the same where the
photo is larger than the preset's bound (`cam.max_pixels`, `eval.max_pixels`), hs x ws token grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from afactl.datasets.images import read_image, reduce_image, rgb_array
from afactl.datasets.masks import enlarge_mask
from afactl.errors import ShapeError, UsageError, nearest
from afactl.evaluation.pseudo_labels import pseudo_labels_of, row_ends, score_pseudo_labels, table3_rows
from afactl.evaluation.scores import Score
from afactl.evaluation.segmentation import evaluate_segmentation, with_protocol
from afactl.inference.adopted import adopt as make_run_of
from afactl.inference.cams import cam_record, likely_labels, query_maps
from afactl.inference.segmentation import input_of_crf, multi_scale, segment
from afactl.inference.trained_run import TrainedRun, open_run, open_split, to_tensor
from afactl.machine.allocator import keep_freed_memory
from afactl.machine.devices import choose_device
from afactl.method.refinement.crf import DenseCrf, crf_label
from afactl.presets import Preset, load_preset
from afactl.runs.folder import find_run
from afactl.training.launch import Request, Trained, preset_changes, start

Photo = str | PathLike[str] | Image.Image | np.ndarray


class Segmentation(NamedTuple):
    """What `Model.predict` finds.

    Attributes:
        mask: h x w uint8, 0 background, class c as c + 1.
        probabilities: K x h' x w' float32, sum to 1 over K. With the CRF they are those before it.
        classes: names of the K values, background first.
    """

    mask: np.ndarray
    probabilities: np.ndarray
    classes: tuple[str, ...]


class Cams(NamedTuple):
    """Multi-scale class activation maps of the present classes.

    Attributes:
        maps: P x h' x w' float32 in [0, 1). classes: P names.
    """

    maps: np.ndarray
    classes: tuple[str, ...]


class Attention(NamedTuple):
    """What the token of one pixel looks at, over the whole photo, hs x ws float32 each.

    Attributes:
        attention: mean softmaxed self-attention of the last blocks; sums to 1. affinity: learned, in (0, 1).
    """

    attention: np.ndarray
    affinity: np.ndarray


class Affinity(NamedTuple):
    """The learned affinity of every token and its neighbours, which the random walk goes by.

    Attributes:
        windows: hs x ws x (2 r + 1)^2 float32 in [0, 1], row by row over the window; 0 outside the photo.
        radius: r, `affinity.radius` of the preset, in tokens.
    """

    windows: np.ndarray
    radius: int


class PseudoLabels(NamedTuple):
    """The labels that the run's method makes of a photo with its tags.

    Attributes:
        label: h x w uint8, what the method ends with: propagated, if it has learned to, and refined.
        rows: h' x w' uint8 by the rows of Table 3, as they are and refined, such as "AFA + PAR".
    """

    label: np.ndarray
    rows: dict[str, np.ndarray]


class Model:
    """A trained run, one photo at a time.

    A photo is a path, a PIL image, or an array: h x w x 3 or h x w (grey) uint8, upright as it is. Paths and PIL
    images are turned upright by EXIF.

    Attributes:
        classes: names of the C foreground classes; value c + 1 of masks.
    """

    def __init__(self, run: TrainedRun) -> None:
        """`load` makes one from a run folder."""
        self.run = run
        self.classes: tuple[str, ...] = tuple(run.architecture.classes)

    def __repr__(self) -> str:
        return f"<afactl.Model {self.run.folder}, {len(self.classes)} classes, step {self.run.iteration}>"

    @property
    def preset(self) -> Preset:
        """The recipe of the run, and how it is tested."""
        return self.run.preset

    def predict(self, photo: Photo, crf: bool = False) -> Segmentation:
        """The mask of a photo: multi-scale + flip, as `afactl predict` writes it; no tags are used.

        Args:
            crf: refine the mask with the dense CRF.

        Raises:
            DataError: a file that is no photo. ShapeError: an array of another form.
        """
        image, settings = _array(photo), self.preset.eval
        small = reduce_image(image, settings.max_pixels)
        logits = segment(self.run.model, small, self.run.device, multi_scale(settings))
        label = logits.max(dim=0).indices
        if crf:
            reduced, scores = input_of_crf(small, logits, self.preset.crf.drop_below)
            pixels = to_tensor(reduced, self.run.device)[0]
            label = crf_label((pixels, scores), "torch", DenseCrf(**self.preset.crf.model_dump()))
        mask = enlarge_mask(label.cpu().numpy().astype(np.uint8), image.shape[:2])
        return Segmentation(mask, logits.softmax(dim=0).cpu().numpy(), ("background", *self.classes))

    def labels(self, photo: Photo) -> tuple[str, ...]:
        """Names of the classes that the classifier finds: probability over 1/2, at least the best one."""
        return self._names(likely_labels(self.run, _array(photo)))

    def cams(self, photo: Photo, labels: Iterable[str] | None = None) -> Cams:
        """Class activation maps, fused over scales and flips.

        Args:
            labels: names of the classes that are there; None takes those that the classifier finds.

        Raises:
            UsageError: a name that is no class. Others: as `predict`.
        """
        record = cam_record(self.run, image := _array(photo), self._indices(image, labels))
        return Cams(record.cam, self._names(record.classes))

    def attention(self, photo: Photo, query: tuple[int, int]) -> Attention:
        """What a pixel's token attends to, and its learned affinity with every other token.

        Args:
            query: (x, y) in pixels of the upright photo.

        Raises:
            UsageError: the pixel lies outside; names the size.
        """
        maps = query_maps(self.run, _array(photo), [query])
        return Attention(maps.attention[0], maps.affinity[0])

    def affinity(self, photo: Photo) -> Affinity:
        """The learned affinity inside the window of the random walk."""
        record = cam_record(self.run, _array(photo), ())
        windows = record.log_affinity(self.run.device).exp().cpu().numpy()
        return Affinity(windows, self.preset.affinity.radius)

    def pseudo_labels(self, photo: Photo, labels: Iterable[str]) -> PseudoLabels:
        """The labels of Table 3 for a photo with its tags; arguments and errors as in `cams`."""
        image = _array(photo)
        record = cam_record(self.run, image, self._indices(image, labels))
        made = pseudo_labels_of(image, record, self.preset, self.run.device)
        rows = {
            f"{row}{end}": made[number, column]
            for number, row in enumerate(table3_rows(self.preset))
            for column, end in enumerate(row_ends(self.preset))
        }
        last = made[-1 if self.preset.affinity.enabled else 0, 1]
        return PseudoLabels(enlarge_mask(last, image.shape[:2]), rows)

    def _names(self, indices: Iterable[int]) -> tuple[str, ...]:
        return tuple(self.classes[int(index)] for index in indices)

    def _indices(self, image: np.ndarray, labels: Iterable[str] | None) -> list[int]:
        if labels is None:
            return likely_labels(self.run, image)
        names = [labels] if isinstance(labels, str) else list(labels)
        for name in names:
            if name not in self.classes:
                raise UsageError(f'labels: "{name}" is no class of the run{nearest(name, self.classes)}')
        return sorted({self.classes.index(name) for name in names})


def load(run: str | PathLike[str] | None = None, device: str = "auto", checkpoint: str = "last") -> Model:
    """A trained run.

    On Linux the process keeps the memory that it frees from now on, as the commands do: passes are quicker by it.

    Args:
        run: its folder; None takes $AFACTL_RUN, or the newest one under runs/.
        device: "auto", "cpu", "cuda", "cuda:1", "mps" or "xpu". checkpoint: "last" or "best".

    Raises:
        UsageError: no run there, or no such device. CheckpointError: no checkpoint, or one that does not fit.
    """
    keep_freed_memory()
    folder, _ = find_run(None if run is None else Path(run))
    return Model(open_run(folder, choose_device(device), checkpoint))


def adopt(
    weights: str | PathLike[str],
    preset: str,
    data: str | PathLike[str] | None = None,
    out: str | PathLike[str] | None = None,
) -> Path:
    """Make a run folder of a file of trained weights, such as a checkpoint of the authors; `load` opens it.

    Args:
        preset: what they were trained with. data: the dataset whose classes they have; voc needs none.
        out: the run folder; None: runs/NAME-HASH.

    Raises:
        CheckpointError: no weights of that network. UsageError: the folder holds something else, or `data` is needed.
    """
    changes = preset_changes(None if data is None else Path(data), str(weights), ())
    folder = None if out is None else Path(out)
    return make_run_of(Path(weights), load_preset(preset, changes), Path(preset).stem, folder)


def train(
    preset: str = "photos",
    data: str | PathLike[str] | None = None,
    settings: Sequence[str] = (),
    init: str | None = None,
    out: str | PathLike[str] | None = None,
    device: str = "auto",
) -> Trained:
    """Train a preset in a new run folder, as `afactl train` does.

    Args:
        preset: a shipped one, or a YAML file. data: folder of the dataset.
        settings: changes such as "train.max_iters=100". init: starting weights, as --init.
        out: the run folder; None: runs/PRESET-DATE-TIME.

    Raises:
        PresetError, DataError, CheckpointError, UsageError: what is wrong, before anything is written.
    """
    changes = preset_changes(None if data is None else Path(data), init, settings)
    request = Request(load_preset(preset, changes), Path(preset).stem, None if out is None else Path(out), device)
    return start(request)


def evaluate(
    model: Model,
    split: str = "val",
    data: str | PathLike[str] | None = None,
    crf: bool = False,
    protocol: str | None = None,
) -> dict[str, Score]:
    """The rows of `afactl eval` by name: each `Score` has `miou`, its 95 % `interval`, and the confusion matrix.

    Args:
        crf: also the row with the dense CRF. protocol: "paper" or "authors" in place of the run's own.

    Raises:
        DataError: photos or masks are missing or cannot be read. CheckpointError: the dataset has other classes.
    """
    run = with_protocol(model.run, protocol)
    dataset = open_split(run, split, None if data is None else Path(data), masks=True)
    scores = evaluate_segmentation(run, dataset, "torch" if crf else None, protocol=protocol)
    return {score.name: score for score in scores}


def pseudo_eval(
    model: Model, split: str = "train", data: str | PathLike[str] | None = None, refiner: str | None = None
) -> dict[str, Score]:
    """The rows of `afactl pseudo-eval` by name, such as "AFA" and "AFA + PAR"; arguments and errors as `evaluate`.

    Args:
        refiner: of the second rows, such as "crf"; None: the run's own, or PAR where it has none.
    """
    dataset = open_split(model.run, split, None if data is None else Path(data), masks=True)
    table = score_pseudo_labels(model.run, dataset, refiner=refiner)
    return {score.name: score for pair in table.scores.values() for score in pair}


def _array(photo: Photo) -> np.ndarray:
    """Any photo as h x w x 3 uint8."""
    if isinstance(photo, Image.Image):
        return rgb_array(photo)
    if not isinstance(photo, np.ndarray):
        return read_image(Path(photo))
    grey = photo.ndim == 2
    if photo.dtype != np.uint8 or not (grey or (photo.ndim == 3 and photo.shape[2] == 3)) or not photo.size:
        raise ShapeError(f"photo: expected h x w x 3 or h x w uint8, got {photo.shape} {photo.dtype}")
    return np.repeat(photo[..., None], 3, axis=2) if grey else photo
