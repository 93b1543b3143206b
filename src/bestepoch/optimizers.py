"""The optimizers of ``conf/optimizer/``, which are PyTorch's own."""

from __future__ import annotations

import inspect
from typing import TypeVar, cast

import torch
from torch import nn

from bestepoch.schema import Adam, AdamW, RmsProp, Sgd

Kind = TypeVar("Kind", bound="type[torch.optim.Optimizer]")


def without_compiler(kind: Kind) -> Kind:
    """``kind``, but for the decorators of its methods that import ``torch._dynamo`` on their first call.

    They keep the compiler out of these methods, and cost every process as long as the rest of PyTorch does. Here only
    a network is ever compiled, so there is nothing to keep out.
    """
    names = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    methods["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    return cast(Kind, type(kind.__name__, (kind,), methods))


def build(menu: Sgd | Adam | AdamW | RmsProp, network: nn.Module) -> torch.optim.Optimizer:
    """The one that the settings name. Weight decay acts on weights, not on biases and normalisation."""
    weights = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": menu.weight_decay}, {"params": others, "weight_decay": 0.0}]
    match menu:
        case Sgd():
            sgd = without_compiler(torch.optim.SGD)
            return sgd(groups, lr=menu.lr, momentum=menu.momentum, nesterov=menu.nesterov, fused=True)
        case Adam():
            adam = without_compiler(torch.optim.Adam)
            return adam(groups, lr=menu.lr, betas=(menu.betas[0], menu.betas[1]), fused=True)
        case AdamW():
            adamw = without_compiler(torch.optim.AdamW)
            return adamw(groups, lr=menu.lr, betas=(menu.betas[0], menu.betas[1]), fused=True)
        case RmsProp():
            rmsprop = without_compiler(torch.optim.RMSprop)
            return rmsprop(groups, lr=menu.lr, alpha=menu.alpha, momentum=menu.momentum)
