"""`device.precision` changes how training computes, not what is kept, shown or resumed."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

import live
from bestepoch.base.config import compose
from bestepoch.base.config.schema import DeviceConfig
from bestepoch.base.errors import UsageError
from bestepoch.components.data.split import load_part
from bestepoch.components.models import inference, networks, scoring
from bestepoch.runs import checkpoint
from bestepoch.splitting import ensure
from bestepoch.training.device import choose_device, resolve_auto, wrap_for_training
from bestepoch.training.distributed import DistributedContext

pytestmark = pytest.mark.xdist_group("precision")
OFF = ("tracking.tensorboard=false",)
BASE = (*live.SAMPLE, *OFF, "train.epochs=2")
SMALL = ("model.channels=[4,8]", "optimizer.lr=0.005")


def menu(**values: Any) -> DeviceConfig:
    given = {"name": "cpu", "threads": 1, "precision": "float32", "cuda_graphs": "auto"}
    return DeviceConfig.model_validate({**given, **values})


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return live.with_store(live.with_split(live.project(tmp_path_factory.mktemp("precision") / "project")))


@pytest.fixture(scope="module")
def plain(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = shutil.copytree(project, tmp_path_factory.mktemp("plain") / "project")
    live.run(copy, "train", *BASE, *SMALL)
    return live.only_run(copy)


def losses(run: Path) -> torch.Tensor:
    return torch.tensor([float(row["train/loss"]) for row in live.table(run / "iterations.csv")])


def network_of(run: Path) -> networks.Network:
    settings = compose.load_config([*BASE, *SMALL], False)[1]
    split = ensure.ensure_split(settings)
    network = networks.build_network(settings.model, split.shape, split.classes, 0.0, 1.0)  # what is loaded has its own
    network.load_state_dict(checkpoint.load(checkpoint.weights_path(run, 2))["network"])
    return network


def test_as_it_is_nothing_stands_between_training_and_the_network() -> None:
    network = torch.nn.Linear(2, 2)
    assert wrap_for_training(menu(), network) is network


def test_what_cannot_be_repeated_is_refused() -> None:
    torch.use_deterministic_algorithms(False)
    choose_device(menu())
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()


@pytest.mark.parametrize(
    ("capabilities", "meant"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, "bfloat16"),
        ({"amx_bf16": False, "avx512_bf16": True}, "bfloat16"),
        ({"amx_bf16": False, "avx512_bf16": False}, "float32"),
        ({"sve": True}, "float32"),
    ],
)
def test_auto_is_bfloat16_where_the_processor_multiplies_it(
    capabilities: dict[str, bool], meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    cpu = torch.device("cpu")
    auto = compose.load_config(["device.precision=auto"], False)[1]
    found = resolve_auto(auto, cpu).device
    assert (found.precision, found.cuda_graphs) == (meant, False)
    assert resolve_auto(auto, cpu).model_copy(update={"device": auto.device}) == auto, "nothing else is changed"
    for small in ("mlp", "lenet"):
        settings = compose.load_config(["device.precision=auto", f"model={small}"], False)[1]
        assert resolve_auto(settings, cpu).device.precision == "float32"
    for asked in ("float32", "bfloat16"):
        settings = compose.load_config([f"device.precision={asked}"], False)[1]
        wanted = settings.device.model_copy(update={"cuda_graphs": False})
        assert resolve_auto(settings, cpu) == settings.model_copy(update={"device": wanted})


@pytest.mark.parametrize(
    ("given", "processes", "meant"),
    [
        ((), 1, ("bfloat16", True)),
        (("model=mlp",), 1, ("float32", True)),
        (("device.cuda_graphs=true",), 1, ("bfloat16", True)),
        (("device.cuda_graphs=false",), 1, ("float32", False)),
        (("device.precision=float32",), 1, ("float32", True)),
        (("device.precision=bfloat16", "device.cuda_graphs=false"), 1, ("bfloat16", False)),
        ((), 2, ("float32", False)),
    ],
)
@pytest.mark.parametrize("multiplies", [True, False])
def test_auto_on_a_gpu_replays_where_it_can_and_then_is_bfloat16_where_the_gpu_multiplies_it(
    given: tuple[str, ...], processes: int, meant: tuple[str, bool], multiplies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: multiplies)
    settings = compose.load_config([*given], False)[1]
    found = resolve_auto(settings, torch.device("cuda"), DistributedContext(size=processes)).device
    if not multiplies and "device.precision=bfloat16" not in given:
        meant = ("float32", meant[1])
    assert (found.precision, found.cuda_graphs) == meant


def test_a_run_is_the_same_whether_it_is_replayed_or_not() -> None:
    given = (["device.precision=float32", f"device.cuda_graphs={on}"] for on in ("true", "false", "auto"))
    one, *others = (compose.load_config(overrides, False)[1].training() for overrides in given)
    assert others == [one, one]


@pytest.mark.parametrize(
    ("device", "processes", "why"),
    [
        ("cpu", 1, "needs a GPU of CUDA's, and training is on device.name=cpu"),
        ("cuda", 2, "takes one process"),
    ],
)
def test_a_graph_that_cannot_be_is_refused_where_it_is_asked_for(device: str, processes: int, why: str) -> None:
    settings = compose.load_config(["device.cuda_graphs=true"], False)[1]
    with pytest.raises(UsageError, match=f"^device.cuda_graphs = true {why}: leave it at auto$"):
        resolve_auto(settings, torch.device(device), DistributedContext(size=processes))


def test_a_torch_that_does_not_tell_what_the_processor_can_do_trains_in_single_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    auto = compose.load_config(["device.precision=auto"], False)[1]
    assert resolve_auto(auto, torch.device("cpu")).device.precision == "float32"


def test_a_run_is_known_by_what_auto_means_on_its_machine(project: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(project, tmp_path / "project")
    given = (*live.SAMPLE, *OFF, *SMALL, "tracking.mlflow=false", "train.epochs=1")
    printed = live.run(copy, "train", *given, "device.precision=auto")
    assert ("device   cpu, 1 thread, bfloat16\n" in printed) == live.MULTIPLIES_BFLOAT16
    info = json.loads((live.only_run(copy) / "run.json").read_text())
    assert info["config"]["device"]["precision"] == ("bfloat16" if live.MULTIPLIES_BFLOAT16 else "float32")


def test_products_are_in_bfloat16_and_weights_gradients_and_logits_in_single_precision() -> None:
    body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 8), torch.nn.Linear(8, 3))
    network = networks.Network(body, 0.0, 1.0)
    seen = []
    body[1].register_forward_hook(lambda _, given, result: seen.append(result.dtype))
    pixels = torch.randint(0, 255, (5, 4, 4), dtype=torch.uint8)
    logits = wrap_for_training(menu(precision="bfloat16"), network)(pixels)
    logits.sum().backward()
    assert seen == [torch.bfloat16] and logits.dtype == torch.float32
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in network.parameters() if p.grad is not None} == {torch.float32}
    network(pixels)
    assert seen == [torch.bfloat16, torch.float32], "evaluation calls the network itself"


@pytest.mark.slow
def test_a_run_in_bfloat16_learns_alike_is_evaluated_in_float32_and_resumes_to_the_same_bits(
    project: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(project, tmp_path / "project")
    given = (*BASE, *SMALL, "device.precision=bfloat16")
    assert "device   cpu, 1 thread, bfloat16\n" in live.run(copy, "train", *given)
    run = live.only_run(copy)
    ours, theirs = losses(run), losses(plain)
    assert not torch.equal(ours, theirs), "it was in single precision"
    assert (ours - theirs).abs().max() < 0.1
    # what validation says is what the kept weights do in single precision
    monkeypatch.chdir(copy)
    split = ensure.ensure_split(compose.load_config([*BASE, *SMALL], False)[1])
    images, labels = load_part(split.folder, "validation")
    network = network_of(run)
    fared = scoring.score_examples(inference.predict(network, images), labels)
    (row,) = (row for row in live.table(run / "epochs.csv") if row["epoch"] == "2")
    assert float(row["val/loss"]) == fared.loss and float(row["val/accuracy"]) == fared.accuracy
    (stored,) = live.mlflow_runs(MlflowClient(tracking_uri=live.store(copy)))
    assert stored.data.params["device.precision"] == "bfloat16"

    again = shutil.copytree(project, tmp_path / "again")
    with live.started(again, "train", *given, "checkpoint.every_seconds=0.01") as training:
        training.until(lambda: any(again.glob("runs/*/checkpoints/epoch-0001.pt")))
        training.signal(signal.SIGKILL)
    live.run(again, "train", *given, "checkpoint.every_seconds=0.01")
    assert live.numbers(live.only_run(again)) == live.numbers(run)
    assert live.weights(live.only_run(again)) == live.weights(run)
