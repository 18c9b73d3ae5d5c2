"""One self-contained HTML page of a run: curves, tables, photos, figures, manifest. It loads nothing from anywhere.

The tables are those that `pseudo-eval` and `eval` left in the run; nothing is scored again.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
import numpy as np
from PIL import Image

from afactl.datasets.images import reduce_image
from afactl.datasets.masks import enlarge_mask
from afactl.datasets.registry import require_dataset
from afactl.datasets.samples import Sample, Split
from afactl.errors import AfactlError, counted
from afactl.evaluation.intervals import difference
from afactl.evaluation.metrics import class_iou
from afactl.evaluation.pseudo_labels import (
    WITH_AFFINITY,
    WITHOUT_AFA,
    WITHOUT_PROPAGATION,
    pseudo_label_of,
)
from afactl.evaluation.scores import Score, kept_rows
from afactl.evaluation.segmentation import kept_photo_scores
from afactl.files import whole_file, writing
from afactl.inference.segmentation import photo_mask
from afactl.inference.trained_run import TrainedRun
from afactl.machine.terminal import duration
from afactl.method.schedule import phase_starts
from afactl.pictures.drawing import confusion_chart, curve_chart, map_over, overlay
from afactl.pictures.figures import foreground, look_at_samples, shown_split
from afactl.pictures.palettes import PALETTES
from afactl.runs.folder import read_manifest, read_scores, run_cost
from afactl.runs.metrics import read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Per photo that is shown of the split, so many of the worst ones.
WORST = 2
# Longer sides of photos and figures on the page.
PHOTO_PIXELS, FIGURE_PIXELS = 400 * 400, 2_000_000


class Page(NamedTuple):
    """The page, how large it is in bytes, and what is missing on it, in words."""

    file: Path
    size: int
    missing: list[str]


def write_report(
    run: TrainedRun, out: Path | None = None, data: Path | None = None, without_afa: Path | None = None, photos: int = 6
) -> Page:
    """Write the page of a run.

    Args:
        out: default RUN/report.html. data: where the dataset lies now.
        without_afa: folder of a run without AFA whose pseudo labels were scored, for the first row of Table 3.
        photos: how many of the validation split are shown, and twice as many of those whose segmentation scored worst.

    Raises:
        UsageError: `out` cannot be written. MissingDataError: `data` is no such dataset.
    """
    if data is not None:
        require_dataset(run.preset.data.name, data)
    scores = read_scores(run.folder)
    looks, worst, no_looks = _looks(run, data, photos, scores)
    table3 = [_table3(run, name, kept, without_afa) for name, kept in scores.items() if name.startswith("pseudo-")]
    segmentation = {name: kept for name, kept in scores.items() if name.startswith("segmentation-")}
    page = _template().render(
        title=f"afactl: {run.folder.resolve().name}",
        subtitle=f"{run.preset.model.backbone}, {counted(len(run.architecture.classes), 'class', 'classes')}, "
        f"step {run.iteration} of {run.preset.train.max_iters}{_cost(run)}",
        run=run.folder,
        curves=_curves(run),
        table3=table3,
        looks=looks,
        worst=worst,
        no_looks=no_looks,
        segmentation=[_segmentation(run, *kept) for kept in segmentation.items()],
        per_class=[_per_class(name, kept) for name, kept in scores.items()],
        matrices=[_matrix(kept) for kept in segmentation.values()],
        figures=_figures(run),
        manifest=[(name, _text(value)) for name, value in read_manifest(run.folder).items()],
        preset=(run.folder / "preset.yaml").read_text(encoding="utf-8"),
    )
    target = out or run.folder / "report.html"
    with writing(f"--out {target}", "give another file"), whole_file(target) as fresh:
        # A file name that is no UTF-8 stands there by escapes.
        fresh.write_text(page, encoding="utf-8", errors="backslashreplace")
    missing = [
        text
        for section, text in (
            (table3, "pseudo labels: afactl pseudo-eval"),
            (segmentation, "segmentation: afactl eval"),
            (looks, no_looks),
        )
        if not section
    ]
    return Page(target, target.stat().st_size, missing)


def _template() -> jinja2.Template:
    # Everything that is put in is escaped: names of classes and photos come from anywhere.
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.1f}"


def _embedded(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _picture(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="WEBP", quality=88)
    return _embedded(buffer.getvalue(), "webp")


def _drawing(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _embedded(buffer.getvalue(), "svg+xml")


def _curves(run: TrainedRun) -> list[dict[str, str]]:
    """Losses, learning rate and validation over the steps, with the borders of the phases."""
    lines = read_metrics(run.folder)
    logged = [line for line in lines if "loss" in line]
    if not logged:
        return []
    job = run.preset.train
    borders = phase_starts(job.cls_warmup_iters, job.aff_warmup_iters, run.preset.affinity.enabled)
    charts = {
        "losses": {
            name: [(line["step"], line[name]) for line in logged if name in line]
            for name in sorted({n for line in logged for n in line if n.startswith("loss")})
        },
        "learning rate": {"backbone": [(line["step"], line["lr"]) for line in logged]},
        "validation, mIoU %": {
            title: [(line["step"], line[name]) for line in lines if name in line]
            for name, title in (("val_seg_miou", "segmentation"), ("val_cam_miou", "CAM"))
        },
    }
    drawn = {title: {name: points for name, points in series.items() if points} for title, series in charts.items()}
    return [
        {"image": _drawing(curve_chart(title, series, borders)), "caption": title}
        for title, series in drawn.items()
        if series
    ]


def _note(run: TrainedRun, scores: dict[str, Any]) -> str:
    return f"; step {scores['step']}" + (
        "" if scores["weights"] == run.weights_hash else ", other weights than those of this page"
    )


def _cost(run: TrainedRun) -> str:
    """What the training took, where the run has noted it."""
    cost = run_cost(run.folder)
    if cost is None:
        return ""
    memory = f", at most {cost.peak_memory / 2**30:.1f} GiB" if cost.peak_memory else ""
    return f"; trained in {duration(cost.seconds)}, {cost.photos_per_second:.1f} photos/s{memory}"


def _differences(pairs: Sequence[tuple[Score, Score]]) -> list[dict[str, str]]:
    """How far the last row, AFA, is above each other one: paired over the images, as it is and refined."""
    if not pairs or pairs[-1][0].name != WITH_AFFINITY:
        return []
    told = []
    for pair in pairs[:-1]:
        both = list(zip(pairs[-1], pair, strict=True))
        if all(len(first.tallies) and first.tallies.shape == other.tallies.shape for first, other in both):
            without, refined = (difference(first.tallies, other.tallies).text for first, other in both)
            told.append({"name": f"{WITH_AFFINITY} - {pair[0].name}", "without": without, "refined": refined})
    return told


def _table3(run: TrainedRun, name: str, scores: dict[str, Any], without_afa: Path | None) -> dict[str, Any]:
    # Earlier versions scored the affinity of a run that had not learned any.
    left_out = None if run.preset.affinity.enabled else WITH_AFFINITY
    rows = [] if without_afa is None else _without_afa(without_afa, name)
    rows += [score for score in kept_rows(run.folder, name, scores) if score.name.split(" + ")[0] != left_out]
    pairs = list(zip(rows[::2], rows[1::2], strict=True))  # as they are, and refined
    figures = [{"name": plain.name, "without": plain.text, "refined": refined.text} for plain, refined in pairs]
    refiner = pairs[-1][1].name.removeprefix(f"{pairs[-1][0].name} + ") if pairs else ""
    told = {"split": scores["split"], "images": scores["images"], "note": _note(run, scores)}
    return {**told, "rows": figures, "refiner": refiner, "differences": _differences(pairs)}


def _without_afa(folder: Path, name: str) -> list[Score]:
    """The paper's row of a run without AFA, out of the scores that it keeps; earlier versions took another name."""
    kept = read_scores(folder).get(name)
    rows = {score.name: score for score in kept_rows(folder, name, kept)} if kept else {}
    row = WITHOUT_AFA if WITHOUT_AFA in rows else WITHOUT_PROPAGATION
    pair = [score for score in rows.values() if score.name.split(" + ")[0] == row]
    return [score._replace(name=score.name.replace(row, WITHOUT_AFA, 1)) for score in pair]


def _segmentation(run: TrainedRun, name: str, scores: dict[str, Any]) -> dict[str, Any]:
    rows = [{"name": score.name, "miou": score.text} for score in kept_rows(run.folder, name, scores)]
    protocol = scores.get("protocol", "not noted")  # earlier versions had one only
    return {
        "split": scores["split"],
        "images": scores["images"],
        "protocol": protocol,
        "note": _note(run, scores),
        "rows": rows,
    }


def _per_class(name: str, scores: dict[str, Any]) -> dict[str, Any]:
    figures = {row: 100 * class_iou(np.array(confusion)) for row, confusion in scores["rows"].items()}
    rows = [
        {"name": class_name, "figures": [_percent(values[i]) for values in figures.values()]}
        for i, class_name in enumerate(("background", *scores["classes"]))
    ]
    return {
        "title": name.replace("-", " of ", 1).replace("pseudo", "pseudo labels"),
        "columns": list(figures),
        "rows": rows,
    }


def _matrix(scores: dict[str, Any]) -> dict[str, str]:
    name, confusion = list(scores["rows"].items())[min(1, len(scores["rows"]) - 1)]
    protocol = f", protocol {scores['protocol']}" if "protocol" in scores else ""
    caption = (
        f"Confusion matrix of {scores['split']}, {name}{protocol}: "
        "where the pixels of each true class went, in per cent"
    )
    return {
        "image": _drawing(confusion_chart(np.array(confusion), ("background", *scores["classes"]))),
        "caption": caption,
    }


def _looks(
    run: TrainedRun, data: Path | None, count: int, scores: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], str]:
    """Layers of the first photos and of those that scored worst, or none and the reason."""
    try:
        split = shown_split(run, data)
    except AfactlError as error:
        return [], [], f"No photos: {error}"
    first, worst = range(min(count, len(split.samples))), _worst(run, split, WORST * count, scores)
    places = sorted({*first, *worst})
    cards = dict(zip(places, _cards(run, split, [split.samples[place] for place in places]), strict=True))
    ranked = [{**cards[place], "labels": f"{cards[place]['labels']}; mIoU {miou:.1f}"} for place, miou in worst.items()]
    return [cards[place] for place in first], ranked, ""


def _worst(run: TrainedRun, split: Split, count: int, scores: Mapping[str, Any]) -> dict[int, float]:
    """mIoU by place of the photos whose segmentation by these weights scored worst; none where it was not scored."""
    values = kept_photo_scores(run, split, scores)
    if values is None:
        return {}
    order = np.argsort(values, kind="stable")[: int(np.isfinite(values).sum())]
    return {int(place): float(values[place]) for place in order[:count]}


def _cards(run: TrainedRun, split: Split, samples: Sequence[Sample]) -> Iterator[dict[str, Any]]:
    """The layers of photos, one over the other."""
    colors, classes = PALETTES["safe"](), run.architecture.classes
    for look in look_at_samples(run, split, samples):
        masks = {
            "pseudo label": pseudo_label_of(look.image, look.record, run.preset, run.device),
            "segmentation": photo_mask(run, look.image),
        }
        small = reduce_image(look.image, PHOTO_PIXELS)
        cam = np.array(Image.fromarray(foreground(look.record)).resize(small.shape[1::-1]))
        layers = {"photo": small, "CAM": map_over(small, cam)}
        layers |= {
            name: overlay(small, enlarge_mask(mask, small.shape[:2]), colors, classes=classes)
            for name, mask in masks.items()
        }
        yield {
            "name": look.name,
            "labels": ", ".join(classes[c] for c in look.record.classes) or "none",
            "layers": [{"name": name, "image": _picture(image)} for name, image in layers.items()],
        }


def _figures(run: TrainedRun) -> list[dict[str, str]]:
    """The pictures that commands left in the run."""
    listed: list[dict[str, str]] = []
    paths: Sequence[Path] = sorted((run.folder / "figures").glob("*.png"))
    for path in paths:
        with Image.open(path) as image:
            pixels = reduce_image(np.array(image.convert("RGB")), FIGURE_PIXELS)
        listed.append({"image": _picture(pixels), "caption": path.name})
    return listed
