"""A hybrid backbone with its convolutions in channels-last order, as it is, against torch's own order.

python benchmarks/hybrid.py [NAME]   (timm's name; tf_efficientnet_lite0; batch 8, 160)
"""

import copy
import sys

import torch
from ratio import compare, machine

from afactl.machine.allocator import keep_freed_memory
from afactl.network.backbones.hybrid import Hybrid


def step(body: torch.nn.Module, image: torch.Tensor) -> None:
    """Forward and backward through the convolutional stages."""
    sum(stage.mean() for stage in body(image)).backward()


if __name__ == "__main__":
    machine()
    keep_freed_memory()
    name = sys.argv[1] if len(sys.argv) > 1 else "tf_efficientnet_lite0"
    ours = Hybrid(name, 0.0).body.train()
    other = copy.deepcopy(ours).to(memory_format=torch.contiguous_format)
    image = torch.randn(8, 3, 160, 160)
    last = image.contiguous(memory_format=torch.channels_last)
    compare(f"{name}, forward and backward", lambda: step(ours, last), lambda: step(other, image), "rows first", 9)
    ours.eval(), other.eval()
    with torch.no_grad():
        compare(f"{name}, forward", lambda: ours(last), lambda: other(image), "rows first", 9)
