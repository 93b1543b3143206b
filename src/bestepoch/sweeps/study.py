"""How many epochs are enough, over several runs: seeds, folds or settings."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bestepoch.base import files
from bestepoch.base.config.schema import Selection, Settings, Tracking
from bestepoch.base.files import UsageError
from bestepoch.evaluation.evaluate import find_run
from bestepoch.evaluation.selection import best_epoch, smoothed
from bestepoch.runs.journal import Row, read, write_table
from bestepoch.runs.run import Run, flat

log = logging.getLogger("bestepoch")

COLUMNS = ("train/epoch_loss", "val/loss", "val/accuracy")
REPEATS = ("seed", "split.seed", "split.fold")  # runs that differ only in these are one setting, repeated
RESAMPLES = 2000


@dataclass
class Setting:
    """Runs of one configuration. ``name`` is what tells it from the other settings of the study."""

    name: str
    runs: list[Run]
    tables: list[list[Row]]

    @property
    def epochs(self) -> int:
        """How many epochs all of the runs have: beyond, a mean would be of those that stopped late."""
        return min(len(table) for table in self.tables)

    def curves(self, column: str) -> np.ndarray:
        """(runs, epochs) values."""
        return np.array([[row[column] for row in table[: self.epochs]] for table in self.tables])

    def best_epochs(self, choice: Selection) -> list[int]:
        """Of each run."""
        return [int(best_epoch(table, choice.metric, choice.mode)["epoch"]) for table in self.tables]

    def recommended(self, choice: Selection) -> tuple[int, int, int]:
        """The epoch at which the mean curve is best, and its 95 % interval from runs drawn anew (bootstrap)."""
        rows = [smoothed(table[: self.epochs], choice.metric, choice.mode, choice.smoothing) for table in self.tables]
        # an epoch without a finite value never wins
        values = np.array([[row.get(float(e), np.inf) for e in range(1, self.epochs + 1)] for row in rows])
        draws = np.random.default_rng(0).integers(len(rows), size=(RESAMPLES, len(rows)))
        low, high = np.percentile(values[draws].mean(1).argmin(1) + 1, [2.5, 97.5], method="nearest")
        return int(values.mean(0).argmin()) + 1, int(low), int(high)


def main(settings: Settings) -> None:
    """``python -m bestepoch.study run=runs/sweeps/<name>``, or of single runs: ``run=[runs/<a>,runs/<b>]``."""
    folders, out = _folders(settings.run)
    conduct([Run.read(folder) for folder in folders], settings.selection, settings.tracking, out)


def conduct(runs: list[Run], choice: Selection, tracking: Tracking, out: Path) -> None:
    """Write the study of ``runs`` into ``out``, say what it found, and add it to MLflow."""
    study = group(runs)
    write(study, choice, out)
    _print(study, choice)
    log.info("study    %s", files.relative(out))
    if tracking.mlflow:
        from bestepoch.tracking.mlflow.sweep import record_study

        note = out.parent / "parent.json"
        parent = files.read_json(note, "") if note.exists() else {}
        numbers = _numbers(study[0], choice) if len(study) == 1 else {}
        try:
            record_study(tracking.experiment, out, parent, numbers)
        except Exception as error:
            log.warning(
                "warning: MLflow does not take the study (%s). Run this again when it does: "
                "python -m bestepoch.study run=%s", files.first_line(error), files.relative(out.parent),
            )  # fmt: skip


def _folders(named: str | list[str] | None) -> tuple[list[Path], Path]:
    """The runs that are meant, and where the study goes."""
    if named is None:
        raise UsageError("Which runs? Add run=runs/sweeps/<name>, or run=[runs/<a>,runs/<b>]")
    names = [named] if isinstance(named, str) else named
    bases = [base / names[0] for base in (Path.cwd(), files.root(), files.home())]
    sweep = next((base for base in bases if (base / "jobs.csv").is_file()), None)
    if len(names) == 1 and sweep is not None:
        found = sorted(path.parent for path in sweep.glob("*/run.json"))
        finished = [folder for folder in found if Run.read(folder).status == "finished"]
        if not finished:
            raise UsageError(f"{names[0]} holds no finished run")
        if len(finished) < len(found):
            log.warning("warning: %d of %d runs are not finished and left out", len(found) - len(finished), len(found))
        return finished, sweep / "study"
    folders = [find_run(name) for name in names]
    return folders, files.home() / "runs/studies" / files.digest(sorted(map(str, folders)))


def group(runs: list[Run]) -> list[Setting]:
    """Runs that are repeats of one another, together; each setting named by what not all of them have in common."""
    runs = sorted(runs, key=lambda run: run.name)  # whoever lists them: sums depend on the order
    configs = [{k: v for k, v in flat(run.info["config"]).items() if k not in REPEATS} for run in runs]
    told = _told(configs)
    together: dict[str, Setting] = {}
    for run, config in zip(runs, configs, strict=True):
        table = read(run.folder / "epochs.csv")
        if not table:
            raise UsageError(f"{files.relative(run.folder)} has no epoch yet")
        name = " ".join(f"{key}={config[key]}" for key in told if key in config) or "all runs"
        setting = together.setdefault(name, Setting(name, [], []))
        setting.runs.append(run)
        setting.tables.append(table)
    return list(together.values())


def _told(configs: list[dict[str, Any]]) -> list[str]:
    """The keys whose values differ; but what just comes with the choice from a menu goes without saying."""
    keys = sorted({key for config in configs for key in config}, key=lambda key: (key.count("."), key))

    def differ(key: str) -> bool:
        menu = key.split(".")[0]
        values = {(config.get(menu), repr(config.get(key))) for config in configs}
        return len(values) > len({choice for choice, _ in values})

    return [key for key in keys if len({repr(c.get(key)) for c in configs}) > 1 and ("." not in key or differ(key))]


def write(study: list[Setting], choice: Selection, out: Path) -> None:
    """``study.json``, ``runs.csv``, ``curves.csv`` and ``study.png``."""
    out.mkdir(parents=True, exist_ok=True)
    runs, curves = [], []
    for setting in study:
        for run, table, best in zip(setting.runs, setting.tables, setting.best_epochs(choice), strict=True):
            values = flat(run.info["config"])
            row = [setting.name, run.name, *(values.get(key) for key in REPEATS), len(table), best]
            runs.append([*row, table[best - 1][choice.metric]])
        of_columns = [setting.curves(column) for column in COLUMNS]
        for e in range(setting.epochs):
            spread = [f(values[:, e]) for values in of_columns for f in (np.mean, _sd)]
            curves.append([setting.name, e + 1, len(setting.runs), *map(float, spread)])
    write_table(out / "runs.csv", ["setting", "run", *REPEATS, "epochs", "best_epoch", choice.metric], runs)
    both = [f"{column} {kind}" for column in COLUMNS for kind in ("mean", "sd")]
    write_table(out / "curves.csv", ["setting", "epoch", "runs", *both], curves)
    figure(study, choice).savefig(out / "study.png", dpi=120)
    files.write_json(
        out / "study.json",
        {
            "metric": choice.metric,
            "mode": choice.mode,
            "settings": [{"name": setting.name, **_numbers(setting, choice)} for setting in study],
        },
    )


def _numbers(setting: Setting, choice: Selection) -> dict[str, float]:
    epochs, low, high = setting.recommended(choice)
    at = setting.curves(choice.metric)[:, epochs - 1]
    return {
        "runs": len(setting.runs),
        "recommended_epochs": epochs,
        "low": low,
        "high": high,
        "mean": float(at.mean()),
        "sd": _sd(at),
    }


def _sd(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _print(study: list[Setting], choice: Selection) -> None:
    sign = 1 if choice.mode == "min" else -1
    for setting in sorted(study, key=lambda one: sign * _numbers(one, choice)["mean"]):
        n = _numbers(setting, choice)
        best = sorted(setting.best_epochs(choice))
        log.info("%s", setting.name)
        log.info(
            "  epochs %d (95%% interval %d to %d), where the mean %s of %d runs is %.4g ± %.2g",
            n["recommended_epochs"], n["low"], n["high"], choice.metric, n["runs"], n["mean"], n["sd"],
        )  # fmt: skip
        log.info("  best epoch of each run: %s", ", ".join(map(str, best)))
        if n["recommended_epochs"] == setting.epochs:
            log.info("  that is the last epoch which all of them have: more may be better")


def figure(study: list[Setting], choice: Selection) -> Any:
    """Mean and standard deviation of the metric's curve, and where the best epochs are."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = made.subplots(1, 2)
    width = 0.8 / len(study)
    for i, setting in enumerate(study):
        values, x = setting.curves(choice.metric), np.arange(1, setting.epochs + 1)
        mean, sd = values.mean(0), np.array([_sd(values[:, e]) for e in range(setting.epochs)])
        (line,) = left.plot(x, mean, marker="o", markersize=3, label=f"{setting.name} ({len(setting.runs)})")
        left.fill_between(x, mean - sd, mean + sd, color=line.get_color(), alpha=0.2, linewidth=0)
        left.axvline(setting.recommended(choice)[0], color=line.get_color(), linestyle="--", linewidth=1)
        at, counts = np.unique(setting.best_epochs(choice), return_counts=True)
        right.bar(at + (i - (len(study) - 1) / 2) * width, counts, width, color=line.get_color())
    left.set_ylabel(f"{choice.metric}: mean ± standard deviation")
    right.set_ylabel("runs whose best epoch it is")
    right.set_xlim(0.5, max(len(table) for setting in study for table in setting.tables) + 0.5)
    right.yaxis.get_major_locator().set_params(integer=True)
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    made.legend(*left.get_legend_handles_labels(), loc="outside lower left", fontsize=8, frameon=False)
    return made
