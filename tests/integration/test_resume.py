"""A training that was stopped, by whatever and whenever, and then started again ends as one that never stopped."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

import live
from bestepoch.base.config import compose
from bestepoch.runs import identity
from bestepoch.runs.export import export_run
from bestepoch.runs.request import RunOrigin
from bestepoch.runs.run import Run
from bestepoch.splitting import ensure

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("resume")]

EPOCHS, PER_EPOCH = 4, 162
# whatever has a state of its own is in use: batch statistics, dropout, momentum, a rate that depends on the past
TRAIN = (
    *live.SAMPLE,
    *("model=cnn", "model.channels=[8,16]", "model.dropout=0.2", "optimizer=adamw", "augment=affine"),
    *("scheduler=plateau", "scheduler.patience=0", "scheduler.threshold=0.4"),
    *(f"train.epochs={EPOCHS}", "train.batch_size=25", "checkpoint.every_seconds=0.05"),
)
UNTRACKED = ("tracking.mlflow=false", "tracking.tensorboard=false")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return live.with_store(live.with_split(live.project(tmp_path_factory.mktemp("template") / "project")))


@pytest.fixture
def copy(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture(scope="module")
def uninterrupted(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = shutil.copytree(template, tmp_path_factory.mktemp("uninterrupted") / "project")
    live.run(copy, "train", *TRAIN, *UNTRACKED)
    folder = live.only_run(copy)
    rates = [row["lr"] for row in live.table(folder / "epochs.csv")]
    assert len(set(rates)) > 1, "the rate should depend on the epochs before"
    return folder


def is_as_if_never_stopped(copy: Path, uninterrupted: Path) -> None:
    folder = live.only_run(copy)
    assert live.weights(folder) == live.weights(uninterrupted)
    assert live.numbers(folder) == live.numbers(uninterrupted)
    assert len(live.numbers(folder)["iterations.csv"]) == EPOCHS * PER_EPOCH
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"


def is_tracked_once(copy: Path) -> None:
    folder, client = live.only_run(copy), MlflowClient(tracking_uri=live.store(copy))
    (run,) = live.mlflow_runs(client)
    assert (run.info.status, run.info.run_name) == ("FINISHED", folder.name)
    assert run.data.params["train.batch_size"] == "25"
    points = live.journal_points(folder)
    assert live.mlflow_points(client, run.info.run_id) == points
    assert live.tensorboard_points(folder) == live.as_float32(points)


def rows(copy: Path, name: str) -> int:
    """Finished lines below the header of the one run's table, so far."""
    paths = list(copy.glob(f"runs/*/{name}"))
    return max(paths[0].read_bytes().count(b"\n") - 1, 0) if paths else 0


def states(copy: Path) -> list[int]:
    """The iterations after which the state was saved and is still kept."""
    return sorted(int(path.stem.partition("-")[2]) for path in copy.glob("runs/*/state/iteration-*.pt"))


def inside_the_first_epoch(copy: Path) -> bool:
    return bool(states(copy))


def right_after_an_epoch(copy: Path) -> bool:
    return rows(copy, "epochs.csv") == 1


def inside_the_third_epoch(copy: Path) -> bool:
    return bool(states(copy)) and states(copy)[-1] > 2 * PER_EPOCH and rows(copy, "epochs.csv") == 2


@pytest.mark.parametrize("moment", [inside_the_first_epoch, right_after_an_epoch, inside_the_third_epoch])
def test_killed_and_started_again_it_ends_with_the_same_bits(
    moment: Callable[[Path], bool], copy: Path, uninterrupted: Path
) -> None:
    with live.started(copy, "train", *TRAIN) as training:
        training.until(lambda: moment(copy))
        assert training.signal(signal.SIGKILL) == -signal.SIGKILL
    folder = live.only_run(copy)
    assert json.loads((folder / "run.json").read_text())["status"] == "running"
    saved = states(copy)[-1] if states(copy) else 0
    if moment is inside_the_first_epoch:
        assert 0 < saved < PER_EPOCH
    elif moment is inside_the_third_epoch:
        assert 2 * PER_EPOCH < saved < 3 * PER_EPOCH
    printed = live.run(copy, "train", *TRAIN)
    assert f"run      {folder.name} (resumed)" in printed
    assert f"going on after iteration {saved} of {EPOCHS * PER_EPOCH}" in printed
    is_as_if_never_stopped(copy, uninterrupted)
    is_tracked_once(copy)


def test_killed_at_the_end_while_the_store_takes_the_rest_it_is_not_trained_again(
    copy: Path, uninterrupted: Path
) -> None:
    with live.locked(copy / "mlflow.db") as release, live.started(copy, "train", *TRAIN) as training:
        training.until(lambda: states(copy)[-1:] == [EPOCHS * PER_EPOCH])
        time.sleep(1)  # from here on it only waits for the store
        assert training.signal(signal.SIGKILL) == -signal.SIGKILL
        release()
    printed = live.run(copy, "train", *TRAIN)
    assert f"going on after iteration {EPOCHS * PER_EPOCH} of {EPOCHS * PER_EPOCH}" in printed
    is_as_if_never_stopped(copy, uninterrupted)
    is_tracked_once(copy)


def test_killed_when_a_part_is_delivered_nothing_is_delivered_twice(copy: Path, uninterrupted: Path) -> None:
    # saving after each update slows training down, so that MLflow has something before the end
    slow = [*TRAIN[:-1], "checkpoint.every_seconds=0.0001"]
    with live.started(copy, "train", *slow) as training:
        training.until(lambda: list(copy.glob("runs/*/state/mlflow.json")))
        assert training.signal(signal.SIGKILL) == -signal.SIGKILL
    folder = live.only_run(copy)
    client = MlflowClient(tracking_uri=live.store(copy))
    (run,) = live.mlflow_runs(client)
    delivered = live.mlflow_points(client, run.info.run_id)
    assert 0 < len(delivered["train/loss"]) < EPOCHS * PER_EPOCH
    assert live.tensorboard_points(folder)["train/loss"], "TensorBoard should have some too"
    live.run(copy, "train", *TRAIN)
    is_as_if_never_stopped(copy, uninterrupted)
    is_tracked_once(copy)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_asked_to_stop_it_saves_says_how_to_go_on_and_does(
    number: signal.Signals, code: int, copy: Path, uninterrupted: Path
) -> None:
    with live.started(copy, "train", *TRAIN) as training:
        training.until(lambda: rows(copy, "iterations.csv") > PER_EPOCH + 5)
        assert training.signal(number) == code
        printed = training.printed()
    folder, client = live.only_run(copy), MlflowClient(tracking_uri=live.store(copy))
    assert json.loads((folder / "run.json").read_text())["status"] == "killed"
    (run,) = live.mlflow_runs(client)
    assert run.info.status == "KILLED"
    # all that was trained is saved and delivered
    done = rows(copy, "iterations.csv")
    assert PER_EPOCH < done < EPOCHS * PER_EPOCH
    assert states(copy)[-1] == done
    assert live.mlflow_points(client, run.info.run_id) == live.journal_points(folder)
    assert "Traceback" not in printed

    (line,) = [line for line in printed.splitlines() if line.startswith(f"stopped by {number.name}")]
    told = shlex.split(line.split("from here: ")[1])
    assert told == ["python", "-m", "bestepoch.train", *TRAIN]
    printed = live.run(copy, "train", *told[3:])
    assert f"going on after iteration {done} of" in printed
    is_as_if_never_stopped(copy, uninterrupted)
    is_tracked_once(copy)


def damaged(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.fixture(scope="module")
def killed(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose one run was killed in its second epoch, with two states to go back to; not to be changed."""
    copy = tmp_path_factory.mktemp("killed") / "project"
    shutil.copytree(template, copy)
    with live.started(copy, "train", *TRAIN, *UNTRACKED) as training:
        training.until(lambda: len(states(copy)) == 2 and states(copy)[-1] > PER_EPOCH)
        training.signal(signal.SIGKILL)
    return copy


@pytest.mark.parametrize("damage", [damaged, emptied])
def test_a_newest_state_that_is_damaged_is_passed_over(
    damage: Callable[[Path], None], killed: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(killed, tmp_path / "project")
    older, newest = states(copy)[-2:]  # a kill may leave one that was to be removed
    path = live.only_run(copy) / f"state/iteration-{newest:09d}.pt"
    damage(path)
    printed = live.run(copy, "train", *TRAIN, *UNTRACKED)
    assert f"{path.relative_to(copy)} cannot be read" in printed
    assert "going back to the one before" in printed
    assert f"going on after iteration {older} of" in printed
    is_as_if_never_stopped(copy, uninterrupted)


@pytest.fixture
def opened(
    killed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[Run, Path, dict[str, bytes]]]]:
    """Opens the run for a command line, in a copy of the killed project, without training it."""
    copy = shutil.copytree(killed, tmp_path / "project")
    monkeypatch.chdir(copy)
    monkeypatch.delenv("BESTEPOCH_MIRROR", raising=False)
    old = live.only_run(copy)
    before = content(old)
    runs = []

    def open_run(*changed: str) -> tuple[Run, Path, dict[str, bytes]]:
        overrides = [*TRAIN, *changed]
        settings = compose.load_config(overrides, False)[1]
        runs.append(Run.open(settings, ensure.ensure_split(settings), "cpu", RunOrigin(overrides)))
        return runs[-1], old, before

    yield open_run
    for run in runs:
        run.close()


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("changed", ["checkpoint.every_seconds=9", "tracking.drain_seconds=1", "selection.smoothing=3"])
def test_a_setting_that_changes_no_number_goes_on_with_the_run(
    changed: str, opened: Callable[..., tuple[Run, Path, dict[str, bytes]]]
) -> None:
    run, old, _ = opened(changed)
    assert run.resumed
    assert run.folder == old


@pytest.mark.parametrize(
    "changed", ["seed=1", "optimizer.lr=0.02", "model.dropout=0.3", "train.epochs=5", "split.seed=1", "augment=shift"]
)
def test_a_setting_that_changes_the_numbers_begins_a_run_of_its_own(
    changed: str, opened: Callable[..., tuple[Run, Path, dict[str, bytes]]]
) -> None:
    run, old, before = opened(changed)
    assert not run.resumed
    assert run.folder != old
    assert not (run.folder / "state").exists()
    assert content(old) == before, "the old run was touched"


def test_other_training_code_begins_a_run_of_its_own(
    opened: Callable[..., tuple[Run, Path, dict[str, bytes]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = shutil.copytree(identity.PACKAGE, tmp_path / "package")
    monkeypatch.setattr(identity, "PACKAGE", package)
    (package / "runs/journal.py").write_text("# decides no number\n")
    run, old, _ = opened()
    assert run.resumed and run.folder == old
    run.close()
    with (package / "training/loop.py").open("a") as file:
        file.write("# decides numbers\n")
    run, _, _ = opened()
    assert not run.resumed
    assert run.folder == old.with_name(f"{old.name}-2")


@pytest.mark.parametrize("end", ["killed", "finished"])
def test_a_run_that_another_process_holds_is_waited_for(
    end: str, opened: Callable[..., tuple[Run, Path, dict[str, bytes]]], caplog: pytest.LogCaptureFixture
) -> None:
    first, old, _ = opened()
    first.update(status="running")

    caplog.set_level("WARNING", "bestepoch")

    def open_again() -> tuple[Path, bool, bool, str]:
        run, _, _ = opened()
        state = (run.folder, run.is_locked, run.resumed, run.status)
        run.close()  # in the thread that locked it
        return state

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        second = pool.submit(open_again)
        while "another process is at work on runs/" not in caplog.text:
            assert not second.done(), second.result()
            time.sleep(0.01)
        first.update(status=end)
        first.close()
        assert second.result(timeout=30) == (old, True, True, end)


def test_a_damaged_record_of_another_run_is_passed_over(
    opened: Callable[..., tuple[Run, Path, dict[str, bytes]]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "bestepoch")
    for name, text in (("0", "{"), ("1", "[]"), ("2", '{"status": "finished"}')):
        Path(f"runs/{name}").mkdir()
        Path(f"runs/{name}/run.json").write_text(text, encoding="utf-8")
    run, old, _ = opened()
    assert run.resumed and run.folder == old
    for name in ("0", "1", "2"):
        assert f"warning: runs/{name}/run.json is " in caplog.text
    assert caplog.text.count("the run is passed over") == 3


def test_a_folder_whose_run_was_killed_before_it_had_a_record_is_used_again(
    opened: Callable[..., tuple[Run, Path, dict[str, bytes]]],
) -> None:
    _, old, _ = opened()
    (old / "run.json").rename(old / ".run.json.x81sj3_k")
    for path in old.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in (".lock", ".run.json.x81sj3_k"):
            path.unlink()
    Path(old / ".lock").unlink()  # whose holder, this process, is not dead
    run, _, _ = opened()
    assert not run.resumed
    assert run.folder == old
    assert {path.name for path in old.iterdir()} == {".lock", "run.json"}


def test_a_finished_command_run_again_makes_a_new_run_with_the_same_bits(uninterrupted: Path) -> None:
    before = content(uninterrupted)
    printed = live.run(uninterrupted.parents[1], "train", *TRAIN, *UNTRACKED)
    again = uninterrupted.with_name(f"{uninterrupted.name}-2")
    try:
        assert f"run      {again.name}\n" in printed
        assert live.weights(again) == live.weights(uninterrupted)
        assert live.numbers(again) == live.numbers(uninterrupted)
        assert content(uninterrupted) == before
    finally:
        shutil.rmtree(again)


def test_eight_trainings_started_at_the_same_moment_are_seven_runs(template: Path, tmp_path: Path) -> None:
    """Two of them by the same command, which is trained once, and none with a store to begin with."""
    copy = shutil.copytree(template, tmp_path / "project", ignore=shutil.ignore_patterns("mlflow.db"))
    (copy / "mlflow.db.partial").write_bytes(b"left by a process that was killed while it made the store")
    common = (*live.SAMPLE, "model=mlp", "model.hidden=[16]", "train.epochs=2")
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(live.started(copy, "train", *common, f"seed={seed}")) for seed in (0, 0, *range(1, 7))
        ]
        assert [training.end() for training in started] == [0] * 8, "".join(t.printed() for t in started)
        # neither the store that all of them made, nor anything else, was in the way
        printed = "".join(training.printed() for training in started)
        assert [line for line in printed.splitlines() if "warning" in line.lower()] == []
        same = [training.printed() for training in started[:2]]
        assert sum("another process is at work on runs/" in text for text in same) == 1
        assert sum("is finished already and is taken as it is" in text for text in same) == 1
    client = MlflowClient(tracking_uri=live.store(copy))
    runs = {run.info.run_name: run for run in live.mlflow_runs(client)}
    assert len(runs) == len(live.mlflow_runs(client)) == 7
    for name, run in runs.items():
        assert run.info.status == "FINISHED"
        points = live.journal_points(copy / "runs" / name)
        assert [len(points[key]) for key in ("lr", "val/loss")] == [82, 2]
        assert live.mlflow_points(client, run.info.run_id) == points
        assert live.tensorboard_points(copy / "runs" / name) == live.as_float32(points)


def test_what_a_kill_left_half_written_is_not_handed_over(killed: Path, tmp_path: Path) -> None:
    """DVC would keep it, and no two machines would have the same results."""
    copy = shutil.copytree(killed, tmp_path / "project")
    folder = live.only_run(copy)
    (folder / "checkpoints/.epoch-0002.pt.x81sj3_k").write_bytes(b"half a checkpoint")
    export_run(Run.read(folder), copy / "results/train")
    handed_over = {path.name for path in (copy / "results/train/checkpoints").iterdir()}
    assert handed_over == {path.name for path in folder.glob("checkpoints/epoch-*.pt")}
