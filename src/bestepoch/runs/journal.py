"""The run's record: two append-only CSV files, which everything else is computed from.

The training thread only appends to a queue; a writer thread writes the rows to the files once a second.
"""

from __future__ import annotations

import collections
import math
import os
import threading
import time
from pathlib import Path
from typing import Any

from bestepoch.base import files
from bestepoch.runs.tables import Row

ITERATION_COLUMNS = ("iteration", "epoch", "train/loss", "lr", "time")
EPOCH_COLUMNS = ("epoch", "iteration", "train/epoch_loss", "val/loss", "val/accuracy", "lr", "seconds", "time")
FLUSH_INTERVAL_S = 1.0


class Journal:
    """Write ``iterations.csv`` and ``epochs.csv`` into a folder.

    A journal opened on existing files appends to them. Rows that are already on disk are skipped, so a resumed run may
    log the same iterations again.
    """

    def __init__(self, folder: Path) -> None:
        self.iterations = folder / "iterations.csv"
        self.epochs = folder / "epochs.csv"
        self._last_iteration = _open_table(self.iterations, ITERATION_COLUMNS)
        self._last_epoch = _open_table(self.epochs, EPOCH_COLUMNS)
        # a deque is thread-safe: the training thread appends while a flush pops
        self._queue: collections.deque[tuple[int, int, Any, float, float]] = collections.deque()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._failure: OSError | None = None
        self.not_finite: tuple[int, float, float] | None = None
        """Iteration, learning rate and loss of the first non-finite loss, once a flush has met it."""
        self._thread = threading.Thread(target=self._flush_periodically, name="journal", daemon=True)
        self._thread.start()

    def log_iteration(self, iteration: int, epoch: int, loss: Any, lr: float) -> None:
        """Queue an update's row; ``loss`` is a float or a scalar tensor, which stays on its device until a flush."""
        self._queue.append((iteration, epoch, loss, lr, time.time()))

    def log_epoch(self, row: Row) -> None:
        """Write an epoch's results to the file; ``row`` has the columns of ``epochs.csv`` except ``time``.

        Raises:
            OSError: The disk is full or the folder is read-only.
        """
        self.flush()
        if row["epoch"] > self._last_epoch:
            values = {**row, "time": time.time()}
            _append(self.epochs, [",".join(repr(values[c]) for c in EPOCH_COLUMNS[:-1]) + f",{values['time']:.3f}\n"])
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
            losses = to_floats([row[2] for row in rows])
            nonfinite = (row for row, loss in zip(rows, losses, strict=True) if not math.isfinite(loss))
            if self.not_finite is None and (first := next(nonfinite, None)) is not None:
                self.not_finite = first[0], first[3], float(first[2])
            lines = [_format_row(*pair) for pair in zip(rows, losses, strict=True) if pair[0][0] > self._last_iteration]
            if lines:
                try:
                    _append(self.iterations, lines)
                except OSError as error:
                    self._failure = error  # permanent: later rows would hide that these rows are missing
                    raise
                self._last_iteration = rows[-1][0]
            if sync:
                for path in (self.iterations, self.epochs):
                    with path.open("rb") as file:
                        os.fsync(file.fileno())

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


def _open_table(path: Path, columns: tuple[str, ...]) -> int:
    """Create the file with its header, or cut off a line that a kill left unfinished; return the last row's key."""
    content = path.read_bytes() if path.exists() else b""
    end = content.rfind(b"\n") + 1
    if not end:
        path.write_text(",".join(columns) + "\n")
        return 0
    if end < len(content):
        os.truncate(path, end)
    last = content[:end].rstrip(b"\n").rsplit(b"\n", 1)[-1].split(b",", 1)[0]
    return int(last) if last.isdigit() else 0


def _append(path: Path, lines: list[str]) -> None:
    with files.name_path_in_errors(path), path.open("a", newline="") as file:
        file.write("".join(lines))


def to_floats(losses: list[Any]) -> list[float]:
    """Convert a mixed list of floats and scalar tensors to floats, with one copy from the device for all tensors."""
    tensors = [loss for loss in losses if not isinstance(loss, float)]
    if not tensors:
        return losses
    import torch

    values = iter(torch.stack(tensors).tolist())
    return [loss if isinstance(loss, float) else next(values) for loss in losses]


def _format_row(row: tuple[int, int, Any, float, float], loss: float) -> str:
    iteration, epoch, _, lr, timestamp = row
    return f"{iteration},{epoch},{loss!r},{lr!r},{timestamp:.3f}\n"
