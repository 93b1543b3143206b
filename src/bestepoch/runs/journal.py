"""The run's record: two append-only CSV files, which everything else is computed from.

The training thread only appends to a queue; a writer thread writes the rows to the files once a second.
"""

from __future__ import annotations

import collections
import math
import os
import threading
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bestepoch.base import files
from bestepoch.runs.tables import CsvTail, Row, read_key

ITERATION_COLUMNS = ("iteration", "epoch", "train/loss", "lr", "train/grad_norm", "time")
EPOCH_COLUMNS = (
    *("epoch", "iteration", "train/epoch_loss", "train/eval_loss", "train/eval_accuracy", "val/loss", "val/accuracy"),
    *("lr", "seconds", "time"),
)
OPTIONAL_COLUMNS = ("train/grad_norm", "train/eval_loss", "train/eval_accuracy")
FLUSH_INTERVAL_S = 1.0


class Update(NamedTuple):
    """A row of ``iterations.csv``; ``loss`` and ``grad_norm`` may be scalar tensors."""

    iteration: int
    epoch: int
    loss: Any
    lr: float
    grad_norm: Any
    time: float


class Journal:
    """Write ``iterations.csv`` and ``epochs.csv`` into a folder.

    A journal opened on existing files appends to them, with their columns. Rows that are already on disk are skipped,
    so a resumed run may log the same iterations again.

    Args:
        folder: the folder of the run.
        without: those of `OPTIONAL_COLUMNS` that the run does not have.
    """

    def __init__(self, folder: Path, without: Collection[str] = ()) -> None:
        self.iterations = folder / "iterations.csv"
        self.epochs = folder / "epochs.csv"
        columns, self._last_iteration = _open_table(self.iterations, ITERATION_COLUMNS, without)
        self._has_grad_norm = "train/grad_norm" in columns
        self._epoch_columns, self._last_epoch = _open_table(self.epochs, EPOCH_COLUMNS, without)
        # a deque is thread-safe: the training thread appends while a flush pops
        self._queue: collections.deque[Update] = collections.deque()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._failure: OSError | None = None
        self.not_finite: tuple[int, float, float] | None = None
        """Iteration, learning rate and loss of the first non-finite loss, once a flush has met it."""
        self._thread = threading.Thread(target=self._flush_periodically, name="journal", daemon=True)
        self._thread.start()

    def log_iteration(self, iteration: int, epoch: int, loss: Any, lr: float, grad_norm: Any = None) -> None:
        """Queue an update's row.

        ``loss`` and ``grad_norm`` are floats, or scalar tensors that stay on their device until a flush; a norm of None
        was not computed.
        """
        norm = math.nan if grad_norm is None else grad_norm
        self._queue.append(Update(iteration, epoch, loss, lr, norm, time.time()))

    def log_epoch(self, row: Row) -> None:
        """Write an epoch's results to the file; ``row`` has the columns of ``epochs.csv`` except ``time``.

        Raises:
            OSError: The disk is full or the folder is read-only.
        """
        self.flush()
        if row["epoch"] > self._last_epoch:
            values = [
                row.get(name, math.nan) if name in OPTIONAL_COLUMNS else row[name] for name in self._epoch_columns[:-1]
            ]
            _append(self.epochs, [",".join(map(repr, values)) + f",{time.time():.3f}\n"])
            self._last_epoch = int(row["epoch"])

    def flush(self, sync: bool = False) -> None:
        """Write all queued rows to the file; with ``sync``, also fsync both files.

        Raises:
            OSError: The disk is full or the folder is read-only.
        """
        with self._lock:
            if self._failure is not None:
                raise self._failure
            rows = [self._queue.popleft() for _ in range(len(self._queue))]
            floats = to_floats([scalar for row in rows for scalar in (row.loss, row.grad_norm)])
            rows = [row._replace(loss=floats[2 * i], grad_norm=floats[2 * i + 1]) for i, row in enumerate(rows)]
            nonfinite = (row for row in rows if not math.isfinite(row.loss))
            if self.not_finite is None and (first := next(nonfinite, None)) is not None:
                self.not_finite = first.iteration, first.lr, first.loss
            lines = [self._format(row) for row in rows if row.iteration > self._last_iteration]
            if lines:
                try:
                    _append(self.iterations, lines)
                except OSError as error:
                    self._failure = error  # permanent: later rows would hide that these rows are missing
                    raise
                self._last_iteration = rows[-1].iteration
            if sync:
                for path in (self.iterations, self.epochs):
                    with path.open("rb") as file:
                        os.fsync(file.fileno())

    def _format(self, row: Update) -> str:
        norm = f",{row.grad_norm!r}" if self._has_grad_norm else ""
        return f"{row.iteration},{row.epoch},{row.loss!r},{row.lr!r}{norm},{row.time:.3f}\n"

    def close(self) -> None:
        """Stop the writer thread and flush to disk.

        Raises:
            OSError: The disk is full or the folder is read-only.
        """
        self._closing.set()
        self._thread.join()
        self.flush(sync=True)

    def _flush_periodically(self) -> None:
        while not self._closing.wait(FLUSH_INTERVAL_S):
            try:
                self.flush()
            except OSError:
                return  # the training thread's next flush raises the same error


def _open_table(path: Path, columns: Sequence[str], without: Collection[str]) -> tuple[Sequence[str], int]:
    """Create the file with its header, or cut off a line that a kill left unfinished.

    Returns:
        The columns of the file and the last row's key, 0 for a table without rows.

    Raises:
        UsageError: the header or the last line is damaged. Without the key, rows would be written twice.
    """
    content = path.read_bytes() if path.exists() else b""
    end = content.rfind(b"\n") + 1
    if not end:
        columns = [name for name in columns if name not in without]
        path.write_text(",".join(columns) + "\n", encoding="utf-8")
        return columns, 0
    if end < len(content):
        os.truncate(path, end)
    tail = CsvTail(path, content.rfind(b"\n", 0, end - 1) + 1)  # the last line
    rows = tail.read()
    return tail.columns, read_key(path, rows[-1]) if rows else 0


def _append(path: Path, lines: list[str]) -> None:
    with files.name_path_in_errors(path), path.open("a", encoding="utf-8", newline="") as file:
        file.write("".join(lines))


def to_floats(losses: list[Any]) -> list[float]:
    """Convert a mixed list of floats and scalar tensors to floats, with one copy from the device for all tensors."""
    tensors = [loss for loss in losses if not isinstance(loss, float)]
    if not tensors:
        return losses
    import torch

    values = iter(torch.stack(tensors).tolist())
    return [loss if isinstance(loss, float) else next(values) for loss in losses]
