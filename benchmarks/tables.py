"""The README's tables of the benchmarks, from benchmarks/results/; ``--write`` puts them there."""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
VARIANTS = {
    "plain": "plain PyTorch loop, no tracking",
    "lightning": "Lightning, its two loggers, every step",
    "by-hand": "`log_metric` + `add_scalar` by hand",
    "bestepoch-off": "bestepoch, tracking off",
    "bestepoch": "bestepoch, everything on",
}
OUTAGES = {
    "at hand": "at hand (SQLite)",
    "absent": "a server that is not there",
    "failing": "a server that answers 500",
    "hanging": "a server that never answers",
}
MODELS = {"mlp": "MLP", "cnn": "CNN"}


def tracking(results: dict[str, Any]) -> str:
    """Each variant's time, and its ratio to the plain loop of the same round."""
    models = {MODELS[name]: found for name, found in results["models"].items()}
    times = [found["ms"] for found in models.values()]
    lines = [["", *(f"{name}, batch {found['batch']}" for name, found in models.items())]]
    for variant, label in VARIANTS.items():
        if variant in times[0]:
            lines.append([label, *(_cell(ms, variant) for ms in times)])
        elif variant in results["missing"]:
            lines.append([label, *["not installed: `pip install '.[bench]'`" for _ in times]])
    if {"bestepoch", "bestepoch-off"} <= set(times[0]):
        lines.append(["**bestepoch, on ÷ off**", *(_ratio(ms["bestepoch"], ms["bestepoch-off"]) for ms in times)])
    counts = " or ".join(f"{found['iterations']:,} ({name})" for name, found in models.items())
    return _block(
        lines,
        f"Time an iteration, and × the plain loop: median of {len(times[0]['plain'])} paired rounds (smallest to "
        "largest). When the clock stops, MLflow (SQLite) and TensorBoard have the loss and the rate of each of "
        f"{counts} iterations. {results['data']}, {results['threads']} threads, {_machine(results)}. Made by "
        "`make bench`.",
    )


def flat(results: dict[str, Any]) -> str:
    """What recording costs early and late in a long run, and what it leaves on the disk."""
    total, size = results["iterations"], results["bytes"]
    lines = [[f"{total:,} iterations, no training", "at the beginning", "at the end", "ratio"]]
    for label, key, form in (
        ("training thread, µs an iteration", "recording", "{:.2f}"),
        ("all processes, delivery included: processor time, ms an iteration", "work", "{:.3f}"),
        ("all processes: memory, MB", "memory", "{:,.0f}"),
    ):
        early, late = results[key]
        lines.append([label, form.format(early), form.format(late), f"{late / early:.2f}"])
    pace = f"{results['rate']:,} iterations a second" if results["rate"] else "As fast as possible"
    return _block(
        lines,
        f"On disk, an iteration: {size['journal']:.0f} bytes in `iterations.csv`, {size['mlflow']:.0f} in MLflow's "
        f"database, {size['tensorboard']:.0f} in the event files. {pace}, peak memory {results['peak']:,.0f} MB, "
        f"{_machine(results)}. Made by `make bench`.",
    )


def outages(results: dict[str, Any]) -> str:
    """What training itself took while MLflow was in trouble."""
    seconds = results["seconds"]
    lines = [["MLflow", "training's own time", "÷ at hand"]]
    for name, label in OUTAGES.items():
        lines.append([label, f"{median(seconds[name]):.1f} s", _ratio(seconds[name], seconds["at hand"])])
    return _block(
        lines,
        f"{results['epochs']} epochs of the default experiment, {results['data']}, median of "
        f"{len(seconds['at hand'])} paired rounds (smallest to largest), {_machine(results)}. Made by `make bench`.",
    )


def kills(results: dict[str, Any]) -> str:
    """What was killed, how often, and what that cost."""
    lines = [["killed", "in the shell", "under `dvc repro`", "points lost", "points doubled", "weights that differ"]]
    for victim in sorted({name for way in results.values() for name in way["killed"]}):
        rows = [results[way]["killed"].get(victim, {}) for way in ("shell", "dvc repro")]
        costs = ("points_lost", "points_doubled", "weights_differ")
        counts = [*(row.get("kills", 0) for row in rows), *(sum(row.get(key, 0) for row in rows) for key in costs)]
        lines.append([victim, *map(str, counts)])
    during = Counter[str]()
    for way in results.values():
        during.update({phase: row["kills"] for phase, row in way["during"].items()})
    return _block(
        lines,
        f"{during.total()} kills at random moments (SIGKILL), up to ten of a run before it was let through: "
        f"{', '.join(f'{number} during {phase}' for phase, number in during.most_common())}. Made by "
        f"`BESTEPOCH_KILLS={during.total()} BESTEPOCH_KILLS_OUT=benchmarks/results/kills.json pytest "
        "tests/test_kills.py`.",
    )


def replaced(text: str) -> str:
    """``text`` with the tables of benchmarks/results/ between its markers. Raises ValueError where one is missing."""
    for name, table in TABLES.items():
        block = re.compile(rf"(<!-- bench:{name} -->\n).*?(<!-- /bench -->)", re.DOTALL)
        made = table(json.loads((HERE / "results" / f"{name}.json").read_text()))
        text, found = block.subn(lambda marks, made=made: f"{marks[1]}{made}{marks[2]}", text)
        if found != 1:
            raise ValueError(f"README.md has the block bench:{name} {found} times")
    return text


def _cell(ms: dict[str, list[float]], variant: str) -> str:
    time = f"{median(ms[variant]):.2f} ms"
    return time if variant == "plain" else f"{time}, {_ratio(ms[variant], ms['plain'])}"


def _ratio(ours: list[float], theirs: list[float]) -> str:
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return f"{median(ratios):.2f} × ({min(ratios):.2f} to {max(ratios):.2f})"


def _machine(results: dict[str, Any]) -> str:
    values = results["machine"]
    versions = [f"{name} {values[name]}" for name in ("python", "torch", "mlflow", "lightning") if name in values]
    return f"{values['cores']} cores ({values['processor']}), {', '.join(versions)}, {values['date']}"


def _block(lines: list[list[str]], note: str) -> str:
    rows = [f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in lines]
    rows.insert(1, "|---" * len(lines[0]) + "|")
    return "\n".join([*rows, "", *textwrap.wrap(note, 120, break_long_words=False, break_on_hyphens=False)]) + "\n"


TABLES = {"tracking": tracking, "flat": flat, "outages": outages, "kills": kills}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="replace the blocks in README.md")
    if parser.parse_args().write:
        README.write_text(replaced(README.read_text()))
    print(replaced("\n\n".join(f"<!-- bench:{name} -->\n<!-- /bench -->" for name in TABLES)))
