"""The types that settings share."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
)


class StrictModel(BaseModel):
    """Frozen base model that rejects unknown keys, NaN and infinities and converts no types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Fraction = Annotated[float, Field(ge=0, lt=1)]
Activation = Literal["relu", "gelu", "tanh", "sigmoid"]
Metric = Literal["train/epoch_loss", "val/loss", "val/accuracy", "epoch", "iteration", "lr", "seconds", "time"]
"""The columns of epochs.csv."""
Mode = Literal["min", "max"]


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
