"""How many epochs are enough over several runs: the numbers against plain arithmetic, and a real sweep of seeds."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

import live
from bestepoch.base import files
from bestepoch.base.config import compose
from bestepoch.base.config.schema import SelectionConfig, TrackingConfig
from bestepoch.base.errors import UsageError
from bestepoch.runs.journal import EPOCH_COLUMNS
from bestepoch.runs.run import Run
from bestepoch.sweeps.replicates import group_replicates
from bestepoch.sweeps.study import run_study, write_study

LOSS = SelectionConfig(metric="val/loss", mode="min", rule="best", smoothing=1)
ACCURACY = SelectionConfig(metric="val/accuracy", mode="max", rule="best", smoothing=1)

Make = Callable[..., Run]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A run with these validation losses, as training would leave it."""
    base = compose.load_config(["data=mnist_sample"], False)[1].training()

    def make_run(name: str, losses: list[float], data: dict[str, Any] | None = None, **changed: Any) -> Run:
        values = {**base, **changed}
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        rows = [
            [i, 10 * i, 1.0 / i, loss / 2, 1 - loss / 2, loss, 1 - loss, 0.1, 1.0, 1e9 + i]
            for i, loss in enumerate(losses, 1)
        ]
        with (folder / "epochs.csv").open("w", newline="") as file:
            csv.writer(file).writerows([EPOCH_COLUMNS, *rows])
        data = {"name": "mnist_sample", "checksum": "0" * 64} | (data or {})
        files.write_json(folder / "run.json", {**live.RECORD, "name": name, "config": values, "data": data})
        return Run.read(folder)

    return make_run


def seeds(make: Make, *losses: list[float]) -> list[Run]:
    return [make(f"seed{i}", values, seed=i) for i, values in enumerate(losses)]


def test_seeds_and_folds_are_repeats_and_the_rest_are_settings(make: Make) -> None:
    sgd = {"optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9}}
    adam = {"optimizer": {"name": "adam", "lr": 0.001, "betas": [0.9, 0.99]}}
    runs = [
        make("a", [0.5], seed=0, **sgd),
        make("b", [0.5], seed=1, split={"validation": 0.1, "seed": 3, "folds": 5, "fold": 4}, **sgd),
        make("c", [0.5], seed=0, **adam),
        make("d", [0.5], seed=0, optimizer={**adam["optimizer"], "lr": 0.01}),
    ]
    # split.folds is no repeat: five folds and a tenth are other amounts of training images
    assert [setting.name for setting in group_replicates(runs)] == [
        "optimizer=sgd optimizer.lr=0.05 split.folds=None",
        "optimizer=sgd optimizer.lr=0.05 split.folds=5",
        "optimizer=adam optimizer.lr=0.001 split.folds=None",
        "optimizer=adam optimizer.lr=0.01 split.folds=None",
    ]
    (setting,) = group_replicates(seeds(make, [0.5], [0.4], [0.3]))
    assert (setting.name, len(setting.runs)) == ("all runs", 3)


def test_what_comes_with_a_choice_goes_without_saying(make: Make) -> None:
    runs = [
        make("a", [0.5], optimizer={"name": "sgd", "lr": 0.05, "momentum": 0.9}),
        make("b", [0.5], optimizer={"name": "adam", "lr": 0.001, "betas": [0.9, 0.99]}),
    ]
    assert [setting.name for setting in group_replicates(runs)] == ["optimizer=sgd", "optimizer=adam"]


def test_the_recommended_epochs_are_where_the_mean_curve_is_best(make: Make) -> None:
    losses = [[0.5, 0.3, 0.4, 0.45], [0.6, 0.35, 0.3, 0.5], [0.5, 0.2, 0.3, 0.4]]
    (setting,) = group_replicates(seeds(make, *losses))
    assert setting.best_epochs(LOSS) == [2, 3, 2]
    epochs, low, high = setting.recommended(LOSS)
    assert epochs == int(np.mean(losses, 0).argmin()) + 1 == 2
    assert (low, high) == (2, 3), "one run of three says 3, and is all of a draw once in 27"
    assert setting.recommended(ACCURACY) == (epochs, low, high)
    assert setting.recommended(LOSS) == (epochs, low, high), "always the same draws"


def test_runs_that_agree_leave_no_doubt(make: Make) -> None:
    (setting,) = group_replicates(seeds(make, *[[0.5, 0.4, 0.3, 0.31]] * 5))
    assert setting.recommended(LOSS) == (3, 3, 3)


def test_runs_of_different_length_are_compared_where_all_are(make: Make) -> None:
    (setting,) = group_replicates(seeds(make, [0.5, 0.4, 0.3], [0.5, 0.4, 0.3, 0.2, 0.1]))
    assert setting.epochs == 3
    assert setting.recommended(LOSS)[0] == 3
    assert setting.best_epochs(LOSS) == [3, 5], "but each run has a best epoch of its own"


def test_what_is_no_number_is_not_recommended(make: Make) -> None:
    (setting,) = group_replicates(seeds(make, [float("nan"), 0.4, 0.5], [0.1, 0.4, 0.5]))
    assert setting.recommended(LOSS)[0] == 2


def test_the_files_hold_the_means(make: Make, tmp_path: Path) -> None:
    losses = [[0.5, 0.25], [0.75, 0.5]]
    runs = seeds(make, *losses)
    out = tmp_path / "study"
    write_study(group_replicates(runs), LOSS, out)
    curves = live.table(out / "curves.csv")
    assert [(row["epoch"], row["runs"]) for row in curves] == [("1", "2"), ("2", "2")]
    assert [float(row["val/loss mean"]) for row in curves] == [0.625, 0.375]
    assert [float(row["val/loss sd"]) for row in curves] == pytest.approx([np.std([0.5, 0.75], ddof=1)] * 2)
    assert [float(row["val/accuracy mean"]) for row in curves] == [0.375, 0.625]
    table = live.table(out / "runs.csv")
    assert [(row["run"], row["seed"], row["best_epoch"], row["val/loss"]) for row in table] == [
        ("seed0", "0", "2", "0.25"),
        ("seed1", "1", "2", "0.5"),
    ]
    (numbers,) = json.loads((out / "study.json").read_text())["settings"]
    assert numbers["runs"] == 2
    assert numbers["recommended_epochs"] == 2
    assert numbers["mean"] == 0.375
    assert (out / "study.png").read_bytes().startswith(b"\x89PNG")


def test_runs_of_different_data_are_never_averaged(make: Make) -> None:
    of_sample, of_all = {"name": "mnist_sample"}, {"name": "mnist", "checksum": "1" * 64}
    runs = [make("a", [0.5], of_sample), make("b", [0.4], of_all), make("c", [0.3], of_all, seed=1)]
    assert [(found.name, len(found.runs)) for found in group_replicates(runs)] == [
        ("data=mnist_sample", 1),
        ("data=mnist", 2),
    ]
    changed = make("d", [0.5], {**of_all, "checksum": "2" * 64})  # the same name and split, other images
    assert len(group_replicates([runs[1], changed])) == 2
    # other folds have other checksums
    folds = [
        make(f"fold{i}", [0.5], {"checksum": str(i) * 64}, split={"validation": 0.1, "seed": 0, "folds": 5, "fold": i})
        for i in range(5)
    ]
    assert [len(found.runs) for found in group_replicates(folds)] == [5]


@pytest.mark.parametrize(
    ("losses", "said", "interval"),
    [
        ([[0.5, 0.3, 0.4]], "one run gives no interval: add seed='range(5)'", None),
        ([[0.5, 0.3, 0.4]] * 2, "95% interval 2 to 2; two runs are few", [2, 2]),
        ([[0.5, 0.3, 0.4]] * 3, "(95% interval 2 to 2)", [2, 2]),
        ([[0.5, 0.4, 0.3]] * 3, "95% interval 3 to 3, cut off at 3, the last epoch that all of them have", [3, 3]),
    ],
)
def test_an_interval_says_how_far_it_can_be_trusted(
    losses: list[list[float]],
    said: str,
    interval: list[int] | None,
    make: Make,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("INFO", "bestepoch"):
        run_study(seeds(make, *losses), LOSS, TrackingConfig.model_construct(mlflow=False), tmp_path / "study")
    assert said in caplog.text
    (numbers,) = json.loads((tmp_path / "study/study.json").read_text())["settings"]
    assert [numbers[key] for key in ("low", "high") if key in numbers] == (interval or [])


def test_a_study_reads_tables_of_earlier_versions(make: Make, tmp_path: Path) -> None:
    runs = seeds(make, [0.5, 0.25], [0.75, 0.5])
    table = runs[0].folder / "epochs.csv"
    columns, *rows = (line.split(",") for line in table.read_text().splitlines())
    kept = [i for i, name in enumerate(columns) if not name.startswith("train/eval")]
    table.write_text("".join(",".join(line[i] for i in kept) + "\n" for line in (columns, *rows)))
    write_study(group_replicates(runs), LOSS, tmp_path / "study")
    assert not any(name.startswith("train/eval") for name in live.table(tmp_path / "study/curves.csv")[0])


def test_a_run_without_an_epoch_is_refused(make: Make) -> None:
    with pytest.raises(UsageError, match="has no epoch yet"):
        group_replicates(seeds(make, []))


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The preset, small."""
    copy = live.with_store(live.with_split(live.project(tmp_path_factory.mktemp("study") / "project")))
    small = (*live.SAMPLE, "model=mlp", "model.hidden=[16]", "train.epochs=3")
    return copy, live.run(copy, "train", "-m", "+experiment=how_many_epochs", *small)


@pytest.mark.slow
@pytest.mark.xdist_group("study")
def test_the_preset_ends_with_a_study_of_five_seeds(swept: tuple[Path, str]) -> None:
    copy, printed = swept
    (sweep,) = (copy / "runs/sweeps").iterdir()
    tables = [live.table(path) for path in sorted(sweep.glob("seed*/epochs.csv"))]
    assert len(tables) == 5
    assert {float(row["lr"]) for table in tables for row in table} == {0.001}, "a constant rate"
    means = np.mean([[float(row["val/loss"]) for row in table] for table in tables], 0)
    (numbers,) = json.loads((sweep / "study/study.json").read_text())["settings"]
    assert numbers["recommended_epochs"] == means.argmin() + 1
    assert numbers["mean"] == pytest.approx(means.min(), rel=1e-12)
    assert f"epochs {means.argmin() + 1} (95% interval" in printed
    client = MlflowClient(tracking_uri=live.store(copy))
    (parent,) = [run for run in live.mlflow_runs(client) if "mlflow.parentRunId" not in run.data.tags]
    assert parent.data.metrics["study/recommended_epochs"] == numbers["recommended_epochs"]
    assert {item.path for item in client.list_artifacts(parent.info.run_id, "study")} >= {
        "study/study.png",
        "study/curves.csv",
        "study/runs.csv",
        "study/study.json",
    }


@pytest.mark.slow
@pytest.mark.xdist_group("study")
def test_a_study_again_and_of_single_runs(swept: tuple[Path, str]) -> None:
    copy, _ = swept
    (sweep,) = (copy / "runs/sweeps").iterdir()
    first = (sweep / "study/study.json").read_bytes()
    name = sweep.relative_to(copy)
    printed = live.run(copy, "study", f"run={name}")
    assert (sweep / "study/study.json").read_bytes() == first
    assert f"study    {name}/study\n" in printed
    printed = live.run(copy, "study", f"run=[{name}/seed0,{name}/seed3]", "selection.metric=val/accuracy")  # fmt: skip
    (made,) = (copy / "runs/studies").iterdir()
    found = json.loads((made / "study.json").read_text())
    assert (found["metric"], found["settings"][0]["runs"]) == ("val/accuracy", 2)
    assert "of 2 runs" in printed


@pytest.mark.slow
@pytest.mark.xdist_group("study")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "Which runs? Add run=runs/sweeps/<name>"),
        (["run=runs/nothing"], "run = runs/nothing is not a run's folder"),
    ],
)
def test_a_study_of_nothing_says_what_to_type(swept: tuple[Path, str], given: list[str], message: str) -> None:
    assert message in live.run(swept[0], "study", *given, code=2)


@pytest.mark.slow
@pytest.mark.xdist_group("study")
def test_what_takes_one_run_refuses_several(swept: tuple[Path, str]) -> None:
    assert "This takes one run" in live.run(swept[0], "evaluate", "run=[runs/a,runs/b]", code=2)
