"""Stage 2: split the official training images into training and validation; the official test set is kept as it is."""

from __future__ import annotations

import hashlib
import io
import logging
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bestepoch.base import files
from bestepoch.base.checksums import part_checksum
from bestepoch.base.config.schema import SplitConfig
from bestepoch.base.errors import UsageError
from bestepoch.base.idx import read_idx

if TYPE_CHECKING:
    from bestepoch.base.idx import Bytes

log = logging.getLogger("bestepoch")
PARTS = ("train", "validation", "test")


def log_split(summary: dict[str, Any]) -> None:
    """Log the sizes of a split, and warn about duplicate images and about classes that a part lacks."""
    sizes = ", ".join(f"{summary['sizes'][part]:,} {part}" for part in PARTS)
    log.info("%s: %s images of %d classes", summary["name"], sizes, summary["classes"])
    for duplicates in summary["duplicates"].values():
        if duplicates["count"]:
            log.warning("warning: %d %s", duplicates["count"], duplicates["what"])
    for line in _describe_missing_classes(summary["per_class"]):
        log.warning("warning: %s", line)


def _describe_missing_classes(per_class: dict[str, list[int]]) -> list[str]:
    """Return a line for each kind of gap: labels that nothing has, and classes that training or another part lacks."""
    total = np.sum([per_class[part] for part in PARTS], axis=0)
    train, validation, test = (np.array(per_class[part]) for part in PARTS)
    kinds = (
        (total == 0, "no image has the label {}: the network gets an output for it all the same. Number labels from 0"),
        ((train == 0) & (total > 0), "no training image is of class {}: the network cannot learn it"),
        ((validation == 0) & (train > 0), "no validation image is of class {}: the best epoch is chosen without it"),
        ((test == 0) & (train > 0), "no test image is of class {}: the test accuracy says nothing of it"),
    )
    return [text.format(_format_classes(np.flatnonzero(mask))) for mask, text in kinds if mask.any()]


def _format_classes(classes: NDArray[Any]) -> str:
    """Return "3, 5 to 9" for sorted numbers."""
    runs = np.split(classes, np.flatnonzero(np.diff(classes) > 1) + 1)
    return ", ".join(f"{run[0]}" if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)


def split_data(raw: Path, output_dir: Path, config: SplitConfig) -> dict[str, Any]:
    """Split the four IDX files that `fetch` wrote to ``raw`` and write three npz files and ``summary.json``.

    The split is stratified and seeded; validation is a fraction, a count or one of k folds. The parts are disjoint by
    content hash: training images that equal a test image are left out, and validation images that equal a training
    image are moved to training.

    Returns:
        the content of ``summary.json``.

    Raises:
        UsageError: the files are inconsistent, or the requested validation size is impossible.
    """
    metadata = files.read_json(raw / "dataset.json", "dvc repro data.dvc")
    names = metadata["files"]
    images, labels = _read_pair(raw, names["train_images"]["name"], names["train_labels"]["name"])
    test_images, test_labels = _read_pair(raw, names["test_images"]["name"], names["test_labels"]["name"])
    if images.shape[1:] != test_images.shape[1:]:
        raise UsageError(f"Training images are {images.shape[1:]} pixels, test images {test_images.shape[1:]}")

    hashes, test_hashes = _hash_images(images), set(_hash_images(test_images))
    in_test = np.array([image_hash in test_hashes for image_hash in hashes], bool)
    candidates = np.flatnonzero(~in_test)
    if config.folds is None:
        train, validation = _split_stratified(labels, candidates, config)
    else:
        train, validation = _split_fold(labels, candidates, hashes, config)
    train_hashes = {hashes[i] for i in train}
    in_train = np.array([hashes[i] in train_hashes for i in validation], bool)
    moved = validation[in_train]
    train, validation = np.sort(np.concatenate([train, moved])), validation[~in_train]
    if not len(validation):
        raise UsageError("Every validation image is also a training image: nothing is left to validate on")

    parts = {
        "train": (images[train], labels[train]),
        "validation": (images[validation], labels[validation]),
        "test": (test_images, test_labels),
    }
    classes = int(max(labels.max(), test_labels.max())) + 1
    checksums = {part: part_checksum(*arrays) for part, arrays in parts.items()}
    mean, std = _pixel_moments(parts["train"][0])
    summary: dict[str, Any] = {
        "name": metadata["name"],
        "request": {"data": metadata["requested"], "split": config.model_dump()},
        "source": metadata["source"],
        "files": names,
        **({"mirrors": metadata["mirrors"]} if "mirrors" in metadata else {}),
        "image": list(images.shape[1:]),
        "classes": classes,
        "sizes": {part: len(arrays[1]) for part, arrays in parts.items()},
        "per_class": {part: np.bincount(arrays[1], minlength=classes).tolist() for part, arrays in parts.items()},
        "seed": config.seed,
        # The normalisation must not depend on validation or test images.
        "pixel_mean": round(mean, 4),
        "pixel_std": round(max(std, 1e-3), 4),
        "duplicates": {
            "left_out": {
                "what": "training images are also test images and were left out of training and validation",
                "count": int(in_test.sum()),
                "indices": np.flatnonzero(in_test).tolist(),
            },
            "moved": {
                "what": "validation images are also training images and were moved there",
                "count": len(moved),
                "indices": moved.tolist(),
            },
        },
        "checksums": checksums,
        "checksum": hashlib.sha256("".join(checksums.values()).encode()).hexdigest(),
    }
    _write_split(output_dir, parts, summary)
    return summary


def _read_pair(raw: Path, image_file: str, label_file: str) -> tuple[Bytes, Bytes]:
    images, labels = read_idx(raw / image_file, 3), read_idx(raw / label_file, 1)
    if len(images) != len(labels):
        raise UsageError(f"{image_file} holds {len(images):,} images but {label_file} {len(labels):,} labels")
    if images.size == 0:
        raise UsageError(f"{image_file} holds no pixel: its shape is {images.shape}")
    return images, labels


def _hash_images(images: Bytes) -> list[bytes]:
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images]


def _pixel_moments(images: Bytes) -> tuple[float, float]:
    """Return mean and standard deviation of the pixels; `ndarray.std` would need eight times the images' memory."""
    chunks = np.array_split(images, len(images) // 1000 + 1)
    counts = sum((np.bincount(chunk.ravel(), minlength=256) for chunk in chunks), np.zeros(256, np.int64))
    # Integers, because floating-point sums, and so the rounded results, differ between CPUs.
    values = np.arange(256)
    total, first, second = (int(counts @ values**power) for power in range(3))
    return first / total, ((total * second - first**2) / total**2) ** 0.5


def _split_stratified(
    labels: Bytes, candidates: NDArray[Any], config: SplitConfig
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the sorted training and validation indices, a stratified split of the indices ``candidates``."""
    from sklearn.model_selection import train_test_split

    n, size = len(candidates), config.validation
    if not n:
        raise UsageError("Every training image is also a test image: nothing is left to train on")
    count = round(size * n) if size < 1 else int(size)
    classes, sizes = np.unique(labels[candidates], return_counts=True)
    max_count = n - len(classes)
    if not len(classes) <= count <= max_count:
        raise UsageError(
            f"split.validation = {size} asks for {count:,} of {n:,} images; with {len(classes)} classes, each in "
            f"both parts, {len(classes):,} to {max_count:,} are possible"
        )
    if sizes.min() < 2:
        raise UsageError(
            f"Class {classes[sizes.argmin()]} has {sizes.min()} training image; a stratified split needs at least 2"
        )
    train, validation = train_test_split(
        candidates, test_size=count, random_state=config.seed, stratify=labels[candidates]
    )
    return np.sort(train), np.sort(validation)


def _split_fold(
    labels: Bytes, candidates: NDArray[Any], hashes: list[bytes], config: SplitConfig
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the training and validation indices of one of k folds; the k folds validate each image exactly once.

    Equal images are in the same fold.
    """
    from sklearn.model_selection import StratifiedKFold

    assert config.folds is not None and config.fold is not None
    candidate_hashes = np.array([hashes[i] for i in candidates])
    _, first, inverse = np.unique(candidate_hashes, return_index=True, return_inverse=True)
    unique_labels = labels[candidates][first]
    classes, sizes = np.unique(unique_labels, return_counts=True)
    if not len(sizes) or sizes.min() < config.folds:
        reason = (
            f"class {classes[sizes.argmin()]} has {sizes.min()} different images" if len(sizes) else "there are none"
        )
        raise UsageError(f"split.folds = {config.folds} needs as many training images of each class; {reason}")
    folds = StratifiedKFold(config.folds, shuffle=True, random_state=config.seed).split(unique_labels, unique_labels)
    unique_mask = np.zeros(len(first), bool)
    unique_mask[[validation for _, validation in folds][config.fold]] = True
    mask = unique_mask[inverse]
    return candidates[~mask], candidates[mask]


def _write_split(output_dir: Path, parts: dict[str, tuple[Bytes, Bytes]], summary: dict[str, Any]) -> None:
    """Write the npz files to a staging folder and rename them; ``summary.json`` is last and marks a complete split."""
    output_dir.mkdir(parents=True, exist_ok=True)
    staging_dir = Path(tempfile.mkdtemp(dir=output_dir.parent, prefix=f".{output_dir.name}."))
    try:
        for part, (images, labels) in parts.items():
            buffer = io.BytesIO()
            np.savez(buffer, images=images, labels=labels)
            (staging_dir / f"{part}.npz").write_bytes(buffer.getvalue())
        (output_dir / "summary.json").unlink(missing_ok=True)
        for part in parts:
            (staging_dir / f"{part}.npz").replace(output_dir / f"{part}.npz")
    finally:
        shutil.rmtree(staging_dir, ignore_errors=True)
    files.write_json(output_dir / "summary.json", summary)
