"""How training calls the network: in less than single precision, replayed on a GPU, or as it is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bestepoch.base.config.schema import Cnn, Device, Settings
from bestepoch.base.files import UsageError
from bestepoch.training.distributed import World

BFLOAT16 = ("amx_bf16", "avx512_bf16")  # what x86 processors that multiply it have, by PyTorch's and Linux's names


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


def settled(settings: Settings, device: torch.device, world: World | None = None) -> Settings:
    """The settings with what each `auto` means on this device: a run is known by how it was trained.

    bfloat16 is for the networks of cnn, on processors with instructions that multiply it (AMX, AVX-512 BF16), where an
    update of the default one takes seven tenths to three quarters of the time, and on GPUs that do and replay updates,
    where it takes as much less. On others, and for the networks of mlp and lenet, it was not seen to be faster.

    Raises:
        UsageError: a graph is asked for that cannot be.
    """
    given = settings.device
    obstacle = _obstacle(device, world or World())
    if given.cuda_graphs is True and obstacle:
        raise UsageError(f"device.cuda_graphs = true {obstacle}: leave it at auto")
    graphs = given.cuda_graphs is not False and not obstacle
    precision = given.precision
    if precision == "auto":
        there = _multiplies_bfloat16() if device.type == "cpu" else graphs and _gpu_multiplies_bfloat16()
        precision = "bfloat16" if there and isinstance(settings.model, Cnn) else "float32"
    return settings.model_copy(
        update={"device": given.model_copy(update={"precision": precision, "cuda_graphs": graphs})}
    )


def _obstacle(device: torch.device, world: World) -> str | None:
    if device.type != "cuda":
        return f"needs a GPU of CUDA's, and training is on device.name={device.type}"
    return "takes one process" if world.size > 1 else None


def _gpu_multiplies_bfloat16() -> bool:
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _multiplies_bfloat16() -> bool:
    if not hasattr(torch.cpu, "get_capabilities"):  # an older torch does not say
        return False
    there = torch.cpu.get_capabilities()
    return any(there.get(kind) for kind in BFLOAT16)


def trained_as(settings: Device, network: nn.Module) -> nn.Module:
    """The network for training's forward passes, with the same weights; evaluation takes the one that was given.

    Args:
        settings: `settled`.
    """
    return Autocast(network) if settings.precision == "bfloat16" else network
