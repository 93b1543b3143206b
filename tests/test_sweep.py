"""A multirun in which a job fails: the table, the exit code, the parent run, and the same command again."""

from __future__ import annotations

from pathlib import Path

from mlflow import MlflowClient

import live

SWEEP = ("-m", *live.SAMPLE, "model=mlp", "optimizer=sgd,adamw", "optimizer.lr=0.01,1e12", "train.epochs=1")


def test_a_failing_job_is_told_and_the_others_stand(tmp_path: Path) -> None:
    folder = live.project(tmp_path)
    said = live.run(folder, "train", *SWEEP, code=1)
    assert "Traceback" not in said
    (sweep,) = (folder / "runs/sweeps").iterdir()
    jobs = live.table(sweep / "jobs.csv")
    assert [job["status"] for job in jobs] == ["finished", "finished", "failed", "failed"]
    losses = [float(job["val/loss"]) for job in jobs[:2]]
    assert losses == sorted(losses)
    for job in jobs[:2]:
        (row,) = live.table(folder / job["run"] / "epochs.csv")
        assert (job["best_epoch"], job["val/loss"]) == ("1", row["val/loss"])
    for job in jobs[2:]:
        assert "optimizer.lr=1000000000000.0" in job["overrides"]
        assert job["error"].startswith("The loss is ")
    logs = sorted(path.name for path in sweep.glob("*.error.log"))
    assert logs == ["adamw-lr1000000000000.0.error.log", "sgd-lr1000000000000.0.error.log"]
    assert all("Traceback" in (sweep / name).read_text() for name in logs)

    client = MlflowClient(live.store(folder))
    runs = live.mlflow_runs(client)
    (parent,) = (r for r in runs if "mlflow.parentRunId" not in r.data.tags)
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert parent.info.status == "FAILED"
    assert sorted(r.info.status for r in children) == ["FAILED", "FAILED", "FINISHED", "FINISHED"]
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["jobs.csv"]

    said = live.run(folder, "train", *SWEEP, code=1)
    assert said.count("is finished already and is taken as it is") == 2
    again = live.table(sweep / "jobs.csv")
    assert again == jobs
    assert {r.info.run_id for r in live.mlflow_runs(client)} == {r.info.run_id for r in runs}
