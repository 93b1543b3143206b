"""The epochs of one training, from the newest state to the end of the plan."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence, Sized
from typing import Any

import torch

from bestepoch.base.config.schema import Config
from bestepoch.base.shutdown import Interrupted
from bestepoch.cli.console import TrainingProgress
from bestepoch.components.data.augment import Augment
from bestepoch.components.data.order import epoch_permutation as split_order
from bestepoch.components.data.order import rank_seed
from bestepoch.components.data.split import Split, load_cached
from bestepoch.components.models import inference, networks
from bestepoch.components.schedules import early_stopping
from bestepoch.components.schedules.learning_rate import decays_over_full_run, learning_rate
from bestepoch.components.schedules.plan import TrainingPlan
from bestepoch.runs import checkpoint
from bestepoch.runs.journal import Journal, to_floats
from bestepoch.runs.run import Run
from bestepoch.runs.tables import Row, read_rows, read_since
from bestepoch.runs.timing import SectionTimer
from bestepoch.training import batch_norm, loop, optimizers
from bestepoch.training.cuda_graph import CUDAGraphStep
from bestepoch.training.device import wrap_for_training
from bestepoch.training.distributed import DistributedContext
from bestepoch.training.loop import NonFiniteLoss
from bestepoch.training.loss import Objective
from bestepoch.training.state import TrainingState

log = logging.getLogger("bestepoch")


class Trainer:
    """Everything that a training works with, on its device."""

    def __init__(
        self,
        config: Config,
        plan: TrainingPlan,
        split: Split,
        device: torch.device,
        run: Run | None,
        journal: Journal | None,
        stop: list[int],
        timer: SectionTimer,
        context: DistributedContext | None = None,
    ) -> None:
        """Set up, the same in every process.

        Args:
            run, journal: where it is recorded; of several processes the first one has them.
            stop: holds the number of a signal as soon as one came.
            clock: told what time is spent on.
        """
        self.config, self.plan, self.device = config, plan, device
        self.run, self.journal, self.stop, self.timer = run, journal, stop, timer
        self.context = context = context or DistributedContext()
        context.control_flags = self._control_flags
        self.images, self.labels = load_cached(split, "train", device)
        self.held_out = load_cached(split, "validation", device)

        torch.manual_seed(config.seed)
        values = split.values
        network = networks.build_network(
            config.model, split.shape, split.classes, values["pixel_mean"], values["pixel_std"]
        )
        self.network = network.to(device)
        self.evaluated = networks.evaluation_network(config.model, self.network)
        weights = tuple(p for p in network.parameters() if p.ndim > 1)
        self.objective = Objective(config.loss.label_smoothing, config.optimizer.l1, weights, context)
        self.state = TrainingState(
            network, optimizers.build_optimizer(config.optimizer, network), device, context, timer
        )
        if context.size > 1:
            batch_norm.convert_sync_batchnorm(network)
            torch.manual_seed(rank_seed(config.seed, context.rank))  # dropout differs between the parts of a batch
        self.trained = wrap_for_training(config.device, context.wrap_ddp(network, self.images[:1]))
        self.graph = CUDAGraphStep(plan.batch_size, network.parameters()) if config.device.cuda_graphs is True else None

    def train(self) -> None:
        """To the end of the plan, or to where early stopping ends it.

        Raises:
            Interrupted: by a signal; the state is saved.
            NonFiniteLoss: naming the update, which on the CPU was not made.
        """
        state, per_epoch = self.state, self.plan.iterations_per_epoch
        log.info("start    %.1f s from the command to the first iteration", self.timer.read()["startup"])
        if state.resume(self.run.folder if self.run is not None else None):
            log.info("going on after iteration %s of %s", f"{state.iteration:,}", f"{self.plan.iterations:,}")
        self._saved = time.monotonic()
        self.view = TrainingProgress(self.plan.iterations, state.iteration, self.context.is_main)
        complete = math.ceil(state.iteration / per_epoch) - 1 + state.evaluated  # epochs that have their row
        past = self.context.broadcast(read_rows(self.journal.epochs)[:complete] if self.journal is not None else None)
        try:
            for epoch in range(complete + 1, self.plan.epochs + 1):
                reason = early_stopping.early_stop_reason(past, self.config.stopping)
                if reason:
                    self._stop_early(past[-1], reason)
                    break
                row = self._epoch(epoch, [row["val/loss"] for row in past])
                past.append(row)
                self.view.show_epoch(row, self.plan.epochs)
                if stop := self.context.sync_control_flags()[0]:
                    raise Interrupted(stop)
        finally:
            self.view.close()

    def _stop_early(self, last: Row, reason: str) -> None:
        epoch, scheduler = int(last["epoch"]), self.config.scheduler
        if self.run is not None:
            self.run.update(stopped={"epoch": epoch, "reason": reason})
        self.view.line(f"stopped early after epoch {epoch}: {reason}")
        if decays_over_full_run(scheduler):
            self.view.line(
                f"the learning rate was still {last['lr']:.2e}: {scheduler.name} lowers it over all "
                f"{self.plan.epochs} planned epochs. To have it end low: train.epochs={epoch}"
            )

    def _epoch(self, epoch: int, history: list[float]) -> Row:
        """The updates of an epoch, or those that are left of it, then validation; returns its row.

        Args:
            history: the validation losses of the epochs before.
        """
        config, plan, state = self.config, self.plan, self.state
        begin, end = (epoch - 1) * plan.iterations_per_epoch, min(epoch * plan.iterations_per_epoch, plan.iterations)
        done = state.iteration
        losses: list[Any] = []
        if done > begin:  # resumed inside this epoch
            rows = self.context.broadcast(
                read_since(self.journal.iterations, begin) if self.journal is not None else None
            )
            losses = [row["train/loss"] for row in rows if row["iteration"] <= done]
        # the clock of the epoch stands still while a state is saved
        started = time.monotonic() - state.seconds - self.timer.seconds["checkpoints"]

        def lr_at(iteration: int) -> float:
            return learning_rate(config.scheduler, config.optimizer.lr, plan, iteration, history)

        def on_step_end(iteration: int, loss: Any, lr: float) -> None:
            if self.journal is not None:
                self.journal.log_iteration(iteration, epoch, loss, lr)
            losses.append(loss)
            state.iteration = iteration
            self.view.show_iteration(iteration, epoch, loss, lr)
            # several processes have agreed before the update, when the loss was put together
            stop, save, not_finite = self._control_flags() if self.context.size == 1 else self.context.synced_flags
            if not_finite:
                self._raise_if_nonfinite()
            if stop or save:
                state.seconds = time.monotonic() - started - self.timer.seconds["checkpoints"]
                self._save()
                if stop:
                    raise Interrupted(stop)

        self.timer.switch("data")
        order = torch.split(split_order(config.seed, epoch, len(self.images)).to(self.device), plan.batch_size)
        state.evaluated = False
        loop.train_epoch(
            self.trained,
            self.images,
            self.labels,
            order[done - begin : end - begin],
            Augment(config.augment, config.seed, epoch, len(self.images), self.device),
            self.objective,
            state.optimizer,
            lr_at,
            done + 1,
            on_step_end,
            switch_section=self.timer.switch,
            graph=self.graph,
        )
        losses = _require_finite(losses, begin, lr_at)  # a GPU has made the updates by then, and not only been told to
        seconds = time.monotonic() - started - self.timer.seconds["checkpoints"]
        with self.timer.section("evaluation"):
            images, labels = (self.context.shard(tensor) for tensor in self.held_out)
            fared = inference.score_examples(
                inference.predict(self.evaluated, images), labels, config.loss.label_smoothing
            )
            fared = inference.concat(self.context.all_gather(fared))
        row: Row = {
            "epoch": epoch,
            "iteration": end,
            "train/epoch_loss": _mean_loss(losses, order[: end - begin]),
            "val/loss": fared.loss,
            "val/accuracy": fared.accuracy,
            "lr": lr_at(end),
            "seconds": round(seconds, 3),
        }
        row = self.context.broadcast(row)
        with self.timer.section("checkpoints"):
            # the losses in single precision: for a standard error, not for a sum that must come out
            predicted = fared.predicted.to(torch.uint8)  # labels are bytes
            result = {"losses": fared.losses.float(), "correct": fared.correct, "predicted": predicted}
            if self.run is not None:
                checkpoint.save(
                    checkpoint.weights_path(self.run.folder, epoch),
                    {"network": self.network.state_dict(), "epoch": epoch, "validation": result},
                )
        if self.journal is not None:
            with self.timer.section("tracking"):
                self.journal.log_epoch(row)
        state.evaluated, state.seconds = True, 0.0
        self._save()
        return row

    def _save(self) -> None:
        with self.timer.section("checkpoints"):
            if self.journal is not None:
                self.journal.flush(sync=True)  # the record never falls behind the weights
            self._raise_if_nonfinite()  # and weights that are spoiled are never kept
            self.state.save(self.run.folder if self.run is not None else None)
        self._saved = time.monotonic()

    def _control_flags(self) -> tuple[int, int, int]:
        """A signal's number, whether to save, and whether a loss was found to be no number: all 0 where all is well.

        The last is for a GPU, whose losses are looked at when their rows are written.
        """
        if self.journal is None:
            return (self.stop[0] if self.stop else 0), 0, 0
        save = time.monotonic() - self._saved > self.config.checkpoint.every_seconds
        return (self.stop[0] if self.stop else 0), save, self.journal.not_finite is not None

    def _raise_if_nonfinite(self) -> None:
        wrong = self.context.broadcast(self.journal.not_finite if self.journal is not None else None)
        if wrong is not None:
            raise NonFiniteLoss(*wrong)


def _require_finite(losses: list[Any], begin: int, lr_at: Callable[[int], float]) -> list[float]:
    """An epoch's losses as numbers. Those of a GPU are first looked at here, so as not to wait for each.

    Raises:
        NonFiniteLoss: naming the first update whose loss is NaN or infinite.
    """
    values = to_floats(losses)
    for iteration, value in enumerate(values, begin + 1):
        if not math.isfinite(value):
            raise NonFiniteLoss(iteration, lr_at(iteration), value)
    return values


def _mean_loss(losses: list[float], batches: Sequence[Sized]) -> float:
    """Over images: the last, smaller batch counts for as much as it holds."""
    sizes = [len(batch) for batch in batches]
    return math.fsum(loss * n for loss, n in zip(losses, sizes, strict=True)) / sum(sizes)
