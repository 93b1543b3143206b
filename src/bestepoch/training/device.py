"""Where the arithmetic happens, set up so that the same seed gives the same bits."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING

from bestepoch.base.config.schema import Device
from bestepoch.base.files import UsageError
from bestepoch.training.distributed import World

if TYPE_CHECKING:
    import torch


def choose_device(settings: Device, world: World | None = None) -> torch.device:
    """The device that ``device.name`` means here, ready for repeatable results; for each process a GPU of its own.

    Raises:
        UsageError: it is not there, or cannot do what is asked of it.
    """
    import torch

    world = world or World()
    _own_threads()
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if world.size > 1:
        del there["mps"]  # it takes one process
    name: str = settings.name
    if name == "auto":
        name = next(kind for kind, present in there.items() if present)
    if not there.get(name):
        raise UsageError(
            f"device.name = {name} is not on this machine; there are: {', '.join(k for k in there if there[k])}"
        )
    if world.size > 1 and name == "cuda":
        gpus = torch.cuda.device_count()
        if world.local_size > gpus:
            raise UsageError(
                f"{world.local_size} processes need a GPU each, and this machine has {gpus}: "
                f"torchrun --nproc-per-node={gpus}, or device.name=cpu"
            )
        torch.cuda.set_device(world.local_rank)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is repeatable only with this
    torch.set_deterministic_debug_mode("error")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # costs time
    torch.set_num_threads(settings.threads or _own_threads())
    return torch.device(name, world.local_rank) if world.size > 1 and name == "cuda" else torch.device(name)


@functools.cache
def _own_threads() -> int:
    """PyTorch's own choice, as it was before the first job of this process."""
    import torch

    return torch.get_num_threads()
