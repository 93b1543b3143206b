"""What a person sees while it runs: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.console import Console

    from bestepoch.runs.tables import Row

log = logging.getLogger("bestepoch")


def is_interactive() -> bool:
    """Whether a person looks on: what moves and has colours is for a terminal, and not for a log of CI's."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")


def make_console(wrap: bool = False) -> Console:
    """Standard error: standard output stays free for what a script may want to read.

    Args:
        wrap: by rich, at the terminal's width; else long lines are the terminal's to wrap, and whole when copied.
    """
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=not wrap)


@contextlib.contextmanager
def download_progress(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar for one file; yields a function that takes the bytes that have come."""
    if not is_interactive():
        yield lambda _count: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=make_console(), transient=True) as progress:
        task = progress.add_task(name, total=total or None)
        yield lambda count: progress.advance(task, count)


def highlight_label(line: str) -> str:
    """A line with its label in bold, where it has one and a person looks on; long ones are the terminal's to wrap."""
    found = re.match(r"[a-z]+(?= {2,})|WARNING(?=  )|warning(?=: )|[a-z]+ [a-z]+(?=  )", line)
    if found is None or not is_interactive() or os.environ.get("NO_COLOR"):
        return line
    colour = "33" if found[0].lower() == "warning" else "36"
    return f"\x1b[1;{colour}m{found[0]}\x1b[0m{line[found.end() :]}"


class TrainingProgress:
    """The progress of one run: a bar with loss, rate and time left on a terminal, one line an epoch otherwise."""

    def __init__(self, iterations: int, done: int, shown: bool = True) -> None:
        self.progress: Any = None
        self.shown = shown
        # a job of a sweep has no bar of its own
        if not (shown and is_interactive() and log.isEnabledFor(logging.INFO)):
            return
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        screen = make_console(wrap=True)
        # least important first: what a narrow terminal does without
        columns: dict[str, ProgressColumn] = {
            "epoch": TextColumn("epoch {task.fields[epoch]}"),
            "bar": BarColumn(bar_width=20),
            "count": MofNCompleteColumn(),
            "loss": TextColumn("loss {task.fields[loss]}"),
            "lr": TextColumn("lr {task.fields[lr]}"),
            "val": TextColumn("{task.fields[val]}"),
            "left": TimeRemainingColumn(compact=True),
        }
        for name, width in (("lr", 100), ("bar", 85), ("val", 65), ("count", 45)):
            if screen.width < width:
                del columns[name]
        self.progress = Progress(*columns.values(), console=screen, transient=True, refresh_per_second=4)
        self.task = self.progress.add_task(
            "", total=iterations, completed=done, epoch="-", loss="-", lr="-", val="val -"
        )
        self.progress.start()

    def show_iteration(self, iteration: int, epoch: int, loss: Any, lr: float) -> None:
        """Move the bar; cheap where there is none. A loss that is still on a GPU is not waited for."""
        if self.progress is not None:
            shown = f"{loss:.4f}" if isinstance(loss, float) else "-"
            self.progress.update(self.task, completed=iteration, epoch=epoch, loss=shown, lr=f"{lr:.2e}")

    def show_epoch(self, row: Row, epochs: int) -> None:
        """The epoch's line, for people and for logs."""
        if self.progress is not None:
            self.progress.update(self.task, val=f"val {row['val/loss']:.4f} {row['val/accuracy']:.2%}")
        self.line(
            f"epoch {row['epoch']:>3.0f}/{epochs}  train loss {row['train/epoch_loss']:.4f}  "
            f"val loss {row['val/loss']:.4f}  val accuracy {row['val/accuracy']:.2%}  "
            f"lr {row['lr']:.2e}  {row['seconds']:.1f} s"
        )

    def line(self, text: str) -> None:
        """One line above the bar."""
        if self.progress is not None:
            self.progress.console.print(text, soft_wrap=True, markup=False)
        elif self.shown:
            log.info("%s", text)

    def close(self) -> None:
        """Take the bar away; what was printed stays."""
        if self.progress is not None:
            self.progress.stop()


class StatusLines:
    """Some lines that change in place at the bottom of a terminal; elsewhere only what is said for good."""

    def __enter__(self) -> Self:
        self.live: Any = None
        if is_interactive():
            from rich.live import Live

            self.live = Live(console=make_console(), transient=True, refresh_per_second=2)
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
