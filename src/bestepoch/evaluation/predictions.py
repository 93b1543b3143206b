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
MAX_SHOWN = 25


@dataclass(frozen=True)
class TestPredictions:
    """How the chosen epoch's network did on the test images.

    ``images`` uint8 (n, height, width); ``actual`` and ``predicted`` labels (n,); ``confidence`` (n,), the probability
    that it gave to the predicted label; ``seconds`` is the time that this took.
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
        """From logits (n, classes)."""
        confidence, predicted = logits.double().softmax(1).max(1)
        return cls(images.numpy(), labels.numpy(), predicted.numpy(), confidence.numpy(), seconds)

    def rows(self) -> list[list[Any]]:
        """For predictions.csv: index, actual, predicted, confidence."""
        columns = (self.actual.tolist(), self.predicted.tolist(), self.confidence.round(6).tolist())
        return [[index, *values] for index, values in enumerate(zip(*columns, strict=True))]

    def calibration(self) -> list[dict[str, Any]]:
        """`calibration` of these."""
        return calibration_bins(self.confidence, self.actual == self.predicted)

    def mistakes(self) -> np.ndarray:
        """Indices of the images that it got wrong, the most confident first; of equals the earliest."""
        wrong = np.flatnonzero(self.actual != self.predicted)
        return wrong[np.argsort(-self.confidence[wrong], kind="stable")]


def calibration_bins(confidence: np.ndarray, correct: np.ndarray) -> list[dict[str, Any]]:
    """The images by confidence, in 15 bins of equal width; bins without images are left out.

    Args:
        confidence, correct: (n,) each.

    Returns:
        for each bin ``left`` and ``right`` (which itself is in it), ``images``, their mean ``confidence``, and their
        ``accuracy`` with its 95 % interval ``low`` to ``high``.
    """
    edges = np.arange(1, NUM_BINS) / NUM_BINS
    place = np.searchsorted(edges, confidence)
    bins = []
    for i in np.unique(place):
        right, sure = correct[place == i], confidence[place == i]
        low, high = wilson_ci(int(right.sum()), len(right))
        found = {"images": len(right), "confidence": float(sure.mean()), "accuracy": float(right.mean())}
        bins.append({"left": i / NUM_BINS, "right": (i + 1) / NUM_BINS, **found, "low": low, "high": high})
    return bins


def calibration_error(bins: list[dict[str, Any]]) -> float:
    """The expected calibration error, ECE: by how much confidence and accuracy differ, averaged over the images.

    Guo et al., https://arxiv.org/abs/1706.04599, equation 3.
    """
    apart = math.fsum(b["images"] * abs(b["accuracy"] - b["confidence"]) for b in bins)
    return float(apart / sum(b["images"] for b in bins))
