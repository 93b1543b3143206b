"""The split: stratified, seeded, without an image in two parts, and the same for any IDX data set."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import live
from bestepoch.base.config import compose
from bestepoch.base.config.schema import SplitConfig
from bestepoch.base.errors import UsageError
from bestepoch.components.data.split import Split, load_part
from bestepoch.fetching.download import fetch
from bestepoch.fetching.mirrors import find_local_files
from bestepoch.splitting import ensure
from bestepoch.splitting.split import _pixel_moments, log_split, split_data
from invented import MINE, OWN, PARTS, Bytes, Raw, invented, parts_of


def hashes(images: Bytes) -> list[str]:
    return [hashlib.sha256(image.tobytes()).hexdigest() for image in images]


def assert_disjoint(parts: dict[str, tuple[Bytes, Bytes]]) -> None:
    train, validation, test = (set(hashes(images)) for images, _ in parts.values())
    assert train & validation == set()
    assert train & test == set()
    assert validation & test == set()


def counts(labels: Bytes) -> dict[int, int]:
    return dict(sorted(Counter(labels.tolist()).items()))


def part_of(validation: float, seed: int, folds: int | None = None, fold: int | None = None) -> SplitConfig:
    return SplitConfig(validation=validation, seed=seed, folds=folds, fold=fold)


RAW = invented([100, 60, 40])
TENTH = part_of(validation=0.1, seed=0)


def test_share_of_each_class(tmp_path):
    summary = split_data(RAW.write(tmp_path / "raw"), tmp_path / "split", TENTH)
    parts = parts_of(tmp_path / "split")
    assert counts(parts["train"][1]) == {0: 90, 1: 54, 2: 36}
    assert counts(parts["validation"][1]) == {0: 10, 1: 6, 2: 4}
    assert counts(parts["test"][1]) == {0: 3, 1: 3, 2: 3}
    assert summary["sizes"] == {"train": 180, "validation": 20, "test": 9}
    assert summary["per_class"] == {"train": [90, 54, 36], "validation": [10, 6, 4], "test": [3, 3, 3]}
    assert sorted(path.name for path in (tmp_path / "split").iterdir()) == [
        "summary.json",
        "test.npz",
        "train.npz",
        "validation.npz",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw", "split"]


def test_count_of_images(tmp_path):
    summary = split_data(RAW.write(tmp_path / "raw"), tmp_path / "split", part_of(validation=50, seed=0))
    parts = parts_of(tmp_path / "split")
    assert counts(parts["validation"][1]) == {0: 25, 1: 15, 2: 10}
    assert counts(parts["train"][1]) == {0: 75, 1: 45, 2: 30}
    assert summary["sizes"] == {"train": 150, "validation": 50, "test": 9}


@pytest.mark.parametrize(("validation", "images"), [(0.033, 7), (0.5, 100), (3, 3), (197, 197), (20.0, 20)])
def test_size_of_the_validation_part(validation, images, tmp_path):
    summary = split_data(RAW.write(tmp_path / "raw"), tmp_path / "split", part_of(validation=validation, seed=0))
    parts = parts_of(tmp_path / "split")
    assert {part: len(labels) for part, (_, labels) in parts.items()} == summary["sizes"]
    assert summary["sizes"] == {"train": 200 - images, "validation": images, "test": 9}
    assert all(set(labels.tolist()) == {0, 1, 2} for _, labels in parts.values())


def test_every_image_keeps_its_label_and_is_in_one_part(tmp_path):
    split_data(RAW.write(tmp_path / "raw"), tmp_path / "split", TENTH)
    parts = parts_of(tmp_path / "split")
    label_of = dict(zip(hashes(RAW.images), RAW.labels.tolist(), strict=True))
    found = {}
    for part in ("train", "validation"):
        images, labels = parts[part]
        assert images.dtype == labels.dtype == np.uint8
        found |= dict(zip(hashes(images), labels.tolist(), strict=True))
    assert found == label_of
    assert len(parts["train"][1]) + len(parts["validation"][1]) == len(label_of) == 200
    assert_disjoint(parts)


@pytest.mark.parametrize("how", [TENTH, part_of(validation=0.4, seed=3), part_of(validation=50, seed=9)], ids=str)
def test_official_test_set_stays_as_it_is(how, tmp_path):
    split_data(RAW.write(tmp_path / "raw"), tmp_path / "split", how)
    images, labels = parts_of(tmp_path / "split")["test"]
    np.testing.assert_array_equal(images, RAW.test_images)  # in its order
    np.testing.assert_array_equal(labels, RAW.test_labels)


def test_same_seed_same_bytes(tmp_path, monkeypatch):
    raw = RAW.write(tmp_path / "raw")
    first = split_data(raw, tmp_path / "first", TENTH)
    np.random.seed(5)  # the global generator must not matter
    monkeypatch.setattr("time.time", lambda: 2_000_000_000.0)
    second = split_data(raw, tmp_path / "second", TENTH)
    assert first == second
    for name in ("summary.json", *(f"{part}.npz" for part in PARTS)):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_another_seed_holds_out_other_images(tmp_path):
    raw = RAW.write(tmp_path / "raw")
    held, checksums = [], []
    for seed in (0, 1, 2**32 - 1):
        summary = split_data(raw, tmp_path / f"{seed}", part_of(validation=0.1, seed=seed))
        parts = parts_of(tmp_path / f"{seed}")
        held.append(frozenset(hashes(parts["validation"][0])))
        checksums.append(summary["checksum"])
        assert summary["seed"] == seed
        assert summary["per_class"]["validation"] == [10, 6, 4]
        np.testing.assert_array_equal(parts["test"][0], RAW.test_images)
    assert len(set(held)) == len(set(checksums)) == 3


def test_split_anew_replaces_the_old_one(tmp_path):
    split_data(RAW.write(tmp_path / "raw"), tmp_path / "split", TENTH)
    (tmp_path / "split/.gitignore").write_text("/train.npz\n")
    other = invented([20, 20], seed=8)
    summary = split_data(other.write(tmp_path / "other", "another"), tmp_path / "split", part_of(validation=4, seed=1))
    assert json.loads((tmp_path / "split/summary.json").read_text()) == summary
    parts = parts_of(tmp_path / "split")
    assert sorted(hashes(np.concatenate([parts["train"][0], parts["validation"][0]]))) == sorted(hashes(other.images))
    assert (tmp_path / "split/.gitignore").read_text() == "/train.npz\n"


def test_interrupted_split_vouches_for_nothing(tmp_path, monkeypatch):
    """Parts of two splits must never pass for one."""
    raw, rename = RAW.write(tmp_path / "raw"), Path.replace
    split_data(raw, tmp_path / "split", TENTH)

    def replace_or_stop(path: Path, target: Path) -> Path:
        if path.name == "validation.npz":
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", replace_or_stop)
        split_data(raw, tmp_path / "split", part_of(validation=0.1, seed=1))
    assert not (tmp_path / "split/summary.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw", "split"]


def test_summary_says_what_was_split(tmp_path):
    summary = split_data(RAW.write(tmp_path / "raw"), tmp_path / "split", part_of(validation=50, seed=7))
    assert json.loads((tmp_path / "split/summary.json").read_text()) == summary
    assert summary["name"] == "invented"
    assert summary["source"] == "nowhere"
    assert summary["request"] == {
        "data": "invented, in full",
        "split": {"validation": 50, "seed": 7, "folds": None, "fold": None},
    }
    assert summary["files"]["test_labels"] == {"name": "test_labels.gz", "md5": "?"}
    assert summary["image"] == [5, 4]
    assert summary["classes"] == 3


def test_checksums_are_of_what_is_on_the_disk(tmp_path):
    summary = split_data(RAW.write(tmp_path / "raw"), tmp_path / "split", TENTH)
    expected = {
        part: hashlib.sha256(str(images.shape).encode() + images.tobytes() + labels.tobytes()).hexdigest()
        for part, (images, labels) in parts_of(tmp_path / "split").items()
    }
    assert summary["checksums"] == expected
    assert summary["checksum"] == hashlib.sha256("".join(expected[part] for part in PARTS).encode()).hexdigest()


def changed(array: Bytes, place: int) -> Bytes:
    other = array.copy()
    other.reshape(-1)[place] ^= 1
    return other


@pytest.mark.parametrize(
    ("other", "differing"),
    [
        (replace(RAW, images=changed(RAW.images, 0)), 1),
        (replace(RAW, images=changed(RAW.images, -1)), 1),
        (replace(RAW, test_images=changed(RAW.test_images, 77)), 1),
        (replace(RAW, test_labels=changed(RAW.test_labels, 4)), 1),
        (replace(RAW, images=RAW.images.reshape(-1, 4, 5), test_images=RAW.test_images.reshape(-1, 4, 5)), 3),
    ],
    ids=["first pixel", "last pixel", "test pixel", "test label", "shape alone"],
)
def test_checksum_tells_data_sets_apart(other, differing, tmp_path):
    one = split_data(RAW.write(tmp_path / "raw"), tmp_path / "split", TENTH)
    two = split_data(other.write(tmp_path / "other"), tmp_path / "split", TENTH)
    assert one["checksum"] != two["checksum"]
    assert sum(one["checksums"][part] != two["checksums"][part] for part in PARTS) == differing


def test_mean_and_deviation_are_of_the_training_pixels_alone(tmp_path):
    raw = replace(RAW, test_images=RAW.test_images // 4)  # darker, so that they would show
    summary = split_data(raw.write(tmp_path / "raw"), tmp_path / "split", part_of(validation=0.4, seed=0))
    pixels = parts_of(tmp_path / "split")["train"][0].reshape(-1).tolist()
    mean = Fraction(sum(pixels), len(pixels))
    variance = Fraction(sum(p * p for p in pixels), len(pixels)) - mean**2
    assert summary["pixel_mean"] == round(float(mean), 4)
    assert summary["pixel_std"] == round(math.sqrt(variance), 4)
    of_all = np.concatenate([RAW.images, raw.test_images]).mean()
    assert abs(summary["pixel_mean"] - of_all) > 1
    assert abs(summary["pixel_mean"] - RAW.images.mean()) > 1e-3


def test_pixels_that_are_all_but_alike_can_still_be_divided_by_their_deviation(tmp_path):
    """Every other image is told apart by one pixel."""
    images = np.zeros((400, 20, 20), np.uint8)
    images[np.arange(400), np.arange(400) // 20, np.arange(400) % 20] = 1
    labels = np.tile(np.array([0, 1], np.uint8), 200)
    raw = Raw(images, labels, 2 * images[:2], labels[:2])
    summary = split_data(raw.write(tmp_path / "raw"), tmp_path / "split", TENTH)
    assert summary["sizes"] == {"train": 360, "validation": 40, "test": 2}
    assert summary["pixel_mean"] == 0.0025
    assert summary["pixel_std"] == round(math.sqrt(0.0025 * 0.9975), 4)


def test_the_normalisation_needs_no_memory_to_speak_of():
    """`ndarray.std` would hold every pixel as eight bytes, and as much again: the peak of the whole stage."""
    images = np.random.default_rng(0).integers(0, 256, (20_000, 28, 28), np.uint8)
    tracemalloc.start()
    mean, deviation = _pixel_moments(images)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < images.nbytes
    assert mean == pytest.approx(images.mean(), rel=1e-12)
    assert deviation == pytest.approx(images.std(), rel=1e-12)


def test_training_images_that_are_test_images_are_left_out(tmp_path, said):
    leaked = [3, 50, 51, 199]
    images = RAW.images.copy()
    images[leaked] = RAW.test_images[[0, 8, 8, 2]]
    raw = replace(RAW, images=images)
    summary = split_data(raw.write(tmp_path / "raw"), tmp_path / "split", TENTH)
    assert summary["duplicates"]["left_out"]["count"] == 4
    assert summary["duplicates"]["left_out"]["indices"] == leaked
    assert summary["duplicates"]["moved"] == {**summary["duplicates"]["moved"], "count": 0, "indices": []}
    parts = parts_of(tmp_path / "split")
    assert_disjoint(parts)
    assert summary["sizes"] == {"train": 176, "validation": 20, "test": 9}  # a tenth of 196
    kept = np.delete(raw.images, leaked, axis=0)
    assert sorted(hashes(np.concatenate([parts["train"][0], parts["validation"][0]]))) == sorted(hashes(kept))
    np.testing.assert_array_equal(parts["test"][0], RAW.test_images)
    assert sum(map(sum, (summary["per_class"]["train"], summary["per_class"]["validation"]))) == 196

    log_split(summary)
    assert said() == [
        "invented: 176 train, 20 validation, 9 test images of 3 classes",
        "warning: 4 training images are also test images and were left out of training and validation",
    ]


def test_twins_within_the_training_images_end_in_one_part(tmp_path, said):
    """Each image is there twice, so that about half of the validation images have their twin in training."""
    twice = replace(RAW, images=np.concatenate([RAW.images] * 2), labels=np.concatenate([RAW.labels] * 2))
    summary = split_data(twice.write(tmp_path / "raw"), tmp_path / "split", part_of(validation=0.5, seed=0))
    moved = summary["duplicates"]["moved"]
    parts = parts_of(tmp_path / "split")
    assert_disjoint(parts)
    assert 0 < moved["count"] == len(moved["indices"]) < 200
    assert summary["sizes"] == {"train": 200 + moved["count"], "validation": 200 - moved["count"], "test": 9}
    assert summary["duplicates"]["left_out"]["count"] == 0
    # nothing is lost, and each moved image is now beside its twin
    both = np.concatenate([parts["train"][0], parts["validation"][0]])
    assert Counter(hashes(both)) == Counter(hashes(twice.images))
    in_train = Counter(hashes(parts["train"][0]))
    assert [in_train[key] for key in hashes(twice.images[moved["indices"]])] == [2] * moved["count"]
    assert set(Counter(hashes(parts["validation"][0])).values()) == {2}
    assert {part: np.bincount(labels, minlength=3).tolist() for part, (_, labels) in parts.items()} == summary[
        "per_class"
    ]

    log_split(summary)
    expected = f"warning: {moved['count']} validation images are also training images and were moved there"
    assert said()[1:] == [expected]


def test_twins_with_different_labels_end_in_one_part(tmp_path):
    """An image is told by its pixels: a wrong label does not make it another one."""
    raw = invented([40, 40])
    raw = replace(
        raw, images=np.concatenate([raw.images] * 2), labels=np.concatenate([raw.labels, 1 - raw.labels]).astype("u1")
    )
    summary = split_data(raw.write(tmp_path / "raw"), tmp_path / "split", part_of(validation=0.3, seed=0))
    assert summary["duplicates"]["moved"]["count"] > 0
    assert_disjoint(parts_of(tmp_path / "split"))


def test_without_duplicates_there_is_no_warning(tmp_path, said):
    summary = split_data(RAW.write(tmp_path / "raw"), tmp_path / "split", TENTH)
    assert [found["count"] for found in summary["duplicates"].values()] == [0, 0]
    log_split(summary)
    assert said() == ["invented: 180 train, 20 validation, 9 test images of 3 classes"]


@pytest.fixture
def said(monkeypatch):
    """What has been logged, however the package's logger is set up."""
    messages: list[str] = []
    monkeypatch.setattr("bestepoch.splitting.split.log.info", lambda text, *values: messages.append(text % values))
    # the modules share one logger
    monkeypatch.setattr("bestepoch.splitting.split.log.warning", lambda text, *values: messages.append(text % values))
    return lambda: messages


@pytest.mark.parametrize(
    ("validation", "asked"),
    [(1, "1"), (2, "2"), (0.001, "0"), (0.01, "2"), (0.999, "200"), (198, "198"), (200, "200"), (60_000, "60,000")],
)
def test_size_that_cannot_be_had(validation, asked, tmp_path):
    with pytest.raises(UsageError) as error:
        split_data(RAW.write(tmp_path / "raw"), tmp_path / "split", part_of(validation=validation, seed=0))
    assert str(error.value) == (
        f"split.validation = {validation} asks for {asked} of 200 images; with 3 classes, each in both parts, "
        "3 to 197 are possible"
    )
    assert not (tmp_path / "split").exists()


def test_over_all_folds_each_image_is_held_out_once(tmp_path):
    raw = RAW.write(tmp_path / "raw")
    held_out = []
    for fold in range(5):
        how = part_of(validation=0.1, seed=0, folds=5, fold=fold)
        summary = split_data(raw, tmp_path / f"{fold}", how)
        parts = {part: np.load(tmp_path / f"{fold}" / f"{part}.npz") for part in ("train", "validation", "test")}
        train, validation = (Counter(hashes(parts[part]["images"])) for part in ("train", "validation"))
        assert not train & validation
        assert train + validation == Counter(hashes(RAW.images))
        assert (parts["test"]["images"] == RAW.test_images).all(), "the test set is out of reach"
        counts = np.array(summary["per_class"]["validation"])
        assert (abs(counts - np.bincount(RAW.labels) / 5) < 1).all(), "each class in equal shares"
        assert summary["request"]["split"] == how.model_dump()
        held_out += validation.elements()
    assert Counter(held_out) == Counter(hashes(RAW.images))


def test_equal_images_are_in_one_fold(tmp_path, said):
    images = np.concatenate([RAW.images, RAW.images[:30]])
    raw = replace(RAW, images=images, labels=np.concatenate([RAW.labels, RAW.labels[:30]])).write(tmp_path / "raw")
    held_out = Counter()
    for fold in range(3):
        summary = split_data(raw, tmp_path / f"{fold}", part_of(validation=0.1, seed=1, folds=3, fold=fold))
        assert summary["duplicates"]["moved"]["count"] == 0
        held_out += Counter(hashes(np.load(tmp_path / f"{fold}" / "validation.npz")["images"]))
    assert held_out == Counter(hashes(images))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"folds": 5}, "go together"),
        ({"fold": 0}, "go together"),
        ({"folds": 5, "fold": 5}, "split.fold = 5 is none of 5 folds: 0 to 4"),
        ({"folds": 1, "fold": 0}, "greater than or equal to 2"),
    ],
)
def test_a_fold_that_is_none_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        part_of(validation=0.1, seed=0, **given)


def test_more_folds_than_images_of_a_class(tmp_path):
    with pytest.raises(
        UsageError, match=r"split.folds = 500 needs as many training images of each class; class \d has"
    ):
        split_data(RAW.write(tmp_path / "raw"), tmp_path / "split", part_of(validation=0.1, seed=0, folds=500, fold=0))


def test_class_with_one_image(tmp_path):
    raw = invented([50, 1, 50])
    with pytest.raises(UsageError, match=r"^Class 1 has 1 training image; a stratified split needs at least 2$"):
        split_data(raw.write(tmp_path / "raw"), tmp_path / "split", TENTH)
    assert not (tmp_path / "split").exists()


def test_nothing_but_test_images(tmp_path):
    raw = replace(RAW, test_images=RAW.images, test_labels=RAW.labels)
    with pytest.raises(UsageError, match=r"^Every training image is also a test image"):
        split_data(raw.write(tmp_path / "raw"), tmp_path / "split", TENTH)
    assert not (tmp_path / "split").exists()


def test_nothing_but_copies_of_one_image(tmp_path):
    raw = replace(RAW, images=np.broadcast_to(RAW.images[:1], RAW.images.shape))
    with pytest.raises(UsageError, match=r"^Every validation image is also a training image"):
        split_data(raw.write(tmp_path / "raw"), tmp_path / "split", TENTH)
    assert not (tmp_path / "split").exists()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (replace(RAW, labels=RAW.labels[:-1]), "train_images.gz holds 200 images but train_labels.gz 199 labels"),
        (replace(RAW, test_labels=RAW.labels), "test_images.gz holds 9 images but test_labels.gz 200 labels"),
        (
            replace(RAW, images=RAW.images[:0], labels=RAW.labels[:0]),
            "train_images.gz holds no pixel: its shape is (0, 5, 4)",
        ),
        (
            replace(RAW, test_images=RAW.test_images[:, :, :0]),
            "test_images.gz holds no pixel: its shape is (9, 5, 0)",
        ),
        (
            replace(RAW, test_images=RAW.test_images[:, 1:]),
            "Training images are (5, 4) pixels, test images (4, 4)",
        ),
    ],
    ids=["a label missing", "other labels", "no image", "no width", "other size"],
)
def test_files_that_do_not_fit_each_other(raw, message, tmp_path):
    with pytest.raises(UsageError) as error:
        split_data(raw.write(tmp_path / "raw"), tmp_path / "split", TENTH)
    assert str(error.value) == message
    assert not (tmp_path / "split").exists()


def test_nothing_to_split(tmp_path):
    with pytest.raises(UsageError, match=r"dataset\.json is not there\. Make it with: dvc repro data\.dvc$"):
        split_data(tmp_path / "raw", tmp_path / "split", TENTH)


@pytest.mark.parametrize("shape", [(12, 20), (1, 9), (64, 33)], ids=str)
@pytest.mark.parametrize("classes", [2, 47, 256])
def test_any_image_size_and_up_to_256_classes(shape, classes, tmp_path):
    raw = invented([4] * classes, tests=1, shape=shape)
    summary = split_data(raw.write(tmp_path / "raw"), tmp_path / "split", part_of(validation=0.25, seed=0))
    parts = parts_of(tmp_path / "split")
    assert summary["image"] == list(shape)
    assert summary["classes"] == classes
    assert summary["per_class"] == {"train": [3] * classes, "validation": [1] * classes, "test": [1] * classes}
    assert {part: images.shape for part, (images, _) in parts.items()} == {
        "train": (3 * classes, *shape),
        "validation": (classes, *shape),
        "test": (classes, *shape),
    }
    for part in PARTS:
        images, labels = load_part(tmp_path / "split", part)
        np.testing.assert_array_equal(images.numpy(), parts[part][0])
        assert labels.tolist() == parts[part][1].tolist()  # no class is above 127 by accident
        assert max(labels.tolist()) == classes - 1


def test_class_that_only_the_test_set_has(tmp_path, said):
    labels = RAW.test_labels.copy()
    labels[0] = 5
    summary = split_data(replace(RAW, test_labels=labels).write(tmp_path / "raw"), tmp_path / "split", TENTH)
    assert summary["classes"] == 6
    assert summary["per_class"]["train"] == [90, 54, 36, 0, 0, 0]
    assert summary["per_class"]["test"] == np.bincount(labels).tolist()
    log_split(summary)
    assert said()[1:] == [
        "warning: no image has the label 3 to 4: the network gets an output for it all the same. Number labels from 0",
        "warning: no training image is of class 5: the network cannot learn it",
    ]


def test_labels_with_gaps_and_classes_that_a_part_lacks_are_named(tmp_path, said):
    """Labels 0, 1 and 2 are called 1, 7 and 183; class 7 is in no test image."""
    call = np.array([1, 7, 183], np.uint8)
    kept = RAW.test_labels != 1
    raw = Raw(RAW.images, call[RAW.labels], RAW.test_images[kept], call[RAW.test_labels[kept]])
    summary = split_data(raw.write(tmp_path / "raw"), tmp_path / "split", TENTH)
    summary["per_class"]["validation"][1] = summary["per_class"]["validation"][183] = 0
    log_split(summary)
    assert said() == [
        "invented: 180 train, 20 validation, 6 test images of 184 classes",
        "warning: no image has the label 0, 2 to 6, 8 to 182: the network gets an output for it all the same. "
        "Number labels from 0",
        "warning: no validation image is of class 1, 183: the best epoch is chosen without it",
        "warning: no test image is of class 7: the test accuracy says nothing of it",
    ]


def test_part_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match=r"validation\.npz is not there\. Make it with: dvc repro split$"):
        load_part(tmp_path, "validation")


def test_part_of_another_split_is_refused(tmp_path):
    """A whole file, and not the one that the summary and so the run speak of."""
    raw = RAW.write(tmp_path / "raw")
    split_data(raw, tmp_path / "one", TENTH)
    split_data(raw, tmp_path / "prepared/other", part_of(validation=0.1, seed=1))
    shutil.copyfile(tmp_path / "one/train.npz", tmp_path / "prepared/other/train.npz")
    load_part(tmp_path / "one", "train")
    with pytest.raises(UsageError) as error:
        load_part(tmp_path / "prepared/other", "train")
    found, recorded = (Split.read(tmp_path / name).values["checksums"]["train"] for name in ("one", "prepared/other"))
    assert str(error.value) == (
        f"{tmp_path}/prepared/other/train.npz is not what split wrote: its checksum is {found[:12]}, and summary.json "
        f"has {recorded[:12]}. Make it anew with: rm -r {tmp_path}/prepared/other, then the same command as before"
    )


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 2000, b"PK\x03\x04 and no more", b"(dp0\n.", None],
    ids=["empty", "zeros", "cut", "pickle", "one bit"],
)
def test_part_that_is_damaged_is_refused(content, tmp_path):
    split_data(RAW.write(tmp_path / "raw"), tmp_path / "split", TENTH)
    path = tmp_path / "split/test.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:] if content is None else content)
    with pytest.raises(UsageError, match=r"test\.npz is damaged \(.+\)\. Make it anew with: dvc repro split$"):
        load_part(tmp_path / "split", "test")


@pytest.mark.parametrize(("content", "what"), [("[]", "holds no keys"), ('{"name": "a"}', "has no checksum, ")])
def test_summary_that_lacks_what_is_read_is_refused(content, what, tmp_path):
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(UsageError, match=rf"summary\.json {what}.*\. Make it anew with: dvc repro split$"):
        Split.read(tmp_path)


# A data set of one's own: four files and one new file in conf/data/.


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project as it is now, with a data set of one's own."""
    folder = live.project(tmp_path_factory.mktemp("checkout"))
    OWN.write(folder / "my/files")
    (folder / "my/files/dataset.json").unlink()
    (folder / "conf/data/mine.yaml").write_text(MINE)
    return folder


def own_settings(*overrides: str) -> Any:
    return compose.load_config(["data=mine", *overrides], False)[1]


@pytest.fixture
def in_checkout(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(checkout)
    monkeypatch.delenv("BESTEPOCH_MIRROR", raising=False)
    shutil.rmtree(checkout / "data/prepared", ignore_errors=True)
    return checkout


def test_own_split_is_made_once(in_checkout):
    made = ensure.ensure_split(own_settings("split.validation=256"))
    assert made.name == made.requested == "mine"
    assert made.folder.parent == in_checkout / "data/prepared"
    assert (made.classes, made.shape) == (256, (12, 20))
    before = {path.name: path.stat().st_mtime_ns for path in made.folder.iterdir()}
    shutil.move(in_checkout / "my", in_checkout / "elsewhere")  # there is nothing to fetch from now
    try:
        again = ensure.ensure_split(own_settings("split.validation=256"))
        with pytest.raises(UsageError, match=r"my/files: train_images\.gz: no such file"):
            ensure.ensure_split(own_settings("split.validation=300"))
    finally:
        shutil.move(in_checkout / "elsewhere", in_checkout / "my")
    assert again == made
    assert {path.name: path.stat().st_mtime_ns for path in made.folder.iterdir()} == before
    assert {path.name for path in (in_checkout / "data/prepared").iterdir()} == {".lock", ".files", made.folder.name}


def test_each_split_has_its_own_folder(in_checkout):
    wanted = {"split.validation=256": 256, "split.validation=0.5": 768, "split.validation=300": 300}
    made = {line: ensure.ensure_split(own_settings(line)) for line in wanted}
    made["split.seed=4"] = ensure.ensure_split(own_settings("split.validation=300", "split.seed=4"))
    assert len({summary.folder for summary in made.values()}) == 4
    assert len({summary.checksum for summary in made.values()}) == 4
    for line, images in wanted.items():
        assert made[line].values["sizes"] == {"train": 1536 - images, "validation": images, "test": 256}
        assert len(parts_of(made[line].folder)["validation"][1]) == images


@pytest.fixture
def pipeline_split(in_checkout: Path) -> Iterator[Callable[..., Path]]:
    """Fetches and splits a data set as the pipeline does, and removes what it has made."""

    def make(*overrides: str) -> Path:
        settings = own_settings(*overrides)
        fetch(settings.data, settings.fetch, in_checkout / "raw")
        split_data(in_checkout / "raw", in_checkout / "data/split", settings.split)
        return in_checkout / "data/split"

    yield make
    shutil.rmtree(in_checkout / "raw")
    for part in ("summary.json", *(f"{part}.npz" for part in PARTS)):
        (in_checkout / "data/split" / part).unlink()


def test_split_of_the_pipeline_is_used_where_it_is_the_one(in_checkout, pipeline_split):
    folder = pipeline_split("split.validation=300")
    assert ensure.ensure_split(own_settings("split.validation=300")).folder == folder
    assert not (in_checkout / "data/prepared").exists()
    assert ensure.ensure_split(own_settings("split.validation=256")).folder.parent == in_checkout / "data/prepared"


@pytest.mark.parametrize("change", ["mirrors", "files"])
def test_split_of_the_pipeline_is_not_used_where_conf_names_other_files(change, in_checkout, pipeline_split):
    folder, conf = pipeline_split("split.validation=300"), in_checkout / "conf/data/mine.yaml"
    if change == "mirrors":
        conf.write_text(MINE.replace("[my/files]", "[http://127.0.0.1:9/nobody, my/files]"))
        assert not find_local_files(own_settings().data), "a server comes first, so no folder is compared"
    else:
        shutil.copyfile(in_checkout / "my/files/test_labels.gz", in_checkout / "my/files/other.gz")
        conf.write_text(MINE.replace("test_labels.gz", "other.gz"))
    try:
        split = ensure.ensure_split(own_settings("split.validation=300", "fetch.retries=0"))
    finally:
        conf.write_text(MINE)
        (in_checkout / "my/files/other.gz").unlink(missing_ok=True)
    assert split.folder.parent == in_checkout / "data/prepared"
    assert split.checksum == Split.read(folder).checksum


def replace_own(folder: Path, raw: Raw) -> None:
    """Other images behind the same names, of the same size, with the times of the old files."""
    shutil.rmtree(folder / "new", ignore_errors=True)
    raw.write(folder / "new")
    for path in (folder / "new").glob("*.gz"):
        times = (folder / "my/files" / path.name).stat()
        path.replace(folder / "my/files" / path.name)
        os.utime(folder / "my/files" / path.name, ns=(times.st_atime_ns, times.st_mtime_ns))
    shutil.rmtree(folder / "new")


def test_own_files_that_have_changed_are_prepared_anew(in_checkout, said, monkeypatch):
    monkeypatch.setattr("bestepoch.base.checksums.SMALL", 0)  # these files count as large
    settings = own_settings("split.validation=256")
    first = ensure.ensure_split(settings)
    said().clear()
    try:
        replace_own(in_checkout, invented([6] * 256, tests=1, shape=(12, 20), seed=1))
        second = ensure.ensure_split(settings)
        assert said() == [
            f"data     my/files/train_images.gz has changed since data/prepared/{first.folder.name} was made of it: "
            "mine is prepared anew",
            "mine: 1,280 train, 256 validation, 256 test images of 256 classes",
        ]
        assert second.folder.name == f"{first.folder.name}-2"
        assert second.checksum != first.checksum
        said().clear()
        assert ensure.ensure_split(settings) == second
    finally:
        replace_own(in_checkout, OWN)
    # runs of before keep their split, and the old files bring it back
    assert Split.read(first.folder).checksum == first.checksum
    assert ensure.ensure_split(settings) == first
    assert said() == []


def test_own_files_that_have_changed_since_the_pipeline_took_them(in_checkout, pipeline_split, said):
    folder = pipeline_split("split.validation=300")
    try:
        replace_own(in_checkout, invented([6] * 256, tests=1, shape=(12, 20), seed=1))
        split = ensure.ensure_split(own_settings("split.validation=300"))
    finally:
        replace_own(in_checkout, OWN)
    assert split.folder.parent == in_checkout / "data/prepared"
    assert split.checksum != Split.read(folder).checksum
    assert said()[0] == (
        "data     my/files/train_images.gz has changed since data/split was made of it (for the pipeline, type: "
        "dvc repro -f fetch && dvc repro): mine is prepared anew"
    )


def test_sample_that_stood_in_is_replaced_when_all_own_files_are_there(in_checkout, said):
    conf = in_checkout / "conf/data/mine.yaml"
    conf.write_text(f"{MINE}fallback: mnist_sample\n")
    shutil.move(in_checkout / "my", in_checkout / "elsewhere")
    try:
        settings = own_settings("split.validation=300")
        sample = ensure.ensure_split(settings)
        assert (sample.name, sample.requested) == ("mnist_sample", "mine")
        (in_checkout / "my/files").mkdir(parents=True)
        shutil.copy(in_checkout / "elsewhere/files/train_images.gz", in_checkout / "my/files")
        assert ensure.ensure_split(settings) == sample  # with one file of four it would be the sample again
        shutil.rmtree(in_checkout / "my")
        shutil.move(in_checkout / "elsewhere", in_checkout / "my")
        assert ensure.ensure_split(settings).name == "mine"
    finally:
        conf.write_text(MINE)
    expected = f"data     the files are there now, and data/prepared/{sample.folder.name} has the offline sample"
    assert f"{expected}: mine is prepared anew" in said()


def test_no_pipeline_split(in_checkout):
    with pytest.raises(UsageError, match=r"^data/split/summary\.json is not there\. Make it with: dvc repro split$"):
        ensure.read_pipeline_split()
