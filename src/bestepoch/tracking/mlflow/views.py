"""Default contents of the MLflow UI: the experiment's description and the saved views of its runs.

A saved view is an experiment tag that holds the compressed columns, order and charts, in the format that the UI stores
when a user saves a view. A later version of this project replaces a text or a view only if it is still as the project
wrote it, so that a user's changes and deletions persist.
"""

from __future__ import annotations

import base64
import json
import time
import zlib
from typing import Any

from bestepoch.base.errors import is_unique_violation
from bestepoch.base.files import digest
from bestepoch.tracking.mlflow import view_states

VIEW_TAG_PREFIX = "mlflow.sharedViewState."
DESCRIPTION_TAG = "mlflow.note.content"
VIEWS_TAG = "bestepoch.views"  # digest of each text and view by its tag, as this project wrote it
BEST_EPOCHS, LEARNING_CURVES, BY_SETTING, SWEEPS = "best-epochs", "learning-curves", "by-setting", "sweeps"

# Of the texts and views that earlier versions wrote; those versions set `VIEWS_TAG` to "1".
EARLIER_DIGESTS = {
    DESCRIPTION_TAG: "35d75b3fb961b578",
    VIEW_TAG_PREFIX + BEST_EPOCHS: "bd98c381266c22d1",
    VIEW_TAG_PREFIX + LEARNING_CURVES: "e6ef5822590d6895",
}

DESCRIPTION = """\
Which epoch of which configuration is best, and can that be trusted?

| metric | what | x axis |
|---|---|---|
| `train/loss`, `lr`, `train/grad_norm` | what each update minimised (the objective), its rate, its gradient's norm | \
iteration; 1 is the first update |
| `val/loss`, `val/accuracy` | validation images, after each epoch | epoch; 1 is the first |
| `train/eval_loss`, `train/eval_accuracy` | the same of as many training images, not augmented | epoch |
| `train/epoch_loss` | mean of the objective over the epoch | epoch |
| `best/...`, `test/...` | the chosen epoch on validation; its one test, written by `evaluate` | |
| `time/...`, `memory/...` | what the run took: seconds by account, megabytes at the peak | |

Open a saved view (above the table): *Best epochs* is the table, *Learning curves* the charts, *By setting* the mean
over runs that differ only in their seed or fold, *Sweeps* the sweeps with their winners. The charts call the x axis
*Step*; the name of their section says whether it is the epoch or the iteration.

`val/loss`, `train/eval_loss` and `test/loss` are plain cross-entropy (nats), whatever the label smoothing and the
penalties: they compare between all runs of one data set. `train/loss` and `train/epoch_loss` include both and compare
only between runs with the same objective. Compare batch sizes by epoch, since an iteration of a larger batch is more
work. Search by, for instance, `metrics."test/accuracy" > 0.99 and params.optimizer = 'adamw'`, or
`tags.sweep = '<name>'` for the runs of a sweep."""


def create_default_views(mlflow: Any, experiment: Any) -> None:
    """Give an experiment its description and saved views, or their current versions. Errors of the store propagate.

    Args:
        mlflow: MLflow client.
        experiment: ``mlflow.entities.Experiment`` with its current tags.
    """
    if "mlflow.experimentKind" not in experiment.tags:
        _set_tag(mlflow, experiment, "mlflow.experimentKind", "custom_model_development")
    views = {
        BEST_EPOCHS: ("Best epochs", view_states.best_epochs_view()),
        LEARNING_CURVES: ("Learning curves", view_states.learning_curves_view()),
        BY_SETTING: ("By setting", view_states.by_setting_view()),
        SWEEPS: ("Sweeps", view_states.sweeps_view()),
    }
    _write(mlflow, experiment, {DESCRIPTION_TAG: DESCRIPTION} | {VIEW_TAG_PREFIX + k: v for k, v in views.items()})


def add_data_set_views(mlflow: Any, experiment_id: str, data: str) -> None:
    """Add a view *Best epochs* for each data set, once the experiment has runs of a second one besides ``data``."""
    others = mlflow.search_runs([experiment_id], f"tags.dataset != '{data}'", max_results=1)
    names = [data, *(run.data.tags["dataset"] for run in others)]
    if len(names) > 1:
        views = {
            f"{VIEW_TAG_PREFIX}{BEST_EPOCHS}-{name}": (f"Best epochs of {name}", view_states.best_epochs_view(name))
            for name in names
        }
        _write(mlflow, mlflow.get_experiment(experiment_id), views)


def _write(mlflow: Any, experiment: Any, contents: dict[str, Any]) -> None:
    """Set the tags ``contents``, texts and views (name and state), except those that a user changed or deleted."""
    tags = experiment.tags
    earlier = EARLIER_DIGESTS if tags.get(VIEWS_TAG) == "1" else _decode(tags.get(VIEWS_TAG, "{}"))
    written = dict(earlier)
    for key, content in contents.items():
        new = digest(content)
        if key not in tags:
            changed = key in earlier
        else:
            current = digest(_content(tags[key]))
            if current == new:
                written[key] = new
                continue
            changed = current != earlier.get(key)
        if changed:
            written.setdefault(key, "")  # known, so that a view that the user deletes later stays deleted
        else:
            _set_tag(mlflow, experiment, key, content if isinstance(content, str) else _view(*content))
            written[key] = new
    if written != earlier or tags.get(VIEWS_TAG) == "1":
        # last, so that a killed call is repeated
        _set_tag(mlflow, experiment, VIEWS_TAG, json.dumps(written))


def _set_tag(mlflow: Any, experiment: Any, key: str, value: str) -> None:
    try:
        mlflow.set_experiment_tag(experiment.experiment_id, key, value)
    except Exception as error:
        if not is_unique_violation(error):  # another run sets the same tag at the same moment
            raise


def _view(name: str, state: dict[str, Any]) -> str:
    now = int(time.time() * 1000)
    return json.dumps({"name": name, "createdAt": now, "updatedAt": now, "state": encode_state(state)})


def _content(value: str) -> Any:
    """Return a view's name and state without the times of its tag; a text as it is."""
    try:
        view = json.loads(value)
        packed = base64.b64decode(view["state"].removeprefix("deflate;"))
        return [view["name"], json.loads(zlib.decompress(packed))]
    except (ValueError, LookupError, TypeError, AttributeError, zlib.error):
        return value


def _decode(value: str) -> dict[str, str]:
    try:
        return dict(json.loads(value))
    except (ValueError, TypeError):
        return {}


def encode_state(state: dict[str, Any]) -> str:
    """Return a view's state in the compressed format of the UI."""
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()


def view_link(experiment_id: str, view: str, mode: str = "") -> str:
    """Return the URL of a saved view relative to the server; ``mode`` is CHART to show charts."""
    query = f"&compareRunsMode={mode}" if mode else ""
    return f"#/experiments/{experiment_id}/runs?workflowType=machine_learning{query}&viewStateShareKey={view}"
