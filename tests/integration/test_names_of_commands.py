"""Names on the command line lead out of no folder, and commands replace only their own files."""

from __future__ import annotations

from pathlib import Path

import pytest

import live
from bestepoch.base.errors import UsageError
from bestepoch.sweeps.preset import _preset_path


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return live.project(tmp_path_factory.mktemp("names"))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["train", "fetch"])
def test_data_name_deletes_no_folder(copy: Path, tmp_path: Path, stage: str) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "thesis.tex").write_text("years")
    said = live.run(copy, stage, "data=mnist_sample", f"data.name={victim}", code=2)
    assert "data.name" in said
    assert (victim / "thesis.tex").read_text() == "years"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["victim"]


def test_promote_leaves_a_preset_of_somebody_else(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy)
    with pytest.raises(UsageError, match=r"accurate\.yaml is there already"):
        _preset_path(copy / "runs/sweeps/accurate")
    own = copy / "conf/experiment/mine-1a2b3c.yaml"
    own.write_text("# @package _global_\n# The winner of runs/sweeps/mine-1a2b3c: mlp\n")
    assert _preset_path(copy / "runs/sweeps/mine-1a2b3c") == own
