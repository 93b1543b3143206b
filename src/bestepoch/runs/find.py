"""Find a run by the name that a person types."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bestepoch.base import paths
from bestepoch.base.errors import UsageError

if TYPE_CHECKING:
    pass
PIPELINE_RUN = "results/train"


def find_run(name: str | list[str]) -> Path:
    """A run's folder, named from here or from the project's root.

    Raises:
        UsageError: there is none; the message lists those there are. Or several are named.
    """
    if not isinstance(name, str):
        raise UsageError("This takes one run: run=runs/<name>. Several are for: python -m bestepoch.study")
    for base in (Path.cwd(), paths.project_root(), paths.main_checkout()):
        folder = (base / name).resolve()
        if (folder / "run.json").is_file():
            return folder
    there = sorted(paths.display_path(path.parent) for path in (paths.main_checkout() / "runs").glob("*/run.json"))
    if name == PIPELINE_RUN:
        raise UsageError(
            f"{name} holds no run yet. Make it with: dvc repro" + (f", or: run={there[-1]}" if there else "")
        )
    raise UsageError(f"run = {name} is not a run's folder. There are: {', '.join(there) or 'none'}")
