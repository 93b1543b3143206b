"""Schema of the config groups in ``conf/``: one class per option, with the type and range of every setting."""

from __future__ import annotations

import functools
import logging
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from pydantic_core import PydanticCustomError

from bestepoch.base.config.types import Activation, Fraction, MetricChoice, StrictModel

log = logging.getLogger("bestepoch")
# Old keys of `CnnConfig` that one more release accepts.
RENAMED_KEYS = {"kernels": "kernel_sizes", "pools": "pool_sizes"}


@functools.cache
def new_key(old: str) -> str:
    """Return the new name of a key in `RENAMED_KEYS` and warn once per process."""
    log.warning("warning: model.%s is now model.%s; the next release refuses the old name", old, RENAMED_KEYS[old])
    return RENAMED_KEYS[old]


class MlpConfig(StrictModel):
    """``model=mlp``: fully connected layers of the widths `hidden`."""

    name: Literal["mlp"]
    hidden: Annotated[list[PositiveInt], Field(min_length=1)]
    activation: Activation
    dropout: Fraction


class LenetConfig(StrictModel):
    """``model=lenet``: LeNet-5."""

    name: Literal["lenet"]
    activation: Activation
    dropout: Fraction


class CnnConfig(StrictModel):
    """``model=cnn``: convolution layers; the four lists hold one entry per layer."""

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
    def _rename_old_keys(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        # When the new key is present too, the old key stays and is rejected as unknown.
        return {key if RENAMED_KEYS.get(key, key) in values else new_key(key): value for key, value in values.items()}


class OptimizerConfig(StrictModel):
    """Fields shared by all optimizers."""

    lr: PositiveFloat
    weight_decay: NonNegativeFloat
    l1: NonNegativeFloat


class SgdConfig(OptimizerConfig):
    """``optimizer=sgd``: `torch.optim.SGD`."""

    name: Literal["sgd"]
    momentum: Fraction
    nesterov: bool

    @model_validator(mode="after")
    def _check_nesterov_momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise PydanticCustomError(
                "together",
                "optimizer.nesterov = true needs a momentum: give one, such as optimizer.momentum=0.9, "
                "or optimizer.nesterov=false",
            )
        return self


class AdamConfig(OptimizerConfig):
    """``optimizer=adam``: `torch.optim.Adam`."""

    name: Literal["adam"]
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)]


class AdamWConfig(OptimizerConfig):
    """``optimizer=adamw``: `torch.optim.AdamW`."""

    name: Literal["adamw"]
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)]


class RmsPropConfig(OptimizerConfig):
    """``optimizer=rmsprop``: `torch.optim.RMSprop`."""

    name: Literal["rmsprop"]
    alpha: Fraction
    momentum: Fraction


class WarmupConfig(StrictModel):
    """Fields shared by the schedules that start with a linear warm-up."""

    warmup_epochs: NonNegativeFloat


class ConstantSchedulerConfig(WarmupConfig):
    """``scheduler=constant``: a constant learning rate."""

    name: Literal["constant"]


class StepSchedulerConfig(WarmupConfig):
    """``scheduler=step``: multiply the learning rate by `gamma` every `step_size` epochs."""

    name: Literal["step"]
    step_size: PositiveInt
    gamma: PositiveFloat


class ExponentialSchedulerConfig(WarmupConfig):
    """``scheduler=exponential``: multiply the learning rate by `gamma` every epoch."""

    name: Literal["exponential"]
    gamma: PositiveFloat


class CosineSchedulerConfig(WarmupConfig):
    """``scheduler=cosine``: anneal the learning rate to `eta_min` along half a cosine."""

    name: Literal["cosine"]
    eta_min: NonNegativeFloat


class OneCycleSchedulerConfig(StrictModel):
    """``scheduler=onecycle``: the parameters of `torch.optim.lr_scheduler.OneCycleLR`."""

    name: Literal["onecycle"]
    pct_start: Annotated[float, Field(gt=0, lt=1)]
    div_factor: Annotated[float, Field(ge=1)]
    final_div_factor: Annotated[float, Field(ge=1)]


class PlateauSchedulerConfig(WarmupConfig):
    """``scheduler=plateau``: the parameters of `torch.optim.lr_scheduler.ReduceLROnPlateau`."""

    name: Literal["plateau"]
    factor: Annotated[float, Field(gt=0, lt=1)]
    patience: NonNegativeInt
    threshold: NonNegativeFloat
    min_lr: NonNegativeFloat


class NoAugmentConfig(StrictModel):
    """``augment=none``: no augmentation."""

    name: Literal["none"]


class ShiftConfig(StrictModel):
    """``augment=shift``: translate by up to `pixels` in each direction."""

    name: Literal["shift"]
    pixels: PositiveInt


class AffineConfig(StrictModel):
    """``augment=affine``: random rotation (degrees), scaling, shear (degrees) and translation."""

    name: Literal["affine"]
    degrees: NonNegativeFloat
    scale: Fraction
    shear: NonNegativeFloat
    translate: NonNegativeFloat


class NoStoppingConfig(StrictModel):
    """``stopping=none``: no early stopping."""

    name: Literal["none"]


class EarlyStoppingConfig(MetricChoice):
    """Fields shared by all early-stopping criteria."""

    min_delta: NonNegativeFloat
    relative: bool
    warmup_epochs: NonNegativeInt
    max_seconds: PositiveFloat | None


class PatienceStoppingConfig(EarlyStoppingConfig):
    """``stopping=patience``: stop after `patience` epochs without an improvement."""

    name: Literal["patience"]
    patience: PositiveInt


class PlateauStoppingConfig(EarlyStoppingConfig):
    """``stopping=plateau``: compare the mean metric of the last `window` epochs with that of the `window` before."""

    name: Literal["plateau"]
    window: PositiveInt


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
