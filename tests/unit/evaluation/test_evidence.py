"""The intervals are those of the textbook, and hold what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bestepoch.evaluation.statistics import paired_bootstrap_ci, wilson_ci


def test_an_interval_of_a_difference_is_about_two_standard_errors_wide() -> None:
    draw = np.random.default_rng(1)
    chosen, difference = draw.normal(2.0, 5.0, 4000), draw.normal(0.1, 0.5, 4000)
    found = paired_bootstrap_ci(chosen, chosen + difference)
    error = difference.std(ddof=1) / math.sqrt(4000)
    assert found["difference"] == pytest.approx(difference.mean())
    assert (found["low"], found["high"]) == pytest.approx(
        (difference.mean() - 1.96 * error, difference.mean() + 1.96 * error), abs=0.15 * error
    ), "of the pairs' differences, however far the images are apart"
    assert found["more_than_noise"]
    assert paired_bootstrap_ci(chosen, chosen + difference) == found, "always the same draws"
    turned = paired_bootstrap_ci(chosen + difference, chosen)
    assert turned["more_than_noise"] and turned["high"] < 0


def test_what_is_but_noise_is_called_more_one_time_in_twenty() -> None:
    draw = np.random.default_rng(2)
    called = sum(paired_bootstrap_ci(np.zeros(300), draw.normal(0.0, 1.0, 300))["more_than_noise"] for _ in range(200))
    assert 2 <= called <= 22  # of 200; 10 are expected


@pytest.mark.parametrize(
    ("chosen", "other", "difference"),
    [([0.5, 0.25], [0.5, 0.25], 0.0), ([0.5], [0.75], 0.25), ([1.0, 2.0], [2.0, 3.0], 1.0)],
)
def test_without_spread_the_interval_is_a_point(chosen: list[float], other: list[float], difference: float) -> None:
    found = paired_bootstrap_ci(np.array(chosen), np.array(other))
    assert (found["low"], found["difference"], found["high"]) == (difference,) * 3
    assert found["more_than_noise"] == (difference != 0)


def test_an_image_that_both_have_right_counts_for_both() -> None:
    found = paired_bootstrap_ci(np.array([1.0] * 98 + [0.0] * 2), np.array([1.0] * 97 + [0.0] * 3))
    assert found["difference"] == pytest.approx(-0.01)
    assert not found["more_than_noise"], "one image of a hundred"


@pytest.mark.parametrize(("hits", "n"), [(984, 1000), (0, 10), (10, 10), (9950, 10000), (1, 2)])
def test_wilson(hits: int, n: int) -> None:
    z, p = 1.959963984540054, hits / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = ((middle + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    assert wilson_ci(hits, n) == pytest.approx((low, high), abs=1e-9)
