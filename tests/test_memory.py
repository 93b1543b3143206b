"""What an iteration frees is there for the next one, without a detour by way of the system."""

from __future__ import annotations

import platform

import pytest

import live

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are not told")

# Each of these blocks is more than glibc keeps by itself; faults are pages that the system had to give
COMMAND = """
import resource
import numpy
from bestepoch.app import launch

def faults(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        blocks = [numpy.ones(2**26, numpy.uint8) for _ in range(3)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def task(settings):
    faults(2)
    print(faults(5) / (5 * 3 * 2**26 / resource.getpagesize()))

launch(task)
"""


def share_that_the_system_gave(**given: str) -> float:
    return float(live.python(COMMAND, NUMPY_MADVISE_HUGEPAGE="0", **given))  # huge pages hide faults


def test_what_is_freed_is_kept_in_every_command() -> None:
    assert share_that_the_system_gave() < 0.01


@pytest.mark.parametrize(
    "given", [{"MALLOC_MMAP_THRESHOLD_": "1000000"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1000000"}]
)
def test_what_the_user_tells_glibc_stands(given: dict[str, str]) -> None:
    assert share_that_the_system_gave(**given) > 0.9
