"""Convolutional stages under MiT's blocks."""

import pytest
import torch

from afactl.errors import PresetError
from afactl.network.backbones.hybrid import START, Hybrid, ScaledBlock
from afactl.network.backbones.mit import Block


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return Hybrid("tf_efficientnet_lite0", drop_path=0.0).eval()


@torch.no_grad()
def test_the_first_stages_are_timms_own(backbone):
    image = torch.randn(2, 3, 90, 131)
    output = backbone(image)
    maps = backbone.body(image)
    for stage, i in zip(output.features, (1, 2, 4), strict=False):
        torch.testing.assert_close(stage, maps[i])  # the order of the memory is another, and with it that of the sums
        assert stage.is_contiguous(memory_format=torch.channels_last)
    assert [tuple(features.shape[2:]) for features in output.features] == [(23, 33), (12, 17), (6, 9), (6, 9)]
    assert output.queries.shape == (2, 16, 54, 32)


@pytest.mark.parametrize(("name", "channels"), [("resnet18", (64, 128, 512)), ("convnext_atto", (40, 80, 320))])
def test_other_networks(name, channels):
    backbone = Hybrid(name, 0.0)
    assert backbone.out_channels[:3] == channels
    with torch.no_grad():
        output = backbone.eval()(torch.randn(1, 3, 64, 96))
    assert output.grid == (4, 6)


@torch.no_grad()
def test_a_branch_counts_by_its_factor():
    """With factors of one the block is MiT's; at the start a branch adds a tenth of that."""
    torch.manual_seed(0)
    plain, scaled = Block(32, 8, 1, 0.0), ScaledBlock(32, 8, 0.0)
    assert torch.all(scaled.scale1 == START) and torch.all(scaled.scale2 == START)
    missing, unexpected = scaled.load_state_dict(plain.state_dict(), strict=False)
    assert missing == ["scale1", "scale2"] and not unexpected
    x = torch.randn(1, 6, 32)
    attended = plain.attn(plain.norm1(x), (2, 3))[0]
    middle = x + START * attended
    expected = middle + START * plain.mlp(plain.norm2(middle), (2, 3))
    torch.testing.assert_close(scaled(x, (2, 3))[0], expected)
    scaled.scale1.fill_(1), scaled.scale2.fill_(1)
    for found, same in zip(scaled(x, (2, 3)), plain(x, (2, 3)), strict=True):
        torch.testing.assert_close(found, same)


def test_networks_without_these_strides_are_refused():
    with pytest.raises(PresetError, match="hybrid:|cannot be used here"):
        Hybrid("vit_tiny_patch16_224", 0.0)
    with pytest.raises(PresetError, match='"efficientnet_lite_0" is unknown'):
        Hybrid("efficientnet_lite_0", 0.0)
