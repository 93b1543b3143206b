"""Write files atomically, read and write JSON, and compute checksums."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bestepoch.base.errors import UsageError
from bestepoch.base.paths import display_path

# The permissions that this process takes from new files; the system only tells by setting another value.
UMASK = os.umask(0o022)
os.umask(UMASK)


@contextlib.contextmanager
def name_path_in_errors(path: Path) -> Iterator[None]:
    """Context manager that adds ``path`` to an OSError raised inside: errors of write and fsync name no file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def explain_disk_error(error: OSError) -> UsageError | None:
    """Return the message for a full disk or a missing write permission, or None for any other error."""
    name = display_path(Path(error.filename)) if isinstance(error.filename, str) else "a file"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UsageError(
            f"{name} cannot be written: {error.strerror}. What was written before is whole. Make room, then type the "
            f"same command: it goes on from there"
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return UsageError(f"{name} cannot be written: {error.strerror}. Give this user the right, then try again")
    return None


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file atomically: write a temporary file in the same folder, fsync and rename it. Creates the folder."""
    payload = data.encode() if isinstance(data, str) else data
    path.parent.mkdir(parents=True, exist_ok=True)
    with name_path_in_errors(path):
        fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~UMASK)  # mkstemp creates files that only their owner can read
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """Context manager that yields an empty folder beside ``out`` and at the end renames its files into ``out``.

    A file of ``out`` may be a link into DVC's cache: it is replaced, never opened for writing. After an error ``out``
    is unchanged. Files are renamed in the order of their times, so the one that was written last is the last.
    """
    import psutil

    for old in out.parent.glob(f".{out.name}.*.partial"):
        pid = old.suffixes[-2].removeprefix(".")
        if pid.isdigit() and not psutil.pid_exists(int(pid)):  # of a process that was killed
            shutil.rmtree(old, ignore_errors=True)
    staging = out.with_name(f".{out.name}.{os.getpid()}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        out.mkdir(exist_ok=True)
        for path in sorted(staging.iterdir(), key=lambda path: path.stat().st_mtime_ns):
            path.replace(out / path.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def remove_partial(folder: Path) -> None:
    """Remove the temporary files that a killed `write_atomic` left in ``folder``."""
    for path in folder.glob(".*"):
        if re.fullmatch(r"\..+\.[a-z0-9_]{8}", path.name) and path.is_file():
            path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` atomically as indented JSON. Raises ValueError for NaN and infinity."""
    write_atomic(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path, made_by: str) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        made_by: the command that writes the file, for the error message.

    Raises:
        UsageError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{display_path(path)} is not there. Make it with: {made_by}") from None
    except ValueError as error:
        raise UsageError(f"{display_path(path)} is not readable ({error}). Make it anew with: {made_by}") from None


def digest(*values: Any) -> str:
    """Return a short hash of JSON values: 16 hexadecimal digits, the same in every process."""
    text = json.dumps(values, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def md5(path: Path) -> str:
    """Return the MD5 of a file in hexadecimal. Data sets publish MD5s; MD5 does not detect deliberate changes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
