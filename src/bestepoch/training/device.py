"""Where the arithmetic happens, set up so that the same seed gives the same bits."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bestepoch.base.config.groups import CnnConfig
from bestepoch.base.config.schema import Config, DeviceConfig
from bestepoch.base.errors import UsageError
from bestepoch.training.distributed import DistributedContext

if TYPE_CHECKING:
    import torch


def choose_device(config: DeviceConfig, context: DistributedContext | None = None) -> torch.device:
    """The device that ``device.name`` means here, ready for repeatable results; for each process a GPU of its own.

    Raises:
        UsageError: it is not there, or cannot do what is asked of it.
    """
    import torch

    context = context or DistributedContext()
    _default_threads()
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if context.size > 1:
        del there["mps"]  # it takes one process
    name: str = config.name
    if name == "auto":
        name = next(kind for kind, present in there.items() if present)
    if not there.get(name):
        raise UsageError(
            f"device.name = {name} is not on this machine; there are: {', '.join(k for k in there if there[k])}"
        )
    if context.size > 1 and name == "cuda":
        gpus = torch.cuda.device_count()
        if context.local_size > gpus:
            raise UsageError(
                f"{context.local_size} processes need a GPU each, and this machine has {gpus}: "
                f"torchrun --nproc-per-node={gpus}, or device.name=cpu"
            )
        torch.cuda.set_device(context.local_rank)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is repeatable only with this
    torch.set_deterministic_debug_mode("error")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # costs time
    torch.set_num_threads(config.threads or _default_threads())
    return torch.device(name, context.local_rank) if context.size > 1 and name == "cuda" else torch.device(name)


@functools.cache
def _default_threads() -> int:
    """PyTorch's own choice, as it was before the first job of this process."""
    import torch

    return torch.get_num_threads()


BFLOAT16_FLAGS = (
    "amx_bf16",
    "avx512_bf16",
)  # what x86 processors that multiply it have, by PyTorch's and Linux's names


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


def resolve_auto(config: Config, device: torch.device, context: DistributedContext | None = None) -> Config:
    """The settings with what each `auto` means on this device: a run is known by how it was trained.

    bfloat16 is for the networks of cnn, on processors with instructions that multiply it (AMX, AVX-512 BF16), where an
    update of the default one takes seven tenths to three quarters of the time, and on GPUs that do and replay updates,
    where it takes as much less. On others, and for the networks of mlp and lenet, it was not seen to be faster.

    Raises:
        UsageError: a graph is asked for that cannot be.
    """
    given = config.device
    obstacle = _why_no_cuda_graph(device, context or DistributedContext())
    if given.cuda_graphs is True and obstacle:
        raise UsageError(f"device.cuda_graphs = true {obstacle}: leave it at auto")
    graphs = given.cuda_graphs is not False and not obstacle
    precision = given.precision
    if precision == "auto":
        there = _cpu_has_bfloat16() if device.type == "cpu" else graphs and _gpu_has_bfloat16()
        precision = "bfloat16" if there and isinstance(config.model, CnnConfig) else "float32"
    return config.model_copy(
        update={"device": given.model_copy(update={"precision": precision, "cuda_graphs": graphs})}
    )


def _why_no_cuda_graph(device: torch.device, context: DistributedContext) -> str | None:
    if device.type != "cuda":
        return f"needs a GPU of CUDA's, and training is on device.name={device.type}"
    return "takes one process" if context.size > 1 else None


def _gpu_has_bfloat16() -> bool:
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _cpu_has_bfloat16() -> bool:
    if not hasattr(torch.cpu, "get_capabilities"):  # an older torch does not say
        return False
    there = torch.cpu.get_capabilities()
    return any(there.get(kind) for kind in BFLOAT16_FLAGS)


def wrap_for_training(config: DeviceConfig, network: nn.Module) -> nn.Module:
    """The network for training's forward passes, with the same weights; evaluation takes the one that was given.

    Args:
        settings: `settled`.
    """
    return Autocast(network) if config.precision == "bfloat16" else network
