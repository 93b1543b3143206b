"""The chosen epoch's network: what ``model.pt`` holds of it, and how it is made again of that."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestepoch.base.errors import UsageError
from bestepoch.runs.run import Run

if TYPE_CHECKING:
    from torch import nn

MODEL_FILE = "model.pt"


def make_model_file(run: Run, source: Path, epoch: int) -> dict[str, Any]:
    """What ``model.pt`` holds: a run's network as it was after ``epoch``, and all that it takes to use and judge it.

    Returns:
        ``network``, the weights, and what builds it: ``model``, ``shape``, ``classes``, ``pixel_mean``, ``pixel_std``;
        ``validation``, how each validation image fared, by a loss with ``label_smoothing``; ``data`` and its
        ``checksum``; ``run`` and ``epoch``.
    """
    from bestepoch.runs import checkpoint

    data, state = run.info["data"], checkpoint.load(checkpoint.weights_path(source, epoch))
    return {
        **{key: state[key] for key in ("network", "validation")},
        "model": run.info["config"]["model"],
        "label_smoothing": run.info["config"]["loss"]["label_smoothing"],
        **{key: data[key] for key in ("shape", "classes", "pixel_mean", "pixel_std", "checksum")},
        "data": data["name"],
        "run": run.name,
        "epoch": epoch,
    }


def restore_network(chosen: dict[str, Any]) -> nn.Module:
    """What predicts by the network of a ``model.pt``: on the CPU, in evaluation mode, with its views if it has any.

    Raises:
        UsageError: the code that trained it had other settings for such a network.
    """
    from pydantic import TypeAdapter, ValidationError

    from bestepoch.base.config import groups
    from bestepoch.components.models import networks

    try:
        group_config: Any = TypeAdapter(groups.ModelChoice).validate_python(chosen["model"])
    except ValidationError:
        raise UsageError(
            f"The network of run {chosen['run']} has other settings than conf/model/{chosen['model']['name']}.yaml by "
            "now: it was trained by other code. Check that out, or train it again: dvc repro"
        ) from None
    height, width = chosen["shape"]
    network = networks.build_network(
        group_config, (height, width), chosen["classes"], chosen["pixel_mean"], chosen["pixel_std"]
    )
    network.load_state_dict(chosen["network"])
    return networks.evaluation_network(group_config, network).eval()
