"""Delivery cursors: track the rows that a tracker has stored, and deliver the pending ones."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from filelock import FileLock

from bestepoch.base import errors, files
from bestepoch.runs.tables import CsvTail
from bestepoch.tracking.base import Tracker

MAX_ROWS_IN_MEMORY = 5000  # per table and request


class DeliveryCursor:
    """One tracker's position in one run's journal, kept in ``state/<tracker>.json`` between attempts."""

    def __init__(self, folder: Path, tracker: Tracker) -> None:
        self.path = folder / "state" / f"{tracker.name.lower()}.json"
        self.values: dict[str, Any] = {}
        with contextlib.suppress(errors.UsageError):
            self.values = files.read_json(self.path, "")
        tracker.cursor = self.values

    def save(self) -> None:
        """Write the cursor to disk."""
        files.write_json(self.path, self.values)


def delivery_lock(folder: Path) -> FileLock:
    """Return the lock of the process that delivers this run: two writers would duplicate points in event files."""
    return FileLock(folder / "state" / ".delivery.lock")


def deliver_pending(tracker: Tracker, folder: Path, cursor: dict[str, Any]) -> bool:
    """Deliver the journal rows in ``folder`` after ``cursor``, advance the cursor, and return whether there were any.

    Raises:
        Exception: any error of the tracker; ``cursor`` then points after the last rows that the tracker stored.
    """
    tracker.open()
    delivered = False
    while True:
        iterations = CsvTail(folder / "iterations.csv", cursor.get("iterations", 0))
        epochs = CsvTail(folder / "epochs.csv", cursor.get("epochs", 0))
        rows = iterations.read(MAX_ROWS_IN_MEMORY), epochs.read(MAX_ROWS_IN_MEMORY)
        if not any(rows):
            return delivered
        tracker.write(*rows)
        cursor.update(iterations=iterations.offset, epochs=epochs.offset)
        delivered = True
