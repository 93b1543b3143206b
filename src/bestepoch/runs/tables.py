"""Read and write the CSV tables of runs.

The columns are those of a table's header. Every finished line must hold a number for each of them; a last line without
its end, which a kill or a writer in the middle of it leaves, is passed over.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bestepoch.base.errors import UsageError
from bestepoch.base.paths import display_path

if TYPE_CHECKING:
    import numpy as np

Row = dict[str, float]
Value = TypeVar("Value")


class NamedValues(dict[str, Value]):
    """Values by the names of a table's columns. To ask for a column that the table lacks is a UsageError."""

    __slots__ = ("path",)

    path: Path

    def __missing__(self, name: str) -> Value:
        raise UsageError(
            f"{display_path(self.path)} has no column {name}; it has {', '.join(self)}. {_remedy(self.path)}"
        )


@dataclass
class CsvTail:
    """Incremental reader of a growing CSV file of numbers; an unfinished last line is left for a later read."""

    path: Path
    offset: int = 0  # bytes read so far
    columns: list[str] = field(default_factory=list)

    def read(self, limit: int | None = None) -> list[Row]:
        """Return up to ``limit`` rows added since the last call, oldest first; none when the file does not exist.

        Raises:
            UsageError: a line is no row of the table; the message names it.
        """
        if not self.path.exists():
            return []
        rows: list[Row] = []
        with self.path.open("rb") as file:
            header = file.readline()
            if not header.endswith(b"\n"):
                return []
            self.columns = _parse_header(self.path, header)
            self.offset = max(self.offset, file.tell())
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n") or len(rows) == limit:
                    break
                try:
                    row = NamedValues(zip(self.columns, map(float, line.split(b",")), strict=True))
                except ValueError:
                    raise _bad_line(self.path, self.offset, line, len(self.columns)) from None
                row.path = self.path
                rows.append(row)
                self.offset += len(line)
        return rows


def _parse_header(path: Path, line: bytes) -> list[str]:
    columns = line.decode(errors="replace").strip().split(",")
    if not all(name.isprintable() and name and not _is_number(name) for name in columns) or "\ufffd" in "".join(
        columns
    ):
        raise UsageError(
            f"{display_path(path)}, line 1: {_quote(line)} is no header: the names of the columns are needed, with "
            f"commas between them. {_remedy(path)}"
        )
    if len({*columns}) < len(columns):
        twice = next(name for i, name in enumerate(columns) if name in columns[:i])
        raise UsageError(f"{display_path(path)}, line 1: the column {twice} is there twice. {_remedy(path)}")
    return columns


def _bad_line(path: Path, offset: int, line: bytes, num_columns: int) -> UsageError:
    """Return the error for the line that starts at ``offset``, with its number and what is wrong with it."""
    with path.open("rb") as file:
        number = sum(chunk.count(b"\n") for chunk in _chunks(file, offset)) + 1
    fields = line.rstrip(b"\r\n").split(b",")
    if not line.strip():
        what = "the line is blank"
    elif len(fields) != num_columns:
        what = f"{len(fields)} fields, and the header names {num_columns} columns"
    else:
        what = f"{_quote(next((text for text in fields if not _is_number(text)), line))} is no number"
    return UsageError(f"{display_path(path)}, line {number}: {what}. {_remedy(path)}")


def _chunks(file: Any, size: int) -> Any:
    while size > 0 and (chunk := file.read(min(size, 1 << 20))):
        size -= len(chunk)
        yield chunk


def _quote(text: bytes) -> str:
    shown = text.rstrip(b"\r\n").decode(errors="replace")
    return ascii(shown if len(shown) <= 40 else f"{shown[:40]}...")


def _is_number(text: str | bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _remedy(path: Path) -> str:
    return f"Restore the file from a copy, or delete {display_path(path.parent)} and train again"


def read_rows(path: Path) -> list[Row]:
    """Return all finished rows of a table; none when the file does not exist.

    Raises:
        UsageError: a line is no row of the table.
    """
    return CsvTail(path).read()


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """Return the finished rows as one float64 array per column, in a twentieth of the memory of `read_rows`.

    Raises:
        UsageError: the file is missing, or a line is no row of the table.
    """
    import numpy as np

    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{display_path(path)} is not there. {_remedy(path)}") from None
    header, _, rows = content[: content.rfind(b"\n") + 1].partition(b"\n")
    columns = _parse_header(path, header)
    try:
        values = np.loadtxt(io.BytesIO(rows), delimiter=",", ndmin=2, comments=None) if rows.strip() else None
    except ValueError:
        values = None
    if values is None or values.shape != (rows.count(b"\n"), len(columns)):  # loadtxt passes over blank lines
        values = np.array([list(row.values()) for row in read_rows(path)]).reshape(-1, len(columns))
    arrays = NamedValues(zip(columns, values.T, strict=True))
    arrays.path = path
    return arrays


def read_since(path: Path, key: int) -> list[Row]:
    """Return the finished rows whose first column is greater than ``key``, reading the file from its end.

    The first column must increase from row to row.

    Raises:
        UsageError: a line that is read is no row of the table.
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


def read_key(path: Path, row: Row) -> int:
    """Return the first value of a row of the table ``path``, which counts iterations or epochs.

    Raises:
        UsageError: it is no whole number.
    """
    value = _first_value(row)
    if not value.is_integer():  # neither are nan and inf
        raise UsageError(f"{display_path(path)}: {value} is no {next(iter(row))} in the last line. {_remedy(path)}")
    return int(value)


def write_table(path: Path, columns: list[str], rows: list[list[Any]]) -> None:
    """Write a CSV file with a header line."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
