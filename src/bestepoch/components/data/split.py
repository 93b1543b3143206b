"""Read a split: its summary, and its images and labels as tensors."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestepoch.base import files, paths
from bestepoch.base.errors import UsageError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Split:
    """A split as described by its ``summary.json``. Splits are equal if folder and checksum are equal."""

    folder: Path
    values: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Split:
        """Read ``folder/summary.json``. Raises UsageError if the file is missing or is not JSON."""
        return cls(folder, files.read_json(folder / "summary.json", "dvc repro split"))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Split) and (self.folder, self.checksum) == (other.folder, other.checksum)

    def __hash__(self) -> int:
        return hash((self.folder, self.checksum))

    @property
    def name(self) -> str:
        """The data set of the images: the sample's name if the sample replaces the requested data set."""
        return str(self.values["name"])

    @property
    def requested(self) -> str:
        """The requested data set."""
        return str(self.values["request"]["data"])

    @property
    def checksum(self) -> str:
        """SHA-256 of the images and labels of all parts, in hexadecimal."""
        return str(self.values["checksum"])

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width ``(H, W)`` of an image, in pixels."""
        height, width = self.values["image"]
        return height, width

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.values["classes"])

    @property
    def offline_sample(self) -> bool:
        """Whether the offline sample replaces the requested data set, because no mirror answered."""
        return self.name != self.requested


def load_part(folder: Path, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Load one part of a split: "train", "validation" or "test".

    Only the evaluation stage loads "test".

    Returns:
        images, uint8 ``(N, H, W)``, and labels, int64 ``(N,)``, on the CPU.

    Raises:
        UsageError: the file of the part is missing.
    """
    import numpy as np
    import torch

    path = folder / f"{part}.npz"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"]).long()
    except FileNotFoundError:
        raise UsageError(f"{paths.display_path(path)} is not there. Make it with: dvc repro split") from None


@functools.lru_cache(maxsize=4)
def load_cached(split: Split, part: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Load a part onto ``device``. All jobs of this process share the tensors and must not modify them."""
    images, labels = load_part(split.folder, part)
    return images.to(device), labels.to(device)


def read_pipeline_split() -> Split:
    """Return the split that ``dvc repro`` made in ``data/split``.

    Raises:
        UsageError: the split does not exist.
    """
    return Split.read(paths.project_root() / "data/split")
