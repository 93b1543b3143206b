"""Run a command: a Hydra application whose errors are one readable message and exit code 2."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol

from bestepoch.base import files, paths, private_api
from bestepoch.base.config import compose
from bestepoch.base.config.local import PATH as LOCAL_PATH
from bestepoch.base.config.local import read_local_keys
from bestepoch.base.config.schema import Config
from bestepoch.base.errors import UsageError
from bestepoch.base.interrupt import raise_on_interrupt
from bestepoch.base.rank import read_world_size, wait_for_rank0_error
from bestepoch.cli.help import print_help, print_usage
from bestepoch.cli.process import configure_process

if TYPE_CHECKING:
    from argparse import Namespace

    from omegaconf import DictConfig

log = logging.getLogger("bestepoch")
USAGE_EXIT = 2


class Multirun(Protocol):
    """What `launch` needs to know of a multirun. Launchers pickle the object for the processes of the jobs."""

    added_overrides: Sequence[str]
    """Overrides that Hydra gets besides those of the command line."""

    def enter(self) -> None:
        """Prepare the process of a job; called before its configuration is read."""

    def run_job(self, config: Config) -> float:
        """Run one job and return the value that a sweeper optimises."""

    def session(self) -> contextlib.AbstractContextManager[None]:
        """Return the context in which the process that started the multirun runs all jobs."""


MultirunFactory = Callable[[list[str], Config], Multirun]


def launch(task: Callable[[Config], float | None], multirun: MultirunFactory | None = None) -> None:
    """Compose the configuration of ``conf/``, ``params.yaml`` and the command line, and run ``task`` with it.

    Hydra's own options (``--help``, ``--cfg job``, ``--multirun`` ...) work as in any Hydra application.

    Args:
        task: the command.
        multirun: makes the multirun of a command line with ``-m`` from its overrides and the configuration of its
            first job. None refuses ``-m``.
    """
    configure_process()
    import hydra
    from hydra.errors import CompactHydraException

    arguments = private_api.hydra_arguments()
    jobs: Multirun | None = None

    def run(cfg: DictConfig) -> float | None:
        configure_process()  # the processes of a launcher start here
        if jobs is not None:
            jobs.enter()
        try:
            with _explain_disk_errors():
                config = compose.validate(cfg)
                if jobs is not None:
                    return jobs.run_job(config)
                with raise_on_interrupt():
                    return task(config)
        except UsageError as error:
            if jobs is None:
                return exit_with_error(error)
            raise CompactHydraException(str(error)) from None  # Hydra shows its message without a traceback

    session: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    try:
        with _explain_disk_errors():
            conf = str(paths.project_root() / "conf")
            if not (arguments.hydra_help or arguments.shell_completion):
                _refuse_options(arguments, multirun is not None)
                overrides, first = compose.compose_job(arguments.overrides, arguments.multirun)
                if arguments.help:
                    return print_help(Path(sys.argv[0]).stem, first)
                if arguments.cfg == "job" and arguments.package is None:
                    # Hydra would compose once more, which is a third of the wait
                    return print_config(first, arguments.resolve)
                if keys := read_local_keys():
                    log.info("local    %s sets %s", LOCAL_PATH, ", ".join(keys))
                renamed = dict(zip(arguments.overrides, overrides, strict=False))
                sys.argv = [renamed.get(word, word) for word in sys.argv] + overrides[len(arguments.overrides) :]
                if arguments.multirun and multirun is not None:
                    jobs = multirun(overrides, compose.validate(first))
                    sys.argv += jobs.added_overrides
                    session = _interruptible(jobs.session())
                    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints a page of traceback and exits
        with _explain_disk_errors(), session:
            hydra.main(version_base="1.3", config_path=conf, config_name="config")(run)()
    except UsageError as error:
        exit_with_error(error)


def _refuse_options(arguments: Namespace, takes_multirun: bool) -> None:
    """Raise UsageError for options that do not go together or do not suit the command."""
    if arguments.multirun and (arguments.help or arguments.cfg or arguments.info):
        raise UsageError("--help, --cfg and --info show one job: leave -m out.")
    if arguments.multirun and not takes_multirun:
        raise UsageError("This stage takes no sweep: -m belongs to `python -m bestepoch.train`.")
    if read_world_size() > 1 and (arguments.multirun or not takes_multirun):
        what = "A sweep (-m)" if arguments.multirun else "This stage"
        raise UsageError(f"{what} takes one process: type `python` in place of `torchrun` and its options.")


def print_config(cfg: DictConfig, resolve: bool) -> None:
    """Print a job's configuration as Hydra's ``--cfg job`` does."""
    from omegaconf import OmegaConf

    if resolve:
        OmegaConf.resolve(cfg)
    sys.stdout.write(OmegaConf.to_yaml(cfg))


def run_cli(task: Callable[[list[str]], None], arguments: list[str]) -> None:
    """Run a command that has no Hydra configuration; errors are reported as by `launch`."""
    configure_process()
    if {"-h", "--help"} & {*arguments}:
        return print_usage(Path(sys.argv[0]).stem)
    try:
        with _explain_disk_errors(), raise_on_interrupt():
            task(arguments)
    except UsageError as error:
        exit_with_error(error)


@contextlib.contextmanager
def _interruptible(session: contextlib.AbstractContextManager[None]) -> Iterator[None]:
    with raise_on_interrupt(), session:
        yield


@contextlib.contextmanager
def _explain_disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        explained = files.explain_disk_error(error)
        if explained is None:
            raise
        raise explained from error


def exit_with_error(error: UsageError) -> NoReturn:
    """Print the message without a traceback and exit with code 2."""
    wait_for_rank0_error()
    sys.stderr.write(f"bestepoch: {error}\n")
    raise SystemExit(USAGE_EXIT) from None
