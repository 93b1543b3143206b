"""The benchmarks' tables in README.md and docs/, from benchmarks/results/; ``--write`` puts them there."""

from __future__ import annotations

import argparse
import itertools
import json
import re
import textwrap
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
PERFORMANCE, SCALE, RECIPE = (HERE.parent / "docs" / f"{name}.md" for name in ("performance", "scale", "recipe"))
VARIANTS = {
    "plain": "plain PyTorch loop, no tracking",
    "dataloader": "the same, a DataLoader with a process a core, transforms an image at a time",
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
VICTIMS = {
    "dvc": "`dvc`",
    "dvc and its command": "`dvc` and its stage",
    "its command": "the stage under `dvc`",
    "everything": "all processes",
    "the courier": "the tracking worker",
}
REPEATED = ("seed", "split.fold")  # what a search varies only to see how far one training can be trusted
MODELS = {"mlp": "MLP", "cnn": "CNN"}


def tracking(results: dict[str, Any], out: str = "") -> str:
    """Each variant's time, and its ratio to the plain loop of the same round; ``out``: results of another name."""
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
    counts = " or ".join(f"{found['iterations']:,} ({name}{_trained_in(found)})" for name, found in models.items())
    rounds, measured = len(times[0]["plain"]), {*times[0], *results["missing"]}
    options = " ".join(f"--epochs-{name} {found['epochs']}" for name, found in results["models"].items())
    if len(models) < len(MODELS):
        options += f" --models {' '.join(results['models'])}"
    if len(measured) < len(VARIANTS):
        options += f" --variants {' '.join(name for name in VARIANTS if name in measured - {'plain'})}"
    return _block(
        lines,
        f"Time an iteration, and × the plain loop: median of {rounds} paired rounds (smallest to "
        "largest). When the clock stops, MLflow (SQLite) and TensorBoard have the loss and the rate of each of "
        f"{counts} iterations. {results['data']}, {results['threads']} threads, {_machine(results)}. "
        f"Made by `python benchmarks/tracking.py --rounds {rounds} {options}{_out(out)}`.",
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


def sweeps(results: dict[str, Any]) -> str:
    """What a sweep costs beyond training, and two jobs at once."""
    beyond, wall = results["beyond"], results["wall"]
    spread = f"{median(beyond):.2f} s ({min(beyond):.2f} to {max(beyond):.2f})"
    label = f"two jobs of the default experiment, {results['epochs']} epochs"
    lines = [
        ["sweep", "seconds", "÷ one after the other"],
        ["a job in one process, beyond its training", spread, "–"],
        [f"{label}, one after the other", f"{median(wall['basic']):.1f} s", _ratio(wall["basic"], wall["basic"])],
        [f"{label}, at once by joblib", f"{median(wall['joblib']):.1f} s", _ratio(wall["joblib"], wall["basic"])],
    ]
    return _block(
        lines,
        f"Beyond training: validation, checkpoints, MLflow, TensorBoard and the rest, from the difference of sweeps of "
        f"{results['jobs']} and 2 jobs (MLP, an epoch each). {results['data']}, median of {len(beyond)} rounds "
        f"(smallest to largest), {_machine(results)}. Made by `make bench`.",
    )


def default(results: dict[str, Any]) -> str:
    """What the default experiment reaches and takes; beside the example that most people begin with, where measured."""
    runs, theirs = results["runs"], results["theirs"]
    reached = [run["test_accuracy"] for run in runs]
    passed = [
        next((end for end, there in zip(run["ends"], run["epochs_test_accuracy"], strict=True) if there >= 0.99), None)
        for run in runs
    ]
    ours = [
        f"{mean(reached):.2%} ({', '.join(f'{value:.2%}' for value in reached)})",
        _seconds([run["seconds"] for run in runs]),
        _seconds([seconds for seconds in passed if seconds is not None]) if None not in passed else "not reached",
        _seconds([run["start"] for run in runs]),
    ]
    labels = ["test accuracy", "the training stage, as a command", "99 % test accuracy after", "first iteration after"]
    name = results["experiment"]
    lines = [["", f"`+experiment={name}`" if name else "ours"], *map(list, zip(labels, ours, strict=True))]
    if theirs:
        lines[0] += ["the example", "ours ÷ its"]
        lines[1] += ["99.19 %, as published", ""]
        for line, seconds, epochs in ((lines[2], [run["seconds"] for run in runs], 14), (lines[3], passed, 4)):
            line += [f"{epochs} epochs: {epochs * median(theirs):.0f} s", ""]
            if None not in seconds:
                ratios = [epochs * a / b for a, b in zip(theirs, seconds, strict=True)]
                line[-1] = f"1/{median(ratios):.0f} (1/{max(ratios):.0f} to 1/{min(ratios):.0f})"
        lines[4] += ["", ""]
    seeds = " ".join(str(run["seed"]) for run in runs)
    options = f"--seeds {seeds}" + f" --experiment {name}{_out(name)}" * bool(name)
    options += " --no-theirs" * (not theirs)
    return _block(
        lines,
        f"Mean of the seeds {seeds} (each), and median times (smallest to largest). {results['data']}"
        f"{_trained_in(runs[0])}, "
        f"{_machine(results)}. Made by `python benchmarks/default.py {options}`.",
    )


def _out(name: str) -> str:
    """What is typed so that results get a name of their own; without, they replace the ones named as the benchmark."""
    return f" --out benchmarks/results/{name}.json" * bool(name)


def _trained_in(results: dict[str, Any]) -> str:
    return "" if results["precision"] == "float32" else f", {results['precision']}"


def _seconds(values: list[float]) -> str:
    return f"{median(values):.1f} s ({min(values):.1f} to {max(values):.1f})"


def _spread(values: list[float], form: str) -> str:
    return f"{form} ({form} to {form})".format(median(values), min(values), max(values))


def speed(results: dict[str, Any]) -> str:
    """How near the default experiment comes to what the machine can do, and how that scales."""
    pace, epoch, many = results["images_a_second"], results["seconds_an_epoch"], results["epochs"]

    few, most = (list(epoch)[i] for i in (0, -1))
    each = [median(epoch[n]) / int(n) for n in (few, most)]
    half = len(many["seconds"]) // 2
    peaks = [size / 1e6 for size in many["memory"]]
    late, early = median(many["seconds"][half:]), median(many["seconds"][1 : half + 1])
    lines = [
        ["the default experiment's updates", ""],
        ["FLOP an image, forward and backward", f"{results['flops'] / 1e6:.1f} million"],
        ["plain matrix product, GFLOP/s", _spread([limit / 1e9 for limit in results["limit"]], "{:,.0f}")],
        [
            "training, GFLOP/s",
            _spread([a * b / 1e9 for a, b in zip(results["limit"], results["share"], strict=True)], "{:,.0f}"),
        ],
        ["share of it that training reaches", _spread(results["share"], "{:.0%}")],
        *(
            [f"images a second, batches of {results['batch']}, {way}", _spread(v, "{:,.0f}")]
            for way, v in results["ways"].items()
        ),
        *([f"images a second, batches of {int(size):,}", _spread(v, "{:,.0f}")] for size, v in pace.items()),
        [f"µs an image, an epoch of {int(few):,} and of {int(most):,}", " and ".join(f"{s * 1e6:.1f}" for s in each)],
        [f"{many['images']:,} images, everything on: an epoch after {half}, ÷ one before", f"{late / early:.2f}"],
        [f"peak memory of {len(many['seconds'])} epochs, and of 3", f"{peaks[1]:,.0f} MB and {peaks[0]:,.0f} MB"],
    ]
    return _block(
        lines,
        f"{results['data']}, {results['threads']} threads{_trained_in(results)}, median of "
        f"{len(results['share'])} rounds (smallest to largest), {_machine(results)}. Made by "
        f"`python benchmarks/speed.py --picture docs/speed.png`.",
    )


def gpu(results: dict[str, Any]) -> str:
    """What whole trainings on a GPU reach and take."""
    lines: list[list[str]] = [["on a GPU"], ["test accuracy"], ["the training stage, as a command"], ["of it start-up"]]
    lines += [["of it epochs"], ["99.5 % test accuracy after"], ["images a second, everything on"]]
    for given, runs in results["experiments"].items():
        reached = [run["test_accuracy"] for run in runs]
        passed = [
            next(end for end, there in zip(run["ends"], run["epochs_test_accuracy"], strict=True) if there >= 0.995)
            for run in runs
            if max(run["epochs_test_accuracy"]) >= 0.995
        ]
        after = (
            _seconds(passed) + f", {len(passed)} of {len(runs)} seeds" * (len(passed) < len(runs)) if passed else "–"
        )
        column = [
            f"`{given}`" if given else "default",
            f"{mean(reached):.2%} ({min(reached):.2%} to {max(reached):.2%})",
            _seconds([run["seconds"] for run in runs]),
            _seconds([run["start"] for run in runs]),
            _seconds([run["ends"][-1] - run["start"] for run in runs]),
            after,
            _spread([run["images_a_second"] for run in runs], "{:,.0f}"),
        ]
        for line, cell in zip(lines, column, strict=True):
            line.append(cell)
    runs = next(iter(results["experiments"].values()))
    return _block(
        lines,
        f"Mean and extremes of {len(runs)} seeds, and median times (smallest to largest). {results['data']}"
        f"{_trained_in(results)}, {_machine(results)}. Made by {_made_by_gpu(results)}.",
    )


def _made_by_gpu(results: dict[str, Any]) -> str:
    seeds = [str(run["seed"]) for run in next(iter(results["experiments"].values()), [])]
    return f"`python benchmarks/gpu.py --seeds {' '.join(seeds)}`"


def gpu_updates(results: dict[str, Any]) -> str:
    """How an update on a GPU is best made, and how far it is from what the GPU could do."""
    batch, precision = results["batch"], results["precision"]
    replayed = results["ways"][f"{precision}, replayed"]
    of_experiments = next(iter(results["experiments"].values()), [])
    whole = [run["images_a_second"] / median(replayed) for run in of_experiments]
    seconds = batch / median(replayed)
    by_flop, by_bytes = batch * results["flops"] / results["limit"], results["bytes"] / results["copy"]
    lines = [["the default experiment's updates on a GPU", ""]]
    for way, values in results["ways"].items():
        lines.append([f"images a second, batches of {batch}, {way}", _spread(values, "{:,.0f}")])
    if whole:
        lines.append([f"images a second, a whole training ÷ {precision}, replayed", _spread(whole, "{:.2f}")])
    for size, values in results["images_a_second"].items():
        if int(size) != batch:  # which is above
            lines.append([f"images a second, batches of {int(size):,}", _spread(values, "{:,.0f}")])
    lines.append([f"an update with a batch of {batch}", f"{seconds * 1e6:.0f} µs"])
    if results["kernels"]:
        share = results["busy"] / 1e6 / seconds
        lines.append(["its kernels, and the share of the time that they run", f"{results['kernels']:.0f}, {share:.0%}"])
    lines += [
        [f"its floor by FLOP ({results['limit'] / 1e12:,.3g} TFLOP/s, a matrix product)", f"{by_flop * 1e6:.1f} µs"],
        [f"its floor by bytes ({results['copy'] / 1e12:,.2g} TB/s, a copy)", f"{by_bytes * 1e6:.1f} µs"],
    ]
    return _block(
        lines,
        f"Nothing recorded but in whole trainings; {precision}, replayed, where nothing else is said. "
        f"{results['data']}, median of {len(replayed)} rounds (smallest to largest), {_machine(results)}. Made by "
        f"{_made_by_gpu(results)}.",
    )


def recipe(results: dict[str, Any], name: str = "default") -> str:
    """Errors on the images held out, and seconds, of each setting that a search tried; the mean over its seeds."""
    search = results["searches"][name]
    jobs = search["jobs"]
    tried = {
        key: dict.fromkeys(job["settings"][key] for job in jobs) for key in jobs[0]["settings"] if key not in REPEATED
    }
    down, across = list(tried)[2:], list(tried)[:2]
    corner = ", ".join(f"`{key}`" for key in down)
    columns = [*itertools.product(*(tried[key] for key in across))]
    lines = [[corner, *(", ".join(f"`{k}={v}`" for k, v in zip(across, c, strict=True)) for c in columns)]]

    places = 0 if median(job["seconds"] for job in jobs) > 10 else 1

    def cell(*wanted: tuple[str, str]) -> str:
        found = [job for job in jobs if all(job["settings"][key] == value for key, value in wanted)]
        errors, seconds = (mean(job[key] for job in found) for key in ("errors", "seconds"))
        return f"{round(errors, 1):g}, {seconds:.{places}f} s"

    pairs = [[*zip(across, column, strict=True)] for column in columns]
    for row in itertools.product(*(tried[key] for key in down)):
        here = [*zip(down, row, strict=True)]
        lines.append([", ".join(f"`{value}`" for value in row), *(cell(*here, *there) for there in pairs)])
        if down:
            lines[-1].append(cell(*here))
    if down:
        lines[0].append("mean")
        lines.append(["**mean**", *(cell(*there) for there in pairs), cell()])
    seeds, folds = (len({job["settings"].get(key) for job in jobs}) for key in REPEATED)
    repeated = "one seed" if seeds == 1 else f"mean of {seeds} seeds"
    if folds > 1:
        repeated = f"mean of {folds} folds, which hold out each training image once"
    return _block(
        lines,
        f"Errors on {jobs[0]['held_out']:,} training images held out, after the last epoch, and seconds without "
        f"start-up; two jobs at once, one thread each; {repeated}. {results['data']}{_trained_in(search)}, "
        f"{_machine(search)}. Made by `python benchmarks/recipe.py`: `{search['command']}`",
    )


def kills(results: dict[str, Any]) -> str:
    """What was killed, how often, and what that cost."""
    lines = [["killed", "in the shell", "under `dvc repro`", "points lost", "points doubled", "weights that differ"]]
    for victim in sorted({name for way in results.values() for name in way["killed"]}):
        rows = [results[way]["killed"].get(victim, {}) for way in ("shell", "dvc repro")]
        costs = ("points_lost", "points_doubled", "weights_differ")
        counts = [*(row.get("kills", 0) for row in rows), *(sum(row.get(key, 0) for row in rows) for key in costs)]
        lines.append([VICTIMS.get(victim, victim), *map(str, counts)])
    during = Counter[str]()
    for way in results.values():
        during.update({phase: row["kills"] for phase, row in way["during"].items()})
    return _block(
        lines,
        f"{during.total()} kills at random moments (SIGKILL), up to ten of a run before it was let through: "
        f"{', '.join(f'{number} during {phase}' for phase, number in during.most_common())}. Made by "
        f"`BESTEPOCH_KILLS={during.total()} BESTEPOCH_KILLS_OUT=benchmarks/results/kills.json pytest -k "
        "test_kills`.",
    )


def scale(results: dict[str, Any]) -> str:
    """What was measured for docs/scale.md."""
    runs, files = f"{results['runs']:,}", results["files"]
    lines = [["", "median", "smallest to largest"]]

    def several(label: str, form: str, values: list[float]) -> None:
        lines.append([label, form.format(median(values)), " to ".join(form.format(f(values)) for f in (min, max))])

    for name, values in results["points"].items():
        several(f"points a second: {name}", "{:,.0f}", values)
    for name, values in results["request"].items():
        several(f"smallest request, {name}, ms", "{:,.0f}", values)
    for name, values in results["make"].items():
        several(f"a run with parameters, tags and ten points: {name}, s", "{:.2f}", values)
    for name, values in results["list"].items():
        several(f"`search_runs` of {runs} runs: {name}, s", "{:.2f}", values)
    for name, values in results["start"].items():
        several(f"start where {runs} runs lie: {name}, s", "{:.2f}", values)
    for name, values in results["memory"].items():
        several(f"memory at the peak, bytes: {name}", "{:,.0f}", values)
    for name, label in (("sqlite", "SQLite"), ("postgres", "PostgreSQL")):
        lines.append([f"{label}, bytes a point", f"{results['bytes_point'][name]:,.0f}", "–"])
        lines.append([f"{label}, bytes a run with ten points", f"{results['bytes_run'][name]:,.0f}", "–"])
    epochs = f"default experiment, {files['epochs']} epochs, kB"
    lines.append([f"{epochs}: `runs/<name>/`", f"{files['runs'] / 1e3:,.0f}", "–"])
    lines.append([f"{epochs}: of it, an epoch's weights", f"{files['weights'] / 1e3:,.0f}", "–"])
    lines.append([f"{epochs}: artifacts in MLflow", f"{files['artifacts'] / 1e3:,.0f}", "–"])
    return _block(
        lines,
        f"{len(results['load'])} rounds on a machine that did other work too: load {min(results['load'])} to "
        f"{max(results['load'])} on {_machine(results)}. Images of 28 × 28. Made by `python benchmarks/scale.py`.",
    )


def sums(results: dict[str, Any]) -> str:
    """What follows from that, step by step."""
    tracked, flat_run = (json.loads((HERE / "results" / f"{name}.json").read_text()) for name in ("tracking", "flat"))
    points = {name: median(values) for name, values in results["points"].items()}
    request = {name: median(values) for name, values in results["request"].items()}
    memory = {name.partition(",")[0]: median(values) for name, values in results["memory"].items()}
    files, size, run = results["files"], results["bytes_point"], results["bytes_run"]
    server = points["PostgreSQL, log_batch by the server, 4 runs at once"]
    lines = [["question", "sum", "answer"]]

    def add(question: str, text: str, value: float, unit: str = "") -> float:
        lines.append([question, text, f"{value:,.{0 if value >= 10 else 1}f} {unit}".rstrip()])
        return value

    lines.append(["**1,000 jobs**", "", ""])
    rate = {}
    for name, label in MODELS.items():
        ms = median(tracked["models"][name]["ms"]["bestepoch"])
        rate[name] = add(f"points a second of one {label} run", f"2 ÷ {ms:.2f} ms", 2000 / ms)
    for name, label in MODELS.items():
        add(f"{label} runs at once by the server", f"{server:,.0f} ÷ {rate[name]:,.0f}", server / rate[name])
    sqlite = points["SQLite, log_batch"]
    add("MLP runs at once into SQLite", f"{sqlite:,.0f} ÷ {rate['mlp']:,.0f}", sqlite / rate["mlp"])
    for name, ms in request.items():
        add(f"runs at least, a request every 2 s, {name}", f"2,000 ms ÷ {ms:,.0f} ms", 2000 / ms)
    for name, label in (("runs", "`runs/`"), ("artifacts", "the bucket")):
        add(f"{label} holds", f"1,000 × {files[name] / 1e3:,.0f} kB", files[name] / 1e6, "GB")
    add(
        "PostgreSQL holds of them, ten points each",
        f"1,000 × {run['postgres']:,.0f} bytes",
        run["postgres"] / 1e3,
        "MB",
    )
    for name, seconds in results["start"].items():
        each = median(seconds)
        add(f"1,000 starts {name}", f"1,000 × {each:.2f} s ÷ 2 (as many lie there on average)", 500 * each / 60, "min")

    lines.append(["**1,000,000,000 points**", "", ""])
    for name, label in (("sqlite", "SQLite"), ("postgres", "PostgreSQL")):
        add(f"{label} holds", f"10⁹ × {size[name]:,.0f} bytes", size[name], "GB")
    for name, label in (("journal", "the journals hold"), ("tensorboard", "the event files hold")):
        add(label, f"10⁹ ÷ 2 × {flat_run['bytes'][name]:.0f} bytes", flat_run["bytes"][name] / 2, "GB")
    for name in ("SQLite, log_batch", "PostgreSQL, in bulk", "PostgreSQL, log_batch by the server, 4 runs at once"):
        add(f"time to write: {name}", f"10⁹ ÷ {points[name]:,.0f}", 1e9 / points[name] / 3600, "hours")
    ms = 2000 / rate["mlp"]
    add("time that training takes to make them (MLP, one core after the other)",
        f"10⁹ ÷ 2 × {ms:.2f} ms", 5e8 * ms / 3.6e6, "hours")  # fmt: skip
    add("iterations of one run that `evaluate` reads in 8 GB", f"8·10⁹ ÷ {memory['evaluate']:,.0f} bytes",
        8e3 / memory["evaluate"], "million")  # fmt: skip

    lines.append(["**Data beyond memory**", "", ""])
    for name in ("split", "training"):
        each = memory[name]
        add(f"images of 28 × 28 in 16 GB: {name}", f"16·10⁹ ÷ {each:,.0f} bytes", 16e3 / each, "million")
    wide = 224 * 224 * 3
    each = memory["training"] + wide - 28 * 28
    add("images of 224 × 224 × 3 in 16 GB: training", f"16·10⁹ ÷ ({memory['training']:,.0f} − 784 + {wide:,}) bytes",
        16e6 / each, "thousand")  # fmt: skip
    add("ImageNet's 1,281,167 training images", f"1,281,167 × {wide:,} bytes", 1281167 * wide / 1e9, "GB")
    return _block(lines, "1 GB is 10⁹ bytes. Time an iteration and bytes of files: the tables of performance.md.")


def replaced(page: Path, text: str | None = None) -> str:
    """A page, or ``text`` in its place, with its tables between their markers. Raises ValueError without them."""
    text = page.read_text(encoding="utf-8") if text is None else text
    for name, (source, table) in PAGES[page].items():
        block = re.compile(rf"(<!-- bench:{name} -->\n).*?(<!-- /bench -->)", re.DOTALL)
        made = table(json.loads((HERE / "results" / f"{source}.json").read_text()))
        text, found = block.subn(lambda marks, made=made: f"{marks[1]}{made}{marks[2]}", text)
        if found != 1:
            raise ValueError(f"{page.name} has the block bench:{name} {found} times")
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
    device = f"{values['gpu']}, " if "gpu" in values else ""
    return f"{device}{values['cores']} cores ({values['processor']}), {', '.join(versions)}, {values['date']}"


def _block(lines: list[list[str]], note: str) -> str:
    rows = [f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |") for cells in lines]
    rows.insert(1, "|---" * len(lines[0]) + "|")
    return "\n".join([*rows, "", *textwrap.wrap(note, 120, break_long_words=False, break_on_hyphens=False)]) + "\n"


# the tables of each page: the file of results that each is made from, and what makes it
PAGES: dict[Path, dict[str, tuple[str, Callable[[dict[str, Any]], str]]]] = {
    README: {"default": ("default", default)},
    PERFORMANCE: {made.__name__: (made.__name__, made) for made in (speed, tracking, flat, outages, sweeps, kills)}
    | {name: (name, default) for name in ("quick", "accurate")}
    | {"tracking-cnn": ("tracking-cnn", partial(tracking, out="tracking-cnn"))}
    | {"gpu": ("gpu", gpu), "gpu-updates": ("gpu", gpu_updates)},
    SCALE: {"scale": ("scale", scale), "sums": ("scale", sums)},
    RECIPE: {
        f"recipe-{name}": ("recipe", partial(recipe, name=name))
        for name in ("choices", "pooled", "strided", "default", "quick")
    },
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="replace the blocks in the pages")
    write = parser.parse_args().write
    for page, tables in PAGES.items():
        if write:
            page.write_text(replaced(page))
        print(replaced(page, "\n\n".join(f"<!-- bench:{name} -->\n<!-- /bench -->" for name in tables)))
