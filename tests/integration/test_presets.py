"""Each preset for one training reaches what its header promises, on the real images."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

import live

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path(os.environ.get("BESTEPOCH_MIRROR") or "-").is_dir(), reason="needs the real files"),
]
SLOWER = 6  # than the machine of the header: another test runs at the same time, with one thread each
LONG = pytest.mark.skipif("BESTEPOCH_LONG" not in os.environ, reason="takes half an hour; BESTEPOCH_LONG=1 asks for it")


@pytest.mark.parametrize("name", ["quick", pytest.param("accurate", marks=LONG)])
def test_a_preset_keeps_its_promise(name: str, tmp_path: Path) -> None:
    folder = live.with_store(live.project(tmp_path))
    header = (folder / f"conf/experiment/{name}.yaml").read_text()
    (command,) = re.findall(r"^#   python -m bestepoch\.train (.*)$", header, re.MULTILINE)
    (least,) = re.findall(r"at least (\d\d\.\d+) % test accuracy", header)
    (seconds,) = re.findall(r"(\d+) s of training", header)
    printed = live.run(
        folder,
        "train",
        *command.split(),
        "device.name=cpu",
        seconds=SLOWER * float(seconds) + 180,
        BESTEPOCH_MIRROR=os.environ["BESTEPOCH_MIRROR"],
    )
    run = live.only_run(folder)
    live.run(folder, "evaluate", f"run=runs/{run.name}")
    assert json.loads((run / "evaluate/metrics.json").read_text())["test_accuracy"] >= float(least) / 100, printed
    spent = json.loads((run / "run.json").read_text())["time_by_section"]
    assert sum(spent.values()) - spent["startup"] < SLOWER * float(seconds)
