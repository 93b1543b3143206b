"""Choose the best epoch on validation, test it once, write the results and log them to the trackers."""

from __future__ import annotations

import functools
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestepoch.base import files
from bestepoch.base.config.compose import list_options, load_option
from bestepoch.base.config.groups import PatienceStoppingConfig, PlateauStoppingConfig
from bestepoch.base.config.schema import Config, SelectionConfig
from bestepoch.base.errors import UsageError
from bestepoch.base.paths import display_path, main_checkout
from bestepoch.components.data.split import Split, load_part
from bestepoch.components.models.model_file import MODEL_FILE, make_model_file, restore_network
from bestepoch.evaluation.lock import evaluation_lock
from bestepoch.evaluation.selection import select_epoch
from bestepoch.evaluation.unfinished import describe_unfinished, require_epoch
from bestepoch.runs.run import Run
from bestepoch.runs.tables import read_rows, write_table

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bestepoch.evaluation.tensorboard_figures import EvaluationContext

log = logging.getLogger("bestepoch")


def evaluate_run(config: Config, source: Path, out: Path, split: Split) -> dict[str, Any]:
    """Choose an epoch by ``config.selection``, test it, write the results and log them to the trackers.

    While another process evaluates the run, wait: two at once would log its model twice and mix their files.

    Args:
        config: names the selection, the trackers and the registry.
        source: folder with run.json, epochs.csv, iterations.csv and checkpoints/.
        out: folder for the results.
        split: the split that the run was trained on.

    Returns:
        The content of ``metrics.json``.

    Raises:
        UsageError: no epoch can be chosen, or the run's files cannot be read.
    """
    with evaluation_lock(Run.read(source)):
        return _evaluate(config, source, out, split)


def _evaluate(config: Config, source: Path, out: Path, split: Split) -> dict[str, Any]:
    from bestepoch.components.models import inference, scoring
    from bestepoch.evaluation import predictions, remarks, report
    from bestepoch.evaluation.diagnosis import diagnose_run
    from bestepoch.evaluation.layers import list_layers
    from bestepoch.evaluation.statistics import selection_evidence, wilson_ci
    from bestepoch.evaluation.tensorboard_figures import EvaluationContext
    from bestepoch.runs import checkpoint

    run = Run.read(source)
    run.is_training()  # else a run whose process is gone would still be called running
    epochs = read_rows(source / "epochs.csv")
    require_epoch(run, epochs)
    selection, stopping, names = config.selection, _read_stopping(run), _read_class_names(run)
    load_results = functools.partial(checkpoint.load_validation_results, source)
    best = select_epoch(epochs, selection, load_results)
    model_file = make_model_file(run.info, checkpoint.load(checkpoint.weights_path(source, int(best["epoch"]))))
    network = restore_network(model_file)
    images, labels = load_part(split.folder, "test")
    started = time.monotonic()
    logits = inference.predict(network, images)
    results = scoring.score_examples(logits, labels)
    tested = predictions.TestPredictions.from_logits(images, labels, logits, time.monotonic() - started)
    diagnosis = diagnose_run(run.info, epochs)
    run.info |= {"verdict": diagnosis.to_dict(), "selection": selection.model_dump()}
    low, high = wilson_ci(int(results.correct.sum()), len(labels))
    metrics = {
        "best_epoch": int(best["epoch"]),
        "last_epoch": int(epochs[-1]["epoch"]),
        "val_loss": best["val/loss"],
        "val_accuracy": best["val/accuracy"],
        "test_loss": results.loss,
        "test_accuracy": results.accuracy,
        "test_accuracy_low": low,
        "test_accuracy_high": high,
        **tested.class_means(),
        "test_ece": predictions.calibration_error(tested.calibration()),
        **selection_evidence(epochs, best, selection, load_results, stopping),
        "diagnosis": {"kind": diagnosis.kind, "epoch": diagnosis.epoch, **diagnosis.evidence},
    }

    with files.staged_folder(out) as staging:
        write_table(staging / "predictions.csv", ["index", "actual", "predicted", "confidence"], tested.rows())
        checkpoint.save(staging / MODEL_FILE, model_file)
        layers = list_layers(network, images)
        shown = report.Report(run, source, metrics, selection, stopping, diagnosis, tested, layers, names)
        report.write_report(staging, shown)
        files.write_json(staging / "metrics.json", metrics)
    numbers, probabilities = [int(row["epoch"]) for row in epochs], logits.double().softmax(1).numpy()
    context = EvaluationContext(run, source, split, numbers, int(best["epoch"]), tested, probabilities)
    version = _log_to_trackers(config, context, out, network, images[:2], metrics)

    if unfinished := describe_unfinished(run, epochs):
        log.warning("WARNING  %s", unfinished)
    _log_results(metrics, selection)
    if version:
        log.info("model    %s", version)
    log.info("verdict  %s", diagnosis.sentence)
    log.info("suggest  %s", f"{diagnosis.suggestion}  {diagnosis.override}".rstrip())
    if smoothed := remarks.warn_of_smoothed_losses(run.info):
        log.warning("WARNING  %s", smoothed)
    if split.offline_sample:
        log.warning("WARNING  this is %s, which stands in for %s", split.name, split.requested)
    log.info("report   %s", display_path(out / "report.html"))
    log.info("compare  make ui")
    return metrics


def _log_results(metrics: dict[str, Any], selection: SelectionConfig) -> None:
    from bestepoch.evaluation.remarks import compare_runner_up

    rule = "" if selection.rule == "best" else f", {selection.rule.replace('_', ' ')} rule"
    log.info("best     epoch %d of %d, by %s%s", metrics["best_epoch"], metrics["last_epoch"], selection.metric, rule)
    if (second := metrics.get("runner_up")) is not None:
        comparison = compare_runner_up(second, metrics["best_epoch"], selection)
        log.info("second   epoch %d, %s", second["epoch"], comparison)
    log.info("val      loss %.4f  accuracy %.2f%%", metrics["val_loss"], 100 * metrics["val_accuracy"])
    percents = [100 * metrics[f"test_accuracy{end}"] for end in ("", "_low", "_high")]
    log.info("test     loss %.4f  accuracy %.2f%% (95%% interval %.2f to %.2f)", metrics["test_loss"], *percents)


def _read_stopping(run: Run) -> PatienceStoppingConfig | PlateauStoppingConfig:
    """Return the early stopping of the run, else that of ``conf/stopping/patience.yaml``, to say what it would do."""
    values = run.info["config"]["stopping"]
    if values["name"] == "plateau":
        return PlateauStoppingConfig(**values)
    patience = values if values["name"] == "patience" else load_option("stopping", "patience").model_dump()
    return PatienceStoppingConfig(**patience)


def _read_class_names(run: Run) -> list[str]:
    """Return the names of the classes in ``conf/data/<name>.yaml``, else their labels.

    Raises:
        UsageError: there are fewer or more names than classes.
    """
    name, classes = run.info["data"]["name"], run.info["data"]["classes"]
    names: list[str] | None = load_option("data", name).class_names if name in list_options("data") else None
    if names is not None and len(names) != classes:
        raise UsageError(
            f"conf/data/{name}.yaml has {len(names)} class_names, and the data set has {classes} classes. Name each of "
            "them, or none: class_names: null"
        )
    return names or [str(label) for label in range(classes)]


def _log_to_trackers(
    config: Config, context: EvaluationContext, out: Path, network: nn.Module, example: Tensor, metrics: dict[str, Any]
) -> str | None:
    """Log the results to the trackers that ``config.tracking`` names; a tracker that is down costs no results.

    Returns:
        The version of the model in the registry, or why it has none, in a line.
    """
    from bestepoch.evaluation.champion import compare_with_champion
    from bestepoch.evaluation.projector import write_embeddings
    from bestepoch.tracking.base import failure_reason
    from bestepoch.tracking.mlflow.evaluation import ModelArtifact, log_evaluation
    from bestepoch.tracking.mlflow.registry import register_model
    from bestepoch.tracking.run_summary import describe_run
    from bestepoch.tracking.tensorboard.run import write_evaluation

    results: dict[str, float] = {
        "best/epoch": metrics["best_epoch"],
        "best/val_loss": metrics["val_loss"],
        "best/val_accuracy": metrics["val_accuracy"],
        "test/loss": metrics["test_loss"],
        "test/accuracy": metrics["test_accuracy"],
    }
    run, runs = context.run, main_checkout() / "runs"
    description = describe_run(run.info, metrics)
    live_folder = context.source if runs in context.source.parents else runs / run.name
    if config.tracking.tensorboard and live_folder.is_dir():
        try:
            write_evaluation(live_folder, results, description, context.events(config.tracking.histograms))
            if config.tracking.histograms:
                write_embeddings(live_folder, network, context.tested, context.best)
        except OSError as error:
            log.warning(
                "warning: TensorBoard does not take the evaluation (%s). Run this again when it does.",
                failure_reason(error),
            )
    if not config.tracking.mlflow:
        return None
    model = ModelArtifact(network, example.float().numpy(), out / MODEL_FILE)
    try:
        logged = log_evaluation(run, config.tracking.experiment, context.source, results, model, out, description)
        if config.registry.enabled and run.status != "finished":
            return "not registered, because the run is unfinished; it is kept with the run in MLflow"
        if config.registry.enabled:
            compare = functools.partial(compare_with_champion, config.selection.metric)
            return register_model(logged, out / MODEL_FILE, results, compare)
    except Exception as error:
        log.warning(
            "warning: MLflow does not take the evaluation (%s). Run this again when it does.", failure_reason(error)
        )
    return None
