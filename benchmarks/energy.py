"""The energy loss, forward and backward, against bilateral passes of pydensecrf: python benchmarks/energy.py"""

import numpy as np
import torch
from pydensecrf.densecrf import DenseCRF2D
from ratio import compare, machine, picture

from afactl.method.losses import energy_loss

if __name__ == "__main__":
    machine()
    images = torch.stack([picture(256, 256, seed) for seed in range(4)])
    logits = torch.nn.functional.interpolate(
        torch.randn(4, 21, 32, 32) * 3, size=(256, 256), mode="bilinear"
    ).requires_grad_()
    label = torch.full((4, 256, 256), 255)

    def ours() -> None:
        logits.grad = None
        energy_loss(images, logits, label, sigma_xy=50.0, scale=1.0).backward()

    halves = [np.ascontiguousarray(one.permute(1, 2, 0).to(torch.uint8).numpy()) for one in images]
    unary = np.ascontiguousarray(np.random.default_rng(0).random((21, 256 * 256), dtype=np.float32))

    def passes() -> None:
        for one in halves:
            for _ in range(2):  # one forward, one backward
                crf = DenseCRF2D(256, 256, 21)
                crf.setUnaryEnergy(unary)
                crf.addPairwiseBilateral(sxy=50, srgb=15, rgbim=one, compat=1)
                crf.inference(1)

    compare("energy loss 4 x 21 x 256 x 256, forward + backward", ours, passes, "8 bilateral passes of pydensecrf")
