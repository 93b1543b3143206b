"""Locate the project and its main checkout."""

from __future__ import annotations

import contextlib
from pathlib import Path

from bestepoch.base.errors import UsageError

PACKAGE = Path(__file__).parents[1]


def project_root() -> Path:
    """Return the project folder: the nearest one upward from the working directory that has a ``dvc.yaml``.

    Outside any project, return the checkout that contains this code.

    Raises:
        UsageError: neither folder exists.
    """
    cwd = Path.cwd()
    for folder in (cwd, *cwd.parents, PACKAGE.parents[1]):
        if (folder / "dvc.yaml").is_file():
            return folder
    raise UsageError(f"No dvc.yaml in {cwd} or in any folder above it. Type `cd` to the project, then try again.")


def main_checkout() -> Path:
    """Return the checkout that holds ``runs/`` and the MLflow store.

    Differs from `project_root` inside the copies that ``dvc exp run --temp`` and ``--queue`` make in ``.dvc/tmp/exps``
    and delete when the experiment ends.
    """
    folder = project_root()
    parts = folder.parts
    for i in range(len(parts) - 2):
        if parts[i : i + 3] == (".dvc", "tmp", "exps"):
            return Path(*parts[:i])
    return folder


def display_path(path: Path) -> str:
    """Return ``path`` relative to the project or its main checkout if it is inside, for messages."""
    for base in (project_root(), main_checkout()):
        with contextlib.suppress(ValueError):
            return path.resolve().relative_to(base.resolve()).as_posix()
    return str(path)
