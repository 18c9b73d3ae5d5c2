import torch
from torch import nn

from afactl.network.batch_norm import BatchNorm


def test_alone_it_is_torchs(monkeypatch):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 5)
    ours, theirs = BatchNorm(3), nn.BatchNorm2d(3)
    assert torch.equal(ours(x), theirs(x)) and torch.equal(ours.running_var, theirs.running_var)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
    assert ours.state_dict().keys() == theirs.state_dict().keys()


def test_the_shared_form_equals_torchs_with_one_process(monkeypatch):
    """The sums over processes replaced by the sums of one; with two: test_distributed.py."""
    monkeypatch.setattr("afactl.machine.distributed.world_size", lambda: 2)
    monkeypatch.setattr("afactl.machine.distributed.all_reduce", lambda values: values)
    torch.manual_seed(0)
    x = (5 + 2 * torch.randn(2, 3, 4, 5)).requires_grad_()
    y = x.detach().clone().requires_grad_()
    ours, theirs = BatchNorm(3), nn.BatchNorm2d(3)
    for norm, value in ((ours, x), (theirs, y)):
        nn.init.constant_(norm.weight, 1.5)
        (norm(value) ** 3).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
