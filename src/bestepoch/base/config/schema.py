"""Schema of the whole configuration: every setting with its type and range.

`groups` holds one class per option of a config group; `messages` rewrites validation errors for users.
"""

from __future__ import annotations

import math
import os
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

from bestepoch.base.config.data_sets import DataChoice
from bestepoch.base.config.groups import AugmentChoice, ModelChoice, OptimizerChoice, SchedulerChoice, StoppingChoice
from bestepoch.base.config.types import Fraction, MetricChoice, PlainName, StrictModel, check_plain_name

Seed = Annotated[int, Field(ge=0, lt=2**32)]


def _check_results_folder(value: str) -> str:
    first, *names = PurePosixPath(value).parts or ("",)
    if first != "results" or not names:
        raise ValueError("must be a folder below results/, such as results/train")
    for name in names:
        check_plain_name(name)
    return value


ResultsFolder = Annotated[str, AfterValidator(_check_results_folder)]


def _check_runs(value: Any) -> Any:
    is_list = isinstance(value, list) and value and all(isinstance(name, str) for name in value)
    if not (value is None or isinstance(value, str) or is_list):
        raise ValueError("must be a run's folder, or a list of them such as [runs/a,runs/b]")
    return value


class FetchConfig(StrictModel):
    """Downloads: `timeout` in seconds, `min_speed` in kB/s, `retries` per mirror."""

    timeout: PositiveFloat
    min_speed: NonNegativeFloat
    retries: NonNegativeInt


def _check_fraction_or_count(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        value = 0
    if not (0 < value < 1 or value == int(value) >= 1):
        raise ValueError("must be a share between 0 and 1 (0.1) or a count of images (6000)")
    return value


class SplitConfig(StrictModel):
    """Train/validation split: a fraction or count of validation images, or fold `fold` of `folds`."""

    validation: Annotated[Any, AfterValidator(_check_fraction_or_count)]
    seed: Seed
    folds: Annotated[int, Field(ge=2)] | None
    fold: NonNegativeInt | None

    @model_validator(mode="after")
    def _check_fold(self) -> Self:
        if (self.folds is None) != (self.fold is None):
            raise PydanticCustomError(
                "together",
                "split.folds and split.fold go together: split.folds=5 split.fold=0 validates on the first of five "
                "parts, and with -m split.fold='range(5)' on each of them",
            )
        if self.folds is not None and self.fold is not None and self.fold >= self.folds:
            raise PydanticCustomError(
                "together", f"split.fold = {self.fold} is none of {self.folds} folds: 0 to {self.folds - 1}"
            )
        return self


class TrainConfig(StrictModel):
    """Length of training, in epochs or iterations, the global batch size and the scoring of training images."""

    epochs: PositiveInt | None
    iterations: PositiveInt | None
    batch_size: PositiveInt
    eval_images: NonNegativeInt | None

    @model_validator(mode="after")
    def _check_length_given(self) -> Self:
        if self.epochs is None and self.iterations is None:
            raise PydanticCustomError(
                "together", "train.epochs and train.iterations are both null: give one, such as train.epochs=6"
            )
        return self


class LossConfig(StrictModel):
    """Cross-entropy loss."""

    label_smoothing: Fraction


def _check_threads(value: int) -> int:
    if value > (cores := os.cpu_count() or value):
        raise ValueError(f"must be at most {cores}, the processors of this machine")
    return value


class DeviceConfig(StrictModel):
    """Device, CPU threads, autocast precision and CUDA graphs."""

    name: Literal["auto", "cuda", "mps", "cpu"]
    threads: Annotated[PositiveInt, AfterValidator(_check_threads)] | None
    precision: Literal["auto", "float32", "bfloat16"]
    cuda_graphs: Literal["auto", True, False]


def _check_odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("must be odd, so that the window has a middle: 1, 3, 5 ...")
    return value


class SelectionConfig(MetricChoice):
    """Choice of the best epoch; `smoothing` is the window of a centred average over epochs."""

    rule: Literal["best", "one_standard_error"]
    smoothing: Annotated[PositiveInt, AfterValidator(_check_odd)]


class CheckpointConfig(StrictModel):
    """Seconds between checkpoints within an epoch."""

    every_seconds: PositiveFloat


class TrackingConfig(StrictModel):
    """Experiment trackers and what they get; the end of a run waits up to `drain_seconds` for them."""

    mlflow: bool
    tensorboard: bool
    experiment: PlainName
    drain_seconds: NonNegativeFloat
    grad_norm: bool
    system_metrics: bool
    histograms: bool


class RegistryConfig(StrictModel):
    """MLflow's model registry."""

    enabled: bool


class SweepOptions(StrictModel):
    """Options of a sweep that ``-m`` starts."""

    fail_fast: bool


def _sweep_tag(value: Any) -> str:
    return "folder" if isinstance(value, str) else "options"


# `sweep=runs/sweeps/<name>` selects a finished sweep; `sweep.fail_fast=true` sets an option of a new one.
SweepChoice = Annotated[
    Annotated[SweepOptions, Tag("options")] | Annotated[str, Tag("folder")], Discriminator(_sweep_tag)
]


class Config(StrictModel):
    """The complete configuration of one run, as ``python -m bestepoch.train --cfg job --resolve`` prints it."""

    data: DataChoice
    model: ModelChoice
    optimizer: OptimizerChoice
    scheduler: SchedulerChoice
    augment: AugmentChoice
    stopping: StoppingChoice
    seed: Seed
    fetch: FetchConfig
    split: SplitConfig
    train: TrainConfig
    loss: LossConfig
    device: DeviceConfig
    selection: SelectionConfig
    checkpoint: CheckpointConfig
    tracking: TrackingConfig
    registry: RegistryConfig
    sweep: SweepChoice
    run: Annotated[Any, AfterValidator(_check_runs)]
    publish: ResultsFolder | None

    @model_validator(mode="after")
    def _check_metrics_exist(self) -> Self:
        for key in ("selection", "stopping"):
            metric = getattr(getattr(self, key), "metric", "")
            if metric.startswith("train/eval_") and self.train.eval_images == 0:
                raise PydanticCustomError(
                    "together",
                    f"{key}.metric = {metric} needs training images to be scored, and train.eval_images = 0 scores "
                    "none: set train.eval_images=null (as many as validation has) or a number",
                )
        return self

    def training(self) -> dict[str, Any]:
        """Return the settings that influence the training result; with data and code they identify a run."""
        keys = {"model", "optimizer", "scheduler", "augment", "stopping", "seed", "split", "train", "loss", "device"}
        # CUDA graphs do not change the result.
        return {"data": self.data.name, **self.model_dump(include=keys, exclude={"device": {"cuda_graphs"}})}
