"""The epochs of one training, from the newest state to the end of the plan."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bestepoch.base.config.schema import Config
from bestepoch.base.shutdown import Interrupted
from bestepoch.cli.console import TrainingProgress
from bestepoch.components.data.augment import Augment
from bestepoch.components.data.order import epoch_permutation, evaluation_subset, rank_seed
from bestepoch.components.data.split import Split, load_cached
from bestepoch.components.models import inference, networks, scoring
from bestepoch.components.schedules.early_stopping import early_stop_reason
from bestepoch.components.schedules.learning_rate import decays_over_full_run, learning_rate
from bestepoch.components.schedules.plan import make_plan
from bestepoch.runs import checkpoint
from bestepoch.runs.journal import Journal, to_floats
from bestepoch.runs.run import Run
from bestepoch.runs.tables import Row, read_rows, read_since
from bestepoch.runs.timing import SectionTimer
from bestepoch.training import batch_norm, loop, optimizers
from bestepoch.training.cores import CoreWatch
from bestepoch.training.cuda_graph import CUDAGraphStep
from bestepoch.training.device import wrap_for_training
from bestepoch.training.distributed import DistributedContext
from bestepoch.training.loop import EpochData, Learner, NonFiniteLoss, Scalar
from bestepoch.training.loss import Objective
from bestepoch.training.state import TrainingState

log = logging.getLogger("bestepoch")


@dataclass(frozen=True)
class Recorder:
    """Where rank 0 records the training."""

    run: Run
    journal: Journal


class Trainer:
    """A training on its device: data, network, optimizer and state; set up the same on every rank.

    Args:
        config: the configuration, with every ``auto`` resolved.
        split: the data.
        device: where the training happens.
        stop: holds the number of a signal as soon as one has come.
        timer: counts the time of each section.
        context: the processes that train; by default this one alone.
        recorder: the run and its journal on rank 0, None on the other ranks.
    """

    def __init__(
        self,
        config: Config,
        split: Split,
        device: torch.device,
        stop: list[int],
        timer: SectionTimer,
        context: DistributedContext | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.config, self.device, self.stop, self.timer = config, device, stop, timer
        self.plan = make_plan(split.values["sizes"]["train"], config.train)
        self.folder = recorder.run.folder if recorder is not None else None
        self.recorder, self.journal = recorder, recorder.journal if recorder is not None else None
        self._epoch, self._started, self._losses = 0, 0.0, list[Any]()
        self.context = context = context or DistributedContext()
        context.control_flags = self._control_flags
        self.images, self.labels = load_cached(split, "train", device)
        self.validation = load_cached(split, "validation", device)
        count = len(self.validation[0]) if config.train.eval_images is None else config.train.eval_images
        self.train_eval = evaluation_subset(self.images, self.labels, count, config.split.seed)

        torch.manual_seed(config.seed)
        values = split.values
        network = networks.build_network(
            config.model, split.shape, split.classes, values["pixel_mean"], values["pixel_std"]
        )
        self.network = network.to(device)
        self.evaluation_network = networks.evaluation_network(config.model, self.network)
        weights = tuple(p for p in network.parameters() if p.ndim > 1)
        objective = Objective(config.loss.label_smoothing, config.optimizer.l1, weights, context)
        optimizer = optimizers.build_optimizer(config.optimizer, network)
        self.state = TrainingState(network, optimizer, device, context, timer)
        if context.size > 1:
            batch_norm.convert_sync_batchnorm(network)
            torch.manual_seed(rank_seed(config.seed, context.rank))  # dropout differs between the shards of a batch
        trained = wrap_for_training(config.device, context.wrap_ddp(network, self.images[:1]))
        use_graph = config.device.cuda_graphs is True
        graph = CUDAGraphStep(self.plan.batch_size, network.parameters()) if use_graph else None
        self.learner = Learner(trained, objective, optimizer, graph, config.tracking.grad_norm)

    def train(self) -> None:
        """Train to the end of the plan, or to where early stopping ends it.

        Raises:
            Interrupted: a signal came; the state is saved.
            NonFiniteLoss: names the update, which on the CPU was not made.
        """
        state, per_epoch = self.state, self.plan.iterations_per_epoch
        log.info("start    %.1f s from the command to the first iteration", self.timer.read()["startup"])
        if state.resume(self.folder):
            log.info("going on after iteration %s of %s", f"{state.iteration:,}", f"{self.plan.iterations:,}")
        self._saved = time.monotonic()
        self.progress = TrainingProgress(self.plan.iterations, state.iteration, self.context.is_main)
        complete = math.ceil(state.iteration / per_epoch) - 1 + state.evaluated  # epochs that have their row
        cores = CoreWatch(self.device)
        past = self.context.broadcast(read_rows(self.journal.epochs)[:complete] if self.journal is not None else None)
        try:
            for epoch in range(complete + 1, self.plan.epochs + 1):
                reason = early_stop_reason(past, self.config.stopping)
                if reason:
                    self._stop_early(past[-1], reason)
                    break
                row = self._run_epoch(epoch, [row["val/loss"] for row in past])
                past.append(row)
                self.progress.show_epoch(row, self.plan.epochs, self.plan.describe_cut(epoch))
                if busy := cores.describe_wait():
                    self.progress.line(busy)
                if stop := self.context.sync_control_flags()[0]:
                    raise Interrupted(stop)
        finally:
            self.progress.close()

    def _stop_early(self, last: Row, reason: str) -> None:
        epoch, scheduler = int(last["epoch"]), self.config.scheduler
        if self.recorder is not None:
            self.recorder.run.update(stopped={"epoch": epoch, "reason": reason})
        self.progress.line(f"stopped early after epoch {epoch}: {reason}")
        if decays_over_full_run(scheduler):
            still = f"the learning rate was still {last['lr']:.2e}: {scheduler.name} lowers it over all"
            self.progress.line(f"{still} {self.plan.epochs} planned epochs. To have it end low: train.epochs={epoch}")

    def _run_epoch(self, epoch: int, val_losses: list[float]) -> Row:
        """Make the updates of ``epoch`` that are not yet made, validate, and return the epoch's row.

        The plateau schedule looks at ``val_losses``, the validation losses of the epochs before.
        """
        config, plan, state = self.config, self.plan, self.state
        begin, end = (epoch - 1) * plan.iterations_per_epoch, min(epoch * plan.iterations_per_epoch, plan.iterations)
        done = state.iteration
        self._epoch, self._losses = epoch, []
        if done > begin:  # resumed inside this epoch
            rows = self.context.broadcast(read_since(self.journal.iterations, begin) if self.journal else None)
            self._losses = [row["train/loss"] for row in rows if row["iteration"] <= done]
        # saving a state is no training time
        self._started = time.monotonic() - state.seconds - self.timer.seconds["checkpoints"]

        def lr_at(iteration: int) -> float:
            return learning_rate(config.scheduler, config.optimizer.lr, plan, iteration, val_losses)

        self.timer.switch("data")
        permutation = epoch_permutation(config.seed, epoch, len(self.images)).to(self.device)
        batches = torch.split(permutation, plan.batch_size)
        augment = Augment(config.augment, config.seed, epoch, len(self.images), self.device)
        state.evaluated = False
        data = EpochData(self.images, self.labels, batches[done - begin : end - begin], augment)
        loop.train_epoch(self.learner, data, lr_at, done + 1, self)
        losses = loop.require_finite(to_floats(self._losses), begin, lr_at)  # waits for a GPU
        seconds = self._epoch_seconds()
        results = self._score(*self.validation)
        row: Row = {
            "epoch": epoch,
            "iteration": end,
            "train/epoch_loss": loop.mean_loss(losses, batches[: end - begin]),
        }
        if self.train_eval is not None:
            trained = self._score(*self.train_eval)
            row |= {"train/eval_loss": trained.loss, "train/eval_accuracy": trained.accuracy}
        row |= {
            "val/loss": results.loss,
            "val/accuracy": results.accuracy,
            "lr": lr_at(end),
            "seconds": round(seconds, 3),
        }
        row = self.context.broadcast(row)
        self._record_epoch(row, results)
        state.evaluated, state.seconds = True, 0.0
        self._save()
        return row

    def _epoch_seconds(self) -> float:
        """Return the seconds of training in this epoch, over all attempts."""
        return time.monotonic() - self._started - self.timer.seconds["checkpoints"]

    def switch_section(self, section: str) -> None:
        """Count the time from now on as ``section``; called by `loop.train_epoch`."""
        self.timer.switch(section)

    def on_step_end(self, iteration: int, loss: Scalar, lr: float, grad_norm: Scalar | None) -> None:
        """Record an update, save the state in time, raise Interrupted after a signal; called by `loop.train_epoch`."""
        if self.journal is not None:
            self.journal.log_iteration(iteration, self._epoch, loss, lr, grad_norm)
        self._losses.append(loss)
        self.state.iteration = iteration
        self.progress.show_iteration(iteration, self._epoch, loss, lr)
        # several processes have agreed before the update, with the exchange of the loss
        stop, save, not_finite = self._control_flags() if self.context.size == 1 else self.context.synced_flags
        if not_finite:
            self._raise_if_nonfinite()
        if stop or save:
            self.state.seconds = self._epoch_seconds()
            self._save()
            if stop:
                raise Interrupted(stop)

    def _score(self, images: Tensor, labels: Tensor) -> scoring.ExampleResults:
        """Score images as they are by the weights as they are, in evaluation mode."""
        with self.timer.section("evaluation"):
            images, labels = self.context.shard(images), self.context.shard(labels)
            results = scoring.score_examples(inference.predict(self.evaluation_network, images), labels)
            return scoring.concat(self.context.all_gather(results))

    def _record_epoch(self, row: Row, results: scoring.ExampleResults) -> None:
        """Write the weights and the per-example results, then the row that says they are there."""
        with self.timer.section("checkpoints"):
            # single precision is enough for a standard error; labels fit into a byte
            losses, predicted = results.losses.float(), results.predicted.to(torch.uint8)
            validation = {"losses": losses, "correct": results.correct, "predicted": predicted}
            if self.folder is not None:
                epoch = int(row["epoch"])
                values = {"network": self.network.state_dict(), "epoch": epoch, "validation": validation}
                checkpoint.save(checkpoint.weights_path(self.folder, epoch), values)
        if self.journal is not None:
            with self.timer.section("tracking"):
                self.journal.log_epoch(row)

    def _save(self) -> None:
        """Save the state to resume from, unless the weights are spoiled."""
        with self.timer.section("checkpoints"):
            if self.journal is not None:
                self.journal.flush(sync=True)  # the journal never falls behind the weights
            self._raise_if_nonfinite()
            self.state.save(self.folder)
        self._saved = time.monotonic()

    def _control_flags(self) -> tuple[int, int, int]:
        """Return a signal's number, whether to save, and whether the journal met a loss of a GPU that is not finite."""
        signum = self.stop[0] if self.stop else 0
        if self.journal is None:
            return signum, 0, 0
        save = time.monotonic() - self._saved > self.config.checkpoint.every_seconds
        return signum, save, self.journal.not_finite is not None

    def _raise_if_nonfinite(self) -> None:
        """Raise NonFiniteLoss if the journal of rank 0 met a loss that is not finite."""
        update = self.context.broadcast(self.journal.not_finite if self.journal is not None else None)
        if update is not None:
            raise NonFiniteLoss(*update)
