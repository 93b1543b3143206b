"""Plot the jobs of a sweep: the ranking metric by epoch."""

from __future__ import annotations

from typing import Any

from bestepoch.base.paths import main_checkout
from bestepoch.runs.tables import read_rows
from bestepoch.sweeps.leaderboard import Leaderboard, shorten_setting

MAX_NAMED = 8  # settings with a color and a name; the others are grey
LONGEST_NAME = 60


def plot_sweep(table: Leaderboard) -> Any:
    """Plot each finished job's metric against the epoch, with a dot at its best epoch; replicates share a color."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes: Any = figure.subplots()
    for i, group in enumerate(table.groups):
        color = f"C{i}" if i < MAX_NAMED else "0.8"
        label = f"{shorten_setting(group.name)[:LONGEST_NAME]}  {group.mean:.4g}" + (
            f" ({len(group.jobs)})" if table.repeated else ""
        )
        for job in group.jobs:
            rows = read_rows(main_checkout() / job["run"] / "epochs.csv")
            style = {"color": color, "zorder": 2 + (i < MAX_NAMED), "linewidth": 1.2}
            axes.plot([row["epoch"] for row in rows], [row[table.metric] for row in rows], label=label, **style)
            axes.plot(job["best_epoch"], job["metric"], "o", markersize=4, color=color, zorder=style["zorder"])
            label = "_"  # one entry of the legend for a group
    axes.set_xlabel("epoch")
    axes.set_ylabel(table.metric)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[:MAX_NAMED], labels[:MAX_NAMED], loc="outside lower left", fontsize=8, frameon=False)
    return figure
