"""A training that waits for the cores says so once, and that fewer threads wait less."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import live
from bestepoch.training import cores

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
needs_linux = pytest.mark.skipif(not cores.SCHEDSTAT.exists(), reason="the system does not say how long a thread waits")


@contextlib.contextmanager
def busy_machine() -> Iterator[None]:
    """Two busy processes for each core."""
    count = 2 * (os.cpu_count() or 1)
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def compute_beside(watch: cores.CoreWatch) -> str | None:
    for _ in range(2_000_000):
        pass
    return watch.describe_wait()


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@needs_linux
def test_threads_that_wait_for_a_core_say_so_once(threads: None) -> None:
    with busy_machine():
        watch = cores.CoreWatch(CPU)
        said = [compute_beside(watch) for _ in range(6)]
    (line,) = filter(None, said)
    words = r"busy     the 2 threads waited \d\d% of this epoch for a core; device.threads=1 may be faster"
    assert re.fullmatch(words, line)


def test_nothing_is_said_of_one_thread_nor_where_the_system_does_not_say(
    threads: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cores, "NOTICEABLE_SHARE", 0.0)
    assert cores.CoreWatch(torch.device("meta")).describe_wait() is None
    monkeypatch.setattr(cores, "SCHEDSTAT", tmp_path / "none")
    assert cores.CoreWatch(CPU).describe_wait() is None
    monkeypatch.undo()
    torch.set_num_threads(1)
    monkeypatch.setattr(cores, "NOTICEABLE_SHARE", 0.0)
    assert cores.CoreWatch(CPU).describe_wait() is None


@needs_linux
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two threads are refused on one core")
def test_a_training_on_a_busy_machine_prints_the_line_and_records_nothing_of_it(tmp_path: Path) -> None:
    project = live.with_split(live.project(tmp_path))
    off = ("tracking.mlflow=false", "tracking.tensorboard=false", "model=mlp", "train.epochs=4")
    with busy_machine():
        printed = live.run(project, "train", *live.SAMPLE, *off, "device.threads=2")
    assert printed.count("\nbusy     the 2 threads waited ") == 1
    assert "waited" not in (live.only_run(project) / "run.json").read_text()
