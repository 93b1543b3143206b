"""What the MLflow UI shows of the experiment: its description, and two saved views of its runs.

A saved view is a tag of the experiment whose value is what the UI itself stores when a person saves one: its columns,
order and charts, compressed. Each is written once: what a person changes, saves or deletes stays as they left it.
"""

from __future__ import annotations

import base64
import json
import time
import zlib
from typing import Any

from bestepoch.base.errors import is_unique_violation

VIEW_TAG_PREFIX = "mlflow.sharedViewState."
DESCRIPTION_TAG = "mlflow.note.content"
VIEWS_TAG = "bestepoch.views"  # a tag that says which of them this experiment has been given
BEST_EPOCHS, LEARNING_CURVES = "best-epochs", "learning-curves"

DESCRIPTION = """\
Which epoch of which configuration is best, and can that be trusted?

| metric | what | x axis |
|---|---|---|
| `train/loss`, `lr` | what each update minimised, and the rate that it used | iteration; 1 is the first update |
| `val/loss`, `val/accuracy`, `train/epoch_loss` | after each epoch | epoch; 1 is the first |
| `best/...`, `test/...` | the chosen epoch on validation, and its one test: written by `evaluate` | |
| `time/...`, `memory/...` | what the run took: seconds by account, megabytes at the peak | |

To compare runs, open a saved view (above the table): *Best epochs* is the table, *Learning curves* the charts. Batch
sizes are compared by the curves with an epoch axis, since an iteration of a larger batch is more work. Losses compare
where `loss.label_smoothing` is the same, accuracies always. Search by, for instance,
`metrics."test/accuracy" > 0.99 and params.optimizer = 'adamw'`, or `tags.sweep = '<name>'` for the runs of a sweep."""


def create_default_views(mlflow: Any, experiment: Any) -> None:
    """Give an experiment what it has not been given before. Raises what the store raises.

    Args:
        mlflow: a client.
        experiment: as that client knows it, with its tags.
    """
    if VIEWS_TAG in experiment.tags:
        return
    now = int(time.time() * 1000)
    tags = {"mlflow.experimentKind": "custom_model_development", DESCRIPTION_TAG: DESCRIPTION}
    for key, name, state in (
        (BEST_EPOCHS, "Best epochs", best_epochs_view()),
        (LEARNING_CURVES, "Learning curves", learning_curves_view()),
    ):
        view = {"name": name, "createdAt": now, "updatedAt": now, "state": encode_state(state)}
        tags[VIEW_TAG_PREFIX + key] = json.dumps(view)
    tags[VIEWS_TAG] = "1"  # last: a kill before it has the rest done again
    for key, value in tags.items():
        if key not in experiment.tags:
            try:
                mlflow.set_experiment_tag(experiment.experiment_id, key, value)
            except Exception as error:
                if not is_unique_violation(error):  # by another run, which furnishes it at the same moment
                    raise


def encode_state(state: dict[str, Any]) -> str:
    """As the UI keeps it."""
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()


def view_link(number: str, view: str, mode: str = "") -> str:
    """The part of a view's address that follows the server's; ``mode`` is CHART for its charts."""
    shown = f"&compareRunsMode={mode}" if mode else ""
    return f"#/experiments/{number}/runs?workflowType=machine_learning{shown}&viewStateShareKey={view}"


def best_epochs_view() -> dict[str, Any]:
    """A table: what was chosen, how good it is, and by which configuration; the lowest validation loss first."""
    columns = {
        "attributes.`Run Name`": 220,
        "metrics.`best/epoch`": 95,
        "metrics.`best/val_loss`": 120,
        "metrics.`best/val_accuracy`": 140,
        "metrics.`test/accuracy`": 120,
        "attributes.`Dataset`": 200,
        "attributes.`Models`": 180,
        "params.`model`": 70,
        "params.`optimizer`": 90,
        "params.`optimizer.lr`": 100,
        "params.`train.batch_size`": 130,
        "params.`train.epochs`": 110,
        **{f"tags.`{key}`": 110 for key in ("sweep", "preset", "device", "git.commit", "git.dirty")},
    }
    return {
        "orderByKey": "metrics.`best/val_loss`",
        "orderByAsc": True,
        "selectedColumns": list(columns)[1:],  # the name is always there
        "columnOrder": list(columns),
        "columnWidths": columns,
    }


def learning_curves_view() -> dict[str, Any]:
    """Charts across runs: both axes, the groups with curves open, those of single numbers closed."""
    groups = {
        "val": ("val/loss", "val/accuracy"),
        "train": ("train/epoch_loss", "train/loss"),
        "Model metrics": ("lr",),  # the UI's own group for names without one
    }
    closed = ("best", "test", "time", "memory", "system", "study", "System metrics")
    charts = [
        {
            "type": "LINE",
            "uuid": f"bestepoch-{name}",
            "metricSectionId": f"bestepoch-{group}",
            "metricKey": name,
            "displayName": _chart_title(name),
            "runsCountToCompare": 10,
            "deleted": False,
            "isGenerated": True,
            "lineSmoothness": 0,
            "xAxisScaleType": "linear",
            "scaleType": "linear",
            "range": {},
            "xAxisKey": "step",
            "selectedXAxisMetricKey": "",
            "yAxisKey": "metric",
            "yAxisExpressions": [],
            "ignoreOutliers": False,
            "useGlobalXaxisKey": True,
            "useGlobalLineSmoothing": True,
        }
        for group, names in groups.items()
        for name in names
    ]
    sections = [
        {
            "uuid": f"bestepoch-{group}",
            "name": group,
            "display": group in groups,
            "isReordered": False,
            "deleted": False,
            "isGenerated": True,
        }
        for group in (*groups, *closed)
    ]
    return {
        "orderByKey": "metrics.`val/loss`",  # by the time of creation the jobs of a sweep are folded away
        "orderByAsc": True,
        "compareRunCharts": charts,
        "compareRunSections": sections,
        "isAccordionReordered": True,  # else the UI sorts the groups by name
    }


def _chart_title(name: str) -> str:
    by = "epoch" if name in ("val/loss", "val/accuracy", "train/epoch_loss") else "iteration"
    return f"{name} by {by}"
