"""Plain ViTs: what comes out is what timm itself computes, without class tokens, for photos of any size."""

import math

import pytest
import torch
from torch import nn

from afactl.errors import PresetError
from afactl.network.backbones.vit import FeaturePyramid, VisionTransformer

# One member per family: DeiT, AugReg, CLIP (norm before the blocks), DINOv2, with registers, DINOv3 (rotary positions).
FAMILIES = [
    "deit_tiny_patch16_224",
    "vit_tiny_patch16_224",
    "vit_base_patch32_clip_224",
    "vit_small_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "vit_small_patch16_dinov3",
]


def stirred(module):
    """Random values everywhere: zeros and ones of an untrained network would hide a mistake."""
    torch.manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.1)
    return module.eval()


@pytest.fixture(scope="module", params=FAMILIES)
def backbone(request):
    return stirred(VisionTransformer(request.param, drop_path=0.0))


@torch.no_grad()
def attention_maps(body, image):
    """Softmaxed attention of the last two blocks by timm's unfused road, B x n x (P + N) x (P + N) each; the tokens."""
    maps = []
    for block in body.blocks[-2:]:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_pre_hook(lambda module, inputs: maps.append(inputs[0]))
    tokens = body.forward_features(image)
    return maps, tokens


def test_features_and_attention_are_timms_own_at_the_native_size(backbone):
    side = backbone.body.patch_embed.img_size[0]
    side = min(side, 16 * backbone.patch) if backbone.body.pos_embed is None else side
    image = torch.randn(1, 3, side, side)
    with torch.no_grad():
        output = backbone(image)
    maps, tokens = attention_maps(backbone.body, image)
    prefix, grid = backbone.body.num_prefix_tokens, output.grid
    expected = tokens[:, prefix:].transpose(1, 2).unflatten(2, grid)
    torch.testing.assert_close(output.features[-1], expected, atol=1e-5, rtol=1e-5)
    scores = output.queries @ output.keys.transpose(-2, -1)
    scale = output.queries.shape[-1] ** -0.5
    for found, attention in zip(scores.chunk(2, dim=1), maps, strict=True):
        # Among the patches alone, timm's attention is the softmax of S over them.
        own = attention[:, :, prefix:, prefix:]
        torch.testing.assert_close(
            torch.softmax(scale * found, -1), own / own.sum(-1, keepdim=True), atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("size", [(90, 131), (33, 64)])
def test_photos_that_do_not_divide_are_padded_and_every_map_is_cut_back(size):
    backbone = stirred(VisionTransformer("vit_small_patch14_dinov2", drop_path=0.0))
    with torch.no_grad():
        output = backbone(torch.randn(2, 3, *size))
        for features, stride in zip(output.features, (3.5, 7, 14), strict=True):
            assert features.shape[2:] == (math.ceil(size[0] / stride), math.ceil(size[1] / stride))
        tokens = math.prod(output.grid)
        assert output.queries.shape == output.keys.shape == (2, 12, tokens, 64)
        # What lies in the padding is zero: the mean colour of the normalised photo.
        photo = torch.randn(1, 3, *size)
        padded = nn.functional.pad(photo, (0, -size[1] % 14, 0, -size[0] % 14))
        assert torch.equal(backbone(photo).features[-1], backbone(padded).features[-1])


def test_positions_are_resized_between_their_neighbours():
    """Learned positions that grow from left to right still do on another grid, between the same bounds."""
    backbone = stirred(VisionTransformer("deit_tiny_patch16_224", drop_path=0.0))
    body = backbone.body
    ramp = torch.linspace(0, 1, 14).repeat(14)
    with torch.no_grad():
        body.pos_embed[0, 1:] = ramp[:, None]
        positions = backbone._positioned(torch.zeros(1, 6 * 9, 192), (6, 9))[0, 1:, 0].view(6, 9)
    assert torch.all(positions.diff(dim=1) > 0)
    assert torch.allclose(positions, positions[:1].expand(6, -1), atol=1e-5)
    assert abs(positions.min()) < 0.1 and abs(positions.max() - 1) < 0.1


def test_the_pyramid_begins_with_the_finest_map():
    four, two, one = FeaturePyramid(32)(torch.randn(1, 32, 3, 5))
    assert (four.shape, two.shape, one.shape) == ((1, 8, 12, 20), (1, 16, 6, 10), (1, 32, 3, 5))


def test_a_token_for_distillation_is_refused():
    with pytest.raises(PresetError, match="token for distillation"):
        VisionTransformer("deit_tiny_distilled_patch16_224", 0.0)
