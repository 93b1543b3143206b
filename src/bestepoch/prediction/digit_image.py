"""A picture of a digit to an image as MNIST has them: pure functions of pixels.

MNIST's digits were scaled to 20 pixels, keeping their proportions and with antialiasing, and placed with their centre
of mass at the centre of 28 × 28 pixels, light on dark. http://yann.lecun.com/exdb/mnist/
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Bytes = NDArray[np.uint8]
Grayscale = NDArray[np.float64]

SIDE = 28  # pixels of an image
DIGIT = 20  # pixels of the larger side of the digit in it
CENTRE = SIDE // 2  # the pixel that the centre of mass falls on, in every one of MNIST's 70,000 images
BACKGROUND_FRACTION = (
    0.25  # what differs from the background by a smaller share of the strongest difference belongs to it
)
MIN_CONTRAST = 25.0  # of 255 grey levels: where nothing differs by more, there is nothing to see


def to_grayscale(picture: Image.Image) -> Grayscale:
    """The right way up; what can be seen through lies on white or black, whichever the rest stands out from.

    Returns:
        (height, width), 0 black to 255 white.
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16 bits a pixel
        return np.asarray(picture, np.float64) / 257
    if not picture.has_transparency_data:
        return np.asarray(picture.convert("L"), np.float64)
    both = np.asarray(picture.convert("RGBA").convert("LA"), np.float64)
    shade, opaque = both[..., 0], both[..., 1] / 255
    behind = 255.0 if (shade * opaque).sum() < 127.5 * opaque.sum() else 0.0
    return np.asarray(shade * opaque + behind * (1 - opaque))


def foreground(grey: Grayscale) -> Grayscale:
    """By how much each pixel of a picture differs from the background, which is what most of the picture's edge shows.

    Dark on light or light on dark is told by which of the two is farther from the background.

    Returns:
        (height, width), 0 (background) to 255; all zero where nothing is to be seen.
    """
    edge = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    difference = grey - np.median(edge)
    if difference.max() < -difference.min():
        difference = -difference
    return difference.clip(0) if difference.max() > MIN_CONTRAST else np.zeros_like(grey)


def centre_digit(ink: Grayscale) -> Bytes:
    """Scale and centre as MNIST's images are; one that is so already is left as it is.

    Args:
        ink: (height, width), not all zero; see `ink`.

    Returns:
        (28, 28).
    """
    if ink.shape == (SIDE, SIDE) and _is_centred(ink):
        return _to_bytes(ink)
    kept = np.where(ink < BACKGROUND_FRACTION * ink.max(), 0.0, ink)
    rows, columns = _bounding_box(kept)
    scale = DIGIT / max(rows.stop - rows.start, columns.stop - columns.start)
    size = [max(1, round(scale * (side.stop - side.start))) for side in (columns, rows)]
    scaled = _resize(kept[rows, columns], (size[0], size[1]))
    scaled *= 255 / scaled.max()  # a thin line loses its strength to the paper around it
    out = np.zeros((SIDE, SIDE))
    top, left = (
        min(max(round(CENTRE - mass), 0), SIDE - n)
        for mass, n in zip(_centre_of_mass(scaled), scaled.shape, strict=True)
    )
    out[top : top + scaled.shape[0], left : left + scaled.shape[1]] = scaled
    return _to_bytes(out)


def _is_centred(ink: Grayscale) -> bool:
    rows, columns = _bounding_box(ink)
    larger = max(rows.stop - rows.start, columns.stop - columns.start)
    # some few of MNIST's are a pixel smaller
    return DIGIT - 1 <= larger <= DIGIT and all(abs(mass - CENTRE) < 0.51 for mass in _centre_of_mass(ink))


def _bounding_box(ink: Grayscale) -> tuple[slice, slice]:
    """Rows and columns that hold all ink."""
    from scipy.ndimage import find_objects

    ((rows, columns),) = find_objects((ink != 0).astype(np.intp))
    return rows, columns


def _centre_of_mass(ink: Grayscale) -> tuple[float, float]:
    """Row and column of the centre of mass, in pixels from the first one's middle."""
    from scipy.ndimage import center_of_mass

    row, column = center_of_mass(ink)
    return float(row), float(column)


def _resize(ink: Grayscale, size: tuple[int, int]) -> Any:
    picture = Image.fromarray(ink.astype(np.float32))
    return np.asarray(picture.resize(size, Image.Resampling.BICUBIC), np.float64).clip(0)


def _to_bytes(ink: Grayscale) -> Bytes:
    return ink.round().clip(0, 255).astype(np.uint8)
