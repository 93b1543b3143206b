"""What a run says of itself in Markdown: on its page in MLflow, and in TensorBoard's text tab."""

from __future__ import annotations

from typing import Any

from bestepoch.base.config import schema
from bestepoch.components.schedules.plan import make_plan


def describe_run(info: dict[str, Any], metrics: dict[str, Any] | None = None) -> str:
    """The results, the verdict, the arithmetic, and the command that gives the same run again.

    Args:
        info: what ``run.json`` holds.
        metrics: what ``metrics.json`` holds, once it is evaluated.
    """
    parts = [] if metrics is None else [_describe_results(metrics)]
    if (found := info.get("verdict")) is not None:
        advice = f"{found['suggestion']} `{found['override']}`"
        parts.append(f"**{found['kind'].capitalize()}.** {found['sentence']}\n\nTry: {advice}")
    elif info["status"] != "finished":
        why = f": {info['reason']}" if info.get("reason") else ""
        parts.append(f"**{info['status'].capitalize()}**{why}")
    plan = make_plan(info["data"]["sizes"]["train"], schema.TrainConfig(**info["config"]["train"]))
    parts.append("\n\n".join(plan.describe().splitlines()))
    if "stopped" in info:
        parts.append(f"Stopped early after epoch {info['stopped']['epoch']}: {info['stopped']['reason']}.")
    parts.append(f"The same run again:\n\n```\n{info['command']}\n```")
    if told := _describe_code(info["git"]):
        parts.append(told)
    return "\n\n".join(parts)


def _describe_results(metrics: dict[str, Any]) -> str:
    low, high = (f"{100 * metrics[f'test_accuracy_{end}']:.2f}" for end in ("low", "high"))
    return (
        f"**Epoch {metrics['best_epoch']} of {metrics['last_epoch']}** is best: validation loss "
        f"{metrics['val_loss']:.4f}, accuracy {metrics['val_accuracy']:.2%}. Test accuracy "
        f"**{metrics['test_accuracy']:.2%}** (95% interval {low} to {high})."
    )


def _describe_code(git: dict[str, Any]) -> str:
    if git["commit"] is None:
        return ""
    name = f"`{git['commit'][:10]}`"
    linked = f"[{name}]({git['url']})" if git.get("url") else name
    return f"Code: {linked}{', with uncommitted changes' if git['dirty'] else ''}"
