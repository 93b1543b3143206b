"""Where things are, how files are put down safely, and the one error that is meant for people."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestepoch.base.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
import contextlib
import errno
import json
import os
import re
import tempfile
from collections.abc import Iterator

from bestepoch.base.paths import display_path


@contextlib.contextmanager
def name_path_in_errors(path: Path) -> Iterator[None]:
    """Around writing to ``path``: an error of the disk then says which file it was."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def explain_disk_error(error: OSError) -> UsageError | None:
    """What to say where the disk is full or the folder may not be written; None for any other error."""
    place = display_path(Path(error.filename)) if isinstance(error.filename, str) else "a file"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UsageError(
            f"{place} cannot be written: {error.strerror}. What was written before is whole. Make room, then type the "
            f"same command: it goes on from there"
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return UsageError(f"{place} cannot be written: {error.strerror}. Give this user the right, then try again")
    return None


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write beside, flush to the disk, then rename: ``path`` is the old file or the new one, never half of it."""
    payload = data.encode() if isinstance(data, str) else data
    path.parent.mkdir(parents=True, exist_ok=True)
    with name_path_in_errors(path):
        _write_beside(path, payload)


def _write_beside(path: Path, payload: bytes) -> None:
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        Path(beside).chmod(0o644)  # mkstemp makes it private
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def remove_partial(folder: Path) -> None:
    """Remove what `write_atomic` left beside its targets when it was killed."""
    for path in folder.glob(".*"):
        if re.fullmatch(r"\..+\.[a-z0-9_]{8}", path.name) and path.is_file():
            path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """``value`` as JSON that a person can read, put down by `write_atomic`."""
    write_atomic(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path, made_by: str) -> Any:
    """The content of a JSON file.

    Raises:
        UsageError: it is not there or is not JSON; the message names ``made_by``, the command that writes it.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"{display_path(path)} is not there. Make it with: {made_by}") from None
    except ValueError as error:
        raise UsageError(f"{display_path(path)} is not readable ({error}). Make it anew with: {made_by}") from None


def digest(*values: Any) -> str:
    """A short fingerprint of plain values: 16 hexadecimal digits, the same in every process."""
    text = json.dumps(values, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def md5(path: Path) -> str:
    """The checksum by which data sets are published; no protection against intent."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
