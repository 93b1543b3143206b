"""Reuse the epochs of a shorter earlier run in a new run, or log why that is impossible."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from bestepoch.base import files, paths
from bestepoch.base.config.overrides import flatten
from bestepoch.base.config.schema import Config
from bestepoch.base.errors import UsageError
from bestepoch.components.schedules.early_stopping import early_stop_reason
from bestepoch.components.schedules.learning_rate import learning_rate
from bestepoch.components.schedules.plan import TrainingPlan, plan_of_run
from bestepoch.runs.run import Run
from bestepoch.runs.tables import Row, read_columns, read_rows

log = logging.getLogger("bestepoch")
MAX_LISTED_CHANGES = 6


def extend_earlier_run(run: Run, config: Config, plan: TrainingPlan) -> None:
    """Copy the epochs of an earlier run that differs only in its planned length into ``run``.

    If there is none and the same command was interrupted last time, log what has changed since. A kill during the
    copy is harmless: the training state is copied last, and without a state training computes the same rows again.
    """
    earlier = sorted(_other_runs(run), key=lambda other: other.info["started"], reverse=True)
    for other in earlier:
        try:
            if _lineage_key(other) == _lineage_key(run) and _copy_prefix(run, other, config, plan):
                return
        except UsageError as error:  # another run's files must not keep this one from training
            log.warning("warning: %s; its epochs are not reused", error)
    _explain_new_run(run, [other for other in earlier if other.info["command"] == run.info["command"]])


def _explain_new_run(run: Run, of_same_command: list[Run]) -> None:
    """Log why the interrupted run of the same command does not go on; another command asks for another run."""
    if not of_same_command or of_same_command[0].status not in ("running", "killed"):
        return
    last = of_same_command[0]
    if _is_unlocked(last):
        changes = list_changes(last, run)
        suffix = f" and {len(changes) - MAX_LISTED_CHANGES} more" if len(changes) > MAX_LISTED_CHANGES else ""
        log.info("new      the same command begins a new run, because of %s%s; %s is kept as it is",
                 ", ".join(changes[:MAX_LISTED_CHANGES]), suffix, paths.display_path(last.folder))  # fmt: skip


def list_changes(before: Run, now: Run) -> list[str]:
    """Return one phrase for each difference between two runs in config, data and code."""
    old, new = flatten(before.info["config"]), flatten(now.info["config"])
    changes = [f"{key} {old.get(key)} → {new.get(key)}" for key in {**old, **new} if old.get(key) != new.get(key)]
    if before.info["data"]["checksum"] != now.info["data"]["checksum"]:
        changes.append("the data's checksum")
    old, new = before.info["code"], now.info["code"]
    return changes + [f"the code of {name}" for name in {**old, **new} if old.get(name) != new.get(name)]


def _other_runs(run: Run) -> Iterator[Run]:
    for path in run.folder.parent.glob("*/run.json"):
        if path.parent != run.folder:
            with contextlib.suppress(UsageError):
                yield Run.read(path.parent)


def _lineage_key(run: Run) -> str:
    """Return a hash that is equal for runs that differ only in when training ends."""
    config = {key: value for key, value in run.info["config"].items() if key != "stopping"}
    config["train"] = {key: config["train"][key] for key in config["train"] if key not in ("epochs", "iterations")}
    return files.digest(config, run.info["data"]["checksum"], run.info["code"])


def _is_unlocked(run: Run) -> bool:
    if not run.lock():
        return False
    run.close()
    return True


def _copy_prefix(run: Run, other: Run, config: Config, plan: TrainingPlan) -> bool:
    """Copy the epochs of ``other`` into ``run`` if ``other`` was planned shorter; return whether epochs were copied."""
    shorter = plan_of_run(other.info)
    # an equal fingerprint means that a finished run was requested again: train it again
    same = other.info["fingerprint"] == run.info["fingerprint"]
    if shorter.iterations > plan.iterations or same or not other.lock():
        return False
    try:
        path, done = _find_state(other.folder, plan)
        epochs = [row for row in read_rows(other.folder / "epochs.csv") if row["iteration"] <= done]
        num_epochs = math.ceil(done / plan.iterations_per_epoch)
        if path is None or any(early_stop_reason(epochs[:n], config.stopping) for n in range(1, num_epochs)):
            return False
        scheduler, base_lr = config.scheduler, config.optimizer.lr
        for iteration in range(1, done + 1):
            old, new = (learning_rate(scheduler, base_lr, p, iteration) for p in (shorter, plan))
            if old != new:
                log.info(
                    "new      %s has trained this for %s, but scheduler=%s spreads the learning rate over the planned "
                    "epochs (iteration %s would have used %.3g, not %.3g): training starts from the beginning. "
                    "constant, step, exponential and plateau can be continued.",
                    paths.display_path(other.folder), f"{done:,} iterations", scheduler.name,
                    f"{iteration:,}", new, old,
                )  # fmt: skip
                return False
        read_columns(other.folder / "iterations.csv")  # a damaged line is found before anything is copied
        for row in epochs:
            if not (weights := other.folder / _weights_name(row)).is_file():
                raise UsageError(f"{paths.display_path(weights)} is not there")
        for name in ("iterations.csv", "epochs.csv"):
            _copy_rows(other.folder / name, run.folder / name, done)
        for row in epochs:
            _link(other.folder, run.folder, _weights_name(row))
        _link(other.folder, run.folder, str(path.relative_to(other.folder)))
    finally:
        other.close()
    run.update(extended_from={"run": other.name, "iteration": done})
    log.info("reused   with the %s iterations of %s", f"{done:,}", paths.display_path(other.folder))
    return True


def _find_state(folder: Path, plan: TrainingPlan) -> tuple[Path | None, int]:
    """Return the newest state that training by the longer ``plan`` also reaches, and its iteration; else (None, 0).

    A state saved after a partial last epoch does not qualify: the longer training would continue that epoch.
    """
    from bestepoch.runs import checkpoint

    for path in checkpoint.list_states(folder):
        with contextlib.suppress(UsageError):
            state = checkpoint.load(path)
            if state["iteration"] % plan.iterations_per_epoch == 0 or not state["evaluated"]:
                return path, int(state["iteration"])
    return None, 0


def _weights_name(row: Row) -> str:
    return f"checkpoints/epoch-{row['epoch']:04.0f}.pt"


def _copy_rows(source: Path, target: Path, last: int) -> None:
    """Copy the header and the rows up to iteration ``last``."""
    header, *lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    column = header.strip().split(",").index("iteration")
    files.write_atomic(target, header + "".join(line for line in lines if int(line.split(",")[column]) <= last))


def _link(source: Path, target: Path, name: str) -> None:
    """Hard-link a checkpoint, which is never changed in place; copy it where hard links are not possible."""
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source / name, target / name)
    except OSError:
        shutil.copyfile(source / name, target / name)
