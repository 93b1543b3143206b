"""What goes into MLflow's SQLite store in bulk is what MLflow itself would have put there."""

from __future__ import annotations

import math
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric

import live
from bestepoch.journal import Row
from bestepoch.run import Run
from bestepoch.tracking import PER_ITERATION
from bestepoch.tracking_mlflow import MlflowTracker


def rows(first: int, last: int, **odd: float) -> list[Row]:
    made = [
        {"iteration": i, "epoch": 1, "train/loss": 1 / i, "lr": 1e-3 * i, "time": 1_790_000_000.0004 + i / 7}
        for i in range(first, last + 1)
    ]
    for name, value in odd.items():
        made[int(name[1:]) - first]["train/loss"] = value
    return [{key: float(value) for key, value in row.items()} for row in made]


@pytest.fixture
def tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowTracker:
    live.with_store(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", live.store(tmp_path))
    made = MlflowTracker(Run(tmp_path, {"status": "finished"}), "bestepoch")
    made.client = MlflowClient(tracking_uri=made.uri)
    made.place["run_id"] = made.client.create_run("0").info.run_id
    return made


def stored(tracker: MlflowTracker, run_id: str) -> dict[str, Any]:
    """The tables as they are, and what the client makes of them."""
    path = tracker.uri.removeprefix("sqlite:///")
    with sqlite3.connect(path) as store:
        out: dict[str, Any] = {
            table: sorted(
                store.execute(
                    f"SELECT key, value, timestamp, step, is_nan FROM {table} WHERE run_uuid = ?", (run_id,)
                ).fetchall()
            )
            for table in ("metrics", "latest_metrics")
        }
    out["last"] = {key: repr(value) for key, value in tracker.client.get_run(run_id).data.metrics.items()}
    return out


CHUNKS = [
    [rows(1, 3000)],
    [rows(1, 1)],
    [rows(1, 2), rows(3, 3), rows(4, 40)],
    [rows(1, 20), rows(1, 20), rows(15, 30)],  # sent again, and from further back
    [rows(1, 30, _3=math.nan, _4=math.inf, _5=-math.inf), rows(31, 33, _33=math.nan)],
    [rows(1, 5, _5=math.nan)],
]


@pytest.mark.parametrize("chunks", CHUNKS, ids=range(len(CHUNKS)))
def test_it_is_what_log_batch_would_have_stored(tracker: MlflowTracker, chunks: list[list[Row]]) -> None:
    other = tracker.client.create_run("0").info.run_id
    for chunk in chunks:
        tracker.write(chunk, [])
        metrics = [
            Metric(key, row[key], round(row["time"] * 1000), int(row["iteration"]))
            for row in chunk
            for key in PER_ITERATION
        ]
        for i in range(0, len(metrics), 1000):
            tracker.client.log_batch(other, metrics=metrics[i : i + 1000])
    found = stored(tracker, tracker.place["run_id"])
    assert found == stored(tracker, other)
    steps = {row["iteration"] for chunk in chunks for row in chunk}
    assert len(found["metrics"]) == 2 * len(steps)


def test_most_of_it_goes_past_log_batch(tracker: MlflowTracker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test above would compare `log_batch` with itself."""
    sent: list[int] = []
    monkeypatch.setattr(tracker.client, "log_batch", lambda run_id, metrics: sent.append(len(metrics)))
    tracker.write(rows(1, 500, _7=math.nan), [])
    assert sent == [4]


def test_a_store_that_is_locked_is_an_error_and_holds_nothing_of_it(
    tracker: MlflowTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sqlalchemy

    engine = sqlalchemy.create_engine(tracker.uri, connect_args={"timeout": 0})
    monkeypatch.setattr(tracker, "_engine", engine)
    with (
        live.locked(Path(tracker.uri.removeprefix("sqlite:///"))),
        pytest.raises(sqlalchemy.exc.OperationalError, match="locked"),
    ):
        tracker.write(rows(1, 500), [])
    assert stored(tracker, tracker.place["run_id"])["metrics"] == []
    tracker.write(rows(1, 500), [])
    assert len(stored(tracker, tracker.place["run_id"])["metrics"]) == 1000
