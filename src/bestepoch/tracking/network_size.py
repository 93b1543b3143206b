"""Count the weights of a run's network."""

from __future__ import annotations

from typing import Any


def count_weights(info: dict[str, Any]) -> int:
    """Return the number of trained weights of the run whose ``run.json`` is ``info``, without drawing any.

    Raises:
        UsageError: the images are too small for the network.
        ValidationError: the network's settings are those of another version of the code.
    """
    import torch
    from pydantic import TypeAdapter

    from bestepoch.base.config import groups
    from bestepoch.components.models import networks

    data = info["data"]
    config: Any = TypeAdapter(groups.ModelChoice).validate_python(info["config"]["model"])
    height, width = data["shape"]
    with torch.device("meta"):
        network = networks.build_network(
            config, (height, width), data["classes"], data["pixel_mean"], data["pixel_std"]
        )
    return sum(weights.numel() for weights in network.parameters())
