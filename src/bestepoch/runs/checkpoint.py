"""Checkpoints: written beside and renamed, loaded without unpickling, the newest whole one found after a kill."""

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
    """Tensors and plain types to ``path``: the old file or the new one, never half of it."""
    buffer = io.BytesIO()  # torch.save to a path would write that path's name into the bytes
    torch.save(state, buffer)
    files.write_atomic(path, buffer.getvalue())


def load(path: Path) -> dict[str, Any]:
    """What `save` wrote, on the CPU; nothing is unpickled but tensors and plain types.

    Raises:
        UsageError: not there, cut short, or not such a file.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UsageError(f"{paths.display_path(path)} cannot be read: {errors.first_line(error)}") from None
    if not isinstance(state, dict):
        raise UsageError(f"{paths.display_path(path)} is not a checkpoint")
    return state


def weights_path(folder: Path, epoch: int) -> Path:
    """Where the weights after ``epoch`` are, within a run's or a result's folder."""
    return folder / "checkpoints" / f"epoch-{epoch:04d}.pt"


def save_state(folder: Path, iteration: int, state: dict[str, Any]) -> None:
    """All that training needs to go on after ``iteration``; the newest two are kept."""
    save(folder / "state" / f"iteration-{iteration:09d}.pt", state)
    for old in list_states(folder)[NUM_KEPT_STATES:]:
        old.unlink()


def load_validation_results(folder: Path, epoch: int) -> dict[str, np.ndarray]:
    """How each validation image fared after ``epoch``.

    Returns:
        ``losses`` in nats, ``correct`` as 0 or 1, and the labels ``predicted``, (n,) each.
    """
    state = load(weights_path(folder, epoch))
    return {key: values.double().numpy() for key, values in state["validation"].items()}


def list_states(folder: Path) -> list[Path]:
    """The states of a run, newest first."""
    return sorted((folder / "state").glob("iteration-*.pt"), reverse=True)


def load_newest_state(folder: Path) -> dict[str, Any] | None:
    """The newest state that can be read, or None; a damaged one is named and passed over."""
    for path in list_states(folder):
        try:
            return load(path)
        except UsageError as error:
            log.warning("warning: %s; going back to the one before", error)
    return None
