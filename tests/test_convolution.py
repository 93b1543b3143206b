"""The convolution's own way to its weights' gradient gives what PyTorch's does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bestepoch import config, convolution, model
from bestepoch.convolution import Conv2d

LAST = torch.channels_last
SHAPES = [  # channels in and out, window, step, padding, height and width
    (64, 128, 3, 1, 0, (4, 4)),
    (32, 64, 4, 2, 0, (10, 10)),
    (3, 5, 3, 2, 1, (7, 5)),
    (1, 4, 5, 3, 2, (9, 9)),
    (2, 3, 1, 1, 0, (4, 4)),
    (4, 6, (2, 3), (1, 2), (0, 1), (4, 5)),
]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls that go the own way."""
    calls, apply = [], convolution._Convolution.apply
    monkeypatch.setattr(
        convolution._Convolution, "apply", lambda *arguments: calls.append(arguments[0]) or apply(*arguments)
    )
    return calls


def pair(shape: tuple[Any, ...], kind: torch.dtype = torch.float64) -> tuple[Conv2d, nn.Conv2d]:
    torch.manual_seed(0)
    ours = Conv2d(*shape[:5], bias=False).to(kind).to(memory_format=LAST)
    theirs = nn.Conv2d(*shape[:5], bias=False).to(kind).to(memory_format=LAST)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def gradients(layer: nn.Module, x: torch.Tensor, through: bool = True) -> tuple[torch.Tensor, ...]:
    layer.zero_grad()
    x = x.clone(memory_format=torch.preserve_format).requires_grad_(through)
    y = layer(x)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (y * dy.to(y.dtype)).sum().backward()
    assert x.grad is not None or not through
    return (y.detach(), layer.weight.grad, *([x.grad] if through else []))


@pytest.mark.parametrize("images", [0, 1, 6])
@pytest.mark.parametrize("memory", [LAST, torch.contiguous_format])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_results_and_gradients_are_pytorchs(shape: Any, memory: Any, images: int, taken: list[Any]) -> None:
    ours, theirs = pair(shape)
    x = torch.randn(images, shape[0], *shape[5], dtype=torch.float64).to(memory_format=memory)
    for through in (True, False):
        for got, wanted in zip(gradients(ours, x, through), gradients(theirs, x, through), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    assert len(taken) == 2
    assert ours.weight.grad is not None and ours.weight.grad.stride() == theirs.weight.grad.stride()


def test_in_bfloat16_it_is_as_near_to_the_truth(taken: list[Any]) -> None:
    shape = SHAPES[0]
    exact = pair(shape)[1]
    x = torch.randn(100, shape[0], *shape[5]).to(memory_format=LAST)
    truth = gradients(exact, x.double())[1]

    def error(layer: nn.Module) -> float:
        with torch.autocast("cpu", torch.bfloat16):
            found = gradients(layer, x)
        assert [tensor.dtype for tensor in found] == [torch.bfloat16, torch.float32, torch.float32]
        return float((found[1].double() - truth).norm() / truth.norm())

    ours, theirs = pair(shape, torch.float32)
    assert error(ours) < 1.2 * error(theirs) < 0.02
    assert len(taken) == 1 and taken[0].dtype == torch.bfloat16


def test_where_many_places_are_left_or_nothing_is_learned_it_is_pytorchs_own(taken: list[Any]) -> None:
    layer = Conv2d(3, 5, 3, bias=False)
    layer(torch.randn(2, 3, 7, 7))
    layer.eval()(torch.randn(2, 3, 4, 4))
    assert not taken
    layer.train()(torch.randn(2, 3, 6, 6))
    assert len(taken) == 1


def test_the_default_network_goes_this_way_in_its_last_two_blocks(taken: list[Any]) -> None:
    network = model.build(config.checked([], False)[1].model, (28, 28), 10, 33.0, 78.0)
    network.train()(torch.randint(0, 256, (2, 28, 28), dtype=torch.uint8)).sum().backward()
    assert [tuple(x.shape[1:]) for x in taken] == [(32, 10, 10), (64, 4, 4)]
    assert all(weight.grad is not None for weight in network.parameters())
    assert {type(layer) for layer in network.modules()} >= {Conv2d, nn.BatchNorm2d}
