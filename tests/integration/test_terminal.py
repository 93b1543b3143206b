"""What a person sees while training: on terminals of every width, in a pipe, and in CI's log."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import struct
import subprocess
import termios
from pathlib import Path

import pytest

import live

pytestmark = pytest.mark.xdist_group("terminal")
TRAIN = (*live.SAMPLE, "model=mlp", "model.hidden=[16]", "tracking.mlflow=false", "tracking.tensorboard=false")
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return live.with_split(live.project(tmp_path_factory.mktemp("terminal")))


def on_a_terminal(project: Path, *overrides: str, width: int = 120, **more: str) -> str:
    """All that training sends to a terminal so wide, escape sequences and all."""
    mine, its = os.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    kept = {key: value for key, value in live.environment(project).items() if key not in ("CI", "NO_COLOR", "COLUMNS")}
    process = subprocess.Popen(
        live.command("train", *TRAIN, *overrides),
        cwd=project,
        env={**kept, "TERM": "xterm-256color", **more},
        stdin=subprocess.DEVNULL,
        stdout=its,
        stderr=its,
    )
    os.close(its)
    parts = []
    while True:
        try:
            part = os.read(mine, 1 << 16)
        except OSError:  # Linux's way to say that nobody has the other end
            part = b""
        if not part:
            break
        parts.append(part)
    os.close(mine)
    assert process.wait(60) == 0, b"".join(parts).decode()
    return b"".join(parts).decode()


def pieces(shown: str) -> list[str]:
    """What is written between one movement of the cursor and the next, without colours."""
    return [ESCAPE.sub("", piece).rstrip() for piece in re.split(r"[\r\n]|\x1b\[\d*[AK]", shown)]


def bars(shown: str) -> list[str]:
    """The states of the progress line."""
    return [piece for piece in pieces(shown) if re.match(r"epoch \d+ .*loss \d", piece)]


@pytest.mark.parametrize(
    ("width", "there", "left_out"),
    [
        (120, ["loss", "lr", "val", "/615"], []),
        (90, ["loss", "val", "/615", "━"], ["lr"]),
        (70, ["loss", "val", "/615"], ["lr", "━"]),
        (50, ["loss", "/615"], ["lr", "━", "val"]),
        (40, ["loss"], ["lr", "━", "val", "/615"]),
    ],
)
def test_the_progress_line_fits_the_terminal(project: Path, width: int, there: list[str], left_out: list[str]) -> None:
    shown = on_a_terminal(project, "train.epochs=15", f"seed={width}", width=width)
    lines = bars(shown)
    assert len(lines) > 2, ESCAPE.sub("", shown)
    assert max(map(len, lines)) <= width
    for word in there:
        assert word in lines[-1], lines[-1]
    for word in left_out:
        assert word not in lines[-1], lines[-1]
    assert re.search(r"\d:\d\d", lines[-1]), "the time that is left"
    if "val" in there:
        assert any(re.search(r"val \d\.\d{4} \d+\.\d\d%", line) for line in lines)
    # the epochs' own lines stay, and the bar is gone at the end
    told = [re.match(r"epoch +(\d+)/15  train \d", piece) for piece in pieces(shown)]
    assert [int(found[1]) for found in told if found] == list(range(1, 16))
    assert shown.rstrip().rsplit("verdict", 1)[1].count("━") == 0


def test_labels_are_bold_on_a_terminal_alone(project: Path) -> None:
    shown = on_a_terminal(project, "train.epochs=1", "seed=1")
    for label in ("run", "plan", "device", "time", "verdict", "suggest", "evaluate", "compare"):
        assert f"\x1b[1;36m{label}\x1b[0m " in shown
    assert "make ui" in shown and "python -m bestepoch.evaluate run=runs/" in shown
    for seed, name in enumerate(("NO_COLOR", "CI"), 2):
        silent = on_a_terminal(project, "train.epochs=1", f"seed={seed}", **{name: "1"})
        assert "\x1b[1;36m" not in silent
    assert "\x1b" not in silent, "in CI nothing moves either"


def test_a_pipe_gets_plain_lines(project: Path) -> None:
    printed = live.run(project, "train", *TRAIN, "train.epochs=2", "seed=9")
    assert "\x1b" not in printed and "\r" not in printed
    lines = printed.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("epoch")] == ["1/2", "2/2"]
    assert sum(line.startswith("verdict  ") for line in lines) == 1
    assert lines[-1] == "compare  make ui"
    wanted = ("4,050 images ÷ 100 a batch = 41 iterations an epoch", "2 epochs × 41 iterations = 82 updates")
    for arithmetic in wanted:
        assert any(line.startswith("plan     " + arithmetic) for line in lines), printed


@pytest.mark.parametrize("end", ["<&- >&- 2>&-", "2>&1 | head -3"])
def test_a_run_needs_nobody_who_reads_along(project: Path, end: str) -> None:
    command = shlex.join(live.command("train", *TRAIN, "train.epochs=1", f"seed={len(end)}"))
    line = f"{command} {end}"
    subprocess.run(["bash", "-c", line], cwd=project, env=live.environment(project), timeout=180, check=True)
    (record,) = project.glob(f"runs/*-s{len(end)}-*/run.json")
    assert json.loads(record.read_text())["status"] == "finished"


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_a_locale_without_utf8_reads_umlauts_and_prints_what_it_lacks_as_escapes(tmp_path: Path) -> None:
    project = live.with_split(live.project(tmp_path))
    for name in ("params.yaml", "conf/config.yaml", "conf/model/mlp.yaml"):
        text = (project / name).read_text(encoding="utf-8")
        (project / name).write_text(f"# Prüfung: 10 ÷ 2\n{text}", encoding="utf-8")
    printed = live.run(project, "train", *TRAIN, "train.epochs=1", **ASCII)
    assert r"4,050 images \xf7 100 a batch" in printed and printed.isascii()
    code = "from bestepoch.cli.process import configure_process as c; c(); print('2', chr(215), '2')"
    assert live.python(code, **ASCII) == "2 \\xd7 2\n"
