"""All that training needs to go on where it was, in memory and on the disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from bestepoch.runs import checkpoint
from bestepoch.runs.timing import SectionTimer
from bestepoch.training.distributed import DistributedContext


@dataclass
class TrainingState:
    """Of one training. Learning rates, data order and augmentation follow from the iteration and need no place here."""

    network: torch.nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    context: DistributedContext = field(default_factory=DistributedContext)
    timer: SectionTimer = field(default_factory=SectionTimer)
    iteration: int = 0  # updates made
    evaluated: bool = True  # whether the epoch that the last of them ended has its row
    seconds: float = 0.0  # trained in an epoch that is not at its end

    def resume(self, folder: Path | None) -> bool:
        """Take up the newest whole state of the run in ``folder``, if there is one; the first process reads it."""
        saved = self.context.broadcast(checkpoint.load_newest_state(folder) if folder is not None else None)
        if saved is None:
            return False
        self.network.load_state_dict(saved["network"])
        self.optimizer.load_state_dict(saved["optimizer"])
        random = saved if self.context.size == 1 else saved["processes"][self.context.rank]
        torch.set_rng_state(random["rng"])
        if "cuda_rng" in random:
            torch.cuda.set_rng_state(random["cuda_rng"])
        for name in ("iteration", "evaluated", "seconds"):
            setattr(self, name, saved[name])
        self.timer.merge(saved["spent"])
        return True

    def save(self, folder: Path | None) -> None:
        """Put it beside the ones before, as the first process does; the newest two are kept."""
        random = {"rng": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda_rng"] = torch.cuda.get_rng_state()
        everyones = self.context.all_gather(random)
        if folder is None:
            return
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "iteration": self.iteration,
            "evaluated": self.evaluated,
            "seconds": self.seconds,
            "spent": self.timer.read(),
            **(random if self.context.size == 1 else {"processes": everyones}),
        }
        checkpoint.save_state(folder, self.iteration, state)
