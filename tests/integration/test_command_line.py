"""The console script `bestepoch`, the help of each command, shell completion, and the settings of one machine."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from pathlib import Path

import pytest
import yaml

import live
import pipeline
from bestepoch.base.config import compose, local
from bestepoch.base.errors import UsageError
from bestepoch.cli.help import COMMANDS, EXAMPLES, describe_command

PROGRAM = str(pipeline.BIN / "bestepoch")
TRAIN = (*live.SAMPLE, "model=mlp", "train.epochs=1", "tracking.mlflow=false", "tracking.tensorboard=false")


def typed(*arguments: str, at: Path = live.CHECKOUT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAM, *arguments], cwd=at, env=live.environment(at, **environment), capture_output=True, text=True
    )


def test_alone_it_lists_the_commands() -> None:
    done = typed()
    assert done.returncode == 0 and done.stderr == ""
    files = {path.stem for path in (live.CHECKOUT / "src/bestepoch").glob("*.py")} - {"__init__"}
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert listed == list(COMMANDS) and {*listed} == files
    assert all(describe_command(name) in done.stdout for name in COMMANDS)
    assert max(len(line) for line in done.stdout.splitlines()) <= 100


def test_an_unknown_command_is_named_with_the_nearest() -> None:
    done = typed("tran")
    assert done.returncode == 2
    assert done.stderr.startswith("bestepoch: tran is not a command. Did you mean train?\n")


@pytest.mark.parametrize("command", ["train", "predict"])
def test_help_has_examples_menus_and_values(command: str) -> None:
    done = typed(command, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"bestepoch {command}: {describe_command(command)}\n")
    assert {len(EXAMPLES[name]) for name in COMMANDS} == {3}
    assert all(f"  bestepoch {command} {text}".rstrip() in done.stdout.splitlines() for text in EXAMPLES[command])
    assert "${" not in done.stdout
    if command not in ("predict", "ui"):
        assert "optimizer: adam, adamw, rmsprop, sgd" in done.stdout.splitlines()
        assert "  batch_size: 100" in done.stdout.splitlines()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("bestepoch ev", ["evaluate"]),
        ("bestepoch train optimizer=a", ["optimizer=adam", "optimizer=adamw"]),
        ("bestepoch evaluate selection.me", ["selection.metric="]),
        ("bestepoch nothing opti", []),
    ],
)
def test_bash_completes(line: str, expected: list[str]) -> None:
    script = (
        'eval "$(bestepoch -sc install=bash)"\n'
        f'COMP_LINE="{line}"; COMP_POINT=${{#COMP_LINE}}; COMP_CWORD={len(line.split()) - 1}\n'
        'hydra_bash_completion; echo "${COMPREPLY[@]}"; complete -p bestepoch'
    )
    environment = live.environment(live.CHECKOUT)
    environment["PATH"] = f"{pipeline.BIN}:{environment['PATH']}"
    done = subprocess.run(["bash", "-c", script], cwd=live.CHECKOUT, env=environment, capture_output=True, text=True)
    words, registered = done.stdout.splitlines()
    assert (words.split(), done.stderr) == (expected, "")
    assert registered.endswith("-F hydra_bash_completion bestepoch")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return live.with_split(live.project(tmp_path_factory.mktemp("command_line") / "project"))


def test_a_run_holds_its_configuration_and_overrides(project: Path) -> None:
    """In a training by the console script, with the settings of a machine."""
    (project / "conf/local").mkdir()
    (project / local.PATH).write_text(f"{local.HEADER}\ndevice:\n  threads: 2\ncheckpoint:\n  every_seconds: 7\n")
    done = typed("train", *TRAIN, at=project)
    assert done.returncode == 0, done.stderr
    assert "local    conf/local/default.yaml sets device.threads, checkpoint.every_seconds\n" in done.stderr
    run = live.only_run(project)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["checkpoint"]["every_seconds"] == 7
    assert config["device"]["threads"] == 1, "the command line is above the machine"
    assert yaml.safe_load((run / "overrides.yaml").read_text()) == [*TRAIN]
    assert json.loads((run / "run.json").read_text())["config"]["train"] == config["train"]
    assert "local" not in live.git(project, "status", "--porcelain")


def test_ctrl_c_ends_a_stage_that_waits_with_one_line(project: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mirror = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with live.started(project, "fetch", "data=mnist", BESTEPOCH_MIRROR=mirror) as stage:
            silent.settimeout(60)
            silent.accept()[0].recv(100)  # it has asked, and waits
            assert stage.signal(signal.SIGINT) == 130
            printed = stage.printed()
    assert printed.splitlines()[-1] == "bestepoch: stopped by Ctrl-C; the same command goes on from here"
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("device:\n  threads: 1\n", "conf/local/default.yaml must begin with the line: # @package _global_"),
        (
            f"{local.HEADER}\ntrain:\n  epochs: 3\n",
            "conf/local/default.yaml: train.epochs is not a setting of a machine",
        ),
        (f"{local.HEADER}\ndevice: [\n", "conf/local/default.yaml is not readable"),
        (f"{local.HEADER}\ndevice:\n  treads: 1\n", "device.treads is not a setting. Did you mean device.threads?"),
    ],
)
def test_a_wrong_file_of_a_machine_is_refused(
    text: str, message: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    (project / "conf/local").mkdir(exist_ok=True)
    (project / local.PATH).write_text(text)
    with pytest.raises(UsageError, match=message):
        compose.load_config([], False)
