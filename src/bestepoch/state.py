"""All that training needs to go on where it was, in memory and on the disk."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bestepoch import checkpoint


@dataclass
class State:
    """Of one training. Learning rates, data order and augmentation follow from the iteration and need no place here."""

    network: torch.nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    iteration: int = 0  # updates made
    evaluated: bool = True  # whether the epoch that the last of them ended has its row
    seconds: float = 0.0  # trained in an epoch that is not at its end
    spent: dict[str, float] = field(default_factory=lambda: {"validation": 0.0, "checkpoints": 0.0})  # seconds

    def resume(self, folder: Path) -> bool:
        """Take up the newest whole state of the run in ``folder``, if there is one."""
        saved = checkpoint.newest_state(folder)
        if saved is None:
            return False
        self.network.load_state_dict(saved["network"])
        self.optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["rng"])
        if "cuda_rng" in saved:
            torch.cuda.set_rng_state(saved["cuda_rng"])
        for name in ("iteration", "evaluated", "seconds", "spent"):
            setattr(self, name, saved[name])
        return True

    def save(self, folder: Path) -> None:
        """Put it beside the ones before; the newest two are kept."""
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "iteration": self.iteration,
            "evaluated": self.evaluated,
            "seconds": self.seconds,
            "spent": self.spent,
        }
        if self.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state()
        checkpoint.save_state(folder, self.iteration, state)

    @contextlib.contextmanager
    def clock(self, what: str) -> Iterator[None]:
        """Add the seconds inside to those spent on ``what``."""
        started = time.monotonic()
        yield
        self.spent[what] += time.monotonic() - started
