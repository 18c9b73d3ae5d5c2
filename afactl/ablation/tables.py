"""The ablation tables of the paper: which rows there are, and the paper's figures on PASCAL VOC."""

from __future__ import annotations

from typing import NamedTuple

ALL = "[1, 2, 4, 8, 12, 24]"


class Row(NamedTuple):
    """One row of a table.

    Attributes:
        name: as in the paper.
        changes: of the base preset, section.key=value. In the tables of refiners they change no
            training, only the refinement of cached CAMs.
        paper: the paper's figure on VOC in mIoU %, one per column.
        refiner: of cached CAMs; None shows the raw CAM.
        crf: whether the segmentation is refined by the dense CRF.
    """

    name: str
    changes: tuple[str, ...]
    paper: tuple[float | None, ...]
    refiner: str | None = None
    crf: bool = False


class Table(NamedTuple):
    """A table of the paper.

    Attributes:
        title: what it is about.
        measure: "segmentation" (multi-scale + flip, no image-level truth), "cam" (raw CAM) or
            "refined" (refined CAM, from the cache of one run); the last two use image-level truth.
        splits: one column each; None: the split that is asked for.
    """

    title: str
    measure: str
    splits: tuple[str | None, ...]
    rows: tuple[Row, ...]


_PLAIN = ("affinity.enabled=false", "loss.reg=0")
_ONLY_CLS = (*_PLAIN, "train.cls_warmup_iters={max_iters}")


def _par_rows() -> tuple[Row, ...]:
    figures = {
        0.1: (51.9, 51.7, 50.1, None),
        0.3: (52.8, 52.9, 51.4, 48.4),
        0.5: (51.9, 52.5, 51.3, 48.3),
        0.7: (None, 51.6, 50.9, 48.0),
    }
    return tuple(
        Row(
            f"w1 = w2 = {w}, w3 = {w3}",
            (f"par.w1={w}", f"par.w2={w}", f"par.w3={w3}", "par.iterations=15"),
            (value,),
            "par",
        )
        for w, row in figures.items()
        for w3, value in zip((0.005, 0.01, 0.02, 0.03), row, strict=True)
    )


def _dilation_row(dilations: str, iterations: int, paper: float, *more: str, name: str = "") -> Row:
    changes = (f"par.dilations={dilations}", f"par.iterations={iterations}", *more)
    return Row(f"PAR {dilations}, {iterations} iterations{name}", changes, (paper,), "par")


TABLES = {
    "table1": Table(
        "pooling of the classifier, raw CAM",
        "cam",
        ("train", "val"),
        (
            Row("gap", ("model.pooling=gap", *_ONLY_CLS), (30.7, 31.1)),
            Row("top 50 %", ("model.pooling=50", *_ONLY_CLS), (34.5, 34.8)),
            Row("top 25 %", ("model.pooling=25", *_ONLY_CLS), (39.6, 39.7)),
            Row("top 10 %", ("model.pooling=10", *_ONLY_CLS), (43.5, 43.6)),
            Row("gmp", ("model.pooling=gmp", *_ONLY_CLS), (48.2, 48.3)),
        ),
    ),
    "table2": Table(
        "parts of the method, segmentation",
        "segmentation",
        ("val",),
        (
            Row("baseline", ("cam.refiner=none", *_PLAIN), (46.7,)),
            Row("+ PAR", ("cam.refiner=par", *_PLAIN), (56.2,)),
            Row("+ PAR + AFA", ("loss.reg=0",), (62.6,)),
            Row("+ PAR + AFA + reg", ("loss.reg=0.01",), (63.8,)),
            Row("+ PAR + AFA + reg + CRF", ("loss.reg=0.01",), (66.0,), crf=True),
        ),
    ),
    "table4": Table(
        "refinement of the CAM",
        "refined",
        (None,),
        (
            Row("CAM", (), (48.2,)),
            Row("PAMR", (), (51.4,), "pamr"),
            Row("PAR without the position term", ("par.w3=0", "par.iterations=15"), (51.7,), "par"),
            Row("PAR", ("par.iterations=15",), (52.9,), "par"),
            Row("dense CRF (Table 8)", (), (54.5,), "crf"),
        ),
    ),
    "table7": Table(
        "radius of the affinity window, segmentation",
        "segmentation",
        ("val",),
        tuple(
            Row(f"r = {r}", (f"affinity.radius={r}",), (paper,))
            for r, paper in ((2, 62.4), (4, 62.7), (8, 63.8), (12, 61.5), (16, 59.4))
        ),
    ),
    "table8": Table(
        "dilations, position term and iterations of PAR",
        "refined",
        (None,),
        (
            Row("CAM", (), (48.2,)),
            Row("PAMR", (), (51.4,), "pamr"),
            Row("dense CRF", (), (54.5,), "crf"),
            _dilation_row("[1, 2, 4]", 15, 48.8),
            _dilation_row("[1, 2, 4, 8]", 15, 49.9),
            _dilation_row("[1, 2, 4, 8, 12]", 15, 51.3),
            _dilation_row(ALL, 15, 51.5, "par.w3=0", name=", no position term"),
            _dilation_row(ALL, 15, 52.9),
            _dilation_row(ALL, 20, 52.9),
        ),
    ),
    "table9": Table("weights of PAR", "refined", (None,), _par_rows()),
    "table10": Table(
        "weights of the loss terms, segmentation",
        "segmentation",
        ("val",),
        tuple(
            Row(f"seg {seg}, aff {aff}, reg {reg}", (f"loss.seg={seg}", f"loss.aff={aff}", f"loss.reg={reg}"), (paper,))
            for seg, aff, reg, paper in (
                (0.1, 0.1, 0.01, 63.8),
                (0.05, 0.1, 0.01, 62.8),
                (0.2, 0.1, 0.01, 61.6),
                (0.5, 0.1, 0.01, 57.8),
                (0.1, 0.05, 0.01, 63.4),
                (0.1, 0.2, 0.01, 61.7),
                (0.1, 0.5, 0.01, 58.7),
                (0.1, 0.1, 0.005, 62.4),
                (0.1, 0.1, 0.02, 62.3),
                (0.1, 0.1, 0.05, 61.5),
            )
        ),
    ),
    "table11": Table(
        "background scores, segmentation",
        "segmentation",
        ("val",),
        tuple(
            Row(f"beta_h {high}, beta_l {low}", (f"cam.beta_high={high}", f"cam.beta_low={low}"), (paper,))
            for high, low, paper in (
                (0.65, 0.25, 60.7),
                (0.6, 0.3, 62.5),
                (0.55, 0.35, 63.8),
                (0.5, 0.4, 62.9),
                (0.45, 0.45, 60.5),
            )
        ),
    ),
}

# The paper's tables that are no ablations of one preset, and what gives them here.
COMMANDS = {
    "table3": "afactl pseudo-eval --split train --without-afa RUN",
    "table5": "afactl eval --split val --crf --run RUN, of the preset voc",
    "table6": "afactl eval --split val --crf --run RUN, of the preset coco",
}
