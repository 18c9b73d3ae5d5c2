"""Weights that others published, under our names.

Formats are told apart by their keys:
- the ImageNet weights of MiT (`mit_b1.pth`): names of our backbone, plus a classification head;
- Hugging Face (`nvidia/mit-b1`): `segformer.encoder.*`, with q, k and v apart, and its decoder (`hugging_face.py`);
- mmsegmentation since 0.20 (`layers.0.0.projection.*`), with query, key and value in one matrix and the linear layers
  of the MLP as convolutions;
- whole checkpoints of SegFormer and mmsegmentation: `backbone.patch_embed1.*` beside `decode_head.*`, which is left;
- the AFA authors' trained checkpoints (`wetr_iter_*.pth`): `encoder.*`, `decoder.*`, `classifier`,
  `attn_proj`, perhaps behind `module.`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from afactl.errors import CheckpointError, UsageError, counted, first_line
from afactl.runs.hugging_face import from_hugging_face

# How names begin, theirs and ours.
_AUTHORS = (
    ("encoder.", "backbone."),
    *((f"decoder.linear_c{stage + 1}.proj.", f"decoder.project.{stage}.") for stage in range(4)),
    ("decoder.linear_fuse.conv.", "decoder.fuse."),
    ("decoder.linear_fuse.bn.", "decoder.norm."),
    ("decoder.linear_pred.", "decoder.predict."),
    ("attn_proj.", "affinity_head."),
    ("classifier.weight", "classifier"),
)

# mmsegmentation's parts of a block, behind `layers.STAGE.1.BLOCK.`.
_MMSEG = (
    ("attn.attn.out_proj.", "attn.proj."),
    ("attn.sr.", "attn.sr."),
    ("attn.norm.", "attn.norm."),
    ("norm1.", "norm1."),
    ("norm2.", "norm2."),
    ("ffn.layers.0.", "mlp.fc1."),
    ("ffn.layers.1.", "mlp.dwconv.dwconv."),
    ("ffn.layers.4.", "mlp.fc2."),
)

_MMSEG_BACKBONE = re.compile(r"(?:backbone\.)?layers\.(\d)\.(\d)\.(.+)")

# What may stand before every name, and the keys under which trainers keep the weights.
_WRAPPINGS = ("module.", "_orig_mod.", "model.", "net.", "network.")
_HOLDERS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params", "state")


# So many names of a kind are shown.
_SHOWN = 3


class Fit(NamedTuple):
    """What of a file was taken, which of the network's own tensors it lacks, and which of its own were left."""

    taken: dict[str, Tensor]
    missing: list[str]
    left: list[str]

    def __str__(self) -> str:
        """Such as `222 tensors taken, 1 missing (norm.weight), 2 left (head.weight, head.bias)`."""
        parts = [f"{counted(len(self.taken), 'tensor')} taken"]
        for names, what in ((self.missing, "missing"), (self.left, "left")):
            if names:
                more = ", ..." if len(names) > _SHOWN else ""
                parts.append(f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{more})")
        return ", ".join(parts)


def from_authors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A trained checkpoint of the authors (`wetr_iter_*.pth`) as a state dict of `model.AFA`.

    Raises:
        CheckpointError: a name that belongs to no part of the network.
    """
    mapped = {}
    for name, value in state.items():
        name = name.removeprefix("module.")
        begins = next((pair for pair in _AUTHORS if name.startswith(pair[0])), None)
        if begins is None:
            raise CheckpointError(f"weights: {name} is no part of an AFA checkpoint")
        theirs, ours = begins
        name = ours + name.removeprefix(theirs)
        if ours.startswith("decoder.project.") and value.ndim == 2:
            # A linear layer over tokens is a 1 x 1 convolution over maps.
            value = value[:, :, None, None]
        elif ours == "classifier":
            value = value.flatten(1)
        elif ours == "affinity_head.":
            value = value.flatten() if name.endswith("weight") else value.reshape(())
        mapped[name] = value
    return mapped


def to_authors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of `model.AFA` under the names and shapes of the authors' checkpoints; undoes `from_authors`."""
    mapped = {}
    for name, value in state.items():
        theirs, ours = next(pair for pair in _AUTHORS if name.startswith(pair[1]))
        if ours.startswith("decoder.project."):
            value = value.flatten(1) if value.ndim == 4 else value
        elif ours == "classifier":
            value = value[:, :, None, None]
        elif ours == "affinity_head.":
            value = value.reshape(1, -1, 1, 1) if name.endswith("weight") else value.reshape(1)
        mapped[theirs + name.removeprefix(ours)] = value
    return mapped


def from_mmsegmentation(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A MiT of mmsegmentation, alone or in a whole checkpoint, as `backbone.*`; its other parts dropped.

    Each stage is a list: `layers.S.0` its patch embedding, `layers.S.1.*` its blocks, `layers.S.2` its last norm.

    Raises:
        CheckpointError: a name of the backbone that has no place in ours.
    """
    mapped: dict[str, Tensor] = {}
    for full, value in state.items():
        match = _MMSEG_BACKBONE.fullmatch(full)
        if match is None:
            continue
        stage, part, name = int(match[1]) + 1, match[2], match[3]
        if part == "0":
            mapped[f"backbone.patch_embed{stage}.{name.replace('projection.', 'proj.')}"] = value
        elif part == "2":
            mapped[f"backbone.norm{stage}.{name}"] = value
        else:
            mapped |= _from_mmseg_block(full, f"backbone.block{stage}.", name, value)
    return mapped


def _from_mmseg_block(full: str, ours: str, name: str, value: Tensor) -> dict[str, Tensor]:
    number, _, rest = name.partition(".")
    packed = re.fullmatch(r"attn\.attn\.in_proj_(weight|bias)", rest)
    if packed:
        query, key_value = value[: len(value) // 3], value[len(value) // 3 :]
        return {
            f"{ours}{number}.attn.q.{packed[1]}": query,
            f"{ours}{number}.attn.kv.{packed[1]}": key_value,
        }
    for theirs, place in _MMSEG:
        if rest.startswith(theirs):
            linear = place in ("mlp.fc1.", "mlp.fc2.") and value.ndim == 4
            return {f"{ours}{number}.{place}{rest.removeprefix(theirs)}": value[:, :, 0, 0] if linear else value}
    raise CheckpointError(f"weights: {full} belongs to no part of a MiT")


def from_imagenet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published ImageNet weights of a MiT as `backbone.*`; the classification head dropped."""
    return {f"backbone.{name}": value for name, value in state.items() if not name.startswith("head.")}


class Translated(NamedTuple):
    """Weights under our names, and the names of the file that have no place among them."""

    state: dict[str, Tensor]
    left: list[str]


def translate(state: dict[str, Tensor], source: str) -> Translated:
    """Any of the formats, or a state dict of our own, under our names.

    Args:
        source: where it came from, for the message.

    Raises:
        CheckpointError: none of the formats.
    """
    state = _without_wrapping(state)
    names = set(state)
    if any(name.startswith("encoder.patch_embeddings.") for name in names):  # the encoder saved alone
        state = {f"segformer.{name}": value for name, value in state.items()}
        names = set(state)
    if any(name.startswith("segformer.encoder.") for name in names):
        places = ("segformer.encoder.", "decode_head.")
        return Translated(from_hugging_face(state), [name for name in state if not name.startswith(places)])
    if any(name.startswith("encoder.patch_embed1.") for name in names):
        return Translated(from_authors(state), [])
    if any(re.match(r"(backbone\.)?layers\.0\.0\.projection\.", name) for name in names):
        return Translated(from_mmsegmentation(state), [name for name in state if not _MMSEG_BACKBONE.fullmatch(name)])
    if any(name.startswith("backbone.") for name in names):
        # SegFormer's and mmsegmentation's checkpoints have our names up to here, and heads of their own.
        ours = any(name.startswith(("decoder.", "classifier", "affinity_head.")) for name in names)
        kept = {name: value for name, value in state.items() if ours or name.startswith("backbone.")}
        return Translated(kept, [name for name in state if name not in kept])
    if any(name.startswith("patch_embed1.") for name in names):
        return Translated(from_imagenet(state), [name for name in state if name.startswith("head.")])
    raise CheckpointError(
        f"{source}: expected MiT weights (patch_embed1.*), a Hugging Face SegFormer (segformer.encoder.*) "
        f"or an AFA checkpoint (encoder.*), got names such as {', '.join(sorted(names)[:3]) or 'none'}"
    )


def _without_wrapping(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without what DataParallel, torch.compile or a trainer put before every one of them."""
    for prefix in _WRAPPINGS:
        if state and all(name.startswith(prefix) for name in state):
            return _without_wrapping({name.removeprefix(prefix): value for name, value in state.items()})
    return dict(state)


def _innermost(content: Any) -> Any:
    """The weights among what trainers write beside and around them."""
    while isinstance(content, dict) and not any(isinstance(value, Tensor) for value in content.values()):
        inner = next((content[key] for key in _HOLDERS if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = inner
    return content


def require_finite(state: Mapping[str, Tensor], source: str) -> None:
    """See that weights are numbers.

    Raises:
        CheckpointError: some are NaN or infinite; says how many tensors, and the first.
    """
    broken = [name for name, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if broken:
        raise CheckpointError(
            f"{source}: {len(broken)} of {len(state)} tensors hold NaN or infinite values (first: {broken[0]}); "
            "the training that wrote them went wrong, take an earlier file"
        )


ALONE = "save the weights alone: torch.save(model.state_dict(), FILE)"


def _reason(error: Exception) -> str:
    """Why a file gives no weights, in a few words; torch's own advice is to run code from it."""
    text = str(error)
    global_name = re.search(r"GLOBAL ([\w.]+)", text)
    if global_name:
        return f"it holds an object of {global_name[1]}, which is code; {ALONE}"
    if "TorchScript" in text:
        return (
            "it is a TorchScript archive, which is code; save the weights alone: torch.save(model.state_dict(), FILE)"
        )
    if "Weights only load failed" in text or isinstance(error, LookupError | EOFError | ValueError):
        return "no PyTorch file, or damaged"
    return first_line(error)


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a `.safetensors` or a PyTorch file; never runs code from the file.

    Raises:
        UsageError: there is no such file. CheckpointError: unreadable, or not a mapping of names to tensors.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such weights file; give --init FILE, or --init none for random weights")
    if path.suffix == ".onnx":
        raise CheckpointError(
            f"{path}: a network as ONNX, which is only run; give weights: .safetensors or .pth (afactl export --format "
            "safetensors)"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            # The arguments of a training often lie beside its weights; a namespace is plain data.
            torch.serialization.add_safe_globals([argparse.Namespace])
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # every library error here means the same to the user
        raise CheckpointError(f"{path}: cannot be read as weights ({_reason(error)})") from error
    state = _innermost(state)
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path}: expected a mapping of names to tensors, got {type(state).__name__}")
    return dict(state)
