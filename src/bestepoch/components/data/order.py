"""The order of an epoch and the random streams: pure functions of seed and epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]


def epoch_permutation(seed: int, epoch: int, images: int) -> torch.Tensor:
    """The order in which an epoch visits the training images: a pure function of its arguments.

    Returns:
        a permutation of 0 .. images-1, int64.
    """
    import torch

    return torch.randperm(images, generator=make_generator(seed, epoch, 0))


def rank_seed(seed: int, rank: int) -> int:
    """The seed for what one of several processes draws on the way, such as dropout."""
    import numpy as np

    return int(np.random.SeedSequence([seed, rank], spawn_key=(2,)).generate_state(1, np.uint64)[0] >> 1)


def make_generator(seed: int, epoch: int, purpose: int) -> torch.Generator:
    """Independent streams for each (seed, epoch, purpose); nothing of it needs saving."""
    import numpy as np
    import torch

    words = np.random.SeedSequence([seed, epoch, purpose]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(words[0]) << 31 ^ int(words[1]))
