"""The winner of a sweep: tested, and written down as an experiment that anyone can run again."""

from __future__ import annotations

import json
import logging
import shlex
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from filelock import Timeout

from bestepoch.base import files, paths
from bestepoch.base.config import compose, groups
from bestepoch.base.config.overrides import flatten
from bestepoch.base.config.schema import Config, SelectionConfig, SweepOptions
from bestepoch.base.errors import UsageError
from bestepoch.evaluation.evaluate import evaluate_run
from bestepoch.runs.run import Run, sweep_lock
from bestepoch.splitting.ensure import find_split_of_run
from bestepoch.sweeps.jobs import JobRecord, JobRecords
from bestepoch.sweeps.leaderboard import Leaderboard

log = logging.getLogger("bestepoch")


def promote(config: Config) -> None:
    """Test the winner of the sweep ``config.sweep`` and write it as a preset into ``conf/experiment/``.

    Raises:
        UsageError: there is no such sweep, it still runs or has no finished job, or its preset's name is another's.
    """
    folder = _find_sweep(config.sweep)
    metadata = files.read_json(folder / "sweep.json", "the sweep's command")
    choice = SelectionConfig(**metadata["selection"])
    preset = _preset_path(folder)
    _require_ended(folder)
    records = JobRecords(folder).read_all()
    table = Leaderboard.from_records(records, choice)
    winner = table.winner
    if winner is None:
        raise UsageError(f"{paths.display_path(folder)} holds no finished job. Type the sweep's command again")
    if table.failed:
        log.warning("warning: %d jobs are not finished; the winner is that of the others", len(table.rest))
    run = Run.read(paths.main_checkout() / winner["run"])
    log.info("winner   %s, of %d jobs by %s", winner["name"], len(records), choice.metric)
    split = find_split_of_run(run.info, config)
    config = config.model_copy(update={"selection": choice})
    metrics = evaluate_run(config, run.folder, run.folder / "evaluate", split)
    files.write_atomic(preset, _header(folder, metadata, winner, run, metrics) + _preset(run))
    log.info("")
    log.info("preset   %s", paths.display_path(preset))
    log.info("again    python -m bestepoch.train +experiment=%s", folder.name)
    log.info("pipeline %s", _dvc_command(run))


def _require_ended(folder: Path) -> None:
    """Raise a UsageError where another process still runs the sweep: a later job may be better than the best so far."""
    try:
        with sweep_lock(folder).acquire(timeout=1.0):  # others look into the folder for moments
            return
    except Timeout:
        finished = sum(record["status"] == "finished" for record in JobRecords(folder).read_all())
        raise UsageError(
            f"{paths.display_path(folder)} is still running in another process (finished so far: {finished}), and a "
            "later job may be better. Wait for its end or stop it, then type this again"
        ) from None


def _preset_path(folder: Path) -> Path:
    """Return the file of the preset.

    Raises:
        UsageError: a preset of that name exists that was not written from this sweep.
    """
    preset = paths.project_root() / "conf" / "experiment" / f"{folder.name}.yaml"
    if preset.exists() and _first_line(folder) not in preset.read_text(encoding="utf-8"):
        raise UsageError(
            f"{paths.display_path(preset)} is there already and was not written from {paths.display_path(folder)}: it "
            f"is left as it is. Rename one of the two"
        )
    return preset


def _first_line(folder: Path) -> str:
    return f"The winner of runs/sweeps/{folder.name}: "


def _find_sweep(sweep: SweepOptions | str) -> Path:
    folders = sorted(path.parent for path in (paths.main_checkout() / "runs/sweeps").glob("*/sweep.json"))
    names = ", ".join(paths.display_path(folder) for folder in folders) or "none"
    if not isinstance(sweep, str):
        raise UsageError(f"Which sweep? Add sweep=runs/sweeps/<name>. There are: {names}")
    for base in (Path.cwd(), paths.project_root(), paths.main_checkout()):
        if (base / sweep / "sweep.json").is_file():
            return (base / sweep).resolve()
    raise UsageError(f"sweep = {sweep} is not a sweep's folder. There are: {names}")


def _header(folder: Path, metadata: dict[str, Any], winner: JobRecord, run: Run, metrics: dict[str, Any]) -> str:
    git, data = run.info["git"], run.info["data"]
    ended = datetime.fromtimestamp(run.info["ended"]).date()
    dirty = " with uncommitted changes" if git["dirty"] else ""
    lines = [
        "@package _global_",
        f"{_first_line(folder)}{winner['name']}",
        f"  python -m bestepoch.train +experiment={folder.name}",
        f"sweep      python -m bestepoch.train -m {shlex.join(metadata['overrides'])}",
        f"chosen by  {metadata['selection']['metric']} ({metadata['selection']['mode']}): {winner['metric']:.6g} "
        f"after epoch {winner['best_epoch']} of {metrics['last_epoch']}",
        f"tested     accuracy {metrics['test_accuracy']:.2%} (95% interval {metrics['test_accuracy_low']:.2%} to "
        f"{metrics['test_accuracy_high']:.2%}), loss {metrics['test_loss']:.4f}",
        f"trained    {ended}, {winner['seconds']:.0f} s on {run.info['environment']['device']} with "
        f"{run.info['environment']['threads']} threads, torch {run.info['environment']['torch']}",
        f"data       {data['name']}, {data['checksum'][:12]}",
        f"code       {git['commit'] or 'no commit'}{dirty}",
    ]
    return "".join(f"# {line}\n" for line in lines)


def _preset(run: Run) -> str:
    """Return the preset: every setting that decides the numbers, so that a later change elsewhere changes nothing."""
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
    """Return the `dvc exp run` command for this configuration: what differs from params.yaml and conf/."""
    run_config = run.info["config"]
    chosen = {group: run_config[group]["name"] for group in groups.CONFIG_GROUPS[1:]} | {
        "data": run.info["data"]["requested"]
    }
    params = flatten(compose.read_params())
    lines = [f"{group}={name}" for group, name in chosen.items() if params[group] != name]
    for group in groups.CONFIG_GROUPS[1:]:
        option = compose.load_option(group, chosen[group]).model_dump()
        lines += [
            f"conf/{group}/{chosen[group]}.yaml:{key}={_to_override_value(value)}"
            for key, value in run_config[group].items()
            if option[key] != value
        ]
    of_params = flatten({key: run_config[key] for key in run_config if key not in groups.CONFIG_GROUPS})
    lines += [f"{key}={_to_override_value(value)}" for key, value in of_params.items() if params[key] != value]
    return shlex.join(["dvc", "exp", "run", *(part for line in lines for part in ("-S", line))])


def _to_override_value(value: Any) -> str:
    """Return the value in Hydra's grammar, which DVC reads."""
    return json.dumps(value).replace(" ", "")
