"""A multirun: its jobs, its table, the parent run; one that fails, one that is killed, and the same command again."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from mlflow import MlflowClient

import live
from bestepoch.base.config.overrides import short_override, slug
from bestepoch.sweeps.jobs import planned_jobs

pytestmark = pytest.mark.xdist_group("sweep")

SMALL = (*live.SAMPLE, "model=mlp", "model.hidden=[16]", "train.epochs=2")
FAILING = ("-m", *SMALL, "optimizer=sgd,adamw", "optimizer.lr=0.01,1e12")
# twelve jobs, of which one cannot but fail: its rate is beyond all bounds
RATES = ("0.001", "0.002", "0.005", "0.01", "0.02", "0.03", "0.05", "0.07", "0.1", "0.2", "0.3", "1e30")
TWELVE = ("-m", *SMALL, "optimizer=sgd", f"optimizer.lr={','.join(RATES)}")
SEEDS_ARTIFACTS = {"jobs.csv", "settings.csv", "sweep.png", "study"}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return live.with_store(live.with_split(live.project(tmp_path_factory.mktemp("sweep") / "project")))


@pytest.fixture
def copy(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "project"))


def only_sweep(folder: Path) -> Path:
    (sweep,) = (folder / "runs/sweeps").iterdir()
    return sweep


def family(folder: Path) -> tuple[Any, list[Any]]:
    """The parent run and its children, which together are all runs of the store."""
    runs = live.mlflow_runs(MlflowClient(live.store(folder)))
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == len(runs) - 1
    assert {run.data.tags["sweep"] for run in runs} == {only_sweep(folder).name}
    return parent, children


def job_name(run: Any) -> str:
    """The name of a job's folder, which MLflow's name of the run is not."""
    return Path(run.data.tags["folder"]).name


def results(sweep: Path) -> dict[str, Any]:
    """Of each job what does not depend on the clock."""
    return {
        job["overrides"]: {key: job[key] for key in ("status", "best_epoch", "val/loss", "error")}
        for job in live.table(sweep / "jobs.csv")
    }


# ---------------------------------------------------------------- one that fails


@pytest.fixture(scope="module")
def failing(template: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    copy = Path(shutil.copytree(template, tmp_path_factory.mktemp("failing") / "project"))
    return copy, live.run(copy, "train", *FAILING, code=1)


def test_a_failing_job_is_told_and_the_others_stand(failing: tuple[Path, str]) -> None:
    folder, said = failing
    assert "Traceback" not in said
    assert "Error executing job" not in said
    sweep = only_sweep(folder)
    assert sweep.name.startswith("sgd-adamw-lr0.01-1e12-")
    jobs = live.table(sweep / "jobs.csv")
    assert [job["status"] for job in jobs] == ["finished", "finished", "failed", "failed"]
    losses = [float(job["val/loss"]) for job in jobs[:2]]
    assert losses == sorted(losses)
    for job in jobs[:2]:
        rows = live.table(folder / job["run"] / "epochs.csv")
        best = min(rows, key=lambda row: float(row["val/loss"]))
        assert (job["best_epoch"], job["val/loss"]) == (best["epoch"], best["val/loss"])
        assert float(job["seconds"]) == pytest.approx(sum(float(row["seconds"]) for row in rows), abs=0.06)
    for job in jobs[2:]:
        assert "optimizer.lr=1000000000000.0" in job["overrides"]
        assert job["error"].startswith("The loss is ")
        assert "Traceback" in (folder / job["traceback"]).read_text()
        assert said.count(job["traceback"]) == 1


def test_each_job_has_one_line_while_it_runs_and_one_in_the_table(failing: tuple[Path, str]) -> None:
    folder, said = failing
    live_lines = [line for line in said.splitlines() if line[:3] in ("1/4", "2/4", "3/4", "4/4")]
    assert [line[:3] for line in live_lines] == ["1/4", "2/4", "3/4", "4/4"]
    assert [line.split()[1:3] for line in live_lines] == [
        ["finished", "sgd-lr0.01"],
        ["failed", "sgd-lr1000000000000.0"],
        ["finished", "adamw-lr0.01"],
        ["failed", "adamw-lr1000000000000.0"],
    ]
    jobs = live.table(only_sweep(folder) / "jobs.csv")
    optimizer, difference = (
        jobs[1]["run"].split("/")[-1].split("-")[0],
        float(jobs[1]["val/loss"]) - float(jobs[0]["val/loss"]),
    )
    assert f"next     {optimizer}, worse by {difference:.3g} with one seed each: add seed=range(3)\n" in said
    for job in jobs[:2]:
        rows = live.table(folder / job["run"] / "epochs.csv")
        assert (job["val/accuracy"], job["updates"]) == (rows[int(job["best_epoch"]) - 1]["val/accuracy"], "82")
    table = [line.split() for line in said.splitlines() if line.startswith(("sgd-lr0.01 ", "adamw-lr0.01 "))]
    assert [row[1] for row in table] == [f"{float(job['val/loss']):.5g}" for job in jobs[:2]]
    leads = {line.split()[2] for line in live_lines if line.endswith("(leads)")}
    assert table[0][0] in leads
    assert "epoch 1/2" not in said, "no line of a single job's own"


def test_the_parent_run_has_the_table_and_the_best_child(failing: tuple[Path, str]) -> None:
    folder, _ = failing
    parent, children = family(folder)
    jobs = live.table(only_sweep(folder) / "jobs.csv")
    assert parent.info.status == "FAILED"
    assert parent.info.run_name == only_sweep(folder).name
    assert "optimizer.lr=0.01,1e12" in parent.data.tags["sweep.overrides"]
    assert sorted(run.info.status for run in children) == ["FAILED", "FAILED", "FINISHED", "FINISHED"]
    client = MlflowClient(live.store(folder))
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["jobs.csv", "sweep.png"]
    best = Path(jobs[0]["run"]).name
    (winner,) = (run for run in children if job_name(run) == best)
    assert parent.data.tags["best"] == best
    assert parent.data.tags["best.run_id"] == winner.info.run_id
    described = parent.data.tags["mlflow.note.content"]
    link = f"#/experiments/{parent.info.experiment_id}/runs/{winner.info.run_id}?workflowType=machine_learning"
    assert f"[{best}]({link})" in described
    assert described.count("\n| ") >= 3
    assert f"![The jobs by epoch](get-artifact?path=sweep.png&run_uuid={parent.info.run_id})" in described
    assert parent.data.tags["answer"] in described and "worse by" in parent.data.tags["answer"]
    assert parent.data.params["sweep.optimizer.lr"] == "0.01,1e12"
    assert {run.info.run_name for run in children} == {
        *(
            "mlp-sgd lr=0.01 s0",
            "mlp-adamw lr=0.01 s0",
            "mlp-sgd lr=1000000000000.0 s0",
            "mlp-adamw lr=1000000000000.0 s0",
        )
    }
    assert {job_name(run) for run in children} == {
        *("sgd-lr0.01", "adamw-lr0.01", "sgd-lr1000000000000.0", "adamw-lr1000000000000.0")
    }


def test_the_same_command_takes_what_finished_as_it_is(failing: tuple[Path, str]) -> None:
    folder, _ = failing
    before = family(folder), live.table(only_sweep(folder) / "jobs.csv")
    said = live.run(folder, "train", *FAILING, code=1)
    assert said.count("finished before") == 2
    after = family(folder), live.table(only_sweep(folder) / "jobs.csv")
    assert after[1] == before[1]
    ids = [{run.info.run_id for run in (parent, *children)} for parent, children in (before[0], after[0])]
    assert ids[0] == ids[1]


def test_another_configuration_in_params_yaml_is_another_sweep(template: Path, copy: Path) -> None:
    jobs = ("-m", *live.SAMPLE, "model=mlp", "model.hidden=[4]", "seed=0,1", "tracking.mlflow=false")
    params = (copy / "params.yaml").read_text()
    (copy / "params.yaml").write_text(params.replace("epochs: 6 ", "epochs: 1 "))
    live.run(copy, "train", *jobs)
    (copy / "params.yaml").write_text(params.replace("epochs: 6 ", "epochs: 2 "))
    live.run(copy, "train", *jobs)
    found = {path.parent.name: live.table(path) for path in copy.glob("runs/sweeps/*/jobs.csv")}
    assert len(found) == 2
    lengths = sorted(len(live.table(copy / row["run"] / "epochs.csv")) for rows in found.values() for row in rows)
    assert lengths == [1, 1, 2, 2]


def test_fail_fast_starts_no_further_job(copy: Path) -> None:
    said = live.run(copy, "train", *FAILING, "sweep.fail_fast=true", "tracking.mlflow=false", code=1)
    jobs = live.table(only_sweep(copy) / "jobs.csv")
    assert [job["status"] for job in jobs] == ["finished", "failed", "not started", "not started"]
    assert said.count("not started") == 2
    assert len(list(only_sweep(copy).glob("*/run.json"))) == 2
    # without it, the same sweep goes on
    live.run(copy, "train", *FAILING, "tracking.mlflow=false", code=1)
    jobs = live.table(only_sweep(copy) / "jobs.csv")
    assert [job["status"] for job in jobs] == ["finished", "finished", "failed", "failed"]


# ---------------------------------------------------------------- killed, and again


@pytest.fixture(scope="module")
def twelve(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Uninterrupted."""
    copy = Path(shutil.copytree(template, tmp_path_factory.mktemp("twelve") / "project"))
    live.run(copy, "train", *TWELVE, code=1)
    return copy


def killed(folder: Path, number: int, when: Callable[[Path], bool]) -> int:
    """Start the twelve and send them a signal, all their processes together for SIGKILL."""
    with (folder / "printed").open("w") as printed:
        process = subprocess.Popen(
            live.command("train", *TWELVE),
            cwd=folder,
            env=live.environment(folder),
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        waiting = live.Started.until
        started = type("Watched", (), {"process": process, "printed": lambda self: (folder / "printed").read_text()})
        waiting(started(), lambda: when(folder))  # type: ignore[arg-type]
        (os.killpg if number == signal.SIGKILL else os.kill)(process.pid, number)
        return process.wait(60)


def in_the_sixth(folder: Path) -> bool:
    """Inside its first epoch, or soon after."""
    tables = list(folder.glob("runs/sweeps/*/lr0.03/iterations.csv"))
    return bool(tables) and tables[0].stat().st_size > 200


@pytest.mark.slow
def test_twelve_jobs_of_which_one_fails_killed_in_the_middle_and_completed(twelve: Path, copy: Path) -> None:
    assert killed(copy, signal.SIGKILL, in_the_sixth) == -signal.SIGKILL
    done = [json.loads(path.read_text()) for path in only_sweep(copy).glob(".jobs/*.json")]
    assert sorted(note["status"] for note in done) == ["finished"] * 5 + ["running"]
    # whoever is next tells MLflow that it is dead
    live.run(copy, "train", *SMALL, "tracking.experiment=another")
    assert family(copy)[0].info.status == "KILLED"
    said = live.run(copy, "train", *TWELVE, code=1)
    assert said.count("finished before") == 5
    assert family(copy)[0].info.status == "FAILED"
    found, expected = results(only_sweep(copy)), results(only_sweep(twelve))
    assert found == expected
    assert sorted(job["status"] for job in found.values()) == ["failed"] + ["finished"] * 11
    parents, children = zip(family(copy), family(twelve), strict=True)
    for runs in children:
        assert len(runs) == 12
        assert sorted(run.info.status for run in runs) == ["FAILED"] + ["FINISHED"] * 11
    assert len({parent.data.tags["best"] for parent in parents}) == 1
    client = MlflowClient(live.store(copy))
    for run in children[0]:
        of_job = only_sweep(copy) / job_name(run)
        curves = {key: points for key, points in live.journal_points(of_job).items() if points}
        assert live.mlflow_points(client, run.info.run_id) == curves, "no point lost or doubled"
        if run.info.status == "FINISHED":
            assert live.numbers(of_job) == live.numbers(only_sweep(twelve) / job_name(run))
            assert live.weights(of_job) == live.weights(only_sweep(twelve) / job_name(run))
    folders = {path.parent.name for path in only_sweep(copy).glob("*/run.json")}
    assert folders == {job_name(run) for run in children[0]}


@pytest.mark.slow
def test_sigterm_ends_the_sweep_with_a_table_of_what_there_is(twelve: Path, copy: Path) -> None:
    assert killed(copy, signal.SIGTERM, in_the_sixth) == 128 + signal.SIGTERM
    said = (copy / "printed").read_text()
    assert "Traceback" not in said
    statuses = [job["status"] for job in live.table(only_sweep(copy) / "jobs.csv")]
    assert statuses == ["finished"] * 5 + ["killed"] + ["not started"] * 6
    assert said.count("not started") == 6
    live.run(copy, "train", *TWELVE, code=1)
    assert results(only_sweep(copy)) == results(only_sweep(twelve))
    assert len(family(copy)[1]) == 12


# ---------------------------------------------------------------- seeds


@pytest.fixture(scope="module")
def seeds(template: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    copy = Path(shutil.copytree(template, tmp_path_factory.mktemp("seeds") / "project"))
    return copy, live.run(copy, "train", "-m", *SMALL, "optimizer=sgd,adamw", "optimizer.lr=0.01", "seed=range(3)")


def test_settings_that_differ_only_in_the_seed_are_one_row(seeds: tuple[Path, str]) -> None:
    folder, said = seeds
    jobs = live.table(only_sweep(folder) / "jobs.csv")
    of_settings = {
        name: [float(job["val/loss"]) for job in jobs if f"optimizer={name}" in job["overrides"].split()]
        for name in ("sgd", "adamw")
    }
    rows = live.table(only_sweep(folder) / "settings.csv")
    assert [row["setting"] for row in rows] == sorted(
        (f"optimizer={name}" for name in of_settings), key=lambda name: statistics.fmean(of_settings[name[10:]])
    )
    for row in rows:
        values = of_settings[row["setting"].removeprefix("optimizer=")]
        assert (row["n"], len(values)) == ("3", 3)
        assert float(row["val/loss mean"]) == pytest.approx(statistics.fmean(values), rel=1e-12)
        assert float(row["val/loss sd"]) == pytest.approx(statistics.stdev(values), rel=1e-12)
        (best,) = (job for job in jobs if job["run"] == row["best_run"])
        assert float(best["val/loss"]) == min(values)
        shown = f"{statistics.fmean(values):.5g} ± {statistics.stdev(values):.2g}  3"
        assert any(line.startswith(row["setting"]) and line.endswith(shown) for line in said.splitlines())
    parent, _ = family(folder)
    assert parent.data.tags["best"] == Path(rows[0]["best_run"]).name, "the best seed of the best setting"
    client = MlflowClient(live.store(folder))
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == {
        "jobs.csv",
        "settings.csv",
        "sweep.png",
        "study",
    }


def test_a_job_of_a_sweep_is_the_same_job_run_alone(seeds: tuple[Path, str], copy: Path) -> None:
    live.run(copy, "train", *SMALL, "optimizer=adamw", "optimizer.lr=0.01", "seed=1", "tracking.mlflow=false")
    (job,) = (path for path in only_sweep(seeds[0]).iterdir() if path.name == "adamw-seed1")
    alone = live.only_run(copy)
    assert live.numbers(job) == live.numbers(alone)
    assert live.weights(job) == live.weights(alone)


def test_the_jobs_of_one_process_read_the_data_once(template: Path, tmp_path: Path) -> None:
    """Seen from outside: after the first job, nobody opens the files any more."""
    copy = Path(shutil.copytree(template, tmp_path / "project"))
    script = (
        "import sys, runpy\n"
        "seen = []\n"
        "sys.addaudithook(lambda event, args: event == 'open' and str(args[0]).endswith('.npz')"
        " and seen.append(str(args[0])))\n"
        "sys.argv = ['train', '-m', *sys.argv[1:]]\n"
        "try:\n"
        "    runpy.run_module('bestepoch.train', run_name='__main__')\n"
        "finally:\n"
        "    print('opened', sorted(path.rsplit('/', 1)[1] for path in seen))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *SMALL, "seed=0,1,2", "tracking.mlflow=false", "tracking.tensorboard=false"],
        cwd=copy,
        env=live.environment(copy),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "opened ['train.npz', 'validation.npz']" in done.stdout
    assert len(list(only_sweep(copy).glob("seed*/run.json"))) == 3


# ---------------------------------------------------------------- inside


def test_the_run_of_mlflow_run_is_the_parent(copy: Path) -> None:
    client = MlflowClient(live.store(copy))
    number = client.create_experiment("bestepoch", artifact_location=(copy / "mlartifacts/bestepoch").as_uri())
    outer = client.create_run(number).info.run_id
    # as MLproject passes what is not given
    defaults = ("optimizer=${params:optimizer}", "train.batch_size=${params:train.batch_size}")
    live.run(copy, "train", "-m", *SMALL, *defaults, "seed=0,1", MLFLOW_RUN_ID=outer)
    parent, children = family(copy)
    resolved = {key: parent.data.params[f"sweep.{key}"] for key in ("optimizer", "train.batch_size", "seed")}
    assert resolved == {"optimizer": "adamw", "train.batch_size": "100", "seed": "0,1"}
    assert "$" not in parent.data.tags["sweep.overrides"]
    assert parent.info.run_id == outer
    assert parent.info.status == "RUNNING", "it ends with the command of `mlflow run`"
    assert sorted(run.info.run_name for run in children) == ["mlp-adamw s0", "mlp-adamw s1"]
    assert sorted(map(job_name, children)) == ["seed0", "seed1"]
    assert {file.path for file in client.list_artifacts(outer)} == SEEDS_ARTIFACTS


def test_jobs_are_named_by_what_they_do_not_have_in_common() -> None:
    jobs = [["model.dropout=0.1", "a=1"], ["augment.dropout=0.1", "a=1"], ["seed=1", "a=1"]]
    noted = list(planned_jobs(jobs).values())
    names = [note["name"] for note in noted]
    assert [note["overrides"] for note in noted] == [" ".join(job) for job in jobs]
    assert len(set(names)) == 3, "whose names are alike have folders of their own"
    assert names[2] == "seed1"
    assert all(name.startswith("dropout0.1-") for name in names[:2])
    assert [note["name"] for note in planned_jobs([["seed=1", "a=1"]], ["a=1", "seed=1,2"]).values()] == ["seed1"]


def test_no_two_overrides_have_one_name() -> None:
    lines = ["l1=0", "l=10", "optimizer.lr=0.01", "loss.l1=1e-3", "device.name=cpu", "model=mlp", "model.hidden=[16,8]"]
    names = [slug([short_override(line)]) for line in lines]
    assert names == ["l1_0", "l10", "lr0.01", "l1_1e-3", "name_cpu", "mlp", "hidden-16-8"]


def test_a_long_name_ends_with_a_whole_word() -> None:
    assert slug(["adamw", "lr0.01", "batch_size100"], longest=20) == "adamw-lr0.01"
    assert slug(["adamw", "lr0.01", "batch_size100"], longest=12) == "adamw-lr0.01"
    assert slug(["adamw", "hidden[16,8]"], longest=14) == "adamw", "not a key without its value"
    assert slug(["a" * 30], longest=20) == "a" * 20


def test_a_sweep_that_is_being_run_is_not_begun_again(failing: tuple[Path, str]) -> None:
    folder, _ = failing
    before = (only_sweep(folder) / "jobs.csv").read_bytes(), sorted(only_sweep(folder).glob(".jobs/*"))
    with FileLock(only_sweep(folder) / ".lock"):
        said = live.run(folder, "train", *FAILING, code=2)
    assert f"{only_sweep(folder).relative_to(folder)} is being run already by another process" in said
    assert ((only_sweep(folder) / "jobs.csv").read_bytes(), sorted(only_sweep(folder).glob(".jobs/*"))) == before


def test_what_main_returns_is_the_best_value_and_nan_of_a_failed_job(copy: Path) -> None:
    """As any sweeper of Hydra's would see it."""
    (copy / "src/recorder.py").write_text(
        "from hydra.experimental.callback import Callback\n\n\n"
        "class Recorder(Callback):\n"
        "    def on_job_end(self, config, job_return, **kwargs):\n"
        "        with open('returned', 'a') as file:\n"
        "            print(job_return.return_value, file=file)\n"
    )
    recording = "+hydra.callbacks.recorder._target_=recorder.Recorder"
    live.run(copy, "train", *FAILING, "tracking.mlflow=false", recording, code=1)
    values = [float(line) for line in (copy / "returned").read_text().splitlines()]
    losses = {job["overrides"]: job["val/loss"] for job in live.table(only_sweep(copy) / "jobs.csv")}
    assert [math.isnan(value) for value in values] == [False, True, False, True]
    assert {values[0], values[2]} == {float(value) for value in losses.values() if value}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["-m", "sweep=runs/sweeps/x", "seed=0,1"], "belongs to `python -m bestepoch.promote`"),
        (
            ["-m", "sweep.fail_fast=maybe", "seed=0,1"],
            "sweep.fail_fast = 'maybe' is not allowed: must be true or false",
        ),
        (["-m", "sweep.fail_fats=true", "seed=0,1"], "sweep.fail_fats is not a setting. Did you mean sweep.fail_fast?"),
    ],
)
def test_a_mistake_in_its_options_is_answered_before_anything_is_made(
    copy: Path, given: list[str], message: str
) -> None:
    said = live.run(copy, "train", *given, code=2)
    assert message in said
    assert not (copy / "runs/sweeps").exists()
