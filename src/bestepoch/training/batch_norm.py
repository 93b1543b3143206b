"""Batch normalisation by the statistics of the whole batch where several processes have a part of it each.

On GPUs PyTorch's SyncBatchNorm does it, which does not work on the CPU. The formulas: Ioffe and Szegedy,
https://arxiv.org/abs/1502.03167
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


def convert_sync_batchnorm(network: nn.Module) -> None:
    """Let the batch normalisation in ``network`` look at all processes' images; weights and their names stay."""
    if next(network.parameters()).device.type == "cuda":
        # puts others in place of the modules inside
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return
    # the function that PyTorch names in place of it is not in all versions
    warnings.filterwarnings("ignore", r"torch\.distributed\.nn\.functional\.all_reduce is deprecated", FutureWarning)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = CpuSyncBatchNorm  # the same but for forward


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """What `torch.nn.BatchNorm2d` does, over all processes; (N, C, H, W), where N may be 0 in some of them.

    The sums over the processes are differentiated as well, so backward has two exchanges as forward has.
    """

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        if not self.training:
            return super().forward(x)
        values, places = x.to(self.weight.dtype), (0, 2, 3)  # bfloat16 would not hold the count
        count = values.new_tensor([values.numel() // self.num_features])
        sums: Tensor = all_reduce(torch.cat([values.sum(places), count]))  # type: ignore[no-untyped-call]
        total, count = sums[:-1], sums[-1:]
        mean = total / count
        values = values - mean.view(1, -1, 1, 1)
        var: Tensor = all_reduce(values.square().sum(places)) / count  # type: ignore[no-untyped-call]
        with torch.no_grad():  # the variance without bias, as PyTorch does
            assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1).clamp(min=1)), self.momentum)
        scale = self.weight * (var + self.eps).rsqrt()
        y: Tensor = values * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return y.to(x.dtype)
