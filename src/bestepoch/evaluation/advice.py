"""What to try next, in view of the run's own settings: a sentence and the overrides to type."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from bestepoch.evaluation import thresholds


class Advice(NamedTuple):
    """A suggestion: a sentence, and the overrides that carry it out; none where there is nothing to do."""

    sentence: str
    override: str


NOTHING = Advice("Nothing to do.", "")


def scale_rate(config: dict[str, Any], factor: float) -> Advice:
    """Return the advice to multiply the learning rate."""
    words = {0.1: "Lower the learning rate to a tenth", 1 / 3: "Lower the learning rate to a third"}
    sentence = words.get(factor, f"Raise the learning rate {factor:g} times")
    return Advice(f"{sentence}.", f"optimizer.lr={config['optimizer']['lr'] * factor:.3g}")


def train_longer(config: dict[str, Any], epochs: int) -> Advice:
    """Return the advice to train for more epochs or iterations, whichever the run was given."""
    if config["train"]["epochs"] is None:
        return Advice("Train longer.", f"train.iterations={2 * config['train']['iterations']}")
    return Advice("Train for more epochs.", f"train.epochs={max(2 * epochs, 5)}")


def compare_lengths(config: dict[str, Any], epochs: int) -> Advice:
    """Return the advice to compare whole trainings whose rate stays high for longer, over seeds."""
    scheduler, seeds = config["scheduler"], "seed=0,1,2"
    if scheduler["name"] == "step":
        sizes = f"{scheduler['step_size']},{2 * scheduler['step_size']}"
        return Advice("Compare whole trainings with a slower schedule.", f"-m scheduler.step_size={sizes} {seeds}")
    if scheduler["name"] == "exponential":
        gammas = f"{scheduler['gamma']:g},{scheduler['gamma'] ** 0.5:.3g}"
        return Advice("Compare whole trainings with a slower schedule.", f"-m scheduler.gamma={gammas} {seeds}")
    key, length = "epochs", config["train"]["epochs"]
    if length is None:
        key, length = "iterations", config["train"]["iterations"]
    length = length or epochs
    return Advice("Compare whole trainings of two lengths.", f"-m train.{key}={length},{2 * length} {seeds}")


def strong_penalty(config: dict[str, Any]) -> tuple[str, Advice] | None:
    """Return a setting that keeps the network from fitting, with the advice to weaken it; None where there is none."""
    optimizer, model = config["optimizer"], config["model"]
    decay, l1 = optimizer["weight_decay"], optimizer["l1"]
    strength = optimizer["lr"] * decay if optimizer["name"] == "adamw" else decay
    limit = thresholds.STRONG_SHRINKING if optimizer["name"] == "adamw" else thresholds.STRONG_L2
    if l1 >= thresholds.STRONG_L1:
        return f"optimizer.l1 = {l1:g}", Advice("Use a hundredth of the penalty.", f"optimizer.l1={l1 / 100:.3g}")
    if strength >= limit:
        less = f"optimizer.weight_decay={decay / 100:.3g}"
        return f"optimizer.weight_decay = {decay:g}", Advice("Use a hundredth of the penalty.", less)
    if model["dropout"] >= thresholds.STRONG_DROPOUT:
        return f"model.dropout = {model['dropout']:g}", Advice("Drop fewer units.", "model.dropout=0.3")
    return None


def narrowest_layer(config: dict[str, Any]) -> float:
    """Return the number of units of the narrowest layer that the settings give; infinity where they give none."""
    model = config["model"]
    return float(min(model.get("hidden") or model.get("channels") or [math.inf]))


def enlarge_network(config: dict[str, Any]) -> Advice:
    """Return the advice to use a larger network."""
    model = config["model"]
    if model["name"] == "mlp":
        hidden = ",".join(str(max(4 * units, 64)) for units in model["hidden"])
        return Advice("Use a larger network.", f"model.hidden=[{hidden}]")
    if model["name"] == "cnn":
        channels = ",".join(str(max(2 * count, 16)) for count in model["channels"])
        return Advice("Use a larger network.", f"model.channels=[{channels}]")
    return Advice("Use a larger network.", "model=cnn")


def regularize(config: dict[str, Any], best_epoch: int) -> Advice:
    """Return the first remedy against overfitting that the run does not have yet."""
    if config["augment"]["name"] == "none":
        return Advice("Vary the training images, so that they cannot be learnt by heart.", "augment=shift")
    if not config["model"]["dropout"]:
        return Advice("Drop units, so that the network cannot rely on single ones.", "model.dropout=0.3")
    return stop_early(config, best_epoch)


def stop_early(config: dict[str, Any], best_epoch: int) -> Advice:
    """Return the advice to end training near its best epoch."""
    if config["stopping"]["name"] == "none":
        return Advice("Stop when validation does not improve any more.", "stopping=patience")
    return Advice("Train no longer than to the best epoch.", f"train.epochs={best_epoch}")
