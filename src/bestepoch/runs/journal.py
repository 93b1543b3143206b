"""The run's record: two append-only CSV files. Everything else is read from them.

The training thread only appends to a list; a writer thread puts the rows on the disk at least each second.
"""

from __future__ import annotations

import collections
import csv
import io
import math
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestepoch.base import files

if TYPE_CHECKING:
    import numpy as np

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
EVERY_SECONDS = 1.0

Row = dict[str, float]


@dataclass
class Tail:
    """Reads what has been added to a CSV file since the last look; a line that is not finished is left for later."""

    path: Path
    offset: int = 0
    columns: list[str] = field(default_factory=list)

    def read(self, limit: int = 1_000_000) -> list[Row]:
        """At most ``limit`` new rows, oldest first."""
        if not self.path.exists():
            return []
        rows: list[Row] = []
        with self.path.open("rb") as file:
            self.columns = file.readline().decode().strip().split(",")
            self.offset = max(self.offset, file.tell())
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n") or len(rows) == limit:
                    break
                rows.append(dict(zip(self.columns, map(float, line.split(b",")), strict=True)))
                self.offset += len(line)
        return rows


def read(path: Path) -> list[Row]:
    """All finished rows of a journal file, as numbers; none where there is no file."""
    return Tail(path).read()


def columns(path: Path) -> dict[str, np.ndarray]:
    """The finished rows as one array a column, float64: a twentieth of the memory that `read` takes."""
    import numpy as np

    content = path.read_bytes()
    header, _, rows = content[: content.rfind(b"\n") + 1].partition(b"\n")
    values = np.loadtxt(io.BytesIO(rows), delimiter=",", ndmin=2) if rows else np.empty((0, len(header.split(b","))))
    return dict(zip(header.decode().split(","), values.T, strict=True))


def read_after(path: Path, number: int) -> list[Row]:
    """The finished rows whose first column is above ``number``, without reading all that is before them."""
    size, step = path.stat().st_size if path.exists() else 0, 1 << 16
    while True:
        start = max(size - step, 0)
        rows = Tail(path, _next_line(path, start)).read()
        if not start or (rows and _number(rows[0]) <= number):
            return [row for row in rows if _number(row) > number]
        step *= 2


def _next_line(path: Path, offset: int) -> int:
    if not offset:
        return 0
    with path.open("rb") as file:
        file.seek(offset)
        file.readline()
        return file.tell()


def _number(row: Row) -> float:
    return next(iter(row.values()))


class Journal:
    """Writes ``iterations.csv`` and ``epochs.csv`` into a folder.

    Opened on a folder that holds them already, it goes on behind what is there: a row that is on the disk is not
    written again, whatever a resumed run hands in.
    """

    def __init__(self, folder: Path) -> None:
        self.iterations = folder / "iterations.csv"
        self.epochs = folder / "epochs.csv"
        self._last_iteration = _open(self.iterations, ITERATION_COLUMNS)
        self._last_epoch = _open(self.epochs, EPOCH_COLUMNS)
        # a deque: the training thread adds at one end while a flush takes from the other
        self._rows: collections.deque[tuple[int, int, Any, float, float]] = collections.deque()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._failure: OSError | None = None
        self.not_finite: tuple[int, float, float] | None = None
        """Iteration, rate and loss of the first update that went wrong, once its row is written."""
        self._thread = threading.Thread(target=self._write_on, name="journal", daemon=True)
        self._thread.start()

    def iteration(self, iteration: int, epoch: int, loss: Any, lr: float) -> None:
        """One update; ``loss`` is a number, or a tensor that stays on its device until the rows are written."""
        self._rows.append((iteration, epoch, loss, lr, time.time()))

    def epoch(self, row: Row) -> None:
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
            losses = numbers([row[2] for row in taken])
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
        while not self._closing.wait(EVERY_SECONDS):
            try:
                self.flush()
            except OSError:
                return  # the training thread meets it at its next flush


def _open(path: Path, columns: tuple[str, ...]) -> int:
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
    with files.naming(path), path.open("a", newline="") as file:
        file.write("".join(lines))


def numbers(losses: list[Any]) -> list[float]:
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


def write_table(path: Path, columns: list[str], rows: list[list[Any]]) -> None:
    """A small CSV file as a whole."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
