"""The command line that the four stages share: a Hydra application whose mistakes are answered in plain words."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NoReturn

from bestepoch.base import files, paths, private_api
from bestepoch.base.config import compose
from bestepoch.base.config.schema import Config
from bestepoch.base.errors import UsageError
from bestepoch.cli.process import configure_process
from bestepoch.training.distributed import DistributedContext

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from bestepoch.sweeps.sweep import Sweep

SweepTask = Callable[[Config, "Sweep"], "float | None"]
USAGE_EXIT = 2


def launch(task: Callable[[Config], float | None], sweep_task: SweepTask | None = None) -> None:
    """Run ``task`` with the settings that ``conf/``, ``params.yaml`` and the command line make.

    Hydra's own options (``--help``, ``--cfg job``, ``--multirun`` ...) work as in any Hydra application. A sweep
    (``-m``) is accepted only by a stage that has a ``sweep_task``, which is given the sweep as well.
    """
    configure_process()
    import hydra
    from hydra.errors import CompactHydraException

    arguments = private_api.hydra_arguments()
    context = DistributedContext.from_env()
    sweep: Sweep | None = None

    def job(cfg: object) -> float | None:
        configure_process()  # for the process of a launcher it is the first time
        if sweep is not None:
            sweep.chdir_to_project()
        try:
            with _explain_disk_errors():
                config = compose.validate(cfg)  # type: ignore[arg-type]
                return task(config) if sweep is None or sweep_task is None else sweep_task(config, sweep)
        except UsageError as error:
            if sweep is None:
                return exit_with_error(error)
            raise CompactHydraException(str(error)) from None  # of these Hydra shows the message alone

    watched: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    try:
        with _explain_disk_errors():
            folder = paths.project_root() / "conf"
            if not (arguments.hydra_help or arguments.shell_completion):
                if arguments.multirun and (arguments.help or arguments.cfg or arguments.info):
                    raise UsageError("--help, --cfg and --info show one job: leave -m out.")
                if arguments.multirun and sweep_task is None:
                    raise UsageError("This stage takes no sweep: -m belongs to `python -m bestepoch.train`.")
                if context.size > 1 and (arguments.multirun or sweep_task is None):
                    what = "A sweep (-m)" if arguments.multirun else "This stage"
                    raise UsageError(f"{what} takes one process: type `python` in place of `torchrun` and its options.")
                given, first = compose.compose_job(arguments.overrides, arguments.multirun)
                if arguments.cfg == "job" and arguments.package is None and not arguments.help:
                    return print_config(
                        first, arguments.resolve
                    )  # which Hydra would compose once more, a third of the wait
                by_new_names = dict(zip(arguments.overrides, given, strict=False))
                sys.argv = [by_new_names.get(word, word) for word in sys.argv] + given[len(arguments.overrides) :]
                if arguments.multirun:
                    from bestepoch.sweeps.sweep import Sweep

                    sweep, more = Sweep.from_overrides(given, compose.validate(first))
                    sys.argv += [*more, f"hydra.sweep.dir='{sweep.folder}'"]
                    watched = sweep.session()
                    os.environ["HYDRA_FULL_ERROR"] = "1"  # or Hydra shows a page of traceback in place of raising it
        with _explain_disk_errors(), watched:
            hydra.main(version_base="1.3", config_path=str(folder), config_name="config")(job)()
    except UsageError as error:
        exit_with_error(error)


def print_config(cfg: DictConfig, resolve: bool) -> None:
    """Print a job's configuration as Hydra's ``--cfg job`` does."""
    from omegaconf import OmegaConf

    if resolve:
        OmegaConf.resolve(cfg)
    sys.stdout.write(OmegaConf.to_yaml(cfg))


def run_cli(task: Callable[[list[str]], None], arguments: list[str]) -> None:
    """Run a command that takes no settings; mistakes are answered as in `launch`."""
    configure_process()
    try:
        with _explain_disk_errors():
            task(arguments)
    except UsageError as error:
        exit_with_error(error)


@contextlib.contextmanager
def _explain_disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        told = files.explain_disk_error(error)
        if told is None:
            raise
        raise told from error


def exit_with_error(error: UsageError) -> NoReturn:
    """Say what is wrong and leave, without a traceback."""
    DistributedContext.from_env().wait_for_rank0_error()
    sys.stderr.write(f"bestepoch: {error}\n")
    raise SystemExit(USAGE_EXIT) from None
