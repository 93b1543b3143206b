"""Find a run by the name that a user types."""

from __future__ import annotations

from pathlib import Path

from bestepoch.base import paths
from bestepoch.base.errors import UsageError

PIPELINE_RUN = "results/train"


def find_run(name: str | list[str]) -> Path:
    """Return a run's folder; ``name`` is relative to the working directory or to the project root.

    Raises:
        UsageError: No such run exists (the message lists the runs that exist), or ``name`` is a list.
    """
    if not isinstance(name, str):
        raise UsageError("This takes one run: run=runs/<name>. Several are for: python -m bestepoch.study")
    for base in (Path.cwd(), paths.project_root(), paths.main_checkout()):
        folder = (base / name).resolve()
        if (folder / "run.json").is_file():
            return folder
    runs = sorted(paths.display_path(path.parent) for path in (paths.main_checkout() / "runs").glob("*/run.json"))
    if name == PIPELINE_RUN:
        hint = f", or: run={runs[-1]}" if runs else ""
        raise UsageError(f"{name} holds no run yet. Make it with: dvc repro{hint}")
    raise UsageError(f"run = {name} is not a run's folder. There are: {', '.join(runs) or 'none'}")
