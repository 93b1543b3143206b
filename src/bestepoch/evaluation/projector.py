"""Test images in TensorBoard's projector: where the last hidden layer of the chosen network puts them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from bestepoch.base.files import staged_folder, write_atomic
from bestepoch.components.models.inference import predict
from bestepoch.components.models.networks import ShiftedViews
from bestepoch.evaluation.figures import tile_images

if TYPE_CHECKING:
    from bestepoch.evaluation.predictions import TestPredictions

FOLDER = "embeddings"  # in the folder of the run, beside its event files
MAX_IMAGES = 1000  # what the projector moves smoothly in a browser


def write_embeddings(folder: Path, network: nn.Module, tested: TestPredictions, epoch: int) -> None:
    """Write the embeddings of the first 1,000 test images, their pictures and labels, in place of earlier ones.

    Args:
        folder: folder of the run with its event files.
        network: the chosen network.
        tested: its predictions on the test images.
        epoch: the chosen epoch, which the projector shows.
    """
    from PIL import Image
    from tensorboard.plugins.projector import ProjectorConfig, visualize_embeddings

    shown = tested.images[:MAX_IMAGES]
    embeddings = embed_images(network, torch.from_numpy(shown)).cpu().numpy()
    labels = zip(tested.actual[:MAX_IMAGES], tested.predicted[:MAX_IMAGES], range(len(shown)), strict=True)
    with staged_folder(folder / FOLDER) as staging:
        np.savetxt(staging / "embeddings.tsv", embeddings, fmt="%.6g", delimiter="\t")
        rows = ["actual\tpredicted\tindex", *("\t".join(map(str, row)) for row in labels)]
        write_atomic(staging / "labels.tsv", "\n".join(rows) + "\n")
        Image.fromarray(tile_images(shown, enlarged=1)).save(staging / "images.png")

    config = ProjectorConfig()
    entry = config.embeddings.add()
    entry.tensor_name = f"test images, epoch {epoch}"
    entry.tensor_shape.extend(embeddings.shape)
    entry.tensor_path = f"{FOLDER}/embeddings.tsv"
    entry.metadata_path = f"{FOLDER}/labels.tsv"
    entry.sprite.image_path = f"{FOLDER}/images.png"
    entry.sprite.single_image_dim.extend(side + 2 for side in shown.shape[:0:-1])  # width and height, with their frame
    visualize_embeddings(str(folder), config)


def embed_images(network: nn.Module, images: Tensor) -> Tensor:
    """Return what the last linear layer of a network is given for ``images``, float32 ``(N, features)``."""
    network = network.network if isinstance(network, ShiftedViews) else network  # one view of the three
    output = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    batches: list[Tensor] = []
    hook = output.register_forward_pre_hook(lambda _, arguments: batches.append(arguments[0].float()))
    try:
        predict(network, images)
    finally:
        hook.remove()
    return torch.cat(batches)
