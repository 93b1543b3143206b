"""Print the help of a command: what it does, examples, the options of the config groups and the settings."""

from __future__ import annotations

import ast
import sys
from typing import TYPE_CHECKING

from bestepoch.base.config.compose import list_options
from bestepoch.base.paths import PACKAGE, project_root

if TYPE_CHECKING:
    from omegaconf import DictConfig

COMMANDS = ("fetch", "split", "train", "evaluate", "study", "promote", "predict", "sync", "ui")
EXAMPLES = {
    "fetch": ["", "data=fashion_mnist", "fetch.timeout=60"],
    "split": ["", "split.validation=6000", "split.folds=5 split.fold=0"],
    "train": ["train.epochs=3 optimizer.lr=0.005", "+experiment=quick", "-m optimizer=sgd,adamw seed=0,1,2"],
    "evaluate": ["", "run=runs/<name>", "run=runs/<name> selection.metric=val/accuracy"],
    "study": ["run=runs/sweeps/<name>", "run=[runs/<one>,runs/<two>]", "run=runs/sweeps/<name> selection.smoothing=3"],
    "promote": ["sweep=runs/sweeps/<name>", "sweep=runs/sweeps/<name> registry.enabled=false", "--cfg job"],
    "predict": ["image.png", "image.png --explain", "image.png model=models:/bestepoch-mnist@champion"],
    "sync": ["run=runs/<name>", "run=runs/<name> tracking.tensorboard=false", "run=runs/sweeps/<name>/<job>"],
    "ui": ["", "PORT=5001", "PORT=5001 TENSORBOARD_PORT=6007"],
}  # fmt: skip
NOTES = {
    "predict": "Each image is a PNG or JPEG of one digit, of any size.\n"
    "--explain writes what the network sees beside each image: image.28x28.png\n"
    "model= takes an address in MLflow, a folder such as runs/<name>/evaluate, or a model.pt. By default it is the\n"
    "champion of MLflow's registry, else results/evaluate/model.pt.",
    "ui": "Each server takes the first free port from 5000 (MLflow) and 6006 (TensorBoard) on, unless one is given.",
}


def list_commands() -> str:
    """Return one line for each command: its name and the first line of its docstring."""
    lines = [f"  {name:<9} {describe_command(name)}" for name in COMMANDS]
    return "\n".join(["bestepoch <command> [settings]", "", *lines, "", "bestepoch <command> --help says more."])


def describe_command(name: str) -> str:
    """Return the first line of a command's docstring, without importing the command."""
    docstring = ast.get_docstring(ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))) or ""
    return docstring.splitlines()[0].replace("``", "")


def print_usage(command: str) -> None:
    """Print what a command does, three examples, and how its arguments are given."""
    examples = [f"  bestepoch {command} {arguments}".rstrip() for arguments in EXAMPLES[command]]
    notes = ["", NOTES[command]] if command in NOTES else []
    lines = [f"bestepoch {command}: {describe_command(command)}", "", "Examples", *examples, *notes, ""]
    sys.stdout.write("\n".join(lines))


def print_help(command: str, config: DictConfig) -> None:
    """Print the help of a command that takes settings: usage, config groups, and all settings with their values.

    Args:
        command: name of the command.
        config: the configuration that the command line composes.
    """
    from omegaconf import OmegaConf

    print_usage(command)
    folders = sorted(path.name for path in (project_root() / "conf").iterdir() if path.is_dir())
    groups = [group for group in folders if group not in ("hydra", "local")]
    OmegaConf.resolve(config)
    choices = [f"{group}: {', '.join(list_options(group))}" for group in groups]
    sections = [
        "",
        "Options of each group (files in conf/), such as optimizer=sgd; a preset is chosen by +experiment=<name>",
        *choices,
        "",
        "Settings, such as train.epochs=3; -m trains each of several values: seed=0,1,2",
        OmegaConf.to_yaml(config),
        "--cfg job prints the settings alone; --hydra-help lists Hydra's own options.",
        "",
    ]
    sys.stdout.write("\n".join(sections))
