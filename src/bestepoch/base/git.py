"""Describe the git commit of the code."""

from __future__ import annotations

import contextlib
import re
import subprocess
from typing import Any
from urllib.parse import urlsplit

from bestepoch.base.paths import project_root


def git_state() -> dict[str, Any]:
    """Return the state of the project's git repository.

    Returns:
        ``commit``, the hash of HEAD, or None outside git and before the first commit; ``dirty``, whether tracked files
        have uncommitted changes, or None where git does not say; ``url``, the web page of the commit (see
        `commit_url`), or None.
    """

    def git(*args: str) -> str | None:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            command = ["git", "-C", str(project_root()), *args]
            return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
        return None

    commit = git("rev-parse", "--verify", "HEAD")
    url = commit_url(git("config", "--get", "remote.origin.url") or "", commit) if commit else None
    changes = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes), "url": url}


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
