import pytest
import torch

from afactl.network.model import AFA
from afactl.presets import load_preset
from afactl.training.optimizer import build_optimizer, rest_or_count, set_learning_rate
from tests.conftest import TINY


@pytest.fixture
def model():
    torch.manual_seed(0)
    return AFA("mit_demo", 3, decoder_width=16, drop_path=0.0).train()


def test_optimizer_groups(model):
    preset = load_preset("voc")
    optimizer = build_optimizer(model, preset)
    assert set_learning_rate(optimizer, 1500, preset) == pytest.approx(5.55e-5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([5.55e-5, 5.55e-4])
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen and all("norm" in name and name.startswith("backbone.") for name in frozen)
    listed = sum(len(group["params"]) for group in optimizer.param_groups)
    assert listed + len(frozen) == len(list(model.parameters()))


def test_idle_heads_rest_or_have_a_gradient_of_zero(model):
    """AdamW leaves resting heads alone; counting ones decay by rate x weight decay, and their step is counted."""
    for idle in ("rest", "count"):
        preset = load_preset("demo", [*TINY, f"optim.idle_heads={idle}"])
        optimizer = build_optimizer(model, preset)
        before = {name: value.clone() for name, value in model.named_parameters()}
        rate = 0.1
        for group in optimizer.param_groups:
            group["lr"] = rate
        model.classify(model(torch.randn(1, 3, 32, 32))).square().sum().backward()
        rest_or_count(optimizer, preset)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        decay = 1 - rate * preset.optim.weight_decay
        for name, value in model.named_parameters():
            if name.split(".")[0] in ("decoder", "affinity_head"):
                torch.testing.assert_close(value, before[name] * (decay if idle == "count" else 1.0))
                assert (value in optimizer.state) == (idle == "count")
            elif name == "classifier":
                assert not torch.equal(value, before[name])


def test_parts_without_published_weights_learn_at_the_rate_of_the_heads():
    """The blocks of a hybrid are in the heads' group, and the norms among them are not fixed."""
    model = AFA("hybrid:resnet18", 2, decoder_width=8)
    optimizer = build_optimizer(model, load_preset("voc", ["optim.lr=1e-3", "optim.head_lr_factor=7"]))
    set_learning_rate(optimizer, 1500, load_preset("voc", ["optim.lr=1e-3", "optim.head_lr_factor=7"]))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    norms = [m for m in model.backbone.body.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(rates) == len(list(model.parameters())) - 2 * len(norms)  # each once, but what the fixed norms have
    assert norms and not any(id(m.weight) in rates or m.training for m in norms)
    backbone = rates[id(model.backbone.body.conv1.weight)]
    assert rates[id(model.backbone.norm.weight)] == rates[id(model.decoder.fuse.weight)] == pytest.approx(7 * backbone)
    assert rates[id(model.backbone.blocks[0].scale1)] == pytest.approx(7 * backbone)
