"""How training calls the network: in less than single precision, compiled, or as it is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bestepoch.schema import Cnn, Device, Settings


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


def settled(settings: Settings, device: torch.device) -> Settings:
    """The settings with the precision that `auto` means on this device: a run is known by what it was trained in.

    bfloat16 is for processors that multiply matrices of it (AMX), where an update of the default network takes three
    quarters of the time. On others, and on GPUs, it was not seen to be faster, nor for the networks of mlp and lenet.
    """
    if settings.device.precision != "auto":
        return settings
    pays = device.type == "cpu" and isinstance(settings.model, Cnn) and _multiplies_bfloat16()
    precision = "bfloat16" if pays else "float32"
    return settings.model_copy(update={"device": settings.device.model_copy(update={"precision": precision})})


def _multiplies_bfloat16() -> bool:
    if not hasattr(torch.cpu, "get_capabilities"):  # an older torch does not say
        return False
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def trained_as(settings: Device, network: nn.Module) -> nn.Module:
    """The network for training's forward passes, with the same weights; evaluation takes the one that was given.

    Args:
        settings: `settled`.
    """
    if settings.precision == "bfloat16":
        network = Autocast(network)
    if settings.compile is not None:
        network = torch.compile(network, mode=settings.compile)  # type: ignore[assignment]
    return network
