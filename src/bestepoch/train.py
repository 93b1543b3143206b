"""Stage 3: train, and record every iteration and every epoch."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestepoch import continuation, prepare, project, schedule, selection
from bestepoch.app import launch, overrides
from bestepoch.data import Summary
from bestepoch.delivery import Deliveries, courier
from bestepoch.device import choose_device
from bestepoch.journal import Journal, read, read_after
from bestepoch.project import UsageError
from bestepoch.run import TRAINING_CODE, Run, publish
from bestepoch.schema import Settings
from bestepoch.signals import Interrupted, stop_signals, stop_with_dvc
from bestepoch.terminal import Training, heading

if TYPE_CHECKING:
    import torch

    from bestepoch.sweep import Sweep

log = logging.getLogger("bestepoch")


def main(settings: Settings) -> float:
    """Train one configuration; under `dvc repro`, hand the finished run over. Returns the best selection metric."""
    courier(settings.tracking)
    if settings.publish:
        stop_with_dvc(project.root() / settings.publish)
    split = prepare.pipeline_split() if settings.publish else prepare.split_for(settings)
    run = train(settings, split)
    if settings.publish:
        if project.code_hashes(TRAINING_CODE) != run.info["code"]:
            # DVC hashes the code now, after the command: it would vouch for code that did not train this
            raise UsageError("The training code was edited while it ran. Run it again: dvc repro")
        publish(run, project.root() / settings.publish)
    else:
        log.info("test it  python -m bestepoch.evaluate run=%s", project.relative(run.folder))
    run.close()
    return best_metric(run.folder, settings)


def sweep_main(settings: Settings, sweep: Sweep) -> float:
    """One job of a sweep: a run below the sweep's folder and its parent run."""
    with sweep.job() as (folder, row):
        courier(settings.tracking)
        run = train(settings, prepare.split_for(settings), folder, sweep.parent)
        run.close()
        row.update(sweep.outcome(run))
        return float(row["metric"])


def best_metric(folder: Path, settings: Settings) -> float:
    """What any Hydra sweeper may optimise."""
    choice = settings.selection
    return selection.best_epoch(read(folder / "epochs.csv"), choice.metric, choice.mode)[choice.metric]


def train(settings: Settings, split: Summary, folder: Path | None = None, parent: str | None = None) -> Run:
    """Train to the end of the plan, or go on where a run of the same identity was interrupted.

    Args:
        folder: where the run lives; by default a new folder in ``runs/``, or the one to go on with.
        parent: the MLflow run of the sweep that this is a job of.

    Raises:
        UsageError: the plan cannot be carried out, or the loss is no longer finite.
        SystemExit: stopped by a signal; the state is saved, and the same command goes on from there.
    """
    from bestepoch.loop import NonFiniteLoss

    plan = schedule.plan(split.values["sizes"]["train"], settings.train)
    device = choose_device(settings.device)
    run = Run.open(settings, split, str(device), overrides(), folder)
    heading(run, split, plan)
    if not run.resumed:
        continuation.begin(run, settings, plan)
    if run.status == "finished":
        log.info("%s is finished already and is taken as it is", project.relative(run.folder))
        return run
    run.info.pop("reason", None)
    run.update(status="running", to_publish=settings.publish is not None, parent=parent)
    journal = Journal(run.folder)
    deliveries = Deliveries(settings.tracking, run)
    status = "failed"
    try:
        with stop_signals() as stop:
            _epochs(settings, plan, split, device, run, journal, stop)
        status = "finished"
    except Interrupted as interruption:
        status = "killed"
        log.warning("stopped by %s; the same command goes on from here: %s", interruption, run.info["command"])
        raise SystemExit(128 + interruption.number) from None
    except NonFiniteLoss as error:
        run.info["reason"] = f"{error} Try a tenth of the rate: optimizer.lr={settings.optimizer.lr / 10:.3g}"
        raise UsageError(run.info["reason"]) from None
    except Exception as error:
        run.info["reason"] = f"{type(error).__name__}: {project.first_line(error)}"
        raise
    finally:
        try:
            journal.close()
        finally:
            run.info.update(status=status, ended=time.time())
            deliveries.close(status)
            run.update()  # last: a kill while a tracker takes the rest leaves a run that the same command goes on with
    return run


def _epochs(
    settings: Settings,
    plan: schedule.Plan,
    split: Summary,
    device: torch.device,
    run: Run,
    journal: Journal,
    stop: list[int],
) -> None:
    """The training itself, from the newest checkpoint to the end of the plan."""
    import torch

    from bestepoch import checkpoint, data, loop, model

    images, labels = (t.to(device) for t in data.load(split.folder, "train"))
    held_images, held_labels = (t.to(device) for t in data.load(split.folder, "validation"))

    torch.manual_seed(settings.seed)
    values = split.values
    network = model.build(settings.model, split.shape, split.classes, values["pixel_mean"], values["pixel_std"])
    network.to(device)
    optimizer = loop.optimizer(settings.optimizer, network)
    weights = tuple(p for p in network.parameters() if p.ndim > 1)
    objective = loop.Objective(settings.loss.label_smoothing, settings.optimizer.l1, weights)

    done, evaluated, before = 0, True, 0.0
    state = checkpoint.newest_state(run.folder)
    if state is not None:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        if "cuda_rng" in state:
            torch.cuda.set_rng_state(state["cuda_rng"])
        done, evaluated, before = state["iteration"], state["evaluated"], state["seconds"]
        log.info("going on after iteration %s of %s", f"{done:,}", f"{plan.iterations:,}")
    saved = time.monotonic()

    def save() -> None:
        nonlocal saved
        journal.flush(sync=True)  # the record never falls behind the weights
        if journal.not_finite is not None:  # and weights that are spoiled are never kept
            raise loop.NonFiniteLoss(*journal.not_finite)
        everything = {
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "iteration": done,
            "evaluated": evaluated,
            "seconds": before,
        }
        if device.type == "cuda":
            everything["cuda_rng"] = torch.cuda.get_rng_state()
        checkpoint.save_state(run.folder, done, everything)
        saved = time.monotonic()

    view = Training(plan.iterations, done)
    past = read(journal.epochs)[: math.ceil(done / plan.per_epoch) - 1 + evaluated]
    try:
        for epoch in range(math.ceil(done / plan.per_epoch) + evaluated, plan.epochs + 1):
            reason = selection.stop_reason(past, settings.stopping)
            if reason:
                run.update(stopped={"epoch": epoch - 1, "reason": reason})
                view.line(f"stopped early after epoch {epoch - 1}: {reason}")
                if schedule.spans_the_plan(settings.scheduler):
                    view.line(
                        f"the learning rate was still {past[-1]['lr']:.2e}: {settings.scheduler.name} lowers it over "
                        f"all {plan.epochs} planned epochs. To have it end low: train.epochs={epoch - 1}"
                    )
                break
            history = [row["val/loss"] for row in past]
            begin, end = (epoch - 1) * plan.per_epoch, min(epoch * plan.per_epoch, plan.iterations)
            losses: list[Any] = []
            if done > begin:  # resumed inside this epoch
                rows = read_after(journal.iterations, begin)
                losses = [row["train/loss"] for row in rows if row["iteration"] <= done]
            started = time.monotonic() - before

            def rate(iteration: int, history: list[float] = history) -> float:
                return schedule.learning_rate(settings.scheduler, settings.optimizer.lr, plan, iteration, history)

            def after(
                iteration: int,
                loss: Any,
                lr: float,
                epoch: int = epoch,
                started: float = started,
                losses: list[Any] = losses,
            ) -> None:
                nonlocal done, before
                journal.iteration(iteration, epoch, loss, lr)
                losses.append(loss)
                done = iteration
                view.iteration(iteration, epoch, loss, lr)
                if journal.not_finite is not None:  # on a GPU, whose losses are looked at when their rows are written
                    raise loop.NonFiniteLoss(*journal.not_finite)
                now = time.monotonic()
                if stop or now - saved > settings.checkpoint.every_seconds:
                    before = now - started
                    save()
                    if stop:
                        raise Interrupted(stop[0])

            order = torch.split(data.order(settings.seed, epoch, len(images)).to(device), plan.batch_size)
            evaluated = False
            loop.train_epoch(
                network,
                images,
                labels,
                order[done - begin : end - begin],
                data.Augment(settings.augment, settings.seed, epoch, len(images), device),
                objective,
                optimizer,
                rate,
                done + 1,
                after,
            )
            seconds = time.monotonic() - started
            losses = _finite(losses, begin, rate)
            fared = loop.score(loop.predict(network, held_images), held_labels)
            row = {
                "epoch": epoch,
                "iteration": end,
                "train/epoch_loss": _mean_loss(losses, order[: end - begin]),
                "val/loss": fared.loss,
                "val/accuracy": fared.accuracy,
                "lr": rate(end),
                "seconds": round(seconds, 3),
            }
            # the losses in single precision: for a standard error, not for a sum that must come out
            result = {"losses": fared.losses.float(), "correct": fared.correct}
            checkpoint.save(
                checkpoint.weights_path(run.folder, epoch),
                {"network": network.state_dict(), "epoch": epoch, "validation": result},
            )
            journal.epoch(row)
            past.append(row)
            evaluated, before = True, 0.0
            save()
            view.epoch(row, plan.epochs)
            if stop:
                raise Interrupted(stop[0])
    finally:
        view.close()


def _finite(losses: list[Any], begin: int, rate: Callable[[int], float]) -> list[float]:
    """An epoch's losses as numbers. Those of a GPU are first looked at here, so as not to wait for each.

    Raises:
        NonFiniteLoss: naming the first update whose loss is NaN or infinite.
    """
    from bestepoch.loop import NonFiniteLoss

    values = [loss if isinstance(loss, float) else loss.item() for loss in losses]
    for iteration, value in enumerate(values, begin + 1):
        if not math.isfinite(value):
            raise NonFiniteLoss(iteration, rate(iteration), value)
    return values


def _mean_loss(losses: list[float], batches: Sequence[Sized]) -> float:
    """Over images: the last, smaller batch counts for as much as it holds."""
    sizes = [len(batch) for batch in batches]
    return math.fsum(loss * n for loss, n in zip(losses, sizes, strict=True)) / sum(sizes)


if __name__ == "__main__":
    launch(main, sweep_main)
