"""Read a split: its summary, and its images and labels as tensors."""

from __future__ import annotations

import functools
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestepoch.base import files, paths
from bestepoch.base.checksums import checksum_of, part_checksum
from bestepoch.base.errors import UsageError, first_line

if TYPE_CHECKING:
    import torch

# keys of summary.json that are read; more are there
KEYS = {"name", "request", "files", "image", "classes", "sizes", "pixel_mean", "pixel_std", "checksums", "checksum"}


@dataclass(frozen=True, eq=False)
class Split:
    """A split as described by its ``summary.json``. Splits are equal if folder and checksum are equal."""

    folder: Path
    values: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Split:
        """Read ``folder/summary.json``. Raises UsageError if the file is missing, is not JSON or lacks a key."""
        path, remedy = folder / "summary.json", _remedy(folder)
        values = files.read_json(path, remedy)
        if not isinstance(values, dict) or (missing := KEYS - values.keys()):
            what = f"has no {', '.join(sorted(missing))}" if isinstance(values, dict) else "holds no keys"
            raise UsageError(f"{paths.display_path(path)} {what}. Make it anew with: {remedy}")
        return cls(folder, values)

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


def load_part(folder: Path, part: str, checksum: str | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Load one part of a split: "train", "validation" or "test".

    Only the evaluation stage loads "test".

    Args:
        folder: the folder of the split.
        part: the part.
        checksum: what `checksums.part_checksum` must return; by default what the split's ``summary.json`` has.

    Returns:
        images, uint8 ``(N, H, W)``, and labels, int64 ``(N,)``, on the CPU.

    Raises:
        UsageError: the file of the part is missing, damaged, or not the one that `split` wrote.
    """
    import numpy as np
    import torch

    path, remedy = folder / f"{part}.npz", _remedy(folder)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, labels = arrays["images"], arrays["labels"]
    except FileNotFoundError:
        raise UsageError(f"{paths.display_path(path)} is not there. Make it with: {remedy}") from None
    except (ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"{paths.display_path(path)} is damaged ({first_line(error)}). Make it anew with: {remedy}"
        ) from None
    checksum = checksum or Split.read(folder).values["checksums"][part]
    if (found := checksum_of(path, lambda: part_checksum(images, labels))) != checksum:
        raise UsageError(
            f"{paths.display_path(path)} is not what split wrote: its checksum is {found[:12]}, and summary.json has "
            f"{checksum[:12]}. Make it anew with: {remedy}"
        )
    return torch.from_numpy(images), torch.from_numpy(labels).long()


@functools.lru_cache(maxsize=4)
def load_cached(split: Split, part: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Load a part onto ``device``. All jobs of this process share the tensors and must not modify them."""
    images, labels = load_part(split.folder, part, split.values["checksums"][part])
    return images.to(device), labels.to(device)


def read_pipeline_split() -> Split:
    """Return the split that ``dvc repro`` made in ``data/split``.

    Raises:
        UsageError: the split does not exist.
    """
    return Split.read(paths.project_root() / "data/split")


def _remedy(folder: Path) -> str:
    """Return the command that makes the split in ``folder`` anew."""
    if folder.parent.name != "prepared":
        return "dvc repro split"
    return f"rm -r {paths.display_path(folder)}, then the same command as before"
