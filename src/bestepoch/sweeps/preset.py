"""The winner of a sweep: tested, and written down as an experiment that anyone can run again."""

from __future__ import annotations

import json
import logging
import shlex
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from bestepoch.base import files
from bestepoch.base.config import compose
from bestepoch.base.config.schema import Selection, Settings, Sweeping
from bestepoch.base.files import UsageError
from bestepoch.evaluation.evaluate import evaluate
from bestepoch.runs.run import Run, flat
from bestepoch.sweeps.jobs import Jobs, Note
from bestepoch.sweeps.leaderboard import Standings

log = logging.getLogger("bestepoch")


def main(settings: Settings) -> None:
    """``python -m bestepoch.promote sweep=runs/sweeps/<name>``."""
    folder = _folder(settings.sweep)
    about = files.read_json(folder / "sweep.json", "the sweep's command")
    choice = Selection(**about["selection"])
    preset = _preset_path(folder)
    notes = Jobs(folder).notes()
    table = Standings.of(notes, choice)
    winner = table.winner
    if winner is None:
        raise UsageError(f"{files.relative(folder)} holds no finished job. Type the sweep's command again")
    if table.failed:
        log.warning("warning: %d jobs are not finished; the winner is that of the others", len(table.rest))
    run = Run.read(files.home() / winner["run"])
    log.info("winner   %s, of %d jobs by %s", winner["name"], len(notes), choice.metric)
    metrics = evaluate(settings.model_copy(update={"selection": choice}), run.folder, run.folder / "evaluate", False)
    files.write_atomic(preset, _header(folder, about, winner, run, metrics) + _preset(run))
    log.info("")
    log.info("preset   %s", files.relative(preset))
    log.info("again    python -m bestepoch.train +experiment=%s", folder.name)
    log.info("as well  %s", _experiment(run))


def _preset_path(folder: Path) -> Path:
    """Where the winner is written. Raises UsageError where a preset of that name is there that is not this sweep's."""
    preset = files.root() / "conf" / "experiment" / f"{folder.name}.yaml"
    if preset.exists() and _first_line(folder) not in preset.read_text(encoding="utf-8"):
        raise UsageError(
            f"{files.relative(preset)} is there already and was not written from {files.relative(folder)}: it is "
            f"left as it is. Rename one of the two"
        )
    return preset


def _first_line(folder: Path) -> str:
    return f"The winner of runs/sweeps/{folder.name}: "


def _folder(sweep: Sweeping | str) -> Path:
    there = sorted(path.parent for path in (files.home() / "runs/sweeps").glob("*/sweep.json"))
    names = ", ".join(files.relative(folder) for folder in there) or "none"
    if not isinstance(sweep, str):
        raise UsageError(f"Which sweep? Add sweep=runs/sweeps/<name>. There are: {names}")
    for base in (Path.cwd(), files.root(), files.home()):
        if (base / sweep / "sweep.json").is_file():
            return (base / sweep).resolve()
    raise UsageError(f"sweep = {sweep} is not a sweep's folder. There are: {names}")


def _header(folder: Path, about: dict[str, Any], winner: Note, run: Run, metrics: dict[str, Any]) -> str:
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
    for menu in compose.MENUS[1:]:
        chosen[menu] = values[menu]["name"]
        values[menu] = {key: value for key, value in values[menu].items() if key != "name"}
    content = {
        "defaults": [{f"override /{menu}": name} for menu, name in chosen.items()],
        **{key: value for key, value in values.items() if value != {}},
    }
    return str(yaml.safe_dump(content, sort_keys=False))


def _experiment(run: Run) -> str:
    """The `dvc exp run` command that gives the pipeline this configuration: what differs from the files as they are."""
    wanted = run.info["config"]
    chosen = {menu: wanted[menu]["name"] for menu in compose.MENUS[1:]} | {"data": run.info["data"]["requested"]}
    params = flat(compose.params())
    lines = [f"{menu}={name}" for menu, name in chosen.items() if params[menu] != name]
    for menu in compose.MENUS[1:]:
        there = compose.menu_entry(menu, chosen[menu]).model_dump()
        lines += [
            f"conf/{menu}/{chosen[menu]}.yaml:{key}={_text(value)}"
            for key, value in wanted[menu].items()
            if there[key] != value
        ]
    of_params = flat({key: wanted[key] for key in wanted if key not in compose.MENUS})
    lines += [f"{key}={_text(value)}" for key, value in of_params.items() if params[key] != value]
    return shlex.join(["dvc", "exp", "run", *(part for line in lines for part in ("-S", line))])


def _text(value: Any) -> str:
    """As DVC reads it, which goes by Hydra's grammar."""
    return json.dumps(value).replace(" ", "")
