"""TensorBoard events of an evaluated run: images and, optionally, weight histograms and precision-recall curves."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bestepoch.components.data.augment import Augment
from bestepoch.components.data.order import epoch_permutation
from bestepoch.components.data.split import Split, load_part
from bestepoch.evaluation import figures
from bestepoch.evaluation.predictions import MAX_SHOWN, TestPredictions
from bestepoch.runs import checkpoint
from bestepoch.runs.run import Run

MAX_CONFUSION_EPOCHS = 10  # epochs with a confusion matrix; TensorBoard shows at most 10 images per tag


@dataclass(frozen=True)
class EvaluationContext:
    """An evaluated run with its split and the test predictions of its best epoch.

    ``source`` is the folder with the run's results.
    """

    run: Run
    source: Path
    split: Split
    epochs: list[int]
    best: int
    tested: TestPredictions
    probabilities: np.ndarray  # (N, classes), on the test images

    def events(self, histograms: bool) -> Iterator[Any]:
        """Yield the TensorBoard events in a fixed order; ``histograms`` adds histograms and precision-recall curves."""
        yield _image_event("images/first batch", 0, self._first_batch())
        with figures.figure_style():
            for epoch, counts in self._confusions():
                yield _image_event("confusion/validation", epoch, figures.plot_confusion(counts))
            if len(wrong := self.tested.mistakes()[:MAX_SHOWN]):
                yield _image_event("mistakes/test", self.best, self._mistakes(wrong))
        if histograms:
            yield from self._histograms()
            yield from self._precision_and_recall()

    def _first_batch(self) -> np.ndarray:
        """Return up to 100 images of the first training batch, augmented as in training, as one image."""
        from pydantic import TypeAdapter

        from bestepoch.base.config import groups

        config = self.run.info["config"]
        images, _ = load_part(self.split.folder, "train")
        index = epoch_permutation(config["seed"], 1, len(images))[: config["train"]["batch_size"]][:100]
        group_config: Any = TypeAdapter(groups.AugmentChoice).validate_python(config["augment"])
        augment = Augment(group_config, config["seed"], 1, len(images), images.device)
        return figures.tile_images(augment(images[index], index).numpy())

    def _confusions(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the validation confusion matrix of the first, last and best epoch and of epochs spread in between."""
        from sklearn.metrics import confusion_matrix

        _, labels = load_part(self.split.folder, "validation")
        spread = np.unique(np.linspace(0, len(self.epochs) - 1, MAX_CONFUSION_EPOCHS - 1).round().astype(int))
        for epoch in sorted({self.best, *(self.epochs[i] for i in spread)}):
            results = checkpoint.load_validation_results(self.source, epoch)
            if "predicted" in results:  # earlier versions did not store predictions
                classes = list(range(self.split.classes))
                yield epoch, confusion_matrix(labels.numpy(), results["predicted"].astype(int), labels=classes)

    def _mistakes(self, wrong: np.ndarray) -> Any:
        tested = self.tested
        rows = zip(tested.actual[wrong], tested.predicted[wrong], tested.confidence[wrong], strict=True)
        return figures.plot_mistakes(tested.images[wrong], [f"{a}, taken for {p} ({c:.0%})" for a, p, c in rows])

    def _histograms(self) -> Iterator[Any]:
        """Yield a histogram of each weight tensor after each epoch."""
        from torch.utils.tensorboard.summary import histogram

        for epoch in self.epochs:
            for name, weights in checkpoint.load(checkpoint.weights_path(self.source, epoch))["network"].items():
                if weights.is_floating_point() and weights.numel() > 1 and bool(weights.isfinite().all()):
                    summary = histogram(f"weights/{name}", weights.float().cpu().numpy(), "auto", 64)  # type: ignore[no-untyped-call]
                    yield _make_event(epoch, summary)

    def _precision_and_recall(self) -> Iterator[Any]:
        """Yield a one-vs-rest precision-recall curve per class, on the test images."""
        from torch.utils.tensorboard.summary import pr_curve

        for label in range(self.split.classes):
            actual = (self.tested.actual == label).astype(float)
            yield _make_event(self.best, pr_curve(f"test/class {label}", actual, self.probabilities[:, label]))  # type: ignore[no-untyped-call]


def _image_event(tag: str, step: int, picture: Any) -> Any:
    """Return an event with ``picture``, a Matplotlib figure or a uint8 image of shape ``(H, W)``."""
    from PIL import Image
    from tensorboard.compat.proto.summary_pb2 import Summary as Proto

    buffer = io.BytesIO()
    if isinstance(picture, np.ndarray):
        Image.fromarray(picture).save(buffer, "png")
    else:
        picture.savefig(buffer, format="png", dpi=110)
    width, height = Image.open(buffer).size
    image = Proto.Image(height=height, width=width, colorspace=4, encoded_image_string=buffer.getvalue())
    return _make_event(step, Proto(value=[Proto.Value(tag=tag, image=image)]))


def _make_event(step: int, summary: Any) -> Any:
    from tensorboard.compat.proto.event_pb2 import Event

    return Event(wall_time=time.time(), step=step, summary=summary)
