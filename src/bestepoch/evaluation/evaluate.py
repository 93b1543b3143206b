"""Stage 4: choose the best epoch on validation, and test that one, once."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestepoch.base import files
from bestepoch.base.config import compose
from bestepoch.base.config.schema import Level, Patience, Selection, Settings
from bestepoch.base.files import UsageError
from bestepoch.base.shutdown import stop_with_dvc
from bestepoch.components.data.split import Summary, load
from bestepoch.components.models.model_file import MODEL, chosen_model, restored
from bestepoch.evaluation import selection
from bestepoch.runs.journal import columns, read, write_table
from bestepoch.runs.run import Run
from bestepoch.splitting import ensure

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from bestepoch.evaluation.tensorboard_figures import Evaluated

log = logging.getLogger("bestepoch")
PIPELINE_RUN = "results/train"


def main(settings: Settings) -> None:
    """The run that `dvc repro` trained, to ``results/evaluate``; another run, to ``evaluate`` in its own folder."""
    source = find_run(settings.run or PIPELINE_RUN)
    pipeline = source == files.root() / PIPELINE_RUN
    out = files.root() / "results/evaluate" if pipeline else source / "evaluate"
    if pipeline:
        stop_with_dvc()
    evaluate(settings, source, out, pipeline)


def find_run(name: str | list[str]) -> Path:
    """A run's folder, named from here or from the project's root.

    Raises:
        UsageError: there is none; the message lists those there are. Or several are named.
    """
    if not isinstance(name, str):
        raise UsageError("This takes one run: run=runs/<name>. Several are for: python -m bestepoch.study")
    for base in (Path.cwd(), files.root(), files.home()):
        folder = (base / name).resolve()
        if (folder / "run.json").is_file():
            return folder
    there = sorted(files.relative(path.parent) for path in (files.home() / "runs").glob("*/run.json"))
    if name == PIPELINE_RUN:
        raise UsageError(
            f"{name} holds no run yet. Make it with: dvc repro" + (f", or: run={there[-1]}" if there else "")
        )
    raise UsageError(f"run = {name} is not a run's folder. There are: {', '.join(there) or 'none'}")


def evaluate(settings: Settings, source: Path, out: Path, pipeline: bool) -> dict[str, Any]:
    """Choose by ``selection``, test, write, and tell the trackers.

    Args:
        source: holds run.json, epochs.csv, iterations.csv and checkpoints/.
        pipeline: whether this is the stage of `dvc repro`, with its split in data/split.

    Returns:
        what ``metrics.json`` holds.
    """
    from bestepoch.evaluation import report, statistics
    from bestepoch.evaluation.diagnosis import of_run
    from bestepoch.evaluation.tensorboard_figures import Evaluated
    from bestepoch.runs import checkpoint
    from bestepoch.training import loop

    run = Run.read(source)
    epochs = read(source / "epochs.csv")
    choice, stopping = settings.selection, _stopping(run)

    def fared(epoch: int) -> dict[str, np.ndarray]:
        return checkpoint.fared(source, epoch)

    best = selection.choose(epochs, choice, fared)
    chosen = chosen_model(run, source, int(best["epoch"]))
    network = restored(chosen)
    split = _split(run, settings, pipeline)
    images, labels = load(split.folder, "test")
    started = time.monotonic()
    logits = loop.predict(network, images)
    smoothing = run.info["config"]["loss"]["label_smoothing"]
    scored = loop.score(logits, labels, smoothing)
    tested = report.Tested.of(images, labels, logits, time.monotonic() - started)
    diagnosis = of_run(run.info, epochs)
    run.info["verdict"] = diagnosis.told()
    low, high = statistics.wilson(int(scored.correct.sum()), len(labels))
    metrics = {
        "best_epoch": int(best["epoch"]),
        "last_epoch": int(epochs[-1]["epoch"]),
        "val_loss": best["val/loss"],
        "val_accuracy": best["val/accuracy"],
        "test_loss": scored.loss,
        "test_accuracy": scored.accuracy,
        "test_accuracy_low": low,
        "test_accuracy_high": high,
        "test_ece": report.calibration_error(tested.calibration()),
        **statistics.of(epochs, best, choice, fared, stopping),
        "diagnosis": {"kind": diagnosis.kind, "epoch": diagnosis.epoch, **diagnosis.evidence},
    }

    out.mkdir(parents=True, exist_ok=True)
    write_table(out / "predictions.csv", ["index", "actual", "predicted", "confidence"], tested.rows())
    checkpoint.save(out / MODEL, chosen)
    iterations = columns(source / "iterations.csv")
    report.write(out, run, iterations, epochs, metrics, choice, stopping, diagnosis, tested)
    files.write_json(out / "metrics.json", metrics)
    numbers, probabilities = [int(row["epoch"]) for row in epochs], logits.double().softmax(1).numpy()
    shown = Evaluated(run, source, split, numbers, int(best["epoch"]), tested, probabilities)
    registered = _tell(settings, shown, out, network, images[:2].float().numpy(), metrics)

    _say(metrics, choice)
    if registered:
        log.info("model    %s", registered)
    log.info("verdict  %s", diagnosis.sentence)
    log.info("try      %s  %s", diagnosis.suggestion, diagnosis.override)
    if split.offline_sample:
        log.warning("WARNING  this is %s, which stands in for %s", split.name, split.requested)
    log.info("report   %s", files.relative(out / "report.html"))
    log.info("compare  make ui")
    return metrics


def _say(metrics: dict[str, Any], choice: Selection) -> None:
    rule = "" if choice.rule == "best" else f", {choice.rule.replace('_', ' ')} rule"
    log.info("best     epoch %d of %d, by %s%s", metrics["best_epoch"], metrics["last_epoch"], choice.metric, rule)
    if (second := metrics.get("runner_up")) is not None:
        log.info(
            "next     epoch %d, by %+.2g (95%% interval %+.2g to %+.2g): %s",
            second["epoch"], second["difference"], second["low"], second["high"],
            "more than noise" if second["more_than_noise"] else "not more than noise",
        )  # fmt: skip
    log.info("val      loss %.4f  accuracy %.2f%%", metrics["val_loss"], 100 * metrics["val_accuracy"])
    shares = [100 * metrics[f"test_accuracy{end}"] for end in ("", "_low", "_high")]
    log.info("test     loss %.4f  accuracy %.2f%% (95%% interval %.2f to %.2f)", metrics["test_loss"], *shares)


def _stopping(run: Run) -> Patience | Level:
    """The early stopping of the run, or where it had none the menu's own, to say what that would have done."""
    kinds: dict[str, type[Patience | Level]] = {"patience": Patience, "plateau": Level}
    values = run.info["config"]["stopping"]
    kind = kinds.get(values["name"])
    return kind(**values) if kind is not None else compose.menu_entry("stopping", "patience")


def _split(run: Run, settings: Settings, pipeline: bool) -> Summary:
    """The split that the run was trained on, or none: another one would mix training and test images."""
    data = run.info["data"]
    if pipeline:
        split = ensure.pipeline_split()
        if split.checksum == data["checksum"]:
            return split
        raise UsageError("data/split is not what results/train was trained on. Bring both up to date: dvc repro")
    for folder in (files.root() / data["folder"], files.home() / data["folder"]):
        if (folder / "summary.json").is_file() and (split := Summary.read(folder)).checksum == data["checksum"]:
            return split
    wanted = data["request"]
    again = settings.model_copy(update={"split": settings.split.model_copy(update=wanted["split"])})
    if settings.data.name != wanted["data"]:
        raise UsageError(f"The data of this run is not at hand. Add data={wanted['data']} to the command")
    split = ensure.split_for(again)
    if split.checksum != data["checksum"]:
        raise UsageError(f"{wanted['data']} has changed since this run was trained; train it again")
    return split


def _tell(
    settings: Settings, shown: Evaluated, out: Path, network: nn.Module, example: Any, metrics: dict[str, Any]
) -> str | None:
    """The results to the trackers that the settings name; a tracker that is down does not cost the results.

    Returns:
        what the registry made of the model, in a line.
    """
    from bestepoch.tracking import run_summary
    from bestepoch.tracking.mlflow import registry, store
    from bestepoch.tracking.mlflow.evaluation import LoggedModel, record_evaluation
    from bestepoch.tracking.tensorboard.run import show_evaluation

    told: dict[str, float] = {
        "best/epoch": metrics["best_epoch"],
        "best/val_loss": metrics["val_loss"],
        "best/val_accuracy": metrics["val_accuracy"],
        "test/loss": metrics["test_loss"],
        "test/accuracy": metrics["test_accuracy"],
    }
    run, runs = shown.run, files.home() / "runs"
    described = run_summary.describe(run.info, metrics)
    live = shown.source if runs in shown.source.parents else runs / run.name
    if settings.tracking.tensorboard and live.is_dir():
        more = shown.events(settings.tracking.histograms)
        show_evaluation(live, told, described, more)
    if settings.tracking.mlflow:
        model = LoggedModel(network, example, out / MODEL)
        try:
            logged = record_evaluation(run, settings.tracking.experiment, shown.source, told, model, out, described)
            if settings.registry.enabled:
                return registry.register(logged, out / MODEL, told, settings.selection.metric)
        except Exception as error:
            log.warning(
                "warning: MLflow does not take the evaluation (%s). Run this again when it does.",
                store.reason(error),
            )
    return None
