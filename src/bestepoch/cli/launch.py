"""The command line that the four stages share: a Hydra application whose mistakes are answered in plain words."""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NoReturn

from bestepoch.base import files, private_api
from bestepoch.base.config import compose
from bestepoch.base.config.schema import Settings
from bestepoch.base.files import UsageError
from bestepoch.cli.console import styled
from bestepoch.training.distributed import World

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from bestepoch.sweeps.sweep import Sweep

SweepTask = Callable[[Settings, "Sweep"], "float | None"]
USAGE_EXIT = 2
# New objects until Python looks for garbage. Imports make some hundred thousand that stay; looking them through as
# often as Python does by itself (700, on 3.11) takes a tenth of a short stage. Not to look at all would cost an
# evaluation 30 MB.
COLLECT_EVERY = 50_000


def launch(task: Callable[[Settings], float | None], sweep_task: SweepTask | None = None) -> None:
    """Run ``task`` with the settings that ``conf/``, ``params.yaml`` and the command line make.

    Hydra's own options (``--help``, ``--cfg job``, ``--multirun`` ...) work as in any Hydra application. A sweep
    (``-m``) is accepted only by a stage that has a ``sweep_task``, which is given the sweep as well.
    """
    _begin()
    import hydra
    from hydra.errors import CompactHydraException

    arguments = private_api.hydra_arguments()
    world = World.here()
    sweep: Sweep | None = None

    def job(cfg: object) -> float | None:
        _begin()  # for the process of a launcher it is the first time
        if sweep is not None:
            sweep.enter()
        try:
            with _plain_disk_errors():
                settings = compose.settings(cfg)  # type: ignore[arg-type]
                return task(settings) if sweep is None or sweep_task is None else sweep_task(settings, sweep)
        except UsageError as error:
            if sweep is None:
                return fail(error)
            raise CompactHydraException(str(error)) from None  # of these Hydra shows the message alone

    watched: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    try:
        with _plain_disk_errors():
            folder = files.root() / "conf"
            if not (arguments.hydra_help or arguments.shell_completion):
                if arguments.multirun and (arguments.help or arguments.cfg or arguments.info):
                    raise UsageError("--help, --cfg and --info show one job: leave -m out.")
                if arguments.multirun and sweep_task is None:
                    raise UsageError("This stage takes no sweep: -m belongs to `python -m bestepoch.train`.")
                if world.size > 1 and (arguments.multirun or sweep_task is None):
                    what = "A sweep (-m)" if arguments.multirun else "This stage"
                    raise UsageError(f"{what} takes one process: type `python` in place of `torchrun` and its options.")
                given, first = compose.composed(arguments.overrides, arguments.multirun)
                if arguments.cfg == "job" and arguments.package is None and not arguments.help:
                    return show(first, arguments.resolve)  # which Hydra would compose once more, a third of the wait
                by_new_names = dict(zip(arguments.overrides, given, strict=False))
                sys.argv = [by_new_names.get(word, word) for word in sys.argv] + given[len(arguments.overrides) :]
                if arguments.multirun:
                    from bestepoch.sweeps.sweep import Sweep

                    sweep, more = Sweep.of(given, compose.settings(first))
                    sys.argv += [*more, f"hydra.sweep.dir='{sweep.folder}'"]
                    watched = sweep.watched()
                    os.environ["HYDRA_FULL_ERROR"] = "1"  # or Hydra shows a page of traceback in place of raising it
        with _plain_disk_errors(), watched:
            hydra.main(version_base="1.3", config_path=str(folder), config_name="config")(job)()
    except UsageError as error:
        fail(error)


def show(cfg: DictConfig, resolve: bool) -> None:
    """Print a job's configuration as Hydra's ``--cfg job`` does."""
    from omegaconf import OmegaConf

    if resolve:
        OmegaConf.resolve(cfg)
    sys.stdout.write(OmegaConf.to_yaml(cfg))


def answer(task: Callable[[list[str]], None], arguments: list[str]) -> None:
    """Run a command that takes no settings; mistakes are answered as in `launch`."""
    _begin()
    try:
        with _plain_disk_errors():
            task(arguments)
    except UsageError as error:
        fail(error)


@contextlib.contextmanager
def _plain_disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        told = files.disk_error(error)
        if told is None:
            raise
        raise told from error


def overrides() -> list[str]:
    """The overrides of the job that is running, as they were written: an interpolation is not yet its value."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    lines = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    # the second belongs to an override of train.iterations, which adds it
    return [as_written(str(line)) for line in lines if line != "train.epochs=null"]  # type: ignore[union-attr]


def as_written(line: str) -> str:
    """An override without the backslashes that Hydra puts into an interpolation when it makes jobs of a sweep."""
    return re.sub(r"\\([{}:])", r"\1", line) if "$\\{" in line else line


class _Stderr(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to what ``sys.stderr`` is at the time, which a progress bar exchanges for its own."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        return styled(super().format(record))


@functools.cache
def _begin() -> None:
    """What each process of the project begins with, once: in one process a sweep has many jobs."""
    gc.set_threshold(COLLECT_EVERY)
    # At its end Python looks through all objects twice more, half a second with PyTorch's; frozen ones it passes over.
    atexit.register(gc.freeze)
    _log_to_terminal()


def _log_to_terminal() -> None:
    """Show the package's messages, plain; other packages' loggers keep their own settings."""
    logger = logging.getLogger("bestepoch")
    if not logger.handlers:
        logger.addHandler(_Stderr())
        logger.setLevel(logging.INFO if World.here().first else logging.CRITICAL)
        logger.propagate = False


def fail(error: UsageError) -> NoReturn:
    """Say what is wrong and leave, without a traceback."""
    World.here().defer()
    sys.stderr.write(f"bestepoch: {error}\n")
    raise SystemExit(USAGE_EXIT) from None
