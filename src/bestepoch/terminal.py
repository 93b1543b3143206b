"""What a person sees while it runs: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console

if TYPE_CHECKING:
    from bestepoch.data import Summary
    from bestepoch.journal import Row
    from bestepoch.run import Run
    from bestepoch.schedule import Plan

log = logging.getLogger("bestepoch")


def console() -> Console:
    """Standard error: standard output stays free for what a script may want to read."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def download_progress(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar for one file; yields a function that takes the bytes that have come."""
    if not sys.stderr.isatty():
        yield lambda _count: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console(), transient=True) as progress:
        task = progress.add_task(name, total=total or None)
        yield lambda count: progress.advance(task, count)


def heading(run: Run, split: Summary, plan: Plan) -> None:
    """What is trained on what, and the arithmetic, before training starts."""
    log.info("run      %s%s", run.name, " (resumed)" if run.resumed else "")
    log.info("data     %s", split.name)
    if split.offline_sample:
        log.warning("WARNING  the offline sample stands in for %s: no number here is of %s", *[split.requested] * 2)
    for line in plan.describe().splitlines():
        log.info("plan     %s", line)
    count = run.info["config"].get("processes")
    each = f" in each of {count} processes" if count else ""
    log.info("device   %s, %d threads%s", run.info["environment"]["device"], run.info["environment"]["threads"], each)


class Training:
    """The progress of one run: a bar with loss, rate and time left on a terminal, one line an epoch otherwise."""

    def __init__(self, iterations: int, done: int, shown: bool = True) -> None:
        self.progress: Any = None
        self.shown = shown
        # a job of a sweep has no bar of its own
        if not (shown and sys.stderr.isatty() and log.isEnabledFor(logging.INFO)):
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  lr {task.fields[lr]}"),
            TimeRemainingColumn(),
            console=console(),
            transient=True,
            refresh_per_second=4,
        )
        self.task = self.progress.add_task("", total=iterations, completed=done, epoch="-", loss="-", lr="-")
        self.progress.start()

    def iteration(self, iteration: int, epoch: int, loss: Any, lr: float) -> None:
        """Move the bar; cheap where there is none. A loss that is still on a GPU is not waited for."""
        if self.progress is not None:
            shown = f"{loss:.4f}" if isinstance(loss, float) else "-"
            self.progress.update(self.task, completed=iteration, epoch=epoch, loss=shown, lr=f"{lr:.2e}")

    def epoch(self, row: Row, epochs: int) -> None:
        """The epoch's line, for people and for logs."""
        self.line(
            f"epoch {row['epoch']:>3.0f}/{epochs}  train loss {row['train/epoch_loss']:.4f}  "
            f"val loss {row['val/loss']:.4f}  val accuracy {row['val/accuracy']:.2%}  "
            f"lr {row['lr']:.2e}  {row['seconds']:.1f} s"
        )

    def line(self, text: str) -> None:
        """One line above the bar."""
        if self.progress is not None:
            self.progress.console.print(text)
        elif self.shown:
            log.info("%s", text)

    def close(self) -> None:
        """Take the bar away; what was printed stays."""
        if self.progress is not None:
            self.progress.stop()


class Board:
    """Some lines that change in place at the bottom of a terminal; elsewhere only what is said for good."""

    def __enter__(self) -> Self:
        self.live: Any = None
        if sys.stderr.isatty():
            from rich.live import Live

            self.live = Live(console=console(), transient=True, refresh_per_second=2)
            self.live.start()
        return self

    def show(self, lines: list[str]) -> None:
        """In place of what was shown before."""
        if self.live is not None:
            from rich.text import Text

            self.live.update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"))

    def line(self, text: str) -> None:
        """For good, above what changes."""
        if self.live is not None:
            self.live.console.print(text)
        else:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()
