"""How far a tracker has come with a run, and the delivery of what is missing."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from filelock import FileLock

from bestepoch.base import errors, files
from bestepoch.runs.tables import CsvTail
from bestepoch.tracking.base import Tracker

MAX_ROWS_IN_MEMORY = 5000  # rows held in memory at once, however far behind a tracker is


class DeliveryCursor:
    """How far one tracker has come with one run, kept in ``state/<tracker>.json`` between attempts."""

    def __init__(self, folder: Path, tracker: Tracker) -> None:
        self.path = folder / "state" / f"{tracker.name.lower()}.json"
        self.values: dict[str, Any] = {}
        with contextlib.suppress(errors.UsageError):
            self.values = files.read_json(self.path, "")
        tracker.cursor = self.values

    def save(self) -> None:
        """Put it on the disk."""
        files.write_json(self.path, self.values)


def delivery_lock(folder: Path) -> FileLock:
    """Held by the one process that delivers this run: two writers would double the points of event files."""
    return FileLock(folder / "state" / ".delivery.lock")


def deliver_pending(tracker: Tracker, folder: Path, cursor: dict[str, Any]) -> bool:
    """Deliver what the journal in ``folder`` holds beyond ``place``, which moves on; whether there was anything.

    Raises:
        Exception: whatever the tracker raised; ``place`` is then where the tracker's last success left it.
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
