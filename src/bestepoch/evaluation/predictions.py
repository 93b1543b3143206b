"""Predictions on the test images and their calibration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bestepoch.evaluation.statistics import wilson_ci

if TYPE_CHECKING:
    import torch

NUM_BINS = 15
MAX_SHOWN = 25  # mistakes in the report and in TensorBoard


@dataclass(frozen=True)
class TestPredictions:
    """Predictions of the chosen epoch's network on the test images.

    ``images`` is uint8 of shape ``(N, H, W)``. ``actual`` and ``predicted`` (labels) and ``confidence`` (probability of
    the predicted label) have shape ``(N,)``. ``seconds`` is the duration of inference.
    """

    images: np.ndarray
    actual: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    seconds: float

    @classmethod
    def from_logits(
        cls, images: torch.Tensor, labels: torch.Tensor, logits: torch.Tensor, seconds: float
    ) -> TestPredictions:
        """Create predictions from logits of shape ``(N, classes)``."""
        confidence, predicted = logits.double().softmax(1).max(1)
        return cls(images.numpy(), labels.numpy(), predicted.numpy(), confidence.numpy(), seconds)

    def rows(self) -> list[list[Any]]:
        """Return the rows of ``predictions.csv``: index, actual, predicted, confidence."""
        columns = (self.actual.tolist(), self.predicted.tolist(), self.confidence.round(6).tolist())
        return [[index, *values] for index, values in enumerate(zip(*columns, strict=True))]

    def calibration(self) -> list[dict[str, Any]]:
        """Return the `calibration_bins` of the predictions."""
        return calibration_bins(self.confidence, self.actual == self.predicted)

    def class_means(self) -> dict[str, float]:
        """Return means over the classes that have test images, whatever their numbers: macro-F1 and balanced accuracy.

        Balanced accuracy is the mean recall.
        """
        from sklearn.metrics import precision_recall_fscore_support

        _, recall, f1, _ = precision_recall_fscore_support(
            self.actual, self.predicted, labels=np.unique(self.actual), average="macro", zero_division=0
        )
        return {"test_macro_f1": float(f1), "test_balanced_accuracy": float(recall)}

    def mistakes(self) -> np.ndarray:
        """Return the indices of misclassified images, most confident first; ties keep their order."""
        wrong = np.flatnonzero(self.actual != self.predicted)
        return wrong[np.argsort(-self.confidence[wrong], kind="stable")]


def calibration_bins(confidence: np.ndarray, correct: np.ndarray) -> list[dict[str, Any]]:
    """Group images by confidence into 15 bins of equal width and omit empty bins.

    Args:
        confidence: probabilities of the predicted labels, shape ``(N,)``.
        correct: whether each prediction is correct, shape ``(N,)``.

    Returns:
        For each bin its edges ``left`` (exclusive) and ``right`` (inclusive), the number of ``images``, their mean
        ``confidence``, and their ``accuracy`` with its 95 % interval from ``low`` to ``high``.
    """
    edges = np.arange(1, NUM_BINS) / NUM_BINS
    bin_index = np.searchsorted(edges, confidence)
    bins = []
    for i in np.unique(bin_index):
        hits = correct[bin_index == i]
        low, high = wilson_ci(int(hits.sum()), len(hits))
        means = {"confidence": float(confidence[bin_index == i].mean()), "accuracy": float(hits.mean())}
        interval = {"left": i / NUM_BINS, "right": (i + 1) / NUM_BINS, "images": len(hits)}
        bins.append({**interval, **means, "low": low, "high": high})
    return bins


def calibration_error(bins: list[dict[str, Any]]) -> float:
    """Return the expected calibration error: mean absolute difference of confidence and accuracy, weighted by images.

    Source: Guo et al., https://arxiv.org/abs/1706.04599, equation 3.
    """
    total = math.fsum(b["images"] * abs(b["accuracy"] - b["confidence"]) for b in bins)
    return float(total / sum(b["images"] for b in bins))
