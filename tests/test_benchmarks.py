"""The benchmark of tracking counts what it claims."""

from __future__ import annotations

import importlib
import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import live

BENCHMARKS = live.CHECKOUT / "benchmarks"
VARIANTS = ["plain", "by-hand", "bestepoch"]  # plain is always measured
UPDATES = 41  # one epoch of the sample

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("benchmarks")]  # one process, so one measurement for all tests


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("tables")


def benchmark(name: str, folder: Path, *options: str) -> tuple[dict[str, Any], str]:
    """The results and what was printed."""
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{name}.py"), *options, "--out=results.json"],
        cwd=folder,
        env=live.environment(live.CHECKOUT),
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "results.json").read_text()), done.stdout


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """The folder as the last variant, bestepoch, left it; the results; what was printed."""
    folder = tmp_path_factory.mktemp("benchmark")
    tiny = ["--data=mnist_sample", "--rounds=1", "--models=mlp", "--epochs-mlp=1", "--variants", *VARIANTS[1:]]
    return folder / "work", *benchmark("tracking", folder, *tiny, f"--folder={folder / 'work'}")


def test_every_variant_is_measured_and_shown(measured: Any, tables: Any) -> None:
    _, results, printed = measured
    model = results["models"]["mlp"]
    assert model["iterations"] == UPDATES
    assert list(model["ms"]) == VARIANTS
    assert all(len(times) == 1 and times[0] > 0 for times in model["ms"].values())
    assert printed == tables.tracking(results) + "\n"
    assert [tables.VARIANTS[name] in printed for name in tables.VARIANTS] == [
        name in VARIANTS for name in tables.VARIANTS
    ]
    assert f"| {model['ms']['plain'][0]:.2f} ms |" in printed


@pytest.mark.parametrize("tracker", ["MLflow", "TensorBoard"])
def test_a_lost_or_doubled_point_fails_the_benchmark(
    measured: Any, tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    check = importlib.import_module("common").check
    folder = shutil.copytree(measured[0], tmp_path / "copy")
    check(folder, UPDATES)
    with pytest.raises(ValueError, match=f"MLflow has {UPDATES} points of train/loss"):
        check(folder, UPDATES + 1)
    if tracker == "MLflow":
        with sqlite3.connect(folder / "mlflow.db") as store:
            store.execute("UPDATE metrics SET step = 8 WHERE key = 'lr' AND step = 7")
    else:
        (events,) = folder.rglob("events.out.tfevents.*")
        shutil.copyfile(events, events.with_name(f"{events.name}.again"))
    with pytest.raises(ValueError, match=f"{tracker} has"):
        check(folder, UPDATES)


def test_the_outages_are_measured_and_shown(tables: Any, tmp_path: Path) -> None:
    tiny = ["--data=mnist_sample", "--rounds=1", "--epochs=1"]
    results, printed = benchmark("outages", tmp_path, *tiny)
    assert set(results["seconds"]) == set(tables.OUTAGES)
    assert all(len(times) == 1 and times[0] > 0 for times in results["seconds"].values())
    assert printed == tables.outages(results) + "\n"


def test_the_readme_shows_the_committed_results(tables: Any) -> None:
    text = (live.CHECKOUT / "README.md").read_text()
    assert tables.replaced(text) == text, "python benchmarks/tables.py --write"
    with pytest.raises(ValueError, match="bench:kills 0 times"):
        tables.replaced(text.replace("<!-- bench:kills -->", ""))
