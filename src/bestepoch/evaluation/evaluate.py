"""Stage 4: choose the best epoch on validation, and test that one, once."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestepoch.base import files, paths
from bestepoch.base.config import compose
from bestepoch.base.config.groups import PatienceStoppingConfig, PlateauStoppingConfig
from bestepoch.base.config.schema import Config, SelectionConfig
from bestepoch.base.shutdown import stop_when_dvc_exits
from bestepoch.components.data.split import load_part
from bestepoch.components.models.model_file import MODEL_FILE, make_model_file, restore_network
from bestepoch.evaluation import selection
from bestepoch.runs.find import PIPELINE_RUN, find_run
from bestepoch.runs.run import Run
from bestepoch.runs.tables import read_columns, read_rows, write_table
from bestepoch.splitting.ensure import find_split_of_run

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from bestepoch.evaluation.tensorboard_figures import EvaluationContext

log = logging.getLogger("bestepoch")


def main(config: Config) -> None:
    """The run that `dvc repro` trained, to ``results/evaluate``; another run, to ``evaluate`` in its own folder."""
    source = find_run(config.run or PIPELINE_RUN)
    pipeline = source == paths.project_root() / PIPELINE_RUN
    out = paths.project_root() / "results/evaluate" if pipeline else source / "evaluate"
    if pipeline:
        stop_when_dvc_exits()
    evaluate_run(config, source, out, pipeline)


def evaluate_run(config: Config, source: Path, out: Path, pipeline: bool) -> dict[str, Any]:
    """Choose by ``selection``, test, write, and tell the trackers.

    Args:
        source: holds run.json, epochs.csv, iterations.csv and checkpoints/.
        pipeline: whether this is the stage of `dvc repro`, with its split in data/split.

    Returns:
        what ``metrics.json`` holds.
    """
    from bestepoch.components.models import inference
    from bestepoch.evaluation import predictions, report
    from bestepoch.evaluation.diagnosis import diagnose_run
    from bestepoch.evaluation.statistics import selection_evidence, wilson_ci
    from bestepoch.evaluation.tensorboard_figures import EvaluationContext
    from bestepoch.runs import checkpoint

    run = Run.read(source)
    epochs = read_rows(source / "epochs.csv")
    choice, stopping = config.selection, _read_stopping(run)

    def fared(epoch: int) -> dict[str, np.ndarray]:
        return checkpoint.load_validation_results(source, epoch)

    best = selection.select_epoch(epochs, choice, fared)
    chosen = make_model_file(run, source, int(best["epoch"]))
    network = restore_network(chosen)
    split = find_split_of_run(run, config, pipeline)
    images, labels = load_part(split.folder, "test")
    started = time.monotonic()
    logits = inference.predict(network, images)
    smoothing = run.info["config"]["loss"]["label_smoothing"]
    scored = inference.score_examples(logits, labels, smoothing)
    tested = predictions.TestPredictions.from_logits(images, labels, logits, time.monotonic() - started)
    diagnosis = diagnose_run(run.info, epochs)
    run.info["verdict"] = diagnosis.to_dict()
    low, high = wilson_ci(int(scored.correct.sum()), len(labels))
    metrics = {
        "best_epoch": int(best["epoch"]),
        "last_epoch": int(epochs[-1]["epoch"]),
        "val_loss": best["val/loss"],
        "val_accuracy": best["val/accuracy"],
        "test_loss": scored.loss,
        "test_accuracy": scored.accuracy,
        "test_accuracy_low": low,
        "test_accuracy_high": high,
        "test_ece": predictions.calibration_error(tested.calibration()),
        **selection_evidence(epochs, best, choice, fared, stopping),
        "diagnosis": {"kind": diagnosis.kind, "epoch": diagnosis.epoch, **diagnosis.evidence},
    }

    out.mkdir(parents=True, exist_ok=True)
    write_table(out / "predictions.csv", ["index", "actual", "predicted", "confidence"], tested.rows())
    checkpoint.save(out / MODEL_FILE, chosen)
    iterations = read_columns(source / "iterations.csv")
    report.write_report(out, run, iterations, epochs, metrics, choice, stopping, diagnosis, tested)
    files.write_json(out / "metrics.json", metrics)
    numbers, probabilities = [int(row["epoch"]) for row in epochs], logits.double().softmax(1).numpy()
    shown = EvaluationContext(run, source, split, numbers, int(best["epoch"]), tested, probabilities)
    registered = _log_to_trackers(config, shown, out, network, images[:2].float().numpy(), metrics)

    _log_summary(metrics, choice)
    if registered:
        log.info("model    %s", registered)
    log.info("verdict  %s", diagnosis.sentence)
    log.info("try      %s  %s", diagnosis.suggestion, diagnosis.override)
    if split.offline_sample:
        log.warning("WARNING  this is %s, which stands in for %s", split.name, split.requested)
    log.info("report   %s", paths.display_path(out / "report.html"))
    log.info("compare  make ui")
    return metrics


def _log_summary(metrics: dict[str, Any], choice: SelectionConfig) -> None:
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


def _read_stopping(run: Run) -> PatienceStoppingConfig | PlateauStoppingConfig:
    """The early stopping of the run, or where it had none the menu's own, to say what that would have done."""
    kinds: dict[str, type[PatienceStoppingConfig | PlateauStoppingConfig]] = {
        "patience": PatienceStoppingConfig,
        "plateau": PlateauStoppingConfig,
    }
    values = run.info["config"]["stopping"]
    kind = kinds.get(values["name"])
    return kind(**values) if kind is not None else compose.load_option("stopping", "patience")


def _log_to_trackers(
    config: Config, shown: EvaluationContext, out: Path, network: nn.Module, example: Any, metrics: dict[str, Any]
) -> str | None:
    """The results to the trackers that the settings name; a tracker that is down does not cost the results.

    Returns:
        what the registry made of the model, in a line.
    """
    from bestepoch.tracking import run_summary
    from bestepoch.tracking.base import failure_reason
    from bestepoch.tracking.mlflow import registry
    from bestepoch.tracking.mlflow.evaluation import ModelArtifact, log_evaluation
    from bestepoch.tracking.tensorboard.run import write_evaluation

    told: dict[str, float] = {
        "best/epoch": metrics["best_epoch"],
        "best/val_loss": metrics["val_loss"],
        "best/val_accuracy": metrics["val_accuracy"],
        "test/loss": metrics["test_loss"],
        "test/accuracy": metrics["test_accuracy"],
    }
    run, runs = shown.run, paths.main_checkout() / "runs"
    described = run_summary.describe_run(run.info, metrics)
    live = shown.source if runs in shown.source.parents else runs / run.name
    if config.tracking.tensorboard and live.is_dir():
        more = shown.events(config.tracking.histograms)
        write_evaluation(live, told, described, more)
    if config.tracking.mlflow:
        model = ModelArtifact(network, example, out / MODEL_FILE)
        try:
            logged = log_evaluation(run, config.tracking.experiment, shown.source, told, model, out, described)
            if config.registry.enabled:
                return registry.register_model(logged, out / MODEL_FILE, told, config.selection.metric)
        except Exception as error:
            log.warning(
                "warning: MLflow does not take the evaluation (%s). Run this again when it does.",
                failure_reason(error),
            )
    return None
