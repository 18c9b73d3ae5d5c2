"""One step of training: the sum of the weighted terms, the update, what is left alone, and what each setting does."""

import copy
import itertools
import math
import threading

import pytest
import torch
from torch.utils.data import default_collate

from afactl.datasets.registry import load_split
from afactl.datasets.training_stream import Crops, TrainingStream
from afactl.method.schedule import Phase
from afactl.training import step as training_step
from afactl.training.prepared import prepare
from afactl.training.step import StepLosses
from afactl.training.updater import Updater, noise_seed
from tests.conftest import tiny_preset

CPU = torch.device("cpu")
LAST = 3  # number of a step in the phase of propagated labels


def made(data):
    """Steps 0, 1 and 2 are those of the three phases; without stochastic depth a pass repeats itself."""
    preset = tiny_preset(data, "model.drop_path=0.0", "train.effective_batch=4", "loss.reg=0.01")
    return Updater(prepare(preset, CPU), threading.Event())


@pytest.fixture
def updater(tiny_data):
    return made(tiny_data)


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


@pytest.mark.parametrize("step", [1, 2])
def test_the_means_are_those_of_the_step_whatever_its_batches(tiny_data, parts, step):
    """But for batch norm, which sees one batch at a time, so that there is none here."""
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0] if name != "image_id"}
    taken = []
    for batches in ([whole], parts):
        updater = made(tiny_data)
        updater.model.decoder.norm, updater.model.decoder.dropout.p = torch.nn.Identity(), 0.0
        taken.append(updater.take(step, batches).losses)
    assert taken[0] == pytest.approx(taken[1], abs=1e-5)


def test_gradients_of_the_step_before_are_forgotten(updater, parts):
    updater.take(0, parts)
    updater.model.classifier.grad.fill_(1e6)
    updater.take(0, parts)
    assert updater.model.classifier.grad.abs().max() < 1e3


def test_a_loss_that_is_not_finite_leaves_the_weights_alone(updater, parts):
    before = weights(updater)
    forward = updater.losses.forward
    updater.losses.forward = lambda *given: {name: loss * math.inf for name, loss in forward(*given).items()}
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


def updater_of(data, *changes):
    return Updater(prepare(tiny_preset(data, *changes), CPU), threading.Event())


@pytest.fixture(scope="module")
def batch():
    """Two soft pictures with their labels, in which PAR and the walk find regions."""
    torch.manual_seed(0)
    soft = torch.nn.functional.interpolate(torch.rand(2, 3, 9, 9), size=(64, 64), mode="bicubic")
    label = torch.zeros(2, 6)
    label[0, [0, 3]] = label[1, 2] = 1
    return {
        "image": soft.clamp(0, 1).mul(255).to(torch.uint8),
        "label": label,
        "box": torch.tensor([[0, 64, 0, 64], [2, 60, 0, 64]]),
        "image_id": ["a", "b"],
    }


def held(updater):
    """Keep the weights: only losses and gradients are looked at."""
    updater.optimizer.step = lambda: None
    return updater


def test_the_loss_is_the_weighted_sum_and_so_are_the_gradients(tiny_data, batch):
    weights = {"cls": 0.7, "seg": 0.3, "aff": 0.2, "reg": 0.05}
    changes = [f"loss.{name}={weight}" for name, weight in weights.items()]
    taken = held(updater_of(tiny_data, *changes)).take(LAST, [batch])
    assert set(taken.losses) == set(weights)
    assert taken.loss == pytest.approx(sum(weights[name] * loss for name, loss in taken.losses.items()), rel=1e-5)

    def gradients(seg, aff):
        updater = held(updater_of(tiny_data, f"loss.seg={seg}", f"loss.aff={aff}", "loss.reg=0"))
        updater.take(LAST, [batch])
        return updater.model.decoder.predict.bias.grad, updater.model.affinity_head.weight.grad

    one, other = gradients(0.1, 0.4), gradients(0.3, 0.2)
    torch.testing.assert_close(other[0], 3 * one[0])
    torch.testing.assert_close(other[1], 0.5 * one[1])


def test_the_rate_warms_up_and_decays(tiny_data, batch):
    changes = [
        "train.max_iters=10",
        "optim.warmup_iters=2",
        "optim.power=2",
        "optim.lr=0.001",
        "optim.head_lr_factor=5",
    ]
    updater = held(updater_of(tiny_data, *changes, "optim.warmup_ratio=0.5", "train.cls_warmup_iters=10"))
    rates = []
    for step in range(10):
        taken = updater.take(step, [batch])
        backbone, heads = (group["lr"] for group in updater.optimizer.param_groups)
        assert taken.rate == backbone and heads == pytest.approx(5 * backbone)
        rates.append(backbone)
    assert rates == pytest.approx([0.0005, 0.00075, *(0.001 * (1 - step / 10) ** 2 for step in range(2, 10))])


def test_the_optimizer_is_the_presets(tiny_data, batch):
    """The first step of AdamW: p (1 - lr decay) - lr sign(g), whatever the betas; the second shows these."""
    changes = ["optim.lr=0.01", "optim.weight_decay=0.3", "optim.betas=[0.6,0.7]", "optim.warmup_iters=0"]
    updater = updater_of(tiny_data, *changes, "optim.head_lr_factor=1", "optim.power=1", "train.cls_warmup_iters=4")
    weight = updater.model.classifier
    before = weight.detach().clone()
    updater.take(0, [batch])
    first = weight.grad.clone()
    after = before * (1 - 0.01 * 0.3) - 0.01 * first / (first.abs() + 1e-8)
    torch.testing.assert_close(weight.detach(), after, atol=1e-6, rtol=1e-5)
    updater.take(1, [batch])
    second, rate = weight.grad, 0.01 * (1 - 1 / 4)
    mean = (0.6 * 0.4 * first + 0.4 * second) / (1 - 0.6**2)
    square = (0.7 * 0.3 * first**2 + 0.3 * second**2) / (1 - 0.7**2)
    expected = after * (1 - rate * 0.3) - rate * mean / (square.sqrt() + 1e-8)
    torch.testing.assert_close(weight.detach(), expected, atol=1e-6, rtol=1e-5)


def test_the_phases_begin_where_the_preset_says(tiny_data, batch):
    updater = held(updater_of(tiny_data, "train.cls_warmup_iters=1", "train.aff_warmup_iters=2"))
    phases = [updater.take(step, [batch]).phase for step in range(4)]
    assert phases == [Phase.CLASSIFICATION, Phase.REFINED, Phase.REFINED, Phase.PROPAGATED]


def test_a_run_without_the_branch_never_propagates(tiny_data, batch, monkeypatch):
    called = []
    original = training_step.propagated_label
    monkeypatch.setattr(training_step, "propagated_label", lambda *given: called.append(1) or original(*given))
    without = held(updater_of(tiny_data, "affinity.enabled=false")).take(LAST, [batch])
    assert without.phase is Phase.REFINED and "aff" not in without.losses and not called
    branched = held(updater_of(tiny_data)).take(LAST, [batch])
    assert branched.phase is Phase.PROPAGATED and called


@pytest.mark.parametrize(
    ("change", "terms"),
    [
        ("affinity.eps=0.5", {"seg"}),
        ("affinity.alpha=6", {"seg"}),
        ("affinity.radius=1", {"seg", "aff"}),
        ("cam.beta_high=0.9", {"seg", "aff"}),
        ("cam.refiner=none", {"seg", "aff"}),
        ("par.w1=3", {"seg", "aff"}),
    ],
)
def test_settings_of_the_labels_change_the_terms_that_they_bear_on(tiny_data, batch, change, terms):
    plain, changed = (
        held(updater_of(tiny_data, "optim.lr=1e-9", *more)).take(LAST, [batch]).losses for more in ((), (change,))
    )
    assert {name for name in plain if plain[name] != changed[name]} == terms


def test_each_step_draws_its_own_noise_and_again_the_same(tiny_data, batch, monkeypatch):
    """Of dropout and stochastic depth; by the seed, the number of the step and the process."""
    changes = ("model.drop_path=0.9", "train.cls_warmup_iters=9", "train.max_iters=9")
    updater = held(updater_of(tiny_data, *changes))
    losses = [updater.take(step, [batch]).loss for step in (0, 1, 2, 0)]
    assert losses[0] == losses[3] and len(set(losses)) == 3
    other = held(updater_of(tiny_data, *changes, "train.seed=1"))
    other.model.load_state_dict(updater.model.state_dict())
    assert other.take(0, [batch]).loss not in losses
    monkeypatch.setattr("afactl.machine.distributed.rank", lambda: 1)
    assert updater.take(0, [batch]).loss not in losses


def test_steps_of_two_seeds_or_processes_draw_no_noise_twice():
    """In the lower 32 bits, which are all that torch's generator on the CPU takes."""
    draws = [noise_seed(seed, step, rank) for seed in range(4) for step in (0, 1, 79_999) for rank in range(8)]
    assert len(set(draws)) == len(draws) and all(0 <= draw < 2**32 for draw in draws)
    assert [noise_seed(0, step, 0) for step in (0, 5)] == [0, 5], "as ever for the default seed"
    ordered = sorted(noise_seed(seed, 0, rank) for seed in range(16) for rank in range(8))
    assert min(b - a for a, b in itertools.pairwise(ordered)) > 80_000, "as many steps as the longest recipe"
