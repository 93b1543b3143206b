"""Ctrl-C at any moment of a command: one line, exit code 130, and no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import live

LINE = "bestepoch: stopped by Ctrl-C; the same command goes on from here"
SHORT_LINE = LINE.partition(";")[0]
TRAIN = (*live.SAMPLE, "model=mlp", "model.hidden=[8]", "tracking.mlflow=false", "tracking.tensorboard=false")
BY_STAGE_FILE = [sys.executable, "src/stage.py", "train", *TRAIN]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return live.with_split(live.project(tmp_path_factory.mktemp("interrupts")))


def interrupted(command: list[str], project: Path, moment: str) -> tuple[int, str]:
    """The exit code and all output of a command whose process group gets Ctrl-C as soon as it has printed a text.

    Python prints each import.
    """
    shown = project / "shown"
    with shown.open("w") as out:
        process = subprocess.Popen(
            command,
            cwd=project,
            env=live.environment(project, PYTHONVERBOSE="1"),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        end = time.monotonic() + 90
        while moment not in shown.read_text():
            assert process.poll() is None and time.monotonic() < end, shown.read_text()[-2000:]
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGINT)
        code = process.wait(60)
    return code, shown.read_text()


@pytest.mark.parametrize(
    ("command", "module"),
    [
        (live.command("train", *TRAIN), "bestepoch.base.interrupt"),
        (live.command("train", *TRAIN), "pydantic.types"),
        (live.command("train", *TRAIN), "hydra.core"),
        (live.command("train", *TRAIN), "torch._C"),
        (live.command("evaluate"), "pydantic.types"),
        (live.command("study", "run=runs/a"), "bestepoch.runs.run"),
        (live.command("promote", "sweep=runs/sweeps/a"), "bestepoch.sweeps.leaderboard"),
        (live.command("predict", "one.png"), "bestepoch.prediction"),
        (live.command("fetch", *live.SAMPLE), "hydra.core"),
        (BY_STAGE_FILE, "bestepoch.base.interrupt"),
        (BY_STAGE_FILE, "omegaconf"),
    ],
)
def test_ctrl_c_during_an_import_ends_a_command_with_one_line(project: Path, command: list[str], module: str) -> None:
    code, shown = interrupted(command, project, f"import '{module}'")
    assert "Traceback (most recent" not in shown and "Exception ignored" not in shown
    assert code == 130
    # before the package is imported there is nothing to go on with
    assert [line for line in shown.splitlines() if line.startswith("bestepoch: ")] in ([LINE], [SHORT_LINE])


def test_a_stopped_sweep_names_the_command_of_the_sweep_and_not_of_a_job(project: Path) -> None:
    overrides = [*TRAIN, "train.epochs=500", "seed=1,2"]
    command = live.command("train", "-m", *overrides)
    with live.started(project, "train", "-m", *overrides) as sweep:
        sweep.until(lambda: list(project.glob("runs/sweeps/*/*/checkpoints/epoch-0002*")))
        assert sweep.signal(signal.SIGINT) == 130
        printed = sweep.printed()
    assert "Traceback" not in printed
    assert "stopped by SIGINT; the same command goes on from here\n" in printed
    (again,) = [line for line in printed.splitlines() if line.startswith("again ")]
    assert again.split()[1:4] == ["python", *command[1:3]] and again.endswith("seed=1,2")


def test_a_program_that_uses_the_package_keeps_its_own_signals() -> None:
    code = "import signal, bestepoch; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    assert live.python(code).strip() == "True"
