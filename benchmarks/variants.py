"""One training, tracked in one way, and the time it takes: run by tracking.py, in a process of its own.

The network, optimizer, rates, order and augmentation are the project's, the data are in memory, and every variant
validates once an epoch. The clock runs until the trackers have everything, and sees neither imports nor data loading.
It is around all of `bestepoch.training.session.train`, with its journal and checkpoints, but around the bare loop of
the others: they have no checkpoints, and their MLflow run is made before.
"""

from __future__ import annotations

import copy
import functools
import gc
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common

import bestepoch.train as command
from bestepoch.base.config.schema import Config
from bestepoch.cli.launch import launch
from bestepoch.components.data.split import Split
from bestepoch.components.schedules.learning_rate import learning_rate
from bestepoch.components.schedules.plan import make_plan
from bestepoch.runs.run import Run
from bestepoch.splitting.ensure import ensure_split
from bestepoch.training.session import Session


class Task:
    """What training needs, in memory, and PyTorch warmed up on a copy of it."""

    def __init__(self, config: Config) -> None:
        # imported here: bestepoch starts its trackers beside these imports, and is measured as it is
        import torch

        from bestepoch.components.data.split import load_cached
        from bestepoch.components.models import networks
        from bestepoch.training import optimizers
        from bestepoch.training.device import choose_device, resolve_auto, wrap_for_training

        self.split, self.device = ensure_split(config), choose_device(config.device)
        self.config = config = resolve_auto(config, self.device)
        values = self.split.values
        self.plan = make_plan(values["sizes"]["train"], config.train)
        # by what training calls, for which they are then in memory as well
        self.images, self.labels = load_cached(self.split, "train", self.device)
        self.held_images, self.held_labels = load_cached(self.split, "validation", self.device)
        torch.manual_seed(config.seed)
        self.network = networks.build_network(
            config.model, self.split.shape, self.split.classes, values["pixel_mean"], values["pixel_std"]
        )
        self.trained = wrap_for_training(config.device, self.network)
        self.trained_body = wrap_for_training(config.device, self.network.body)
        self.optimizer = optimizers.build_optimizer(config.optimizer, self.network)
        spare = copy.copy(self)
        spare.network = copy.deepcopy(self.network)
        spare.trained = wrap_for_training(config.device, spare.network)
        spare.optimizer = optimizers.build_optimizer(config.optimizer, spare.network)
        for index in spare.batches(1)[:20]:
            spare.loss(index).backward()
            spare.optimizer.step()
        spare.validate()

    def batches(self, epoch: int) -> Any:
        """The epoch's index tensors; its augmentation is drawn."""
        import torch

        from bestepoch.components.data.augment import Augment
        from bestepoch.components.data.order import epoch_permutation

        seed, images = self.config.seed, len(self.images)
        self.augment = Augment(self.config.augment, seed, epoch, images, self.device)
        return torch.split(epoch_permutation(seed, epoch, images), self.plan.batch_size)

    def set_rate(self, iteration: int) -> float:
        """The learning rate of this update, also given to the optimizer."""
        lr = learning_rate(self.config.scheduler, self.config.optimizer.lr, self.plan, iteration, [])
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def loss(self, index: Any) -> Any:
        """Of one batch, before its update."""
        return self.of(self.trained(self.augment(self.images[index], index)), self.labels[index])

    def of(self, logits: Any, labels: Any) -> Any:
        """The loss that is minimised."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits, labels, label_smoothing=self.config.loss.label_smoothing)

    def validate(self) -> None:
        """One pass over the validation images and as many training images."""
        from bestepoch.components.models import inference, scoring

        held = len(self.held_labels)
        for images, labels in ((self.held_images, self.held_labels), (self.images[:held], self.labels[:held])):
            scoring.score_examples(inference.predict(self.network, images), labels)


def epochs(task: Task, log: Callable[[int, Any, float], None]) -> None:
    """The loop that one writes by hand."""
    iteration = 0
    for epoch in range(1, task.plan.epochs + 1):
        task.network.train()
        for index in task.batches(epoch):
            iteration += 1
            lr = task.set_rate(iteration)
            loss = task.loss(index)
            task.optimizer.zero_grad()
            loss.backward()
            task.optimizer.step()
            log(iteration, loss, lr)
        task.validate()


def plain(task: Task) -> Callable[[], None]:
    """No tracking."""
    return lambda: epochs(task, lambda *_: None)


def dataloader(task: Task) -> Callable[[], None]:
    """No tracking; a Dataset whose transforms work on one image at a time, and a DataLoader with a process a core.

    The images are moved and normalised as torchvision's ToTensor, Normalize and a padded RandomCrop do it.
    """
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    summary, draws = task.split.values, torch.Generator().manual_seed(task.config.seed)
    images = task.images.numpy()

    class Images(Dataset[Any]):
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, i: int) -> tuple[Any, int]:
            wide = Image.new("L", (32, 32))
            wide.paste(Image.fromarray(images[i]), (2, 2))
            left, top = torch.randint(0, 5, (2,)).tolist()
            pixels = torch.frombuffer(
                bytearray(wide.crop((left, top, left + 28, top + 28)).tobytes()), dtype=torch.uint8
            )
            scaled = pixels.view(1, 28, 28).float().div(255)
            normalised = (scaled - summary["pixel_mean"] / 255) / (summary["pixel_std"] / 255)
            return normalised, int(task.labels[i])

    loader: Any = DataLoader(
        Images(),
        task.plan.batch_size,
        shuffle=True,
        num_workers=os.cpu_count() or 1,
        persistent_workers=True,
        generator=draws,
    )

    def work() -> None:
        iteration = 0
        for _ in range(task.plan.epochs):
            task.network.train()
            for inputs, labels in loader:
                iteration += 1
                task.set_rate(iteration)
                loss = task.of(task.trained_body(inputs), labels)
                task.optimizer.zero_grad()
                loss.backward()
                task.optimizer.step()
            task.validate()

    return work


def by_hand(task: Task) -> Callable[[], None]:
    """Two calls to each tracker after each update."""
    from mlflow import MlflowClient
    from torch.utils.tensorboard import SummaryWriter

    client, writer = MlflowClient(), SummaryWriter("runs/by-hand")
    run_id = client.create_run("0").info.run_id

    def log(iteration: int, loss: Any, lr: float) -> None:
        for key, value in (("train/loss", loss.item()), ("lr", lr)):
            client.log_metric(run_id, key, value, step=iteration)
            writer.add_scalar(key, value, iteration)

    def work() -> None:
        epochs(task, log)
        writer.close()
        client.set_terminated(run_id)

    return work


def lightning(task: Task) -> Callable[[], None]:
    """Lightning and its two loggers. Batches are made as in the other loops, so no DataLoader slows it."""
    import lightning as pl
    from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger
    from torch.nn.functional import cross_entropy
    from torch.utils.data import DataLoader

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = task.network

        def configure_optimizers(self) -> Any:
            return task.optimizer

        def training_step(self, index: Any, _: int) -> Any:
            lr = task.set_rate(self.global_step + 1)
            loss = task.loss(index)
            self.log_dict({"train/loss": loss, "lr": lr})
            return loss

        def validation_step(self, batch: Any, _: int) -> None:
            images, labels = batch
            self.log("val/loss", cross_entropy(self.network(images), labels), batch_size=len(labels))

    class Batches:
        def __len__(self) -> int:
            return task.plan.iterations_per_epoch

        def __iter__(self) -> Any:
            return iter(task.batches(trainer.current_epoch + 1))

    loggers = [MLFlowLogger(tracking_uri=os.environ["MLFLOW_TRACKING_URI"]), TensorBoardLogger("runs")]
    for logger in loggers:
        logger.experiment  # noqa: B018  # makes the run
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=task.plan.epochs,
        logger=loggers,
        log_every_n_steps=1,
        deterministic=True,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    held = list(zip(task.held_images.split(200), task.held_labels.split(200), strict=True))
    return lambda: trainer.fit(Module(), Batches(), DataLoader(held, batch_size=None))


def bestepoch(config: Config) -> None:
    """`python -m bestepoch.train` as it is, with a clock around its `train`."""
    inner = command.train

    def timed(config: Config, split: Split, session: Session | None = None) -> Run:
        from bestepoch.runs import checkpoint

        task = Task(config)
        run: Run
        seconds, run = clocked(lambda: inner(config, split, session))
        weights = checkpoint.load(checkpoint.weights_path(run.folder, task.plan.epochs))["network"]
        report(seconds, task, weights, config.tracking.mlflow)
        return run

    command.train = timed
    command.main(config)


def other(variant: Callable[[Task], Callable[[], None]], config: Config) -> None:
    """Any of the ways above."""
    task = Task(config)
    seconds, _ = clocked(variant(task))
    report(seconds, task, task.network.state_dict(), variant not in (plain, dataloader))


def clocked(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what ``work`` returns."""
    gc.collect()
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


def report(seconds: float, task: Task, weights: dict[str, Any], tracked: bool) -> None:
    """One line for tracking.py. The weights tell it whether it was the same training."""
    import torch

    if tracked:
        common.check(Path.cwd(), task.plan.iterations)
    digest = hashlib.sha256(b"".join(weights[name].contiguous().numpy().tobytes() for name in sorted(weights)))
    found = {"seconds": seconds, "iterations": task.plan.iterations, "threads": torch.get_num_threads()}
    found["precision"] = task.config.device.precision
    print(json.dumps({**found, "weights": digest.hexdigest()}))


VARIANTS: dict[str, Callable[[Config], None]] = {
    "plain": functools.partial(other, plain),
    "dataloader": functools.partial(other, dataloader),
    "lightning": functools.partial(other, lightning),
    "by-hand": functools.partial(other, by_hand),
    "bestepoch-off": bestepoch,
    "bestepoch": bestepoch,
}

if __name__ == "__main__":
    launch(VARIANTS[sys.argv.pop(1)])
