"""A large file is read again when it may have changed, and only then."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bestepoch.base import checksums
from bestepoch.base.files import md5


@pytest.fixture
def count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Asks for the checksum of a large file, and says whether the file was read for it."""
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checksums, "SMALL", 4)
    monkeypatch.setattr(checksums, "SETTLED_NS", 0)

    def ask(path: Path) -> bool:
        read = []
        assert checksums.checksum_of(path, lambda: read.append(path) or md5(path)) == md5(path)
        return bool(read)

    return ask


def test_unchanged_file_is_read_once(count, tmp_path):
    path = tmp_path / "large"
    path.write_bytes(b"content")
    assert [count(path) for _ in range(3)] == [True, False, False]


def test_same_size_and_time_do_not_hide_a_change(count, tmp_path):
    path = tmp_path / "large"
    path.write_bytes(b"content")
    times = path.stat()
    assert count(path) and not count(path)
    path.write_bytes(b"another")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert count(path) and not count(path)
    (tmp_path / "new").write_bytes(b"a third")
    os.utime(tmp_path / "new", ns=(times.st_atime_ns, times.st_mtime_ns))
    (tmp_path / "new").replace(path)
    assert count(path)


def test_small_file_is_read_each_time(count, tmp_path):
    (tmp_path / "small").write_bytes(b"abc")
    assert [count(tmp_path / "small") for _ in range(2)] == [True, True]
    assert not (tmp_path / "data").exists()


def test_file_that_has_just_changed_is_not_remembered(count, tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "SETTLED_NS", 60 * 10**9)
    (tmp_path / "large").write_bytes(b"content")
    assert [count(tmp_path / "large") for _ in range(2)] == [True, True]


@pytest.mark.parametrize("content", ["", "[]", '{"large": 3}', "\0\0"])
def test_damaged_memory_is_no_memory(content, count, tmp_path):
    path, store = tmp_path / "large", tmp_path / "data/prepared/.checksums.json"
    path.write_bytes(b"content")
    store.parent.mkdir(parents=True)
    store.write_text(content)
    assert [count(path) for _ in range(2)] == [True, False]


def test_files_that_are_gone_are_forgotten(count, tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).write_bytes(b"content")
    assert count(tmp_path / "first")
    (tmp_path / "first").unlink()
    assert count(tmp_path / "second")
    assert "first" not in (tmp_path / "data/prepared/.checksums.json").read_text()
