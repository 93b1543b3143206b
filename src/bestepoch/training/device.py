"""Choose the device and precision of training, and make PyTorch deterministic on that device."""

from __future__ import annotations

import functools
import os

import torch
from torch import Tensor, nn

from bestepoch.base.config.groups import CnnConfig
from bestepoch.base.config.schema import Config, DeviceConfig
from bestepoch.base.errors import UsageError
from bestepoch.training.distributed import DistributedContext

# Instructions for bfloat16 matrix products on x86 CPUs, by the names that PyTorch and Linux use.
BFLOAT16_FLAGS = ("amx_bf16", "avx512_bf16")


def choose_device(config: DeviceConfig, context: DistributedContext | None = None) -> torch.device:
    """Return the device for ``device.name`` and set up PyTorch for deterministic results on that device.

    With several processes on GPUs, each process gets the GPU of its local rank.

    Raises:
        UsageError: The device is not available, or there are fewer GPUs than processes.
    """
    context = context or DistributedContext()
    _default_threads()
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if context.size > 1:
        del available["mps"]  # MPS supports one process only
    name: str = config.name
    if name == "auto":
        name = next(device_type for device_type, usable in available.items() if usable)
    if not available.get(name):
        raise UsageError(
            f"device.name = {name} is not on this machine; there are: {', '.join(k for k in available if available[k])}"
        )
    if context.size > 1 and name == "cuda":
        gpus = torch.cuda.device_count()
        if context.local_size > gpus:
            raise UsageError(
                f"{context.local_size} processes need a GPU each, and this machine has {gpus}: "
                f"torchrun --nproc-per-node={gpus}, or device.name=cpu"
            )
        torch.cuda.set_device(context.local_rank)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with this setting
    torch.set_deterministic_debug_mode("error")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # filling costs time
    torch.set_num_threads(config.threads or _default_threads())
    return torch.device(name, context.local_rank) if context.size > 1 and name == "cuda" else torch.device(name)


@functools.cache
def _default_threads() -> int:
    """Return PyTorch's default thread count; cached, because later jobs of the same process change the count."""
    return torch.get_num_threads()


class Autocast(nn.Module):
    """Wrap a network to run convolutions and matrix products in bfloat16; weights and logits are float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        """Map ``pixels`` of shape ``(N, H, W)`` to float32 logits of shape ``(N, classes)``."""
        with torch.autocast(pixels.device.type, torch.bfloat16):
            logits: Tensor = self.network(pixels)
        return logits.float()


def resolve_auto(config: Config, device: torch.device, context: DistributedContext | None = None) -> Config:
    """Return ``config`` with ``device.precision`` and ``device.cuda_graphs`` resolved from `auto` for this device.

    The run's record then states the precision that training used. bfloat16 is chosen only where measurements showed a
    gain: for cnn models, on CPUs with AMX or AVX-512 BF16 and on GPUs with native bfloat16 and CUDA graphs. An update
    of the default cnn takes 70 to 75% of the float32 time there.

    Raises:
        UsageError: ``device.cuda_graphs`` is true and CUDA graphs are not possible here.
    """
    device_config = config.device
    obstacle = _why_no_cuda_graph(device, context or DistributedContext())
    if device_config.cuda_graphs is True and obstacle:
        raise UsageError(f"device.cuda_graphs = true {obstacle}: leave it at auto")
    graphs = device_config.cuda_graphs is not False and not obstacle
    precision = device_config.precision
    if precision == "auto":
        fast_bfloat16 = _cpu_has_bfloat16() if device.type == "cpu" else graphs and _gpu_has_bfloat16()
        precision = "bfloat16" if fast_bfloat16 and isinstance(config.model, CnnConfig) else "float32"
    resolved = device_config.model_copy(update={"precision": precision, "cuda_graphs": graphs})
    return config.model_copy(update={"device": resolved})


def _why_no_cuda_graph(device: torch.device, context: DistributedContext) -> str | None:
    if device.type != "cuda":
        return f"needs a GPU of CUDA's, and training is on device.name={device.type}"
    return "takes one process" if context.size > 1 else None


def _gpu_has_bfloat16() -> bool:
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _cpu_has_bfloat16() -> bool:
    if not hasattr(torch.cpu, "get_capabilities"):  # older PyTorch versions lack this function
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(flag) for flag in BFLOAT16_FLAGS)


def wrap_for_training(config: DeviceConfig, network: nn.Module) -> nn.Module:
    """Return the module for training's forward passes, which shares its weights with ``network``.

    Args:
        config: A device config from `resolve_auto`, without `auto`.
        network: The float32 network, which evaluation uses directly.
    """
    return Autocast(network) if config.precision == "bfloat16" else network
