"""Convert a picture of a digit to an image in MNIST's format, with pure functions of pixels.

MNIST's digits are light on dark, scaled with antialiasing to fit 20 × 20 pixels at their aspect ratio, and placed with
their centre of mass at the centre of 28 × 28 pixels. Source: http://yann.lecun.com/exdb/mnist/
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Bytes = NDArray[np.uint8]
Grayscale = NDArray[np.float64]

SIDE = 28  # pixels of an image's side
DIGIT = 20  # pixels of the digit's longer side
CENTRE = SIDE // 2  # pixel of the centre of mass, in all of MNIST's 70,000 images
BACKGROUND_FRACTION = 0.25  # pixels below this fraction of the strongest contrast count as background
MAX_PIXELS = 25_000_000  # of a picture; it takes 32 bytes a pixel, and a small file may hold any number of them
MIN_CONTRAST = 25.0  # grey levels of 255; a picture with less contrast counts as empty


def to_grayscale(picture: Image.Image) -> Grayscale:
    """Apply the EXIF orientation and convert to grey levels.

    Transparent pixels are composited onto black or white, whichever contrasts more with the opaque pixels.

    Returns:
        float64 ``(H, W)``, 0 (black) to 255 (white).

    Raises:
        ValueError: the picture has more than `MAX_PIXELS` pixels; none of them is decoded.
    """
    if picture.width * picture.height > MAX_PIXELS:
        raise ValueError(
            f"{picture.width:,} × {picture.height:,} pixels; at most {MAX_PIXELS:,} in all are read: scale it down"
        )
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16 bits per pixel
        return np.asarray(picture, np.float64) / 257
    if not picture.has_transparency_data:
        return np.asarray(picture.convert("L"), np.float64)
    luminance_alpha = np.asarray(picture.convert("RGBA").convert("LA"), np.float64)
    luminance, alpha = luminance_alpha[..., 0], luminance_alpha[..., 1] / 255
    backdrop = 255.0 if (luminance * alpha).sum() < 127.5 * alpha.sum() else 0.0
    return np.asarray(luminance * alpha + backdrop * (1 - alpha))


def foreground(grey: Grayscale) -> Grayscale:
    """Return the contrast of each pixel with the background, which is the median of the picture's edge.

    The digit is dark on light if the darkest pixel is farther from the background than the lightest one.

    Args:
        grey: float64 ``(H, W)``, 0 to 255.

    Returns:
        float64 ``(H, W)``, 0 (background) to 255; all zero if the contrast is at most `MIN_CONTRAST`.
    """
    edge = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    difference = grey - np.median(edge)
    if difference.max() < -difference.min():
        difference = -difference
    return difference.clip(0) if difference.max() > MIN_CONTRAST else np.zeros_like(grey)


def centre_digit(ink: Grayscale) -> Bytes:
    """Scale and centre a digit as in MNIST; an image that is already 28 × 28 and centred is only rounded.

    Args:
        ink: Output of `foreground`, float64 ``(H, W)``, not all zero.

    Returns:
        uint8 ``(28, 28)``.
    """
    if ink.shape == (SIDE, SIDE) and _is_centred(ink):
        return _to_bytes(ink)
    digit = np.where(ink < BACKGROUND_FRACTION * ink.max(), 0.0, ink)
    rows, columns = _bounding_box(digit)
    scale = DIGIT / max(rows.stop - rows.start, columns.stop - columns.start)
    width, height = (max(1, round(scale * (side.stop - side.start))) for side in (columns, rows))
    resized = Image.fromarray(digit[rows, columns].astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    scaled = np.asarray(resized, np.float64).clip(0)
    scaled *= 255 / scaled.max()  # resizing blends a thin line with the background
    image = np.zeros((SIDE, SIDE))
    top, left = (
        min(max(round(CENTRE - mass), 0), SIDE - n)
        for mass, n in zip(_centre_of_mass(scaled), scaled.shape, strict=True)
    )
    image[top : top + height, left : left + width] = scaled
    return _to_bytes(image)


def _is_centred(ink: Grayscale) -> bool:
    rows, columns = _bounding_box(ink)
    size = max(rows.stop - rows.start, columns.stop - columns.start)
    # A few of MNIST's digits are one pixel smaller.
    return DIGIT - 1 <= size <= DIGIT and all(abs(mass - CENTRE) < 0.51 for mass in _centre_of_mass(ink))


def _bounding_box(ink: Grayscale) -> tuple[slice, slice]:
    """Return the rows and columns that contain all nonzero pixels."""
    from scipy.ndimage import find_objects

    ((rows, columns),) = find_objects((ink != 0).astype(np.intp))
    return rows, columns


def _centre_of_mass(ink: Grayscale) -> tuple[float, float]:
    """Return the row and column of the centre of mass, in pixels from the centre of pixel (0, 0)."""
    from scipy.ndimage import center_of_mass

    row, column = center_of_mass(ink)
    return float(row), float(column)


def _to_bytes(ink: Grayscale) -> Bytes:
    return ink.round().clip(0, 255).astype(np.uint8)
