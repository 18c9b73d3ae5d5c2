"""Hugging Face's side of SegFormer: its names, its hub, and a folder that its `from_pretrained` loads."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from afactl.datasets.transforms import MEAN, STD
from afactl.errors import CheckpointError, UsageError, first_line
from afactl.files import whole_file, writing
from afactl.labels import IGNORE
from afactl.network.backbones.mit import HEADS, KERNELS, MLP_RATIO, PATCH_STRIDES, REDUCTIONS, VARIANTS
from afactl.runs.weights_at_hand import WEIGHTS_FILES

WEIGHTS = WEIGHTS_FILES[0]
# Of a folder.
FILES = ("config.json", "preprocessor_config.json", WEIGHTS)
# Parts of a block, theirs and ours.
_BLOCK = (
    ("attention.self.query.", "attn.q."),
    ("attention.self.sr.", "attn.sr."),
    ("attention.self.layer_norm.", "attn.norm."),
    ("attention.output.dense.", "attn.proj."),
    ("layer_norm_1.", "norm1."),
    ("layer_norm_2.", "norm2."),
    ("mlp.dense1.", "mlp.fc1."),
    ("mlp.dense2.", "mlp.fc2."),
    ("mlp.dwconv.", "mlp.dwconv."),
)
# Parts of the decoder.
_DECODER = (
    *((f"linear_c.{stage}.proj.", f"project.{stage}.") for stage in range(4)),
    ("linear_fuse.", "fuse."),
    ("batch_norm.", "norm."),
    ("classifier.", "predict."),
)


def from_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A SegFormer of Hugging Face under our names: its encoder as `backbone.*`, its decoder, if any, as `decoder.*`.

    Raises:
        CheckpointError: a key without its value, or a value without its key.
    """
    mapped: dict[str, Tensor] = {}
    halves: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        if name.startswith("decode_head."):
            mapped |= _from_decoder(name.removeprefix("decode_head."), value)
        if not name.startswith("segformer.encoder."):
            continue  # the head of an ImageNet classifier
        name = name.removeprefix("segformer.encoder.")
        pair = re.fullmatch(r"block\.(\d)\.(\d+)\.attention\.self\.(key|value)\.(.+)", name)
        if pair:
            kv = f"backbone.block{int(pair[1]) + 1}.{pair[2]}.attn.kv.{pair[4]}"
            halves.setdefault(kv, {})[pair[3]] = value
            continue
        name = re.sub(r"^patch_embeddings\.(\d)\.layer_norm\.", lambda m: f"patch_embed{int(m[1]) + 1}.norm.", name)
        name = re.sub(r"^patch_embeddings\.(\d)\.", lambda m: f"patch_embed{int(m[1]) + 1}.", name)
        name = re.sub(r"^layer_norm\.(\d)\.", lambda m: f"norm{int(m[1]) + 1}.", name)
        name = re.sub(r"^block\.(\d)\.", lambda m: f"block{int(m[1]) + 1}.", name)
        for theirs, ours in _BLOCK:
            name = name.replace(theirs, ours)
        mapped[f"backbone.{name}"] = value
    for kv, parts in halves.items():
        if set(parts) != {"key", "value"}:
            raise CheckpointError(f"weights: {kv} needs both key and value, got {', '.join(sorted(parts))}")
        mapped[kv] = torch.cat([parts["key"], parts["value"]])
    return mapped


def _from_decoder(name: str, value: Tensor) -> dict[str, Tensor]:
    for theirs, ours in _DECODER:
        if name.startswith(theirs):
            linear = ours.startswith("project.") and value.ndim == 2
            # A linear layer over tokens is a 1 x 1 convolution over maps.
            return {f"decoder.{ours}{name.removeprefix(theirs)}": value[:, :, None, None] if linear else value}
    raise CheckpointError(f"weights: decode_head.{name} belongs to no part of SegFormer's decoder")


def to_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Backbone and decoder of a `model.AFA` of a MiT under their names; undoes `from_hugging_face`."""
    mapped: dict[str, Tensor] = {}
    for full, value in state.items():
        part, _, name = full.partition(".")
        if part == "backbone":
            kv = re.fullmatch(r"block(\d)\.(\d+)\.attn\.kv\.(.+)", name)
            if kv:
                block = f"segformer.encoder.block.{int(kv[1]) - 1}.{kv[2]}.attention.self"
                mapped[f"{block}.key.{kv[3]}"], mapped[f"{block}.value.{kv[3]}"] = value.chunk(2)
                continue
            for theirs, ours in _BLOCK:
                name = re.sub(rf"^(block\d\.\d+\.){re.escape(ours)}", rf"\1{theirs}", name)
            name = re.sub(r"^patch_embed(\d)\.norm\.", lambda m: f"patch_embeddings.{int(m[1]) - 1}.layer_norm.", name)
            name = re.sub(r"^patch_embed(\d)\.", lambda m: f"patch_embeddings.{int(m[1]) - 1}.", name)
            name = re.sub(r"^norm(\d)\.", lambda m: f"layer_norm.{int(m[1]) - 1}.", name)
            name = re.sub(r"^block(\d)\.", lambda m: f"block.{int(m[1]) - 1}.", name)
            mapped[f"segformer.encoder.{name}"] = value
        elif part == "decoder":
            theirs, ours = next(pair for pair in _DECODER if name.startswith(pair[1]))
            linear = ours.startswith("project.") and value.ndim == 4
            mapped[f"decode_head.{theirs}{name.removeprefix(ours)}"] = value.flatten(1) if linear else value
    return mapped


def configuration(backbone: str, classes: Sequence[str], decoder_width: int, drop_path: float) -> dict[str, Any]:
    """Their `config.json` of one of our networks.

    Args:
        classes: names of the C foreground classes; value 0 is "background".

    Raises:
        UsageError: the backbone is no MiT, which is all that SegFormer has.
    """
    if backbone not in VARIANTS:
        raise UsageError(
            f"export --format hf: SegFormer's backbone is a MiT ({', '.join(VARIANTS)}), this run's is {backbone}; "
            "take --format onnx or torchscript"
        )
    dims, depths = VARIANTS[backbone]
    names = ("background", *classes)
    return {
        "architectures": ["SegformerForSemanticSegmentation"],
        "model_type": "segformer",
        "num_channels": 3,
        "num_encoder_blocks": len(dims),
        "depths": list(depths),
        "hidden_sizes": list(dims),
        "num_attention_heads": list(HEADS),
        "sr_ratios": list(REDUCTIONS),
        "mlp_ratios": [MLP_RATIO] * len(dims),
        "patch_sizes": list(KERNELS),
        "strides": list(PATCH_STRIDES),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "classifier_dropout_prob": 0.1,
        "drop_path_rate": drop_path,
        "layer_norm_eps": 1e-6,
        "decoder_hidden_size": decoder_width,
        "reshape_last_stage": True,
        "semantic_loss_ignore_index": IGNORE,
        "id2label": {str(value): name for value, name in enumerate(names)},
        "label2id": {name: value for value, name in enumerate(names)},
        "torch_dtype": "float32",
    }


def write_folder(folder: Path, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """A folder that `SegformerForSemanticSegmentation.from_pretrained` loads; the weights appear last, and whole.

    Args:
        state: of a `model.AFA`; the classifier of the CAMs and the affinity head have no place there.
        config: see `configuration`.

    Raises:
        UsageError: it cannot be written.
    """
    from safetensors.torch import save_file

    picture = {
        "image_processor_type": "SegformerImageProcessor",
        "do_resize": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [mean / 255 for mean in MEAN],
        "image_std": [std / 255 for std in STD],
        "do_reduce_labels": False,
    }
    weights = {name: value.contiguous() for name, value in to_hugging_face(state).items()}
    with writing(f"--out {folder}", "give another folder", also=(RuntimeError,)):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in zip(FILES, (config, picture), strict=False):
            with whole_file(folder / name) as fresh:
                fresh.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        with whole_file(folder / WEIGHTS) as fresh:
            save_file(weights, fresh, metadata={"format": "pt"})


def fetch_hugging_face(repository: str) -> Path:
    """Download (or find in the cache) the weights of a Hugging Face repository.

    Raises:
        UsageError: not reachable; names the two ways that need no network.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    from huggingface_hub.utils import logging as hub_logging

    # It announces each retry; what counts is the outcome.
    hub_logging.set_verbosity(logging.ERROR)
    reason = ""
    for name in WEIGHTS_FILES:
        try:
            return Path(hf_hub_download(repository, name))
        except Exception as caught:  # offline, no such repository, no rights: the remedy is one
            reason = first_line(caught)
            # Older repositories hold the second file only; being offline is a kind of the same error.
            if not isinstance(caught, EntryNotFoundError) or isinstance(caught, LocalEntryNotFoundError):
                break
    raise UsageError(
        f"--init hf:{repository}: could not be fetched ({reason}); "
        "give --init FILE with the weights you have, or --init none for random weights"
    )
