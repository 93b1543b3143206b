"""How training calls the network: in less than single precision, compiled, or as it is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bestepoch.schema import Device


class Autocast(nn.Module):
    """A network whose convolutions and matrix products are in bfloat16; its weights and logits are float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, height, width) to (n, classes)."""
        with torch.autocast(pixels.device.type, torch.bfloat16):
            logits: Tensor = self.network(pixels)
        return logits.float()


def trained_as(settings: Device, network: nn.Module) -> nn.Module:
    """The network for training's forward passes, with the same weights; evaluation takes the one that was given."""
    if settings.precision is not None:
        network = Autocast(network)
    if settings.compile is not None:
        network = torch.compile(network, mode=settings.compile)  # type: ignore[assignment]
    return network
