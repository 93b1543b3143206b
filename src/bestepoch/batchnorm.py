"""Batch normalisation by the statistics of the whole batch where several processes have a part of it each.

PyTorch's own SyncBatchNorm works on GPUs alone. The formulas: Ioffe and Szegedy, https://arxiv.org/abs/1502.03167;
means and variances of parts are put together as in Chan, Golub and LeVeque, 1983.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm


def over_all_processes(network: nn.Module) -> None:
    """Let the batch normalisation in ``network`` look at all processes' images; weights and their names stay."""
    for module in network.modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
            module.__class__ = GlobalBatchNorm  # the same but for forward


class GlobalBatchNorm(_BatchNorm):
    """What `torch.nn.BatchNorm2d` and its kin do, over all processes; (n, channels, ...), where n may be 0."""

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        if not self.training:
            return super().forward(x)
        y, mean, var, count = _Normalised.apply(x, self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
            share = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked.item()
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(var * (count / (count - 1).clamp(min=1)), share)  # without bias, as PyTorch does
        return y  # type: ignore[no-any-return]

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected (n, channels, ...), got {tuple(input.shape)}")


class _Normalised(torch.autograd.Function):
    """One exchange forward, one backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        over, across, channels = _dimensions(x)
        own = x.new_zeros(2 * channels + 1, dtype=torch.float64)
        if x.numel():
            mean = x.mean(over)
            var = (x - mean.view(across)).square_().mean(over)  # a tenth of the time that torch.var_mean takes
            own = torch.cat([mean.double(), var.double(), own.new_full((1,), x.numel() // channels)])
        parts = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, own)
        means, variances, counts = torch.stack(parts).tensor_split([channels, 2 * channels], 1)
        count = counts.sum()
        mean = (means * counts).sum(0) / count
        var = ((variances + (means - mean) ** 2) * counts).sum(0) / count
        mean, var = mean.to(x.dtype), var.to(x.dtype)
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var, count)
        return batch_norm(x, mean, var, weight, bias, eps=eps), mean, var, count

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x, weight, mean, var, count = ctx.saved_tensors
        dx, dw, db = torch.zeros_like(x), torch.zeros_like(mean), torch.zeros_like(mean)
        if x.numel():  # as if mean and variance were constants ...
            dx, dw, db = torch.ops.aten.native_batch_norm_backward(
                dy, x, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
            )
        both = torch.stack([dw, db])
        distributed.all_reduce(both)
        # ... and what comes to x through them
        scale = (var + ctx.eps).rsqrt() / count.to(x.dtype)
        both *= scale if weight is None else scale * weight
        dx = dx - batch_norm(x, mean, var, both[0], both[1], eps=ctx.eps)
        # of weight and bias each process has its part, as of all other gradients
        return dx, *((None, None) if weight is None else (dw, db)), None


def _dimensions(x: Tensor) -> tuple[list[int], list[int], int]:
    """Those to take a mean over, the shape that a value for each channel is spread by, and the channels."""
    return [d for d in range(x.dim()) if d != 1], [1, -1, *[1] * (x.dim() - 2)], x.shape[1]
