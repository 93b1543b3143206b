"""What is not public of Hydra, MLflow and PyTorch is still where `bestepoch.base.private_api` looks for it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

import live
from bestepoch.base import private_api
from moved import CHECKED, as_in

CONF = live.CHECKOUT / "conf"


@pytest.mark.parametrize(("package", "name"), [("hydra-core", "Hydra"), ("mlflow", "MLflow"), ("torch", "PyTorch")])
def test_the_docstrings_name_the_version_that_these_tests_name(package: str, name: str) -> None:
    text = Path(private_api.__file__).read_text(encoding="utf-8")
    assert f"Checked against {name} {CHECKED[package]}" in text
    assert text.count(f"Checked against {name} ") == text.count(f"Checked against {name} {CHECKED[package]}")


def test_a_command_line_is_read_as_hydra_will(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "-m", "seed=0,1", "--cfg", "job", "--resolve"])
    with as_in("hydra-core", "hydra_arguments"):
        read = private_api.hydra_arguments()
        assert (read.overrides, read.multirun, read.cfg, read.resolve) == (["seed=0,1"], True, "job", True)
        used = (read.help, read.hydra_help, read.info, read.package, read.shell_completion)  # by bestepoch.cli.launch
        assert used == (False, False, None, None, False)


def test_the_sweeper_of_hydras_own_configuration_is_known() -> None:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(CONF), version_base="1.3"):
        target = str(compose("config", return_hydra_config=True).hydra.sweeper["_target_"])
    with as_in("hydra-core", "is_basic_sweeper"):
        assert private_api.is_basic_sweeper(target)
        assert not private_api.is_basic_sweeper("hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper")


def test_the_sweeper_makes_a_job_of_each_combination() -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(["seed=range(2)", "optimizer=sgd,adamw", "train.epochs=3"])
    with as_in("hydra-core", "basic_sweeper_jobs"):
        jobs = private_api.basic_sweeper_jobs(parsed)
    assert jobs == [
        [f"seed={seed}", f"optimizer={name}", "train.epochs=3"] for seed in (0, 1) for name in ("sgd", "adamw")
    ]


def test_the_logger_of_mlflows_database_errors_is_the_one_that_is_silenced() -> None:
    with as_in("mlflow", "MLFLOW_DATABASE_LOGGER"):
        module = importlib.import_module(private_api.MLFLOW_DATABASE_LOGGER)
        assert module._logger.name == private_api.MLFLOW_DATABASE_LOGGER


def test_the_tag_that_the_ui_reads_has_a_name() -> None:
    with as_in("mlflow", "mlflow_versions_tag"):
        assert private_api.mlflow_versions_tag() == "mlflow.modelVersions"
