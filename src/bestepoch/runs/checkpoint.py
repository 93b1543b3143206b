"""Checkpoints: written atomically, loaded without unpickling arbitrary objects."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bestepoch.base import errors, files, paths
from bestepoch.base.errors import UsageError

log = logging.getLogger("bestepoch")
NUM_KEPT_STATES = 2


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
        UsageError: The file is missing, truncated or not a checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many exception types for a damaged file
        raise UsageError(f"{paths.display_path(path)} cannot be read: {errors.first_line(error)}") from None
    if not isinstance(state, dict):
        raise UsageError(f"{paths.display_path(path)} is not a checkpoint")
    return state


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
    """
    state = load(weights_path(folder, epoch))
    return {key: values.double().numpy() for key, values in state["validation"].items()}


def list_states(folder: Path) -> list[Path]:
    """Return the paths of a run's training states, newest first."""
    return sorted((folder / "state").glob("iteration-*.pt"), reverse=True)


def load_newest_state(folder: Path) -> dict[str, Any] | None:
    """Return the newest readable training state, or None; log a warning for each damaged file."""
    for path in list_states(folder):
        try:
            return load(path)
        except UsageError as error:
            log.warning("warning: %s; going back to the one before", error)
    return None
