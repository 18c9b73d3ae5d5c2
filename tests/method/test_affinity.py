import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from afactl.errors import ShapeError
from afactl.method.affinity import (
    affinity_label,
    affinity_logits,
    attention_logits,
    mean_attention,
    neighborhood_mask,
    random_walk,
    transition_matrix,
)
from tests import golden


def slow_window(height, width, radius):
    """Double loop over pairs of tokens."""
    mask = torch.zeros(height * width, height * width, dtype=torch.bool)
    for a in range(height * width):
        for b in range(height * width):
            near = max(abs(a // width - b // width), abs(a % width - b % width)) <= radius
            mask[a, b] = near
    return mask


def slow_transition(affinity, height, width, radius, alpha, eps):
    """Eq. 6 entry by entry."""
    tokens = height * width
    out = torch.zeros(tokens, tokens)
    for i in range(tokens):
        row = torch.zeros(tokens)
        for j in range(tokens):
            if max(abs(i // width - j // width), abs(i % width - j % width)) <= radius:
                row[j] = affinity[i, j] ** alpha
        total = row.sum() + eps
        out[i] = row / total if total > 0 else row
    return out


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 7))
def test_window_equals_the_double_loop(height, width, radius):
    assert torch.equal(neighborhood_mask(height, width, radius), slow_window(height, width, radius))


@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 5))
def test_window_is_symmetric_contains_itself_and_grows(height, width, radius):
    mask = neighborhood_mask(height, width, radius)
    assert torch.equal(mask, mask.T)
    assert mask.diagonal().all()
    assert not (mask & ~neighborhood_mask(height, width, radius + 1)).any()
    assert neighborhood_mask(height, width, max(height, width)).all()


@pytest.mark.parametrize("arguments", [(0, 3, 1), (3, 0, 1), (3, 3, -1)])
def test_window_refuses_an_empty_grid_and_a_negative_radius(arguments):
    with pytest.raises(ShapeError, match="expected a grid"):
        neighborhood_mask(*arguments)


def test_affinity_logits_are_the_weighted_sum_of_symmetrised_maps():
    torch.manual_seed(0)
    queries, keys = torch.randn(2, 2, 6, 12, 5)
    weight, bias = torch.randn(6), torch.tensor(0.3)
    maps = attention_logits(queries, keys)
    expected = torch.einsum("bhij,h->bij", maps + maps.transpose(2, 3), weight) + bias
    found = affinity_logits(queries, keys, weight, bias)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(found, found.transpose(1, 2), atol=0, rtol=0)


def test_affinity_logits_refuse_another_number_of_heads():
    with pytest.raises(ShapeError, match="n = 3"):
        affinity_logits(torch.zeros(1, 2, 4, 5), torch.zeros(1, 2, 4, 5), torch.zeros(3), torch.tensor(0.0))


def test_mean_attention_is_the_mean_of_the_softmaxed_maps():
    torch.manual_seed(0)
    queries, keys = torch.randn(2, 2, 4, 9, 16)
    expected = torch.softmax(attention_logits(queries, keys) / 4.0, dim=-1).mean(dim=1)
    torch.testing.assert_close(mean_attention(queries, keys), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("height", "width", "radius"), [(4, 5, 1), (5, 3, 2), (1, 6, 2), (3, 4, 9), (4, 4, 0)])
@pytest.mark.parametrize(("alpha", "eps"), [(2.0, 0.0), (2.0, 0.1), (1.5, 0.0), (3.0, 0.1)])
def test_transition_and_walk_equal_the_slow_loop(height, width, radius, alpha, eps):
    torch.manual_seed(1)
    affinity = torch.rand(2, height * width, height * width)
    planes = torch.rand(2, 3, height, width)
    expected = torch.stack([slow_transition(a, height, width, radius, alpha, eps) for a in affinity])
    found = transition_matrix(affinity, (height, width), radius, alpha, eps)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    walked = random_walk(planes, affinity, radius, alpha, eps)
    slow = torch.einsum("bij,bpj->bpi", expected, planes.flatten(2)).view_as(planes)
    torch.testing.assert_close(walked, slow, atol=1e-6, rtol=0)


def test_rows_of_the_transition_matrix_sum_to_one():
    affinity = torch.rand(1, 30, 30)
    sums = transition_matrix(affinity, (5, 6), 2).sum(dim=-1)
    torch.testing.assert_close(sums, torch.ones(1, 30), atol=1e-6, rtol=0)


def test_a_token_without_affinity_walks_to_zero_not_to_nan():
    affinity = torch.zeros(1, 9, 9)
    assert torch.equal(random_walk(torch.rand(1, 2, 3, 3), affinity, 1), torch.zeros(1, 2, 3, 3))
    assert torch.equal(transition_matrix(affinity, (3, 3), 1), affinity)


def test_walk_refuses_an_affinity_of_another_grid():
    with pytest.raises(ShapeError, match="expected B x 12 x 12"):
        random_walk(torch.rand(1, 2, 3, 4), torch.rand(1, 9, 9), 1)


def test_affinity_label_by_hand():
    label = torch.tensor([[[1, 1, 255], [0, 0, 1]]]).repeat_interleave(16, 1).repeat_interleave(16, 2)
    found = affinity_label(label, (2, 3), radius=1)[0]
    x = 255
    expected = torch.tensor(
        [
            [1, 1, x, 0, 0, x],  # token 0 (class 1): 2 and 5 lie two columns away
            [1, 1, x, 0, 0, 1],
            [x, x, x, x, x, x],  # an ignored token has no pairs
            [0, 0, x, 1, 1, x],
            [0, 0, x, 1, 1, 0],
            [x, 1, x, x, 0, 1],
        ],
        dtype=torch.uint8,
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("height", "width", "grid"), [(33, 47, (3, 3)), (30, 61, (5, 4)), (9, 5, (9, 5))])
def test_affinity_label_lies_on_the_grid_it_is_given(height, width, grid):
    """Pair by pair: token (y, x) has the label of the pixel at (floor(y h / hs), floor(x w / ws))."""
    label = torch.randint(0, 4, (2, height, width), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    label[label == 3] = 255
    found = affinity_label(label, grid, radius=2)
    cells = [(y, x) for y in range(grid[0]) for x in range(grid[1])]
    for i, (y, x) in enumerate(cells):
        for j, (v, u) in enumerate(cells):
            for b in range(2):
                one = int(label[b, y * height // grid[0], x * width // grid[1]])
                other = int(label[b, v * height // grid[0], u * width // grid[1]])
                unused = 255 in (one, other) or max(abs(y - v), abs(x - u)) > 2
                assert found[b, i, j] == (255 if unused else int(one == other))


def test_affinity_label_refuses_more_tokens_than_pixels():
    with pytest.raises(ShapeError, match="at least a pixel for each"):
        affinity_label(torch.zeros(1, 15, 40), (16, 3), 8)


def test_golden_affinity_label_and_propagation():
    from afactl.method.cam import normalize_cam
    from afactl.method.pseudo_labels import propagate

    values = golden.load("pseudo")
    found = affinity_label(values["refined_label"], (8, 10), int(values["radius"]))
    assert torch.equal(found, values["affinity_label"])
    cam = torch.nn.functional.interpolate(values["cam_lowres"], size=(128, 160), mode="bilinear")
    cam = normalize_cam(cam**1.6)
    for i in range(2):
        classes = values["class_label"][i].nonzero()[:, 0]
        high, low = propagate(cam[i, classes], values["affinity"][i], (8, 10), (0.55, 0.35), 3, eps=0.1)
        channels = torch.cat([torch.zeros(1, dtype=torch.long), classes + 1])
        torch.testing.assert_close(high, values["propagated_high"][i, channels], atol=1e-4, rtol=0)
        torch.testing.assert_close(low, values["propagated_low"][i, channels], atol=1e-4, rtol=0)
