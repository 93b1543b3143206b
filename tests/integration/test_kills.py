"""Killed with SIGKILL again and again, wherever that falls, the same command ends as if it had never been stopped.

Twenty kills. ``BESTEPOCH_KILLS=200`` asks for more, ``BESTEPOCH_KILL_SEED`` for those of a failure that named its seed,
``BESTEPOCH_KILLS_OUT`` for a file with what was killed, how often, and what that cost.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock
from mlflow import MlflowClient

import live
import pipeline
from bestepoch.tracking.client import MAX_RESTARTS

KILLS = int(os.environ.get("BESTEPOCH_KILLS", "20"))
SEED = int(os.environ.get("BESTEPOCH_KILL_SEED") or random.SystemRandom().randrange(1_000_000))
A_ROUND = 10  # kills of one run, before it is let through
EPOCHS, PER_EPOCH = 20, 162
STAGES = ("fetch", "split", "train", "evaluate")
LAST_STATE = f"runs/*/state/iteration-{EPOCHS * PER_EPOCH:09d}.pt"
# beside what it was to become, as a kill leaves it
TEMPORARY = re.compile(r"\.(run\.json|mlflow\.json|tensorboard\.json|iteration-\d+\.pt|epoch-\d+\.pt)\.\w{8}")

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Reference:
    """An uninterrupted run without trackers, and how many seconds its parts took."""

    project: Path
    start: float
    training: float
    evaluation: float


@dataclass(frozen=True)
class Moment:
    """A kill to come: of ``victim``, ``delay`` seconds after something new of ``sign``, or after the start.

    A sign is a pattern of files, of which a changed one is new as well, or a stage's name: it begins to run.
    """

    sign: str | None
    delay: float
    victim: str
    patient: bool  # the command is typed again when all that lives on has ended; otherwise at once
    part: int  # of a run's life

    def signs(self, folder: Path) -> set[Any]:
        """What there is of it now."""
        if self.sign is None:
            return {"the start"}
        if self.sign in (*STAGES, "courier"):
            return {process.pid for process in processes(folder, self.sign)}
        return stamps(folder, self.sign)


def moments(rng: random.Random, took: Reference, kills: int, dvc: bool) -> list[Moment]:
    """One anywhere, then at most nine in the order of a run's life: a row of ``life`` is drawn at most once."""
    out = "results/evaluate" if dvc else "runs/*/evaluate"
    fetching = [("fetch", took.start), ("split", took.start), ("data/split/*", 0.3)]
    starting = [
        ("train", took.start),
        ("courier", took.start),
        ("runs/*", 0.02),
        ("runs/*/.run.json.*", 0.0),
        ("mlflow.db*", 1.0),
        ("mlflow.db", 1.0),
    ]
    training = [
        ("runs/*/iterations.csv", took.training / 2),
        ("runs/*/state/.iteration-*", 0.0),
        ("runs/*/checkpoints/.epoch-*", 0.0),
        ("runs/*/epochs.csv", 0.003),
        ("runs/*/state/mlflow.json", 0.1),
    ]
    ending = [(LAST_STATE, 0.0), (LAST_STATE, 0.5)]
    publishing = [("results/.train.partial", 0.02), ("results/train/run.json", 1.0)]
    evaluating = [
        ("evaluate", 2 * took.evaluation),
        *((f"{out}/{name}", 0.05) for name in ("predictions.csv", "model.pt", "lr.png", "report.html")),
        (f"{out}/metrics.json", took.evaluation),
        ("mlartifacts/*/models/*", 1.0),
    ]
    life = [starting, starting, training, training, training, training, ending, evaluating, evaluating]
    victims = ["its command", "its command", "everything"]
    if dvc:
        life = [fetching, starting, starting, training, training, training, ending, publishing, evaluating]
        victims += ["dvc", "dvc", "dvc and its command"]
    anywhere = [(None, (2 if dvc else 1) * took.start + took.training / 2)]
    chosen = []
    for signs in [anywhere, *(life[i] for i in sorted(rng.sample(range(len(life)), kills - 1)))]:
        sign, within = rng.choice(signs)
        victim = rng.choice(victims if signs is evaluating else [*victims, "the courier"])
        part = life.index(signs) if sign else -1
        chosen.append(Moment(sign, rng.uniform(0, within), victim, rng.random() < 0.3, part))
    return chosen


def words(process: psutil.Process) -> list[str]:
    """Its command line, with a stage of DVC's by its module as well; nothing where it has just ended."""
    with contextlib.suppress(psutil.Error):
        line = list(process.cmdline())
        return [*line, f"bestepoch.{line[2]}"] if line[1:2] == ["src/stage.py"] else line
    return []


def processes(folder: Path, stage: str | None = None) -> list[psutil.Process]:
    """Everything alive that works in the project, or what runs a stage there."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd() == str(folder) and (stage is None or f"bestepoch.{stage}" in words(process)):
                found.append(process)
    return found


def quiet(folder: Path, seconds: float) -> bool:
    """Whether nothing of the project is alive, within so many seconds."""
    end = time.monotonic() + seconds
    while processes(folder) and time.monotonic() < end:
        time.sleep(0.05)
    return not processes(folder)


def stamps(folder: Path, *patterns: str) -> set[Any]:
    """The files that match, with what changes when they do."""
    found = set()
    for path in (path for pattern in patterns for path in folder.glob(pattern)):
        with contextlib.suppress(FileNotFoundError):  # it was a temporary one
            stat = path.stat()
            found.add((path, stat.st_mtime_ns, stat.st_size))
    return found


class Attempt:
    """The command, typed once."""

    def __init__(self, folder: Path, command: list[str], waiting: list[Moment]) -> None:
        self.folder, self.command = folder, command
        self.expect(waiting)
        self._before = self._seen()
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        self._still: list[psutil.Process] = []
        self._couriers_left = MAX_RESTARTS  # one more, and what is not delivered is left to sync
        self.process = psutil.Popen(
            command, cwd=folder, env=pipeline.environment(), stdout=self._printed, stderr=subprocess.STDOUT
        )

    def _seen(self) -> set[Any]:
        return stamps(self.folder, "runs/*/*", "runs/*/*/.*.pt.*", "results/evaluate/metrics.json")

    def reached(self, waiting: list[Moment]) -> Moment | None:
        """The next moment, taken off the list, and everything stands still; None when it ended before."""
        there, looked, came, overtaken = [], 0.0, 0.0, 0.0
        end = time.monotonic() + 120
        while self.process.poll() is None and waiting:
            assert time.monotonic() < end, f"still going on after two minutes:\n{self.said()}"
            if time.monotonic() - looked > 0.1:  # not when the moment comes: looking takes longer than some last
                there, looked = processes(self.folder), time.monotonic()
                later = any(self._is(moment) for moment in waiting if moment.part > waiting[0].part)
                overtaken = overtaken or looked if later and not came else 0
                if overtaken and looked - overtaken > 1:  # the sign does not come any more
                    print("    not seen:", waiting.pop(0))
            if not came and self._is(waiting[0]):
                came = time.monotonic()
            if came and time.monotonic() - came >= waiting[0].delay:
                self._still = there
                for process in there:
                    with contextlib.suppress(psutil.Error):
                        process.suspend()
                return waiting.pop(0)
            time.sleep(0.02 if waiting[0].sign in (*STAGES, "courier") else 0.0005)
        return None

    def _is(self, moment: Moment) -> bool:
        return bool(moment.signs(self.folder) - self._known[moment])

    def expect(self, waiting: list[Moment]) -> None:
        """Signs that are there already do not count."""
        self._known = {moment: moment.signs(self.folder) if moment.sign else set() for moment in waiting}

    def kill(self, victim: str) -> tuple[str, str]:
        """Returns who was killed, the command where the one meant was not there, and what was going on."""
        there = processes(self.folder)
        phase = self._phase(there)
        couriers = [process for process in there if "bestepoch.tracking.worker" in words(process)]
        # without what lives on of an earlier attempt
        own = [process for process in [self.process, *self.process.children(True)] if process not in couriers]
        stages = [process for process in own if {f"bestepoch.{stage}" for stage in STAGES} & {*words(process)}]
        if victim == "the courier" and not (couriers and self._couriers_left):
            victim = "its command"
        self._couriers_left -= victim == "the courier"
        if victim == "its command" and not stages:
            victim = "dvc"
        doomed = {
            "its command": stages,
            "the courier": couriers,
            "dvc": [self.process],
            "dvc and its command": own,
            "everything": there,
        }[victim]
        for process in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        still = {*there, *self._still}
        while still:
            for process in still:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()
            still = {process for process in processes(self.folder) if process.status() == psutil.STATUS_STOPPED}
        if victim == "its command" and self.command[0] != "dvc":
            victim = self.command[2].partition(".")[2]
        return victim, phase

    def _phase(self, there: list[psutil.Process]) -> str:
        """As far as the files tell."""
        stages = set()
        for process in there:
            stages |= {part for part in words(process) if part.startswith("bestepoch.")}
        names = {path.name for path, _, _ in self._seen() - self._before}
        runs = list(self.folder.glob("runs/*/run.json"))
        status = json.loads(runs[0].read_text())["status"] if runs else None
        if "bestepoch.evaluate" in stages or "metrics.json" in names:
            return "evaluation"
        if self.command[0] == "dvc" and "bestepoch.train" not in stages and status is None:
            return "fetching and splitting"
        if status == "finished":
            return "publishing" if self.command[0] == "dvc" else "end of training"
        if "run.json" not in names or "bestepoch.train" not in stages:
            return "start"
        if any(name.startswith((".iteration-", ".epoch-")) for name in names):
            return "saving a checkpoint"
        if list(self.folder.glob(LAST_STATE)):
            return "end of training"
        return "training" if {"iterations.csv", "state"} & names else "start"

    def said(self) -> str:
        return os.pread(self._printed.fileno(), 1 << 24, 0).decode()

    def end(self) -> int:
        return int(self.process.wait(timeout=180))


def to_type(folder: Path, dvc: bool) -> list[str]:
    """What a person types next, who has seen how far the last command came."""
    if dvc:
        return ["dvc", "repro"]
    finished = [path for path in folder.glob("runs/*/run.json") if json.loads(path.read_text())["status"] == "finished"]
    return live.command("evaluate", f"run=runs/{finished[0].parent.name}") if finished else live.command("train")


def carried_through(folder: Path, waiting: list[Moment], dvc: bool) -> list[tuple[str, str]]:
    """Type the command until it has ended by itself and well, killing as planned; who was killed, and when."""
    kills = []
    while True:
        attempt = Attempt(folder, to_type(folder, dvc), waiting)
        print(*attempt.command)
        while (moment := attempt.reached(waiting)) is not None:
            kills.append(attempt.kill(moment.victim))
            print("    killed {} during {}:".format(*kills[-1]), moment, flush=True)
            if kills[-1][0] != "the courier":
                break
            attempt.expect(waiting)
        when, code, said = time.time(), attempt.end(), attempt.said()
        print(*(f"    | {line}" for line in said.splitlines()[-12:]), sep="\n")
        if code and "RWLock-file '.dvc/tmp/rwlock'. JSON structure is corrupted" in said:
            # not the project's: DVC, killed while it writes that file, asks to have it removed
            (folder / ".dvc/tmp/rwlock").unlink()
            continue
        assert (code != 0) == (moment is not None), f"it ended with {code}"
        if moment is None and (dvc or "bestepoch.evaluate" in attempt.command):
            return kills
        if moment is not None and moment.patient:
            assert quiet(folder, 30), f"half a minute later there is still {processes(folder)}"
            rows = [row for path in folder.glob("runs/*/iterations.csv") for row in live.table(path)]
            assert not [row for row in rows if float(row["time"]) > when + 3], "an orphan went on training"


Curve = tuple[str, int, float]


def flat(curves: dict[str, list[live.Point]]) -> Counter[Curve]:
    """Every point, and how often it is there."""
    return Counter((key, step, value) for key, points in curves.items() for step, value in points)


def cost(folder: Path, reference: Reference, out: Path) -> Counter[str]:
    """What the kills cost the run of a project, which should be nothing."""
    run, uninterrupted = live.only_run(folder), live.only_run(reference.project)
    weights, wanted = live.weights(run), live.weights(uninterrupted)
    metrics = json.loads((out / "metrics.json").read_text())
    expected = live.journal_points(run) | {
        "best/epoch": [(0, metrics["best_epoch"])],
        "best/val_loss": [(0, metrics["val_loss"])],
        "best/val_accuracy": [(0, metrics["val_accuracy"])],
        "test/loss": [(0, metrics["test_loss"])],
        "test/accuracy": [(0, metrics["test_accuracy"])],
    }
    client = MlflowClient(tracking_uri=live.store(folder))
    (stored,) = live.mlflow_runs(client)
    in_mlflow = {
        key: [(metric.step, metric.value) for metric in client.get_metric_history(stored.info.run_id, key)]
        for key in stored.data.metrics
        if not key.startswith(("time/", "memory/"))  # told at each end of an attempt
    }
    total = Counter(weights_differ=len([key for key in weights.keys() | wanted if weights.get(key) != wanted.get(key)]))
    curves = {key: points for key, points in live.as_float32(expected).items() if not key.startswith("best/")}
    for right, there in (
        (flat(expected), flat(in_mlflow)),
        (flat(curves), flat(live.tensorboard_points(run))),  # its best epoch is told at each end of an attempt
    ):
        total["points_lost"] += (right - there).total()
        total["points_doubled"] += (there - right).total()
    assert (stored.info.status, stored.info.run_name) == ("FINISHED", run.name)
    return total


def left_behind(folder: Path) -> dict[str, int]:
    """Files that a kill left half-written, and their sizes."""
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in folder.glob("runs/*/**/.*")
        if TEMPORARY.fullmatch(path.name)
    }


def is_as_if_never_stopped(folder: Path, reference: Reference, dvc: bool) -> None:
    """But for what `cost` counts."""
    run, uninterrupted = live.only_run(folder), live.only_run(reference.project)
    assert run.name == uninterrupted.name
    assert live.numbers(run) == live.numbers(uninterrupted)
    assert len(live.numbers(run)["iterations.csv"]) == EPOCHS * PER_EPOCH
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    out = folder / "results/evaluate" if dvc else run / "evaluate"
    for name in ("metrics.json", "predictions.csv", "model.pt", "lr.png", "confusion.png"):
        assert (out / name).read_bytes() == (uninterrupted / "evaluate" / name).read_bytes(), name
    # nothing beside
    assert quiet(folder, 30), f"half a minute later there is still {processes(folder)}"
    assert [path.name for path in (folder / "runs").iterdir() if path.is_dir()] == [run.name]
    mine, wanted = (
        {
            str(path.relative_to(place))
            for path in place.rglob("*")
            if not path.name.startswith(("events.", "iteration-")) and "evaluate" not in path.parts
        }
        for place in (run, uninterrupted)
    )
    assert {name for name in mine ^ wanted if not TEMPORARY.fullmatch(Path(name).name)} == {
        *("state/.delivery.lock", "state/mlflow.json", "state/tensorboard.json")  # the other one is not tracked
    }
    assert 1 <= len(list(run.glob("state/iteration-*"))) <= 2
    if dvc:
        published = folder / "results/train"
        assert {path.name for path in published.iterdir()} == {
            *("checkpoints", "run.json", "iterations.csv", "epochs.csv", ".gitignore")
        }
        for name in ("iterations.csv", "epochs.csv"):
            assert (published / name).read_bytes() == (run / name).read_bytes()
        assert live.weights(published) == live.weights(run)
        assert [path.name for path in (folder / "results").iterdir() if path.name.startswith(".")] == []
        assert "Data and pipelines are up to date" in pipeline.run(folder, "dvc", "repro")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project without data, store and results, whose default experiment is small and saves all the time."""
    folder = pipeline.fresh_copy((tmp_path_factory.mktemp("template") / "project").resolve())
    for name, old, new in (
        ("params.yaml", "data: mnist ", "data: mnist_sample "),
        ("params.yaml", "model: cnn ", "model: mlp "),
        ("params.yaml", "epochs: 6 ", f"epochs: {EPOCHS} "),
        ("params.yaml", "batch_size: 100 ", "batch_size: 25 "),
        ("conf/model/mlp.yaml", "hidden: [256, 128]", "hidden: [32]"),
        ("conf/config.yaml", "every_seconds: 30 ", "every_seconds: 0.05 "),
        ("params.yaml", "name: auto ", "name: cpu "),
        ("params.yaml", "threads: null ", "threads: 1 "),
    ):
        pipeline.edit(folder / name, old, new)
    pipeline.commit(folder)
    return folder


@pytest.fixture(scope="module")
def reference(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp("uninterrupted") / "project"
    live.with_split(shutil.copytree(template, folder))
    for tracker in ("mlflow", "tensorboard"):
        pipeline.edit(folder / "conf/config.yaml", f"{tracker}: true", f"{tracker}: false")
    began = time.time()
    pipeline.run(folder, *live.command("train"))
    ended = time.time()
    run = live.only_run(folder)
    pipeline.run(folder, *live.command("evaluate", f"run=runs/{run.name}"))
    times = [float(row["time"]) for row in live.table(run / "iterations.csv")]
    return Reference(folder, times[0] - began, times[-1] - times[0], time.time() - ended)


@pytest.mark.parametrize(
    "way",
    [
        pytest.param("shell", marks=pytest.mark.xdist_group("kills_shell")),
        pytest.param("dvc repro", marks=pytest.mark.xdist_group("kills_dvc")),
    ],
)
def test_killed_at_random_moments_nothing_is_lost(
    way: str, template: Path, reference: Reference, tmp_path: Path
) -> None:
    dvc = way == "dvc repro"
    rng = random.Random(f"{SEED} {way}")
    table: dict[str, dict[str, Counter[str]]] = {"during": {}, "killed": {}}
    done, number = 0, 0
    while done < KILLS // 2:
        number += 1
        folder = shutil.copytree(template, tmp_path.resolve() / f"{number}/project")
        if not dvc:
            live.with_split(folder)
        try:
            plan = moments(rng, reference, min(A_ROUND, KILLS // 2 - done), dvc)
            kills = carried_through(folder, plan, dvc)
            is_as_if_never_stopped(folder, reference, dvc)
            out = folder / "results/evaluate" if dvc else live.only_run(folder) / "evaluate"
            total = cost(folder, reference, out)
        except Exception as error:
            error.add_note(f"BESTEPOCH_KILL_SEED={SEED} BESTEPOCH_KILLS={KILLS}, round {number}, see what was printed")
            raise
        for victim, phase in kills:
            for row in (table["during"].setdefault(phase, Counter()), table["killed"].setdefault(victim, Counter())):
                row.update(kills=1, **total)
        done += len(kills)
        print(total, left_behind(folder), sep="\n")
        shutil.rmtree(folder)
    if os.environ.get("BESTEPOCH_KILLS_OUT"):
        write_down(Path(os.environ["BESTEPOCH_KILLS_OUT"]), way, table)
    costs = Counter[str]()
    for row in table["killed"].values():
        costs.update({key: number for key, number in row.items() if key != "kills"})
    assert costs.total() == 0, f"{costs} with BESTEPOCH_KILL_SEED={SEED}"


def write_down(path: Path, way: str, table: dict[str, Any]) -> None:
    """What was killed in one way, beside what the other test found."""
    with FileLock(f"{path}.lock"):
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        path.write_text(json.dumps({**known, way: table}, indent=2, sort_keys=True) + "\n", encoding="utf-8")
