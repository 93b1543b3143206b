"""Read and write the CSV tables of runs."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

Row = dict[str, float]


@dataclass
class CsvTail:
    """Incremental reader of a growing CSV file of numbers; an unfinished last line is left for a later read."""

    path: Path
    offset: int = 0  # bytes read so far
    columns: list[str] = field(default_factory=list)

    def read(self, limit: int = 1_000_000) -> list[Row]:
        """Return up to ``limit`` rows added since the last call, oldest first; none when the file does not exist."""
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


def read_rows(path: Path) -> list[Row]:
    """Return all finished rows of a table; none when the file does not exist."""
    return CsvTail(path).read()


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """Return the finished rows as one float64 array per column, in a twentieth of the memory of `read_rows`."""
    import numpy as np

    content = path.read_bytes()
    header, _, rows = content[: content.rfind(b"\n") + 1].partition(b"\n")
    values = np.loadtxt(io.BytesIO(rows), delimiter=",", ndmin=2) if rows else np.empty((0, len(header.split(b","))))
    return dict(zip(header.decode().split(","), values.T, strict=True))


def read_since(path: Path, key: int) -> list[Row]:
    """Return the finished rows whose first column is greater than ``key``, reading the file from its end.

    The first column must increase from row to row.
    """
    size, tail_bytes = path.stat().st_size if path.exists() else 0, 1 << 16
    while True:
        start = max(size - tail_bytes, 0)
        rows = CsvTail(path, _next_line(path, start)).read()
        if not start or (rows and _first_value(rows[0]) <= key):
            return [row for row in rows if _first_value(row) > key]
        tail_bytes *= 2


def _next_line(path: Path, offset: int) -> int:
    """Return the offset of the first line that starts after ``offset``, or 0 for offset 0."""
    if not offset:
        return 0
    with path.open("rb") as file:
        file.seek(offset)
        file.readline()
        return file.tell()


def _first_value(row: Row) -> float:
    return next(iter(row.values()))


def write_table(path: Path, columns: list[str], rows: list[list[Any]]) -> None:
    """Write a CSV file with a header line."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
