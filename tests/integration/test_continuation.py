"""More epochs than an earlier run was planned for: its epochs are taken over where that changes no bit, else not."""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import math
import os
import random
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock
from mlflow import MlflowClient

import live
from bestepoch.base.config import compose
from bestepoch.base.config.groups import (
    ConstantSchedulerConfig,
    CosineSchedulerConfig,
    ExponentialSchedulerConfig,
    NoStoppingConfig,
    OneCycleSchedulerConfig,
    PlateauSchedulerConfig,
    StepSchedulerConfig,
)
from bestepoch.base.config.schema import TrainConfig
from bestepoch.components.data.split import Split
from bestepoch.components.schedules.learning_rate import learning_rate
from bestepoch.components.schedules.plan import TrainingPlan, make_plan
from bestepoch.runs import checkpoint, identity
from bestepoch.runs.request import RunOrigin, RunRequest
from bestepoch.runs.run import Run
from bestepoch.training import extend
from bestepoch.training.session import Session, train

pytestmark = pytest.mark.xdist_group("continuation")

PER_EPOCH = 9
EVERY_ITERATION = "checkpoint.every_seconds=1e-9"
TRAIN = (
    *(*live.SAMPLE, "tracking.mlflow=false", "tracking.tensorboard=false", EVERY_ITERATION),
    # dropout and AdamW have a state of their own
    *("model=mlp", "model.hidden=[8]", "model.dropout=0.2", "optimizer=adamw", "train.batch_size=450"),
)
SCHEDULERS = {
    "constant": ("scheduler=constant", "scheduler.warmup_epochs=1.5"),
    "step": ("scheduler=step", "scheduler.step_size=1"),
    "exponential": ("scheduler=exponential",),
    # falls after most epochs, whatever the losses
    "plateau": ("scheduler=plateau", "scheduler.patience=0", "scheduler.threshold=0.9"),
}
# stops after epoch 1 + patience: no loss is lower by that much
STOPPING = ("stopping=patience", "stopping.min_delta=9.0")


class Killed(BaseException):
    """Like a kill: nothing in the project catches it."""


@dataclass
class Project:
    """A project of its own, in which trainings run in this process."""

    folder: Path
    sample: Split
    patch: pytest.MonkeyPatch

    def opened(self, *changed: str, data: Split | None = None) -> tuple[Run, list[str]]:
        """What a command begins with: the run, after the word on earlier ones."""
        overrides = [*TRAIN, *changed]
        settings = compose.load_config(overrides, False)[1]
        run = Run.open(settings, data or self.sample, "cpu", RunOrigin(overrides))
        assert not run.resumed
        extend.extend_earlier_run(run, settings, make_plan(4050, settings.train))
        run.close()
        return run, overrides

    def trained(self, *changed: str) -> Run:
        overrides = [*TRAIN, *changed]
        with self.patch.context() as patch:
            patch.chdir(self.folder)
            patch.setattr(os, "fsync", lambda _handle: None)  # after each iteration that would take long
            run = train(compose.load_config(overrides, False)[1], self.sample, Session(overrides))
        run.close()
        assert run.status == "finished"
        return run

    def killed(self, iteration: int, *changed: str) -> Run:
        """What is left of a training that was killed after that iteration's state was saved, and three more."""
        save, kept = checkpoint.save_state, self.folder / "kept"

        def save_and_copy(folder: Path, done: int, state: dict[str, Any]) -> None:
            save(folder, done, state)
            if done == iteration and not kept.exists():
                shutil.copytree(folder, kept)

        with self.patch.context() as patch:
            patch.setattr(checkpoint, "save_state", save_and_copy)
            folder = self.trained(*changed).folder
        lines = (folder / "iterations.csv").read_text().splitlines(keepends=True)
        (kept / "iterations.csv").write_text("".join(lines[: 1 + iteration + 3]) + "99,1,0.")
        shutil.rmtree(folder)
        kept.rename(folder)
        run = Run.read(folder)
        assert run.status == "running"
        return run


@pytest.fixture(scope="module")
def empty(sample: Split, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Project]:
    checkout = live.CHECKOUT

    def make(patch: pytest.MonkeyPatch) -> Project:
        folder = tmp_path_factory.mktemp("project")
        shutil.copytree(checkout / "conf", folder / "conf")
        for name in ("dvc.yaml", "params.yaml"):
            shutil.copyfile(checkout / name, folder / name)
        return Project(folder, sample, patch)

    return make


@pytest.fixture
def here(empty: Callable[..., Project], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Project:
    made = empty(monkeypatch)
    monkeypatch.chdir(made.folder)
    monkeypatch.setattr(logging.getLogger("bestepoch"), "propagate", True)
    caplog.set_level("INFO", logger="bestepoch")
    return made


@pytest.fixture(scope="module")
def uninterrupted(empty: Callable[..., Project]) -> Callable[..., Run]:
    """The run of a command in a project that has no other; each is trained once."""
    known: dict[tuple[str, ...], Run] = {}

    def get(*changed: str) -> Run:
        if changed not in known:
            with pytest.MonkeyPatch.context() as patch:
                known[changed] = empty(patch).trained(*changed)
        return known[changed]

    return get


def is_the_same(run: Run, reference: Run) -> None:
    assert live.weights(run.folder) == live.weights(reference.folder)
    assert live.numbers(run.folder) == live.numbers(reference.folder)
    assert run.info.get("stopped") == reference.info.get("stopped")


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("before", ["finished", "killed", "killed inside an epoch", "stopped early"])
def test_more_epochs_go_on_from_what_is_there_and_end_with_the_same_bits(
    before: str, scheduler: str, here: Project, uninterrupted: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    menu = SCHEDULERS[scheduler]
    if before == "stopped early":
        old, done, longer = here.trained(*menu, *STOPPING, "stopping.patience=1", "train.epochs=4"), 18, STOPPING
    elif before == "finished":
        old, done, longer = here.trained(*menu, "train.epochs=3"), 27, ()
    else:
        done, longer = 18 if before == "killed" else 13, ()
        old = here.killed(done, *menu, "train.epochs=3")
    untouched = content(old.folder)
    command = (*menu, *longer, "train.epochs=6")
    now = here.trained(*command)
    is_the_same(now, uninterrupted(*command))
    assert f"reused   with the {done} iterations of runs/{old.name}" in caplog.text
    assert now.info["extended_from"] == {"run": old.name, "iteration": done}
    assert content(old.folder) == untouched
    rates = [row["lr"] for row in live.table(now.folder / "iterations.csv")]
    assert len(set(rates)) > 2, "a rate that changes would be a better test"


@pytest.mark.parametrize("every", [EVERY_ITERATION, "checkpoint.every_seconds=60"])
@pytest.mark.parametrize(("first", "then"), [("iterations=22", "iterations=40"), ("iterations=4", "epochs=2")])
def test_an_epoch_that_was_cut_short_is_finished_not_kept(
    first: str, then: str, every: str, here: Project, uninterrupted: Callable[..., Run]
) -> None:
    def to(plan: str) -> tuple[str, ...]:
        return ("scheduler=constant", f"train.{plan}", *(["train.epochs=null"] if "iterations" in plan else []))

    old = here.trained(*to(first), every)
    untouched = content(old.folder)
    now = here.trained(*to(then), every)
    is_the_same(now, uninterrupted(*to(then)))
    assert content(old.folder) == untouched
    # the last state before the cut, where there is one
    whole = int(first.partition("=")[2])
    kept = whole - 1 if every == EVERY_ITERATION else whole // PER_EPOCH * PER_EPOCH
    assert now.info.get("extended_from", {}).get("iteration", 0) == kept


@pytest.mark.parametrize("scheduler", ["onecycle", "cosine"])
@pytest.mark.parametrize("before", ["finished", "killed"])
def test_a_rate_that_is_spread_over_the_plan_begins_anew_and_says_why(
    before: str, scheduler: str, here: Project, uninterrupted: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    menu = (f"scheduler={scheduler}", "optimizer.lr=0.01")
    old = here.trained(*menu, "train.epochs=3") if before == "finished" else here.killed(13, *menu, "train.epochs=3")
    untouched = content(old.folder)
    now = here.trained(*menu, "train.epochs=6")
    is_the_same(now, uninterrupted(*menu, "train.epochs=6"))
    assert "extended_from" not in now.info
    assert content(old.folder) == untouched
    entry = compose.load_config([*TRAIN, *menu], False)[1].scheduler
    # the first rate is the peak's share in both
    rates = [learning_rate(entry, 0.01, TrainingPlan(4050, 450, n), 2) for n in (54, 27)]
    done = 27 if before == "finished" else 13
    assert f"runs/{old.name} has trained this for {done} iterations, but scheduler={scheduler} " in caplog.text
    assert f"(iteration 2 would have used {rates[0]:.3g}, not {rates[1]:.3g}): training starts fr" in caplog.text


@pytest.mark.parametrize("epochs", [4, 6])
@pytest.mark.parametrize("scheduler", ["scheduler=constant", "scheduler=onecycle"])
def test_a_longer_patience_goes_on_where_a_shorter_one_stopped(
    scheduler: str, epochs: int, here: Project, uninterrupted: Callable[..., Run]
) -> None:
    old = here.trained(scheduler, *STOPPING, "stopping.patience=1", "train.epochs=4")
    assert old.info["stopped"]["epoch"] == 2
    command = (scheduler, *STOPPING, "stopping.patience=2", f"train.epochs={epochs}")
    now = here.trained(*command)
    assert now.info["stopped"]["epoch"] == 3
    is_the_same(now, uninterrupted(*command))
    # the same plan has the same rates, whatever the scheduler
    allowed = epochs == 4 or scheduler == "scheduler=constant"
    assert now.info.get("extended_from") == ({"run": old.name, "iteration": 18} if allowed else None)


@pytest.mark.parametrize("done", [18, 22])
def test_what_an_earlier_stop_would_not_have_trained_is_not_taken_over(
    done: int, here: Project, uninterrupted: Callable[..., Run]
) -> None:
    """Killed after, or inside, the epoch before which the new settings stop."""
    here.killed(done, "scheduler=constant", "train.epochs=3")
    command = ("scheduler=constant", *STOPPING, "stopping.patience=1", "train.epochs=6")
    is_the_same(here.trained(*command), uninterrupted(*command))


# ---------------------------------------------------------------- never


def edit_params(project: Project, changes: dict[str, str]) -> None:
    path = project.folder / "params.yaml"
    text = path.read_text()
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path.write_text(text)


CHANGES = {
    "train.epochs=2": "train.epochs 3 → 2",
    "seed=1": "seed 0 → 1",
    "optimizer.lr=0.02": "optimizer.lr 0.01 → 0.02",
    "train.batch_size=400": "train.batch_size 450 → 400",
    "model.hidden=[9]": "model.hidden [8] → [9]",
    "augment=none": "augment shift → none, augment.pixels 2 → None",
    "params": "seed 0 → 1",
    "data": "the data's checksum",
    "code": "the code of training/loop.py",
}


@pytest.mark.parametrize("before", ["killed", "finished"])
@pytest.mark.parametrize("changed", CHANGES)
def test_what_changes_the_numbers_never_goes_on_and_where_no_word_of_the_command_did_it_is_named(
    changed: str, before: str, here: Project, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    common = ("scheduler=constant", "optimizer.lr=0.01", "train.epochs=3")
    old = here.killed(13, *common) if before == "killed" else here.trained(*common)
    untouched = content(old.folder)
    given, data = common, here.sample
    if changed == "data":
        data = dataclasses.replace(data, values={**data.values, "checksum": "0" * 32})
        assert data.checksum != here.sample.checksum
    elif changed == "params":
        edit_params(here, {"seed: 0  ": "seed: 1  "})
    elif changed == "code":
        package = shutil.copytree(identity.PACKAGE, tmp_path / "package")
        here.patch.setattr(identity, "PACKAGE", package)
        with (package / "training/loop.py").open("a") as file:
            file.write("# decides numbers\n")
    else:
        given = (*common, changed)
    caplog.clear()
    now, _ = here.opened(*given, data=data)
    assert "extended_from" not in now.info
    assert not (now.folder / "state").exists()
    assert not (now.folder / "iterations.csv").exists()
    assert content(old.folder) == untouched
    line = (
        f"new      the same command begins a new run, because of {CHANGES[changed]}; runs/{old.name} is kept as it is"
    )
    meant_to_go_on = before == "killed" and changed in ("params", "data", "code")
    assert [record.getMessage() for record in caplog.records] == ([line] if meant_to_go_on else [])


@pytest.mark.parametrize("name", ["iterations.csv", "epochs.csv", "checkpoints/epoch-0001.pt"])
def test_a_damaged_file_of_an_earlier_run_is_no_reason_not_to_train(
    name: str, here: Project, caplog: pytest.LogCaptureFixture
) -> None:
    earlier = here.trained(*SCHEDULERS["constant"], "train.epochs=2")
    path = earlier.folder / name
    if path.suffix == ".csv":
        path.write_bytes(path.read_bytes().replace(b"\n1,", b"\nx,", 1))
    else:
        path.unlink()
    run, _ = here.opened(*SCHEDULERS["constant"], "train.epochs=3")
    assert name in caplog.text and "; its epochs are not reused" in caplog.text
    assert "extended_from" not in run.info
    assert not (run.folder / "iterations.csv").exists()


def test_no_more_than_six_differences_are_named(here: Project, caplog: pytest.LogCaptureFixture) -> None:
    here.killed(13, "scheduler=constant", "train.epochs=3")
    caplog.clear()
    edit_params(
        here,
        {"seed: 0  ": "seed: 1  ", "  seed: 0\n": "  seed: 2\n", "validation: 0.1 ": "validation: 0.2 "}
        | {"label_smoothing: 0.0 ": "label_smoothing: 0.2 ", "augment: shift ": "augment: none "}
        | {"stopping: none ": "stopping: patience "},
    )
    here.opened("scheduler=constant", "train.epochs=3")
    (record,) = caplog.records
    assert record.getMessage().count(" → ") == 6
    assert re.search(r" and \d more; runs/", record.getMessage())


def test_another_command_says_nothing_of_an_interrupted_run(here: Project, caplog: pytest.LogCaptureFixture) -> None:
    here.killed(13, "scheduler=constant", "train.epochs=3")
    caplog.clear()
    here.opened("scheduler=constant", "train.epochs=3", "seed=1")
    assert caplog.records == []


def test_a_preset_over_edited_params_is_made_again_by_all_its_settings(here: Project) -> None:
    preset = "# @package _global_\ndefaults:\n  - override /scheduler: constant\n"
    (here.folder / "conf/experiment/calm.yaml").write_text(preset)
    live.git(here.folder, "init", "-q")
    live.git(here.folder, "add", "-A")
    live.git(here.folder, "-c", "user.name=x", "-c", "user.email=x@localhost", "commit", "-q", "-m", "x")
    assert here.opened("+experiment=calm")[0].info["again"] is None
    edit_params(here, {"label_smoothing: 0.0 ": "label_smoothing: 0.2 ", "validation: 0.1 ": "validation: 0.2 "})
    edited = here.opened("+experiment=calm")[0].info
    live.git(here.folder, "checkout", "-q", "params.yaml")
    *words, command = edited["again"].partition(" -m bestepoch.train ")
    assert words == ["python", " -m bestepoch.train "] and "experiment" not in command
    settings = compose.load_config(shlex.split(command), False)[1]
    assert RunRequest(settings, here.sample, "cpu", RunOrigin()).fingerprint == edited["fingerprint"]


def test_a_run_that_is_being_trained_lends_nothing_and_is_not_called_interrupted(
    here: Project, caplog: pytest.LogCaptureFixture
) -> None:
    old = here.killed(13, "scheduler=constant", "train.epochs=3")
    with FileLock(old.folder / ".lock"):
        now, _ = here.opened("scheduler=constant", "train.epochs=6")
    assert "extended_from" not in now.info
    assert "interrupted" not in caplog.text


SOME = 0.0, 0.5, 1.0, 2.3


def drawn(rng: random.Random) -> Any:
    warm = rng.choice(SOME)
    return rng.choice(
        [
            ConstantSchedulerConfig(name="constant", warmup_epochs=warm),
            StepSchedulerConfig(
                name="step", step_size=rng.randint(1, 3), gamma=rng.choice([0.3, 1.0]), warmup_epochs=warm
            ),
            ExponentialSchedulerConfig(name="exponential", gamma=rng.choice([0.7, 1.0]), warmup_epochs=warm),
            PlateauSchedulerConfig(
                name="plateau", factor=0.1, patience=1, threshold=0.0, min_lr=0.0, warmup_epochs=warm
            ),
            CosineSchedulerConfig(name="cosine", eta_min=rng.choice([0.0, 0.25]), warmup_epochs=warm),
            OneCycleSchedulerConfig(
                name="onecycle", pct_start=rng.choice([0.3, 0.9]), div_factor=25.0, final_div_factor=10.0
            ),
        ]
    )


def test_it_goes_on_exactly_where_all_rates_of_what_is_done_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda _handle: None)
    rng, outcomes = random.Random(0), []
    for number in range(200):
        menu, peak = drawn(rng), rng.choice([0.1, 0.25])
        images, batch = rng.randint(20, 90), rng.randint(5, 20)
        long = rng.randint(2, 40)
        short = rng.randint(1, long - 1)
        per_epoch = math.ceil(images / batch)
        done = rng.randint(1, short)
        cut = done == short and short % per_epoch
        folder = tmp_path / str(number)
        before = {"train": {"epochs": None, "iterations": short, "batch_size": batch}}
        data = {"sizes": {"train": images}}
        old = Run(folder / "old", {**live.RECORD, "name": "old", "fingerprint": "1", "config": before, "data": data})
        now = Run(folder / "now", {**live.RECORD, "name": "now", "fingerprint": "2"})
        old.update()
        now.update()
        header = "iteration,epoch\n"
        (old.folder / "iterations.csv").write_text(header + "".join(f"{i},1\n" for i in range(1, short + 1)))
        (old.folder / "epochs.csv").write_text("epoch,iteration\n")
        checkpoint.save_state(old.folder, done, {"iteration": done, "evaluated": bool(cut) or not done % per_epoch})

        plan = make_plan(images, TrainConfig(epochs=None, iterations=long, batch_size=batch, eval_images=None))
        rates = [
            [learning_rate(menu, peak, TrainingPlan(images, batch, n), i) for i in range(1, done + 1)]
            for n in (short, long)
        ]
        settings: Any = SimpleNamespace(
            scheduler=menu, optimizer=SimpleNamespace(lr=peak), stopping=NoStoppingConfig(name="none")
        )
        taken = extend._copy_prefix(now, old, settings, plan)
        assert taken == (rates[0] == rates[1] and not cut), (menu, short, long, done)
        outcomes.append((menu.name, taken))
        if taken:
            assert [int(row["iteration"]) for row in live.table(now.folder / "iterations.csv")] == [*range(1, done + 1)]
    assert {name for name, taken in outcomes if taken} == {*SCHEDULERS, "cosine", "onecycle"}
    assert {name for name, taken in outcomes if not taken} >= {"cosine", "onecycle"}


# ---------------------------------------------------------------- killed on the way, and for real


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", range(6))
def test_killed_while_it_takes_over_it_still_ends_with_the_same_bits(
    step: int, after: bool, here: Project, uninterrupted: Callable[..., Run]
) -> None:
    """Two tables, three checkpoints and the state: killed before or after each of them is there."""
    command = ("scheduler=constant", "train.epochs=6")
    old = here.trained("scheduler=constant", "train.epochs=3")
    untouched = content(old.folder)
    calls = 0

    def dying(inner: Callable[..., None]) -> Callable[..., None]:
        def outer(*arguments: Any) -> None:
            nonlocal calls
            calls += 1
            if calls > step and not after:
                raise Killed
            inner(*arguments)
            if calls > step:
                raise Killed

        return outer

    with here.patch.context() as patch:
        for name in ("_copy_rows", "_link"):
            patch.setattr(extend, name, dying(getattr(extend, name)))
        try:
            here.trained(*command)
        except Killed:
            gc.collect()  # and with it what locks the run
    assert calls == step + 1
    now = here.trained(*command)
    assert now.resumed
    is_the_same(now, uninterrupted(*command))
    assert content(old.folder) == untouched
    assert len(list(now.folder.parent.glob("*/run.json"))) == 2


@pytest.mark.slow
def test_both_trackers_have_each_step_once_in_the_new_run_and_the_old_one_stays(tmp_path: Path) -> None:
    folder = live.with_store(live.with_split(live.project(tmp_path)))
    common = (*live.SAMPLE, "model=mlp", "model.hidden=[8]", "scheduler=step")
    live.run(folder, "train", *common, "train.epochs=2")
    old, client = live.only_run(folder), MlflowClient(tracking_uri=live.store(folder))
    (before,) = live.mlflow_runs(client)
    untouched = content(old)
    assert "reused   with the 82 iterations of" in live.run(folder, "train", *common, "train.epochs=4")
    runs = {run.info.run_name: run for run in live.mlflow_runs(client)}
    assert runs.pop(old.name).to_dictionary() == before.to_dictionary()
    assert content(old) == untouched
    ((name, run),) = runs.items()
    assert (run.info.status, run.data.tags["continues"]) == ("FINISHED", old.name)
    points = live.journal_points(folder / "runs" / name)
    assert [step for step, _ in points["val/loss"]] == [1, 2, 3, 4]
    assert live.mlflow_points(client, run.info.run_id) == points
    assert live.tensorboard_points(folder / "runs" / name) == live.as_float32(points)
    noted = json.loads((folder / "runs" / name / "run.json").read_text())
    assert noted["extended_from"] == {"run": old.name, "iteration": 82}
