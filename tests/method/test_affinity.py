import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from afactl.errors import ShapeError
from afactl.method import affinity
from afactl.method.affinity import (
    Walk,
    affinity_label,
    affinity_logits,
    affinity_rows,
    affinity_windows,
    attention_logits,
    attention_windows,
    half_windows,
    log_sigmoid,
    mean_attention,
    neighborhood_mask,
    random_walk,
    whole_windows,
    window_reach,
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


def slow_windows(matrix, height, width, radius):
    """Window form of a B x N x N matrix, pair by pair."""
    reach = min(radius, max(height, width) - 1)
    out = torch.full((len(matrix), height, width, (2 * reach + 1) ** 2), -torch.inf, dtype=matrix.dtype)
    for y in range(height):
        for x in range(width):
            neighbours = [(y + a, x + b) for a in range(-reach, reach + 1) for b in range(-reach, reach + 1)]
            for j, (ny, nx) in enumerate(neighbours):
                if 0 <= ny < height and 0 <= nx < width:
                    out[:, y, x, j] = matrix[:, y * width + x, ny * width + nx]
    return out


def slow_walk(planes, log_affinity, radius, alpha, eps):
    """Eq. 6 and 7 token by token in float64; P x hs x ws planes, N x N logarithms."""
    count, height, width = planes.shape
    source, out = planes.double().flatten(1), torch.zeros(count, height * width, dtype=torch.float64)
    for i in range(height * width):
        near = [
            j for j in range(height * width) if max(abs(i // width - j // width), abs(i % width - j % width)) <= radius
        ]
        scores = alpha * log_affinity[i, near].double()
        row = scores.exp() / (scores.exp().sum() + eps) if eps > 0 else torch.softmax(scores, 0)
        out[:, i] = source[:, near] @ row
    return out.view(count, height, width)


def walk_of(planes, matrix, radius, alpha=2.0, eps=0.0):
    """`random_walk` of B x P x hs x ws planes by a B x N x N matrix of logarithms."""
    return random_walk(planes, slow_windows(matrix, *planes.shape[2:], radius), Walk(radius, alpha, eps))


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


def test_rows_of_some_tokens_are_those_of_all():
    torch.manual_seed(0)
    queries, keys = torch.randn(2, 2, 6, 12, 5)
    weight, bias = torch.randn(6), torch.tensor(0.3)
    found = affinity_rows(queries, keys, weight, bias, [7, 0, 7])
    torch.testing.assert_close(found, affinity_logits(queries, keys, weight, bias)[:, [7, 0, 7]], atol=1e-5, rtol=1e-5)


# Grids below, at and beyond the tile of 8 x 16 tokens; a radius beyond the grid reaches as far as the grid.
GRIDS = [(4, 5, 1), (1, 6, 2), (3, 4, 9), (4, 4, 0), (8, 16, 2), (9, 17, 3), (19, 35, 2), (1, 1, 8)]


@pytest.mark.parametrize(("height", "width", "radius"), GRIDS)
def test_windows_hold_the_pairs_of_neighbours(height, width, radius):
    torch.manual_seed(0)
    queries, keys = torch.randn(2, 2, 3, height * width, 5)
    weight, bias = torch.randn(3), torch.tensor(0.3)
    expected = slow_windows(affinity_logits(queries, keys, weight, bias), height, width, radius)
    found = affinity_windows(queries, keys, weight, bias, (height, width), radius)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    expected = slow_windows(mean_attention(queries, keys).log(), height, width, radius)
    torch.testing.assert_close(attention_windows(queries, keys, (height, width), radius), expected, atol=1e-4, rtol=0)
    assert found.shape[3] == (2 * window_reach(radius, (height, width)) + 1) ** 2


@pytest.mark.parametrize(("height", "width", "radius"), GRIDS)
def test_a_symmetric_matrix_comes_back_from_its_half(height, width, radius):
    matrix = torch.randn(2, height * width, height * width)
    windows = slow_windows(matrix + matrix.transpose(1, 2), height, width, radius)
    half = half_windows(windows)
    assert half.shape[3] == (windows.shape[3] + 1) // 2
    assert torch.equal(whole_windows(half), windows)


def test_the_attention_of_a_far_away_token_does_not_vanish():
    """A token that attends to one outside its window with all its weight still has an order of its neighbours."""
    queries = torch.zeros(1, 1, 20, 1)
    queries[0, 0, 0] = 1
    keys = torch.linspace(0, 4000, 20)[None, None, :, None]
    found = attention_windows(queries, keys, (1, 20), 2)[0, 0, 0]
    torch.testing.assert_close(found.view(5, 5)[2, 2:], keys[0, 0, :3, 0] - 4000)


@pytest.mark.parametrize(("height", "width", "radius"), GRIDS)
@pytest.mark.parametrize(("alpha", "eps"), [(2.0, 0.0), (2.0, 0.1), (1.5, 0.0), (3.0, 0.1)])
def test_the_walk_equals_the_slow_loop(height, width, radius, alpha, eps):
    torch.manual_seed(1)
    matrix = F.logsigmoid(20 * torch.randn(2, height * width, height * width))
    planes = torch.rand(2, 3, height, width)
    walked = walk_of(planes, matrix, radius, alpha, eps)
    slow = torch.stack([slow_walk(p, m, radius, alpha, eps) for p, m in zip(planes, matrix, strict=True)])
    torch.testing.assert_close(walked, slow.float(), atol=2e-6, rtol=0)


def test_the_logarithm_of_the_affinity_is_torchs():
    logits = torch.cat([torch.linspace(-30, 30, 6001), torch.tensor([0.0, 1e-30, 104.0, -104.0, 3.4e38, -3.4e38])])
    torch.testing.assert_close(log_sigmoid(logits), F.logsigmoid(logits.double()).float(), atol=2e-7, rtol=2e-7)
    assert log_sigmoid(torch.tensor(-torch.inf)) == -torch.inf


@pytest.mark.parametrize("sign", [-1, 1, 0])
@pytest.mark.parametrize(("size", "alpha"), [(300.0, 2.0), (300.0, 0.25), (1e4, 2.0), (1e30, 1e6), (3.4e38, 2.0)])
def test_no_row_vanishes_whatever_the_logits(sign, size, alpha):
    """Logits of one sign or of both, up to the largest float: the walk is the one of float64, rows sum to 1."""
    torch.manual_seed(0)
    logits = size * (2 * torch.rand(1, 30, 30) - 1)
    logits = logits.abs() * sign if sign else logits
    planes = torch.rand(1, 3, 5, 6)
    walked = walk_of(planes, log_sigmoid(logits), 2, alpha)
    expected = slow_walk(planes[0], F.logsigmoid(logits.double())[0], 2, alpha, 0.0)
    # A float32 of 300 is known to 1.5e-5, and that is an error of the logarithm.
    torch.testing.assert_close(walked[0], expected.float(), atol=1e-4, rtol=0)
    torch.testing.assert_close(walk_of(torch.ones(1, 1, 5, 6), log_sigmoid(logits), 2, alpha), torch.ones(1, 1, 5, 6))


@given(
    st.integers(1, 5),
    st.integers(1, 5),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.floats(1e-3, 1e3),
)
def test_radius_zero_gives_the_planes_back(height, width, logit, alpha):
    planes = torch.rand(1, 2, height, width)
    logits = torch.full((1, height, width, 1), logit)
    assert torch.equal(random_walk(planes, log_sigmoid(logits), Walk(0, alpha)), planes)


@pytest.mark.parametrize("tile", [(1, 1), (3, 2), (5, 40)])
@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_tiles_change_nothing(monkeypatch, tile, eps):
    torch.manual_seed(0)
    queries, keys = torch.randn(2, 2, 3, 6 * 9, 4)
    arguments, planes = (queries, keys, torch.randn(3), torch.tensor(0.1), (6, 9), 3), torch.rand(2, 4, 6, 9)

    def everything():
        logits, attention = affinity_windows(*arguments), attention_windows(queries, keys, (6, 9), 3)
        walked = random_walk(planes, log_sigmoid(logits), Walk(3, 2.0, eps))
        return logits, attention, walked

    expected = everything()
    monkeypatch.setattr(affinity, "_TILE", tile)
    for found, one in zip(everything(), expected, strict=True):
        torch.testing.assert_close(found, one, atol=1e-5, rtol=0)


def test_with_eps_tiny_rows_vanish_as_the_authors_do():
    logits = torch.full((1, 9, 9), -60.0)  # sigmoid and its square are 9e-27 and 8e-53: zero in float32
    assert not walk_of(torch.ones(1, 2, 3, 3), F.logsigmoid(logits), 1, eps=0.1).any()
    walked = walk_of(torch.ones(1, 1, 3, 3), F.logsigmoid(torch.zeros(1, 9, 9)), 1, eps=0.1)
    torch.testing.assert_close(walked[0, 0, 1, 1], torch.tensor(9 / 4 / (9 / 4 + 0.1)))


def test_walk_refuses_an_affinity_of_another_grid_or_radius():
    with pytest.raises(ShapeError, match="expected 1 x 3 x 4 x 9 for radius 1"):
        random_walk(torch.rand(1, 2, 3, 4), torch.rand(1, 3, 3, 9), Walk(1))
    with pytest.raises(ShapeError, match="expected 1 x 3 x 4 x 25 for radius 2"):
        random_walk(torch.rand(1, 2, 3, 4), torch.rand(1, 3, 4, 9), Walk(2))
    with pytest.raises(ShapeError, match="expected B x n x 12 x d"):
        affinity_windows(*torch.rand(2, 1, 2, 9, 5), torch.rand(2), torch.tensor(0.0), (3, 4), 1)


@pytest.mark.parametrize("values", [(-1, 2.0, 0.0), (1, 0.0, 0.0), (1, 2.0, -0.1), (1, float("nan"), 0.0)])
def test_a_walk_has_values_in_their_range(values):
    with pytest.raises(ShapeError, match="expected radius >= 0, alpha > 0 and eps >= 0"):
        Walk(*values)


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
        logarithm = slow_windows(values["affinity"][i : i + 1].log(), 8, 10, 3)[0]
        high, low = propagate(cam[i, classes], logarithm, (0.55, 0.35), Walk(3, eps=0.1))
        channels = torch.cat([torch.zeros(1, dtype=torch.long), classes + 1])
        torch.testing.assert_close(high, values["propagated_high"][i, channels], atol=1e-4, rtol=0)
        torch.testing.assert_close(low, values["propagated_low"][i, channels], atol=1e-4, rtol=0)
