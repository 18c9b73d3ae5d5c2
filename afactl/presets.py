"""Typed presets: what a run is made of. Field default < YAML file < `--set section.key=value`.

This module knows nothing of torch, so that the command line starts quickly.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from afactl.errors import PresetError, first_line, nearest

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Common rules: nothing unknown, nothing changed afterwards, no NaN, no text in place of a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _typed(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic would make numbers of "1e5" and of true.
        kinds = _kinds(cls.model_fields[str(info.field_name)].annotation)
        for item in value if isinstance(value, list | tuple) else [value]:
            if (isinstance(item, str) and str not in kinds and item not in kinds) or (
                isinstance(item, bool) and bool not in kinds
            ):
                raise ValueError("of another type")
        return value


def _kinds(annotation: Any) -> set[Any]:
    """The plain types and the choices that an annotation is made of."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return set(get_args(annotation))
    if get_origin(annotation) in (tuple, types.UnionType, Union):
        return set().union(*(_kinds(part) for part in get_args(annotation)))
    return {annotation}


class Data(Section):
    """Where the photos come from."""

    name: str = Field("voc", description="dataset format: voc, coco, folder, demo, or one that was added")
    root: str | None = Field(None, description="folder of the dataset; --data sets it; null: demo makes its own")
    train_split: str = Field("train_aug", description="split that is trained on")
    val_split: str = Field("val", description="split that is scored during training")
    labels: str | None = Field(
        None,
        description="source of the image-level labels: masks or xml for voc (data prepare keeps both); null: the "
        "format's own, for voc what an earlier version prepared the folder for, or else the masks",
    )
    long_side: Annotated[int, Field(ge=32)] | None = Field(
        None,
        description="views of training are cut from photos reduced to this long side, which smaller ones keep; null: "
        "as stored; cam.max_pixels and eval.max_pixels do so for the passes over whole photos",
    )

    def folder(self, given: Path | None = None) -> Path | None:
        """Where the dataset lies: the folder that is given (--data), or else `root`; None: the format makes its own."""
        return given or (Path(self.root) if self.root else None)


class Model(Section):
    """The network."""

    backbone: str = Field(
        "mit_b1",
        description="mit_b0 .. mit_b5, mit_demo; timm's name of a PVTv2 or plain ViT; hybrid:NAME; or an added one",
    )
    pooling: Literal["gmp", "gap"] | Annotated[float, Field(gt=0, le=100)] = Field(
        "gmp", description="pooling of the classifier: gmp, gap, or k of top-k per cent (Table 1)"
    )
    init: str = Field(
        "hf:nvidia/mit-b1", description="starting weights: a file, hf:REPOSITORY, timm, or none; --init sets it"
    )
    decoder_width: Count = Field(256, description="channels of the segmentation decoder")
    drop_path: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="stochastic depth of the last block")
    head_init: Literal["uniform", "normal"] = Field(
        "uniform",
        description="first values of the affinity head and of the decoder's fusing convolution: uniform within "
        "1/sqrt(inputs), or normal by Kaiming over the outputs, which is wider (authors)",
    )


class Train(Section):
    """The job."""

    max_iters: Count = Field(20000, description="steps")
    batch_size: Count = Field(8, description="photos that pass at once")
    effective_batch: Count | None = Field(
        8, description="photos per step: gradients add up over so many, rounded up to whole batches; null: one batch"
    )
    supervision: Literal["labels", "masks"] = Field(
        "labels", description="masks: full supervision, the upper bound of Table 5; image-level labels are not used"
    )
    crop_size: Annotated[int, Field(ge=32)] = Field(
        512, description="side of a view in pixels, a multiple of the backbone's stride (of MiT: 16)"
    )
    scale_range: tuple[Positive, Positive] = Field((0.5, 2.0), description="random rescaling, from and to")
    cam_passes: Literal["evaluation", "training"] = Field(
        "evaluation",
        description="mode of the network in the passes that make the CAMs: training leaves stochastic depth on, and "
        "runs the decoder too, whose batch norm counts every pass (authors)",
    )
    refiner_picture: Literal["exact", "truncated"] = Field(
        "exact",
        description="the photo that the refiner of the CAMs sees: as it is, or normalised, brought back and cut off to "
        "whole grey levels (authors)",
    )
    affinity_label: Literal["refined", "propagated"] = Field(
        "refined",
        description="what the affinity learns from in the last phase: the refined label, or the propagated one "
        "(authors, on COCO)",
    )
    cls_warmup_iters: Annotated[int, Field(ge=0)] = Field(2000, description="steps of classification alone")
    aff_warmup_iters: Annotated[int, Field(ge=0)] = Field(
        4000, description="steps after those in which refined, not yet propagated, labels supervise the segmentation"
    )
    eval_iters: Count = Field(2000, description="steps between validations")
    validation_size: Literal["test", "photo"] = Field(
        "test", description="of the photos in validations: as eval.long_side makes them, or their own"
    )
    checkpoint_iters: Count = Field(2000, description="steps between checkpoints")
    log_iters: Count = Field(50, description="steps between lines of metrics.jsonl")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="of weights, data order, views and dropout")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the network's products; auto: bfloat16 on a CUDA device that has it, else float32"
    )
    compile: bool = Field(
        False, description="torch.compile for the backbone; needs a C++ compiler and a minute or more at the start"
    )
    deterministic: bool = Field(
        False,
        description="only operations that give the same result every time, on a GPU too (slower); "
        "a run on a CPU repeats itself anyway",
    )
    workers: Annotated[int, Field(ge=0)] = Field(2, description="processes that read photos; 0 reads in the job itself")


class Cam(Section):
    """Class activation maps and their thresholds (Eq. 4)."""

    scales: tuple[Positive, ...] = Field(
        (1.0, 0.5, 1.5), min_length=1, description="of the multi-scale CAM; 1.0 is one of them"
    )
    beta_low: Share = Field(0.35, description="at most this is background")
    beta_high: Share = Field(0.55, description="above this is an object; between the two is ignored")
    background: Share = Field(0.45, description="the one threshold when CAMs are scored")
    max_pixels: Annotated[int, Field(ge=1024)] | None = Field(
        2**20,
        description="larger photos are reduced to so many pixels before their CAMs and pseudo labels are made, whose "
        "scores are taken at the photo's size; null: never (time grows with the square of the pixels)",
    )
    refiner: str = Field(
        "par", description="what refines CAMs on their way to labels: par, pamr, crf, none, or one that was added"
    )


class Par(Section):
    """Pixel-adaptive refinement (Eq. 8-10)."""

    dilations: tuple[Count, ...] = Field(
        (1, 2, 4, 8, 12, 24), min_length=1, description="distances of the neighbours in pixels"
    )
    iterations: Annotated[int, Field(ge=0)] = Field(10, description="steps of Eq. 10")
    w1: Positive = Field(0.3, description="smoothness of the colour term")
    w2: Positive = Field(0.3, description="smoothness of the position term")
    w3: Annotated[float, Field(ge=0)] = Field(0.01, description="weight of the position term")


class Affinity(Section):
    """The affinity branch and the random walk (Eq. 3, 5-7)."""

    enabled: bool = Field(True, description="false: the row w/o AFA; no affinity loss, no propagated labels")
    radius: Annotated[int, Field(ge=0)] = Field(8, description="Chebyshev radius of the window in tokens")
    alpha: Positive = Field(2.0, description="power of the affinity")
    eps: Annotated[float, Field(ge=0)] = Field(0.0, description="added to the row sums; the authors' code adds 0.1")
    scale: Positive = Field(
        1.0, description="of cam.scales, the one whose affinity is scored and drawn; training takes the largest"
    )
    background: Share = Field(0.35, description="background threshold when propagated maps are scored")


class Loss(Section):
    """Weights of the loss terms (Eq. 12)."""

    cls: Annotated[float, Field(ge=0)] = Field(1.0, description="classification")
    seg: Annotated[float, Field(ge=0)] = Field(0.1, description="segmentation")
    aff: Annotated[float, Field(ge=0)] = Field(0.1, description="affinity")
    reg: Annotated[float, Field(ge=0)] = Field(0.01, description="dense energy regularisation; 0 leaves it out")
    part_photos: Count | None = Field(
        None,
        description="the means of seg and aff are taken over so many photos, and then averaged; null: over all photos "
        "of the step (authors: 2, those of one GPU)",
    )


class Optim(Section):
    """AdamW and its schedule."""

    lr: Positive = Field(6e-5, description="learning rate of the backbone")
    head_lr_factor: Positive = Field(10.0, description="heads learn this much faster")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.01, description="of all parameters")
    betas: tuple[Share, Share] = Field((0.9, 0.999), description="of AdamW")
    warmup_iters: Annotated[int, Field(ge=0)] = Field(1500, description="steps of linear warm-up")
    warmup_ratio: Share = Field(1e-6, description="rate of the first step, as a share")
    power: Positive = Field(1.0, description="of the polynomial decay")
    freeze: Literal["nothing", "norms", "backbone"] | Count = Field(
        "norms",
        description="what of the backbone keeps its values: nothing, its norm layers, all of it, or a number N: all "
        "but its last N blocks; batch norms in it keep their statistics",
    )
    idle_heads: Literal["rest", "count"] = Field(
        "rest",
        description="heads without a loss in a phase: rest, or count: their gradient is 0, so that AdamW decays their "
        "weights and counts the step (authors)",
    )


class Eval(Section):
    """Segmentation at test time: the protocol. `eval --protocol` takes a named one instead."""

    long_side: Annotated[int, Field(ge=32)] | None = Field(
        512, description="photos are resized so first; null keeps their size"
    )
    scales: tuple[Positive, ...] = Field(
        (1.0, 0.5, 0.75), min_length=1, description="fused by maximum, each with its mirror image"
    )
    max_pixels: Annotated[int, Field(ge=1024)] | None = Field(
        2**21, description="larger photos get a mask of so many pixels, which is enlarged; null: never"
    )
    mirror: Literal["mean", "maximum"] = Field(
        "mean", description="what the logits of a photo and of its mirror image become, at each scale"
    )
    fuse_at: Literal["logits", "photo"] = Field(
        "logits",
        description="where the scales are fused: on the grid of the logits of scale 1, a quarter of the resized photo, "
        "or at the photo's size",
    )
    sizes: Literal["nearest", "floor"] = Field(
        "floor",
        description="of the resized photo: nearest takes the nearest whole sides and resizes once for each scale; "
        "floor cuts them off, gives the exact factor to the resize, and makes the scales of the resized photo",
    )


class Crf(Section):
    """Dense CRF."""

    iterations: Count = Field(10, description="of mean-field inference")
    gaussian_sxy: Positive = Field(3.0, description="position kernel, in pixels")
    gaussian_weight: Positive = Field(3.0, description="weight of that kernel")
    bilateral_sxy: Positive = Field(64.0, description="bilateral kernel, in pixels")
    bilateral_srgb: Positive = Field(5.0, description="bilateral kernel, in grey levels")
    bilateral_weight: Positive = Field(4.0, description="weight of that kernel")
    drop_below: Share = Field(0.001, description="classes nowhere as probable are left out, which saves their time")


# Ways to test a segmentation that have a name. The paper says no more than multi-scale and flip, of which the first is
# the plain reading; the second is the authors' script, and the default, since it scored better on photos
# (docs/reproducing.md).
PROTOCOLS = {"paper": Eval(mirror="maximum", fuse_at="photo", sizes="nearest"), "authors": Eval()}


def protocol_name(settings: Eval) -> str:
    """The name of a protocol; "own" for one that has none."""
    return next((name for name, known in PROTOCOLS.items() if known == settings), "own")


class Preset(Section):
    """A whole recipe. Defaults are the paper's for PASCAL VOC."""

    data: Data = Data()
    model: Model = Model()
    train: Train = Train()
    cam: Cam = Cam()
    par: Par = Par()
    affinity: Affinity = Affinity()
    loss: Loss = Loss()
    optim: Optim = Optim()
    eval: Eval = Eval()
    crf: Crf = Crf()

    def values(self, names: Sequence[str]) -> dict[str, Any]:
        """Some values, such as that of `par.iterations`, each under the last part of its name.

        Raises:
            PresetError: a preset has no such value.
        """
        sections, chosen = self.model_dump(), {}
        for name in names:
            section, _, key = name.partition(".")
            if key not in sections.get(section, {}):
                raise PresetError(f'"{name}" is no value of a preset{nearest(name, field_names())}')
            chosen[key] = sections[section][key]
        return chosen

    def walk_settings(self) -> dict[str, Any]:
        """The keyword arguments of `affinity.Walk`."""
        return self.affinity.model_dump(include={"radius", "alpha", "eps"})

    @model_validator(mode="after")
    def _consistent(self) -> Preset:
        problems = []
        if self.cam.beta_low > self.cam.beta_high:
            problems.append(f"cam.beta_low: expected at most beta_high = {self.cam.beta_high}, got {self.cam.beta_low}")
        if 1.0 not in self.cam.scales:
            problems.append(f"cam.scales: expected 1.0 among them, got {list(self.cam.scales)}")
        if self.affinity.scale not in self.cam.scales:
            problems.append(
                f"affinity.scale: expected one of cam.scales {list(self.cam.scales)}, got {self.affinity.scale}"
            )
        if self.eval.fuse_at == "logits" and 1.0 not in self.eval.scales:
            raise ValueError(
                "eval.scales: expected 1.0 among them, on whose grid eval.fuse_at=logits fuses, "
                f"got {list(self.eval.scales)}"
            )
        if self.train.scale_range[0] > self.train.scale_range[1]:
            problems.append(f"train.scale_range: expected [from, to], got {list(self.train.scale_range)}")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice and reads a plain `6e-5` as the number it is; in quotes it is text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f'key "{key}" is given twice', node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Puts into quotes what `_Loader` would read as something else."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # PyYAML's other styles lose line breaks such as U+0085.
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_str)
# PyYAML follows YAML 1.1, where `6e-5` is text; every other reader takes it as a number.
for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )


def _read_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        message = getattr(error, "problem", None) or first_line(error)
        raise PresetError(f"{source}: not readable as YAML ({message})") from error


# Presets that have another name now.
FORMER_NAMES = {"animals": "photos"}


def shipped_folder() -> Path:
    """Where the shipped presets lie: inside an installed package, or in the source checkout."""
    installed = Path(__file__).parent / "shipped_presets"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "presets"


def preset_names() -> list[str]:
    """Names of the shipped presets: the main ones, those with other backbones, and the paper's comparisons."""
    folders = [shipped_folder().glob(pattern) for pattern in ("*.yaml", "backbones/*.yaml", "ablations/*.yaml")]
    return [name for files in folders for name in sorted(path.stem for path in files)]


def find_preset(name_or_file: str) -> Path:
    """The file of a shipped preset, or the file itself.

    Raises:
        PresetError: neither; offers the nearest name.
    """
    name = FORMER_NAMES.get(name_or_file, name_or_file)
    if name in preset_names():
        return next(shipped_folder().rglob(f"{name}.yaml"))
    path = Path(name_or_file)
    if path.is_file():
        return path
    raise PresetError(
        f'preset "{name_or_file}": no shipped preset and no file of that name{nearest(name_or_file, preset_names())}'
    )


def preset_summary(name: str) -> str:
    """The first comment line after the command in a shipped preset's header."""
    lines = _header(name)
    return lines[1] if len(lines) > 1 else ""


def weights_licence(name: str) -> str:
    """The licence of the weights that a shipped preset starts from, as its header says."""
    return next((line.partition(": ")[2] for line in _header(name) if line.startswith("Weights: ")), "")


def _header(name: str) -> list[str]:
    text = find_preset(name).read_text(encoding="utf-8")
    return [line[1:].strip() for line in text.splitlines() if line.startswith("#")]


def load_preset(name_or_file: str, overrides: Sequence[str] = ()) -> Preset:
    """Read and check a preset.

    Args:
        name_or_file: a shipped preset's name or a YAML file.
        overrides: `section.key=value`; split at the first `=`, the value read as YAML.

    Raises:
        PresetError: everything that is wrong with file and overrides, in one message; what only counts between
            values, such as beta_low <= beta_high, once each of them is right.
    """
    path = find_preset(name_or_file)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PresetError(f"{path}: cannot be read ({error})") from error
    problems: list[str] = []
    try:
        tree = _read_yaml(text, str(path)) or {}
        if not isinstance(tree, dict) or not all(isinstance(part, dict) for part in tree.values()):
            raise PresetError(f"{path}: expected sections with keys, such as train: {{max_iters: 100}}")
    except PresetError as error:
        problems, tree = [str(error).removeprefix(f"{path}: ")], {}
    for section, keys in tree.items():
        tree[section] = dict(_renamed(section, key, value) for key, value in keys.items())
    _override(tree, overrides, problems)
    return _validate(tree, str(path), problems)


def changed_preset(preset: Preset, overrides: Sequence[str], source: str = "--set") -> Preset:
    """A preset with some other values.

    Args:
        overrides: as in `load_preset`. source: what asks for them, for the message.

    Raises:
        PresetError: as `load_preset`.

    Example:
        >>> changed_preset(Preset(), ["cam.beta_low=0.3"]).cam.beta_low
        0.3
    """
    tree, problems = preset.model_dump(), list[str]()
    _override(tree, overrides, problems)
    return _validate(tree, source, problems)


def _override(tree: dict[str, Any], overrides: Sequence[str], problems: list[str]) -> None:
    """Put `section.key=value` into a tree; what cannot be read as one joins the problems."""
    for override in overrides:
        name, sign, value = override.partition("=")
        section, dot, key = name.strip().partition(".")
        if not (sign and dot and key):
            meant = _nearest_key(name.strip()) if sign and not dot else ", such as train.max_iters=100"
            problems.append(f"--set {override}: expected section.key=value{meant}")
            continue
        try:
            key, content = _renamed(section, key, _read_yaml(value, f"--set {override}"))
            tree.setdefault(section, {})[key] = content
        except PresetError as error:
            problems.append(str(error))


def _renamed(section: str, key: str, value: Any) -> tuple[str, Any]:
    """Key and value of today for those of earlier presets and run folders."""
    if (section, key) == ("optim", "freeze_norms") and isinstance(value, bool):
        return "freeze", "norms" if value else "nothing"
    return key, value


def as_override(name: str, value: str) -> str:
    """`section.key=value` that `load_preset` reads as this very text, whatever characters it has."""
    quoted = yaml.safe_dump(value, default_style='"', allow_unicode=True, width=float("inf"))
    return f"{name}={quoted.removesuffix(chr(10))}"


def _validate(tree: Mapping[str, Any], source: str, problems: list[str]) -> Preset:
    preset = None
    try:
        preset = Preset.model_validate(tree)
    except ValidationError as error:
        # A union reports one problem per member, a list one per item: the first of a field says it.
        first = {error["loc"][:2]: error for error in reversed(error.errors())}
        # What counts between values says nothing where some of them could not be read.
        problems = problems + [_explain(problem) for where, problem in first.items() if where or not problems]
    if problems or preset is None:
        raise PresetError(f"{source}: " + "; ".join(problems))
    return preset


def field_names() -> list[str]:
    """All dotted names that a preset knows, such as `train.max_iters`."""
    return [f"{section}.{key}" for section, kind in _sections().items() for key in kind.model_fields]


def _sections() -> dict[str, type[Section]]:
    kinds = {name: field.annotation for name, field in Preset.model_fields.items()}
    return {name: kind for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Section)}


# What others call the same.
SYNONYMS = {
    "steps": "train.max_iters",
    "max_steps": "train.max_iters",
    "iters": "train.max_iters",
    "epochs": "train.max_iters",
    "batch": "train.batch_size",
    "bs": "train.batch_size",
    "crop": "train.crop_size",
    "image_size": "train.crop_size",
    "num_workers": "train.workers",
    "amp": "train.precision",
    "lr": "optim.lr",
    "learning_rate": "optim.lr",
    "wd": "optim.weight_decay",
    "model": "model.backbone",
    "weights": "model.init",
    "pretrained": "model.init",
    "threshold": "cam.background",
    "resize": "data.long_side",
}


def _nearest_key(name: str) -> str:
    """The key that was meant by a name that is none: by another word for it, or by one that looks like it."""
    word = name.rpartition(".")[2]
    known = field_names()
    if word in SYNONYMS:
        return f'; did you mean "{SYNONYMS[word]}"?'
    section = [key for key in known if key.partition(".")[0] == name.partition(".")[0]]
    if close := difflib.get_close_matches(name, section, n=1):
        return f'; did you mean "{close[0]}"?'
    same = [key for key in known if key.rpartition(".")[2] == word]
    return f'; did you mean "{same[0]}"?' if same else nearest(name, known)


def _explain(error: Mapping[str, Any]) -> str:
    """One of pydantic's errors in words: name, what was expected, what came."""
    where = error["loc"]
    name = ".".join(str(part) for part in where[:2])
    if error["type"] == "extra_forbidden":
        return f'"{name}" is not known{_nearest_key(name) if len(where) > 1 else nearest(name, Preset.model_fields)}'
    if error["type"] == "value_error" and not where:
        return str(error["ctx"]["error"])
    expected = _expectation(name)
    # Only limits add something to the plain words.
    limit = error["type"].startswith(("greater", "less", "multiple", "too_short"))
    detail = f" ({error['msg'].lower()})" if limit else ""
    return f"{name}: expected {expected}{detail}, got {error['input']!r}"


def _expectation(name: str) -> str:
    """What a field wants, in plain words."""
    section, _, key = name.partition(".")
    if section not in Preset.model_fields or not key:
        return "a section with keys"
    return _words(_sections()[section].model_fields[key].annotation)


def _words(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        return _words(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return " or ".join(str(choice) for choice in get_args(annotation))
    if get_origin(annotation) is tuple:
        return f"a list of {_words(get_args(annotation)[0]).removeprefix('a ').removeprefix('an ')}s"
    if get_origin(annotation) in (types.UnionType, Union):
        return " or ".join(_words(part) for part in get_args(annotation))
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return plain.get(annotation, str(annotation))


def save_preset(preset: Preset, path: Path) -> None:
    """Write a complete YAML file that loads as an equal preset."""
    path.write_text(
        yaml.dump(preset.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True), encoding="utf-8"
    )


def values_by_key(preset: Preset) -> dict[str, Any]:
    """Every value by its name, such as "train.max_iters", as JSON has it."""
    sections = preset.model_dump(mode="json")
    return {f"{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()}


def differences(before: Preset, after: Preset) -> list[str]:
    """What differs, such as "train.max_iters: 20 -> 40"."""
    old = values_by_key(before)
    return [f"{key}: {old[key]} -> {value}" for key, value in values_by_key(after).items() if old[key] != value]
