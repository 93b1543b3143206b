"""Train one run from its opening to its end: open the run, train, record how it ended, close the trackers."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from omegaconf import OmegaConf

from bestepoch.base import files
from bestepoch.base.config.schema import Config
from bestepoch.base.errors import UsageError, first_line
from bestepoch.base.paths import display_path
from bestepoch.base.shutdown import Interrupted, catch_stop_signals, exit_by_signal
from bestepoch.components.data.split import Split
from bestepoch.components.schedules.plan import TrainingPlan, make_plan
from bestepoch.runs.journal import Journal
from bestepoch.runs.request import RunOrigin
from bestepoch.runs.run import Run
from bestepoch.runs.timing import SectionTimer, format_breakdown, peak_memory
from bestepoch.training.distributed import DistributedContext
from bestepoch.training.extend import extend_earlier_run

log = logging.getLogger("bestepoch")


class RunTracker(Protocol):
    """Brings the journal of a run to the trackers while the run trains."""

    def close(self, status: str) -> dict[str, Any]:
        """Deliver what is missing, end the run in each tracker with ``status``, and return the new keys of run.json."""


@dataclass(frozen=True)
class Session:
    """What a training needs besides its configuration and data. By default it runs alone, without trackers.

    Args:
        overrides: Hydra overrides of the command line, for the run's name and command.
        folder: the folder of the run; by default a new one in ``runs/``, or the one to continue.
        parent: id of the MLflow run of the sweep that this run is a job of.
        context: the processes that train; this process is rank 0.
        timer: has run since the command or the job began.
        track: opens the trackers of a run.
        summarize: returns what ``run.json`` says of the finished run.
    """

    overrides: Sequence[str] = ()
    folder: Path | None = None
    parent: str | None = None
    context: DistributedContext = field(default_factory=DistributedContext)
    timer: SectionTimer = field(default_factory=SectionTimer)
    track: Callable[[Run], RunTracker] | None = None
    summarize: Callable[[Run], dict[str, Any]] | None = None


def train(config: Config, split: Split, session: Session | None = None) -> Run:
    """Train to the end of the plan, or continue the interrupted run of the same identity.

    Args:
        config: a composed configuration.
        split: the data.
        session: how the training runs; by default alone and without trackers.

    Returns:
        The finished run, still locked: call its ``close``.

    Raises:
        UsageError: the plan cannot be carried out, or the loss is no longer finite.
        SystemExit: a signal came; the state is saved, and the same call continues from there.
    """
    from bestepoch.training.device import choose_device, resolve_auto
    from bestepoch.training.memory import check_memory

    session = session or Session()
    context = session.context
    plan = make_plan(split.values["sizes"]["train"], config.train)
    device = choose_device(config.device, context)
    config = resolve_auto(config, device, context)
    weights = check_memory(config, split, device)
    origin = RunOrigin(session.overrides, session.folder, context.size, context.launch_command)
    run = Run.open(config, split, device.type, origin)
    run.info["weights"] = weights
    _log_heading(run, split, plan, config.device.cuda_graphs is True)
    if not run.resumed:
        extend_earlier_run(run, config, plan)
    if run.status == "finished":
        log.info("%s is finished already and is taken as it is", display_path(run.folder))
        context.broadcast(None)
        return run
    context.broadcast(split)
    _write_config(run, config, session.overrides)
    run.info.pop("reason", None)
    run.update(status="running", to_publish=config.publish is not None, parent=session.parent)
    signum = _train_and_record(config, split, device, run, session)
    if signum:
        run.close()
        exit_by_signal(signum)
    return run


def _write_config(run: Run, config: Config, overrides: Sequence[str]) -> None:
    """Write ``config.yaml`` (every setting) and ``overrides.yaml`` (of the command line) into the run's folder."""
    files.write_atomic(run.folder / "config.yaml", OmegaConf.to_yaml(config.model_dump(mode="json")))
    files.write_atomic(run.folder / "overrides.yaml", OmegaConf.to_yaml(list(overrides)))


def _unused_columns(config: Config) -> list[str]:
    """Return the columns of the tables that the settings leave out."""
    evaluated = ["train/eval_loss", "train/eval_accuracy"] if config.train.eval_images == 0 else []
    return evaluated + ([] if config.tracking.grad_norm else ["train/grad_norm"])


def _train_and_record(config: Config, split: Split, device: Any, run: Run, session: Session) -> int:
    """Train, and write how it ended into ``run.json`` and the trackers; return the signal that stopped it, or 0."""
    from bestepoch.training.loop import NonFiniteLoss
    from bestepoch.training.trainer import Recorder, Trainer

    timer = session.timer
    journal = Journal(run.folder, _unused_columns(config))
    tracker = session.track(run) if session.track is not None else None
    status, signum = "failed", 0
    try:
        with catch_stop_signals() as stop:
            Trainer(config, split, device, stop, timer, session.context, Recorder(run, journal)).train()
        status = "finished"
        if session.summarize is not None:
            with contextlib.suppress(UsageError):  # a selection that cannot be made, which the command reports
                run.info.update(session.summarize(run))
    except Interrupted as interruption:
        status, signum = "killed", interruption.number
        # a job goes on with its sweep, which prints the command
        command = f": {run.info['command']}" if session.folder is None else ""
        log.warning("stopped by %s; the same command goes on from here%s", interruption, command)
    except NonFiniteLoss as error:
        run.info["reason"] = f"{error} Try a tenth of the rate: optimizer.lr={config.optimizer.lr / 10:.3g}"
        raise UsageError(run.info["reason"]) from None
    except Exception as error:
        run.info["reason"] = f"{type(error).__name__}: {first_line(error)}"
        raise
    finally:
        timer.switch("tracking")
        try:
            journal.close()
        finally:
            run.info.update(status=status, ended=time.time(), time_by_section=timer.read(), peak_memory=peak_memory())
            if status == "killed":
                # the same command may be waiting already, and a tracker may take long for the rest
                run.update()
                run.close()
            recorded = tracker.close(status) if tracker is not None else {}
            spent = timer.read()
            # last: a kill while a tracker takes the rest leaves a run that the same command continues
            if run.is_locked or (run.lock() and run.status == status):
                run.update(**recorded, time_by_section=spent)
            log.info("time     %s", format_breakdown(spent, peak_memory()))
    return signum


def train_worker_rank(config: Config, context: DistributedContext) -> None:
    """Train on the shards of a rank above 0; rank 0 records the results.

    Raises:
        UsageError: the loss is no longer finite.
        SystemExit: a signal came.
    """
    split = context.broadcast()
    if split is None:
        return
    from bestepoch.training.device import choose_device, resolve_auto
    from bestepoch.training.loop import NonFiniteLoss
    from bestepoch.training.trainer import Trainer

    device = choose_device(config.device, context)
    config = resolve_auto(config, device, context)
    with catch_stop_signals() as stop:
        try:
            Trainer(config, split, device, stop, SectionTimer(), context).train()
        except Interrupted as interruption:
            raise SystemExit(128 + interruption.number) from None
        except NonFiniteLoss as error:
            raise UsageError(str(error)) from None


def _log_heading(run: Run, split: Split, plan: TrainingPlan, uses_graph: bool) -> None:
    """Log what is trained on which data and device, and the arithmetic of epochs."""
    log.info("run      %s%s", run.name, " (resumed)" if run.resumed else "")
    log.info("data     %s", split.name)
    if split.offline_sample:
        log.warning("WARNING  the offline sample stands in for %s: no number here is of %s", *[split.requested] * 2)
    batches, updates = plan.describe().splitlines()
    log.info("plan     %s", batches)
    log.info("plan     %s of %s weights", updates, f"{run.info['weights']:,}")
    processes = run.info["config"].get("processes")
    each = f" in each of {processes} processes" if processes else ""
    device, threads = (run.info["environment"][key] for key in ("device", "threads"))
    precision = run.info["config"]["device"]["precision"]
    details = (f", {precision}" if precision != "float32" else "") + ", CUDA graph" * uses_graph
    log.info("device   %s, %d %s%s%s", device, threads, "thread" if threads == 1 else "threads", each, details)
