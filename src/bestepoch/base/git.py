"""The state of the code in git."""

from __future__ import annotations

import contextlib
import re
import subprocess
from typing import Any
from urllib.parse import urlsplit

from bestepoch.base.paths import project_root


def git_state() -> dict[str, Any]:
    """The code's state in git.

    Returns:
        ``commit``, None outside git or before the first commit; ``dirty``, whether tracked files have uncommitted
        changes; ``url``, where the commit can be read if the remote is a server, else None.
    """

    def git(*arguments: str) -> str | None:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(
                ["git", "-C", str(project_root()), *arguments], capture_output=True, text=True, timeout=20, check=True
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
