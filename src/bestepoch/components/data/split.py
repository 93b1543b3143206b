"""IDX files, the split on the disk, and images as tensors in memory, where a batch is an index."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestepoch.base import files, paths
from bestepoch.base.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Split:
    """What ``summary.json`` says of a split. Equal are those of the same bytes in the same place."""

    folder: Path
    values: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Split:
        """Raises UsageError where there is no split."""
        return cls(folder, files.read_json(folder / "summary.json", "dvc repro split"))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Split) and (self.folder, self.checksum) == (other.folder, other.checksum)

    def __hash__(self) -> int:
        return hash((self.folder, self.checksum))

    @property
    def name(self) -> str:
        """The data set that is really there: the sample's name where it stands in for another."""
        return str(self.values["name"])

    @property
    def requested(self) -> str:
        """The data set that was asked for."""
        return str(self.values["request"]["data"])

    @property
    def checksum(self) -> str:
        """SHA-256 over all three parts, images and labels."""
        return str(self.values["checksum"])

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of an image, in pixels."""
        height, width = self.values["image"]
        return height, width

    @property
    def classes(self) -> int:
        """How many labels there are."""
        return int(self.values["classes"])

    @property
    def offline_sample(self) -> bool:
        """Whether the sample stands in because no mirror answered."""
        return self.name != self.requested


def load_part(folder: Path, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """One part of a split: "train", "validation" or "test".

    Only the evaluation stage asks for "test".

    Returns:
        images, uint8 (n, height, width), and labels, int64 (n,).
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
    """`load`, on the device, and once for all jobs that this process trains; nobody may change the tensors."""
    images, labels = load_part(split.folder, part)
    return images.to(device), labels.to(device)
