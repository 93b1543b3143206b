"""The networks. Every one takes raw pixels and gives logits; the normalisation is part of it.

To add one: a class in `bestepoch.schema`, a function here that is named like it, a file in ``conf/model/``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bestepoch.project import UsageError
from bestepoch.schema import Cnn, Lenet, Mlp

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
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
        super().__init__()
        self.body = body
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class."""
        logits: Tensor = self.body(((pixels.float() - self.mean) / self.std).unsqueeze(1))
        return logits


def build(menu: Mlp | Lenet | Cnn, shape: tuple[int, int], classes: int, mean: float, std: float) -> Network:
    """The network that ``conf/model/`` names, with weights drawn from torch's global generator.

    Args:
        shape: height and width of an image, in pixels.
        mean, std: of the training pixels, 0 to 255.

    Raises:
        UsageError: the images are too small for it.
    """
    match menu:
        case Mlp():
            body = mlp(menu, shape, classes)
        case Lenet():
            body = lenet(menu, shape, classes)
        case Cnn():
            body = cnn(menu, shape, classes)
    return Network(body, mean, std)


def mlp(menu: Mlp, shape: tuple[int, int], classes: int) -> nn.Sequential:
    """A multilayer perceptron on the flattened image."""
    layers: list[nn.Module] = [nn.Flatten()]
    width = shape[0] * shape[1]
    for units in menu.hidden:
        layers += [nn.Linear(width, units), ACTIVATIONS[menu.activation](), nn.Dropout(menu.dropout)]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, classes))


def lenet(menu: Lenet, shape: tuple[int, int], classes: int) -> nn.Sequential:
    """LeNet-5 with a plain linear output. LeCun et al., 1998, http://yann.lecun.com/exdb/publis/pdf/lecun-98.pdf"""
    sides = [(side // 2 - 4) // 2 for side in shape]
    if min(sides) < 1:
        raise UsageError(f"model = lenet needs images of at least 12 x 12 pixels, these are {shape[0]} x {shape[1]}")
    act = ACTIVATIONS[menu.activation]
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), act(), nn.AvgPool2d(2)),
        *(nn.Conv2d(6, 16, 5), act(), nn.AvgPool2d(2)),
        nn.Flatten(),
        *(nn.Linear(16 * sides[0] * sides[1], 120), act()),
        *(nn.Linear(120, 84), act(), nn.Dropout(menu.dropout)),
        nn.Linear(84, classes),
    )


def cnn(menu: Cnn, shape: tuple[int, int], classes: int) -> nn.Sequential:
    """Blocks of a convolution, max pooling, batch normalisation and activation.

    There is no pooling in the last block, nor in the first one if its convolution has a stride.

    Raises:
        UsageError: nothing would be left of the images.
    """
    layers: list[nn.Module] = []
    width, sides = 1, list(shape)
    for i, channels in enumerate(menu.channels):
        kernel, stride = (menu.kernel, 1) if i else (menu.first_kernel, menu.first_stride)
        sides = [(side + 2 * menu.padding - kernel) // stride + 1 for side in sides]
        if min(sides) < 1:
            raise UsageError(
                f"model = cnn leaves nothing of images of {shape[0]} x {shape[1]} pixels after {i + 1} of its blocks: "
                f"give it fewer model.channels, smaller kernels, or model.padding={menu.first_kernel // 2}"
            )
        # no bias: the normalisation that follows would take it away again
        layers.append(nn.Conv2d(width, channels, kernel, stride, menu.padding, bias=False))
        if i + 1 < len(menu.channels) and stride == 1:
            # before the rest of the block, which then has a quarter of the values to look at
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
            sides = [(side + 1) // 2 for side in sides]
        layers += [nn.BatchNorm2d(channels), ACTIVATIONS[menu.activation]()]
        width = channels
    size = width * sides[0] * sides[1]
    body = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(menu.dropout), nn.Linear(size, classes))
    return body.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
