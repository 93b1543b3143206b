"""The console script ``bestepoch <command> ...``, which runs ``python -m bestepoch.<command> ...``."""

from __future__ import annotations

import os
import runpy
import sys

from bestepoch.base.config.messages import suggest
from bestepoch.base.errors import UsageError
from bestepoch.cli.help import COMMANDS, list_commands
from bestepoch.cli.launch import exit_with_error

COMPLETION_OPTIONS = ("-sc", "--shell-completion")
WITHOUT_SETTINGS = ("predict", "ui")  # commands that take no Hydra overrides


def main() -> None:
    """Run the command that the first argument names; without one, list the commands."""
    arguments = sys.argv[1:]
    if {*COMPLETION_OPTIONS} & {*arguments}:
        arguments = _complete(arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(list_commands())
    elif arguments[0] in COMMANDS:
        # in this process's place: launchers and workers then find the same ``__main__`` either way
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, "-m", f"bestepoch.{arguments[0]}", *arguments[1:]])
    elif arguments[0] != "":
        hint = suggest(arguments[0], list(COMMANDS))
        exit_with_error(UsageError(f"{arguments[0]} is not a command. {hint}\n\n{list_commands()}"))


def _complete(arguments: list[str]) -> list[str]:
    """Answer Hydra's shell completion, or return the arguments of the command that answers it.

    Hydra's shell function asks ``bestepoch -sc query=bash`` and passes the typed line in COMP_LINE, in which it
    expects the settings to follow the program.
    """
    program, _, typed = os.environ.get("COMP_LINE", "").partition(" ")
    name, space, settings = typed.lstrip().partition(" ")
    if "query=" not in "".join(arguments):
        sys.argv = ["bestepoch", *(word for word in arguments if word not in COMMANDS)]  # what the function completes
        runpy.run_module("bestepoch.train", run_name="__main__")
        return [""]
    if not space:
        print(" ".join(command for command in COMMANDS if command.startswith(name)))
        return [""]
    if name not in COMMANDS or name in WITHOUT_SETTINGS:
        return [""]
    os.environ["COMP_LINE"] = f"{program} {settings}"
    return [name, *arguments]


if __name__ == "__main__":
    main()
