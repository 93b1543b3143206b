"""Wrap the private API of Hydra, MLflow and PyTorch that the project uses. Check this module when either is updated.

Each docstring states the version it was checked against and why the public API is not enough. Imports are inside the
functions, so that a wrong override is reported without importing MLflow.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    import argparse

    import torch

OptimizerClass = TypeVar("OptimizerClass", bound="type[torch.optim.Optimizer]")

MLFLOW_DATABASE_LOGGER = "mlflow.store.db.utils"
"""The logger that writes a traceback for each error of a SQLite store. Checked against MLflow 3.17.2.

The documented log level applies to all of MLflow's loggers, and their other warnings must stay visible.
"""


def hydra_arguments() -> argparse.Namespace:
    """Parse the command line of this process as Hydra does.

    Checked against Hydra 1.3.8. `hydra.main` parses the command line itself and exposes the result only to the job,
    but overrides must be validated before the job starts.
    """
    from hydra._internal.utils import get_args_parser

    return get_args_parser().parse_args()


def is_basic_sweeper(target: str) -> bool:
    """Return whether ``hydra.sweeper._target_`` is Hydra's default sweeper.

    Checked against Hydra 1.3.8. The default configuration names the class by its private path.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    return target.rpartition(".")[2] == BasicSweeper.__name__


def basic_sweeper_jobs(overrides: list[Any]) -> list[list[str]]:
    """Return the overrides of each job that the basic sweeper creates from parsed ``overrides``, in job order.

    Checked against Hydra 1.3.8. The public API cannot list the jobs of a sweep without starting them.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    (jobs,) = BasicSweeper.split_arguments(overrides, None)  # None: all jobs in one batch
    return jobs


def import_mlflow_database_store() -> None:
    """Import MLflow's database store in advance; MLflow imports the store when it creates the first client.

    Checked against MLflow 3.17.2. The public API imports the module only by opening a store.
    """
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


def start_system_metrics(run_id: str, uri: str) -> Any:
    """Start MLflow's thread that logs system metrics to a run, and return its monitor.

    Checked against MLflow 3.17.2. The public `mlflow.enable_system_metrics_logging` applies only to runs of
    `mlflow.start_run`, and the project creates its runs with a client.
    """
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=uri)  # type: ignore[no-untyped-call]
    monitor.start()  # type: ignore[no-untyped-call]
    return monitor


def end_system_metrics(monitor: Any) -> None:
    """Stop the monitor's thread and log the measurements that are still pending.

    Checked against MLflow 3.17.2. `finish` discards pending measurements, which are all those of a short run.
    """
    monitor.finish()
    monitor.collect_metrics()
    monitor.publish_metrics(monitor.aggregate_metrics())
    monitor.mlflow_logger.flush()


def mlflow_versions_tag() -> str:
    """Return the tag of a logged model from which the UI shows the registered version in the run's row.

    Checked against MLflow 3.17.2. `mlflow.register_model` writes the tag but takes no description;
    `MlflowClient.create_model_version` takes tags and a description but does not write the tag.
    """
    from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

    return str(MLFLOW_MODEL_VERSIONS)


def without_compiler(optimizer: OptimizerClass) -> OptimizerClass:
    """Return a subclass of a PyTorch optimizer whose methods do not import ``torch._dynamo`` on their first call.

    Checked against PyTorch 2.13.0. The decorators of these methods keep the compiler out of them; the import takes
    2.9 s (two cores), a third of a short training. Nothing here is compiled. The computed values are the same.
    """
    import torch

    names = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
    methods = {name: inspect.unwrap(getattr(optimizer, name)) for name in names}
    methods["step"] = torch.no_grad()(inspect.unwrap(optimizer.step))
    return cast(OptimizerClass, type(optimizer.__name__, (optimizer,), methods))
