"""Where things are, how files are put down safely, and the one error that is meant for people."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PACKAGE = Path(__file__).parents[1]


class UsageError(Exception):
    """Something the person at the keyboard can put right; shown without a traceback."""


def first_line(error: BaseException) -> str:
    """What an error of a library says, without the page that some add to it, and without a password in an address."""
    return public((str(error).strip().splitlines() or [type(error).__name__])[0])


def added_meanwhile(error: BaseException) -> bool:
    """Whether a store refuses a row only because another process has added it just before.

    MLflow looks whether it has one, then adds it. SQLite and PostgreSQL say unique, MySQL duplicate; a server says
    what its database did.
    """
    text = str(error).lower()
    return "unique" in text or "duplicate" in text


def public(text: str) -> str:
    """Addresses without the name and the password of a user, for what is shown or written down.

    To the last @ of the word: in a password that should have been escaped there may be others.
    """
    return re.sub(r"://[^/\s]\S*@", "://", text)


def root() -> Path:
    """The project that this command works on: the nearest folder upward that has a ``dvc.yaml``.

    Called from elsewhere, the checkout that this code belongs to.

    Raises:
        UsageError: neither is there.
    """
    here = Path.cwd()
    for folder in (here, *here.parents, PACKAGE.parents[1]):
        if (folder / "dvc.yaml").is_file():
            return folder
    raise UsageError(f"No dvc.yaml in {here} or in any folder above it. Type `cd` to the project, then try again.")


def home() -> Path:
    """The real checkout, where ``runs/`` and the MLflow store live.

    Differs from `root` inside the copies that ``dvc exp run --temp`` and ``--queue`` make below
    ``.dvc/tmp/exps``: those are deleted when the experiment is done.
    """
    folder = root()
    parts = folder.parts
    for i in range(len(parts) - 2):
        if parts[i : i + 3] == (".dvc", "tmp", "exps"):
            return Path(*parts[:i])
    return folder


def relative(path: Path) -> str:
    """``path`` as a person at the project's root would write it."""
    for base in (root(), home()):
        with contextlib.suppress(ValueError):
            return path.resolve().relative_to(base.resolve()).as_posix()
    return str(path)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Around writing to ``path``: an error of the disk then says which file it was."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def disk_error(error: OSError) -> UsageError | None:
    """What to say where the disk is full or the folder may not be written; None for any other error."""
    place = relative(Path(error.filename)) if isinstance(error.filename, str) else "a file"
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
    with naming(path):
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
        raise UsageError(f"{relative(path)} is not there. Make it with: {made_by}") from None
    except ValueError as error:
        raise UsageError(f"{relative(path)} is not readable ({error}). Make it anew with: {made_by}") from None


def digest(*values: Any) -> str:
    """A short fingerprint of plain values: 16 hexadecimal digits, the same in every process."""
    text = json.dumps(values, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def code_hashes(modules: Iterable[str]) -> dict[str, str]:
    """SHA-256 of each named module of this package, as it is on the disk now."""
    return {name: hashlib.sha256((PACKAGE / f"{name}.py").read_bytes()).hexdigest() for name in modules}


def git_state() -> dict[str, Any]:
    """The code's state in git.

    Returns:
        ``commit``, None outside git or before the first commit; ``dirty``, whether tracked files have uncommitted
        changes; ``url``, where the commit can be read if the remote is a server, else None.
    """

    def git(*arguments: str) -> str | None:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(
                ["git", "-C", str(root()), *arguments], capture_output=True, text=True, timeout=20, check=True
            )
            return done.stdout.strip()
        return None

    commit = git("rev-parse", "--verify", "HEAD")
    url = commit_url(git("config", "--get", "remote.origin.url") or "", commit) if commit else None
    return {"commit": commit, "dirty": bool(git("status", "--porcelain", "--untracked-files=no")), "url": url}


def commit_url(remote: str, commit: str) -> str | None:
    """Where a commit is shown by the server of a remote; None for a remote that is a folder or unknown.

    A name or a password that stands in the remote's address is left out.
    """
    if re.match(r"[\w.@-]+:[^/]", remote):  # git@host:owner/name
        remote = "ssh://" + remote.replace(":", "/", 1)
    parts = urlsplit(remote)
    host, path = parts.hostname or "", parts.path.strip("/").removesuffix(".git")
    if parts.scheme not in ("http", "https", "ssh", "git") or "." not in host or "/" not in path:
        return None
    server = f"https://{host}"
    if parts.scheme.startswith("http"):
        server = f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}"
    way = "-/commit" if "gitlab" in host else "commits" if "bitbucket" in host else "commit"
    return f"{server}/{path}/{way}/{commit}"
