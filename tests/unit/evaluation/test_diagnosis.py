"""The verdicts on curves with a known answer: real ones, recorded with their settings, and ones made by a formula."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bestepoch.base.config import compose
from bestepoch.base.errors import UsageError
from bestepoch.evaluation.curves import Curves
from bestepoch.evaluation.diagnosis import Diagnosis, diagnose, diagnose_run
from bestepoch.evaluation.rules import RULES, Kind
from bestepoch.runs.tables import Row

GUESS = math.log(10)
IMAGES = 6000  # of validation: seeds differ by 0.002 at a loss of 0.01, by 0.02 at 1
REAL: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "recorded_curves.json").read_text())
SETTINGS: dict[str, Any] = {
    "model": {"name": "mlp", "hidden": [256, 128], "activation": "relu", "dropout": 0.0},
    "optimizer": {"name": "adam", "lr": 0.001, "weight_decay": 0.0, "l1": 0.0},
    "scheduler": {"name": "constant"},
    "augment": {"name": "none"},
    "stopping": {"name": "none"},
    "loss": {"label_smoothing": 0.0},
    "train": {"epochs": 10, "iterations": None, "batch_size": 100, "eval_images": None},
}


def changed(**changes: Any) -> dict[str, Any]:
    """The settings with changes, as ``optimizer={"l1": 0.1}``."""
    return {key: {**values, **changes.get(key, {})} for key, values in SETTINGS.items()}


def table(train: Any, val: Any, *, lr: Any = 0.001, accuracies: Any = None, classes: int = 10) -> list[Row]:
    """An epoch table; accuracies go from chance, at the loss of guessing, to 1, at a loss of 0."""
    train, val = np.broadcast_arrays(np.asarray(train, float), np.asarray(val, float))

    def accuracy(losses: Any) -> Any:
        known = np.nan_to_num(losses, nan=math.log(classes), posinf=math.log(classes))
        return 1 - (1 - 1 / classes) * np.clip(known / math.log(classes), 0, 1)

    columns = {
        "train/epoch_loss": train,
        "train/eval_loss": train,
        "train/eval_accuracy": accuracy(train),
        "val/loss": val,
        "val/accuracy": accuracy(val) if accuracies is None else np.asarray(accuracies, float),
        "lr": np.broadcast_to(lr, train.shape),
    }
    return [
        {
            "epoch": float(i + 1),
            "iteration": 10.0 * (i + 1),
            **{name: float(values[i]) for name, values in columns.items()},
        }
        for i in range(len(train))
    ]


def judge(rows: list[Row], config: dict[str, Any] | None = None, classes: int = 10) -> Diagnosis:
    return diagnose(rows, config or SETTINGS, classes=classes, validation_images=IMAGES)


# ---------------------------------------------------------------- real trainings on the sample


@pytest.mark.parametrize("name", REAL)
def test_the_verdict_on_a_real_training(name: str) -> None:
    real = REAL[name]
    rows = [dict(zip(real["columns"], values, strict=True)) for values in real["rows"]]
    found = diagnose(rows, real["config"], classes=10, validation_images=real["validation_images"])
    assert found.kind in real["verdicts"], found.sentence


def test_alike_trainings_get_alike_verdicts() -> None:
    for family, verdict in (("mlp of seed", "overfit"), ("cnn of seed", "converged")):
        alike = [real["verdicts"] for name, real in REAL.items() if name.startswith(family)]
        assert alike == [[verdict]] * 5


def test_there_are_enough_real_trainings_of_every_verdict() -> None:
    kinds = [real["verdicts"][0] for real in REAL.values()]
    assert len(kinds) >= 60
    assert set(kinds) == set(get_args(Kind))
    assert sum(real["held_out"] for real in REAL.values()) >= 30  # trained after the thresholds were set


# ---------------------------------------------------------------- curves made by a formula

FALL = 2 * 0.8 ** np.arange(10)
VALLEY = np.concatenate([np.linspace(0.5, 0.1, 6), np.linspace(0.11, 0.2, 10)])
LEVEL = np.array([0.5, 0.2, 0.12, *[0.1] * 9])
LEARNT = np.array([0.4, 0.1, 0.05, *np.linspace(0.045, 0.044, 9)])
SLOW_RISE = np.concatenate([0.3 * 0.6 ** np.arange(5), np.linspace(0.04, 0.06, 25)])
SURER = [0.5, 0.3, 0.2, 0.15, 0.13, 0.12, 0.12, 0.13, 0.13, 0.13]
COSINE = 0.001 * (1 + np.cos(np.pi * np.arange(1, 11) / 10)) / 2
ONE_CYCLE = {"name": "onecycle"}
MADE: dict[str, tuple[str, list[Row], dict[str, Any]]] = {
    "both fall": ("still falling", table(0.9 * FALL, FALL), {}),
    "one good epoch": ("still falling", table([0.3], [0.35]), {}),
    "two epochs": ("still falling", table([0.3, 0.2], [0.35, 0.27]), {}),
    "learning began late": ("still falling", table([GUESS, GUESS, 1.5, 0.8, 0.4], [GUESS, GUESS, 1.5, 0.8, 0.45]), {}),
    "not learnt, and risen again": ("oscillating", table([0.8, 0.4, 0.3, 0.35, 0.42], [0.9, 0.5, 0.4, 0.5, 0.55]), {}),
    "level after three epochs": ("converged", table(LEARNT, LEVEL), {}),
    "level, far above training": ("converged", table(LEARNT / 100, 3 * LEVEL), {}),
    "level, one outlier": ("converged", table(LEARNT, np.where(np.arange(12) == 8, 0.16, LEVEL)), {}),
    "the plateau schedule is at its end": (
        *("converged", table(LEARNT, LEVEL, lr=1e-6)),
        {"scheduler": {"name": "plateau"}},
    ),
    "a valley": ("overfit", table(np.geomspace(0.5, 0.001, 16), VALLEY), {}),
    "a valley, accuracy as it was": (
        *("overfit", table(np.geomspace(0.5, 0.001, 16), VALLEY, accuracies=np.linspace(0.9, 0.97, 16))),
        {},
    ),
    "training falls on, slow rise": (
        *("overfit", table(np.geomspace(0.3, 1e-4, 30), SLOW_RISE)),
        {},
    ),
    "a valley under a schedule": (
        *("overfit", table(np.geomspace(0.5, 0.001, 16), VALLEY, lr=np.geomspace(1e-3, 1e-7, 16))),
        {"scheduler": ONE_CYCLE},
    ),
    "surer of its last errors under a schedule": (
        *("finished as planned", table(np.geomspace(0.5, 0.01, 10), SURER,
                 lr=COSINE, accuracies=np.linspace(0.9, 0.98, 10))),
        {"scheduler": {"name": "cosine"}},
    ),
    "falls to the end of a schedule": (
        *("finished as planned", table(0.9 * FALL, FALL, lr=COSINE)),
        {"scheduler": ONE_CYCLE},
    ),
    "level at the end of a schedule": (
        *("finished as planned", table(LEARNT, LEVEL, lr=np.geomspace(1e-3, 1e-7, 12))),
        {"scheduler": {"name": "step", "step_size": 2}},
    ),
    "a schedule cut in its middle": ("still falling", table(0.9 * FALL, FALL, lr=0.0007), {"scheduler": ONE_CYCLE}),
    "high and level": ("underfit", table([1.2, 0.9, *[0.8] * 8], [1.2, 0.92, *[0.82] * 8]), {}),
    "high and level under L2": (
        *("penalty too strong", table([1.2, 0.9, *[0.8] * 8], [1.2, 0.92, *[0.82] * 8])),
        {"optimizer": {"weight_decay": 0.1}},
    ),
    "high and level with nine of ten units dropped": (
        *("penalty too strong", table([1.2, 0.9, *[0.8] * 8], [1.2, 0.92, *[0.82] * 8])),
        {"model": {"dropout": 0.9}},
    ),
    "guessing under L1": ("penalty too strong", table([GUESS] * 4, [GUESS] * 4), {"optimizer": {"l1": 0.1}}),
    "guessing, and still": ("rate too high", table([GUESS + 0.001] * 5, [GUESS] * 5), {}),
    "guessing, and still, at a small rate": (
        *("rate too low", table([GUESS + 0.02] * 2, [GUESS + 0.01] * 2)),
        {"optimizer": {"lr": 1e-5}},
    ),
    "guessing, validation far worse": ("rate too high", table([2.2] * 5, [5.0] * 5), {}),
    "validation far worse, a little learnt": ("rate too high", table([1.5] * 5, [5.0] * 5, accuracies=[0.3] * 5), {}),
    "guessing, and falling": ("rate too low", table(np.linspace(2.301, 2.28, 5), np.linspace(2.301, 2.28, 5)), {}),
    "an even, slow fall": ("rate too low", table(np.linspace(2.2, 1.2, 8), np.linspace(2.2, 1.2, 8)), {}),
    "up and down": ("oscillating", table([0.1, 0.5] * 5, [0.12, 0.55] * 5), {}),
    "training up and down": ("oscillating", table([0.1, 0.4] * 5, [0.4] * 10), {}),
    "lost what was learnt": ("diverged", table([0.5, 0.2, 0.1, 0.1, 1.8], [0.5, 0.25, 0.15, 0.15, 2.0]), {}),
    "no number": ("diverged", table([0.5, 0.4, math.nan], [0.5, 0.4, 0.3]), {}),
    "no finite validation": ("diverged", table([0.5, 0.4], [0.5, math.inf]), {}),
    "worse than guessing": ("diverged", table([75.0], [81.0]), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_the_verdict_on_a_made_curve(name: str) -> None:
    kind, rows, changes = MADE[name]
    found = judge(rows, changed(**changes))
    assert found.kind == kind, found.sentence
    assert found.sentence.startswith(kind)
    # whatever the order of the rows
    assert judge(rows[::-1], changed(**changes)) == found


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    ("kind", "train", "val"),
    [
        ("still falling", 0.9 * FALL, FALL),
        ("converged", LEARNT, LEVEL),
        ("overfit", np.geomspace(0.5, 0.001, 16), VALLEY),
        ("underfit", np.array([1.2, 0.9, *[0.8] * 8]), np.array([1.2, 0.92, *[0.82] * 8])),
    ],
)
def test_the_noise_of_seeds_changes_no_verdict(kind: str, train: Any, val: Any, seed: int) -> None:
    # from epoch to epoch a run varies by 0.1 to 0.9 times as much as seeds do, in the median by 0.6
    noise = np.random.default_rng(seed).standard_normal(len(val)) * 0.6 * np.sqrt(0.3 * val / IMAGES)
    assert judge(table(train, val + noise)).kind == kind


def test_every_rule_has_a_curve_that_it_decides() -> None:
    deciding = set()
    for _, rows, changes in MADE.values():
        curves = Curves.from_rows(rows, changed(**changes), 10, IMAGES)
        deciding.add(next(rule.__name__ for rule in RULES if rule(curves) is not None))
    assert deciding == {rule.__name__ for rule in RULES}


@pytest.mark.parametrize("classes", [2, 100])
def test_guessing_depends_on_the_number_of_classes(classes: int) -> None:
    still = math.log(classes) + 0.001
    assert judge(table([still] * 4, [still] * 4, classes=classes), classes=classes).kind == "rate too high"
    assert judge(table(0.1 * FALL, 0.11 * FALL, classes=classes), classes=classes).kind == "still falling"


# ---------------------------------------------------------------- what it says


def test_an_overfit_run_names_its_best_epoch_first() -> None:
    found = judge(table(np.geomspace(0.5, 0.001, 16), VALLEY))
    assert found.epoch == 6
    assert found.sentence.startswith("overfit since epoch 6: from epoch 6 to 16 training loss went from ")
    assert found.override == "augment=shift"


def test_so_many_epochs_are_enough_only_where_none_since_the_best_one_differs() -> None:
    passed = judge(table(LEARNT, np.where(np.arange(12) == 7, 0.099, LEVEL)))
    assert "8 epochs are enough" in passed.sentence and passed.epoch == 8
    best_is_last = judge(table(LEARNT, np.where(np.arange(12) == 11, 0.099, LEVEL)))
    assert best_is_last.kind == "converged" and "enough" not in best_is_last.sentence
    outlier = judge(table(LEARNT, np.where(np.arange(12) == 8, 0.16, LEVEL)))
    assert outlier.kind == "converged" and "enough" not in outlier.sentence


def test_nothing_to_do_is_an_answer() -> None:
    found = judge(table(LEARNT, LEVEL), changed(augment={"name": "shift"}))
    assert (found.suggestion, found.override) == ("Nothing to do.", "")


@pytest.mark.parametrize(
    ("changes", "override"),
    [
        ({}, "augment=shift"),
        ({"augment": {"name": "shift"}}, "model.dropout=0.3"),
        ({"augment": {"name": "shift"}, "model": {"dropout": 0.3}}, "stopping=patience"),
        (
            {"augment": {"name": "shift"}, "model": {"dropout": 0.3}, "stopping": {"name": "patience"}},
            "train.epochs=6",
        ),
    ],
)
def test_a_remedy_is_one_that_the_run_does_not_have(changes: dict[str, Any], override: str) -> None:
    assert judge(table(np.geomspace(0.5, 0.001, 16), VALLEY), changed(**changes)).override == override


@pytest.mark.parametrize(
    ("scheduler", "override"),
    [
        ({"name": "onecycle"}, "-m train.epochs=10,20 seed=0,1,2"),
        ({"name": "step", "step_size": 2, "gamma": 0.3}, "-m scheduler.step_size=2,4 seed=0,1,2"),
        ({"name": "exponential", "gamma": 0.49}, "-m scheduler.gamma=0.49,0.7 seed=0,1,2"),
    ],
)
def test_a_schedule_at_its_end_is_compared_with_a_longer_one(scheduler: dict[str, Any], override: str) -> None:
    assert judge(table(0.9 * FALL, FALL, lr=COSINE), changed(scheduler=scheduler)).override == override


def test_a_length_in_iterations_is_answered_in_iterations() -> None:
    given_iterations = changed(train={"epochs": None, "iterations": 400})
    assert judge(table(0.9 * FALL, FALL), given_iterations).override == "train.iterations=800"
    given_iterations["scheduler"] = ONE_CYCLE
    found = judge(table(0.9 * FALL, FALL, lr=COSINE), given_iterations)
    assert found.override == "-m train.iterations=400,800 seed=0,1,2"


def test_losses_of_smoothed_training_are_not_taken_for_overfitting() -> None:
    """The network is less sure towards the end, by design; its errors become fewer."""
    rising, falling = np.linspace(0.1, 0.25, 10), np.linspace(0.9, 0.99, 10)
    rows = table(np.linspace(0.2, 0.02, 10), rising, accuracies=falling)
    assert judge(rows).kind == "overfit"
    found = judge(rows, changed(loss={"label_smoothing": 0.1}))
    assert found.kind == "still falling" and "validation error" in found.sentence


@pytest.mark.parametrize("name", ["both fall", "a valley", "level after three epochs", "no number", "one good epoch"])
def test_a_table_of_an_earlier_version_is_judged_by_its_objective(name: str) -> None:
    kind, rows, changes = MADE[name]
    earlier = [{key: value for key, value in row.items() if not key.startswith("train/eval")} for row in rows]
    assert judge(earlier, changed(**changes)).kind == kind


def test_an_empty_table_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(UsageError, match=r"No epoch was finished.*train\.epochs=1"):
        judge([])


def test_the_settings_and_the_data_of_a_run_are_what_counts() -> None:
    info = {"config": SETTINGS, "data": {"classes": 10, "sizes": {"validation": IMAGES}}}
    rows = table(0.9 * FALL, FALL)
    assert diagnose_run(info, rows) == judge(rows)


@pytest.mark.parametrize("name", MADE)
def test_every_override_is_one_of_the_project(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, rows, changes = MADE[name]
    found = judge(rows, changed(**changes))
    lines = found.override.removeprefix("-m ").split()
    if "scheduler" in changes:
        lines.insert(0, f"scheduler={changes['scheduler']['name']}")
    compose.load_config(["model=mlp", *lines], found.override.startswith("-m"))


values = st.lists(
    st.tuples(*(st.floats(0, 1e30) | st.just(math.nan) | st.just(math.inf) for _ in range(2)), st.floats(0, 1)),
    min_size=1,
    max_size=12,
)


@settings(max_examples=200, deadline=None)
@given(values, st.sampled_from(["constant", "onecycle", "plateau"]), st.sampled_from([0.0, 0.1]))
def test_whatever_the_values_there_is_a_verdict(rows: Any, scheduler: str, smoothing: float) -> None:
    train, val, accuracies = zip(*rows, strict=True)
    config = changed(scheduler={"name": scheduler}, loss={"label_smoothing": smoothing})
    found = judge(table(train, val, accuracies=accuracies), config)
    assert found.kind in get_args(Kind) and found.suggestion
    assert all(map(math.isfinite, found.evidence.values()))
