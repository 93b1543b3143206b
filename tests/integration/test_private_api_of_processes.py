"""The private API of MLflow and PyTorch that only another process shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bestepoch.base import private_api
from moved import as_in


def test_mlflows_store_for_databases_is_imported() -> None:
    with as_in("mlflow", "import_mlflow_database_store"):
        private_api.import_mlflow_database_store()
        assert "mlflow.store.tracking.sqlalchemy_store" in sys.modules


def test_what_the_machine_did_is_sent_however_short_the_run(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri)
    run_id = client.create_run("0").info.run_id
    with as_in("mlflow", "start_system_metrics"):
        monitor = private_api.start_system_metrics(run_id, uri)
    with as_in("mlflow", "end_system_metrics"):
        private_api.end_system_metrics(monitor)
    assert "system/cpu_utilization_percentage" in client.get_run(run_id).data.metrics


def test_to_have_the_functions_imports_neither_package() -> None:
    code = "import sys, bestepoch.base.private_api; print({'hydra', 'mlflow'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop"])
def test_optimizers_do_not_import_the_compiler(name: str) -> None:
    program = (
        "import sys, torch; from bestepoch.base.private_api import without_compiler\n"
        f"weight = torch.ones(2, 2, requires_grad=True); optimizer = without_compiler(torch.optim.{name})([weight])\n"
        "optimizer.zero_grad(); weight.sum().backward(); optimizer.step()\n"
        "optimizer.load_state_dict(optimizer.state_dict()); assert 'torch._dynamo' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    with as_in("torch", "without_compiler"):
        if done.returncode:
            raise ImportError(done.stderr.strip().splitlines()[-1])
