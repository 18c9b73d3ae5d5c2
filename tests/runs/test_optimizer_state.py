import pytest
import torch

from afactl.runs.checkpoints import Architecture
from afactl.runs.optimizer_state import optimizer_state, restore_optimizer

ARCHITECTURE = Architecture("mit_demo", ("cat", "dog"), "gmp", 8, 0.1)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return ARCHITECTURE.build()


def test_settings_win_over_the_state_that_was_saved(model):
    """The next step is AdamW's with the moments of the checkpoint and the rates, betas and decay of the optimizer."""
    former = torch.optim.AdamW(model.parameters(), lr=0.1)
    model.classify(model(torch.randn(1, 3, 32, 32))).sum().backward()
    former.step()
    other = ARCHITECTURE.build()
    other.load_state_dict(model.state_dict())
    rate, beta1, beta2, decay, eps = 0.03, 0.7, 0.8, 0.5, 1e-8
    optimizer = torch.optim.AdamW(other.parameters(), lr=rate, betas=(beta1, beta2), weight_decay=decay)
    restore_optimizer(other, optimizer, optimizer_state(model, former))
    (group,) = optimizer.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (rate, (beta1, beta2), decay)
    moments, weight = former.state[model.classifier], other.classifier
    gradient = torch.linspace(-1, 1, weight.numel()).reshape(weight.shape)
    first = beta1 * moments["exp_avg"] + (1 - beta1) * gradient
    second = beta2 * moments["exp_avg_sq"] + (1 - beta2) * gradient**2
    update = (first / (1 - beta1**2)) / ((second / (1 - beta2**2)).sqrt() + eps)  # the second step of the job
    expected = weight.detach() * (1 - rate * decay) - rate * update
    weight.grad = gradient
    optimizer.step()
    torch.testing.assert_close(weight.detach(), expected)


def halves(model, learned):
    """An optimizer as `build_optimizer` groups it, with the backbone's norm layers or without them."""
    norms = {
        f"backbone.{name}" for name, part in model.backbone.named_modules() if isinstance(part, torch.nn.LayerNorm)
    }
    names = [name for name, _ in model.named_parameters() if learned == "all" or name.rpartition(".")[0] not in norms]
    parameters = dict(model.named_parameters())
    groups = [[n for n in names if n.startswith("backbone.") == backbone] for backbone in (True, False)]
    return torch.optim.AdamW([{"params": [parameters[name] for name in group]} for group in groups]), names


@pytest.mark.parametrize("now", ["all", "without norms"])
@pytest.mark.parametrize("before", ["all", "without norms"])
@pytest.mark.parametrize("version", ["this", "an earlier one"])
def test_moments_go_to_the_parameters_that_they_belong_to(model, before, now, version):
    """Also where norm layers were frozen before and are not now, or the other way round."""
    optimizer, known = halves(model, before)
    for number, (_, parameter) in enumerate(model.named_parameters()):
        parameter.grad = torch.full_like(parameter, float(number))
    optimizer.step()
    state = optimizer_state(model, optimizer)
    if version != "this":  # which did not note the names
        del state["parameters"]
    other = ARCHITECTURE.build()
    fresh, learned = halves(other, now)
    restore_optimizer(other, fresh, state)
    for number, (name, parameter) in enumerate(other.named_parameters()):
        assert (parameter in fresh.state) == (name in known and name in learned), name
        if parameter in fresh.state:
            expected = torch.full_like(parameter, 0.1 * number)
            torch.testing.assert_close(fresh.state[parameter]["exp_avg"], expected, msg=name)
