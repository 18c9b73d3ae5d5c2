"""Batch normalisation over the batches of all processes.

torch's own SyncBatchNorm runs on GPUs alone; this one goes wherever tensors can be added up.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from afactl.machine import distributed


class BatchNorm(nn.BatchNorm2d):
    """torch's BatchNorm2d, whose statistics in training are those of all processes' batches together."""

    # torch's own may go without statistics; this one never does.
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, x: Tensor) -> Tensor:
        """B x D x h x w -> the same; in training, mean and variance over B, h, w of all processes."""
        if not self.training or distributed.world_size() == 1:
            return super().forward(x)
        values = x.float()
        count = distributed.all_reduce(values.new_tensor(values.numel() // values.shape[1]))
        mean = distributed.all_reduce(values.sum(dim=(0, 2, 3))) / count
        centred = values - mean[:, None, None]
        # Squares of centred values: the mean of squares less the squared mean would lose digits.
        variance = distributed.all_reduce(centred.square().sum(dim=(0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight / (variance + self.eps).sqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)
