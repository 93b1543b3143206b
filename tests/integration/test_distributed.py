"""One training on several processes: the same curve, the same record, and the same bits after a kill."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from mlflow import MlflowClient

import live
from bestepoch.base.config import compose
from bestepoch.splitting import ensure

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("distributed")]

UNTRACKED = ("tracking.mlflow=false", "tracking.tensorboard=false")
# 801 training images: the last of the nine batches of an epoch has a single one
IMAGES, BATCH, PER_EPOCH = 801, 100, 9
BASE = (*live.SAMPLE, *UNTRACKED, "split.validation=3699", "train.epochs=2")
# what each run is called here, and what it adds
CURVES = {
    "mlp": ("model=mlp", "augment=shift"),
    "cnn": ("model=cnn", "augment=affine"),
    "penalised": ("model=mlp", "optimizer.l1=0.001", "loss.label_smoothing=0.1", "optimizer=sgd", "optimizer.lr=0.05"),
    "patient": (
        "model=cnn",
        "model.channels=[4]",
        "scheduler=plateau",
        "scheduler.patience=0",
        "scheduler.threshold=1e6",
    ),
    "dropout": ("model=mlp", "model.activation=tanh", "model.dropout=0.5", "augment=none"),
}
# Trains all of them in double precision, where nothing but the arithmetic's order may differ, and notes for each run
# what each process had: the images of each batch, the first units that dropout took away, the weights at the end.
SCRIPT = """
import functools, hashlib, json, sys
from pathlib import Path
import torch
from bestepoch.base.config.compose import load_config
from bestepoch.cli.process import configure_process
from bestepoch.components.data.augment import Augment
from bestepoch.components.models import networks
from bestepoch.splitting.ensure import ensure_split
from bestepoch.tracking.client import RunTracking
from bestepoch.training import trainer
from bestepoch.training.distributed import DistributedContext
from bestepoch.training.session import Session, train, train_worker_rank

build = networks.build_network
networks.build_network = lambda *choice: build(*choice).double()
networks.Network.forward = lambda self, x: self.body(((x.double() - self.mean) / self.std).unsqueeze(1))
configure_process()
context, notes = DistributedContext.from_env(), {}
vary, make = Augment.__call__, trainer.TrainingState
def noted(self, images, index):
    note["images"].append(index.tolist())
    return vary(self, images, index)
def kept(network, *rest):
    def look(module, given, result):
        if module.training and "dropped" not in note:
            note["dropped"] = (result[0] == 0).tolist()
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout) and module.p:
            module.register_forward_hook(look)
    note["network"] = network
    return make(network, *rest)
Augment.__call__, trainer.TrainingState = noted, kept
with context.process_group():
    for name, overrides in json.loads(sys.argv[1]).items():
        note = {"images": []}
        config = load_config(overrides, False)[1]
        if context.is_main:
            track = functools.partial(RunTracking, config.tracking)
            train(config, ensure_split(config), Session(overrides, context=context, track=track)).close()
        else:
            train_worker_rank(config, context)
        tensors = note.pop("network").state_dict().values()
        note["weights"] = hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for t in tensors)).hexdigest()
        notes[name] = context.all_gather(note)
        if context.is_main:
            (run,) = Path("runs").glob("*/run.json")
            run.parent.rename(Path("trained") / name)
if context.is_main:
    Path("notes.json").write_text(json.dumps(notes))
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose training finds its data and an empty store."""
    folder = live.with_store(live.with_split(live.project(tmp_path_factory.mktemp("template") / "project")))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ensure.ensure_split(compose.load_config(list(BASE), False)[1])
    return folder


@pytest.fixture
def copy(template: Path, tmp_path: Path) -> Path:
    return shutil.copytree(template, tmp_path / "project")


Trained = tuple[Path, dict[str, list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def trained(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Trained]:
    """All `CURVES` on a number of processes: the folder with the runs, and what `SCRIPT` noted."""
    done: dict[int, tuple[Path, subprocess.CompletedProcess[str]]] = {}

    def on(processes: int) -> Trained:
        if processes not in done:
            copy = shutil.copytree(template, tmp_path_factory.mktemp(f"on-{processes}") / "project")
            (copy / "trained").mkdir()
            (copy / "script.py").write_text(SCRIPT)
            command = live.command("train", processes=processes)
            command[command.index("bestepoch.train") - 1 :] = [
                "script.py",
                json.dumps({name: [*BASE, *more] for name, more in CURVES.items()}),
            ]
            ended = subprocess.run(command, cwd=copy, env=live.environment(copy), capture_output=True, text=True)
            done[processes] = copy, ended
        copy, ended = done[processes]
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return copy / "trained", json.loads((copy / "notes.json").read_text())

    return on


def numbers(run: Path) -> dict[str, list[list[float]]]:
    return {name: [[float(value) for value in row] for row in rows] for name, rows in live.numbers(run).items()}


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("name", [name for name in CURVES if name != "dropout"])
def test_the_curve_is_that_of_one_process(name: str, processes: int, trained: Callable[[int], Trained]) -> None:
    """Batch statistics, penalty, label smoothing and the rate that follows the validation loss included."""
    alone, several = (numbers(trained(n)[0] / name) for n in (1, processes))
    assert [len(rows) for rows in several.values()] == [2 * PER_EPOCH, 2]
    for table in alone:
        for one, other in zip(alone[table], several[table], strict=True):
            assert other == pytest.approx(one, rel=1e-6, abs=1e-12)
    if name == "patient":
        assert several["epochs.csv"][0][-1] > several["epochs.csv"][1][-1], "the rate should have come down"


@pytest.mark.parametrize("processes", [2, 3])
def test_each_image_is_seen_once_an_epoch_and_all_processes_have_a_like_part(
    processes: int, trained: Callable[[int], Trained]
) -> None:
    (alone,) = trained(1)[1]["cnn"]
    several = [note["images"] for note in trained(processes)[1]["cnn"]]
    assert [len(parts) for parts in several] == [2 * PER_EPOCH] * processes
    batches = [list(chain(*parts)) for parts in zip(*several, strict=True)]
    assert batches == alone["images"]
    for epoch in (batches[:PER_EPOCH], batches[PER_EPOCH:]):
        assert sorted(chain(*epoch)) == list(range(IMAGES))
    sizes = [[len(part) for part in parts] for parts in zip(*several, strict=True)]
    assert sizes[PER_EPOCH - 1] == [1, *[0] * (processes - 1)]  # one of them has nothing to do, and takes part
    assert all(max(parts) - min(parts) <= 1 for parts in sizes)


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("processes", [2, 3])
def test_all_processes_end_with_the_same_weights(name: str, processes: int, trained: Callable[[int], Trained]) -> None:
    assert len({note["weights"] for note in trained(processes)[1][name]}) == 1


def test_dropout_takes_other_units_in_each_process(trained: Callable[[int], Trained]) -> None:
    masks = [note["dropped"] for note in trained(3)[1]["dropout"]]
    assert all(0.25 < sum(mask) / len(mask) < 0.75 for mask in masks)
    assert len({tuple(mask) for mask in masks}) == 3
    # and the initial weights are those of one process: the first loss but for dropout
    first = [numbers(trained(n)[0] / "dropout")["iterations.csv"][0][2] for n in (1, 3)]
    assert first[0] == pytest.approx(first[1], rel=0.1)


# ---------------------------------------------------------------- the real thing, in single precision


TRAIN = (
    *(*live.SAMPLE, "model=cnn", "model.channels=[4,8]", "model.dropout=0.2", "optimizer=adamw", "augment=shift"),
    *("scheduler=plateau", "scheduler.patience=0", "scheduler.threshold=0.4"),
    *("train.epochs=2", "train.batch_size=140", "checkpoint.every_seconds=0.1"),
)
ITERATIONS = 2 * 29  # the last batch of an epoch has 130 images


def untracked(processes: int) -> tuple[str, ...]:
    """MLflow and TensorBoard are looked at where there are two."""
    return () if processes == 2 else UNTRACKED


@pytest.fixture(scope="module")
def uninterrupted(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    done: dict[int, Path] = {}

    def on(processes: int) -> Path:
        if processes not in done:
            copy = shutil.copytree(template, tmp_path_factory.mktemp(f"uninterrupted-{processes}") / "project")
            printed = live.run(copy, "train", *TRAIN, *untracked(processes), processes=processes)
            assert [printed.count(text) for text in ("plan  ", "\nepoch ", "\nevaluate ")] == [2, 2, 1]
            assert f"device   cpu, 1 thread in each of {processes} processes" in printed
            assert "arning" not in printed
            done[processes] = copy
        return done[processes]

    return on


def is_tracked_once(copy: Path, processes: int) -> None:
    folder, client = live.only_run(copy), MlflowClient(tracking_uri=live.store(copy))
    (run,) = live.mlflow_runs(client)
    assert (run.info.status, run.info.run_name) == ("FINISHED", folder.name)
    assert run.data.params["processes"] == str(processes)
    assert run.data.params["train.batch_size"] == "140"
    points = live.journal_points(folder)
    assert [len(points[key]) for key in ("train/loss", "val/loss")] == [ITERATIONS, 2]
    assert live.mlflow_points(client, run.info.run_id) == points
    assert live.tensorboard_points(folder) == live.as_float32(points)


def test_the_first_process_alone_writes_the_record(uninterrupted: Callable[[int], Path], tmp_path: Path) -> None:
    is_tracked_once(uninterrupted(2), 2)
    copy = shutil.copytree(uninterrupted(2), tmp_path / "project")
    folder = live.only_run(copy)
    noted = json.loads((folder / "run.json").read_text())
    assert (noted["status"], noted["config"]["processes"]) == ("finished", 2)
    assert noted["command"] == shlex.join(["torchrun", "--nproc-per-node=2", "-m", "bestepoch.train", *TRAIN])
    assert len(list(folder.glob("checkpoints/epoch-*.pt"))) == 2
    # as good as any other run
    printed = live.run(copy, "evaluate", f"run=runs/{folder.name}", *UNTRACKED)
    assert "best     epoch" in printed and "test     loss" in printed


def everything(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def going_on(copy: Path) -> Callable[[], bool]:
    """Inside the second epoch, with a state of it."""

    def is_it() -> bool:
        states = [int(path.stem.partition("-")[2]) for path in copy.glob("runs/*/state/iteration-*.pt")]
        return 29 < max(states, default=0) < ITERATIONS

    return is_it


def end_as_if_never_stopped(copy: Path, uninterrupted: Path, processes: int) -> str:
    printed = live.run(copy, "train", *TRAIN, *untracked(processes), processes=processes)
    assert printed.count("(resumed)") == printed.count("going on after iteration") == 1
    one, other = live.only_run(copy), live.only_run(uninterrupted)
    assert live.weights(one) == live.weights(other)
    assert live.numbers(one) == live.numbers(other)
    if not untracked(processes):
        is_tracked_once(copy, processes)
    return printed


def test_everything_killed_it_goes_on_and_ends_with_the_same_bits(
    copy: Path, uninterrupted: Callable[[int], Path]
) -> None:
    """Of three: the sum of two numbers is the same in any order."""
    with live.started(copy, "train", *TRAIN, *untracked(3), processes=3) as training:
        training.until(going_on(copy))
        for process in everything(psutil.Process(training.process.pid)):
            process.kill()
        training.end()
    assert json.loads((live.only_run(copy) / "run.json").read_text())["status"] == "running"
    end_as_if_never_stopped(copy, uninterrupted(3), 3)


def test_torchrun_asked_to_stop_saves_and_goes_on_with_the_same_bits(
    copy: Path, uninterrupted: Callable[[int], Path]
) -> None:
    with live.started(copy, "train", *TRAIN, processes=2) as training:
        training.until(going_on(copy))
        assert training.signal(signal.SIGTERM) != 0
        printed = training.printed()
    folder, client = live.only_run(copy), MlflowClient(tracking_uri=live.store(copy))
    assert json.loads((folder / "run.json").read_text())["status"] == "killed"
    (run,) = live.mlflow_runs(client)
    assert run.info.status == "KILLED"
    done = len(live.table(folder / "iterations.csv"))
    assert (folder / f"state/iteration-{done:09d}.pt").is_file(), "the last update is not saved"
    assert live.mlflow_points(client, run.info.run_id) == live.journal_points(folder)
    told = "stopped by SIGTERM; the same command goes on from here: torchrun --nproc-per-node=2 -m bestepoch.train data"
    assert printed.count(told) == 1
    # one process is another run: it would not round as two do
    alone = live.run(copy, "train", *TRAIN, *UNTRACKED, "train.epochs=1")
    assert "(resumed)" not in alone
    shutil.rmtree(next(path.parent for path in copy.glob("runs/*/run.json") if path.parent != folder))
    assert f"going on after iteration {done} of {ITERATIONS}" in end_as_if_never_stopped(copy, uninterrupted(2), 2)


@pytest.mark.parametrize("who", ["all that a terminal reaches", "one of them"])
def test_a_signal_to_any_of_the_processes_stops_all_at_the_same_iteration(who: str, copy: Path) -> None:
    """Ctrl-C must reach each process once: two would mean to stop at once."""
    printed = copy / "printed"
    with printed.open("w") as file:
        command = live.command("train", *TRAIN, *UNTRACKED, processes=2)
        training = subprocess.Popen(
            command, cwd=copy, env=live.environment(copy), stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            end = time.monotonic() + 90
            while not going_on(copy)():
                assert training.poll() is None and time.monotonic() < end, printed.read_text()
                time.sleep(0.002)
            if who == "one of them":
                last = psutil.Process(training.pid).children()[-1]
                assert last.environ()["RANK"] == "1"
                last.send_signal(signal.SIGINT)
            else:
                os.killpg(training.pid, signal.SIGINT)
            assert training.wait(60) != 0
        finally:
            for process in everything(psutil.Process(training.pid)) if training.poll() is None else []:
                process.kill()
    folder = live.only_run(copy)
    assert "stopped by SIGINT; the same command goes on from here: torchrun" in printed.read_text()
    assert json.loads((folder / "run.json").read_text())["status"] == "killed"
    done = len(live.table(folder / "iterations.csv"))
    assert 29 < done < ITERATIONS
    state = torch.load(folder / f"state/iteration-{done:09d}.pt", weights_only=True)
    one, other = (part["rng"] for part in state["processes"])
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("stage", "given", "said"),
    [
        ("train", ["train.epoch=1"], "train.epoch is not a setting. Did you mean train.epochs?"),
        ("train", ["train.batch_size=5000"], "train.batch_size = 5,000 is more than the 4,050 training images"),
        ("train", ["optimizer=sgd", "optimizer.lr=1e30"], "The loss is nan at iteration 2 "),
        ("train", ["-m", "seed=0,1"], "A sweep (-m) takes one process: type `python` in place of `torchrun` and"),
        ("evaluate", [], "This stage takes one process: type `python` in place of `torchrun` and its options."),
    ],
)
def test_a_mistake_is_told_once_and_ends_all_of_it(stage: str, given: list[str], said: str, copy: Path) -> None:
    started = time.monotonic()
    given = [*given[:1], *live.SAMPLE, *UNTRACKED, "model=mlp", *given[1:]]
    printed = live.run(copy, stage, *given, processes=2, code=1)
    assert [line.startswith(f"bestepoch: {said}") for line in printed.splitlines()].count(True) == 1, printed
    assert printed.count("Traceback") == 1 and "ChildFailedError" in printed, "one, which is torchrun's own"
    assert time.monotonic() - started < 60
