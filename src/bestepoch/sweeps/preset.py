"""The winner of a sweep: tested, and written down as an experiment that anyone can run again."""

from __future__ import annotations

import json
import logging
import shlex
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from bestepoch.base import files, paths
from bestepoch.base.config import compose, groups
from bestepoch.base.config.overrides import flatten
from bestepoch.base.config.schema import Config, SelectionConfig, SweepOptions
from bestepoch.base.errors import UsageError
from bestepoch.evaluation.evaluate import evaluate_run
from bestepoch.runs.run import Run
from bestepoch.sweeps.jobs import JobRecord, JobRecords
from bestepoch.sweeps.leaderboard import Leaderboard

log = logging.getLogger("bestepoch")


def main(config: Config) -> None:
    """``python -m bestepoch.promote sweep=runs/sweeps/<name>``."""
    folder = _find_sweep(config.sweep)
    about = files.read_json(folder / "sweep.json", "the sweep's command")
    choice = SelectionConfig(**about["selection"])
    preset = _preset_path(folder)
    notes = JobRecords(folder).read_all()
    table = Leaderboard.from_records(notes, choice)
    winner = table.winner
    if winner is None:
        raise UsageError(f"{paths.display_path(folder)} holds no finished job. Type the sweep's command again")
    if table.failed:
        log.warning("warning: %d jobs are not finished; the winner is that of the others", len(table.rest))
    run = Run.read(paths.main_checkout() / winner["run"])
    log.info("winner   %s, of %d jobs by %s", winner["name"], len(notes), choice.metric)
    metrics = evaluate_run(config.model_copy(update={"selection": choice}), run.folder, run.folder / "evaluate", False)
    files.write_atomic(preset, _header(folder, about, winner, run, metrics) + _preset(run))
    log.info("")
    log.info("preset   %s", paths.display_path(preset))
    log.info("again    python -m bestepoch.train +experiment=%s", folder.name)
    log.info("as well  %s", _dvc_command(run))


def _preset_path(folder: Path) -> Path:
    """Where the winner is written. Raises UsageError where a preset of that name is there that is not this sweep's."""
    preset = paths.project_root() / "conf" / "experiment" / f"{folder.name}.yaml"
    if preset.exists() and _first_line(folder) not in preset.read_text(encoding="utf-8"):
        raise UsageError(
            f"{paths.display_path(preset)} is there already and was not written from {paths.display_path(folder)}: it is "
            f"left as it is. Rename one of the two"
        )
    return preset


def _first_line(folder: Path) -> str:
    return f"The winner of runs/sweeps/{folder.name}: "


def _find_sweep(sweep: SweepOptions | str) -> Path:
    there = sorted(path.parent for path in (paths.main_checkout() / "runs/sweeps").glob("*/sweep.json"))
    names = ", ".join(paths.display_path(folder) for folder in there) or "none"
    if not isinstance(sweep, str):
        raise UsageError(f"Which sweep? Add sweep=runs/sweeps/<name>. There are: {names}")
    for base in (Path.cwd(), paths.project_root(), paths.main_checkout()):
        if (base / sweep / "sweep.json").is_file():
            return (base / sweep).resolve()
    raise UsageError(f"sweep = {sweep} is not a sweep's folder. There are: {names}")


def _header(folder: Path, about: dict[str, Any], winner: JobRecord, run: Run, metrics: dict[str, Any]) -> str:
    git, data = run.info["git"], run.info["data"]
    ended = datetime.fromtimestamp(run.info["ended"]).date()
    dirty = " with uncommitted changes" if git["dirty"] else ""
    lines = [
        "@package _global_",
        f"{_first_line(folder)}{winner['name']}",
        f"  python -m bestepoch.train +experiment={folder.name}",
        f"sweep      python -m bestepoch.train -m {shlex.join(about['overrides'])}",
        f"chosen by  {about['selection']['metric']} ({about['selection']['mode']}): {winner['metric']:.6g} after epoch "
        f"{winner['best_epoch']} of {metrics['last_epoch']}",
        f"tested     accuracy {metrics['test_accuracy']:.2%} (95% interval {metrics['test_accuracy_low']:.2%} to "
        f"{metrics['test_accuracy_high']:.2%}), loss {metrics['test_loss']:.4f}",
        f"trained    {ended}, {winner['seconds']:.0f} s on {run.info['environment']['device']} with "
        f"{run.info['environment']['threads']} threads, torch {run.info['environment']['torch']}",
        f"data       {data['name']}, {data['checksum'][:12]}",
        f"code       {git['commit'] or 'no commit'}{dirty}",
    ]
    return "".join(f"# {line}\n" for line in lines)


def _preset(run: Run) -> str:
    """Every setting that decides the numbers, so that a later change elsewhere changes nothing here."""
    values = {key: value for key, value in run.info["config"].items() if key != "data"}
    chosen = {"data": run.info["data"]["requested"]}
    for group in groups.CONFIG_GROUPS[1:]:
        chosen[group] = values[group]["name"]
        values[group] = {key: value for key, value in values[group].items() if key != "name"}
    content = {
        "defaults": [{f"override /{group}": name} for group, name in chosen.items()],
        **{key: value for key, value in values.items() if value != {}},
    }
    return str(yaml.safe_dump(content, sort_keys=False))


def _dvc_command(run: Run) -> str:
    """The `dvc exp run` command that gives the pipeline this configuration: what differs from the files as they are."""
    wanted = run.info["config"]
    chosen = {group: wanted[group]["name"] for group in groups.CONFIG_GROUPS[1:]} | {
        "data": run.info["data"]["requested"]
    }
    params = flatten(compose.read_params())
    lines = [f"{group}={name}" for group, name in chosen.items() if params[group] != name]
    for group in groups.CONFIG_GROUPS[1:]:
        there = compose.load_option(group, chosen[group]).model_dump()
        lines += [
            f"conf/{group}/{chosen[group]}.yaml:{key}={_to_override_value(value)}"
            for key, value in wanted[group].items()
            if there[key] != value
        ]
    of_params = flatten({key: wanted[key] for key in wanted if key not in groups.CONFIG_GROUPS})
    lines += [f"{key}={_to_override_value(value)}" for key, value in of_params.items() if params[key] != value]
    return shlex.join(["dvc", "exp", "run", *(part for line in lines for part in ("-S", line))])


def _to_override_value(value: Any) -> str:
    """As DVC reads it, which goes by Hydra's grammar."""
    return json.dumps(value).replace(" ", "")
