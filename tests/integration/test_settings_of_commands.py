"""Wrong settings typed at a command: one line, exit code 2, and nothing is touched."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

import live
from bestepoch.base.config import compose
from bestepoch.base.config.schema import Config
from typed import MENUS, change, run, said

STAGES = ("fetch", "split", "train", "evaluate")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return live.project(tmp_path_factory.mktemp("original"))


@pytest.fixture
def project(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of one's own, to be spoiled; the working directory is in it."""
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---------------------------------------------------------------- on the command line


# ---------------------------------------------------------------- in a sweep


# ---------------------------------------------------------------- settings that have another name by now


# ---------------------------------------------------------------- iterations in place of epochs


# ---------------------------------------------------------------- in params.yaml and conf/


# ---------------------------------------------------------------- every single setting


# ---------------------------------------------------------------- as it is typed


def everything(project: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(project)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in project.rglob("*")
        if path.is_file()
    }


def refused(project: Path, *command: str) -> str:
    before = everything(project)
    done = run(project, *command)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("bestepoch: ")
    assert everything(project) == before
    assert not (project / "runs").exists()
    return done.stderr


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train trian.epochs=3", "trian.epochs is not a setting. Did you mean train.epochs?"),
        ("train -m seed=0,1 optimizer=sgd,sdg", "optimizer = sdg is not in conf/optimizer/. Did you mean sgd?"),
        ("train optimizer=sgd,adamw", "optimizer=sgd,adamw names several values: add -m to train each of them."),
        ("train --multirun train.epochs=1,0", "train.epochs = 0 is not allowed: must be at least 1"),
        ("train train.epochs", "'train.epochs' is not an override. Write key=value, such as train.epochs=3."),
        ("train --cfg job optimizer=sdg", "optimizer = sdg is not in conf/optimizer/. Did you mean sgd?"),
        ("train --help optimizer=sdg", "optimizer = sdg is not in conf/optimizer/. Did you mean sgd?"),
        ("train -m --cfg job seed=0,1", "--help, --cfg and --info show one job: leave -m out."),
        ("fetch data=mnst", "data = mnst is not in conf/data/. Did you mean mnist or kmnist?"),
        *(
            (f"{stage} -m seed=0,1", "This stage takes no sweep: -m belongs to `python -m bestepoch.train`.")
            for stage in ("fetch", "split", "evaluate")
        ),
    ],
)
def test_from_the_shell_one_line_and_exit_code_2_and_nothing_is_touched(
    project: Path, command: str, message: str
) -> None:
    assert refused(project, *f"bestepoch.{command}".split()) == f"bestepoch: {message}\n"


@pytest.mark.parametrize("stage", STAGES)
def test_broken_params_yaml_stops_every_stage(project: Path, stage: str) -> None:
    change(project / "params.yaml", "\ntrain:\n", "\ntrain: [\n")
    error = refused(project, f"bestepoch.{stage}")
    said(error, "bestepoch: params.yaml is not readable", "line 17")


def test_a_missing_launcher_is_found_before_the_sweep_begins(project: Path) -> None:
    error = refused(project, "bestepoch.train", "-m", "seed=0,1", "hydra/launcher=nope")
    said(error, "hydra/launcher/nope", "basic")


HEAVY = {"torch", "mlflow", "sklearn", "tensorboard", "matplotlib", "pandas"}


@pytest.mark.parametrize(
    "arguments", [["--cfg", "job", "--resolve", "train.iterations=30"], ["--help"], ["optimizer=x"]]
)
def test_looking_and_mistakes_wait_for_no_heavy_import(project: Path, arguments: list[str]) -> None:
    done = run(project, "bestepoch.train", *arguments, options=("-X", "importtime"))
    assert done.returncode == (2 if arguments == ["optimizer=x"] else 0)
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    imported = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines}
    assert {"hydra", "omegaconf", "pydantic", "bestepoch"} <= imported  # so the list is one
    assert not imported & HEAVY
    assert not (project / "runs").exists()
    if arguments == ["--help"]:
        for menu in MENUS:
            assert f"{menu}: {', '.join(compose.list_options(menu))}" in done.stdout.splitlines()
    elif "--cfg" in arguments:
        shown = yaml.safe_load(done.stdout)
        assert Config.model_validate(shown) == compose.load_config(["train.iterations=30"], False)[1]
        assert shown["train"] == {"epochs": None, "iterations": 30, "batch_size": 100, "eval_images": None}


@pytest.mark.parametrize(
    "more", [[], ["--resolve"], ["train.iterations=30", "+experiment=quick"], ["+experiment=accurate"]]
)
def test_a_configuration_is_shown_as_hydra_shows_it(project: Path, more: list[str]) -> None:
    ours = run(project, "bestepoch.train", "--cfg", "job", *more)
    # with a package it is Hydra itself that prints
    theirs = run(project, "bestepoch.train", "--cfg", "job", "--package", "_global_", *more)
    assert ours.stdout == theirs.stdout and "label_smoothing" in ours.stdout
    assert (ours.returncode, ours.stderr) == (theirs.returncode, theirs.stderr) == (0, "")


def test_the_list_of_heavy_imports_would_be_noticed(project: Path) -> None:
    done = run(project, "bestepoch.runs.checkpoint", options=("-X", "importtime"))
    assert any(line.rsplit("|", 1)[-1].strip() == "torch" for line in done.stderr.splitlines())
