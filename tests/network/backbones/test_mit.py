"""The Mix Transformer: its sizes, its attention, and what it hands to the affinity head."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from afactl.network.backbones.mit import (
    VARIANTS,
    Attention,
    MixTransformer,
    PatchEmbedding,
    drop_path,
    to_map,
    to_tokens,
)
from tests import golden

# SegFormer (arXiv:2105.15203), Table 6.
WIDE = (64, 128, 320, 512)
PUBLISHED = {
    "mit_b0": ((32, 64, 160, 256), (2, 2, 2, 2)),
    "mit_b1": (WIDE, (2, 2, 2, 2)),
    "mit_b2": (WIDE, (3, 4, 6, 3)),
    "mit_b3": (WIDE, (3, 4, 18, 3)),
    "mit_b4": (WIDE, (3, 8, 27, 3)),
    "mit_b5": (WIDE, (3, 6, 40, 3)),
}


def small(drop_path=0.0):
    torch.manual_seed(0)
    return MixTransformer((8, 16, 20, 32), (1, 1, 2, 3), drop_path).eval()


def test_the_sizes_are_those_of_the_publication():
    assert {name: VARIANTS[name] for name in PUBLISHED} == PUBLISHED


@pytest.mark.parametrize("name", ["mit_b0", "mit_b1"])
def test_names_and_shapes_are_those_of_the_published_weights(name):
    theirs = {
        key.removeprefix("encoder."): shape
        for key, shape in golden.table(f"state_{name}").items()
        if key.startswith("encoder.")
    }
    ours = {key: list(value.shape) for key, value in MixTransformer(*VARIANTS[name], 0.1).state_dict().items()}
    assert ours == theirs


def test_norms_have_the_epsilons_of_the_publication():
    """1e-6 in blocks and at the end of a stage; torch's 1e-5 behind embeddings and reductions."""
    for name, module in small().named_modules():
        if isinstance(module, nn.LayerNorm):
            behind_a_convolution = "patch_embed" in name or name.endswith("attn.norm")
            assert module.eps == (1e-5 if behind_a_convolution else 1e-6), name


def test_stochastic_depth_rises_evenly_over_all_blocks():
    rates = [block.drop_path for i in range(1, 5) for block in getattr(small(0.3), f"block{i}")]
    assert rates == pytest.approx([0.3 * i / 6 for i in range(7)])


def test_dropped_paths_keep_the_expectation():
    torch.manual_seed(0)
    x = torch.ones(20000, 2, 3)
    kept = drop_path(x, 0.25, training=True)
    assert kept.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert kept.mean().item() == pytest.approx(1.0, abs=0.02)
    assert (kept.flatten(1).amin(1) == kept.flatten(1).amax(1)).all(), "a sample is kept or dropped as a whole"
    assert drop_path(x, 0.25, training=False) is x and drop_path(x, 0.0, training=True) is x


def test_tokens_are_the_map_row_by_row():
    features = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    tokens = to_tokens(features)
    assert torch.equal(tokens[1, 2 * 5 + 3], features[1, :, 2, 3])
    assert torch.equal(to_map(tokens, (4, 5)), features)


@pytest.mark.parametrize("reduction", [1, 2])
def test_attention_equals_the_sum_over_tokens(reduction):
    """softmax(q k^T / sqrt(d)) v, token by token and head by head; queries and keys come out unscaled."""
    torch.manual_seed(0)
    layer, grid = Attention(6, 2, reduction).double(), (4, 2)
    x = torch.randn(1, 8, 6, dtype=torch.float64)
    with torch.no_grad():
        out, queries, keys = layer(x, grid)
        source = x if reduction == 1 else layer.norm(to_tokens(layer.sr(to_map(x, grid))))
        values = layer.kv(source)[0, :, 6:]
        expected = torch.zeros(8, 6, dtype=torch.float64)
        for token in range(8):
            for head in range(2):
                part = slice(3 * head, 3 * head + 3)
                query = layer.q(x[0, token])[part]
                scores = [query @ layer.kv(one)[part] / math.sqrt(3) for one in source[0]]
                weights = torch.stack(scores).softmax(0)
                expected[token, part] = sum(w * v[part] for w, v in zip(weights, values, strict=True))
                assert torch.allclose(queries[0, head, token], query)
        torch.testing.assert_close(out[0], layer.proj(expected))
        for place, one in enumerate(source[0]):
            torch.testing.assert_close(keys[0, :, place].flatten(), layer.kv(one)[:6])


def test_queries_and_keys_are_those_of_the_last_two_blocks():
    """The last block's heads last."""
    model, image = small(), torch.randn(1, 3, 64, 64)
    seen = []
    for block in model.block4:
        block.attn.register_forward_hook(lambda module, inputs, output: seen.append(output[1:]))
    with torch.no_grad():
        out = model(image)
    assert len(seen) == 3 and (model.attention_layers, model.attention_heads) == (2, 16)
    assert torch.equal(out.queries, torch.cat([seen[1][0], seen[2][0]], dim=1))
    assert torch.equal(out.keys, torch.cat([seen[1][1], seen[2][1]], dim=1))


@given(st.integers(1, 150), st.integers(1, 150))
def test_the_grid_is_floor_of_the_padded_side(height, width):
    """Per stage floor((s + 2 p - k) / stride) + 1, with kernels 7, 3, 3, 3 and strides 4, 2, 2, 1."""
    model = MixTransformer((1, 2, 5, 8), (1, 1, 1, 2), 0.0).eval()
    with torch.no_grad():
        features = model(torch.zeros(1, 3, height, width)).features
    sides = [height, width]
    for stage, kernel, stride in zip(features, (7, 3, 3, 3), (4, 2, 2, 1), strict=True):
        sides = [(side + 2 * (kernel // 2) - kernel) // stride + 1 for side in sides]
        assert list(stage.shape[2:]) == sides


def test_embedding_looks_beyond_its_own_cell():
    """Overlapped: with stride 4 and a kernel of 7, pixel 5 belongs to cell 1 and is seen by cell 1 and 2 alone."""
    layer, image = PatchEmbedding(3, 4, 7, 4), torch.zeros(1, 3, 16, 16)
    changed = image.clone()
    changed[..., 5, 5] = 1
    with torch.no_grad():
        differs = (layer.proj(image) != layer.proj(changed)).any(dim=1)[0]
    assert differs.nonzero().tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]


def test_start_weights_are_drawn_as_said():
    """Linear layers truncated normal of 0.02, convolutions normal of sqrt(2 / fan out), biases 0, norms 1."""
    torch.manual_seed(0)
    model = MixTransformer(*VARIANTS["mit_b0"], 0.0).requires_grad_(False)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.15), name
        elif isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] ** 2 * module.out_channels / module.groups
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.15), name
        elif isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all()
        if isinstance(module, nn.Linear | nn.Conv2d):
            assert not module.bias.any(), name
