"""PVTv2: what comes out is what timm's own stages compute, at the last stride of 1."""

import pytest
import torch
from torch import nn

from afactl.errors import PresetError
from afactl.network.backbones.pvt import PyramidVisionTransformer


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    backbone = PyramidVisionTransformer("pvt_v2_b0", drop_path=0.0)
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, std=0.1)
    return backbone.eval()


@torch.no_grad()
def test_stages_and_attention_are_timms_own(backbone):
    image = torch.randn(2, 3, 90, 131)
    output = backbone(image)
    attention = []
    for block in backbone.body.stages[-1].blocks[-2:]:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_pre_hook(lambda module, inputs: attention.append(inputs[0]))
    x = backbone.body.patch_embed(image)
    for stage, found in zip(backbone.body.stages, output.features, strict=True):
        x = stage(x)
        torch.testing.assert_close(found, x, atol=1e-5, rtol=1e-5)
    scores = output.queries @ output.keys.transpose(-2, -1)
    for found, expected in zip(scores.chunk(2, dim=1), attention, strict=True):
        torch.testing.assert_close(torch.softmax(found * 32**-0.5, -1), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_last_stage_keeps_the_grid_of_the_third(backbone):
    output = backbone(torch.randn(1, 3, 64, 96))
    assert [tuple(features.shape[2:]) for features in output.features] == [(16, 24), (8, 12), (4, 6), (4, 6)]
    assert backbone.strides == (4, 8, 16, 16) and backbone.attention_heads == 16


def test_pooled_keys_are_refused():
    with pytest.raises(PresetError, match="pools the keys of its last stage"):
        PyramidVisionTransformer("pvt_v2_b2_li", 0.0)
