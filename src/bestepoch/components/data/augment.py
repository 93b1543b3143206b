"""Augment training images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bestepoch.components.data.order import make_generator

if TYPE_CHECKING:
    import torch

    from bestepoch.base.config.groups import AffineConfig, NoAugmentConfig, ShiftConfig


class Augment:
    """Augment the training images of one epoch.

    The parameters of all images are drawn at once, so that an augmented image depends only on (seed, epoch, image) and
    not on the batch size or on where training resumed.
    """

    def __init__(
        self,
        config: NoAugmentConfig | ShiftConfig | AffineConfig,
        seed: int,
        epoch: int,
        num_images: int,
        device: torch.device,
    ) -> None:
        import torch

        generator = make_generator(seed, epoch, 1)
        self.config = config
        self.params: torch.Tensor | None = None
        """Per image: the corner of its window, int64 ``(N, 2)``, or its affine matrix, float32 ``(N, 2, 3)``."""
        if config.name == "shift":
            self.params = torch.randint(0, 2 * config.pixels + 1, (num_images, 2), generator=generator).to(device)
        elif config.name == "affine":
            draws = torch.rand((num_images, 6), generator=generator) * 2 - 1
            self.params = _affine_matrices(draws, config).to(device)

    def copy_params_from(self, other: Augment) -> None:
        """Copy the parameters of another epoch's `Augment` in place: a CUDA graph reads the same memory each epoch."""
        if self.params is not None and other.params is not None:
            self.params.copy_(other.params)

    def __call__(self, images: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Augment a batch.

        Args:
            images: uint8 ``(B, H, W)``.
            index: the positions of the images in the training set, int64 ``(B,)``.

        Returns:
            the augmented images, uint8 ``(B, H, W)``.
        """
        if self.params is None or not len(index):  # a rank's shard of a small batch may be empty
            return images
        if self.config.name == "shift":
            return _random_shift(images, self.params[index], self.config.pixels)
        return _affine_warp(images, self.params[index])


def _random_shift(images: torch.Tensor, corners: torch.Tensor, pixels: int) -> torch.Tensor:
    import torch
    from torch.nn.functional import pad

    batch_size, height, width = images.shape
    padded = pad(images, (pixels, pixels, pixels, pixels))
    # All windows are views of the padded images, so one index per image is enough.
    windows = padded.unfold(1, height, 1).unfold(2, width, 1)
    return windows[torch.arange(batch_size, device=images.device), corners[:, 0], corners[:, 1]]


def _affine_matrices(draws: torch.Tensor, config: AffineConfig) -> torch.Tensor:
    """Convert draws in [-1, 1), ``(N, 6)``, to affine matrices ``(N, 2, 3)`` with the translation in pixels."""
    import torch

    angle = draws[:, 0] * math.radians(config.degrees)
    shear = torch.tan(draws[:, 1] * math.radians(config.shear))
    scale_x, scale_y = 1 + draws[:, 2] * config.scale, 1 + draws[:, 3] * config.scale
    cos, sin = angle.cos(), angle.sin()
    rows = [
        torch.stack([cos / scale_x, (shear * cos - sin) / scale_x, draws[:, 4] * config.translate], 1),
        torch.stack([sin / scale_y, (shear * sin + cos) / scale_y, draws[:, 5] * config.translate], 1),
    ]
    return torch.stack(rows, 1)


def _affine_warp(images: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    batch_size, height, width = images.shape
    theta = matrices.clone()
    # affine_grid uses coordinates from -1 to 1: one pixel is 2 / width across and 2 / height down.
    theta[:, 0, 2] *= 2 / width
    theta[:, 1, 2] *= 2 / height
    theta[:, 0, 1] *= height / width
    theta[:, 1, 0] *= width / height
    grid = affine_grid(theta, [batch_size, 1, height, width], align_corners=False)
    warped = grid_sample(images.unsqueeze(1).float(), grid, align_corners=False).squeeze(1)
    return warped.round_().clamp_(0, 255).to(torch.uint8)
