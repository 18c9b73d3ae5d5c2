"""The recipe `voc-authors` against 14 steps of the authors' own training loop, and where the paper's choices part.

What the trace holds stands in tests/golden/README.md. Stochastic depth and dropout are off in it, and the weights to
begin with are given, so that `model.head_init` and the mode of stochastic depth show in other tests (test_step.py).
"""

import threading
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from afactl.machine.distributed import Shares
from afactl.network.backbones import BACKBONES
from afactl.network.backbones.mit import MixTransformer
from afactl.presets import load_preset
from afactl.runs.checkpoints import Architecture
from afactl.runs.foreign_weights import from_authors, to_authors
from afactl.training import step as training_step
from afactl.training.optimizer import build_optimizer
from afactl.training.prepared import Prepared
from afactl.training.step import training_losses
from afactl.training.updater import Updater
from tests import golden

CLASSES = tuple("abcdef")
STEPS = 14
SIZE = [
    "model.backbone=mit_trace",
    "model.drop_path=0",
    "train.max_iters=20",
    "train.batch_size=2",
    "train.effective_batch=2",
    "train.crop_size=128",
    "train.cls_warmup_iters=4",
    "train.aff_warmup_iters=4",
    "optim.warmup_iters=4",
]


def without_gradient(name):
    """Parameters without a gradient in exact arithmetic; AdamW makes whole steps of the rounding that is left.

    Softmax forgets what is added to all keys (the first half of kv), and a batch norm what is added before it.
    """
    return name.endswith("attn.kv.bias") or (name.startswith("decoder.linear_c") and name.endswith("bias"))


class Walk(NamedTuple):
    """What 14 steps leave: losses and rates per step, labels of the steps that have some, the weights at the end.

    Attributes:
        losses: per step, also those of the first phase that the total leaves out. refined: from step 4 on.
        propagated: from step 8 on. cam: of step 4. state: in the authors' names.
    """

    losses: list[dict[str, float]]
    rates: list[float]
    refined: list[Tensor]
    propagated: list[Tensor]
    cam: Tensor
    state: dict[str, Tensor]


@pytest.fixture(scope="module")
def trace():
    values = golden.arrays("trace_mit_trace_128")
    names = values.pop("names").tolist()
    return {"names": names, **{key: torch.from_numpy(np.asarray(value)) for key, value in values.items()}}


@pytest.fixture(scope="module", autouse=True)
def backbone():
    """The backbone of the trace, by a name that is gone after these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES._registered, "mit_trace", partial(MixTransformer, (16, 32, 40, 64), (2, 2, 2, 2)))
        yield


def batch_of(trace, step):
    image = trace["images"][step].permute(0, 3, 1, 2).contiguous()
    return {"image": image, "label": trace["labels"][step].float(), "box": trace["boxes"][step].long()}


def walk(trace, *changes, steps=STEPS):
    """Take the steps of the trace with the authors' recipe, or with some choices changed."""
    preset = load_preset("voc-authors", [*SIZE, *changes])
    architecture = Architecture("mit_trace", CLASSES, "gmp", preset.model.decoder_width, preset.model.drop_path)
    model = architecture.build().train()
    model.decoder.dropout.p = 0.0
    start = {name.removeprefix("start/"): value for name, value in trace.items() if name.startswith("start/")}
    counter = {"decoder.linear_fuse.bn.num_batches_tracked": torch.tensor(0)}
    model.load_state_dict(from_authors({name: value.float() for name, value in start.items()} | counter))
    optimizer = build_optimizer(model, preset)
    prepared = Prepared(
        preset, torch.device("cpu"), None, None, architecture, model, optimizer, Shares(2, 1, 1)
    )  # no data: batches come from the trace
    updater, labels = Updater(prepared, threading.Event()), {"refined_label": [], "propagated_label": []}
    losses, rates, cams = [], [], []
    with pytest.MonkeyPatch.context() as patch:
        for name, seen in labels.items():
            original = getattr(training_step, name)

            def noted(*given, original=original, seen=seen):
                cams.append(given[1])
                seen.append(original(*given))
                return seen[-1]

            patch.setattr(training_step, name, noted)
        for step in range(steps):
            batch, later = batch_of(trace, step), {}
            if step < 4:
                later = first_phase_losses(model, batch, preset)
                for seen in (*labels.values(), cams):
                    seen.clear()
            taken = updater.take(step, [batch])
            losses.append(later | taken.losses)
            rates.append(taken.rate)
    return Walk(losses, rates, *labels.values(), cams[0] if cams else torch.empty(0), to_authors(model.state_dict()))


def first_phase_losses(model, batch, preset):
    """What the later losses would be: the authors compute them in the first phase too, and weigh them with 0."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        found = training_losses(model, *batch.values(), training_step.Phase.REFINED, preset)
    model.load_state_dict(state)
    return {name: loss.item() for name, loss in found.items()}


@pytest.fixture(scope="module")
def authors(trace):
    return walk(trace)


def apart(found, expected):
    """The first step at which each loss differs by more than 1e-5, by name."""
    parts = {}
    for step, (one, other) in enumerate(zip(found.losses, expected.losses, strict=True)):
        for name in one:
            if abs(one[name] - other[name]) > 1e-5:
                parts.setdefault(name, step)
    return parts


def test_every_loss_and_rate_is_the_authors(trace, authors):
    for step, losses in enumerate(authors.losses):
        assert set(losses) == {"cls", "seg", "aff"}
        for name, value in losses.items():
            expected = trace[f"loss_{name}"][step].item()
            # Theirs is NaN where the photos have no foreground or no background pixel; ours counts that half as 0.
            assert np.isnan(expected) or value == pytest.approx(expected, abs=1e-5), (step, name)
    assert trace["loss_seg"].isnan().sum() == 2
    np.testing.assert_allclose(authors.rates, trace["lr"][:, 0], rtol=1e-9)


def test_every_label_and_the_cam_are_the_authors(trace, authors):
    for found, expected in ((authors.refined, trace["refined"]), (authors.propagated, trace["propagated"])):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert (one == other).float().mean() >= 0.9999
    torch.testing.assert_close(authors.cam[..., ::4, ::4], trace["cam_step4"], atol=1e-5, rtol=0)
    assert len(torch.cat(authors.refined).unique()) == 8, "all six classes, background and ignored pixels"


def test_the_weights_at_the_end_are_the_authors_batch_norm_included(trace, authors):
    """Seen: within 3e-6. The running mean adds up the biases before it, and so carries their drift."""
    tracked = "decoder.linear_fuse.bn.num_batches_tracked"
    assert authors.state[tracked].item() == trace["batches_tracked"].item() == 4 * STEPS
    assert {*trace["names"], tracked} == set(authors.state)
    reach = {"encoder": trace["lr"][:, 0].sum().item(), "decoder": trace["lr"][:, 3].sum().item()}
    for i, name in enumerate(trace["names"]):
        value, size = authors.state[name].double().flatten(), trace["weight_abs"][i].item()
        first = trace["weight_first"][i][: len(value)]
        apart_by = value[:8] - first
        if without_gradient(name):
            assert apart_by.abs().max().item() <= reach[name.split(".")[0]], name
            continue
        assert value.abs().mean().item() == pytest.approx(size, rel=1e-4), name
        assert value.mean().item() == pytest.approx(trace["weight_mean"][i].item(), abs=1e-4 * size), name
        allowed = 1e-3 if name.endswith("running_mean") else 1e-4
        assert apart_by.square().mean().sqrt().item() <= allowed * size, name


STATISTICS = ("decoder.linear_fuse.bn.running_mean", "decoder.linear_fuse.bn.running_var")


def distance(found, expected, names):
    """How far weights lie apart, relative to their norm; the largest of the names."""
    state, other = found.state, expected.state
    return max(((state[name] - other[name]).norm() / other[name].norm()).item() for name in names)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        # Resting heads take their first steps as first ones, larger than fifth ones.
        ("optim.idle_heads=rest", {"seg": 5, "aff": 5, "cls": 8}),
        # One per cent of the values one grey level higher: 2 in 10,000 pixels have another label.
        ("train.refiner_picture=exact", {"seg": 0}),
        ("affinity.eps=0.0", {"seg": 8, "cls": 11, "aff": 12}),
        ("train.affinity_label=propagated", {"aff": 8, "cls": 9, "seg": 9}),
        ("train.cls_warmup_iters=3", {"cls": 4, "seg": 4, "aff": 4}),
        ("optim.freeze=nothing", {"cls": 3, "seg": 3, "aff": 6}),
    ],
)
def test_where_the_paper_and_the_authors_part(trace, authors, change, parts):
    """The first step at which each loss differs by more than 1e-5."""
    assert apart(walk(trace, change), authors) == parts


def test_cam_passes_in_evaluation_mode_part_in_the_statistics_alone(trace, authors):
    """There is no stochastic depth here. Batch norm counts one pass per step with labels, not four per step."""
    calm = walk(trace, "train.cam_passes=evaluation")
    assert not apart(calm, authors)
    assert calm.state["decoder.linear_fuse.bn.num_batches_tracked"] == 10
    assert distance(calm, authors, STATISTICS) > 0.05
    others = [name for name in authors.state if "bn.running" not in name and "tracked" not in name]
    assert distance(calm, authors, others) < 1e-2


def test_one_mean_over_two_photos_is_that_of_a_part_of_two(trace, authors):
    """The trace has one GPU; four photos of it show that two parts are not one."""
    assert not apart(walk(trace, "loss.part_photos=null", steps=6), authors._replace(losses=authors.losses[:6]))
