"""Build the PyTorch optimizers of ``conf/optimizer/``."""

from __future__ import annotations

import torch
from torch import nn

from bestepoch.base.config.groups import AdamConfig, AdamWConfig, RmsPropConfig, SgdConfig
from bestepoch.base.private_api import without_compiler


def build_optimizer(
    config: SgdConfig | AdamConfig | AdamWConfig | RmsPropConfig, network: nn.Module
) -> torch.optim.Optimizer:
    """Return the configured optimizer. Weight decay applies to weights, not to biases and normalisation parameters."""
    weights = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    match config:
        case SgdConfig():
            sgd = without_compiler(torch.optim.SGD)
            return sgd(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=True)
        case AdamConfig():
            adam = without_compiler(torch.optim.Adam)
            return adam(groups, lr=config.lr, betas=(config.betas[0], config.betas[1]), fused=True)
        case AdamWConfig():
            adamw = without_compiler(torch.optim.AdamW)
            return adamw(groups, lr=config.lr, betas=(config.betas[0], config.betas[1]), fused=True)
        case RmsPropConfig():
            rmsprop = without_compiler(torch.optim.RMSprop)
            return rmsprop(groups, lr=config.lr, alpha=config.alpha, momentum=config.momentum)
