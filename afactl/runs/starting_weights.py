"""Weights to start a training from, and weights into a network of just that architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from afactl.errors import CheckpointError, UsageError
from afactl.network.backbones.timm_models import TimmBackbone
from afactl.network.model import AFA
from afactl.runs.foreign_weights import Fit, read_state, require_finite, translate
from afactl.runs.hugging_face import fetch_hugging_face
from afactl.runs.timm_weights import load_body, load_published


def initialize(model: AFA, init: str) -> str:
    """Start weights: "none" (random), "timm" (what it publishes), "hf:REPOSITORY", or a file of a known format.

    Weights of the backbone alone leave the heads random.

    Returns:
        One line that says what was loaded.

    Raises:
        UsageError: what hf: or timm names could not be fetched, or the backbone is none of timm's.
        CheckpointError: the file does not fit.
    """
    if init == "none":
        return "random weights"
    backbone = model.backbone
    if init == "timm":
        if not isinstance(backbone, TimmBackbone):
            raise UsageError(
                "--init timm: expected a backbone of timm (model.backbone); give --init FILE or hf:REPOSITORY"
            )
        return f"{load_published(backbone)}; heads random"
    path = fetch_hugging_face(init.removeprefix("hf:")) if init.startswith("hf:") else Path(init)
    state = read_state(path)
    if isinstance(backbone, TimmBackbone) and not any(name.startswith("backbone.") for name in state):
        require_finite(state, str(path))
        return f"{load_body(backbone, state, init)}; heads random"
    state, left = translate(state, str(path))
    require_finite(state, str(path))
    if all(name.startswith(("backbone.", "decoder.")) for name in state):  # no network of ours: SegFormer's
        return _initialize_segformer(model, state, left, init, str(path))
    complete, fit = _without_extras(model, state)
    load_state(model, complete, str(path))
    return f"all weights from {init}: {Fit(fit.taken, [], [*left, *fit.left])}"


def _initialize_segformer(model: AFA, state: Mapping[str, Tensor], left: Sequence[str], init: str, source: str) -> str:
    """The backbone, and the decoder where it fits; gives the line that says so."""
    complete, fit = _without_extras(model.backbone, _part(state, "backbone."))
    load_state(model.backbone, complete, source)
    decoder = _part(state, "decoder.")
    if decoder and _fits(model.decoder, decoder):
        load_state(model.decoder, decoder, source)
        both = {**fit.taken, **{f"decoder.{name}": value for name, value in decoder.items()}}
        told = Fit(both, [], [*left, *fit.left])
        return f"backbone and decoder from {init}: {told}; classifier and affinity head random"
    told = Fit(fit.taken, [], [*left, *fit.left, *(f"decoder.{name}" for name in sorted(decoder))])
    other = "; its decoder is of other classes or width" if decoder else ""
    return f"backbone from {init}: {told}{other}; heads random"


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _fits(module: nn.Module, state: Mapping[str, Tensor]) -> bool:
    expected = module.state_dict()
    return all(name in state and state[name].shape == value.shape for name, value in expected.items())


def _without_extras(module: nn.Module, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Fit]:
    """Foreign weights without what makes no other architecture, and what was taken and left of the file.

    Left out: numbers that are no weights (indices, counters), and parts of which the module has nothing. Counters of
    batch norms that are missing start again.
    """
    expected = module.state_dict()
    parts = {name.partition(".")[0] for name in expected}
    extras = [
        name
        for name, value in state.items()
        if name not in expected and (not value.is_floating_point() or name.partition(".")[0] not in parts)
    ]
    kept = {name: value for name, value in state.items() if name not in extras}
    counters = {name: value for name, value in expected.items() if name.endswith("num_batches_tracked")}
    return {**counters, **kept}, Fit(kept, [], extras)


def load_state(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load weights that must fit exactly.

    Raises:
        CheckpointError: names or shapes differ; says how many and shows the first.
    """
    expected: dict[str, Any] = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in state.items()}
    wrong = [f"{n} is {given[n]}, expected {expected[n]}" for n in expected if n in given and given[n] != expected[n]]
    wrong += [f"{n} is missing" for n in expected if n not in given]
    wrong += [f"{n} is not known" for n in given if n not in expected]
    if wrong:
        raise CheckpointError(
            f"{source}: weights of another architecture, {len(wrong)} of {len(expected)} parameters do not fit "
            f"(first: {wrong[0]}); choose the matching model.backbone and classes"
        )
    module.load_state_dict(dict(state))
