"""Correct addresses in the project's own SQLite store, and those of the store, after the project was moved or copied.

MLflow resolves every address when it stores it, so the store names the folder in which the project was at that time.
Without the correction a moved project loses its artifacts, and a copied one writes into the original.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from filelock import FileLock

from bestepoch.base.files import write_atomic

log = logging.getLogger("bestepoch")

ARTIFACTS = "mlartifacts"
"""The folder of the project that holds the artifacts of its SQLite store."""
ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)
"""The columns of MLflow's tables that hold an address of artifacts."""
RECORDS = ("**/state/mlflow.json", "**/run.json", "**/parent.json")
"""The files below ``runs/`` that name the database in which a run or a sweep was logged."""


def follow_project(database: Path, project: Path) -> None:
    """Let the addresses under a former folder of the project name its present folder.

    Changes nothing in a database outside the project, which other projects may share.
    """
    if project not in database.parents or not database.exists():
        return
    with _connect(database) as connection:
        if not _former_folders(connection, database, project):
            return
    lock_file = project / "runs" / ".store.lock"
    lock_file.parent.mkdir(exist_ok=True)
    with FileLock(lock_file), _connect(database) as connection:
        for folder in _former_folders(connection, database, project):  # again: another process may have been faster
            count = _change_addresses(connection, database, folder, project)
            _change_records(database, folder, project)
            log.info(
                "moved    the project was in %s before: %d addresses in %s follow it", folder, count, database.name
            )


@contextlib.contextmanager
def _connect(database: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        yield connection


def _former_folders(connection: sqlite3.Connection, database: Path, project: Path) -> list[Path]:
    """Return the folders from which the experiments' addresses are to be led away."""
    if not _has_column(connection, "experiments", "artifact_location"):
        return []  # MLflow has not made its tables yet
    folders = {_project_of(address) for (address,) in connection.execute("SELECT artifact_location FROM experiments")}
    folders -= {None, project}
    return sorted(folder for folder in folders if folder and _is_former(folder, database, project))


def _project_of(address: str | None) -> Path | None:
    """Return the project folder of an experiment's address if the address has the form that this project writes."""
    parts = urlsplit(address or "")
    path = Path(url2pathname(parts.path))
    if parts.scheme != "file" or ARTIFACTS not in path.parts:
        return None
    return next(folder.parent for folder in path.parents if folder.name == ARTIFACTS)


def _is_former(folder: Path, database: Path, project: Path) -> bool:
    """Return whether ``folder`` is where the project was, or of what it is a copy."""
    original = folder / database.relative_to(project)
    if original.exists():
        return not original.samefile(database)  # else one project under two paths, by a link or in a container
    shares_store = (folder / "dvc.yaml").exists() and (folder / ARTIFACTS).exists()
    return not shares_store  # another checkout, which logs to this project's store


def _change_addresses(connection: sqlite3.Connection, database: Path, old: Path, new: Path) -> int:
    """Exchange the folder ``old`` for ``new`` in all addresses, in one transaction, and return how many changed."""
    copied = (old / database.relative_to(new)).exists()
    backup = database.with_name(f"{database.name}.before-move")
    count = 0
    connection.execute("BEGIN IMMEDIATE")  # nobody else writes from here on, and others still read
    with contextlib.closing(sqlite3.connect(database)) as source, contextlib.closing(sqlite3.connect(backup)) as target:
        source.backup(target)
    for table, column in ADDRESSES:
        if not _has_column(connection, table, column):
            continue
        rows = connection.execute(f"SELECT rowid, {column} FROM {table} WHERE {column} IS NOT NULL").fetchall()
        for row, address in rows:
            changed = _exchange(address, old, new)
            # what an earlier version wrote into the old folder after the move stays readable there
            is_left = table != "experiments" and not copied and _exists(address) and not _exists(changed)
            if changed != address and not is_left:
                connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (changed, row))
                count += 1
    connection.execute("COMMIT")
    backup.unlink(missing_ok=True)
    return count


def _change_records(database: Path, old: Path, new: Path) -> None:
    """Let the runs and sweeps of the project name its database where it is now, so that they find what they logged."""
    before, after = (json.dumps(f"sqlite:///{folder / database.relative_to(new)}") for folder in (old, new))
    for pattern in RECORDS:
        for path in (new / "runs").glob(pattern):
            with contextlib.suppress(OSError, ValueError):  # a damaged record is named by who needs it
                text = path.read_text(encoding="utf-8")
                if before in text:
                    write_atomic(path, text.replace(before, after))


def _exchange(address: str, old: Path, new: Path) -> str:
    """Return a URL or a path under ``old`` as one under ``new``, and any other address as it is."""
    for before, after in ((old.as_uri(), new.as_uri()), (str(old), str(new))):
        if address.startswith(f"{before}/") and not address.startswith(f"{after}/"):
            return after + address[len(before) :]
    return address


def _exists(address: str) -> bool:
    parts = urlsplit(address)
    return Path(url2pathname(parts.path) if parts.scheme == "file" else address).exists()


def _has_column(connection: sqlite3.Connection, table: str, column: str) -> bool:
    return column in {name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})")}
