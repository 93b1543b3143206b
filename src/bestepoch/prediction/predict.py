"""Classify pictures with the champion of MLflow's registry or with any other model of this project."""

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
DIGITS = ("mnist", "mnist_sample")  # data sets in the format that `digit_image` produces
NUM_SHOWN = 3  # classes printed per picture


def predict_pictures(arguments: list[str]) -> None:
    """Run ``python -m bestepoch.predict image.png [...] [model=...] [--explain]``: print one line per picture.

    Raises:
        UsageError: A picture is unreadable or empty, or the model does not exist or is invalid.
    """
    names, model, explain = _parse_args(arguments)
    greys = [read_picture(Path(name)) for name in names]  # a bad picture is reported before the model is loaded
    source, model_file = find_model(model)
    images = [preprocess(Path(name), grey, model_file) for name, grey in zip(names, greys, strict=True)]
    log.info("model    %s, run %s, epoch %d", source, model_file["run"], model_file["epoch"])
    if explain:
        for name, image in zip(names, images, strict=True):
            log.info("explain  %s", write_explanation(Path(name), image))
    for name, probabilities in zip(names, predict_probabilities(model_file, np.stack(images)), strict=True):
        top = np.argsort(-probabilities, kind="stable")[:NUM_SHOWN]
        first, *others = (f"{label}  {probabilities[label]:.2%}" for label in top)
        print(f"{name}  {first}  then {', '.join(' '.join(other.split()) for other in others)}")


def _parse_args(arguments: list[str]) -> tuple[list[str], str | None, bool]:
    """Return the names of the pictures, the value of ``model=`` and whether ``--explain`` is given."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("pictures", nargs="*")
    parser.add_argument("--explain", action="store_true")
    args, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        raise UsageError(f"{unknown[0]} is no option. There is: --explain")
    names = [name for name in args.pictures if not name.startswith("model=")]
    models = [name.removeprefix("model=") for name in args.pictures if name.startswith("model=")]
    if len(models) > 1:
        raise UsageError("model= is given twice. Give one")
    if not names:
        raise UsageError("Which picture? Type: python -m bestepoch.predict image.png")
    return names, models[0] if models else None, args.explain


def read_picture(path: Path) -> Grayscale:
    """Read a PNG or JPEG file as grey levels; see `digit_image.to_grayscale`.

    Raises:
        UsageError: The file is missing, not a PNG or JPEG, damaged, or has no visible content.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder. Name the pictures in it: python -m bestepoch.predict {path}/*.png")
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as opened:
            grey = digit_image.to_grayscale(opened)
    except FileNotFoundError:
        raise UsageError(f"{path} is not there") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # damaged
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({errors.first_line(error)})"
        raise UsageError(f"{path} cannot be read as a PNG or JPEG picture{reason}") from None
    if not digit_image.foreground(grey).any():
        raise UsageError(f"{path} is empty: nothing on it stands out from the background")
    return grey


def find_model(address: str | None) -> tuple[str, dict[str, Any]]:
    """Load a model.

    Args:
        address: An MLflow URI, a folder or a ``model.pt``. None selects the champion, else `PIPELINE_MODEL`.

    Returns:
        The address of the model and the contents of its ``model.pt``.

    Raises:
        UsageError: The model does not exist or is invalid, or MLflow does not return it.
    """
    from bestepoch.runs import checkpoint

    if address is not None and ":/" in address:
        return address, _load_from_mlflow(address)
    if address is None:
        champion = _find_champion()
        if champion is not None:
            return f"{champion} (champion)", _load_from_mlflow(champion)
        path = paths.project_root() / PIPELINE_MODEL
        if not path.is_file():
            raise UsageError(
                f"There is no model yet: neither a champion of {compose.read_params()['data']} in MLflow's registry, "
                f"nor {PIPELINE_MODEL}. Make both with: dvc repro"
            )
    else:
        path = Path(address) / "model.pt" if Path(address).is_dir() else Path(address)
        if not path.is_file():
            raise UsageError(
                f"model = {address} is not there. It may be an address in MLflow (models:/bestepoch-mnist@champion), a "
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
        model_file = registry.load_model_file(address)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"MLflow does not give {address}: {failure_reason(error)}") from None
    if model_file is None:
        raise UsageError(f"{address} is not there, or not a model that python -m bestepoch.evaluate has logged")
    return _require_keys(address, model_file)


def _require_keys(source: str, model_file: dict[str, Any]) -> dict[str, Any]:
    if missing := {"network", "model", "shape", "data", "run", "epoch"} - model_file.keys():
        raise UsageError(
            f"{source} is not what python -m bestepoch.evaluate writes now: it has no {', '.join(sorted(missing))}. "
            "Write it anew with: python -m bestepoch.evaluate run=runs/<name>"
        )
    return model_file


def preprocess(path: Path, grey: Grayscale, model_file: dict[str, Any]) -> Bytes:
    """Convert a picture to the format of the model's training images.

    Args:
        path: File of the picture, for the error message.
        grey: float64 ``(H, W)``, 0 to 255.
        model_file: Contents of ``model.pt``.

    Returns:
        uint8 ``(height, width)`` of the training images.

    Raises:
        UsageError: The model was not trained on MNIST digits and the picture is not the size of its training images.
    """
    if model_file["data"] in DIGITS:
        return digit_image.centre_digit(digit_image.foreground(grey))
    height, width = model_file["shape"]
    if grey.shape != (height, width):
        raise UsageError(
            f"{path} has {grey.shape[1]} × {grey.shape[0]} pixels, and the model was trained on {model_file['data']}, "
            f"{width} × {height}. Give it pictures of that size, made as those were; only digits are made like MNIST's"
        )
    return grey.round().astype(np.uint8)


def predict_probabilities(model_file: dict[str, Any], images: Bytes) -> np.ndarray:
    """Return the class probabilities of uint8 images ``(N, H, W)`` in one batch, as float64 ``(N, classes)``."""
    import torch

    from bestepoch.components.models.inference import predict
    from bestepoch.components.models.model_file import restore_network

    logits = predict(restore_network(model_file), torch.from_numpy(images))
    return np.asarray(logits.double().softmax(1).numpy())


def write_explanation(path: Path, image: Bytes) -> Path:
    """Write the network's input image, uint8 ``(H, W)``, to ``<stem>.<W>x<H>.png`` in the folder of the picture.

    Raises:
        UsageError: A file of that name exists and is not an explanation of this picture.
    """
    target = path.with_name(f"{path.stem}.{image.shape[1]}x{image.shape[0]}.png")
    comment = f"bestepoch.predict of {path.name}"
    if target.exists():
        try:
            with Image.open(target) as existing:
                is_explanation = existing.info.get("Comment") == comment
        except OSError:
            is_explanation = False
        if not is_explanation:
            raise UsageError(f"{target} is there and not the explanation of {path.name}: it is left as it is. Move it")
    info, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    info.add_text("Comment", comment)
    Image.fromarray(image).save(buffer, "png", pnginfo=info)
    files.write_atomic(target, buffer.getvalue())
    return target
