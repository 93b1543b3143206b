"""Stage 3: train, and record every iteration and every epoch."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bestepoch.components.data.split import Split
    from bestepoch.components.schedules.plan import TrainingPlan
    from bestepoch.runs.run import Run

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bestepoch.base import errors, paths
from bestepoch.base.config.overrides import job_overrides
from bestepoch.base.config.schema import Config
from bestepoch.base.errors import UsageError
from bestepoch.base.shutdown import Interrupted, catch_stop_signals, exit_by_signal, stop_when_dvc_exits
from bestepoch.components.data.split import Split
from bestepoch.components.schedules.plan import make_plan
from bestepoch.evaluation import selection
from bestepoch.runs import identity
from bestepoch.runs.export import export_run
from bestepoch.runs.identity import TRAINING_FOLDERS
from bestepoch.runs.journal import Journal
from bestepoch.runs.run import Run
from bestepoch.runs.tables import read_rows
from bestepoch.runs.timing import SectionTimer, format_breakdown, peak_memory
from bestepoch.splitting import ensure
from bestepoch.tracking.client import RunTracking, ensure_worker
from bestepoch.training import extend
from bestepoch.training.device import choose_device
from bestepoch.training.distributed import DistributedContext

if TYPE_CHECKING:
    from bestepoch.sweeps.sweep import Sweep

log = logging.getLogger("bestepoch")


def main(config: Config) -> float:
    """Train one configuration; under `dvc repro`, hand the finished run over. Returns the best selection metric."""
    context, timer = DistributedContext.from_env(), SectionTimer.since_process_start()
    if context.is_main:
        ensure_worker(config.tracking)
    with context.process_group():
        return train_main_rank(config, context, timer) if context.is_main else train_worker_rank(config, context)


def train_main_rank(config: Config, context: DistributedContext, timer: SectionTimer) -> float:
    """`main`, of all processes in the first one, which is the only one as a rule."""
    if config.publish:
        stop_when_dvc_exits()
    split = ensure.read_pipeline_split() if config.publish else ensure.ensure_split(config)
    run = train(config, split, context=context, timer=timer)
    if config.publish:
        if identity.hash_code(TRAINING_FOLDERS) != run.info["code"]:
            # DVC hashes the code now, after the command: it would vouch for code that did not train this
            raise UsageError("The training code was edited while it ran. Run it again: dvc repro")
        export_run(run, paths.project_root() / config.publish)
    else:
        if (found := run.info.get("verdict")) is not None:
            log.info("verdict  %s", found["sentence"])
            log.info("try      %s  %s", found["suggestion"], found["override"])
        log.info("test it  python -m bestepoch.evaluate run=%s", paths.display_path(run.folder))
        log.info("compare  make ui")
    run.close()
    return best_metric(run.folder, config)


def train_worker_rank(config: Config, context: DistributedContext) -> float:
    """`main` in any further process: its part of each batch. What becomes of the run is the first one's to say."""
    split = context.broadcast()
    if split is not None:
        from bestepoch.training.device import resolve_auto
        from bestepoch.training.loop import NonFiniteLoss
        from bestepoch.training.trainer import Trainer

        plan = make_plan(split.values["sizes"]["train"], config.train)
        device = choose_device(config.device, context)
        config = resolve_auto(config, device, context)
        with catch_stop_signals() as stop:
            try:
                Trainer(config, plan, split, device, None, None, stop, SectionTimer(), context).train()
            except Interrupted as interruption:
                raise SystemExit(128 + interruption.number) from None
            except NonFiniteLoss as error:
                raise UsageError(str(error)) from None
    return math.nan


def sweep_main(config: Config, sweep: Sweep) -> float:
    """One job of a sweep: a run below the sweep's folder and its parent run. Returns NaN where it failed."""
    if sweep.should_stop():
        return math.nan
    with sweep.job() as (folder, row):
        timer = SectionTimer()
        ensure_worker(config.tracking)
        run = train(config, ensure.ensure_split(config), folder, sweep.parent, timer=timer)
        run.close()
        row.update(sweep.job_result(run))
    return float(row.get("metric", math.nan))


def best_metric(folder: Path, config: Config) -> float:
    """What any Hydra sweeper may optimise."""
    choice = config.selection
    return selection.best_epoch(read_rows(folder / "epochs.csv"), choice.metric, choice.mode)[choice.metric]


def train(
    config: Config,
    split: Split,
    folder: Path | None = None,
    parent: str | None = None,
    context: DistributedContext | None = None,
    timer: SectionTimer | None = None,
) -> Run:
    """Train to the end of the plan, or go on where a run of the same identity was interrupted.

    Args:
        folder: where the run lives; by default a new folder in ``runs/``, or the one to go on with.
        parent: the MLflow run of the sweep that this is a job of.
        world: the processes that train it, of which this is the first; the others are in `follow`.
        clock: has run since the command or the job began; by default it begins now.

    Raises:
        UsageError: the plan cannot be carried out, or the loss is no longer finite.
        SystemExit: stopped by a signal; the state is saved, and the same command goes on from there.
    """
    from bestepoch.training.device import resolve_auto
    from bestepoch.training.loop import NonFiniteLoss
    from bestepoch.training.trainer import Trainer

    context, timer = context or DistributedContext(), timer or SectionTimer()
    plan = make_plan(split.values["sizes"]["train"], config.train)
    device = choose_device(config.device, context)
    config = resolve_auto(config, device, context)
    run = Run.open(config, split, device.type, job_overrides(), folder, context)
    log_heading(run, split, plan, config.device.cuda_graphs is True)
    if not run.resumed:
        extend.extend_earlier_run(run, config, plan)
    if run.status == "finished":
        log.info("%s is finished already and is taken as it is", paths.display_path(run.folder))
        context.broadcast(None)
        return run
    context.broadcast(split)
    run.info.pop("reason", None)
    run.update(status="running", to_publish=config.publish is not None, parent=parent)
    journal = Journal(run.folder)
    deliveries = RunTracking(config.tracking, run)
    status, stopped = "failed", 0
    try:
        with catch_stop_signals() as stop:
            Trainer(config, plan, split, device, run, journal, stop, timer, context).train()
        status = "finished"
        if not config.publish:  # else `evaluate`, which comes next, says it
            with contextlib.suppress(UsageError):  # a selection that cannot be, which `best_metric` will say
                run.info.update(_summarize(run, config))
    except Interrupted as interruption:
        status, stopped = "killed", interruption.number
        log.warning("stopped by %s; the same command goes on from here: %s", interruption, run.info["command"])
    except NonFiniteLoss as error:
        run.info["reason"] = f"{error} Try a tenth of the rate: optimizer.lr={config.optimizer.lr / 10:.3g}"
        raise UsageError(run.info["reason"]) from None
    except Exception as error:
        run.info["reason"] = f"{type(error).__name__}: {errors.first_line(error)}"
        raise
    finally:
        timer.switch("tracking")
        try:
            journal.close()
        finally:
            run.info.update(status=status, ended=time.time(), spent=timer.read(), peak_memory=peak_memory())
            deliveries.close(status)
            run.info["spent"] = timer.read()
            run.update()  # last: a kill while a tracker takes the rest leaves a run that the same command goes on with
            log.info("time     %s", format_breakdown(run.info["spent"], run.info["peak_memory"]))
    if stopped:
        run.close()
        exit_by_signal(stopped)
    return run


def _summarize(run: Run, config: Config) -> dict[str, Any]:
    """What is known before the test: ``best``, the chosen epoch by the names of its metrics, and the ``verdict``."""
    from bestepoch.evaluation.diagnosis import diagnose_run
    from bestepoch.runs import checkpoint

    epochs = read_rows(run.folder / "epochs.csv")
    best = selection.select_epoch(
        epochs, config.selection, lambda epoch: checkpoint.load_validation_results(run.folder, epoch)
    )
    names = {"best/epoch": "epoch", "best/val_loss": "val/loss", "best/val_accuracy": "val/accuracy", "time": "time"}
    return {
        "best": {name: best[key] for name, key in names.items()},
        "verdict": diagnose_run(run.info, epochs).to_dict(),
    }


def log_heading(run: Run, split: Split, plan: TrainingPlan, replayed: bool) -> None:
    """What is trained on what and how, and the arithmetic, before training starts; ``replayed``: by a CUDA graph."""
    log.info("run      %s%s", run.name, " (resumed)" if run.resumed else "")
    log.info("data     %s", split.name)
    if split.offline_sample:
        log.warning("WARNING  the offline sample stands in for %s: no number here is of %s", *[split.requested] * 2)
    for line in plan.describe().splitlines():
        log.info("plan     %s", line)
    count = run.info["config"].get("processes")
    each = f" in each of {count} processes" if count else ""
    device, threads = (run.info["environment"][key] for key in ("device", "threads"))
    how = run.info["config"]["device"]
    more = (f", {how['precision']}" if how["precision"] != "float32" else "") + ", CUDA graph" * replayed
    log.info("device   %s, %d %s%s%s", device, threads, "thread" if threads == 1 else "threads", each, more)
