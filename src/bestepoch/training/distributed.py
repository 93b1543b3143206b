"""One training on several processes, as ``torchrun --nproc-per-node=2 -m bestepoch.train`` starts them.

Each process takes its part of every batch, and all make the same update. The first one alone has the run: it reads and
writes the record, speaks, and tells the others what they need. The last of them to know anything is the network of
sockets between them: where one process ends, the next exchange fails in all others.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

# How long a process waits for the others, such as for the first one while it downloads the data.
TIMEOUT = datetime.timedelta(minutes=30)
# How long a process that fails leaves it to the first one to say why; torchrun then ends it.
RANK0_GRACE_SECONDS = 10.0


@dataclass
class DistributedContext:
    """The processes of one training, and which of them this is; by default it is alone."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those of this machine
    local_size: int = 1
    machines: int = 1
    control_flags: Callable[[], Sequence[int]] = tuple
    """What this process asks of all, such as to stop: numbers, of which the largest is what all agree on."""
    synced_flags: Sequence[int] = ()

    @classmethod
    def from_env(cls) -> DistributedContext:
        """By the environment that torchrun makes."""
        told = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")
        rank, size, local_rank, local_size, machines = (int(os.environ.get(name, "-1")) for name in told)
        if rank < 0 or size < 2:
            return cls()
        return cls(rank, size, max(local_rank, 0), max(local_size, 1), max(machines, 1))

    @property
    def is_main(self) -> bool:
        """Whether this is the process that has the run."""
        return self.rank == 0

    @property
    def launch_command(self) -> list[str]:
        """How a command begins that starts as many processes."""
        if self.size == 1:
            return ["python"]
        machines = [f"--nnodes={self.machines}"] if self.machines > 1 else []
        return ["torchrun", *machines, f"--nproc-per-node={self.local_size}"]

    def wait_for_rank0_error(self) -> None:
        """Give the first process the time to say what is wrong: it knows better, and once is enough."""
        if not self.is_main:
            time.sleep(RANK0_GRACE_SECONDS)

    @contextlib.contextmanager
    def process_group(self) -> Iterator[None]:
        """While inside, the processes can exchange; they leave when the first one does."""
        if self.size == 1:
            yield
            return
        import torch
        from torch import distributed

        # gloo for what is on the CPU wherever the network is: it does not make a GPU wait
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, timeout=TIMEOUT)
        try:
            yield
            self._wait_for_rank0_exit()
        except SystemExit:
            self._wait_for_rank0_exit()
            raise
        except Exception:
            self.wait_for_rank0_error()
            raise
        finally:
            distributed.destroy_process_group()

    def _wait_for_rank0_exit(self) -> None:
        """Wait for its end: torchrun would end it as soon as another process fails, with trackers still to be told."""
        if not self.is_main:
            with contextlib.suppress(RuntimeError):  # the way in which it is noticed
                self.broadcast()

    def broadcast(self, value: Any = None) -> Any:
        """What the first process gave as ``value``."""
        if self.size == 1:
            return value
        from torch import distributed

        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]

    def all_gather(self, value: Any) -> list[Any]:
        """Each process's ``value``, in the order of the ranks."""
        if self.size == 1:
            return [value]
        from torch import distributed

        values = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def shard(self, images: torch.Tensor) -> torch.Tensor:
        """Of (n, ...) what is for this process, maybe nothing; all parts in the order of the ranks are the whole."""
        return images if self.size == 1 else images.tensor_split(self.size)[self.rank]

    def all_reduce_mean(self, loss: torch.Tensor) -> torch.Tensor:
        """The mean of all processes' losses. The wishes travel with it: a message of their own would cost as much."""
        if self.size == 1:
            return loss
        from torch import distributed

        loss = loss.detach()
        if loss.device.type == "cpu":
            return self._exchange(loss.item()).mean()
        self._exchange(0.0)
        loss = loss / self.size
        distributed.all_reduce(loss)
        return loss

    def sync_control_flags(self) -> Sequence[int]:
        """What all ask for now."""
        if self.size == 1:
            self.synced_flags = self.control_flags()
        else:
            self._exchange(0.0)
        return self.synced_flags

    def _exchange(self, number: float) -> torch.Tensor:
        """Settles what is agreed; every process's ``number``, (size,), float64."""
        import torch
        from torch import distributed

        own = torch.tensor([number, *self.control_flags()], dtype=torch.float64)
        rows = [torch.empty_like(own) for _ in range(self.size)]
        distributed.all_gather(rows, own)
        table = torch.stack(rows)
        self.synced_flags = [int(wish) for wish in table[:, 1:].amax(0)]
        return table[:, 0]

    def wrap_ddp(self, network: nn.Module, image: torch.Tensor) -> nn.Module:
        """``network`` such that its gradients are the mean of all processes', with the weights of the first one.

        Args:
            image: (1, height, width), any.
        """
        if self.size == 1:
            return network
        from torch.nn.parallel import DistributedDataParallel

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the new name is not in all versions
            # what batch normalisation keeps is the same everywhere as it is
            shared: nn.Module = DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)
        # After the first backward pass it lays the gradients out anew, and sums of three round by where they lie: have
        # that behind, or a resumed run would differ.
        network.eval()
        shared(image).sum().backward()
        network.zero_grad(set_to_none=True)
        return shared
