"""The types that settings share."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError


class StrictModel(BaseModel):
    """Frozen base model that rejects unknown keys, NaN and infinities and converts no types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Fraction = Annotated[float, Field(ge=0, lt=1)]
Activation = Literal["relu", "gelu", "tanh", "sigmoid"]
Metric = Literal[
    "train/epoch_loss",
    "train/eval_loss",
    "train/eval_accuracy",
    "val/loss",
    "val/accuracy",
    "epoch",
    "iteration",
    "lr",
    "seconds",
    "time",
]
"""The columns of epochs.csv."""
Mode = Literal["auto", "min", "max"]
"""Which value of a metric is best; auto is the metric's own direction."""


def best_direction(metric: str) -> Literal["min", "max"]:
    """Return ``max`` for an accuracy and ``min`` for a loss and all other columns."""
    return "max" if metric.endswith("accuracy") else "min"


class MetricChoice(StrictModel):
    """A column of epochs.csv and which of its values is best; ``mode`` is min or max once it is validated."""

    metric: Metric
    mode: Mode

    @model_validator(mode="before")
    @classmethod
    def _resolve_mode(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("mode") == "auto" and isinstance(values.get("metric"), str):
            return {**values, "mode": best_direction(values["metric"])}
        return values

    @model_validator(mode="after")
    def _check_direction(self) -> Self:
        best = best_direction(self.metric)
        if self.mode != best and self.metric.endswith(("loss", "accuracy")):
            raise PydanticCustomError(
                "together",
                f"mode = {self.mode} would take the worst {self.metric} for the best: set mode=auto or mode={best}",
            )
        return self


def check_plain_name(value: str) -> str:
    """Return the name unchanged if it is safe as one component of a path.

    Raises:
        ValueError: The name contains a path separator or another character that is not allowed.
    """
    if not re.fullmatch(r"\w(?:[\w .-]{0,98}[\w-])?", value):
        raise ValueError(
            "must be a plain name: letters, digits, spaces, '.', '_' and '-', at most 100, with a letter, a digit or "
            "'_' first and no '.' or space last"
        )
    return value


PlainName = Annotated[str, AfterValidator(check_plain_name)]
"""A name that becomes part of a path, a URL or another name."""
