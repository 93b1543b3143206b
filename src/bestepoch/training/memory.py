"""Estimate the memory of a training before it begins."""

from __future__ import annotations

import psutil
import torch

from bestepoch.base.config.schema import Config
from bestepoch.base.errors import UsageError
from bestepoch.components.data.split import Split
from bestepoch.components.models.networks import build_network

BYTES_PER_WEIGHT = 4  # float32
# Besides the weights and their gradients: momentum, or the two moments of Adam.
OPTIMIZER_STATES = {"sgd": 1, "rmsprop": 2, "adam": 2, "adamw": 2}


def count_weights(config: Config, split: Split) -> int:
    """Return the number of weights of the configured network, without allocating them."""
    with torch.device("meta"):
        network = build_network(config.model, split.shape, split.classes, 0.0, 1.0)
    return sum(weight.numel() for weight in network.parameters())


def check_memory(config: Config, split: Split, device: torch.device) -> int:
    """Return the number of weights; refuse a network whose training cannot fit into the device's memory.

    Activations and data come on top, so a network that passes may still be too large.

    Raises:
        UsageError: weights, gradients and the optimizer's state alone need more than the device has.
    """
    if device.type == "cuda":
        available = torch.cuda.get_device_properties(device).total_memory
    else:
        available = psutil.virtual_memory().total
    weights, copies = count_weights(config, split), 2 + OPTIMIZER_STATES[config.optimizer.name]
    needed = weights * copies * BYTES_PER_WEIGHT
    if needed > available:
        raise UsageError(
            f"model={config.model.name} has {weights:.3g} weights here: with gradients and the state of "
            f"{config.optimizer.name}, {copies} × {BYTES_PER_WEIGHT} bytes each, that is {needed / 1e9:,.0f} GB, and "
            f"{device.type} has {available / 1e9:,.0f} GB. Make the network smaller"
        )
    return weights
