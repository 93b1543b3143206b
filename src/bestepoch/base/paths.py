"""Where the project and its main checkout are."""

from __future__ import annotations

import contextlib
from pathlib import Path

from bestepoch.base.errors import UsageError

PACKAGE = Path(__file__).parents[1]


def project_root() -> Path:
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


def main_checkout() -> Path:
    """The real checkout, where ``runs/`` and the MLflow store live.

    Differs from `root` inside the copies that ``dvc exp run --temp`` and ``--queue`` make below
    ``.dvc/tmp/exps``: those are deleted when the experiment is done.
    """
    folder = project_root()
    parts = folder.parts
    for i in range(len(parts) - 2):
        if parts[i : i + 3] == (".dvc", "tmp", "exps"):
            return Path(*parts[:i])
    return folder


def display_path(path: Path) -> str:
    """``path`` as a person at the project's root would write it."""
    for base in (project_root(), main_checkout()):
        with contextlib.suppress(ValueError):
            return path.resolve().relative_to(base.resolve()).as_posix()
    return str(path)
