"""Each evaluated model is a version in MLflow's registry, and the champion changes only for more than noise."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

import live
from bestepoch.evaluation.champion import compare_with_champion
from bestepoch.evaluation.statistics import paired_bootstrap_ci

NAME = "bestepoch-mnist_sample"
TRAIN = (*live.SAMPLE, "model=mlp", "model.hidden=[16]", "train.epochs=1")


# ---------------------------------------------------------------- who is better


def chosen(losses: np.ndarray, correct: np.ndarray | None = None, checksum: str = "a" * 64) -> dict[str, Any]:
    """What a model.pt says of validation."""
    right = np.zeros(len(losses), bool) if correct is None else correct
    validation = {"losses": torch.from_numpy(losses).float(), "correct": torch.from_numpy(right)}
    return {"run": "a-run", "epoch": 4, "checksum": checksum, "label_smoothing": 0.1, "validation": validation}


HARD = np.random.default_rng(0).exponential(1.0, 1000)  # how hard each image is, for every network
NOISE = np.random.default_rng(1).normal(0, 0.3, 1000)


@pytest.mark.parametrize(
    ("loss", "better", "words"),
    [
        (HARD + NOISE - 0.1, True, ["The champion, in place of Version 3 (run a-run, epoch 4)", " more than noise."]),
        (HARD + NOISE - NOISE.mean(), False, ["stays the champion", "not more than noise."]),
        (HARD + NOISE + 0.1, False, ["stays the champion", ", more than noise."]),
        (HARD, False, ["stays the champion", "differs by +0 ", "not more than noise."]),
    ],
    ids=["better", "noise", "worse", "the same"],
)
def test_the_champion_changes_only_for_more_than_noise(loss: np.ndarray, better: bool, words: list[str]) -> None:
    found, why = compare_with_champion("val/loss", chosen(loss), chosen(HARD), "Version 3")
    assert found is better
    for word in [*words, "on the same 1,000 validation images val/loss differs by "]:
        assert word in why
    apart = paired_bootstrap_ci(HARD.astype(np.float32), loss.astype(np.float32))
    assert f"(95% interval {apart['low']:+.2g} to {apart['high']:+.2g})" in why


def test_by_accuracy_more_is_better() -> None:
    few, many = np.arange(1000) < 900, np.arange(1000) < 950
    new, old = chosen(HARD + 1, many), chosen(HARD, few)
    assert compare_with_champion("val/accuracy", new, old, "Version 1")[0]
    assert not compare_with_champion("val/accuracy", old, new, "Version 1")[0]
    # by the loss it is the other way round, and so it is by what has no value for each image
    for metric in ("val/loss", "lr"):
        found, why = compare_with_champion(metric, new, old, "Version 1")
        assert not found and "val/loss differs by +1 " in why


def test_losses_with_different_label_smoothing_are_not_compared() -> None:
    few, many = np.arange(1000) < 900, np.arange(1000) < 950
    new, old = chosen(HARD - 1, few) | {"label_smoothing": 0.0}, chosen(HARD, many)
    found, why = compare_with_champion("val/loss", new, old, "Version 1")
    assert not found and "val/accuracy differs by -0.05 " in why


def test_results_on_other_images_are_not_compared() -> None:
    new = chosen(HARD - 1, checksum="b" * 64)
    found, why = compare_with_champion("val/loss", new, chosen(HARD), "Version 3")
    assert not found
    assert "(data checksum aaaaaaaaaaaa, here bbbbbbbbbbbb), so the two cannot be compared" in why
    assert 'give it the alias "champion" by hand' in why
    found, why = compare_with_champion("val/loss", new, None, "Version 3")
    assert not found and "Version 3 stays the champion: it keeps no validation results" in why


# ---------------------------------------------------------------- as evaluation does it


@dataclass
class Project:
    """A copy with its own store."""

    folder: Path
    client: MlflowClient

    def train(self, *settings: str) -> Path:
        before = set(self.folder.glob("runs/*/run.json"))
        live.run(self.folder, "train", *TRAIN, *settings)
        (made,) = set(self.folder.glob("runs/*/run.json")) - before
        return made.parent

    def evaluate(self, run: Path, *settings: str, **more: str) -> str:
        return live.run(self.folder, "evaluate", f"run=runs/{run.name}", *settings, **more)

    def versions(self) -> list[Any]:
        found = self.client.search_model_versions(f"name = '{NAME}'")
        return [self.client.get_model_version(NAME, v.version) for v in sorted(found, key=lambda v: int(v.version))]

    def champion(self) -> str:
        return str(self.client.get_model_version_by_alias(NAME, "champion").version)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = live.with_store(live.with_split(live.project(tmp_path_factory.mktemp("registry") / "project")))
    return Project(folder, MlflowClient(tracking_uri=live.store(folder)))


@pytest.fixture(scope="module")
def first(project: Project) -> Path:
    """A run that learned little, evaluated with and without the registry."""
    run = project.train("optimizer.lr=0.0001")
    for off in ("registry.enabled=false", "tracking.mlflow=false"):
        assert "models:/" not in project.evaluate(run, off)
        assert project.client.search_registered_models() == []
    printed = project.evaluate(run)
    assert f"model    models:/{NAME}/1  The champion: there was none before." in printed
    return run


@pytest.mark.slow
@pytest.mark.xdist_group("registry")
def test_the_first_version_is_the_champion_and_says_where_it_comes_from(project: Project, first: Path) -> None:
    (version,) = project.versions()
    assert project.champion() == str(version.version) == "1"
    assert version.description == "The champion: there was none before."
    noted = json.loads((first / "run.json").read_text())
    results = json.loads((first / "evaluate/metrics.json").read_text())
    assert version.run_id == noted["mlflow"]["run_id"]
    assert version.tags == {
        "run": first.name,
        "data": "mnist_sample",
        "data.checksum": noted["data"]["checksum"],
        "best/epoch": "1",
        "best/val_loss": str(results["val_loss"]),
        "best/val_accuracy": str(results["val_accuracy"]),
        "test/loss": str(results["test_loss"]),
        "test/accuracy": str(results["test_accuracy"]),
        "promoted": "yes",
    }
    # by this the table of runs names it
    models = project.client.search_logged_models([project.client.get_run(version.run_id).info.experiment_id])
    (logged,) = (model for model in models if "mlflow.modelVersions" in model.tags)
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": NAME, "version": version.version}]
    assert logged.source_run_id == version.run_id


@pytest.mark.slow
@pytest.mark.xdist_group("registry")
def test_evaluating_again_registers_nothing_again_and_finishes_what_was_begun(project: Project, first: Path) -> None:
    # as a kill leaves it between the version and the alias
    project.client.delete_registered_model_alias(NAME, "champion")
    project.client.set_model_version_tag(NAME, "1", "promoted", "pending")
    assert f"models:/{NAME}/1  The champion" in project.evaluate(first)
    assert project.champion() == "1"
    assert [version.tags["promoted"] for version in project.versions()] == ["yes"]


@pytest.mark.slow
@pytest.mark.xdist_group("registry")
def test_a_better_one_takes_the_place_and_others_do_not(project: Project, first: Path) -> None:
    better = project.train("optimizer.lr=0.01")
    said = project.evaluate(better)
    assert f"model    models:/{NAME}/2  The champion, in place of Version 1 (run {first.name}, epoch 1)" in said
    assert project.champion() == "2"
    assert "450 validation images val/loss differs by -" in project.versions()[1].description
    # worse
    said = project.evaluate(project.train("optimizer.lr=0.0002"))
    assert f"model    models:/{NAME}/3  Version 2 (run {better.name}, epoch 1) stays the champion" in said
    # trained and validated on other images
    said = project.evaluate(project.train("optimizer.lr=0.02", "split.seed=1"))
    assert f"model    models:/{NAME}/4  Version 2" in said and "cannot be compared" in said
    # the old champion again is no new version, and does not take its place back
    assert f"models:/{NAME}/1" in project.evaluate(first)
    assert project.champion() == "2"
    assert [version.tags["promoted"] for version in project.versions()] == ["yes", "yes", "no", "no"]


@pytest.mark.slow
@pytest.mark.xdist_group("registry")
def test_a_servers_registry_is_used_as_this_machines_own(
    project: Project, first: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Files go to the server and come back from there."""
    (better,) = project.folder.glob("runs/*-lr0.01/run.json")
    server = live.Server(tmp_path_factory.mktemp("server"))
    server.start()
    try:
        there = {"MLFLOW_TRACKING_URI": server.address}
        assert f"models:/{NAME}/1  The champion: there was none" in project.evaluate(first, **there)
        assert f"models:/{NAME}/2  The champion, in place of Version 1" in project.evaluate(better.parent, **there)
        picture = project.folder / "docs/study.png"
        said = live.run(project.folder, "predict", str(picture), f"model=models:/{NAME}@champion", **there)
        assert f"run {better.parent.name}, epoch 1" in said
    finally:
        server.kill()


@pytest.mark.slow
@pytest.mark.xdist_group("registry")
def test_a_registry_that_is_down_costs_a_warning(project: Project, first: Path) -> None:
    before = (first / "evaluate/metrics.json").read_bytes()
    nowhere = f"http://127.0.0.1:{live.free_port()}"
    printed = project.evaluate(first, MLFLOW_TRACKING_URI=nowhere)
    assert printed.count("warning: MLflow does not take the evaluation") == 1
    assert "Traceback" not in printed and "models:/" not in printed
    assert (first / "evaluate/metrics.json").read_bytes() == before
