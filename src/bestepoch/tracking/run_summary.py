"""Summarize a run in Markdown for its MLflow description and TensorBoard's text tab."""

from __future__ import annotations

from typing import Any

from bestepoch.components.schedules.plan import plan_of_run


def describe_run(info: dict[str, Any], metrics: dict[str, Any] | None = None) -> str:
    """Return a run's results, diagnosis, training plan, command and code version as Markdown.

    Args:
        info: content of ``run.json``.
        metrics: content of ``metrics.json`` if the run has been evaluated.
    """
    parts = [] if metrics is None else [_describe_results(metrics)]
    if info["status"] != "finished":
        reason = f": {info['reason']}" if info.get("reason") else ""
        parts.append(f"**{info['status'].capitalize()}**{reason}")
    if (verdict := info.get("verdict")) is not None:
        word, _, reason = verdict["sentence"].partition(": ")
        advice = f"`{verdict['override']}`" if verdict["override"] else ""
        parts.append(f"**{word[:1].upper()}{word[1:]}:** {reason}\n\n{verdict['suggestion']} {advice}".rstrip())
    plan = plan_of_run(info)
    parts.append("\n\n".join(plan.describe().splitlines()))
    if "stopped" in info:
        parts.append(f"Stopped early after epoch {info['stopped']['epoch']}: {info['stopped']['reason']}.")
    parts.append(f"The same run again:\n\n```\n{info.get('again') or info['command']}\n```")
    if info["git"]["commit"] is not None:
        parts.append(_describe_code(info["git"]))
    return "\n\n".join(parts)


def _describe_results(metrics: dict[str, Any]) -> str:
    low, high = (f"{100 * metrics[f'test_accuracy_{end}']:.2f}" for end in ("low", "high"))
    return (
        f"**Epoch {metrics['best_epoch']} of {metrics['last_epoch']}** is best: validation loss "
        f"{metrics['val_loss']:.4f}, accuracy {metrics['val_accuracy']:.2%}. Test accuracy "
        f"**{metrics['test_accuracy']:.2%}** (95% interval {low} to {high})."
    )


def _describe_code(git: dict[str, Any]) -> str:
    name = f"`{git['commit'][:10]}`"
    link = f"[{name}]({git['url']})" if git.get("url") else name
    return f"Code: {link}{', with uncommitted changes' if git['dirty'] else ''}"
