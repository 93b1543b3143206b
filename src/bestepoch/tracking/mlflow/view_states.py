"""States of the experiment's saved views, as the MLflow UI stores them: columns, order, filter, groups and charts."""

from __future__ import annotations

from typing import Any

TRAININGS = "tags.dataset LIKE '_%'"  # not the parents of sweeps, which have no metrics of their own
SETTING_TAG = "setting"  # of a run: everything but seed and fold, in words

# The UI labels every such axis "Step" and titles a chart with its metrics: the section says what the step is.
BY_EPOCH, BY_ITERATION = "By epoch (step = epoch)", "By iteration (step = iteration)"
CHARTS = (
    (BY_EPOCH, ("train/eval_loss", "val/loss")),
    (BY_EPOCH, ("train/eval_accuracy", "val/accuracy")),
    (BY_EPOCH, ("train/epoch_loss",)),
    (BY_ITERATION, ("train/loss",)),
    (BY_ITERATION, ("lr",)),
    (BY_ITERATION, ("train/grad_norm",)),
)
OTHER_SECTIONS = ("best", "test", "time", "memory", "system", "study", "System metrics")  # collapsed
RESULT_COLUMNS = {
    "metrics.`best/epoch`": 110,
    "metrics.`best/val_accuracy`": 150,
    "metrics.`best/val_loss`": 150,
    "metrics.`test/accuracy`": 150,
}
SETTING_COLUMNS = {
    "params.`model`": 70,
    "params.`optimizer`": 90,
    "params.`optimizer.lr`": 100,
    "params.`train.batch_size`": 130,
    "params.`train.epochs`": 110,
    "params.`plan.updates`": 110,
    "params.`network.weights`": 130,
}


def best_epochs_view(data: str | None = None) -> dict[str, Any]:
    """Return the state of a table of best epochs, results and settings, highest validation accuracy first.

    Args:
        data: name of the only data set to show; None for all.
    """
    columns = {
        "tags.`dataset`": 110,
        **RESULT_COLUMNS,
        **SETTING_COLUMNS,
        **{f"tags.`{key}`": 110 for key in ("sweep", "preset", "device", "git.commit", "git.dirty")},
        "attributes.`Models`": 180,
        "attributes.`Dataset`": 200,
    }
    wanted = f"tags.dataset = '{data}'" if data else TRAININGS
    return _table(columns, "metrics.`best/val_accuracy`") | {"searchFilter": wanted}


def learning_curves_view() -> dict[str, Any]:
    """Return the state of charts over epochs and iterations; sections without curves are collapsed."""
    # The default order by creation time collapses the jobs of a sweep.
    order = {"orderByKey": "metrics.`best/val_accuracy`", "orderByAsc": False}
    return {**order, "searchFilter": TRAININGS, **_charts()}


def by_setting_view() -> dict[str, Any]:
    """Return the state of a table and charts of the means over runs that differ only in their seed or fold."""
    columns = {**RESULT_COLUMNS, **SETTING_COLUMNS, "params.`seed`": 70, "tags.`sweep`": 110}
    group = {"mode": "tag", "groupByData": SETTING_TAG}
    return {
        **_table(columns, "metrics.`best/val_accuracy`", name_width=560),
        "searchFilter": f"tags.{SETTING_TAG} LIKE '_%'",
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [group]},
        "useGroupedValuesInCharts": True,
        **_charts(),
    }


def sweeps_view() -> dict[str, Any]:
    """Return the state of a table of sweeps with their winners and answers, above the jobs of each."""
    columns = {
        "tags.`best`": 200,
        "tags.`answer`": 420,
        "tags.`sweep`": 200,
        **RESULT_COLUMNS,
        "tags.`sweep.overrides`": 420,
    }
    # The jobs have no such tag: parents come first, and each opens to its jobs.
    return _table(columns, "tags.`sweep.overrides`") | {"searchFilter": "tags.sweep LIKE '_%'"}


def _table(columns: dict[str, int], order: str, name_width: int = 260) -> dict[str, Any]:
    """Return the state of a table with these columns, by their widths in pixels; greatest value of ``order`` first."""
    widths = {"attributes.`Run Name`": name_width, **columns}
    return {
        "orderByKey": order,
        "orderByAsc": False,
        "selectedColumns": list(columns),  # the UI always shows the name
        "columnOrder": list(widths),
        "columnWidths": widths,
    }


def _charts() -> dict[str, Any]:
    charts = [_chart(section, metrics) for section, metrics in CHARTS]
    # The UI adds a chart for each metric that is not the first one of any chart, unless that chart was deleted.
    charts += [_chart(section, (metric,), deleted=True) for section, metrics in CHARTS for metric in metrics[:-1]]
    sections = [
        {
            "uuid": f"bestepoch-{section}",
            "name": section,
            "display": section not in OTHER_SECTIONS,
            "isReordered": False,
            "deleted": False,
            "isGenerated": True,
        }
        for section in (BY_EPOCH, BY_ITERATION, *OTHER_SECTIONS)
    ]
    return {
        "compareRunCharts": charts,
        "compareRunSections": sections,
        "isAccordionReordered": True,  # otherwise the UI sorts the sections by name
    }


def _chart(section: str, metrics: tuple[str, ...], deleted: bool = False) -> dict[str, Any]:
    return {
        "type": "LINE",
        "uuid": f"bestepoch-{metrics[-1]}",
        "metricSectionId": f"bestepoch-{section}",
        "metricKey": metrics[-1],
        "selectedMetricKeys": list(metrics),
        "displayName": metrics[-1],
        "runsCountToCompare": 10,
        "deleted": deleted,
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
