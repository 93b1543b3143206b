"""The epochs of one training, from the newest state to the end of the plan."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence, Sized
from typing import Any

import torch

from bestepoch.base.config.schema import Settings
from bestepoch.base.shutdown import Interrupted
from bestepoch.cli.console import Training
from bestepoch.components.data.split import Augment, Summary, on_device, stream
from bestepoch.components.data.split import order as split_order
from bestepoch.components.models import networks
from bestepoch.components.schedules.learning_rate import Plan, learning_rate, spans_the_plan
from bestepoch.evaluation import selection
from bestepoch.runs import checkpoint
from bestepoch.runs.journal import Journal, Row, numbers, read, read_after
from bestepoch.runs.run import Run
from bestepoch.runs.timing import Clock
from bestepoch.training import batch_norm, loop, optimizers
from bestepoch.training.cuda_graph import Graph
from bestepoch.training.distributed import World
from bestepoch.training.loop import NonFiniteLoss
from bestepoch.training.precision import trained_as
from bestepoch.training.state import State

log = logging.getLogger("bestepoch")


class Trainer:
    """Everything that a training works with, on its device."""

    def __init__(
        self,
        settings: Settings,
        plan: Plan,
        split: Summary,
        device: torch.device,
        run: Run | None,
        journal: Journal | None,
        stop: list[int],
        clock: Clock,
        world: World | None = None,
    ) -> None:
        """Set up, the same in every process.

        Args:
            run, journal: where it is recorded; of several processes the first one has them.
            stop: holds the number of a signal as soon as one came.
            clock: told what time is spent on.
        """
        self.settings, self.plan, self.device = settings, plan, device
        self.run, self.journal, self.stop, self.clock = run, journal, stop, clock
        self.world = world = world or World()
        world.wishes = self._wishes
        self.images, self.labels = on_device(split, "train", device)
        self.held_out = on_device(split, "validation", device)

        torch.manual_seed(settings.seed)
        values = split.values
        network = networks.build(settings.model, split.shape, split.classes, values["pixel_mean"], values["pixel_std"])
        self.network = network.to(device)
        self.evaluated = networks.evaluation_network(settings.model, self.network)
        weights = tuple(p for p in network.parameters() if p.ndim > 1)
        self.objective = loop.Objective(settings.loss.label_smoothing, settings.optimizer.l1, weights, world)
        self.state = State(network, optimizers.build(settings.optimizer, network), device, world, clock)
        if world.size > 1:
            batch_norm.over_all_processes(network)
            torch.manual_seed(stream(settings.seed, world.rank))  # dropout differs between the parts of a batch
        self.trained = trained_as(settings.device, world.shared(network, self.images[:1]))
        self.graph = Graph(plan.batch_size, network.parameters()) if settings.device.cuda_graphs is True else None

    def train(self) -> None:
        """To the end of the plan, or to where early stopping ends it.

        Raises:
            Interrupted: by a signal; the state is saved.
            NonFiniteLoss: naming the update, which on the CPU was not made.
        """
        state, per_epoch = self.state, self.plan.per_epoch
        log.info("start    %.1f s from the command to the first iteration", self.clock.read()["startup"])
        if state.resume(self.run.folder if self.run is not None else None):
            log.info("going on after iteration %s of %s", f"{state.iteration:,}", f"{self.plan.iterations:,}")
        self._saved = time.monotonic()
        self.view = Training(self.plan.iterations, state.iteration, self.world.first)
        complete = math.ceil(state.iteration / per_epoch) - 1 + state.evaluated  # epochs that have their row
        past = self.world.told(read(self.journal.epochs)[:complete] if self.journal is not None else None)
        try:
            for epoch in range(complete + 1, self.plan.epochs + 1):
                reason = selection.stop_reason(past, self.settings.stopping)
                if reason:
                    self._stop_early(past[-1], reason)
                    break
                row = self._epoch(epoch, [row["val/loss"] for row in past])
                past.append(row)
                self.view.epoch(row, self.plan.epochs)
                if stop := self.world.agree()[0]:
                    raise Interrupted(stop)
        finally:
            self.view.close()

    def _stop_early(self, last: Row, reason: str) -> None:
        epoch, scheduler = int(last["epoch"]), self.settings.scheduler
        if self.run is not None:
            self.run.update(stopped={"epoch": epoch, "reason": reason})
        self.view.line(f"stopped early after epoch {epoch}: {reason}")
        if spans_the_plan(scheduler):
            self.view.line(
                f"the learning rate was still {last['lr']:.2e}: {scheduler.name} lowers it over all "
                f"{self.plan.epochs} planned epochs. To have it end low: train.epochs={epoch}"
            )

    def _epoch(self, epoch: int, history: list[float]) -> Row:
        """The updates of an epoch, or those that are left of it, then validation; returns its row.

        Args:
            history: the validation losses of the epochs before.
        """
        settings, plan, state = self.settings, self.plan, self.state
        begin, end = (epoch - 1) * plan.per_epoch, min(epoch * plan.per_epoch, plan.iterations)
        done = state.iteration
        losses: list[Any] = []
        if done > begin:  # resumed inside this epoch
            rows = self.world.told(read_after(self.journal.iterations, begin) if self.journal is not None else None)
            losses = [row["train/loss"] for row in rows if row["iteration"] <= done]
        # the clock of the epoch stands still while a state is saved
        started = time.monotonic() - state.seconds - self.clock.spent["checkpoints"]

        def rate(iteration: int) -> float:
            return learning_rate(settings.scheduler, settings.optimizer.lr, plan, iteration, history)

        def after(iteration: int, loss: Any, lr: float) -> None:
            if self.journal is not None:
                self.journal.iteration(iteration, epoch, loss, lr)
            losses.append(loss)
            state.iteration = iteration
            self.view.iteration(iteration, epoch, loss, lr)
            # several processes have agreed before the update, when the loss was put together
            stop, save, not_finite = self._wishes() if self.world.size == 1 else self.world.agreed
            if not_finite:
                self._look_at_losses()
            if stop or save:
                state.seconds = time.monotonic() - started - self.clock.spent["checkpoints"]
                self._save()
                if stop:
                    raise Interrupted(stop)

        self.clock.to("data")
        order = torch.split(split_order(settings.seed, epoch, len(self.images)).to(self.device), plan.batch_size)
        state.evaluated = False
        loop.train_epoch(
            self.trained,
            self.images,
            self.labels,
            order[done - begin : end - begin],
            Augment(settings.augment, settings.seed, epoch, len(self.images), self.device),
            self.objective,
            state.optimizer,
            rate,
            done + 1,
            after,
            account=self.clock.to,
            graph=self.graph,
        )
        losses = _finite(losses, begin, rate)  # a GPU has made the updates by then, and not only been told to
        seconds = time.monotonic() - started - self.clock.spent["checkpoints"]
        with self.clock.on("evaluation"):
            images, labels = (self.world.part(tensor) for tensor in self.held_out)
            fared = loop.score(loop.predict(self.evaluated, images), labels, settings.loss.label_smoothing)
            fared = loop.join(self.world.gathered(fared))
        row: Row = {
            "epoch": epoch,
            "iteration": end,
            "train/epoch_loss": _mean_loss(losses, order[: end - begin]),
            "val/loss": fared.loss,
            "val/accuracy": fared.accuracy,
            "lr": rate(end),
            "seconds": round(seconds, 3),
        }
        row = self.world.told(row)
        with self.clock.on("checkpoints"):
            # the losses in single precision: for a standard error, not for a sum that must come out
            predicted = fared.predicted.to(torch.uint8)  # labels are bytes
            result = {"losses": fared.losses.float(), "correct": fared.correct, "predicted": predicted}
            if self.run is not None:
                checkpoint.save(
                    checkpoint.weights_path(self.run.folder, epoch),
                    {"network": self.network.state_dict(), "epoch": epoch, "validation": result},
                )
        if self.journal is not None:
            with self.clock.on("tracking"):
                self.journal.epoch(row)
        state.evaluated, state.seconds = True, 0.0
        self._save()
        return row

    def _save(self) -> None:
        with self.clock.on("checkpoints"):
            if self.journal is not None:
                self.journal.flush(sync=True)  # the record never falls behind the weights
            self._look_at_losses()  # and weights that are spoiled are never kept
            self.state.save(self.run.folder if self.run is not None else None)
        self._saved = time.monotonic()

    def _wishes(self) -> tuple[int, int, int]:
        """A signal's number, whether to save, and whether a loss was found to be no number: all 0 where all is well.

        The last is for a GPU, whose losses are looked at when their rows are written.
        """
        if self.journal is None:
            return (self.stop[0] if self.stop else 0), 0, 0
        save = time.monotonic() - self._saved > self.settings.checkpoint.every_seconds
        return (self.stop[0] if self.stop else 0), save, self.journal.not_finite is not None

    def _look_at_losses(self) -> None:
        wrong = self.world.told(self.journal.not_finite if self.journal is not None else None)
        if wrong is not None:
            raise NonFiniteLoss(*wrong)


def _finite(losses: list[Any], begin: int, rate: Callable[[int], float]) -> list[float]:
    """An epoch's losses as numbers. Those of a GPU are first looked at here, so as not to wait for each.

    Raises:
        NonFiniteLoss: naming the first update whose loss is NaN or infinite.
    """
    values = numbers(losses)
    for iteration, value in enumerate(values, begin + 1):
        if not math.isfinite(value):
            raise NonFiniteLoss(iteration, rate(iteration), value)
    return values


def _mean_loss(losses: list[float], batches: Sequence[Sized]) -> float:
    """Over images: the last, smaller batch counts for as much as it holds."""
    sizes = [len(batch) for batch in batches]
    return math.fsum(loss * n for loss, n in zip(losses, sizes, strict=True)) / sum(sizes)
