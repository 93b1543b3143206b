"""A data set of random images, as the fetch stage leaves it, and the parts that the split makes of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bestepoch.base.idx import encode_idx

PARTS = ("train", "validation", "test")


Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Raw:
    """A data set before it is split."""

    images: Bytes
    labels: Bytes
    test_images: Bytes
    test_labels: Bytes

    def write(self, folder: Path, name: str = "invented") -> Path:
        """As the fetch stage leaves it."""
        folder.mkdir(parents=True)
        arrays = {
            "train_images": self.images,
            "train_labels": self.labels,
            "test_images": self.test_images,
            "test_labels": self.test_labels,
        }
        for role, array in arrays.items():
            (folder / f"{role}.gz").write_bytes(encode_idx(array))
        about = {
            "name": name,
            "requested": f"{name}, in full",
            "source": "nowhere",
            "files": {role: {"name": f"{role}.gz", "md5": "?"} for role in arrays},
        }
        (folder / "dataset.json").write_text(json.dumps(about))
        return folder


def invented(per_class: list[int], tests: int = 3, shape: tuple[int, int] = (5, 4), seed: int = 0) -> Raw:
    """Random images, no two alike, in random order; ``tests`` of each class for testing."""
    draw = np.random.default_rng(seed)
    labels = draw.permutation(np.repeat(np.arange(len(per_class)), per_class)).astype(np.uint8)
    test_labels = draw.permutation(np.repeat(np.arange(len(per_class)), tests)).astype(np.uint8)
    images = draw.integers(0, 256, (len(labels) + len(test_labels), *shape), np.uint8)
    assert len({image.tobytes() for image in images}) == len(images)
    return Raw(images[: len(labels)], labels, images[len(labels) :], test_labels)


def parts_of(folder: Path) -> dict[str, tuple[Bytes, Bytes]]:
    """What is on the disk, read without this project's reader."""
    parts = {}
    for part in PARTS:
        with np.load(folder / f"{part}.npz", allow_pickle=False) as arrays:
            assert sorted(arrays) == ["images", "labels"]
            parts[part] = arrays["images"], arrays["labels"]
    return parts


MINE = """\
# Twelve by twenty, 256 kinds.
kind: idx
name: mine
mirrors: [my/files]
files:
  train_images: train_images.gz
  train_labels: train_labels.gz
  test_images: test_images.gz
  test_labels: test_labels.gz
"""


OWN = invented([6] * 256, tests=1, shape=(12, 20))
