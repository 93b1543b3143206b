"""Data-parallel training on several processes, as ``torchrun --nproc-per-node=2 -m bestepoch.train`` starts them.

Each process computes the gradients of its shard of every batch, and all processes make the same update. Rank 0 owns
the run folder, logs, and broadcasts what the other ranks need. If one process exits, the next collective operation
raises an error in all others.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bestepoch.base.rank import wait_for_rank0_error

if TYPE_CHECKING:
    import torch
    from torch import nn

# How long a process waits for the others, for example while rank 0 downloads the data.
TIMEOUT = datetime.timedelta(minutes=30)


@dataclass
class DistributedContext:
    """The rank of this process and the number of processes; the default is a single process."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # rank among the processes of this machine
    local_size: int = 1
    machines: int = 1
    control_flags: Callable[[], Sequence[int]] = tuple
    """Return this process's requests, such as to stop, as integers."""
    synced_flags: Sequence[int] = ()
    """The maximum of each control flag over all processes, as of the last exchange."""

    @classmethod
    def from_env(cls) -> DistributedContext:
        """Return the processes that torchrun's environment variables describe; one process without them."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")
        rank, size, local_rank, local_size, machines = (int(os.environ.get(name, "-1")) for name in names)
        if rank < 0 or size < 2:
            return cls()
        return cls(rank, size, max(local_rank, 0), max(local_size, 1), max(machines, 1))

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which owns the run folder."""
        return self.rank == 0

    @property
    def launch_command(self) -> list[str]:
        """The first arguments of a command that launches the same number of processes."""
        if self.size == 1:
            return ["python"]
        machines = [f"--nnodes={self.machines}"] if self.machines > 1 else []
        return ["torchrun", *machines, f"--nproc-per-node={self.local_size}"]

    @contextlib.contextmanager
    def process_group(self) -> Iterator[None]:
        """Initialise the process group for a ``with`` block, which other ranks leave after rank 0."""
        if self.size == 1:
            yield
            return
        import torch
        from torch import distributed

        # gloo exchanges CPU tensors without synchronising a GPU
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, timeout=TIMEOUT)
        try:
            yield
            self._wait_for_rank0_exit()
        except SystemExit:
            self._wait_for_rank0_exit()
            raise
        except Exception:
            wait_for_rank0_error()
            raise
        finally:
            distributed.destroy_process_group()

    def _wait_for_rank0_exit(self) -> None:
        """Wait until rank 0 exits: torchrun kills rank 0, perhaps while tracking, as soon as another rank fails."""
        if not self.is_main:
            with contextlib.suppress(RuntimeError):  # raised when rank 0 closes its socket
                self.broadcast()

    def broadcast(self, value: Any = None) -> Any:
        """Return the ``value`` of rank 0 on every process."""
        if self.size == 1:
            return value
        from torch import distributed

        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]

    def all_gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, ordered by rank."""
        if self.size == 1:
            return [value]
        from torch import distributed

        values = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def shard(self, images: torch.Tensor) -> torch.Tensor:
        """Return this rank's part, maybe empty, of ``images`` of shape ``(N, ...)``. Parts are ordered by rank."""
        return images if self.size == 1 else images.tensor_split(self.size)[self.rank]

    def all_reduce_mean(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the mean of a scalar loss over all processes and update `synced_flags` in the same exchange.

        A separate exchange of flags would cost as much as that of the loss.
        """
        if self.size == 1:
            return loss
        from torch import distributed

        loss = loss.detach()
        if loss.device.type == "cpu":
            return self._gather_with_flags(loss.item()).mean()
        self._gather_with_flags(0.0)
        loss = loss / self.size
        distributed.all_reduce(loss)
        return loss

    def sync_control_flags(self) -> Sequence[int]:
        """Update and return `synced_flags`."""
        if self.size == 1:
            self.synced_flags = self.control_flags()
        else:
            self._gather_with_flags(0.0)
        return self.synced_flags

    def _gather_with_flags(self, value: float) -> torch.Tensor:
        """Return the values of all processes, float64 of shape ``(size,)``, and update `synced_flags`."""
        import torch
        from torch import distributed

        own = torch.tensor([value, *self.control_flags()], dtype=torch.float64)
        rows = [torch.empty_like(own) for _ in range(self.size)]
        distributed.all_gather(rows, own)
        table = torch.stack(rows)
        self.synced_flags = [int(flag) for flag in table[:, 1:].amax(0)]
        return table[:, 0]

    def wrap_ddp(self, network: nn.Module, image: torch.Tensor) -> nn.Module:
        """Wrap ``network`` to average gradients over all processes, starting from rank 0's weights.

        Args:
            network: Returned unchanged when there is one process.
            image: Any input of shape ``(1, H, W)``.
        """
        if self.size == 1:
            return network
        from torch.nn.parallel import DistributedDataParallel

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the new name is missing from older PyTorch versions
            # synchronised batch normalisation keeps buffers equal, so broadcasting them is not needed
            ddp: nn.Module = DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)
        # DDP rebuilds its buckets after the first backward pass, which changes the rounding of sums over three or more
        # processes. Running that pass now makes a resumed run match an uninterrupted one.
        network.eval()
        ddp(image).sum().backward()
        network.zero_grad(set_to_none=True)
        return ddp
