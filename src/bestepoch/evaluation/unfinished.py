"""Runs that are evaluated before their training has come to its end."""

from __future__ import annotations

from bestepoch.base.errors import UsageError
from bestepoch.base.paths import display_path
from bestepoch.components.schedules.plan import plan_of_run
from bestepoch.runs.run import Run
from bestepoch.runs.tables import Row


def require_epoch(run: Run, epochs: list[Row]) -> None:
    """Raise a UsageError that says what to do for a run whose table has no epoch."""
    if epochs:
        return
    name = display_path(run.folder)
    if run.status == "running":
        raise UsageError(f"{name} is being trained and has no epoch yet. Wait for its first one, then try again")
    raise UsageError(f"{name} has no finished epoch, so there is nothing to evaluate. Go on with it: {_command(run)}")


def describe_unfinished(run: Run, epochs: list[Row]) -> str | None:
    """Return one line about a run whose training has not come to its end; None for any other run."""
    if run.status == "finished":
        return None
    done = f"{int(epochs[-1]['epoch'])} of {plan_of_run(run.info).epochs} epochs"
    if run.status == "running":
        return f"this run is unfinished: it is being trained and has {done} so far"
    return f"this run is unfinished: it {_past(run.status)} after {done}. To go on with it: {_command(run)}"


def _past(status: str) -> str:
    return "was killed" if status == "killed" else "failed"


def _command(run: Run) -> str:
    return str(run.info.get("command") or "type the command that started it")
