"""The permutohedral lattice against Adams et al. 2010 step by step, and against the Gaussian itself."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from afactl.errors import ShapeError
from afactl.method.refinement.lattice import build_lattice, lattice_filter


def slow_simplex(f):
    """Vertices and weights around one point, as in Adams et al., section 3; plain lists."""
    d = len(f)
    scaled = [f[i] * math.sqrt(2 / 3) * (d + 1) / math.sqrt((i + 1) * (i + 2)) for i in range(d)]
    elevated = [sum(scaled)]
    for i in range(1, d + 1):
        elevated.append(sum(scaled[i:]) - i * scaled[i - 1])
    corner = [round(e / (d + 1)) * (d + 1) for e in elevated]
    order = sorted(range(d + 1), key=lambda i: corner[i] - elevated[i])
    excess = sum(corner) // (d + 1)
    # Too high: the coordinates nearest below step down; too low: those farthest above step up.
    while excess > 0:
        corner[order.pop()] -= d + 1
        excess -= 1
    while excess < 0:
        corner[order.pop(0)] += d + 1
        excess += 1
    order = sorted(range(d + 1), key=lambda i: corner[i] - elevated[i])
    vertices, weights = [], []
    for k in range(d + 1):
        vertices.append(tuple(corner[i] + k - (d + 1) * (order.index(i) > d - k) for i in range(d + 1)))
    rest = [(elevated[i] - corner[i]) / (d + 1) for i in order]
    weights = [1 + rest[d] - rest[0]] + [rest[d - k] - rest[d - k + 1] for k in range(1, d + 1)]
    return vertices, weights


def slow_filter(features, values):
    """Splat into a dictionary, blur axis by axis, slice."""
    d = features.shape[1]
    placed = [slow_simplex(list(f)) for f in features]
    table = {}
    for (vertices, weights), value in zip(placed, values, strict=True):
        for vertex, weight in zip(vertices, weights, strict=True):
            table[vertex] = table.get(vertex, 0) + weight * value
    for axis in range(d + 1):
        step = [1] * (d + 1)
        step[axis] -= d + 1
        zero = np.zeros_like(values[0])
        table = {
            v: value + 0.5 * (table.get(tuple(np.add(v, step)), zero) + table.get(tuple(np.subtract(v, step)), zero))
            for v, value in table.items()
        }
    alpha = 1 / (1 + 2**-d)
    return np.array([alpha * sum(w * table[v] for v, w in zip(*one, strict=True)) for one in placed])


def random_points(d, n=60, seed=0, spread=3.0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.random((n, d)) * spread), torch.from_numpy(rng.random((n, 3)))


@pytest.mark.parametrize("d", [1, 2, 3, 5, 6])
def test_filter_is_the_slow_lattice(d):
    features, values = random_points(d)
    ours = lattice_filter(values, build_lattice(features))
    np.testing.assert_allclose(ours, slow_filter(features.numpy(), values.numpy()), rtol=1e-6)


def points_of_a_picture():
    """Position and colour of a small picture with an edge, noise and a ramp, in standard deviations."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:30, :36]
    colour = np.where(x > 17, 190, 60)[..., None] + y[..., None] * [1.0, 2.0, -1.0] + rng.normal(0, 6, (30, 36, 3))
    features = np.concatenate([np.stack([x, y], -1) / 12, colour / 20], axis=2).reshape(-1, 5)
    return torch.from_numpy(features), torch.from_numpy(
        np.stack([x > 17, y > 14, rng.random(x.shape)], -1).reshape(-1, 3) * 1.0
    )


@pytest.mark.parametrize(
    "points", [random_points(1, 800), random_points(2, 800), random_points(3, 800), points_of_a_picture()]
)
def test_normalised_values_are_within_5_percent_of_the_gaussian(points):
    features, values = points
    lattice = build_lattice(features.float())
    ours = lattice_filter(values.float(), lattice) / lattice_filter(torch.ones(len(features), 1), lattice)
    kernel = torch.exp(-0.5 * torch.cdist(features, features) ** 2)
    exact = kernel @ values / kernel.sum(1, keepdim=True)
    # In the mean 1 to 3 %; next to a step of the values single points are off by up to 7 % of the step.
    assert (ours - exact).norm() < 0.05 * exact.norm()
    assert (ours - exact).abs().max() < 0.1
    assert (values - exact).abs().max() > 0.3  # the filter has something to do


@settings(max_examples=60, deadline=None)
@given(
    d=st.integers(1, 6), n=st.integers(1, 30), seed=st.integers(0, 99), spread=st.sampled_from([0.0, 0.1, 3.0, 50.0])
)
def test_points_lie_inside_their_simplex(d, n, seed, spread):
    features, _ = random_points(d, n, seed, spread)
    lattice = build_lattice(features)
    assert lattice.weights.min() > -1e-9
    torch.testing.assert_close(lattice.weights.sum(1), torch.ones(n, dtype=torch.float64))
    assert all(len(set(row)) == d + 1 for row in lattice.vertices.tolist())
    assert set(lattice.vertices.flatten().tolist()) == set(range(lattice.size))


@pytest.mark.parametrize("d", [1, 3, 5])
def test_the_adjoint_is_the_transposed_operator(d):
    features, _ = random_points(d)
    lattice, eye = build_lattice(features), torch.eye(len(features), dtype=torch.float64)
    torch.testing.assert_close(lattice_filter(eye, lattice, adjoint=True), lattice_filter(eye, lattice).T)


def test_the_operator_is_not_symmetric_so_the_adjoint_matters():
    features, _ = random_points(5, n=200, spread=2.0)
    matrix = lattice_filter(torch.eye(200, dtype=torch.float64), build_lattice(features))
    assert (matrix - matrix.T).abs().max() > 1e-3


def test_gradients_agree_with_finite_differences():
    features, values = random_points(3, n=20)
    lattice = build_lattice(features)
    for adjoint in (False, True):
        job = partial(lattice_filter, lattice=lattice, adjoint=adjoint)
        assert torch.autograd.gradcheck(job, values.requires_grad_())


def test_sets_of_a_batch_do_not_see_each_other():
    features, values = random_points(3, n=40)
    features, values = features.view(2, 20, 3), values.view(2, 20, 3)
    both = lattice_filter(values.flatten(0, 1), build_lattice(features)).view(2, 20, 3)
    for i in range(2):
        torch.testing.assert_close(both[i], lattice_filter(values[i], build_lattice(features[i])))


def test_equal_points_share_their_vertices():
    lattice = build_lattice(torch.ones(50, 4))
    assert lattice.size == 5
    torch.testing.assert_close(
        lattice_filter(torch.ones(50, 2), lattice), lattice_filter(torch.ones(50, 2), lattice)[:1].expand(50, 2)
    )


def test_input_that_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match="expected n x d"):
        build_lattice(torch.zeros(0, 3))
    with pytest.raises(ShapeError, match="NaN"):
        build_lattice(torch.tensor([[float("nan")]]))
    with pytest.raises(ShapeError, match="larger standard deviations"):
        build_lattice(torch.eye(8) * 1e9)
    with pytest.raises(ShapeError, match="expected 5 x c"):
        lattice_filter(torch.zeros(4, 2), build_lattice(torch.rand(5, 2)))
