"""Servers for a test or a measurement, gone when its block ends; PostgreSQL from Debian's package or from the path."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

USERS = ("postgres", "nobody")  # one of them owns it where this process is root's, whom PostgreSQL refuses


def binaries() -> Path | None:
    """The folder of the newest ``initdb``; None where PostgreSQL is not installed."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[4]))
    found = shutil.which("initdb") or (debian and debian[-1])
    return Path(found).resolve().parent if found else None


@dataclass(frozen=True)
class Postgres:
    """A server that runs: its administrator comes without a password by the socket, everyone else by TCP with one."""

    port: int
    folder: Path

    def environment(self) -> dict[str, str]:
        """What PostgreSQL's own commands need to reach it as its administrator."""
        path = f"{binaries()}:{os.environ['PATH']}"
        return {"PATH": path, "PGHOST": str(self.folder), "PGPORT": str(self.port), "PGUSER": "postgres"}

    def ask(self, sql: str, database: str = "postgres") -> str:
        """What a statement returns, as text."""
        command = ["psql", "--no-psqlrc", "-qAt", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", sql]
        done = subprocess.run(
            command, env={**os.environ, **self.environment()}, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()


def free_port() -> int:
    """A port of this machine where nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def serving(command: list[str], where: Path, env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server with all its processes."""
    with log.open("w", encoding="utf-8") as out:
        server = subprocess.Popen(
            command, cwd=where, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def until_it_answers(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Raises AssertionError with the log where it ends, or does not answer in two minutes."""
    end = time.monotonic() + 120
    while server.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url, timeout=2).close()
            return
        time.sleep(0.1)
    raise AssertionError(log.read_text(encoding="utf-8"))


@contextlib.contextmanager
def postgres(*settings: str) -> Iterator[Postgres]:
    """One that listens on this machine alone, in a temporary folder, until the block ends.

    Args:
        settings: its options, such as ``fsync=off`` where nobody minds losing what it holds.
    """
    found = binaries()
    assert found is not None
    # not below a test's own folder: root's cannot be entered by the user who runs it, and a socket's path is short
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    server = None
    try:
        as_user = _owner(folder)
        with (folder / "log").open("w") as log:
            subprocess.run(
                [*as_user, found / "initdb", "--username=postgres", "--auth-local=trust", "--auth-host=scram-sha-256",
                 "--encoding=UTF8", "--locale=C", "--no-sync", "-D", folder / "data"],
                check=True, stdout=log, stderr=log, cwd=folder,
            )  # fmt: skip
            port = free_port()
            options = [f"-c{line}" for line in ("listen_addresses=127.0.0.1", *settings)]
            server = subprocess.Popen(
                [*as_user, found / "postgres", "-D", folder / "data", "-k", folder, "-p", str(port), *options],
                stdout=log, stderr=log, cwd=folder, start_new_session=True,
            )  # fmt: skip
        it = Postgres(port, folder)
        ready = [found / "pg_isready", "-q", "-h", folder, "-p", str(port)]
        end = time.monotonic() + 60
        while subprocess.run(ready, check=False).returncode:
            assert server.poll() is None and time.monotonic() < end, (folder / "log").read_text()
            time.sleep(0.05)
        yield it
    finally:
        if server is not None and server.poll() is None:
            os.killpg(server.pid, signal.SIGINT)  # at once, in good order
            server.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def _owner(folder: Path) -> list[str]:
    """Before a command, so that it runs as a user whom PostgreSQL takes; ``folder`` is then that user's."""
    if os.getuid():
        return []
    known = {entry.pw_name for entry in pwd.getpwall()}
    user = next(name for name in USERS if name in known)
    shutil.chown(folder, user)
    return ["setpriv", f"--reuid={user}", "--regid", str(pwd.getpwnam(user).pw_gid), "--clear-groups"]
