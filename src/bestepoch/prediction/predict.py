"""Which digit is on a picture, by the champion of MLflow's registry or any other model of this project."""

from __future__ import annotations

import argparse
import io
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from bestepoch.base import errors, files, paths
from bestepoch.base.config import compose
from bestepoch.base.errors import UsageError
from bestepoch.prediction import digit_image

if TYPE_CHECKING:
    from bestepoch.prediction.digit_image import Bytes, Grayscale

log = logging.getLogger("bestepoch")
PIPELINE_MODEL = "results/evaluate/model.pt"
DIGITS = ("mnist", "mnist_sample")  # the data sets whose images were made of pictures as `digit_image` does
NUM_SHOWN = 3


def main(arguments: list[str]) -> None:
    """``python -m bestepoch.predict image.png [more ...] [model=...] [--explain]``: a line for each picture.

    Raises:
        UsageError: a file that is no picture or shows nothing, or a model that is none.
    """
    names, model, explain = _parse_args(arguments)
    greys = [
        read_picture(Path(name)) for name in names
    ]  # all of them first: a mistake is answered before anything is loaded
    where, chosen = find_model(model)
    images = [preprocess(Path(name), grey, chosen) for name, grey in zip(names, greys, strict=True)]
    log.info("model    %s, run %s, epoch %d", where, chosen["run"], chosen["epoch"])
    if explain:
        for name, image in zip(names, images, strict=True):
            log.info("explain  %s", write_explanation(Path(name), image))
    for name, odds in zip(names, predict_probabilities(chosen, np.stack(images)), strict=True):
        best = np.argsort(-odds, kind="stable")[:NUM_SHOWN]
        first, *others = (f"{label}  {odds[label]:.2%}" for label in best)
        print(f"{name}  {first}  then {', '.join(' '.join(other.split()) for other in others)}")


def _parse_args(arguments: list[str]) -> tuple[list[str], str | None, bool]:
    """The pictures, ``model=``, and whether to explain."""
    parser = argparse.ArgumentParser("python -m bestepoch.predict", description=__doc__, allow_abbrev=False)
    parser.add_argument("pictures", nargs="*", metavar="image.png", help="PNG or JPEG of one digit, of any size")
    parser.add_argument(
        "--explain", action="store_true", help="write what the network sees beside each picture: image.28x28.png"
    )
    parser.epilog = (
        "model=... takes an address in MLflow (models:/bestepoch-mnist@champion, models:/bestepoch-mnist/3), a folder "
        f"such as runs/<name>/evaluate, or a model.pt. Without it: the champion, else {PIPELINE_MODEL}"
    )
    given, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        raise UsageError(f"{unknown[0]} is no option. There is: --explain")
    names = [name for name in given.pictures if not name.startswith("model=")]
    models = [name.removeprefix("model=") for name in given.pictures if name.startswith("model=")]
    if len(models) > 1:
        raise UsageError("model= is given twice. Give one")
    if not names:
        raise UsageError("Which picture? Type: python -m bestepoch.predict image.png")
    return names, models[0] if models else None, given.explain


def read_picture(path: Path) -> Grayscale:
    """`picture.grey` of a file.

    Raises:
        UsageError: not there, not a PNG or JPEG, damaged, or nothing is to be seen on it.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder. Name the pictures in it: python -m bestepoch.predict {path}/*.png")
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as opened:
            grey = digit_image.to_grayscale(opened)
    except FileNotFoundError:
        raise UsageError(f"{path} is not there") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # as Pillow says "damaged"
        why = "" if isinstance(error, UnidentifiedImageError) else f" ({errors.first_line(error)})"
        raise UsageError(f"{path} cannot be read as a PNG or JPEG picture{why}") from None
    if not digit_image.foreground(grey).any():
        raise UsageError(f"{path} is empty: nothing on it stands out from the background")
    return grey


def find_model(wanted: str | None) -> tuple[str, dict[str, Any]]:
    """Where a model is, and what its ``model.pt`` holds.

    Raises:
        UsageError: there is none.
    """
    from bestepoch.runs import checkpoint

    if wanted is not None and ":/" in wanted:
        return wanted, _load_from_mlflow(wanted)
    if wanted is None:
        champion = _find_champion()
        if champion is not None:
            return f"{champion} (champion)", _load_from_mlflow(champion)
        path = paths.project_root() / PIPELINE_MODEL
        if not path.is_file():
            raise UsageError(
                f"There is no model yet: neither a champion of {compose.read_params()['data']} in MLflow's registry, nor "
                f"{PIPELINE_MODEL}. Make both with: dvc repro"
            )
    else:
        path = Path(wanted) / "model.pt" if Path(wanted).is_dir() else Path(wanted)
        if not path.is_file():
            raise UsageError(
                f"model = {wanted} is not there. It may be an address in MLflow (models:/bestepoch-mnist@champion), a "
                "folder such as runs/<name>/evaluate, or a model.pt"
            )
    return paths.display_path(path), _require_keys(paths.display_path(path), checkpoint.load(path))


def _find_champion() -> str | None:
    if not (compose.read_default("tracking.mlflow") and compose.read_default("registry.enabled")):
        return None
    from bestepoch.tracking.base import failure_reason
    from bestepoch.tracking.mlflow import registry

    try:
        return registry.champion_uri(compose.read_params()["data"])
    except Exception as error:
        log.warning(
            "warning: MLflow's registry does not answer (%s); looking for %s", failure_reason(error), PIPELINE_MODEL
        )
        return None


def _load_from_mlflow(address: str) -> dict[str, Any]:
    from bestepoch.tracking.base import failure_reason
    from bestepoch.tracking.mlflow import registry

    try:
        chosen = registry.load_model_file(address)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"MLflow does not give {address}: {failure_reason(error)}") from None
    if chosen is None:
        raise UsageError(f"{address} is not there, or not a model that python -m bestepoch.evaluate has logged")
    return _require_keys(address, chosen)


def _require_keys(where: str, chosen: dict[str, Any]) -> dict[str, Any]:
    if missing := {"network", "model", "shape", "data", "run", "epoch"} - chosen.keys():
        raise UsageError(
            f"{where} is not what python -m bestepoch.evaluate writes now: it has no {', '.join(sorted(missing))}. "
            "Write it anew with: python -m bestepoch.evaluate run=runs/<name>"
        )
    return chosen


def preprocess(path: Path, grey: Grayscale, chosen: dict[str, Any]) -> Bytes:
    """A picture as the images are that the model was trained on.

    Raises:
        UsageError: those were not made as MNIST's, so that only one of just their size will do.
    """
    if chosen["data"] in DIGITS:
        return digit_image.centre_digit(digit_image.foreground(grey))
    height, width = chosen["shape"]
    if grey.shape != (height, width):
        raise UsageError(
            f"{path} has {grey.shape[1]} × {grey.shape[0]} pixels, and the model was trained on {chosen['data']}, "
            f"{width} × {height}. Give it pictures of that size, made as those were; only digits are made like MNIST's"
        )
    return grey.round().astype(np.uint8)


def predict_probabilities(chosen: dict[str, Any], images: Bytes) -> np.ndarray:
    """(n, height, width) to (n, classes), in one batch."""
    import torch

    from bestepoch.components.models.inference import predict
    from bestepoch.components.models.model_file import restore_network

    logits = predict(restore_network(chosen), torch.from_numpy(images))
    return np.asarray(logits.double().softmax(1).numpy())


def write_explanation(path: Path, image: Bytes) -> Path:
    """Write what the network sees beside the picture.

    Raises:
        UsageError: a file of that name is there and was not written here for this picture.
    """
    beside = path.with_name(f"{path.stem}.{image.shape[1]}x{image.shape[0]}.png")
    mark = f"bestepoch.predict of {path.name}"
    if beside.exists():
        try:
            with Image.open(beside) as there:
                ours = there.info.get("Comment") == mark
        except OSError:
            ours = False
        if not ours:
            raise UsageError(f"{beside} is there and not the explanation of {path.name}: it is left as it is. Move it")
    note, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    note.add_text("Comment", mark)
    Image.fromarray(image).save(buffer, "png", pnginfo=note)
    files.write_atomic(beside, buffer.getvalue())
    return beside
