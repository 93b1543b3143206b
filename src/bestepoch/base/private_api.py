"""What the project uses of Hydra and MLflow beyond their public API: the one place to look when either is updated.

Each function says which version it was checked against, and why the public API does not do. The imports are inside
the functions: a wrong override is answered without MLflow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

MLFLOW_DATABASE_LOGGER = "mlflow.store.db.utils"
"""The logger that writes a traceback for each error of a SQLite store. Checked against MLflow 3.17.2.

MLflow documents one level for all of its loggers, and other warnings are to be seen.
"""


def hydra_arguments() -> argparse.Namespace:
    """The command line of this process, read as Hydra will read it.

    Checked against Hydra 1.3.8. `hydra.main` reads the command line by itself and gives nothing of it away before the
    job starts, but overrides are to be checked before that.
    """
    from hydra._internal.utils import get_args_parser

    return get_args_parser().parse_args()


def is_basic_sweeper(target: str) -> bool:
    """Whether ``hydra.sweeper._target_`` is the sweeper that Hydra takes where no other is chosen.

    Checked against Hydra 1.3.8, whose default configuration names the class by its private path.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    return target.rpartition(".")[2] == BasicSweeper.__name__


def basic_sweeper_jobs(overrides: list[Any]) -> list[list[str]]:
    """The overrides of each job that the basic sweeper makes of parsed ``overrides``, in its order.

    Checked against Hydra 1.3.8. The public API has no way to ask for the jobs of a sweep without starting them.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    (jobs,) = BasicSweeper.split_arguments(overrides, None)  # None: all of them in one batch
    return jobs


def import_mlflow_database_store() -> None:
    """Import MLflow's store for databases, which MLflow imports when a client is first made.

    Checked against MLflow 3.17.2. The public way to have it imported is to open a store; this opens none.
    """
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


def start_system_metrics(run_id: str, uri: str) -> Any:
    """Start MLflow's thread that measures this machine for a run; returns what `end_system_metrics` takes.

    Checked against MLflow 3.17.2. The public switch, `mlflow.enable_system_metrics_logging`, acts on runs of
    `mlflow.start_run` alone, which belong to a process; the project's runs are made by a client.
    """
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=uri)  # type: ignore[no-untyped-call]
    monitor.start()  # type: ignore[no-untyped-call]
    return monitor


def end_system_metrics(monitor: Any) -> None:
    """End the thread, and send what it has measured since it last sent something.

    Checked against MLflow 3.17.2, whose `finish` throws that away: of a short run it is everything.
    """
    monitor.finish()
    monitor.collect_metrics()
    monitor.publish_metrics(monitor.aggregate_metrics())
    monitor.mlflow_logger.flush()


def mlflow_versions_tag() -> str:
    """The tag of a logged model by which the UI names the registered version in the run's row.

    Checked against MLflow 3.17.2. `mlflow.register_model` writes it; `MlflowClient.create_model_version`, which takes
    tags and a description, does not.
    """
    from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

    return str(MLFLOW_MODEL_VERSIONS)
