"""PyTorch's threads, which wait for each other, leave their cores to whoever else wants them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import live
from bestepoch import threads

WAITS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
FLAGS = "fpu clflush clflushopt avx2"


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in WAITS:
        monkeypatch.setenv(name, "")  # so that what the test sets is taken back
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("maker", "flags", "spins"),
    [
        ("GenuineIntel", FLAGS, str(threads.SPINS)),
        ("GenuineIntel", "fpu clflush avx2", None),
        ("AuthenticAMD", "fpu clflush clflushopt clwb", None),  # waits well by itself
        ("0x41", "fp asimd crc32", None),
    ],
)
def test_they_spin_less_where_a_look_takes_long(
    maker: str, flags: str, spins: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor(tmp_path / "cpuinfo", monkeypatch, maker, flags)
    threads.share_cores()
    assert os.environ.get("GOMP_SPINCOUNT") == spins


def processor(file: Path, monkeypatch: pytest.MonkeyPatch, maker: str, flags: str) -> None:
    file.write_text(f"vendor_id\t: {maker}\nflags\t\t: {flags}\nbugs\t\t: spectre_v1\n")
    monkeypatch.setattr(threads, "CPUINFO", file)


def test_where_nobody_can_tell_nothing_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "CPUINFO", tmp_path / "none")
    threads.share_cores()
    assert "GOMP_SPINCOUNT" not in os.environ


@pytest.mark.parametrize(("name", "value"), [("GOMP_SPINCOUNT", "5"), ("OMP_WAIT_POLICY", "active")])
def test_what_the_user_says_is_left_alone(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor(tmp_path / "cpuinfo", monkeypatch, "GenuineIntel", FLAGS)
    monkeypatch.setenv(name, value)
    threads.share_cores()
    assert {given: os.environ.get(given) for given in WAITS} == {**dict.fromkeys(WAITS), name: value}


def test_the_readme_tells_the_number() -> None:
    assert f"`GOMP_SPINCOUNT={threads.SPINS}`" in (live.CHECKOUT / "README.md").read_text()


@pytest.mark.slow
def test_the_threads_of_a_training_have_heard_it(tmp_path: Path) -> None:
    """The number counts when the library of threads is loaded, with PyTorch; here it says itself what it has."""
    threads.share_cores()
    wanted = os.environ.pop("GOMP_SPINCOUNT", "300000")
    project = live.with_split(live.project(tmp_path))
    off = ("tracking.mlflow=false", "tracking.tensorboard=false")
    said = live.run(project, "train", *live.SAMPLE, "model=mlp", "train.iterations=1", *off, OMP_DISPLAY_ENV="verbose")
    if "OPENMP DISPLAY ENVIRONMENT" not in said or "GOMP_SPINCOUNT" not in said:
        pytest.skip("PyTorch's threads are not GNU OpenMP's here")
    assert re.findall(r"GOMP_SPINCOUNT = '(\d+)'", said) == [wanted]
