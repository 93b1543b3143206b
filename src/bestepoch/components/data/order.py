"""Derive the order of an epoch and the random generators from the seed and the epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def epoch_permutation(seed: int, epoch: int, num_images: int) -> torch.Tensor:
    """Return the order in which an epoch visits the training images: a permutation, int64 ``(num_images,)``."""
    import torch

    return torch.randperm(num_images, generator=make_generator(seed, epoch, 0))


def evaluation_subset(
    images: torch.Tensor, labels: torch.Tensor, count: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return ``count`` training images that are scored after each epoch and their labels, or None for a count of 0.

    They are in the order of ``images``, and the same ones whatever the seed of the training. If there are fewer images
    than ``count``, all of them are returned.
    """
    import torch

    if not count:
        return None
    index = torch.randperm(len(images), generator=make_generator(seed, 0, 1))[:count].sort().values.to(images.device)
    return images[index], labels[index]


def rank_seed(seed: int, rank: int) -> int:
    """Return the seed of one rank's global generator, which dropout draws from."""
    import numpy as np

    return int(np.random.SeedSequence([seed, rank], spawn_key=(2,)).generate_state(1, np.uint64)[0] >> 1)


def make_generator(seed: int, epoch: int, purpose: int) -> torch.Generator:
    """Return an independent CPU generator for (seed, epoch, purpose); a checkpoint need not store its state."""
    import numpy as np
    import torch

    words = np.random.SeedSequence([seed, epoch, purpose]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(words[0]) << 31 ^ int(words[1]))
