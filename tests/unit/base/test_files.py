"""Files are written beside and renamed, with the permissions that the user's umask leaves."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

import live
from bestepoch.base import files, git
from bestepoch.base.errors import UsageError


def test_a_link_into_a_cache_is_replaced_not_written(tmp_path: Path) -> None:
    cache, out = tmp_path / "cache", tmp_path / "out"
    out.mkdir()
    cache.write_text("an object of DVC")
    os.link(cache, out / "metrics.json")
    (out / "lr.png").symlink_to(cache)
    with files.staged_folder(out) as staging:
        for name in ("lr.png", "metrics.json", "new"):
            (staging / name).write_text(name)
    assert cache.read_text() == "an object of DVC"
    assert {path.name: path.read_text() for path in out.iterdir()} == {n: n for n in ("lr.png", "metrics.json", "new")}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_after_an_error_the_folder_is_as_it_was(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "metrics.json").write_text("before")
    with pytest.raises(UsageError), files.staged_folder(out) as staging:
        (staging / "metrics.json").write_text("half")
        raise UsageError("no")
    assert (out / "metrics.json").read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_what_a_killed_process_left_is_removed_and_a_living_one_keeps_its_own(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for pid in (dead.pid, os.getppid()):
        (tmp_path / f".out.{pid}.partial").mkdir()
    with files.staged_folder(tmp_path / "out"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".out.{os.getppid()}.partial", "out"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_umask_is_respected(umask: int, mode: int, tmp_path: Path) -> None:
    program = "import pathlib; from bestepoch.base import files; files.write_atomic(pathlib.Path('a'), 'b')"
    subprocess.run([sys.executable, "-c", program], check=True, umask=umask, cwd=tmp_path)
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"PATH": ""}, "there is no program git"),
        # as git's own tests make a repository another user's
        ({"GIT_TEST_ASSUME_DIFFERENT_OWNER": "1"}, "git config --global --add safe.directory "),
        ({"GIT_DIR": "/nowhere"}, "git init && git add . && git commit -m start"),
    ],
    ids=["no git", "another user's", "no repository"],
)
def test_where_git_does_not_answer_nothing_is_said_of_changes(
    environment: dict[str, str], reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for key, value in {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", **environment}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("GIT_CONFIG_COUNT", raising=False)
    monkeypatch.setattr(logging.getLogger("bestepoch"), "propagate", True)
    git._warn_once.cache_clear()
    for _ in range(2):
        assert git.git_state() == {"commit": None, "dirty": None, "url": None}
    (warning,) = caplog.messages
    assert warning.startswith("warning: the run does not say which commit it is of: ") and reason in warning


def test_a_repository_around_the_project_is_not_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "dvc.yaml").touch()
    (tmp_path / "notes").touch()
    live.git(tmp_path, "init", "-q")
    live.git(tmp_path, "add", "notes")
    live.git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@localhost", "commit", "-q", "-m", "other things")
    monkeypatch.chdir(project)
    assert git.git_state() == {"commit": None, "dirty": None, "url": None}
