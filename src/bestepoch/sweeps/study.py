"""How many epochs are enough, over several runs: seeds, folds or settings."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from bestepoch.base import errors, files, paths
from bestepoch.base.config.overrides import flatten
from bestepoch.base.config.schema import Config, SelectionConfig, TrackingConfig
from bestepoch.base.errors import UsageError
from bestepoch.runs.find import find_run
from bestepoch.runs.run import Run
from bestepoch.runs.tables import write_table
from bestepoch.sweeps.replicates import REPLICATE_KEYS, ReplicateCurves, group_replicates

log = logging.getLogger("bestepoch")

COLUMNS = ("train/epoch_loss", "val/loss", "val/accuracy")


def main(config: Config) -> None:
    """``python -m bestepoch.study run=runs/sweeps/<name>``, or of single runs: ``run=[runs/<a>,runs/<b>]``."""
    folders, out = _find_folders(config.run)
    run_study([Run.read(folder) for folder in folders], config.selection, config.tracking, out)


def run_study(runs: list[Run], choice: SelectionConfig, tracking: TrackingConfig, out: Path) -> None:
    """Write the study of ``runs`` into ``out``, say what it found, and add it to MLflow."""
    study = group_replicates(runs)
    write_study(study, choice, out)
    _log_study(study, choice)
    log.info("study    %s", paths.display_path(out))
    if tracking.mlflow:
        from bestepoch.tracking.mlflow.sweep import log_study

        note = out.parent / "parent.json"
        parent = files.read_json(note, "") if note.exists() else {}
        numbers = _summarize(study[0], choice) if len(study) == 1 else {}
        try:
            log_study(tracking.experiment, out, parent, numbers)
        except Exception as error:
            log.warning(
                "warning: MLflow does not take the study (%s). Run this again when it does: "
                "python -m bestepoch.study run=%s", errors.first_line(error), paths.display_path(out.parent),
            )  # fmt: skip


def _find_folders(named: str | list[str] | None) -> tuple[list[Path], Path]:
    """The runs that are meant, and where the study goes."""
    if named is None:
        raise UsageError("Which runs? Add run=runs/sweeps/<name>, or run=[runs/<a>,runs/<b>]")
    names = [named] if isinstance(named, str) else named
    bases = [base / names[0] for base in (Path.cwd(), paths.project_root(), paths.main_checkout())]
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
    return folders, paths.main_checkout() / "runs/studies" / files.digest(sorted(map(str, folders)))


def write_study(study: list[ReplicateCurves], choice: SelectionConfig, out: Path) -> None:
    """``study.json``, ``runs.csv``, ``curves.csv`` and ``study.png``."""
    out.mkdir(parents=True, exist_ok=True)
    runs, curves = [], []
    for setting in study:
        for run, table, best in zip(setting.runs, setting.tables, setting.best_epochs(choice), strict=True):
            values = flatten(run.info["config"])
            row = [setting.name, run.name, *(values.get(key) for key in REPLICATE_KEYS), len(table), best]
            runs.append([*row, table[best - 1][choice.metric]])
        of_columns = [setting.curves(column) for column in COLUMNS]
        for e in range(setting.epochs):
            spread = [f(values[:, e]) for values in of_columns for f in (np.mean, standard_deviation)]
            curves.append([setting.name, e + 1, len(setting.runs), *map(float, spread)])
    write_table(out / "runs.csv", ["setting", "run", *REPLICATE_KEYS, "epochs", "best_epoch", choice.metric], runs)
    both = [f"{column} {kind}" for column in COLUMNS for kind in ("mean", "sd")]
    write_table(out / "curves.csv", ["setting", "epoch", "runs", *both], curves)
    plot_study(study, choice).savefig(out / "study.png", dpi=120)
    files.write_json(
        out / "study.json",
        {
            "metric": choice.metric,
            "mode": choice.mode,
            "settings": [{"name": setting.name, **_summarize(setting, choice)} for setting in study],
        },
    )


def _summarize(setting: ReplicateCurves, choice: SelectionConfig) -> dict[str, float]:
    epochs, low, high = setting.recommended(choice)
    at = setting.curves(choice.metric)[:, epochs - 1]
    return {
        "runs": len(setting.runs),
        "recommended_epochs": epochs,
        "low": low,
        "high": high,
        "mean": float(at.mean()),
        "sd": standard_deviation(at),
    }


def standard_deviation(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _log_study(study: list[ReplicateCurves], choice: SelectionConfig) -> None:
    sign = 1 if choice.mode == "min" else -1
    for setting in sorted(study, key=lambda one: sign * _summarize(one, choice)["mean"]):
        n = _summarize(setting, choice)
        best = sorted(setting.best_epochs(choice))
        log.info("%s", setting.name)
        log.info(
            "  epochs %d (95%% interval %d to %d), where the mean %s of %d runs is %.4g ± %.2g",
            n["recommended_epochs"], n["low"], n["high"], choice.metric, n["runs"], n["mean"], n["sd"],
        )  # fmt: skip
        log.info("  best epoch of each run: %s", ", ".join(map(str, best)))
        if n["recommended_epochs"] == setting.epochs:
            log.info("  that is the last epoch which all of them have: more may be better")


def plot_study(study: list[ReplicateCurves], choice: SelectionConfig) -> Any:
    """Mean and standard deviation of the metric's curve, and where the best epochs are."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = made.subplots(1, 2)
    width = 0.8 / len(study)
    for i, setting in enumerate(study):
        values, x = setting.curves(choice.metric), np.arange(1, setting.epochs + 1)
        mean, sd = values.mean(0), np.array([standard_deviation(values[:, e]) for e in range(setting.epochs)])
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
