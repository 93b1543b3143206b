"""The networks. Each maps raw pixels to logits and normalises the pixels itself.

To add a network: add a config class to `bestepoch.base.config.groups`, a function and a case in `build_network` to this
module, and a file to ``conf/model/``. Shapes: B images in a batch, C channels, H and W pixels, K classes.
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
    "relu": partial(nn.ReLU, inplace=True),  # no layer needs the ReLU's input for its gradient
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


class Network(nn.Module):
    """Normalise raw pixels by ``mean`` and ``std`` and apply ``body``, which maps ``(B, 1, H, W)`` to logits."""

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels ``(B, H, W)`` with values 0 to 255, of any dtype, to logits, float32 ``(B, K)``."""
        logits: Tensor = self.body(((pixels.float() - self.mean) / self.std).unsqueeze(1))
        return logits


class ShiftedViews(nn.Module):
    """Average a network's logits over three views of each image (test-time augmentation).

    The views are the image itself and the image shifted by ``shift`` pixels down and right, and up and left, padded
    with 0. The network's weights are shared, not copied.
    """

    def __init__(self, network: nn.Module, shift: int) -> None:
        super().__init__()
        self.network = network
        self.shift = shift

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels ``(B, H, W)`` with values 0 to 255 to mean logits, float32 ``(B, K)``."""
        views = (pixels, *(pad(pixels, (shift, -shift, shift, -shift)) for shift in (self.shift, -self.shift)))
        return torch.stack([self.network(view) for view in views]).mean(0)


def evaluation_network(config: MlpConfig | LenetConfig | CnnConfig, network: nn.Module) -> nn.Module:
    """Return the module that evaluation and prediction call: ``network``, or its `ShiftedViews` if model.tta_shift > 0.

    Training and checkpoints use ``network`` itself.
    """
    return ShiftedViews(network, config.tta_shift) if isinstance(config, CnnConfig) and config.tta_shift else network


class Flatten(nn.Module):
    """Flatten in channels_last order, so that nothing is copied.

    The gradient of `nn.Flatten` is channels-first, which slows down the preceding layer.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, H * W * C)``."""
        return features.permute(0, 2, 3, 1).flatten(1)


def build_network(
    config: MlpConfig | LenetConfig | CnnConfig, shape: tuple[int, int], classes: int, mean: float, std: float
) -> Network:
    """Build the network of a config, with weights drawn from torch's global generator.

    ``shape`` is ``(H, W)`` in pixels; ``mean`` and ``std`` are those of the training pixels, which range from 0 to 255.

    Raises:
        UsageError: the images are too small for the network.
    """
    match config:
        case MlpConfig():
            return Network(mlp(config, shape, classes), mean, std)
        case LenetConfig():
            return Network(lenet(config, shape, classes), mean, std)
        case CnnConfig():
            return Network(cnn(config, shape, classes), mean, std)


def mlp(config: MlpConfig, shape: tuple[int, int], classes: int) -> nn.Sequential:
    """Build a multilayer perceptron on the flattened image, ``(B, 1, H, W)`` to ``(B, K)``."""
    layers: list[nn.Module] = [nn.Flatten()]
    width = shape[0] * shape[1]
    for units in config.hidden:
        layers += [nn.Linear(width, units), ACTIVATIONS[config.activation](), nn.Dropout(config.dropout)]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, classes))


def lenet(config: LenetConfig, shape: tuple[int, int], classes: int) -> nn.Sequential:
    """Build LeNet-5 with a linear output layer, ``(B, 1, H, W)`` to ``(B, K)``.

    Raises:
        UsageError: the images are smaller than 12 x 12 pixels.

    Source: LeCun et al., 1998, http://yann.lecun.com/exdb/publis/pdf/lecun-98.pdf
    """
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
    """Build blocks of convolution, max pooling, batch normalisation and activation, ``(B, 1, H, W)`` to ``(B, K)``.

    Raises:
        UsageError: a block would have an empty output, or ``tta_shift`` would move the whole image out of view.
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
            sizes[min(i, len(sizes) - 1)] for sizes in (config.kernel_sizes, config.strides, config.pool_sizes)
        )
        sides = [(side + 2 * config.padding - kernel) // stride + 1 for side in sides]
        if min(sides) < 1:
            padding = config.kernel_sizes[0] // 2
            raise UsageError(
                f"model = cnn leaves nothing of images of {shape[0]} x {shape[1]} pixels after {i + 1} of its blocks: "
                f"give it fewer model.channels, smaller model.kernel_sizes, or model.padding={padding}"
            )
        # No bias: the batch normalisation would subtract it again.
        layers.append(nn.Conv2d(width, channels, kernel, stride, config.padding, bias=False))
        if window > 1:
            # Pooling comes first: normalisation and activation then process a quarter of the values.
            layers.append(nn.MaxPool2d(window, ceil_mode=True))
            sides = [math.ceil(side / window) for side in sides]
        layers += [nn.BatchNorm2d(channels), ACTIVATIONS[config.activation]()]
        width = channels
    num_features = width * sides[0] * sides[1]
    body = nn.Sequential(*layers, Flatten(), nn.Dropout(config.dropout), nn.Linear(num_features, classes))
    return body.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
