"""Augmentation of training images: a pure function of seed, epoch and image."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bestepoch.components.data.order import make_generator

if TYPE_CHECKING:
    import torch

    from bestepoch.base.config.groups import AffineConfig, NoAugmentConfig, ShiftConfig


class Augment:
    """One epoch's augmentation: how each image is varied is drawn for the whole epoch at once.

    So it is a pure function of (seed, epoch, image), the same whatever the batch size and wherever training resumed.
    """

    def __init__(
        self,
        config: NoAugmentConfig | ShiftConfig | AffineConfig,
        seed: int,
        epoch: int,
        images: int,
        device: torch.device,
    ) -> None:
        import torch

        draw = make_generator(seed, epoch, 1)
        self.config = config
        self.params: torch.Tensor | None = None
        """For each image: where its window is, (n, 2), or how it is mapped, (n, 2, 3)."""
        if config.name == "shift":
            self.params = torch.randint(0, 2 * config.pixels + 1, (images, 2), generator=draw).to(device)
        elif config.name == "affine":
            self.params = _affine_matrices(torch.rand((images, 6), generator=draw) * 2 - 1, config).to(device)

    def copy_params_from(self, other: Augment) -> None:
        """Vary as ``other`` does, another epoch's of the same kind; what was drawn stays where it is in memory."""
        if self.params is not None and other.params is not None:
            self.params.copy_(other.params)

    def __call__(self, images: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """``images``: uint8 (n, height, width), the ones at ``index`` of the training set. Returns the same shape."""
        if self.params is None or not len(index):  # none of a small batch on several processes
            return images
        if self.config.name == "shift":
            return _random_shift(images, self.params[index], self.config.pixels)
        return _affine_warp(images, self.params[index])


def _random_shift(images: torch.Tensor, moves: torch.Tensor, pixels: int) -> torch.Tensor:
    import torch
    from torch.nn.functional import pad

    n, height, width = images.shape
    padded = pad(images, (pixels, pixels, pixels, pixels))
    # every place of the window as a view: an index for an image, not for each of its pixels
    windows = padded.unfold(1, height, 1).unfold(2, width, 1)
    return windows[torch.arange(n, device=images.device), moves[:, 0], moves[:, 1]]


def _affine_matrices(draws: torch.Tensor, config: AffineConfig) -> torch.Tensor:
    """(n, 6) draws in [-1, 1) to (n, 2, 3): a linear map and a move in pixels."""
    import torch

    angle = draws[:, 0] * math.radians(config.degrees)
    shear = torch.tan(draws[:, 1] * math.radians(config.shear))
    wide, high = 1 + draws[:, 2] * config.scale, 1 + draws[:, 3] * config.scale
    cos, sin = angle.cos(), angle.sin()
    rows = [
        torch.stack([cos / wide, (shear * cos - sin) / wide, draws[:, 4] * config.translate], 1),
        torch.stack([sin / high, (shear * sin + cos) / high, draws[:, 5] * config.translate], 1),
    ]
    return torch.stack(rows, 1)


def _affine_warp(images: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    n, height, width = images.shape
    theta = matrices.clone()
    # affine_grid works in half images: a pixel is 2/width across and 2/height down
    theta[:, 0, 2] *= 2 / width
    theta[:, 1, 2] *= 2 / height
    theta[:, 0, 1] *= height / width
    theta[:, 1, 0] *= width / height
    grid = affine_grid(theta, [n, 1, height, width], align_corners=False)
    moved = grid_sample(images.unsqueeze(1).float(), grid, align_corners=False).squeeze(1)
    return moved.round_().clamp_(0, 255).to(torch.uint8)
