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
from mlflow import MlflowClient

import live
from bestepoch.tracking.mlflow.run import MlflowTracker

BENCHMARKS = live.CHECKOUT / "benchmarks"
sys.path.append(str(BENCHMARKS))
import servers  # noqa: E402

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
        timeout=400,
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


def test_a_sweep_is_measured_and_shown(tables: Any, tmp_path: Path) -> None:
    tiny = ["--data=mnist_sample", "--rounds=1", "--epochs=1", "--jobs=3"]
    results, printed = benchmark("sweeps", tmp_path, *tiny)
    assert {name: len(times) for name, times in results["wall"].items()} == {"basic": 1, "joblib": 1}
    assert all(times[0] > 0 for times in results["wall"].values())
    assert len(results["beyond"]) == 1
    assert printed == tables.sweeps(results) + "\n"


def test_the_default_experiment_is_measured_beside_the_other_example(tables: Any, tmp_path: Path) -> None:
    """On the sample, where neither reaches what the table is about."""
    results, printed = benchmark("default", tmp_path, "--data=mnist_sample", "--their-images=640", "--seeds", "3", "4")
    assert [run["seed"] for run in results["runs"]] == [3, 4] and len(results["theirs"]) == 2
    for run in results["runs"]:
        assert 0 < run["start"] < run["ends"][0] < run["ends"][-1] < run["seconds"]
        assert sum(run["spent"].values()) <= run["seconds"]
        # that of the chosen epoch is what the stage has found
        assert run["epochs_test_accuracy"][run["best_epoch"] - 1] == run["test_accuracy"] > 0.5
    assert printed == tables.default(results) + "\n"
    results["runs"][0]["epochs_test_accuracy"] = [0.9899] + [0.9901] * (len(results["runs"][0]["ends"]) - 1)
    results["runs"][1]["epochs_test_accuracy"] = [0.9899] * len(results["runs"][1]["ends"])
    assert "not reached" in tables.default(results)
    preset = " ".join(tables.default(results | {"experiment": "mine", "theirs": []}).split())
    assert "| `+experiment=mine` |" in preset and " --experiment mine " in preset and "--no-theirs`" in preset
    results["runs"].pop(), results["theirs"].pop()
    told = tables.default(results)
    assert f"{results['runs'][0]['ends'][1]:.1f} s" in told
    assert f"1/{4 * results['theirs'][0] / results['runs'][0]['ends'][1]:.0f} " in told
    assert f"1/{14 * results['theirs'][0] / results['runs'][0]['seconds']:.0f} " in told


def test_speed_and_how_it_scales_are_measured_shown_and_drawn(tables: Any, tmp_path: Path) -> None:
    tiny = ["--data=mnist_sample", "--rounds=1", "--seconds=0.2", "--epochs=4"]
    results, printed = benchmark(
        *("speed", tmp_path, *tiny, "--batch-sizes", "16", "64", "--images", "500", "4500", "--picture=curves.png"),
        *("--ways", "float32", "bfloat16"),
    )
    assert set(results["ways"]) == {"float32", "bfloat16"}
    assert set(results["images_a_second"]) == {"16", "64"} and set(results["seconds_an_epoch"]) == {"500", "4500"}
    assert len(results["epochs"]["seconds"]) == 4 and results["epochs"]["images"] == 4050
    assert results["share"][0] > 0  # and less than 1 where nothing else runs
    assert results["flops"] == 3 * forward_flops() - first_layers_input_flops()
    assert printed == tables.speed(results) + "\n"
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_what_a_gpu_makes_of_the_experiments_is_measured_and_shown(tables: Any, tmp_path: Path) -> None:
    """On the processor, where nothing is replayed, for the program's sake."""
    ways = ["float32, step by step", "float32, replayed", "bfloat16, replayed"]
    tiny = ["--device=cpu", "--data=mnist_sample", "--rounds=1", "--seconds=0.1", "--seeds", "3", "4", "--ways", *ways]
    given = "+experiment=quick optimizer.lr=0.01"
    results, printed = benchmark("gpu", tmp_path, *tiny, "--batch-sizes", "200", "500", "--experiments", given)
    assert set(results["ways"]) == set(ways) and set(results["images_a_second"]) == {"200", "500"}
    assert results["flops"] == 3 * forward_flops() - first_layers_input_flops()
    assert [run["seed"] for run in results["experiments"][given]] == [3, 4]
    for run in results["experiments"][given]:
        assert 0 < run["start"] < run["ends"][0] < run["seconds"]
        assert run["test_accuracy"] in run["epochs_test_accuracy"]
        assert run["precision"] == results["precision"]
    assert printed == tables.gpu(results) + "\n" + tables.gpu_updates(results) + "\n"
    assert "| on a GPU | `+experiment=quick optimizer.lr=0.01` |" in printed
    assert "| 99.5 % test accuracy after | – |" in printed
    assert "batches of 500 |" in printed and "batches of 200 |" not in printed, "whose ways are shown"
    runs = results["experiments"][given]
    runs[0]["epochs_test_accuracy"], runs[0]["ends"] = [0.99, 0.9951], [4.0, 7.0]
    assert "after | 7.0 s (7.0 to 7.0), 1 of 2 seeds |" in tables.gpu(results)


def test_a_search_is_run_and_shown(tables: Any, tmp_path: Path) -> None:
    tiny = ["--data=mnist_sample", "--validation=0.2", "--searches", "quick", f"--folder={tmp_path / 'work'}"]
    tiny += ["--change", "train.batch_size=100", "augment=shift", "seed=0,1"]
    kept = {"command": "of another day"}
    (tmp_path / "results.json").write_text(json.dumps({"data": "mnist_sample", "searches": {"default": kept}}))
    results, printed = benchmark("recipe", tmp_path, *tiny)
    search = results["searches"]["quick"]
    assert results["searches"]["default"] == kept and search["precision"] in ("float32", "bfloat16")
    assert (
        search["command"].endswith("optimizer.lr=0.01,0.02 train.batch_size=100 augment=shift seed=0,1")
        and " -m hydra/launcher=joblib " in search["command"]
    )
    assert len(search["jobs"]) == 2 * 2 * 2
    assert {job["held_out"] for job in search["jobs"]} == {900}
    assert printed.endswith(tables.recipe(results, "quick") + "\n")
    # one cell by hand, from what the runs themselves have kept
    wanted = {"model.channels": "[12,24,48]", "optimizer.lr": "0.02"}
    errors = []
    for path in (tmp_path / "work").glob("runs/sweeps/*/*/run.json"):
        config = json.loads(path.read_text())["config"]
        if (config["model"]["channels"], config["optimizer"]["lr"]) == ([12, 24, 48], 0.02):
            assert (config["train"]["batch_size"], config["augment"]["name"]) == (100, "shift")
            (*_, last) = live.table(path.parent / "epochs.csv")
            errors.append(900 - round(900 * float(last["val/accuracy"])))
    found = [job["errors"] for job in search["jobs"] if wanted.items() <= job["settings"].items()]
    assert sorted(found) == sorted(errors) and len(errors) == 2
    assert f"| {round(sum(errors) / 2, 1):g}, " in printed


def forward_flops() -> int:
    """Of the default network on an image of 28 x 28, by hand: two for each weight of each place."""
    first, second = 12 * 12 * 32 * 25, 10 * 10 * 32 * 32 * 9
    third, fourth, linear = 4 * 4 * 64 * 32 * 16, 2 * 2 * 128 * 64 * 9, 2 * 2 * 128 * 10
    return 2 * (first + second + third + fourth + linear)


def first_layers_input_flops() -> int:
    """Nobody asks for the gradient of the pixels."""
    return 2 * 12 * 12 * 32 * 25


@pytest.mark.parametrize(
    ("page", "block"), [("README", "default"), ("PERFORMANCE", "kills"), ("SCALE", "sums"), ("RECIPE", "recipe-quick")]
)
def test_the_pages_show_the_committed_results(tables: Any, page: str, block: str) -> None:
    path = getattr(tables, page)
    text = path.read_text()
    assert tables.replaced(path) == text, "python benchmarks/tables.py --write"
    with pytest.raises(ValueError, match=f"bench:{block} 0 times"):
        tables.replaced(path, text.replace(f"<!-- bench:{block} -->", ""))


@pytest.mark.skipif(servers.binaries() is None, reason="needs PostgreSQL: Debian's package, or initdb on the path")
def test_what_scale_says_is_measured_and_shown(tables: Any, tmp_path: Path) -> None:
    tiny = ["--rounds=1", "--points=1000", "--runs=3", "--images=20000", "--workers=1", "--train", "train.epochs=1"]
    results, printed = benchmark("scale", tmp_path, *tiny)
    committed = json.loads((BENCHMARKS / "results/scale.json").read_text())
    assert printed == tables.scale(results) + "\n"
    for kind in ("points", "request", "make", "list", "start", "memory"):
        assert results[kind].keys() == committed[kind].keys()
        assert all(len(times) == 1 for times in results[kind].values()), kind
        assert kind == "memory" or all(times[0] > 0 for times in results[kind].values()), kind
        assert all(len(times) >= 3 for times in committed[kind].values()), kind
    # what is known beforehand: a point is some columns and an index, an image is 784 bytes
    assert all(100 < size < 2000 for size in results["bytes_point"].values())
    assert 28 * 28 / 2 < results["memory"]["training, an image"][0] < 2 * 28 * 28
    assert committed["memory"]["split, an image"][0] < 4 * 28 * 28
    assert (results["files"]["epochs"], committed["files"]["epochs"]) == (1, 6)


def test_a_point_that_did_not_arrive_fails_the_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    scale = importlib.import_module("scale")
    live.with_store(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    (tmp_path / "dvc.yaml").touch()
    MlflowClient(tracking_uri=live.store(tmp_path)).create_experiment(scale.EXPERIMENT)
    assert scale.batches(live.store(tmp_path), 2000) > 0
    whole = MlflowTracker.write
    monkeypatch.setattr(MlflowTracker, "write", lambda self, rows, epochs: whole(self, rows[1:], epochs))
    with pytest.raises(ValueError, match="1,998 points have arrived, not 2,000"):
        scale.batches(live.store(tmp_path), 2000)
