"""The networks. Every one takes raw pixels and gives logits; the normalisation is part of it.

To add one: a class in `bestepoch.base.config.schema`, a function here that is named like it, a file in ``conf/model/``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from bestepoch.base.config.groups import CnnConfig, LenetConfig, MlpConfig
from bestepoch.base.errors import UsageError

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),  # no layer's gradient asks for what comes in
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


class Network(nn.Module):
    """Raw pixels to logits.

    Takes (n, height, width) with values 0 to 255, of any type; returns (n, classes), float32.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, mean: float, std: float) -> None:
        """Around ``body``, from normalised pixels to logits."""
        super().__init__()
        self.body = body
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class."""
        logits: Tensor = self.body(((pixels.float() - self.mean) / self.std).unsqueeze(1))
        return logits


class ShiftedViews(nn.Module):
    """The mean of a network's logits over three views of an image (test-time augmentation).

    The views are the image as it is, moved down and right, and moved up and left; zeros come in at the edge. Takes and
    returns what `Network` does.
    """

    def __init__(self, network: nn.Module, shift: int) -> None:
        """Around ``network``, whose weights it shares; ``shift`` is in pixels."""
        super().__init__()
        self.network = network
        self.shift = shift

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class."""
        views = (pixels, *(pad(pixels, (by, -by, by, -by)) for by in (self.shift, -self.shift)))
        return torch.stack([self.network(view) for view in views]).mean(0)


def evaluation_network(config: MlpConfig | LenetConfig | CnnConfig, network: nn.Module) -> nn.Module:
    """What evaluation and prediction call: ``network`` itself, or `ShiftedViews` of it by ``model.tta_shift``.

    Training and checkpoints take ``network``.
    """
    return ShiftedViews(network, config.tta_shift) if isinstance(config, CnnConfig) and config.tta_shift else network


class Flatten(nn.Module):
    """(n, c, height, width) to (n, height * width * c): the order that channels_last has in memory, so none is copied.

    `nn.Flatten` goes channel by channel, and the gradient that comes back that way slows the layer before.
    """

    def forward(self, values: Tensor) -> Tensor:
        """See the class."""
        return values.permute(0, 2, 3, 1).flatten(1)


def build_network(
    config: MlpConfig | LenetConfig | CnnConfig, shape: tuple[int, int], classes: int, mean: float, std: float
) -> Network:
    """The network that ``conf/model/`` names, with weights drawn from torch's global generator.

    Args:
        shape: height and width of an image, in pixels.
        mean, std: of the training pixels, 0 to 255.

    Raises:
        UsageError: the images are too small for it.
    """
    match config:
        case MlpConfig():
            return Network(mlp(config, shape, classes), mean, std)
        case LenetConfig():
            return Network(lenet(config, shape, classes), mean, std)
        case CnnConfig():
            return Network(cnn(config, shape, classes), mean, std)


def mlp(config: MlpConfig, shape: tuple[int, int], classes: int) -> nn.Sequential:
    """A multilayer perceptron on the flattened image."""
    layers: list[nn.Module] = [nn.Flatten()]
    width = shape[0] * shape[1]
    for units in config.hidden:
        layers += [nn.Linear(width, units), ACTIVATIONS[config.activation](), nn.Dropout(config.dropout)]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, classes))


def lenet(config: LenetConfig, shape: tuple[int, int], classes: int) -> nn.Sequential:
    """LeNet-5 with a plain linear output. LeCun et al., 1998, http://yann.lecun.com/exdb/publis/pdf/lecun-98.pdf"""
    sides = [(side // 2 - 4) // 2 for side in shape]
    if min(sides) < 1:
        raise UsageError(f"model = lenet needs images of at least 12 x 12 pixels, these are {shape[0]} x {shape[1]}")
    act = ACTIVATIONS[config.activation]
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), act(), nn.AvgPool2d(2)),
        *(nn.Conv2d(6, 16, 5), act(), nn.AvgPool2d(2)),
        nn.Flatten(),
        *(nn.Linear(16 * sides[0] * sides[1], 120), act()),
        *(nn.Linear(120, 84), act(), nn.Dropout(config.dropout)),
        nn.Linear(84, classes),
    )


def cnn(config: CnnConfig, shape: tuple[int, int], classes: int) -> nn.Sequential:
    """Blocks of a convolution, max pooling, batch normalisation and activation.

    Raises:
        UsageError: nothing would be left of the images, or seen of a moved one.
    """
    if config.tta_shift >= min(shape):
        raise UsageError(
            f"model.tta_shift = {config.tta_shift} moves images of {shape[0]} x {shape[1]} pixels out of sight: "
            f"at most {min(shape) - 1}, or 0 for none"
        )
    layers: list[nn.Module] = []
    width, sides = 1, list(shape)
    for i, channels in enumerate(config.channels):
        kernel, stride, window = (
            given[min(i, len(given) - 1)] for given in (config.kernel_sizes, config.strides, config.pool_sizes)
        )
        sides = [(side + 2 * config.padding - kernel) // stride + 1 for side in sides]
        if min(sides) < 1:
            padding = config.kernel_sizes[0] // 2
            raise UsageError(
                f"model = cnn leaves nothing of images of {shape[0]} x {shape[1]} pixels after {i + 1} of its blocks: "
                f"give it fewer model.channels, smaller model.kernel_sizes, or model.padding={padding}"
            )
        # no bias: the normalisation that follows would take it away again
        layers.append(nn.Conv2d(width, channels, kernel, stride, config.padding, bias=False))
        if window > 1:
            # before the rest of the block, which then has a quarter of the values to look at
            layers.append(nn.MaxPool2d(window, ceil_mode=True))
            sides = [math.ceil(side / window) for side in sides]
        layers += [nn.BatchNorm2d(channels), ACTIVATIONS[config.activation]()]
        width = channels
    size = width * sides[0] * sides[1]
    body = nn.Sequential(*layers, Flatten(), nn.Dropout(config.dropout), nn.Linear(size, classes))
    return body.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
