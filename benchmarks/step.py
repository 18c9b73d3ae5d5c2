"""A whole training step against plain cross-entropy on the same network: python benchmarks/step.py [SIDE]"""

import sys
from collections.abc import Callable
from functools import partial

import naive
import torch
from ratio import compare, machine, peak_memory, picture

from afactl.machine.allocator import keep_freed_memory
from afactl.method.schedule import Phase
from afactl.network.model import AFA
from afactl.presets import load_preset
from afactl.training.step import supervised_losses, training_losses


def backward(losses: dict[str, torch.Tensor]) -> None:
    sum(losses.values()).backward()


def one_step(losses: Callable[[], dict[str, torch.Tensor]]) -> None:
    """Forward and backward."""
    backward(losses())


def inputs(side: int) -> tuple[AFA, torch.Tensor, torch.Tensor, torch.Tensor]:
    """MiT-B1, and two pictures with their labels and boxes."""
    torch.manual_seed(0)
    model = AFA("mit_b1", 20).train()
    image = torch.stack([picture(side, side, seed) for seed in range(2)]).to(torch.uint8)
    label, box = torch.zeros(2, 20), torch.tensor([[0, side, 0, side]] * 2)
    label[0, :2] = label[1, 3] = 1
    return model, image, label, box


if __name__ == "__main__":
    machine()
    keep_freed_memory()  # as the command line does
    side = int(sys.argv[1]) if len(sys.argv) > 1 else 512
    model, image, label, box = inputs(side)
    mask = torch.randint(0, 21, (2, side, side), dtype=torch.uint8)
    plain = partial(one_step, partial(supervised_losses, model, image, mask, load_preset("voc")))
    print(f"MiT-B1, batch 2, {side}, float32; the ratio is how much longer the AFA step takes")
    for title, changes in (("without the energy loss", ["loss.reg=0"]), ("with it", [])):
        step = partial(training_losses, model, image, label, box, Phase.PROPAGATED, load_preset("voc", changes))
        compare(f"  {title}", plain, partial(one_step, step), "AFA step")
    preset = load_preset("voc", ["loss.reg=0"])
    compare(
        "  against the naive step, without the energy loss",
        lambda: backward(training_losses(model, image, label, box, Phase.PROPAGATED, preset)),
        lambda: backward(naive.training_step(model, image, label, box, preset)[0]),
        "naive",
        rounds=1,
    )
    setup = "import sys; sys.path.insert(0, 'benchmarks'); from step import *; keep_freed_memory()\n"
    setup += f"model, image, label, box = inputs({side})"
    job = "for _ in range(3):\n"
    job += "    losses = training_losses(model, image, label, box, Phase.PROPAGATED, load_preset('voc', []))\n"
    job += "    backward(losses); model.zero_grad()"
    other = "backward(naive.training_step(model, image, label, box, load_preset('voc', []))[0])"
    print(
        f"  peak memory above the network and the pictures: three steps {peak_memory(setup, job):.0f} MiB, "
        f"one naive step {peak_memory(setup, other):.0f} MiB"
    )
