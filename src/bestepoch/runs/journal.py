"""The run's record: two append-only CSV files. Everything else is read from them.

The training thread only appends to a list; a writer thread puts the rows on the disk at least each second.
"""

from __future__ import annotations

import collections
import math
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestepoch.base import files
from bestepoch.runs.tables import Row

if TYPE_CHECKING:
    pass

ITERATION_COLUMNS = ("iteration", "epoch", "train/loss", "lr", "time")
EPOCH_COLUMNS = (
    "epoch",
    "iteration",
    "train/epoch_loss",
    "val/loss",
    "val/accuracy",
    "lr",
    "seconds",
    "time",
)
FLUSH_INTERVAL_S = 1.0


class Journal:
    """Writes ``iterations.csv`` and ``epochs.csv`` into a folder.

    Opened on a folder that holds them already, it goes on behind what is there: a row that is on the disk is not
    written again, whatever a resumed run hands in.
    """

    def __init__(self, folder: Path) -> None:
        self.iterations = folder / "iterations.csv"
        self.epochs = folder / "epochs.csv"
        self._last_iteration = _open_table(self.iterations, ITERATION_COLUMNS)
        self._last_epoch = _open_table(self.epochs, EPOCH_COLUMNS)
        # a deque: the training thread adds at one end while a flush takes from the other
        self._rows: collections.deque[tuple[int, int, Any, float, float]] = collections.deque()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._failure: OSError | None = None
        self.not_finite: tuple[int, float, float] | None = None
        """Iteration, rate and loss of the first update that went wrong, once its row is written."""
        self._thread = threading.Thread(target=self._write_on, name="journal", daemon=True)
        self._thread.start()

    def log_iteration(self, iteration: int, epoch: int, loss: Any, lr: float) -> None:
        """One update; ``loss`` is a number, or a tensor that stays on its device until the rows are written."""
        self._rows.append((iteration, epoch, loss, lr, time.time()))

    def log_epoch(self, row: Row) -> None:
        """One epoch's results: the columns of ``epochs.csv`` but for the time. On the disk when this returns."""
        self.flush()
        if row["epoch"] > self._last_epoch:
            values = {**row, "time": time.time()}
            _append(self.epochs, [",".join(repr(values[c]) for c in EPOCH_COLUMNS[:-1]) + f",{values['time']:.3f}\n"])
            self._last_epoch = int(row["epoch"])

    def flush(self, sync: bool = False) -> None:
        """Everything handed in so far is in the file when this returns; with ``sync``, on the disk.

        Raises:
            OSError: the disk is full or the folder read-only.
        """
        with self._lock:
            if self._failure is not None:
                raise self._failure
            taken = [self._rows.popleft() for _ in range(len(self._rows))]
            losses = to_floats([row[2] for row in taken])
            wrong = (row for row, loss in zip(taken, losses, strict=True) if not math.isfinite(loss))
            if self.not_finite is None and (first := next(wrong, None)) is not None:
                self.not_finite = first[0], first[3], float(first[2])
            lines = [_line(*row) for row in zip(taken, losses, strict=True) if row[0][0] > self._last_iteration]
            if lines:
                try:
                    _append(self.iterations, lines)
                except OSError as error:
                    self._failure = error  # for good: a row behind a hole would hide that rows are missing
                    raise
                self._last_iteration = taken[-1][0]
            if sync:
                for path in (self.iterations, self.epochs):
                    with path.open("rb") as file:
                        os.fsync(file.fileno())

    def close(self) -> None:
        """Write what is left and end the thread."""
        self._closing.set()
        self._thread.join()
        self.flush(sync=True)

    def _write_on(self) -> None:
        while not self._closing.wait(FLUSH_INTERVAL_S):
            try:
                self.flush()
            except OSError:
                return  # the training thread meets it at its next flush


def _open_table(path: Path, columns: tuple[str, ...]) -> int:
    """Make the file with its header, or cut off a line that a kill left unfinished. Returns the last row's number."""
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    if not whole:
        path.write_text(",".join(columns) + "\n")
        return 0
    if whole < len(content):
        os.truncate(path, whole)
    last = content[:whole].rstrip(b"\n").rsplit(b"\n", 1)[-1].split(b",", 1)[0]
    return int(last) if last.isdigit() else 0


def _append(path: Path, lines: list[str]) -> None:
    with files.name_path_in_errors(path), path.open("a", newline="") as file:
        file.write("".join(lines))


def to_floats(losses: list[Any]) -> list[float]:
    """Losses that are numbers or tensors of a device, as numbers; those of a device come in one copy."""
    tensors = [loss for loss in losses if not isinstance(loss, float)]
    if not tensors:
        return losses
    import torch

    fetched = iter(torch.stack(tensors).tolist())
    return [loss if isinstance(loss, float) else next(fetched) for loss in losses]


def _line(row: tuple[int, int, Any, float, float], loss: float) -> str:
    iteration, epoch, _, lr, when = row
    return f"{iteration},{epoch},{loss!r},{lr!r},{when:.3f}\n"
