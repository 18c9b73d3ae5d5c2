"""What the timm backbones share."""

import pytest
import torch

from afactl.errors import PresetError
from afactl.network.backbones.timm_models import last_blocks, queries_and_keys, split_heads, timm_model


def test_split_heads_counts_heads_first():
    tokens = torch.arange(12.0).view(1, 2, 6)
    heads = split_heads(tokens, 3)
    assert heads.shape == (1, 3, 2, 2) and heads[0, 1, 1].tolist() == [8, 9]


def test_the_last_blocks_heads_come_last():
    first, second = torch.zeros(1, 2, 4, 3), torch.ones(1, 2, 4, 3)
    queries, keys = last_blocks([(first, first + 2), (second, second + 2)])
    assert queries[0, :, 0, 0].tolist() == [0, 0, 1, 1] and keys[0, :, 0, 0].tolist() == [2, 2, 3, 3]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3", "vit_small_patch16_dinov3_qkvb"])
@torch.no_grad()
def test_queries_and_keys_with_every_kind_of_bias(name):
    """Against the whole projection, values included, as the module itself makes it."""
    attention = timm_model(name, num_classes=0).blocks[0].attn.double()  # sums in another order are equal then
    torch.manual_seed(0)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
    tokens = torch.randn(2, 5, attention.proj.out_features, dtype=torch.float64)
    whole = attention.qkv(tokens)
    if getattr(attention, "q_bias", None) is not None:
        whole = whole + torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    expected = whole.view(2, 5, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)[:2]
    torch.testing.assert_close(torch.stack(queries_and_keys(attention, tokens)), expected)


def test_a_name_timm_does_not_know_offers_the_nearest():
    with pytest.raises(PresetError, match='"pvt_v3_b1" is unknown; did you mean "pvt_v2_b1"'):
        timm_model("pvt_v3_b1")
