"""Stage 2: the official training images become training and validation images; the official test set stays as it is."""

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

from bestepoch.base import files, paths
from bestepoch.base.config.schema import Config, SplitConfig
from bestepoch.base.errors import UsageError
from bestepoch.base.idx import read_idx
from bestepoch.base.shutdown import stop_when_dvc_exits

if TYPE_CHECKING:
    from bestepoch.base.idx import Bytes

log = logging.getLogger("bestepoch")
PARTS = ("train", "validation", "test")


def main(config: Config) -> None:
    """``data/raw`` to ``data/split``."""
    out = paths.project_root() / "data/split"
    stop_when_dvc_exits()
    summary = split_data(paths.project_root() / "data/raw", out, config.split)
    log_split(summary)


def log_split(summary: dict[str, Any]) -> None:
    """Say what the split holds, and whatever is unusual about it."""
    sizes = ", ".join(f"{summary['sizes'][part]:,} {part}" for part in PARTS)
    log.info("%s: %s images of %d classes", summary["name"], sizes, summary["classes"])
    for found in summary["duplicates"].values():
        if found["count"]:
            log.warning("warning: %d %s", found["count"], found["what"])


def split_data(raw: Path, out: Path, how: SplitConfig) -> dict[str, Any]:
    """Read the four IDX files that `fetch` put into ``raw`` and write three npz files and ``summary.json``.

    Stratified and seeded; a share, or one fold of k. An image stays in one part, by the hash of its content: a training
    image that is also a test image is left out, and a validation image that is also a training image goes there.

    Returns:
        the summary.

    Raises:
        UsageError: files that do not fit each other, or a size that cannot be had.
    """
    about = files.read_json(raw / "dataset.json", "dvc repro data.dvc")
    names = about["files"]
    images, labels = _read_pair(raw, names["train_images"]["name"], names["train_labels"]["name"])
    test_images, test_labels = _read_pair(raw, names["test_images"]["name"], names["test_labels"]["name"])
    if images.shape[1:] != test_images.shape[1:]:
        raise UsageError(f"Training images are {images.shape[1:]} pixels, test images {test_images.shape[1:]}")

    ours, theirs = _hash_images(images), set(_hash_images(test_images))
    leaked = np.array([h in theirs for h in ours], bool)
    kept = np.flatnonzero(~leaked)
    train, validation = (
        _split_stratified(labels, kept, how) if how.folds is None else _split_fold(labels, kept, ours, how)
    )
    in_train = {ours[i] for i in train}
    moved = np.array([ours[i] in in_train for i in validation], bool)
    twins = validation[moved]
    train, validation = np.sort(np.concatenate([train, twins])), validation[~moved]
    if not len(validation):
        raise UsageError("Every validation image is also a training image: nothing is left to validate on")

    parts = {
        "train": (images[train], labels[train]),
        "validation": (images[validation], labels[validation]),
        "test": (test_images, test_labels),
    }
    classes = int(max(labels.max(), test_labels.max())) + 1
    checksums = {part: _checksum(*arrays) for part, arrays in parts.items()}
    mean, deviation = _pixel_moments(parts["train"][0])
    summary: dict[str, Any] = {
        "name": about["name"],
        "request": {"data": about["requested"], "split": how.model_dump()},
        "source": about["source"],
        "files": names,
        "image": list(images.shape[1:]),
        "classes": classes,
        "sizes": {part: len(arrays[1]) for part, arrays in parts.items()},
        "per_class": {part: np.bincount(arrays[1], minlength=classes).tolist() for part, arrays in parts.items()},
        "seed": how.seed,
        # of the training images alone, for the normalisation
        "pixel_mean": round(mean, 4),
        "pixel_std": round(max(deviation, 1e-3), 4),
        "duplicates": {
            "left_out": {
                "what": "training images are also test images and were left out of training and validation",
                "count": int(leaked.sum()),
                "indices": np.flatnonzero(leaked).tolist(),
            },
            "moved": {
                "what": "validation images are also training images and were moved there",
                "count": len(twins),
                "indices": twins.tolist(),
            },
        },
        "checksums": checksums,
        "checksum": hashlib.sha256("".join(checksums.values()).encode()).hexdigest(),
    }
    _write_split(out, parts, summary)
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
    """Mean and standard deviation of the pixels; `ndarray.std` would take eight times the memory of all of them."""
    parts = np.array_split(images, len(images) // 1000 + 1)
    counts = sum((np.bincount(part.ravel(), minlength=256) for part in parts), np.zeros(256, np.int64))
    # in whole numbers: sums of fractions differ between processors, and what is rounded with them
    values = np.arange(256)
    total, first, second = (int(counts @ values**power) for power in range(3))
    return first / total, ((total * second - first**2) / total**2) ** 0.5


def _split_stratified(labels: Bytes, kept: NDArray[Any], how: SplitConfig) -> tuple[NDArray[Any], NDArray[Any]]:
    """Indices (sorted) into ``labels`` for training and for validation."""
    from sklearn.model_selection import train_test_split

    n, wanted = len(kept), how.validation
    if not n:
        raise UsageError("Every training image is also a test image: nothing is left to train on")
    count = round(wanted * n) if wanted < 1 else int(wanted)
    present, sizes = np.unique(labels[kept], return_counts=True)
    most = n - len(present)
    if not len(present) <= count <= most:
        raise UsageError(
            f"split.validation = {wanted} asks for {count:,} of {n:,} images; with {len(present)} classes, each in "
            f"both parts, {len(present):,} to {most:,} are possible"
        )
    if sizes.min() < 2:
        raise UsageError(
            f"Class {present[sizes.argmin()]} has {sizes.min()} training image; a stratified split needs at least 2"
        )
    train, validation = train_test_split(kept, test_size=count, random_state=how.seed, stratify=labels[kept])
    return np.sort(train), np.sort(validation)


def _split_fold(
    labels: Bytes, kept: NDArray[Any], hashes: list[bytes], how: SplitConfig
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The same for one fold of k: over all folds, each image is held out exactly once.

    Images are dealt out by their content, so that equal ones are in the same fold.
    """
    from sklearn.model_selection import StratifiedKFold

    assert how.folds is not None and how.fold is not None  # the caller has looked
    _, first, content = np.unique(np.array([hashes[i] for i in kept]), return_index=True, return_inverse=True)
    contents = labels[kept][first]
    present, sizes = np.unique(contents, return_counts=True)
    if not len(sizes) or sizes.min() < how.folds:
        least = (
            f"class {present[sizes.argmin()]} has {sizes.min()} different images" if len(sizes) else "there are none"
        )
        raise UsageError(f"split.folds = {how.folds} needs as many training images of each class; {least}")
    dealt = StratifiedKFold(how.folds, shuffle=True, random_state=how.seed).split(contents, contents)
    held_out = np.zeros(len(first), bool)
    held_out[[validation for _, validation in dealt][how.fold]] = True
    out = held_out[content]
    return kept[~out], kept[out]


def _checksum(images: Bytes, labels: Bytes) -> str:
    digest = hashlib.sha256(repr(images.shape).encode())
    digest.update(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(labels).data)
    return digest.hexdigest()


def _write_split(out: Path, parts: dict[str, tuple[Bytes, Bytes]], summary: dict[str, Any]) -> None:
    """All four files beside, then renamed into ``out``; the summary last, since it vouches for the rest."""
    out.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        for part, (images, labels) in parts.items():
            buffer = io.BytesIO()
            np.savez(buffer, images=images, labels=labels)
            (beside / f"{part}.npz").write_bytes(buffer.getvalue())
        (out / "summary.json").unlink(missing_ok=True)
        for part in parts:
            (beside / f"{part}.npz").replace(out / f"{part}.npz")
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    files.write_json(out / "summary.json", summary)
