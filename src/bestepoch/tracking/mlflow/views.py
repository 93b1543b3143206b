"""Default contents of the MLflow UI: the experiment's description and two saved views of its runs.

A saved view is an experiment tag that holds the compressed columns, order and charts, in the format that the UI stores
when a user saves a view. Each tag is written once, so that a user's changes and deletions persist.
"""

from __future__ import annotations

import base64
import json
import time
import zlib
from typing import Any

from bestepoch.base.errors import is_unique_violation
from bestepoch.tracking.base import EPOCH_METRICS

VIEW_TAG_PREFIX = "mlflow.sharedViewState."
DESCRIPTION_TAG = "mlflow.note.content"
VIEWS_TAG = "bestepoch.views"  # set once the experiment has its default views
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
    """Add the description and the saved views to an experiment that never had them. Errors of the store propagate.

    Args:
        mlflow: MLflow client.
        experiment: ``mlflow.entities.Experiment`` with its current tags.
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
    tags[VIEWS_TAG] = "1"  # last, so that a killed call is repeated
    for key, value in tags.items():
        if key not in experiment.tags:
            try:
                mlflow.set_experiment_tag(experiment.experiment_id, key, value)
            except Exception as error:
                if not is_unique_violation(error):  # another run sets the same tag at the same moment
                    raise


def encode_state(state: dict[str, Any]) -> str:
    """Return a view's state in the compressed format of the UI."""
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()


def view_link(experiment_id: str, view: str, mode: str = "") -> str:
    """Return the URL of a saved view relative to the server; ``mode`` is CHART to show charts."""
    query = f"&compareRunsMode={mode}" if mode else ""
    return f"#/experiments/{experiment_id}/runs?workflowType=machine_learning{query}&viewStateShareKey={view}"


def best_epochs_view() -> dict[str, Any]:
    """Return the state of a table of best epochs, results and configurations, lowest validation loss first."""
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
        "selectedColumns": list(columns)[1:],  # the UI always shows the name
        "columnOrder": list(columns),
        "columnWidths": columns,
    }


def learning_curves_view() -> dict[str, Any]:
    """Return the state of charts over iterations and epochs; sections without curves are collapsed."""
    groups = {
        "val": ("val/loss", "val/accuracy"),
        "train": ("train/epoch_loss", "train/loss"),
        "Model metrics": ("lr",),  # the UI's section for names without a slash
    }
    collapsed = ("best", "test", "time", "memory", "system", "study", "System metrics")
    charts = [
        {
            "type": "LINE",
            "uuid": f"bestepoch-{name}",
            "metricSectionId": f"bestepoch-{group}",
            "metricKey": name,
            "displayName": f"{name} by {'epoch' if name in EPOCH_METRICS else 'iteration'}",
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
        for group in (*groups, *collapsed)
    ]
    return {
        "orderByKey": "metrics.`val/loss`",  # the default order by creation time collapses the jobs of a sweep
        "orderByAsc": True,
        "compareRunCharts": charts,
        "compareRunSections": sections,
        "isAccordionReordered": True,  # otherwise the UI sorts the sections by name
    }
