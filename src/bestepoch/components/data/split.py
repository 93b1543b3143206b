"""IDX files, the split on the disk, and images as tensors in memory, where a batch is an index."""

from __future__ import annotations

import functools
import gzip
import hashlib
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestepoch.base import files
from bestepoch.base.files import UsageError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from bestepoch.base.config.schema import Affine, NoAugment, Shift

    Bytes = NDArray[np.uint8]


def read_idx(path: Path, ndim: int) -> Bytes:
    """An IDX file of unsigned bytes, gzipped or not.

    Returns:
        images (n, height, width) for ``ndim`` 3, labels (n,) for ``ndim`` 1.

    Raises:
        UsageError: not an IDX file of bytes with that many dimensions, or cut short, or too long.

    Source: http://yann.lecun.com/exdb/mnist/, "the IDX file format".
    """
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise UsageError(f"{path.name} is not a whole gzip file: {error}") from None
    if len(raw) < 4 or raw[:2] != b"\0\0":
        raise UsageError(f"{path.name} is not an IDX file: it begins with {raw[:4].hex(' ') or 'nothing'}")
    if raw[2] != 0x08 or raw[3] != ndim:
        raise UsageError(
            f"{path.name} holds type 0x{raw[2]:02x} in {raw[3]} dimensions; needed: unsigned bytes (0x08) in {ndim}"
        )
    head = 4 + 4 * ndim
    shape = tuple(int.from_bytes(raw[i : i + 4], "big") for i in range(4, head, 4))
    if len(raw) < head:
        raise UsageError(f"{path.name} ends inside its head, after {len(raw)} of {head} bytes")
    if len(raw) != head + math.prod(shape):
        raise UsageError(f"{path.name} says {shape} but holds {len(raw) - head:,} bytes of data")
    import numpy as np

    return np.frombuffer(raw, np.uint8, offset=head).reshape(shape)


def idx_bytes(array: Bytes) -> bytes:
    """``array`` as a gzipped IDX file; the same bytes each time."""
    head = bytes([0, 0, 0x08, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return gzip.compress(head + array.tobytes(), mtime=0)


def md5(path: Path) -> str:
    """The checksum by which data sets are published; no protection against intent."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@dataclass(frozen=True, eq=False)
class Summary:
    """What ``summary.json`` says of a split. Equal are those of the same bytes in the same place."""

    folder: Path
    values: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Summary:
        """Raises UsageError where there is no split."""
        return cls(folder, files.read_json(folder / "summary.json", "dvc repro split"))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Summary) and (self.folder, self.checksum) == (other.folder, other.checksum)

    def __hash__(self) -> int:
        return hash((self.folder, self.checksum))

    @property
    def name(self) -> str:
        """The data set that is really there: the sample's name where it stands in for another."""
        return str(self.values["name"])

    @property
    def requested(self) -> str:
        """The data set that was asked for."""
        return str(self.values["request"]["data"])

    @property
    def checksum(self) -> str:
        """SHA-256 over all three parts, images and labels."""
        return str(self.values["checksum"])

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of an image, in pixels."""
        height, width = self.values["image"]
        return height, width

    @property
    def classes(self) -> int:
        """How many labels there are."""
        return int(self.values["classes"])

    @property
    def offline_sample(self) -> bool:
        """Whether the sample stands in because no mirror answered."""
        return self.name != self.requested


def load(folder: Path, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """One part of a split: "train", "validation" or "test".

    Only the evaluation stage asks for "test".

    Returns:
        images, uint8 (n, height, width), and labels, int64 (n,).
    """
    import numpy as np
    import torch

    path = folder / f"{part}.npz"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"]).long()
    except FileNotFoundError:
        raise UsageError(f"{files.relative(path)} is not there. Make it with: dvc repro split") from None


@functools.lru_cache(maxsize=4)
def on_device(split: Summary, part: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """`load`, on the device, and once for all jobs that this process trains; nobody may change the tensors."""
    images, labels = load(split.folder, part)
    return images.to(device), labels.to(device)


def order(seed: int, epoch: int, images: int) -> torch.Tensor:
    """The order in which an epoch visits the training images: a pure function of its arguments.

    Returns:
        a permutation of 0 .. images-1, int64.
    """
    import torch

    return torch.randperm(images, generator=_generator(seed, epoch, 0))


def stream(seed: int, rank: int) -> int:
    """The seed for what one of several processes draws on the way, such as dropout."""
    import numpy as np

    return int(np.random.SeedSequence([seed, rank], spawn_key=(2,)).generate_state(1, np.uint64)[0] >> 1)


def _generator(seed: int, epoch: int, purpose: int) -> torch.Generator:
    """Independent streams for each (seed, epoch, purpose); nothing of it needs saving."""
    import numpy as np
    import torch

    words = np.random.SeedSequence([seed, epoch, purpose]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(words[0]) << 31 ^ int(words[1]))


class Augment:
    """One epoch's augmentation: how each image is varied is drawn for the whole epoch at once.

    So it is a pure function of (seed, epoch, image), the same whatever the batch size and wherever training resumed.
    """

    def __init__(
        self, menu: NoAugment | Shift | Affine, seed: int, epoch: int, images: int, device: torch.device
    ) -> None:
        import torch

        draw = _generator(seed, epoch, 1)
        self.menu = menu
        self.drawn: torch.Tensor | None = None
        """For each image: where its window is, (n, 2), or how it is mapped, (n, 2, 3)."""
        if menu.name == "shift":
            self.drawn = torch.randint(0, 2 * menu.pixels + 1, (images, 2), generator=draw).to(device)
        elif menu.name == "affine":
            self.drawn = _affine(torch.rand((images, 6), generator=draw) * 2 - 1, menu).to(device)

    def take(self, other: Augment) -> None:
        """Vary as ``other`` does, another epoch's of the same kind; what was drawn stays where it is in memory."""
        if self.drawn is not None and other.drawn is not None:
            self.drawn.copy_(other.drawn)

    def __call__(self, images: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """``images``: uint8 (n, height, width), the ones at ``index`` of the training set. Returns the same shape."""
        if self.drawn is None or not len(index):  # none of a small batch on several processes
            return images
        if self.menu.name == "shift":
            return _shifted(images, self.drawn[index], self.menu.pixels)
        return _warped(images, self.drawn[index])


def _shifted(images: torch.Tensor, moves: torch.Tensor, pixels: int) -> torch.Tensor:
    import torch
    from torch.nn.functional import pad

    n, height, width = images.shape
    padded = pad(images, (pixels, pixels, pixels, pixels))
    # every place of the window as a view: an index for an image, not for each of its pixels
    windows = padded.unfold(1, height, 1).unfold(2, width, 1)
    return windows[torch.arange(n, device=images.device), moves[:, 0], moves[:, 1]]


def _affine(draws: torch.Tensor, menu: Affine) -> torch.Tensor:
    """(n, 6) draws in [-1, 1) to (n, 2, 3): a linear map and a move in pixels."""
    import torch

    angle = draws[:, 0] * math.radians(menu.degrees)
    shear = torch.tan(draws[:, 1] * math.radians(menu.shear))
    wide, high = 1 + draws[:, 2] * menu.scale, 1 + draws[:, 3] * menu.scale
    cos, sin = angle.cos(), angle.sin()
    rows = [
        torch.stack([cos / wide, (shear * cos - sin) / wide, draws[:, 4] * menu.translate], 1),
        torch.stack([sin / high, (shear * sin + cos) / high, draws[:, 5] * menu.translate], 1),
    ]
    return torch.stack(rows, 1)


def _warped(images: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
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
