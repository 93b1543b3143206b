"""What an edit of the code makes `dvc repro` run again: the stages whose outputs it can change, and no other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import edit, fresh_copy, run

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("reruns")]
STAGES = ["fetch", "split", "train", "evaluate"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small experiment that has run once."""
    folder = fresh_copy(tmp_path_factory.mktemp("reruns"))
    edit(folder / "params.yaml", "data: mnist ", "data: mnist_sample ")
    edit(folder / "params.yaml", "model: cnn ", "model: mlp ")
    edit(folder / "params.yaml", "epochs: 6 ", "epochs: 1 ")
    run(folder, "dvc", "repro")
    return folder


@pytest.fixture(autouse=True)
def restored(done: Path) -> Iterator[None]:
    """The code is as it was after each test."""
    yield
    run(done, "git", "checkout", "-q", "--", "src")
    run(done, "git", "clean", "-q", "-f", "--", "src")


def stale_stages(folder: Path) -> set[str]:
    """The stages whose own code or parameters differ from what DVC has noted."""
    said = run(folder, "dvc", "status")
    found = set()
    stage = ""
    for line in said.splitlines():
        if (match := re.match(r"(\w+):$", line)) is not None:
            stage = match[1]
        elif "src/" in line:
            found.add(stage)
    return found


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("cli/console.py", []),
        ("cli/launch.py", []),
        ("cli/process.py", []),
        ("sweeps/leaderboard.py", []),
        ("prediction/predict.py", []),
        ("tracking/mlflow/views.py", ["evaluate"]),
        ("tracking/run_summary.py", ["evaluate"]),
        ("tracking/tensorboard/run.py", ["evaluate"]),
        ("tracking/worker.py", ["evaluate"]),
        ("evaluation/selection.py", ["evaluate"]),
        ("evaluation/report.html", ["evaluate"]),
        ("components/data/augment.py", ["train", "evaluate"]),
        ("components/models/networks.py", ["train", "evaluate"]),
        ("training/optimizers.py", ["train"]),
        ("training/cuda_graph.py", ["train"]),
        ("runs/journal.py", ["train", "evaluate"]),
        ("fetching/mirrors.py", ["fetch"]),
        ("splitting/split.py", ["split"]),
        ("base/config/schema.py", STAGES),
        ("train.py", ["train"]),
    ],
)
def test_edit_makes_only_the_stages_stale_that_it_can_change(done: Path, file: str, stages: list[str]) -> None:
    path = done / "src/bestepoch" / file
    assert path.is_file()
    path.write_text(
        path.read_text() + "\n# edited\n" * (path.suffix == ".py") + "<!-- edited -->" * (path.suffix != ".py")
    )
    assert stale_stages(done) == set(stages)


def test_new_module_makes_its_stages_stale(done: Path) -> None:
    (done / "src/bestepoch/training/my_loss.py").write_text('"""A loss."""\n')
    assert stale_stages(done) == {"train"}


def test_bytecode_makes_nothing_stale(done: Path) -> None:
    cache = done / "src/bestepoch/training/__pycache__"
    cache.mkdir(exist_ok=True)
    (cache / "loop.cpython-311.pyc").write_bytes(b"other bytes")
    assert stale_stages(done) == set()


def test_edit_of_the_choice_runs_the_evaluation_alone(done: Path) -> None:
    edit(done / "src/bestepoch/evaluation/selection.py", "from __future__", "# edited\nfrom __future__")
    said = run(done, "dvc", "repro", "--dry")
    assert re.findall(r"Running stage '(\w+)'", said) == ["evaluate"]
