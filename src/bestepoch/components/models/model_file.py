"""Build the content of ``model.pt`` and restore a network from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bestepoch.base.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

MODEL_FILE = "model.pt"


def make_model_file(info: dict[str, Any], checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the content of ``model.pt``: the network of a checkpoint and the metadata to use and evaluate it.

    Args:
        info: content of the run's ``run.json``.
        checkpoint: content of the file with the weights after an epoch.

    Returns:
        ``network``, the weights; ``model``, ``shape``, ``classes``, ``pixel_mean`` and ``pixel_std``, from which
        `restore_network` builds the network; ``validation``, the per-example validation results;
        ``label_smoothing``, the smoothing in those losses; ``data`` and its ``checksum``; ``run`` and ``epoch``.
    """
    data, config = info["data"], info["config"]
    return {
        **{key: checkpoint[key] for key in ("network", "validation")},
        "model": config["model"],
        "label_smoothing": config["loss"]["label_smoothing"] if losses_are_smoothed(info) else 0.0,
        **{key: data[key] for key in ("shape", "classes", "pixel_mean", "pixel_std", "checksum")},
        "data": data["name"],
        "run": info["name"],
        "epoch": checkpoint["epoch"],
    }


def losses_are_smoothed(info: dict[str, Any]) -> bool:
    """Return whether the validation losses of a run include label smoothing, as earlier versions computed them."""
    return "eval_images" not in info["config"]["train"] and bool(info["config"]["loss"]["label_smoothing"])


def restore_network(contents: dict[str, Any]) -> nn.Module:
    """Build the network of a ``model.pt``: on the CPU, in evaluation mode, with test-time augmentation if it has any.

    Raises:
        UsageError: the network's config is not valid for this version of the code, or the weights are not its own.
    """
    from pydantic import TypeAdapter, ValidationError

    from bestepoch.base.config import groups
    from bestepoch.components.models import networks

    try:
        group_config: Any = TypeAdapter(groups.ModelChoice).validate_python(contents["model"])
    except ValidationError:
        raise UsageError(
            f"The network of run {contents['run']} has other settings than conf/model/{contents['model']['name']}.yaml "
            "by now: it was trained by other code. Check that out, or train it again: dvc repro"
        ) from None
    height, width = contents["shape"]
    network = networks.build_network(
        group_config, (height, width), contents["classes"], contents["pixel_mean"], contents["pixel_std"]
    )
    try:
        network.load_state_dict(contents["network"])
    except RuntimeError:  # a name or a shape is another one
        raise UsageError(
            f"The weights of run {contents['run']} after epoch {contents['epoch']} are not those of its network, "
            f"model={contents['model']['name']}: the file was damaged or replaced. Restore it, or train the run again"
        ) from None
    return networks.evaluation_network(group_config, network).eval()
