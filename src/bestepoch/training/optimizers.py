"""The optimizers of ``conf/optimizer/``, which are PyTorch's own."""

from __future__ import annotations

import torch
from torch import nn

from bestepoch.base.config.schema import Adam, AdamW, RmsProp, Sgd


def build(menu: Sgd | Adam | AdamW | RmsProp, network: nn.Module) -> torch.optim.Optimizer:
    """The one that the settings name. Weight decay acts on weights, not on biases and normalisation."""
    weights = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": menu.weight_decay}, {"params": others, "weight_decay": 0.0}]
    match menu:
        case Sgd():
            return torch.optim.SGD(groups, lr=menu.lr, momentum=menu.momentum, nesterov=menu.nesterov, fused=True)
        case Adam():
            return torch.optim.Adam(groups, lr=menu.lr, betas=(menu.betas[0], menu.betas[1]), fused=True)
        case AdamW():
            return torch.optim.AdamW(groups, lr=menu.lr, betas=(menu.betas[0], menu.betas[1]), fused=True)
        case RmsProp():
            return torch.optim.RMSprop(groups, lr=menu.lr, alpha=menu.alpha, momentum=menu.momentum)
