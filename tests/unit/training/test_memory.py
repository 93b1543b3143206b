"""A network that no memory could hold is refused with the arithmetic, before anything is allocated."""

from __future__ import annotations

import pytest
import torch

import live
from bestepoch.base.config import compose
from bestepoch.base.errors import UsageError
from bestepoch.components.data.split import Split
from bestepoch.components.models.networks import build_network
from bestepoch.training import memory

CPU = torch.device("cpu")


@pytest.mark.parametrize("model", ["mlp", "lenet", "cnn"])
def test_the_weights_are_counted_without_making_them(
    model: str, sample: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(live.CHECKOUT)
    config = compose.load_config([f"model={model}"], False)[1]
    network = build_network(config.model, sample.shape, sample.classes, 0.0, 1.0)
    assert memory.count_weights(config, sample) == sum(p.numel() for p in network.parameters())
    memory.check_memory(config, sample, CPU)


def test_too_many_weights_are_refused_with_the_arithmetic(sample: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(live.CHECKOUT)
    config = compose.load_config(["model=mlp", "model.hidden=[1000000000]", "optimizer=sgd"], False)[1]
    with pytest.raises(UsageError, match=r"7.95e\+11 weights .* 3 × 4 bytes each, that is 9,540 GB"):
        memory.check_memory(config, sample, CPU)
