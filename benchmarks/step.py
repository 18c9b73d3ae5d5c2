"""A whole training step against plain cross-entropy on the same network: python benchmarks/step.py [SIDE]"""

import sys
from functools import partial

import torch
from ratio import compare, machine, picture

from afactl.model import AFA
from afactl.presets import load_preset
from afactl.schedule import Phase
from afactl.training_step import supervised_losses, training_losses


def pass_through(losses: dict[str, torch.Tensor]) -> None:
    sum(losses.values()).backward()


if __name__ == "__main__":
    machine()
    side = int(sys.argv[1]) if len(sys.argv) > 1 else 512
    torch.manual_seed(0)
    model = AFA("mit_b1", 20).train()
    image = torch.stack([picture(side, side, seed) for seed in range(2)]).to(torch.uint8)
    label, box = torch.zeros(2, 20), torch.tensor([[0, side, 0, side]] * 2)
    label[0, :2] = label[1, 3] = 1
    mask = torch.randint(0, 21, (2, side, side), dtype=torch.uint8)
    plain = lambda: pass_through(supervised_losses(model, image, mask))  # noqa: E731
    for title, changes in (("without the energy loss", ["loss.reg=0"]), ("with it", [])):
        preset = load_preset("voc", changes)
        step = partial(training_losses, model, image, label, box, Phase.PROPAGATED, preset)
        print(f"MiT-B1, batch 2, {side}, float32, {title}; the ratio is how much longer the AFA step takes")
        compare("  step", plain, lambda: pass_through(step()), "AFA step", rounds=3)  # noqa: B023
