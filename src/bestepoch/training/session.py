"""Stage 3: train, and record every iteration and every epoch."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestepoch.base import files
from bestepoch.base.config.schema import Settings
from bestepoch.base.files import UsageError
from bestepoch.base.shutdown import Interrupted, leave, stop_signals, stop_with_dvc
from bestepoch.cli.console import heading
from bestepoch.cli.launch import overrides
from bestepoch.components.data.split import Summary
from bestepoch.components.schedules.learning_rate import plan as learning_rate_plan
from bestepoch.evaluation import selection
from bestepoch.runs.journal import Journal, read
from bestepoch.runs.run import TRAINING_CODE, Run, publish
from bestepoch.runs.timing import Clock, peak_memory, told
from bestepoch.splitting import ensure
from bestepoch.tracking.client import Deliveries, courier
from bestepoch.training import extend
from bestepoch.training.device import choose_device
from bestepoch.training.distributed import World

if TYPE_CHECKING:
    from bestepoch.sweeps.sweep import Sweep

log = logging.getLogger("bestepoch")


def main(settings: Settings) -> float:
    """Train one configuration; under `dvc repro`, hand the finished run over. Returns the best selection metric."""
    world, clock = World.here(), Clock.of_process()
    if world.first:
        courier(settings.tracking)
    with world.joined():
        return lead(settings, world, clock) if world.first else follow(settings, world)


def lead(settings: Settings, world: World, clock: Clock) -> float:
    """`main`, of all processes in the first one, which is the only one as a rule."""
    if settings.publish:
        stop_with_dvc()
    split = ensure.pipeline_split() if settings.publish else ensure.split_for(settings)
    run = train(settings, split, world=world, clock=clock)
    if settings.publish:
        if files.code_hashes(TRAINING_CODE) != run.info["code"]:
            # DVC hashes the code now, after the command: it would vouch for code that did not train this
            raise UsageError("The training code was edited while it ran. Run it again: dvc repro")
        publish(run, files.root() / settings.publish)
    else:
        if (found := run.info.get("verdict")) is not None:
            log.info("verdict  %s", found["sentence"])
            log.info("try      %s  %s", found["suggestion"], found["override"])
        log.info("test it  python -m bestepoch.evaluate run=%s", files.relative(run.folder))
        log.info("compare  make ui")
    run.close()
    return best_metric(run.folder, settings)


def follow(settings: Settings, world: World) -> float:
    """`main` in any further process: its part of each batch. What becomes of the run is the first one's to say."""
    split = world.told()
    if split is not None:
        from bestepoch.training.loop import NonFiniteLoss
        from bestepoch.training.precision import settled
        from bestepoch.training.trainer import Trainer

        plan = learning_rate_plan(split.values["sizes"]["train"], settings.train)
        device = choose_device(settings.device, world)
        settings = settled(settings, device, world)
        with stop_signals() as stop:
            try:
                Trainer(settings, plan, split, device, None, None, stop, Clock(), world).train()
            except Interrupted as interruption:
                raise SystemExit(128 + interruption.number) from None
            except NonFiniteLoss as error:
                raise UsageError(str(error)) from None
    return math.nan


def sweep_main(settings: Settings, sweep: Sweep) -> float:
    """One job of a sweep: a run below the sweep's folder and its parent run. Returns NaN where it failed."""
    if sweep.over():
        return math.nan
    with sweep.job() as (folder, row):
        clock = Clock()
        courier(settings.tracking)
        run = train(settings, ensure.split_for(settings), folder, sweep.parent, clock=clock)
        run.close()
        row.update(sweep.outcome(run))
    return float(row.get("metric", math.nan))


def best_metric(folder: Path, settings: Settings) -> float:
    """What any Hydra sweeper may optimise."""
    choice = settings.selection
    return selection.best_epoch(read(folder / "epochs.csv"), choice.metric, choice.mode)[choice.metric]


def train(
    settings: Settings,
    split: Summary,
    folder: Path | None = None,
    parent: str | None = None,
    world: World | None = None,
    clock: Clock | None = None,
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
    from bestepoch.training.loop import NonFiniteLoss
    from bestepoch.training.precision import settled
    from bestepoch.training.trainer import Trainer

    world, clock = world or World(), clock or Clock()
    plan = learning_rate_plan(split.values["sizes"]["train"], settings.train)
    device = choose_device(settings.device, world)
    settings = settled(settings, device, world)
    run = Run.open(settings, split, device.type, overrides(), folder, world)
    heading(run, split, plan, settings.device.cuda_graphs is True)
    if not run.resumed:
        extend.begin(run, settings, plan)
    if run.status == "finished":
        log.info("%s is finished already and is taken as it is", files.relative(run.folder))
        world.told(None)
        return run
    world.told(split)
    run.info.pop("reason", None)
    run.update(status="running", to_publish=settings.publish is not None, parent=parent)
    journal = Journal(run.folder)
    deliveries = Deliveries(settings.tracking, run)
    status, stopped = "failed", 0
    try:
        with stop_signals() as stop:
            Trainer(settings, plan, split, device, run, journal, stop, clock, world).train()
        status = "finished"
        if not settings.publish:  # else `evaluate`, which comes next, says it
            with contextlib.suppress(UsageError):  # a selection that cannot be, which `best_metric` will say
                run.info.update(_results(run, settings))
    except Interrupted as interruption:
        status, stopped = "killed", interruption.number
        log.warning("stopped by %s; the same command goes on from here: %s", interruption, run.info["command"])
    except NonFiniteLoss as error:
        run.info["reason"] = f"{error} Try a tenth of the rate: optimizer.lr={settings.optimizer.lr / 10:.3g}"
        raise UsageError(run.info["reason"]) from None
    except Exception as error:
        run.info["reason"] = f"{type(error).__name__}: {files.first_line(error)}"
        raise
    finally:
        clock.to("tracking")
        try:
            journal.close()
        finally:
            run.info.update(status=status, ended=time.time(), spent=clock.read(), peak_memory=peak_memory())
            deliveries.close(status)
            run.info["spent"] = clock.read()
            run.update()  # last: a kill while a tracker takes the rest leaves a run that the same command goes on with
            log.info("time     %s", told(run.info["spent"], run.info["peak_memory"]))
    if stopped:
        run.close()
        leave(stopped)
    return run


def _results(run: Run, settings: Settings) -> dict[str, Any]:
    """What is known before the test: ``best``, the chosen epoch by the names of its metrics, and the ``verdict``."""
    from bestepoch.evaluation.diagnosis import of_run
    from bestepoch.runs import checkpoint

    epochs = read(run.folder / "epochs.csv")
    best = selection.choose(epochs, settings.selection, lambda epoch: checkpoint.fared(run.folder, epoch))
    names = {"best/epoch": "epoch", "best/val_loss": "val/loss", "best/val_accuracy": "val/accuracy", "time": "time"}
    return {"best": {name: best[key] for name, key in names.items()}, "verdict": of_run(run.info, epochs).told()}
