"""The winner of a sweep: tested alone, written down as a preset, and the same again by each command that is printed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

import live
import pipeline

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("promote")]

# a value in each kind of place: a menu's choice, a menu's value, params.yaml, conf/config.yaml
JOBS = (
    *("-m", *live.SAMPLE, "model=mlp", "model.hidden=[24,16]", "train.epochs=2", "train.batch_size=90"),
    *("loss.label_smoothing=0.1", "scheduler=cosine", "optimizer=sgd,adam", "optimizer.lr=0.001,0.02", "seed=3"),
)


@pytest.fixture(scope="module")
def promoted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """The project, the sweep's folder, and what was printed."""
    copy = pipeline.fresh_copy(tmp_path_factory.mktemp("promote") / "project")
    live.run(copy, "train", *JOBS)
    (sweep,) = (copy / "runs/sweeps").iterdir()
    return copy, sweep, live.run(copy, "promote", f"sweep={sweep.relative_to(copy)}")


def winner(sweep: Path) -> dict[str, str]:
    return min(live.table(sweep / "jobs.csv"), key=lambda job: float(job["val/loss"]))


def test_the_winner_alone_meets_the_test_images(promoted: tuple[Path, Path, str]) -> None:
    copy, sweep, _ = promoted
    assert [path.parent.parent.name for path in sweep.glob("*/evaluate/metrics.json")] == [winner(sweep)["run"][-len(
        Path(winner(sweep)["run"]).name):]]  # fmt: skip
    tested = json.loads((copy / winner(sweep)["run"] / "evaluate/metrics.json").read_text())
    assert tested["val_loss"] == float(winner(sweep)["val/loss"])
    with_test = [run for run in live.mlflow_runs(MlflowClient(live.store(copy))) if "test/accuracy" in run.data.metrics]
    assert [run.data.tags["folder"] for run in with_test] == [winner(sweep)["run"]]
    assert with_test[0].data.metrics["test/accuracy"] == tested["test_accuracy"]


def test_the_preset_says_where_it_comes_from(promoted: tuple[Path, Path, str]) -> None:
    copy, sweep, printed = promoted
    text = (copy / f"conf/experiment/{sweep.name}.yaml").read_text()
    assert f"preset   conf/experiment/{sweep.name}.yaml" in printed
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert head[0] == "# @package _global_"
    tested = json.loads((copy / winner(sweep)["run"] / "evaluate/metrics.json").read_text())
    commit = pipeline.run(copy, "git", "rev-parse", "HEAD").strip()
    for part in (
        f"runs/sweeps/{sweep.name}",
        shlex.quote("optimizer.lr=0.001,0.02"),
        f"val/loss (min): {float(winner(sweep)['val/loss']):.6g} after epoch {winner(sweep)['best_epoch']} of 2",
        f"accuracy {tested['test_accuracy']:.2%}",
        commit,
    ):
        assert any(part in line for line in head), part
    values = yaml.safe_load(text)
    assert {next(iter(line)): next(iter(line.values())) for line in values["defaults"]}[
        "override /scheduler"
    ] == "cosine"
    assert (values["seed"], values["train"]["batch_size"], values["model"]["hidden"]) == (3, 90, [24, 16])


def test_the_preset_equals_the_sweeps_job(promoted: tuple[Path, Path, str]) -> None:
    copy, sweep, printed = promoted
    (command,) = re.findall(r"again +python -m bestepoch\.train (.*)", printed)
    before = set(copy.glob("runs/*/run.json"))
    # whatever params.yaml says by now
    pipeline.edit(copy / "params.yaml", "seed: 0 ", "seed: 8 ")
    live.run(copy, "train", *shlex.split(command))
    pipeline.edit(copy / "params.yaml", "seed: 8 ", "seed: 0 ")
    (made,) = set(copy.glob("runs/*/run.json")) - before
    job = copy / winner(sweep)["run"]
    assert live.numbers(made.parent) == live.numbers(job)
    assert live.weights(made.parent) == live.weights(job)
    config = [json.loads((folder / "run.json").read_text())["config"] for folder in (made.parent, job)]
    assert config[0] == config[1]


def test_the_experiment_of_dvc_equals_the_sweeps_job(promoted: tuple[Path, Path, str]) -> None:
    copy, sweep, printed = promoted
    (command,) = re.findall(r"pipeline +(dvc exp run .*)", printed)
    pipeline.commit(copy)
    pipeline.run(copy, *shlex.split(command))
    job = copy / winner(sweep)["run"]
    assert live.numbers(copy / "results/train") == live.numbers(job)
    assert live.weights(copy / "results/train") == live.weights(job)
    assert pipeline.metrics(copy)["best_epoch"] == int(winner(sweep)["best_epoch"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "Which sweep? Add sweep=runs/sweeps/<name>. There are: runs/sweeps/"),
        (["sweep=runs/sweeps/none"], "sweep = runs/sweeps/none is not a sweep's folder. There are: runs/sweeps/"),
    ],
)
def test_a_sweep_that_is_none_is_answered(promoted: tuple[Path, Path, str], given: list[str], message: str) -> None:
    assert message in live.run(promoted[0], "promote", *given, code=2)


def test_a_sweep_that_still_runs_has_no_winner_yet(tmp_path: Path) -> None:
    copy = live.with_store(live.with_split(live.project(tmp_path / "project")))
    jobs = ("-m", *live.SAMPLE, "model=mlp", "model.hidden=[8]", "train.epochs=1,2000", "tracking.mlflow=false")
    with live.started(copy, "train", *jobs) as sweep:
        # the first job is finished and would win, the second one trains
        sweep.until(lambda: len(list(copy.glob("runs/sweeps/*/*/epochs.csv"))) == 2, seconds=180)
        (folder,) = (copy / "runs/sweeps").iterdir()
        said = live.run(copy, "promote", f"sweep=runs/sweeps/{folder.name}", code=2)
        assert sweep.process.poll() is None
    assert f"runs/sweeps/{folder.name} is still running in another process (finished so far: 1)" in said
    assert not (copy / f"conf/experiment/{folder.name}.yaml").exists()


def test_a_sweep_without_a_finished_job_has_no_winner(promoted: tuple[Path, Path, str], tmp_path: Path) -> None:
    copy, sweep, _ = promoted
    other = Path(shutil.copytree(sweep, sweep.with_name("unfinished")))
    try:
        for note in (other / ".jobs").glob("*.json"):
            note.write_text(json.dumps({**json.loads(note.read_text()), "status": "killed"}))
        said = live.run(copy, "promote", f"sweep=runs/sweeps/{other.name}", code=2)
        assert "holds no finished job. Type the sweep's command again" in said
        assert not (copy / f"conf/experiment/{other.name}.yaml").exists()
    finally:
        shutil.rmtree(other)
