"""The layers of a network with the shapes of their outputs and their numbers of weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bestepoch.components.models.inference import predict
from bestepoch.components.models.networks import ShiftedViews

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Layer:
    """A layer: its kind, the shape of its output for one image, and its number of weights, biases included."""

    kind: str
    shape: tuple[int, ...]
    weights: int


def list_layers(network: nn.Module, images: Tensor) -> list[Layer]:
    """Return the layers of a network in the order in which they run on one of ``images``, ``(N, H, W)``."""
    network = network.network if isinstance(network, ShiftedViews) else network  # one view of the three
    layers: list[Layer] = []

    def record(module: nn.Module, _: object, output: Tensor) -> None:
        weights = sum(parameter.numel() for parameter in module.parameters())
        layers.append(Layer(type(module).__name__, tuple(output.shape[1:]), weights))

    hooks = [module.register_forward_hook(record) for module in network.modules() if not any(module.children())]
    try:
        predict(network, images[:1])
    finally:
        for hook in hooks:
            hook.remove()
    return layers
