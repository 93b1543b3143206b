"""Study how many epochs are enough, over several seeds, folds or configurations."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from bestepoch.base import errors, files, paths
from bestepoch.base.config.overrides import flatten
from bestepoch.base.config.schema import SelectionConfig, TrackingConfig
from bestepoch.base.errors import UsageError
from bestepoch.runs.find import find_run
from bestepoch.runs.run import Run
from bestepoch.runs.tables import write_table
from bestepoch.sweeps.replicates import REPLICATE_KEYS, ReplicateCurves, group_replicates

log = logging.getLogger("bestepoch")

COLUMNS = ("train/epoch_loss", "train/eval_loss", "train/eval_accuracy", "val/loss", "val/accuracy")


def run_study(runs: list[Run], choice: SelectionConfig, tracking: TrackingConfig, out: Path) -> None:
    """Write the study of ``runs`` into ``out``, log the results, and add them to MLflow if it is enabled."""
    study = group_replicates(runs)
    write_study(study, choice, out)
    _log_study(study, choice)
    log.info("study    %s", paths.display_path(out))
    if tracking.mlflow:
        from bestepoch.tracking.mlflow.sweep import log_study

        parent_file = out.parent / "parent.json"
        parent = files.read_json(parent_file, "") if parent_file.exists() else {}
        metrics = _summarize(study[0], choice) if len(study) == 1 else {}
        try:
            log_study(tracking.experiment, out, parent, metrics)
        except Exception as error:
            log.warning(
                "warning: MLflow does not take the study (%s). Run this again when it does: "
                "python -m bestepoch.study run=%s", errors.first_line(error), paths.display_path(out.parent),
            )  # fmt: skip


def read_answers(folder: Path) -> list[str]:
    """Return what the study in ``folder`` says of each setting, in a line each, best first."""
    study = files.read_json(folder / "study.json", "the study")
    sign = 1 if study["mode"] == "min" else -1
    return [
        f"{setting['name']}: epochs {setting['recommended_epochs']}{_bounds(setting)}, mean {study['metric']} "
        f"{setting['mean']:.4g} ± {setting['sd']:.2g} of {setting['runs']} runs"
        for setting in sorted(study["settings"], key=lambda setting: sign * setting["mean"])
    ]


def _bounds(setting: dict[str, Any]) -> str:
    """Return the interval of a setting; none where it has one run."""
    return f" (95% interval {setting['low']} to {setting['high']})" if "low" in setting else ""


def find_runs(run: str | list[str] | None) -> tuple[list[Run], Path]:
    """Return the runs that ``run`` names, a sweep's folder or a list of runs, and the folder for their study.

    Raises:
        UsageError: ``run`` is None, names no finished run, or cannot be found.
    """
    if run is None:
        raise UsageError("Which runs? Add run=runs/sweeps/<name>, or run=[runs/<a>,runs/<b>]")
    names = [run] if isinstance(run, str) else run
    bases = [base / names[0] for base in (Path.cwd(), paths.project_root(), paths.main_checkout())]
    sweep = next((base for base in bases if (base / "jobs.csv").is_file()), None)
    if len(names) == 1 and sweep is not None:
        folders = [run.folder for run in _drop_copies([path.parent for path in sorted(sweep.glob("*/run.json"))])]
        finished = [folder for folder in folders if Run.read(folder).status == "finished"]
        if not finished:
            raise UsageError(f"{names[0]} holds no finished run")
        if (unfinished := len(folders) - len(finished)) > 0:
            log.warning("warning: %d of %d runs are not finished and left out", unfinished, len(folders))
        return [Run.read(folder) for folder in finished], sweep / "study"
    runs = _drop_copies([find_run(name) for name in names])
    folders = [run.folder for run in runs]
    return runs, paths.main_checkout() / "runs/studies" / files.digest(sorted(map(str, folders)))


def _drop_copies(folders: list[Path]) -> list[Run]:
    """Return the runs in ``folders``, each once: a copy, or a run that is named twice, would be counted as a repeat."""
    runs = [Run.read(folder) for folder in folders]
    kept: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: run.original is not None):  # stable, so the originals come first
        first = kept.setdefault(run.info["uuid"], run)
        if first is not run:
            log.warning(
                "warning: %s is the same run as %s and left out",
                paths.display_path(run.folder),
                paths.display_path(first.folder),
            )
    return [run for run in runs if run in kept.values()]


def write_study(study: list[ReplicateCurves], choice: SelectionConfig, out: Path) -> None:
    """Write ``study.json``, ``runs.csv``, ``curves.csv`` and ``study.png`` into ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    runs, curves = [], []
    # tables of earlier versions, or without scored training images, lack some
    columns = [name for name in COLUMNS if all(name in row for s in study for table in s.tables for row in table)]
    for setting in study:
        for run, table, best in zip(setting.runs, setting.tables, setting.best_epochs(choice), strict=True):
            values = flatten(run.info["config"])
            row = [setting.name, run.name, *(values.get(key) for key in REPLICATE_KEYS), len(table), best]
            runs.append([*row, table[best - 1][choice.metric]])
        values_by_column = [setting.curves(column) for column in columns]
        for e in range(setting.epochs):
            spread = [f(values[:, e]) for values in values_by_column for f in (np.mean, standard_deviation)]
            curves.append([setting.name, e + 1, len(setting.runs), *map(float, spread)])
    write_table(out / "runs.csv", ["setting", "run", *REPLICATE_KEYS, "epochs", "best_epoch", choice.metric], runs)
    spread_columns = [f"{column} {statistic}" for column in columns for statistic in ("mean", "sd")]
    write_table(out / "curves.csv", ["setting", "epoch", "runs", *spread_columns], curves)
    plot_study(study, choice).savefig(out / "study.png", dpi=120)
    settings = [{"name": setting.name, **_summarize(setting, choice)} for setting in study]
    files.write_json(out / "study.json", {"metric": choice.metric, "mode": choice.mode, "settings": settings})


def _summarize(setting: ReplicateCurves, choice: SelectionConfig) -> dict[str, float]:
    """Return the recommended epochs with their interval, and the metric there; one run gives no interval."""
    epochs, low, high = setting.recommended(choice)
    values = setting.curves(choice.metric)[:, epochs - 1]
    interval = {"low": low, "high": high} if len(setting.runs) > 1 else {}
    counts = {"runs": len(setting.runs), "recommended_epochs": epochs, **interval}
    return {**counts, "mean": float(values.mean()), "sd": standard_deviation(values)}


def _describe_interval(setting: ReplicateCurves, summary: dict[str, float]) -> str:
    if "low" not in summary:
        return "one run gives no interval: add seed='range(5)'"
    interval = f"95% interval {summary['low']} to {summary['high']}"
    if summary["high"] == setting.epochs:
        interval += f", cut off at {setting.epochs}, the last epoch that all of them have"
    return interval + "; two runs are few" * (len(setting.runs) == 2)


def standard_deviation(values: np.ndarray) -> float:
    """Return the sample standard deviation of values of shape ``(N,)``; 0 if N is 1."""
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _log_study(study: list[ReplicateCurves], choice: SelectionConfig) -> None:
    sign = 1 if choice.mode == "min" else -1
    for setting in sorted(study, key=lambda setting: sign * _summarize(setting, choice)["mean"]):
        summary = _summarize(setting, choice)
        log.info("%s", setting.name)
        log.info(
            "  epochs %d (%s), where the mean %s of %d %s is %.4g%s",
            summary["recommended_epochs"], _describe_interval(setting, summary), choice.metric, summary["runs"],
            "run" if summary["runs"] == 1 else "runs", summary["mean"],
            f" ± {summary['sd']:.2g}" if summary["runs"] > 1 else "",
        )  # fmt: skip
        log.info("  best epoch of each run: %s", ", ".join(map(str, sorted(setting.best_epochs(choice)))))
        if summary["recommended_epochs"] == setting.epochs:
            log.info("  that is the last epoch which all of them have: more may be better")


def plot_study(study: list[ReplicateCurves], choice: SelectionConfig) -> Any:
    """Plot mean and standard deviation of the metric against the epoch, and a histogram of the best epochs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    width = 0.8 / len(study)
    for i, setting in enumerate(study):
        values, x = setting.curves(choice.metric), np.arange(1, setting.epochs + 1)
        mean, sd = values.mean(0), np.array([standard_deviation(values[:, e]) for e in range(setting.epochs)])
        (line,) = left.plot(x, mean, marker="o", markersize=3, label=f"{setting.name} ({len(setting.runs)})")
        left.fill_between(x, mean - sd, mean + sd, color=line.get_color(), alpha=0.2, linewidth=0)
        left.axvline(setting.recommended(choice)[0], color=line.get_color(), linestyle="--", linewidth=1)
        best, counts = np.unique(setting.best_epochs(choice), return_counts=True)
        right.bar(best + (i - (len(study) - 1) / 2) * width, counts, width, color=line.get_color())
    left.set_ylabel(f"{choice.metric}: mean ± standard deviation")
    right.set_ylabel("runs whose best epoch it is")
    right.set_xlim(0.5, max(len(table) for setting in study for table in setting.tables) + 0.5)
    right.yaxis.get_major_locator().set_params(integer=True)
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", fontsize=8, frameon=False)
    return figure
