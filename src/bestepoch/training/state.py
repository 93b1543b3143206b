"""The state that training needs to resume."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bestepoch.runs import checkpoint
from bestepoch.runs.timing import SectionTimer
from bestepoch.training.distributed import DistributedContext


@dataclass
class TrainingState:
    """The state of a training run in memory, which `save` writes and `resume` reads.

    Learning rates, data order and augmentation are functions of the iteration and are not stored.
    """

    network: torch.nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    context: DistributedContext = field(default_factory=DistributedContext)
    timer: SectionTimer = field(default_factory=SectionTimer)
    iteration: int = 0  # number of updates made
    evaluated: bool = True  # False when the last update ended an epoch that has no row in epochs.csv yet
    seconds: float = 0.0  # training time spent in the current, unfinished epoch

    def resume(self, folder: Path | None) -> bool:
        """Load the newest readable state of the run in ``folder``; return whether there is one.

        Rank 0 reads the file and broadcasts the state; ``folder`` is None on other ranks.
        """
        found = checkpoint.load_newest_state(folder, self.explain_misfit) if folder is not None else None
        saved = self.context.broadcast(found)
        if saved is None:
            return False
        self.network.load_state_dict(saved["network"])
        self.optimizer.load_state_dict(saved["optimizer"])
        rng_state = saved if self.context.size == 1 else saved["processes"][self.context.rank]
        torch.set_rng_state(rng_state["rng"])
        if "cuda_rng" in rng_state:
            torch.cuda.set_rng_state(rng_state["cuda_rng"])
        for name in ("iteration", "evaluated", "seconds"):
            setattr(self, name, saved[name])
        self.timer.merge(saved["time_by_section"])
        return True

    def explain_misfit(self, saved: dict[str, Any]) -> str | None:
        """Return why ``saved`` is not a state of this network, optimizer and number of processes; None if it is one.

        PyTorch would raise after it has loaded a part, or at the first update.
        """
        if _shapes(saved["network"]) != _shapes(self.network.state_dict()):
            return "its weights are not those of this network"
        groups, own = saved["optimizer"].get("param_groups"), self.optimizer.state_dict()["param_groups"]
        if not isinstance(groups, list) or [_numbers(group) for group in groups] != [_numbers(group) for group in own]:
            return "its optimizer is not that of this training"
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        for number, values in saved["optimizer"].get("state", {}).items():
            # what is kept of a weight is a number, such as a count, or has the weight's shape
            if any(shape not in ((), tuple(weights[number].shape)) for shape in _shapes(values).values()):
                return "its optimizer is not that of this network"
        states = [saved] if self.context.size == 1 else saved.get("processes", [])
        if len(states) != self.context.size or not all(_is_rng_state(state.get("rng")) for state in states):
            return "its random states are not those of this training"
        return None

    def save(self, folder: Path | None) -> None:
        """Write the state to the run in ``folder`` and delete all but the newest two states.

        Every rank must call this, because random states are gathered. ``folder`` is None on ranks other than 0.

        Raises:
            OSError: The disk is full or the folder is read-only.
        """
        rng_state = {"rng": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng_state["cuda_rng"] = torch.cuda.get_rng_state()
        rng_states = self.context.all_gather(rng_state)
        if folder is None:
            return
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "iteration": self.iteration,
            "evaluated": self.evaluated,
            "seconds": self.seconds,
            "time_by_section": self.timer.read(),
            **(rng_state if self.context.size == 1 else {"processes": rng_states}),
        }
        checkpoint.save_state(folder, self.iteration, state)


def _shapes(values: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors by their names."""
    return {name: tuple(value.shape) for name, value in values.items() if isinstance(value, torch.Tensor)}


def _numbers(group: Any) -> Any:
    """Return the numbers of the weights in a saved parameter group; None where it has none."""
    return group.get("params") if isinstance(group, dict) else None


def _is_rng_state(value: Any) -> bool:
    own = torch.get_rng_state()
    return isinstance(value, torch.Tensor) and (value.dtype, value.shape) == (own.dtype, own.shape)
