"""The console script ``bestepoch <command> ...``, which runs ``python -m bestepoch.<command> ...``."""

from __future__ import annotations

import os
import runpy
import sys
from typing import NoReturn

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
        complete(arguments)
    elif not arguments or arguments[0] in ("-h", "--help"):
        print(list_commands())
    elif arguments[0] in COMMANDS:
        run_command(*arguments)
    else:
        hint = suggest(arguments[0], list(COMMANDS))
        exit_with_error(UsageError(f"{arguments[0]} is not a command. {hint}\n\n{list_commands()}"))


def run_command(name: str, *arguments: str) -> NoReturn:
    """Replace this process by ``python -m bestepoch.<name>``: launchers then find the same ``__main__`` either way."""
    os.execv(sys.executable, [sys.executable, "-m", f"bestepoch.{name}", *arguments])


def complete(arguments: list[str]) -> None:
    """Answer Hydra's shell completion: print its shell function, the commands that match, or a command's settings.

    The shell function asks ``bestepoch -sc query=bash`` and passes the typed line in COMP_LINE, in which Hydra expects
    the settings to follow the program.
    """
    program, _, typed = os.environ.get("COMP_LINE", "").partition(" ")
    name, space, settings = typed.lstrip().partition(" ")
    if "query=" not in "".join(arguments):  # to install or uninstall the function, the same for all commands
        sys.argv = ["bestepoch", *(word for word in arguments if word not in COMMANDS)]
        runpy.run_module("bestepoch.train", run_name="__main__")
    elif not space:
        print(" ".join(command for command in COMMANDS if command.startswith(name)))
    elif name in COMMANDS and name not in WITHOUT_SETTINGS:
        os.environ["COMP_LINE"] = f"{program} {settings}"
        run_command(name, *arguments)


if __name__ == "__main__":
    main()
