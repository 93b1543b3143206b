"""What TensorBoard shows of an evaluated run beside its curves: images, and where wanted histograms and PR curves."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bestepoch.components.data.split import Augment, Summary, load, order
from bestepoch.evaluation import figures
from bestepoch.evaluation.report import SHOWN, Tested
from bestepoch.runs import checkpoint
from bestepoch.runs.run import Run

FRAMES = 10  # epochs of which there is a confusion matrix: as many images of a name as TensorBoard shows


@dataclass(frozen=True)
class Evaluated:
    """A run, its results' folder, its split, and how its chosen epoch did on the test images."""

    run: Run
    source: Path
    split: Summary
    epochs: list[int]
    best: int
    tested: Tested
    probabilities: np.ndarray  # (n, classes), of the test images

    def events(self, histograms: bool) -> Iterator[Any]:
        """TensorBoard events, in the order of their names."""
        yield _picture("images/first batch", 0, self._first_batch())
        with figures.style():
            for epoch, counts in self._confusions():
                yield _picture("confusion/validation", epoch, figures.confusion(counts))
            if len(wrong := self.tested.mistakes()[:SHOWN]):
                yield _picture("mistakes/test", self.best, self._mistakes(wrong))
        if histograms:
            yield from self._histograms()
            yield from self._precision_and_recall()

    def _first_batch(self) -> np.ndarray:
        """As the network saw it: in the order of the first epoch, and varied."""
        from pydantic import TypeAdapter

        from bestepoch.base.config import schema

        config = self.run.info["config"]
        images, _ = load(self.split.folder, "train")
        index = order(config["seed"], 1, len(images))[: config["train"]["batch_size"]][:100]
        menu: Any = TypeAdapter(schema.AugmentMenu).validate_python(config["augment"])
        augment = Augment(menu, config["seed"], 1, len(images), images.device)
        return figures.tiles(augment(images[index], index).numpy())

    def _confusions(self) -> Iterator[tuple[int, np.ndarray]]:
        """Epoch and (actual, predicted) counts on validation: of the first, the last, the best, and some between."""
        from sklearn.metrics import confusion_matrix

        _, labels = load(self.split.folder, "validation")
        spread = np.unique(np.linspace(0, len(self.epochs) - 1, FRAMES - 1).round().astype(int))
        for epoch in sorted({self.best, *(self.epochs[i] for i in spread)}):
            fared = checkpoint.fared(self.source, epoch)
            if "predicted" in fared:  # earlier versions did not keep it
                classes = list(range(self.split.classes))
                yield epoch, confusion_matrix(labels.numpy(), fared["predicted"].astype(int), labels=classes)

    def _mistakes(self, wrong: np.ndarray) -> Any:
        tested = self.tested
        rows = zip(tested.actual[wrong], tested.predicted[wrong], tested.confidence[wrong], strict=True)
        return figures.mistakes(tested.images[wrong], [f"{a}, taken for {p} ({c:.0%})" for a, p, c in rows])

    def _histograms(self) -> Iterator[Any]:
        """The weights after each epoch."""
        from torch.utils.tensorboard.summary import histogram

        for epoch in self.epochs:
            for name, weights in checkpoint.load(checkpoint.weights_path(self.source, epoch))["network"].items():
                if weights.is_floating_point() and weights.numel() > 1 and bool(weights.isfinite().all()):
                    summary = histogram(f"weights/{name}", weights.float().cpu().numpy(), "auto", 64)  # type: ignore[no-untyped-call]
                    yield _event(epoch, summary)

    def _precision_and_recall(self) -> Iterator[Any]:
        """Each class against the others, on the test images."""
        from torch.utils.tensorboard.summary import pr_curve

        for label in range(self.split.classes):
            actual = (self.tested.actual == label).astype(float)
            yield _event(self.best, pr_curve(f"test/class {label}", actual, self.probabilities[:, label]))  # type: ignore[no-untyped-call]


def _picture(tag: str, step: int, drawn: Any) -> Any:
    """A figure, or an image (height, width), as an event."""
    from PIL import Image
    from tensorboard.compat.proto.summary_pb2 import Summary as Proto

    buffer = io.BytesIO()
    if isinstance(drawn, np.ndarray):
        Image.fromarray(drawn).save(buffer, "png")
    else:
        drawn.savefig(buffer, format="png", dpi=110)
    width, height = Image.open(buffer).size
    image = Proto.Image(height=height, width=width, colorspace=4, encoded_image_string=buffer.getvalue())
    return _event(step, Proto(value=[Proto.Value(tag=tag, image=image)]))


def _event(step: int, summary: Any) -> Any:
    from tensorboard.compat.proto.event_pb2 import Event

    return Event(wall_time=time.time(), step=step, summary=summary)
