"""Epochs and iterations, one from the other; and learning rates, which are PyTorch's to nine digits."""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.optim import lr_scheduler

import live
from bestepoch.base.config import compose
from bestepoch.base.config.groups import (
    ConstantSchedulerConfig,
    CosineSchedulerConfig,
    ExponentialSchedulerConfig,
    OneCycleSchedulerConfig,
    PlateauSchedulerConfig,
    StepSchedulerConfig,
)
from bestepoch.base.config.schema import TrainConfig
from bestepoch.base.errors import UsageError
from bestepoch.components.data.order import epoch_permutation
from bestepoch.components.schedules.learning_rate import SchedulerConfig, learning_rate
from bestepoch.components.schedules.plan import TrainingPlan, make_plan

CHECKOUT = live.CHECKOUT
SCHEDULERS = sorted(path.stem for path in (CHECKOUT / "conf/scheduler").glob("*.yaml"))
PEAK = 0.1


@pytest.fixture(autouse=True)
def at_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CHECKOUT)


# ---------------------------------------------------------------- the plan


def plan(images: int, batch_size: int, epochs: int | None, iterations: int | None) -> TrainingPlan:
    return make_plan(images, TrainConfig(epochs=epochs, iterations=iterations, batch_size=batch_size, eval_images=None))


@pytest.mark.parametrize(
    ("images", "batch", "epochs", "iterations", "per_epoch", "last_batch", "all_epochs", "all_iterations", "cut"),
    [
        (60_000, 100, 1, None, 600, 100, 1, 600, 0),
        (60_000, 100, 50, None, 600, 100, 50, 30_000, 0),
        (60_000, 100, None, 30_000, 600, 100, 50, 30_000, 0),
        (60_000, 100, 50, 30_000, 600, 100, 50, 30_000, 0),  # both, and they agree
        (1_200, 100, 5, None, 12, 100, 5, 60, 0),
        (1_200, 100, None, 60, 12, 100, 5, 60, 0),
        (1_250, 100, 2, None, 13, 50, 2, 26, 0),  # the last batch is a partial one
        (1_201, 100, 1, None, 13, 1, 1, 13, 0),
        (1_199, 100, 1, None, 12, 99, 1, 12, 0),
        (1_200, 100, None, 1, 12, 100, 1, 1, 1),  # one iteration
        (1_200, 100, None, 11, 12, 100, 1, 11, 11),
        (1_200, 100, None, 12, 12, 100, 1, 12, 0),
        (1_200, 100, None, 13, 12, 100, 2, 13, 1),  # ends inside the second epoch
        (1_200, 100, None, 59, 12, 100, 5, 59, 11),
        (100, 100, 3, None, 1, 100, 3, 3, 0),  # one batch an epoch
        (7, 1, 2, None, 7, 1, 2, 14, 0),
        (1, 1, 1, None, 1, 1, 1, 1, 0),
    ],
)
def test_the_arithmetic(
    images: int,
    batch: int,
    epochs: int | None,
    iterations: int | None,
    per_epoch: int,
    last_batch: int,
    all_epochs: int,
    all_iterations: int,
    cut: int,
) -> None:
    planned = plan(images, batch, epochs, iterations)
    assert planned == TrainingPlan(images, batch, all_iterations)
    assert (planned.iterations_per_epoch, planned.last_batch) == (per_epoch, last_batch)
    assert (planned.epochs, planned.iterations, planned.partial_epoch_iterations) == (all_epochs, all_iterations, cut)


@pytest.mark.parametrize(("images", "batch"), [(1_200, 100), (1_250, 100), (1_201, 100), (99, 99), (5, 2), (1, 1)])
def test_the_arithmetic_is_that_of_the_batches_that_are_made(images: int, batch: int) -> None:
    planned = plan(images, batch, 1, None)
    sizes = [len(part) for part in torch.split(epoch_permutation(0, 1, images), batch)]
    assert len(sizes) == planned.iterations_per_epoch
    assert sizes[-1] == planned.last_batch
    assert sizes[:-1] == [batch] * (planned.iterations_per_epoch - 1)


@pytest.mark.parametrize(
    ("planned", "text"),
    [
        (
            TrainingPlan(60_000, 100, 30_000),
            "60,000 images ÷ 100 a batch = 600 iterations an epoch\n50 epochs × 600 iterations = 30,000 updates",
        ),
        (
            TrainingPlan(1_250, 100, 26),
            "1,250 images ÷ 100 a batch = 13 iterations an epoch, the last batch has 50 images\n"
            "2 epochs × 13 iterations = 26 updates",
        ),
        (
            TrainingPlan(1_200, 100, 30),
            "1,200 images ÷ 100 a batch = 12 iterations an epoch\n"
            "30 updates = 2 epochs + 6 of 12 iterations: training ends inside epoch 3",
        ),
    ],
)
def test_the_arithmetic_is_shown(planned: TrainingPlan, text: str) -> None:
    assert planned.describe() == text


def test_numbers_that_disagree_are_answered_with_the_sum() -> None:
    with pytest.raises(UsageError) as caught:
        plan(1_200, 100, 5, 61)
    assert str(caught.value) == (
        "train.epochs = 5 and train.iterations = 61 disagree: 1,200 images ÷ 100 a batch = 12 iterations an epoch, "
        "and 5 epochs × 12 = 60 iterations, while 61 iterations are 5.083 epochs. "
        "Keep one: train.iterations=null or train.epochs=null"
    )
    with pytest.raises(
        UsageError, match=r"50 epochs × 600 = 30,000 iterations, while 60,000 iterations are 100 epochs"
    ):
        plan(60_000, 100, 50, 60_000)


def test_neither_number_is_no_training() -> None:
    with pytest.raises(ValidationError, match=r"train\.epochs and train\.iterations are both null"):
        TrainConfig(epochs=None, iterations=None, batch_size=100, eval_images=None)


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(UsageError, match=r"train\.batch_size = 1,201 is more than the 1,200 training images"):
        plan(1_200, 1_201, 5, None)
    assert plan(1_200, 1_200, 5, None).iterations == 5


# ---------------------------------------------------------------- the rates


def rates(menu: Any, planned: TrainingPlan, peak: float = PEAK) -> list[float]:
    return [learning_rate(menu, peak, planned, i) for i in range(1, planned.iterations + 1)]


def stepped(make: Any, iterations: int, peak: float = PEAK) -> list[float]:
    """The rates that PyTorch's scheduler gives when it is stepped after each update, as documented."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=peak)
    used = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a scheduler of one step is stepped to its end
        scheduler = make(optimizer)
        for i in range(iterations):
            used.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if i < iterations - 1:
                scheduler.step()
    return used


def torchs(menu: Any, planned: TrainingPlan, peak: float = PEAK) -> Any:
    """The scheduler in PyTorch that a menu entry is named after."""
    n = planned.iterations_per_epoch
    match menu:
        case ConstantSchedulerConfig():
            return lambda o: lr_scheduler.ConstantLR(o, factor=1.0)
        case StepSchedulerConfig():
            return lambda o: lr_scheduler.StepLR(o, menu.step_size * n, menu.gamma)
        case ExponentialSchedulerConfig():
            return lambda o: lr_scheduler.ExponentialLR(o, menu.gamma ** (1 / n))
        case CosineSchedulerConfig():
            return lambda o: lr_scheduler.CosineAnnealingLR(o, planned.iterations, menu.eta_min)
        case OneCycleSchedulerConfig():
            return lambda o: lr_scheduler.OneCycleLR(
                o,
                peak,
                total_steps=planned.iterations,
                pct_start=menu.pct_start,
                div_factor=menu.div_factor,
                final_div_factor=menu.final_div_factor,
                cycle_momentum=False,
            )
    raise AssertionError(f"{menu.name} has no counterpart here")


def entry(name: str, **changes: Any) -> Any:
    """A menu entry as its file has it, but for the changes."""
    menu = compose.load_option("scheduler", name)
    return type(menu)(**{**menu.model_dump(), **changes})


PLANS = [
    TrainingPlan(1_200, 100, 60),
    TrainingPlan(1_250, 100, 65),
    TrainingPlan(1_200, 100, 31),
    TrainingPlan(100, 100, 7),
    TrainingPlan(60_000, 100, 3_600),
]


@pytest.mark.parametrize("planned", PLANS, ids=str)
@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "plateau"])
def test_each_entry_of_the_menu_gives_the_rates_of_pytorch(name: str, planned: TrainingPlan) -> None:
    menu = entry(name)
    ours = rates(menu, planned)
    assert ours == pytest.approx(stepped(torchs(menu, planned), planned.iterations), rel=1e-9, abs=0)
    assert name == "constant" or len(set(ours)) > 1


@pytest.mark.parametrize(
    "menu",
    [
        StepSchedulerConfig(name="step", step_size=1, gamma=0.5, warmup_epochs=0),
        StepSchedulerConfig(name="step", step_size=3, gamma=1.1, warmup_epochs=0),
        ExponentialSchedulerConfig(name="exponential", gamma=0.01, warmup_epochs=0),
        ExponentialSchedulerConfig(name="exponential", gamma=1.2, warmup_epochs=0),
        CosineSchedulerConfig(name="cosine", eta_min=0.02, warmup_epochs=0),
        OneCycleSchedulerConfig(name="onecycle", pct_start=0.5, div_factor=10.0, final_div_factor=100.0),
        OneCycleSchedulerConfig(name="onecycle", pct_start=0.01, div_factor=1.0, final_div_factor=1.0),
        OneCycleSchedulerConfig(name="onecycle", pct_start=0.99, div_factor=25.0, final_div_factor=1e4),
    ],
    ids=str,
)
def test_other_values_give_the_rates_of_pytorch_too(menu: Any) -> None:
    for planned in PLANS[:3]:
        expected = stepped(torchs(menu, planned), planned.iterations)
        assert rates(menu, planned) == pytest.approx(expected, rel=1e-9, abs=0)


LOSSES = {
    "falling": [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4],
    "flat": [1.0] * 12,
    "slow": [1.0, 0.99995, 0.9999, 0.99985, 0.9998, 0.99975, 0.9997],
    "up and down": [1.0, 1.1, 0.9, 0.95, 0.96, 0.97, 0.5, 0.6, 0.7, 0.4, 0.5, 0.6, 0.7],
    "not a number": [math.nan, math.nan, 1.0, math.nan, math.inf, 0.9, math.nan, math.nan, math.nan],
}


@pytest.mark.parametrize("losses", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize(
    "changes",
    [{}, {"patience": 0}, {"patience": 2, "factor": 0.5}, {"threshold": 0.0}, {"min_lr": 0.03}, {"threshold": 0.2}],
    ids=str,
)
def test_plateau_gives_the_rates_of_pytorch_epoch_by_epoch(changes: dict[str, Any], losses: list[float]) -> None:
    menu = entry("plateau", **changes)
    planned = TrainingPlan(1_200, 100, 12 * len(losses))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = lr_scheduler.ReduceLROnPlateau(
        optimizer,
        mode="min",
        factor=menu.factor,
        patience=menu.patience,
        threshold=menu.threshold,
        min_lr=menu.min_lr,
        eps=0.0,  # rates however small
    )
    for epoch, loss in enumerate(losses):
        expected = optimizer.param_groups[0]["lr"]
        for iteration in (epoch * 12 + 1, epoch * 12 + 7, epoch * 12 + 12):
            assert learning_rate(menu, PEAK, planned, iteration, losses[:epoch]) == pytest.approx(expected, rel=1e-9)
        scheduler.step(loss)


def test_plateau_falls_when_patience_is_exceeded_and_not_before() -> None:
    menu = entry("plateau", patience=1, factor=0.1)
    planned = TrainingPlan(1_200, 100, 120)
    got = [learning_rate(menu, PEAK, planned, 12 * epoch + 1, [1.0] * epoch) for epoch in range(7)]
    assert got == pytest.approx([0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rel=1e-9)


# ---------------------------------------------------------------- warm-up


WARM = [name for name in SCHEDULERS if name != "onecycle"]


@pytest.mark.parametrize("name", WARM)
@pytest.mark.parametrize("epochs", [0.5, 1.0, 2.25])
def test_warm_up_rises_and_then_the_schedule_begins(name: str, epochs: float) -> None:
    planned = TrainingPlan(1_200, 100, 72)
    warm = round(epochs * 12)
    ours = rates(entry(name, warmup_epochs=epochs), planned)
    # a straight line that would be at the peak one update later
    assert ours[:warm] == pytest.approx([PEAK * (i + 1) / (warm + 1) for i in range(warm)], rel=1e-12)
    assert all(0 < a < b for a, b in itertools.pairwise([*ours[:warm], PEAK]))
    assert ours[warm] == pytest.approx(PEAK, rel=1e-12)
    # from there on it is the schedule without warm-up over the iterations that remain
    rest = TrainingPlan(1_200, 100, planned.iterations - warm)
    assert ours[warm:] == pytest.approx(rates(entry(name, warmup_epochs=0.0), rest), rel=1e-12)


def test_all_schedulers_but_onecycle_can_warm_up() -> None:
    for name in SCHEDULERS:
        menu = compose.load_option("scheduler", name)
        assert hasattr(menu, "warmup_epochs") == (name in WARM)


def test_onecycle_carries_its_own_warm_up() -> None:
    ours = rates(entry("onecycle"), TrainingPlan(60_000, 100, 3_600), 0.01)
    top = ours.index(max(ours))
    assert ours[0] == pytest.approx(0.01 / 25, rel=1e-12)
    assert ours[top] == pytest.approx(0.01, rel=1e-12)
    assert top == round(0.15 * 3_600) - 1
    assert ours[-1] == pytest.approx(0.01 / 25 / 1e4, rel=1e-9)
    assert all(a < b for a, b in itertools.pairwise(ours[: top + 1]))
    assert all(a > b for a, b in itertools.pairwise(ours[top:]))


# ---------------------------------------------------------------- tiny plans


@pytest.mark.parametrize("warm", [0.0, 0.4, 1.0, 10.0])
@pytest.mark.parametrize("iterations", [1, 2, 3])
@pytest.mark.parametrize("per_epoch", [1, 2, 12])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_rate_of_a_tiny_plan_is_positive_and_at_most_the_peak(
    name: str, per_epoch: int, iterations: int, warm: float
) -> None:
    menu = (
        entry(name, warmup_epochs=warm)
        if name in WARM
        else entry(name, pct_start=(0.01, 0.3, 0.5, 0.99)[int(warm) % 4])
    )
    planned = TrainingPlan(100 * per_epoch, 100, iterations)
    ours = rates(menu, planned)
    assert len(ours) == iterations
    assert all(math.isfinite(rate) and 0 < rate <= PEAK * (1 + 1e-12) for rate in ours)


@pytest.mark.parametrize("iterations", [1, 2])
@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "plateau"])
def test_the_rates_of_a_tiny_plan_are_pytorchs(name: str, iterations: int) -> None:
    menu, planned = entry(name), TrainingPlan(1_200, 100, iterations)
    assert rates(menu, planned) == pytest.approx(stepped(torchs(menu, planned), iterations), rel=1e-9, abs=0)


def test_every_entry_of_the_menu_is_held_to_pytorch() -> None:
    kinds = {type(entry(name)) for name in SCHEDULERS}
    assert kinds == {
        ConstantSchedulerConfig,
        StepSchedulerConfig,
        ExponentialSchedulerConfig,
        CosineSchedulerConfig,
        OneCycleSchedulerConfig,
        PlateauSchedulerConfig,
    }
    assert kinds == set(SchedulerConfig.__args__)
