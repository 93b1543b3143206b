"""Run a command in a copy of the project whose settings a test may spoil."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

MENUS = ("data", "model", "optimizer", "scheduler", "augment", "stopping")


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {path.name}"
    path.write_text(text.replace(old, new), encoding="utf-8")


def said(text: str, *parts: str) -> None:
    for part in parts:
        assert part in text, f"{part!r} is not in {text!r}"


def leaves(values: object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(values, dict):
        return [path]
    return [leaf for key, value in values.items() for leaf in leaves(value, (*path, str(key)))]


def run(project: Path, *command: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    environment = {
        **{k: v for k, v in os.environ.items() if k not in ("HYDRA_FULL_ERROR", "BESTEPOCH_MIRROR")},
        "PYTHONPATH": str(project / "src"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return subprocess.run(
        [sys.executable, *options, "-m", *command],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
