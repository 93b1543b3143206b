"""Checkpoints: written atomically, loaded without unpickling arbitrary objects."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bestepoch.base import errors, files, paths
from bestepoch.base.errors import UsageError
from bestepoch.runs.tables import read_rows, read_since

log = logging.getLogger("bestepoch")
NUM_KEPT_STATES = 2
# what a file holds at least, by what its name begins with
KEYS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "epoch": {"epoch": int, "network": dict, "validation": dict},
    "iteration": {"iteration": int, "evaluated": bool},
}
STATE_KEYS: dict[str, type | tuple[type, ...]] = {
    "network": dict,
    "optimizer": dict,
    "seconds": (int, float),
    "time_by_section": dict,
}


def save(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain Python types to ``path`` atomically.

    Raises:
        OSError: The disk is full or the folder is read-only.
    """
    buffer = io.BytesIO()  # given a path, torch.save would write the path's name into the file
    torch.save(state, buffer)
    files.write_atomic(path, buffer.getvalue())


def load(path: Path) -> dict[str, Any]:
    """Return what `save` wrote, with tensors on the CPU; only tensors and plain types are unpickled.

    Raises:
        UsageError: The file is missing, truncated or not a checkpoint, or it lacks what a file of its name holds.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many exception types for a damaged file
        raise UsageError(f"{paths.display_path(path)} cannot be read: {errors.first_line(error)}") from None
    if not isinstance(state, dict):
        raise UsageError(f"{paths.display_path(path)} is not a checkpoint")
    kind, _, number = path.stem.partition("-")
    if kind in KEYS and number.isdecimal():
        _require_keys(path, state, KEYS[kind])
        if state[kind] != int(number):
            raise UsageError(f"{paths.display_path(path)} holds {kind} {state[kind]}, and its name says {int(number)}")
    return state


def _require_keys(path: Path, state: dict[str, Any], keys: dict[str, type | tuple[type, ...]]) -> None:
    for key, kind in keys.items():
        if key not in state:
            raise UsageError(f"{paths.display_path(path)} has no {key}")
        if not isinstance(state[key], kind):
            raise UsageError(f"{paths.display_path(path)} is damaged: its {key} is {type(state[key]).__name__}")


def weights_path(folder: Path, epoch: int) -> Path:
    """Return the path of the weights after ``epoch`` within a run's or a result's folder."""
    return folder / "checkpoints" / f"epoch-{epoch:04d}.pt"


def save_state(folder: Path, iteration: int, state: dict[str, Any]) -> None:
    """Write the training state after ``iteration`` and delete all but the newest two states."""
    save(folder / "state" / f"iteration-{iteration:09d}.pt", state)
    for old in list_states(folder)[NUM_KEPT_STATES:]:
        old.unlink()


def load_validation_results(folder: Path, epoch: int) -> dict[str, np.ndarray]:
    """Return the per-example validation results after ``epoch``.

    Returns:
        ``losses`` in nats, ``correct`` as 0 or 1, and the ``predicted`` labels; float64 arrays of shape ``(N,)``.

    Raises:
        UsageError: The file is missing or damaged, or lacks one of the arrays.
    """
    path = weights_path(folder, epoch)
    results = load(path)["validation"]
    _require_keys(path, results, dict.fromkeys(("losses", "correct", "predicted"), torch.Tensor))
    if len(shapes := {tuple(values.shape) for values in results.values()}) > 1:
        raise UsageError(f"{paths.display_path(path)} is damaged: its validation results have the shapes {shapes}")
    return {key: values.double().numpy() for key, values in results.items()}


def list_states(folder: Path) -> list[Path]:
    """Return the paths of a run's training states, newest first."""
    return sorted((folder / "state").glob("iteration-*.pt"), reverse=True)


def load_newest_state(
    folder: Path, explain_misfit: Callable[[dict[str, Any]], str | None] = lambda _: None
) -> dict[str, Any] | None:
    """Return the newest training state that is whole and that both tables reach, or None; warn of each other one.

    Args:
        folder: The folder of the run.
        explain_misfit: Returns why a whole state is not one of this training, None where it is.

    Raises:
        UsageError: A line of a table is damaged.
    """
    for path in list_states(folder):
        try:
            state = load(path)
            _require_keys(path, state, STATE_KEYS)
            if not {"rng", "processes"} & state.keys():
                raise UsageError(f"{paths.display_path(path)} has no rng")
        except UsageError as error:
            log.warning("warning: %s; going back to the one before", error)
            continue
        if reason := explain_misfit(state) or explain_missing_rows(folder, state["iteration"], state["evaluated"]):
            log.warning("warning: %s: %s; going back to the one before", paths.display_path(path), reason)
            continue
        return state
    return None


def explain_missing_rows(folder: Path, iteration: int, evaluated: bool) -> str | None:
    """Return why the tables of a run do not reach a state, or None if they do.

    Training goes on behind the state, so rows that are missing before it would stay missing.

    Args:
        folder: The folder of the run.
        iteration: The iteration of the state.
        evaluated: Whether the epoch that the iteration ended has its row in ``epochs.csv``.

    Raises:
        UsageError: A line of a table is damaged.
    """
    rows = read_since(folder / "iterations.csv", iteration - 1)
    if not rows or rows[0]["iteration"] != iteration:
        return f"iterations.csv has no row of iteration {iteration:,}"
    needed = int(rows[0]["epoch"]) - 1 + evaluated
    epochs = [row["epoch"] for row in read_rows(folder / "epochs.csv")[:needed]]
    missing = next((n for n in range(1, needed + 1) if n > len(epochs) or epochs[n - 1] != n), None)
    return f"epochs.csv has no row of epoch {missing}" if missing is not None else None
