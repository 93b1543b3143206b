"""Batch normalisation with statistics of the whole batch, which is sharded over several processes.

GPUs use `torch.nn.SyncBatchNorm`, which does not support the CPU. Formulas: Ioffe and Szegedy,
https://arxiv.org/abs/1502.03167
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


def convert_sync_batchnorm(network: nn.Module) -> None:
    """Synchronise the batch normalisation of ``network`` across processes, in place; parameter names do not change."""
    if next(network.parameters()).device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return
    # the replacement that the warning names is missing from older PyTorch versions
    warnings.filterwarnings("ignore", r"torch\.distributed\.nn\.functional\.all_reduce is deprecated", FutureWarning)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = CpuSyncBatchNorm  # differs only in forward


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` with statistics over all processes.

    Autograd differentiates the two all-reduces of forward, so backward has two all-reduces as well.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` of shape ``(N, C, H, W)``, where ``N`` may be 0 on some processes; return the same shape."""
        if not self.training:
            return super().forward(x)
        values, dims = x.to(self.weight.dtype), (0, 2, 3)  # float32, because bfloat16 cannot represent the count
        count = values.new_tensor([values.numel() // self.num_features])
        sums: Tensor = all_reduce(torch.cat([values.sum(dims), count]))  # type: ignore[no-untyped-call]
        total, count = sums[:-1], sums[-1:]
        mean = total / count
        values = values - mean.view(1, -1, 1, 1)
        var: Tensor = all_reduce(values.square().sum(dims)) / count  # type: ignore[no-untyped-call]
        with torch.no_grad():  # running_var is the unbiased variance, as in PyTorch
            assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1).clamp(min=1)), self.momentum)
        scale = self.weight * (var + self.eps).rsqrt()
        y: Tensor = values * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return y.to(x.dtype)
