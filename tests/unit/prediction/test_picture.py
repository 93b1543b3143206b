"""A picture becomes an image as MNIST has them; one that is such an image stays as it is."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bestepoch.base.errors import UsageError
from bestepoch.components.data.split import Split, load_part
from bestepoch.prediction import digit_image
from bestepoch.prediction.predict import read_picture

Pixels = np.ndarray


@pytest.fixture(scope="module")
def images(sample: Split) -> Pixels:
    """Real MNIST test images, 50 of each digit."""
    return load_part(sample.folder, "test")[0].numpy()


def image(pixels: Any, mode: str | None = None) -> Image.Image:
    made = Image.fromarray(np.asarray(pixels, np.uint8))
    return made.convert(mode) if mode else made


def seen(of: Image.Image) -> Pixels:
    return digit_image.centre_digit(digit_image.foreground(digit_image.to_grayscale(of)))


def drawn(digit: Pixels, size: tuple[int, int], at: tuple[int, int], side: int) -> Image.Image:
    """A digit drawn ``side`` pixels large with its corner ``at`` (column, row), white on black."""
    paper = Image.new("L", size)
    paper.paste(image(digit).resize((side, side), Image.Resampling.BICUBIC), at)
    return paper


def saved(made: Image.Image, **how: Any) -> Image.Image:
    file = io.BytesIO()
    made.save(file, **how)
    return Image.open(file)


def inverted(made: Image.Image) -> Image.Image:
    return image(255 - np.asarray(made))


def mass(pixels: Pixels) -> Pixels:
    return np.array([(pixels.sum(1 - axis) @ np.arange(28)) / pixels.sum() for axis in (0, 1)])


def box(pixels: Pixels) -> tuple[int, int]:
    return tuple(int(np.ptp(np.flatnonzero(pixels.any(axis)))) + 1 for axis in (1, 0))  # type: ignore[return-value]


def test_mnists_own_images_come_back_as_they_are_light_or_dark(images: Pixels) -> None:
    assert len(images) == 500
    for pixels in images:
        for given in (image(pixels), image(255 - pixels), image(pixels, "RGB"), saved(image(pixels), format="png")):
            np.testing.assert_array_equal(seen(given), pixels)


@pytest.mark.parametrize(
    "make",
    [
        lambda digit: drawn(digit, (500, 400), (190, 20), 280),
        lambda digit: inverted(drawn(digit, (500, 400), (0, 120), 280)),
        lambda digit: saved(inverted(drawn(digit, (300, 700), (10, 300), 280)), format="jpeg", quality=75),
        lambda digit: drawn(digit, (1200, 1200), (100, 50), 1100),
        lambda digit: image(np.asarray(drawn(digit, (500, 400), (190, 20), 280)) // 2 + 40),  # grey on dark grey
    ],
    ids=["large, off-centre", "dark on light", "JPEG", "a thousand pixels", "little contrast"],
)
def test_a_digit_drawn_elsewhere_and_larger_is_the_same_image_again(make: Any, images: Pixels) -> None:
    far = []
    for pixels in images[:100]:
        found = seen(make(pixels))
        assert (found.shape, found.dtype, found.max()) == ((28, 28), np.uint8, 255)
        assert max(box(found)) == 20
        assert np.abs(mass(found) - 14).max() <= 0.5
        far.append(np.abs(found.astype(float) - pixels).mean())
    assert np.mean(far) < 8, "of 255 grey levels; two different digits are 50 apart"


def test_proportions_are_kept() -> None:
    paper = np.full((300, 200), 255)
    paper[50:250, 90:110] = 0
    assert box(seen(image(paper))) == (20, 2)
    assert box(seen(image(paper.T))) == (2, 20)


def test_a_line_of_one_pixel_in_a_large_picture_is_still_strong() -> None:
    paper = np.full((900, 900), 255)
    paper[100:800, 450] = 0
    found = seen(image(paper))
    assert found.max() == 255
    assert box(found) == (20, 1)


def test_what_is_centred_by_its_mass_stays_inside() -> None:
    paper = np.zeros((100, 100))
    paper[10:90, 10:14] = 255  # all the mass is at the left of a wide flag
    paper[10:12, 10:90] = 255
    found = seen(image(paper))
    assert box(found) == (20, 20)


def test_noise_and_uneven_light_of_the_paper_are_no_ink(images: Pixels) -> None:
    draw = np.random.default_rng(0)
    far = []
    for pixels in images[:50]:
        clean = inverted(drawn(pixels, (400, 400), (100, 60), 280))
        paper = np.asarray(clean) * np.linspace(0.85, 1.0, 400) + draw.normal(0, 4, (400, 400))
        found = seen(image(paper.clip(0, 255)))
        far.append(np.abs(found.astype(float) - seen(clean)).mean())
    assert np.mean(far) < 5, "of 255 grey levels"


@pytest.mark.parametrize("shade", [0, 255])
def test_what_can_be_seen_through_is_background(shade: int, images: Pixels) -> None:
    """Black or white ink on nothing at all."""
    for pixels in images[:20]:
        layers = np.stack([np.full_like(pixels, shade)] * 3 + [pixels], -1)
        np.testing.assert_allclose(seen(Image.fromarray(layers, "RGBA")), pixels, atol=1)


def test_a_palette_with_a_transparent_colour() -> None:
    paper = Image.new("P", (40, 40), 0)
    paper.putpalette([0, 0, 0, 0, 0, 0])  # both are black
    paper.paste(1, (15, 5, 25, 35))
    found = seen(saved(paper, format="png", transparency=0))
    assert box(found) == (20, 7)


def test_sixteen_bits_a_pixel(images: Pixels) -> None:
    for pixels in images[:20]:
        deep = saved(Image.fromarray(pixels.astype(np.uint16) * 257), format="png")
        assert deep.mode.startswith("I")
        np.testing.assert_array_equal(seen(deep), pixels)


def test_a_photograph_is_turned_as_the_camera_says(images: Pixels) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side: a quarter turn clockwise puts it right
    for pixels in images[:20]:
        on_its_side = image(np.rot90(pixels))
        np.testing.assert_array_equal(seen(saved(on_its_side, format="png", exif=exif)), pixels)


@pytest.mark.parametrize("shade", [0, 130, 255])
def test_on_a_blank_picture_nothing_is_seen(shade: int) -> None:
    noise = np.random.default_rng(0).integers(-10, 11, (60, 80))
    assert not digit_image.foreground(digit_image.to_grayscale(image(np.full((60, 80), shade)))).any()
    assert not digit_image.foreground(digit_image.to_grayscale(image((shade + noise).clip(0, 255)))).any()
    assert not digit_image.foreground(digit_image.to_grayscale(image([[shade]]))).any()


def test_a_small_file_with_far_too_many_pixels_is_not_decoded(tmp_path: Path) -> None:
    """Nothing but white, so that 110 kB hold 100 million pixels; as numbers they would take 3 GB."""
    path = tmp_path / "white.png"
    Image.new("1", (10_000, 10_000), 1).save(path)
    assert path.stat().st_size < 200_000
    tracemalloc.start()
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(UsageError) as error:
        read_picture(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert str(error.value) == (
        f"{path} cannot be read as a PNG or JPEG picture (10,000 × 10,000 pixels; at most 25,000,000 in all are read: "
        "scale it down)"
    )


def test_a_picture_of_just_as_many_pixels_as_allowed_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digit_image, "MAX_PIXELS", 28 * 30)
    assert digit_image.to_grayscale(image(np.zeros((28, 30)))).shape == (28, 30)
    with pytest.raises(ValueError, match="31 × 28 pixels; at most 840 in all"):
        digit_image.to_grayscale(image(np.zeros((28, 31))))
