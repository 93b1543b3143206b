"""A table that somebody or something has damaged is named with the line, by every reader of it."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bestepoch.base.errors import UsageError
from bestepoch.runs.tables import CsvTail, read_columns, read_rows, read_since

HEADER = "iteration,epoch,train/loss\n"
REMEDY = "Restore the file from a copy, or delete runs/a-run and train again"
READERS: dict[str, Callable[[Path], Any]] = {
    "rows": read_rows,
    "columns": read_columns,
    "since": lambda path: read_since(path, 0),
    "tail": lambda path: CsvTail(path).read(5),
}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "runs/a-run").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs/a-run/iterations.csv"


DAMAGE = {
    "blank line": ("1,1,0.5\n\n2,1,0.25\n", "line 3: the line is blank"),
    "blank first line": ("\n1,1,0.5\n", "line 2: the line is blank"),
    "blank last line": ("1,1,0.5\n\n", "line 3: the line is blank"),
    "spaces": ("1,1,0.5\n   \n", "line 3: the line is blank"),
    "field missing": ("1,1,0.5\n2,1\n3,1,0.125\n", "line 3: 2 fields, and the header names 3 columns"),
    "field missing in all": ("1,1\n2,1\n", "line 2: 2 fields, and the header names 3 columns"),
    "field too many": ("1,1,0.5\n2,1,0.25,7\n", "line 3: 4 fields, and the header names 3 columns"),
    "empty field": ("1,1,\n", "line 2: '' is no number"),
    "text": ("1,1,0.5\n2,1,good\n", "line 3: 'good' is no number"),
    "comment": ("1,1,0.5\n# 2,1,0.25\n", "line 3: '# 2' is no number"),
    "comment at the end": ("1,1,0.5 # half\n", "line 2: '0.5 # half' is no number"),
    "zeros": ("1,1,0.5\n\0\0\0\n", "line 3: 1 fields, and the header names 3 columns"),
    "zeros in a field": ("1,1,0.5\n2,1,0.2\0\0\n", r"line 3: '0.2\x00\x00' is no number"),
    "header again": (f"1,1,0.5\n{HEADER}", "line 3: 'iteration' is no number"),
    "long text": (f"1,1,{'x' * 1000}\n", f"line 2: '{'x' * 40}...' is no number"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_line_is_named(path: Path, kind: str, reader: str) -> None:
    rows, reason = DAMAGE[kind]
    path.write_text(HEADER + rows, encoding="utf-8")
    with pytest.raises(UsageError) as error:
        READERS[reader](path)
    assert str(error.value) == f"runs/a-run/iterations.csv, {reason}. {REMEDY}"


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("torn", ["2", "2,1,", "2,1,0.25", "2,x", "\0\0\0"])
def test_a_last_line_without_its_end_is_passed_over(path: Path, torn: str, reader: str) -> None:
    path.write_text(f"{HEADER}1,1,0.5\n{torn}", encoding="utf-8")
    found = READERS[reader](path)
    if reader == "columns":
        found = [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]
    assert found == [{"iteration": 1, "epoch": 1, "train/loss": 0.5}]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("1,1,0.5\n", "'1,1,0.5' is no header: the names of the columns are needed, with commas between them"),
        ("\n", "'' is no header: the names of the columns are needed, with commas between them"),
        (
            "iteration,,lr\n",
            "'iteration,,lr' is no header: the names of the columns are needed, with commas between them",
        ),
        ("\0\0\n", r"'\x00\x00' is no header: the names of the columns are needed, with commas between them"),
        ("iteration,lr,lr\n", "the column lr is there twice"),
    ],
)
def test_a_damaged_header_is_named(path: Path, header: str, reason: str, reader: str) -> None:
    path.write_text(f"{header}1,1,0.5\n", encoding="utf-8")
    with pytest.raises(UsageError) as error:
        READERS[reader](path)
    assert str(error.value) == f"runs/a-run/iterations.csv, line 1: {reason}. {REMEDY}"


def test_a_column_that_the_table_lacks_is_named_when_it_is_asked_for(path: Path) -> None:
    path.write_text("iteration,lr\n1,0.5\n", encoding="utf-8")
    for row in (read_rows(path)[0], pickle.loads(pickle.dumps(read_rows(path)[0])), read_columns(path)):
        assert row.get("train/loss") is None
        assert "train/loss" not in row
        with pytest.raises(UsageError) as error:
            row["train/loss"]
        assert str(error.value) == f"runs/a-run/iterations.csv has no column train/loss; it has iteration, lr. {REMEDY}"


def test_any_columns_are_read(path: Path) -> None:
    path.write_text("a,train/grad norm,β\r\n1,nan,-inf\r\n", encoding="utf-8")
    [row] = read_rows(path)
    assert list(row) == list(read_columns(path)) == ["a", "train/grad norm", "β"]
    assert (row["a"], row["β"]) == (1, -math.inf) and math.isnan(row["train/grad norm"])


def test_the_line_number_counts_from_the_beginning_wherever_reading_began(path: Path) -> None:
    rows = [f"{i},1,{i / 7!r}\n" for i in range(1, 10_001)]
    rows[9_990] = "9991,1,lost\n"
    path.write_text(HEADER + "".join(rows), encoding="utf-8")
    for read in (lambda: read_since(path, 9_000), lambda: read_rows(path)):
        with pytest.raises(UsageError, match=r"^runs/a-run/iterations\.csv, line 9992: 'lost' is no number"):
            read()
    tail = CsvTail(path)
    assert len(tail.read(9_990)) == 9_990
    with pytest.raises(UsageError, match="line 9992"):
        tail.read()
    assert tail.offset == len(HEADER + "".join(rows[:9_990])), "the rows before the line are read once"


def test_a_table_that_is_not_there_has_no_rows(path: Path) -> None:
    assert read_rows(path) == CsvTail(path).read() == read_since(path, 0) == []
    path.write_text("iteration,ep", encoding="utf-8")  # the first line is being written
    assert read_rows(path) == CsvTail(path).read() == []
    path.unlink()
    with pytest.raises(UsageError, match=r"^runs/a-run/iterations\.csv is not there\. Restore the file"):
        read_columns(path)


def test_no_row_is_left_out_of_a_long_table(path: Path) -> None:
    count = 1_000_003
    path.write_text("iteration\n" + "".join(f"{i}\n" for i in range(1, count + 1)), encoding="utf-8")
    assert len(read_rows(path)) == count
