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


def read_rows(path: Path) -> list[Row]:
    """All finished rows of a journal file, as numbers; none where there is no file."""
    return CsvTail(path).read()


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """The finished rows as one array a column, float64: a twentieth of the memory that `read` takes."""
    import numpy as np

    content = path.read_bytes()
    header, _, rows = content[: content.rfind(b"\n") + 1].partition(b"\n")
    values = np.loadtxt(io.BytesIO(rows), delimiter=",", ndmin=2) if rows else np.empty((0, len(header.split(b","))))
    return dict(zip(header.decode().split(","), values.T, strict=True))


def read_since(path: Path, number: int) -> list[Row]:
    """The finished rows whose first column is above ``number``, without reading all that is before them."""
    size, step = path.stat().st_size if path.exists() else 0, 1 << 16
    while True:
        start = max(size - step, 0)
        rows = CsvTail(path, _next_line(path, start)).read()
        if not start or (rows and _row_number(rows[0]) <= number):
            return [row for row in rows if _row_number(row) > number]
        step *= 2


def _next_line(path: Path, offset: int) -> int:
    if not offset:
        return 0
    with path.open("rb") as file:
        file.seek(offset)
        file.readline()
        return file.tell()


def _row_number(row: Row) -> float:
    return next(iter(row.values()))


def write_table(path: Path, columns: list[str], rows: list[list[Any]]) -> None:
    """A small CSV file as a whole."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
