"""One step of training: the sum of the weighted terms, the update, and what is left alone."""

import copy
import math
import threading

import pytest
import torch
from torch.utils.data import default_collate

from afactl.datasets.registry import load_split
from afactl.datasets.training_stream import Crops, TrainingStream
from afactl.method.schedule import Phase
from afactl.training.prepared import prepare
from afactl.training.step import StepLosses
from afactl.training.updater import Updater
from tests.conftest import tiny_preset

CPU = torch.device("cpu")


@pytest.fixture
def updater(tiny_data):
    """Steps 0, 1 and 2 are those of the three phases; without stochastic depth a pass repeats itself."""
    preset = tiny_preset(tiny_data, "model.drop_path=0.0", "train.effective_batch=4", "loss.reg=0.01")
    return Updater(prepare(preset, CPU), threading.Event())


@pytest.fixture
def parts(tiny_data):
    """Views of training in two batches of two photos."""
    preset = tiny_preset(tiny_data)
    split = load_split("folder", tiny_data, preset.data.train_split)
    stream = TrainingStream(split, Crops(preset.train.crop_size, preset.train.scale_range), 0, range(4))
    return [default_collate([stream[2 * number], stream[2 * number + 1]]) for number in range(2)]


def weights(updater):
    return {name: value.clone() for name, value in updater.model.named_parameters()}


@pytest.mark.parametrize(
    ("step", "phase", "terms"),
    [
        (0, Phase.CLASSIFICATION, {"cls"}),
        (1, Phase.REFINED, {"cls", "seg", "aff", "reg"}),
        (2, Phase.PROPAGATED, {"cls", "seg", "aff", "reg"}),
    ],
)
def test_the_loss_is_the_weighted_sum_of_the_terms(updater, parts, step, phase, terms):
    taken = updater.take(step, parts)
    assert taken.phase is phase and set(taken.losses) == terms
    loss = updater.preset.loss
    total = sum(getattr(loss, name) * value for name, value in taken.losses.items())
    assert taken.loss == pytest.approx(total, rel=1e-5) and taken.finite and not taken.stopping


def test_parts_of_a_batch_add_up_to_one_update(updater, parts):
    """The step by hand: gradients of the mean of both parts' losses, then one step of the optimizer."""
    model, optimizer = copy.deepcopy(updater.model), copy.deepcopy(updater.optimizer)
    taken = updater.take(0, parts)
    losses = StepLosses(model, updater.preset)
    torch.manual_seed(0)
    terms = [losses({k: v for k, v in part.items() if k != "image_id"}, Phase.CLASSIFICATION)["cls"] for part in parts]
    assert taken.losses["cls"] == pytest.approx(sum(term.item() for term in terms) / 2)
    gradients = torch.autograd.grad((terms[0] + terms[1]) / 2, [model.classifier])
    torch.testing.assert_close(updater.model.classifier.grad, gradients[0], atol=1e-7, rtol=1e-4)
    assert len(optimizer.state) == 0 and all(state["step"] == 1 for state in updater.optimizer.state.values())


def test_gradients_of_the_step_before_are_forgotten(updater, parts):
    updater.take(0, parts)
    updater.model.classifier.grad.fill_(1e6)
    updater.take(0, parts)
    assert updater.model.classifier.grad.abs().max() < 1e3


def test_a_loss_that_is_not_finite_leaves_the_weights_alone(updater, parts):
    before = weights(updater)
    forward = updater.losses.forward
    updater.losses.forward = lambda batch, phase: {
        name: loss * math.inf for name, loss in forward(batch, phase).items()
    }
    taken = updater.take(0, parts)
    assert not taken.finite and not math.isfinite(taken.loss)
    assert all(torch.equal(before[name], value) for name, value in updater.model.named_parameters())
    updater.losses.forward = forward
    assert updater.take(0, parts).finite
    assert any(not torch.equal(before[name], value) for name, value in updater.model.named_parameters())


def test_random_numbers_follow_from_seed_and_step(updater, parts):
    """So a resumed run draws what an unbroken one draws."""
    drawn = []
    for step in (5, 6, 5):
        torch.rand(7)  # whatever was drawn before
        updater.take(step, parts)
        drawn.append(torch.initial_seed())
    assert drawn[0] == drawn[2] != drawn[1]


def test_a_stop_is_told_with_the_step_that_was_taken(updater, parts):
    before = weights(updater)
    updater.stop.set()
    assert updater.take(0, parts).stopping
    assert any(not torch.equal(before[name], value) for name, value in updater.model.named_parameters())


def test_the_rate_is_that_of_the_schedule(updater, parts):
    optim = updater.preset.optim
    taken = updater.take(1, parts)
    rates = [group["lr"] for group in updater.optimizer.param_groups]
    assert rates == pytest.approx([taken.rate, taken.rate * optim.head_lr_factor])
