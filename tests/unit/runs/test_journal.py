"""The two CSV files of a run: what is handed in is there, once, as it was, whoever flushes and whatever was cut."""

from __future__ import annotations

import itertools
import math
import random
import re
import struct
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from bestepoch.base.errors import UsageError
from bestepoch.runs.journal import EPOCH_COLUMNS, ITERATION_COLUMNS, OPTIONAL_COLUMNS, Journal, to_floats
from bestepoch.runs.tables import CsvTail, read_columns, read_rows, read_since

ITERATIONS_HEADER = "iteration,epoch,train/loss,lr,train/grad_norm,time\n"
EPOCHS_HEADER = (
    "epoch,iteration,train/epoch_loss,train/eval_loss,train/eval_accuracy,val/loss,val/accuracy,lr,seconds,time\n"
)


def epoch_row(epoch: int, **values: float) -> dict[str, float]:
    row = {"epoch": epoch, "iteration": 10 * epoch, "train/epoch_loss": 0.5, "train/eval_loss": 0.375}
    row |= {"train/eval_accuracy": 0.95, "val/loss": 0.25, "val/accuracy": 0.9}
    return {**row, "lr": 0.1, "seconds": 1.5, **values}


def fill(folder: Path, *numbers: int) -> None:
    journal = Journal(folder)
    for i in numbers:
        journal.log_iteration(i, 1, i / 7, 0.1)
    journal.close()


def test_the_header_is_written_once_and_rows_are_appended(tmp_path: Path) -> None:
    fill(tmp_path, 1, 2)
    journal = Journal(tmp_path)
    journal.log_iteration(3, 2, 0.75, 0.05, 2.5)
    journal.log_epoch(epoch_row(1))
    journal.close()

    lines = (tmp_path / "iterations.csv").read_text().splitlines(keepends=True)
    assert lines[0] == ITERATIONS_HEADER == ",".join(ITERATION_COLUMNS) + "\n"
    assert [line.rsplit(",", 1)[0] for line in lines[1:]] == [
        f"1,1,{1 / 7!r},0.1,nan",
        f"2,1,{2 / 7!r},0.1,nan",
        "3,2,0.75,0.05,2.5",
    ]
    epochs = (tmp_path / "epochs.csv").read_text().splitlines(keepends=True)
    assert epochs[0] == EPOCHS_HEADER == ",".join(EPOCH_COLUMNS) + "\n"
    assert [line.rsplit(",", 1)[0] for line in epochs[1:]] == ["1,10,0.5,0.375,0.95,0.25,0.9,0.1,1.5"]


def test_each_row_has_the_time_at_which_it_was_handed_in(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    moments = []
    for i in (1, 2):
        before = time.time()
        journal.log_iteration(i, 1, 0.5, 0.1)
        moments.append((before, time.time()))
        time.sleep(0.05)
    journal.close()
    for row, (before, after) in zip(read_rows(tmp_path / "iterations.csv"), moments, strict=True):
        assert before - 0.001 <= row["time"] <= after + 0.001


def test_rows_reach_the_file_within_a_second_or_so_by_themselves(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    try:
        for i in (1, 2, 3):  # more than one flush: the thread goes on
            journal.log_iteration(i, 1, 0.5, 0.1)
            handed_in = time.monotonic()
            while len(read_rows(tmp_path / "iterations.csv")) < i:
                assert time.monotonic() - handed_in < 2, "no flush"
                time.sleep(0.01)
    finally:
        journal.close()


def test_flush_and_epoch_and_close_put_everything_down_at_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.log_iteration(1, 1, 0.5, 0.1)
    journal.flush(sync=True)
    assert [row["iteration"] for row in read_rows(tmp_path / "iterations.csv")] == [1]
    journal.log_iteration(2, 1, 0.5, 0.1)
    journal.log_epoch(epoch_row(1))
    # an epoch's row is never there before the iterations that it sums up
    assert [row["iteration"] for row in read_rows(tmp_path / "iterations.csv")] == [1, 2]
    assert [row["epoch"] for row in read_rows(tmp_path / "epochs.csv")] == [1]
    journal.log_iteration(3, 2, 0.5, 0.1)
    journal.close()
    assert [row["iteration"] for row in read_rows(tmp_path / "iterations.csv")] == [1, 2, 3]
    assert "journal" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("x,1,0.5,0.1,1.0,7.0", "line 4: 'x' is no number"),
        ("3,1,half,0.1,1.0,7.0", "line 4: 'half' is no number"),
        ("3,1,0.5", "line 4: 3 fields, and the header names 6 columns"),
        ("", "line 4: the line is blank"),
        ("nan,1,0.5,0.1,1.0,7.0", "nan is no iteration in the last line"),
        ("2.5,1,0.5,0.1,1.0,7.0", "2.5 is no iteration in the last line"),
    ],
)
def test_a_last_line_that_is_no_row_is_named_and_nothing_is_appended(tmp_path: Path, line: str, reason: str) -> None:
    fill(tmp_path, 1, 2)
    path = tmp_path / "iterations.csv"
    path.write_text(damaged := f"{path.read_text()}{line}\n")
    with pytest.raises(UsageError, match=re.escape(reason)):
        fill(tmp_path, 1, 2, 3)
    assert path.read_text() == damaged


@pytest.mark.parametrize("torn", ["3", "3,1,0.4285714", "3,1,0.42,0.1,17"])
def test_a_line_that_a_kill_left_unfinished_is_cut_off_on_reopening(tmp_path: Path, torn: str) -> None:
    fill(tmp_path, 1, 2)
    path = tmp_path / "iterations.csv"
    whole = path.read_text()
    path.write_text(whole + torn)
    Journal(tmp_path).close()
    assert path.read_text() == whole
    fill(tmp_path, 3)
    assert path.read_text().startswith(whole + f"3,1,{3 / 7!r},0.1,")
    assert path.read_text().count("\n") == 4


@pytest.mark.parametrize("left", ["", "iter", ITERATIONS_HEADER.rstrip("\n")])
def test_a_header_that_a_kill_left_unfinished_is_written_anew(tmp_path: Path, left: str) -> None:
    (tmp_path / "iterations.csv").write_text(left)
    fill(tmp_path, 1, 2)
    assert (tmp_path / "iterations.csv").read_text().startswith(ITERATIONS_HEADER)
    assert [row["iteration"] for row in read_rows(tmp_path / "iterations.csv")] == [1, 2]


def test_rows_that_are_in_the_file_are_not_written_twice(tmp_path: Path) -> None:
    fill(tmp_path, 1, 2, 3)
    journal = Journal(tmp_path)
    journal.log_epoch(epoch_row(1, **{"val/loss": 0.125}))
    journal.close()

    # a run that goes on from iteration 1 hands in 2 and 3 again
    journal = Journal(tmp_path)
    for i in (2, 3, 4):
        journal.log_iteration(i, 1, 99.0, 0.1)
    journal.log_epoch(epoch_row(1, **{"val/loss": 99.0}))
    journal.log_epoch(epoch_row(2))
    journal.log_epoch(epoch_row(2))
    journal.close()
    rows = read_rows(tmp_path / "iterations.csv")
    assert [(row["iteration"], row["train/loss"]) for row in rows] == [(1, 1 / 7), (2, 2 / 7), (3, 3 / 7), (4, 99.0)]
    assert [(row["epoch"], row["val/loss"]) for row in read_rows(tmp_path / "epochs.csv")] == [(1, 0.125), (2, 0.25)]


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


def test_values_come_back_to_the_bit(tmp_path: Path) -> None:
    draw = random.Random(0)
    values = [0.1 + 0.2, 1 / 3, math.pi * 1e-300, 5e-324, sys.float_info.max, 0.0, -0.0, 1e16, 123456789.123456789]
    values += [math.nan, math.inf, -math.inf]
    values += [struct.unpack("<d", draw.randbytes(8))[0] for _ in range(500)]
    values = [v for v in values if not math.isnan(v)] + [math.nan]
    journal = Journal(tmp_path)
    for i, value in enumerate(values, 1):
        journal.log_iteration(i, 1, value, value)
    journal.log_epoch(epoch_row(1, **{"train/epoch_loss": 0.1 + 0.2, "val/loss": math.nan, "val/accuracy": 1 / 3}))
    journal.close()
    rows = read_rows(tmp_path / "iterations.csv")
    assert [bits(row["train/loss"]) for row in rows] == [bits(v) for v in values]
    assert [bits(row["lr"]) for row in rows] == [bits(v) for v in values]
    (row,) = read_rows(tmp_path / "epochs.csv")
    assert bits(row["train/epoch_loss"]) == bits(0.1 + 0.2)
    assert bits(row["val/accuracy"]) == bits(1 / 3)
    assert math.isnan(row["val/loss"])


def test_tensors_on_a_device_are_losses_too(tmp_path: Path) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    losses = torch.rand(300, generator=torch.Generator().manual_seed(0)).to(device)
    journal = Journal(tmp_path)
    for i, loss in enumerate(losses, 1):
        assert isinstance(loss, torch.Tensor) and loss.ndim == 0
        journal.log_iteration(i, 1, loss, 0.1)
    journal.close()
    text = [line.split(",")[2] for line in (tmp_path / "iterations.csv").read_text().splitlines()[1:]]
    # a float32 is a float64 exactly, so every bit of it must be there
    assert text == [repr(value) for value in losses.tolist()]


def test_losses_of_a_resumed_epoch_are_numbers_and_tensors() -> None:
    mixed = [0.5, 0.25, torch.tensor(0.125), torch.tensor(2.0), 3.0]
    assert to_floats(mixed) == [0.5, 0.25, 0.125, 2.0, 3.0]
    assert all(isinstance(value, float) for value in to_floats(mixed))
    assert to_floats([]) == []


def test_nothing_is_lost_or_doubled_while_one_thread_adds_and_others_flush(tmp_path: Path) -> None:
    flushed, done = itertools.count(1), threading.Event()
    count = flushes = 0
    journal = Journal(tmp_path)
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads take turns hundreds of times more often than they would

    def flush_on() -> None:
        nonlocal flushes
        while not done.is_set():
            journal.flush()
            flushes = next(flushed)

    flushers = [threading.Thread(target=flush_on) for _ in range(3)]
    try:
        for thread in flushers:
            thread.start()
        while count < 60_000 or flushes < 50:
            if count >= 60_000:
                time.sleep(0.001)  # a slow disk has made fewer flushes in the time of as many additions
            count += 1
            journal.log_iteration(count, 1 + count // 1000, count * 0.1, 1 / count)
    finally:
        done.set()
        for thread in flushers:
            thread.join()
        sys.setswitchinterval(switch)
        journal.close()
    rows = read_rows(tmp_path / "iterations.csv")
    assert [row["iteration"] for row in rows] == list(range(1, count + 1))
    assert all(row["train/loss"] == i * 0.1 and row["lr"] == 1 / i for i, row in enumerate(rows, 1))


def test_a_reader_beside_the_writer_sees_whole_rows_in_order(tmp_path: Path) -> None:
    count, seen = 20_000, []
    journal = Journal(tmp_path)
    tail = CsvTail(tmp_path / "iterations.csv")
    done = threading.Event()

    def read_on() -> None:
        while not done.is_set():
            seen.extend(row["iteration"] for row in tail.read())

    reader = threading.Thread(target=read_on)
    reader.start()
    for i in range(1, count + 1):
        journal.log_iteration(i, 1, 0.5, 0.1)
        if i % 50 == 0:
            journal.flush()
    journal.close()
    done.set()
    reader.join()
    seen.extend(row["iteration"] for row in tail.read())
    assert seen == list(range(1, count + 1))


def test_a_run_without_the_optional_columns_keeps_its_tables(tmp_path: Path) -> None:
    for without in (OPTIONAL_COLUMNS, ()):  # resumed by a command that would have them
        journal = Journal(tmp_path, without)
        number = 1 if without else 2
        journal.log_iteration(number, number, 0.5, 0.1, 2.5)
        journal.log_epoch(epoch_row(number))
        journal.close()
    iterations, epochs = read_rows(tmp_path / "iterations.csv"), read_rows(tmp_path / "epochs.csv")
    assert [row["iteration"] for row in iterations] == [row["epoch"] for row in epochs] == [1, 2]
    for row, columns in ((iterations[0], ITERATION_COLUMNS), (epochs[0], EPOCH_COLUMNS)):
        assert list(row) == [name for name in columns if name not in OPTIONAL_COLUMNS]


def test_tail_reads_finished_lines_alone_and_continues_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "iterations.csv"
    tail = CsvTail(path)
    assert tail.read() == []  # no file yet
    path.write_text(ITERATIONS_HEADER)
    assert tail.read() == []
    with path.open("a") as file:
        file.write("1,1,0.5,0.1,2.5,7.000\n2,1,0.2")
    assert tail.read() == [
        {"iteration": 1, "epoch": 1, "train/loss": 0.5, "lr": 0.1, "train/grad_norm": 2.5, "time": 7}
    ]
    assert tail.read() == []
    offset = len(ITERATIONS_HEADER) + len("1,1,0.5,0.1,2.5,7.000\n")
    assert tail.offset == offset
    with path.open("a") as file:
        file.write("5,0.1,2.5,8.000\n3,1,0.125,0.1,2.5,9.000\n")
    assert [row["train/loss"] for row in tail.read()] == [0.25, 0.125]
    assert tail.offset == path.stat().st_size
    # another reader, given the place that the first one had, goes on from there
    assert [row["iteration"] for row in CsvTail(path, offset).read()] == [2, 3]


def test_tail_reads_no_more_rows_than_asked_for(tmp_path: Path) -> None:
    fill(tmp_path, *range(1, 8))
    tail = CsvTail(tmp_path / "iterations.csv")
    batches = [[int(row["iteration"]) for row in tail.read(3)] for _ in range(4)]
    assert batches == [[1, 2, 3], [4, 5, 6], [7], []]


def out_of_order(path: Path) -> None:
    """Nothing can be appended to it any more."""
    path.unlink()
    path.mkdir()


def test_a_disk_that_takes_nothing_is_the_callers_error(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    out_of_order(tmp_path / "iterations.csv")
    journal.log_iteration(1, 1, 0.5, 0.1)
    with pytest.raises(OSError):
        journal.flush()
    with pytest.raises(OSError):
        journal.log_epoch(epoch_row(1))
    with pytest.raises(OSError):
        journal.close()
    assert read_rows(tmp_path / "epochs.csv") == []


def test_an_error_of_the_writing_thread_reaches_the_caller_at_the_next_flush(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    out_of_order(tmp_path / "iterations.csv")
    journal.log_iteration(1, 1, 0.5, 0.1)
    journal._thread.join(5)  # it ends at its first flush
    assert not journal._thread.is_alive()
    journal.log_iteration(2, 1, 0.5, 0.1)
    with pytest.raises(OSError):
        journal.flush()
    with pytest.raises(OSError):
        journal.close()


def test_after_a_failed_flush_no_row_is_written_behind_the_hole(tmp_path: Path) -> None:
    path = tmp_path / "iterations.csv"
    journal = Journal(tmp_path)
    out_of_order(path)
    journal.log_iteration(1, 1, 0.5, 0.1)
    with pytest.raises(OSError):
        journal.flush()
    path.rmdir()
    path.write_text(ITERATIONS_HEADER)  # the disk has room again
    journal.log_iteration(2, 1, 0.5, 0.1)
    with pytest.raises(OSError):
        journal.close()
    # a row 2 here would make a resumed run believe that row 1 is there too
    assert read_rows(path) == []


@pytest.mark.parametrize("number", [0, 1, 4_999, 9_990, 10_000, 20_000])
def test_the_rows_after_a_number_are_read_without_the_rest(tmp_path: Path, number: int) -> None:
    path = tmp_path / "iterations.csv"
    rows = [f"{i},1,{i / 7!r},0.1,2.5,1700000000.125\n" for i in range(1, 10_001)]
    path.write_text(ITERATIONS_HEADER + "".join(rows) + "10001,1,0.3")  # a reader beside the writer
    assert path.stat().st_size > 4 * (1 << 16), "more than one look into the file"
    found = read_since(path, number)
    assert [row["iteration"] for row in found] == list(range(number + 1, 10_001))
    assert all(row["train/loss"] == row["iteration"] / 7 for row in found)


def test_the_rows_after_a_number_of_no_file_are_none(tmp_path: Path) -> None:
    assert read_since(tmp_path / "iterations.csv", 0) == []


def test_columns_hold_what_the_rows_hold_but_a_line_that_is_not_finished(tmp_path: Path) -> None:
    path = tmp_path / "iterations.csv"
    path.write_text(ITERATIONS_HEADER)
    assert [(name, len(values)) for name, values in read_columns(path).items()] == [
        (name, 0) for name in ITERATION_COLUMNS
    ]
    for text in ("1,1,0.1,0.2,2.5,3.5\n", "2,1,nan,2e-05,2.5,4.5\n3,1,0.3"):
        with path.open("a") as file:
            file.write(text)
        found, rows = read_columns(path), read_rows(path)
        assert all(
            list(map(repr, values.tolist())) == [repr(row[name]) for row in rows] for name, values in found.items()
        )
    assert len(rows) == 2


def test_the_first_loss_that_is_not_finite_is_noted_when_its_row_is_written(tmp_path: Path) -> None:
    """So a GPU need not be waited for at each iteration, and no checkpoint is written of spoiled weights."""
    record = Journal(tmp_path)
    for i, loss in enumerate((0.5, 0.25, float("nan"), float("inf")), 1):
        record.log_iteration(i, 1, torch.tensor(loss), 0.1 * i)
        if i == 2:
            record.flush()
            assert record.not_finite is None
    record.flush()
    assert record.not_finite is not None
    assert record.not_finite[:2] == (3, pytest.approx(0.3))
    assert math.isnan(record.not_finite[2])
    record.close()
    # a resumed run meets it again: the rows are there, and are not written twice
    again = Journal(tmp_path)
    again.log_iteration(3, 1, float("nan"), 0.3)
    again.flush()
    assert again.not_finite is not None and again.not_finite[0] == 3
    again.close()
