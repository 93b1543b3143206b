"""Describe the git commit of the code."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import subprocess
from typing import Any
from urllib.parse import urlsplit

from bestepoch.base.paths import project_root

log = logging.getLogger("bestepoch")


def git_state() -> dict[str, Any]:
    """Return the state of the project's git repository; a warning says why git does not give it.

    Returns:
        ``commit``, the hash of HEAD, or None outside git and before the first commit; ``dirty``, whether tracked files
        have uncommitted changes, or None where git does not say; ``url``, the web page of the commit (see
        `commit_url`), or None.
    """
    try:
        _git("ls-files", "--error-unmatch", "dvc.yaml")  # a repository around the project may not hold it
        changes = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError) as error:
        _warn_once(_reason(error))
        return {"commit": None, "dirty": None, "url": None}
    commit, remote = None, ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        commit = _git("rev-parse", "--verify", "HEAD")
        remote = _git("config", "--get", "remote.origin.url")
    return {"commit": commit, "dirty": bool(changes), "url": commit_url(remote, commit) if commit else None}


def _git(*args: str) -> str:
    command = ["git", "-C", str(project_root()), *args]
    done = subprocess.run(
        command,
        env=os.environ | {"LC_ALL": "C"},  # its reasons in English
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=20,
        check=True,
    )
    return done.stdout.strip()


def _reason(error: Exception) -> str:
    """Return why git did not answer, and what to type."""
    said = getattr(error, "stderr", None) or ""
    if isinstance(error, OSError):
        return "there is no program git"
    if isinstance(error, subprocess.TimeoutExpired):
        return "git did not answer in 20 s"
    if "dubious ownership" in said:
        return f"the repository is another user's. Type: git config --global --add safe.directory {project_root()}"
    if "not a git repository" in said or "did not match any" in said:
        return "the project is in no git repository. Type: git init && git add . && git commit -m start"
    return (said.strip().splitlines() or [str(error)])[0]


@functools.cache
def _warn_once(reason: str) -> None:
    log.warning("warning: the run does not say which commit it is of: %s", reason)


def has_edited_settings() -> bool:
    """Return whether ``params.yaml`` or ``conf/`` have uncommitted changes."""
    command = ["git", "-C", str(project_root()), "status", "--porcelain", "--untracked-files=no"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run([*command, "--", "params.yaml", "conf"], capture_output=True, timeout=20, check=True)
        return bool(done.stdout.strip())
    return False


def commit_url(remote: str, commit: str) -> str | None:
    """Return the web page of a commit on the remote's server, without credentials, or None if there is no server."""
    if re.match(r"[\w.@-]+:[^/]", remote):  # git@host:owner/name
        remote = "ssh://" + remote.replace(":", "/", 1)
    parts = urlsplit(remote)
    host, path = parts.hostname or "", parts.path.strip("/").removesuffix(".git")
    if parts.scheme not in ("http", "https", "ssh", "git") or "." not in host or "/" not in path:
        return None
    server = f"https://{host}"
    if parts.scheme.startswith("http"):
        server = f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}"
    route = "-/commit" if "gitlab" in host else "commits" if "bitbucket" in host else "commit"
    return f"{server}/{path}/{route}/{commit}"
