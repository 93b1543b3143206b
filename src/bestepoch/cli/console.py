"""Terminal output: progress bars on an interactive terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger("bestepoch")


def is_interactive() -> bool:
    """Return whether stderr is an interactive terminal, which gets colours and progress bars; a CI log does not."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")


def make_console(wrap: bool = False) -> Console:
    """Return a rich console on stderr; stdout is left to output that scripts read.

    Args:
        wrap: Let rich wrap long lines. By default the terminal wraps them, so that copied lines are whole.
    """
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=not wrap)


@contextlib.contextmanager
def download_progress(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar for a file of `total` bytes; yields a function that takes the number of new bytes."""
    if not is_interactive():
        yield lambda _count: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=make_console(), transient=True) as progress:
        task = progress.add_task(name, total=total or None)
        yield lambda count: progress.advance(task, count)


def highlight_label(line: str) -> str:
    """Return a log line with its label in bold colour on an interactive terminal."""
    label = re.match(r"(?:evaluate|pipeline)(?= )|[a-z]+(?= {2,})|WARNING(?=  )|warning(?=: )", line)
    if label is None or not is_interactive() or os.environ.get("NO_COLOR"):
        return line
    colour = "33" if label[0].lower() == "warning" else "36"
    return f"\x1b[1;{colour}m{label[0]}\x1b[0m{line[label.end() :]}"


def format_loss(loss: float) -> str:
    """Return a loss in at most eight characters."""
    return f"{loss:.4f}" if abs(loss) < 100 else f"{loss:.2e}"


class TrainingProgress:
    """Progress of one run: a bar on an interactive terminal, and one line per epoch.

    Args:
        iterations: Number of iterations of the whole run.
        done: Number of iterations already completed, when a run resumes.
        shown: False on ranks > 0, which print nothing.
    """

    def __init__(self, iterations: int, done: int, shown: bool = True) -> None:
        self.progress: Any = None
        self.shown = shown
        # The jobs of a sweep log only warnings: the sweep shows their status lines.
        if not (shown and is_interactive() and log.isEnabledFor(logging.INFO)):
            return
        from rich import progress

        console = make_console(wrap=True)
        columns: dict[str, progress.ProgressColumn] = {
            "epoch": progress.TextColumn("epoch {task.fields[epoch]}"),
            "bar": progress.BarColumn(bar_width=20),
            "count": progress.MofNCompleteColumn(),
            "loss": progress.TextColumn("loss {task.fields[loss]}"),
            "lr": progress.TextColumn("lr {task.fields[lr]}"),
            "val": progress.TextColumn("{task.fields[val]}"),
            "left": progress.TimeRemainingColumn(compact=True),
        }
        # Minimum terminal widths; a narrow terminal drops the least important columns first.
        for name, width in (("lr", 100), ("bar", 85), ("val", 65), ("count", 45)):
            if console.width < width:
                del columns[name]
        self.progress = progress.Progress(*columns.values(), console=console, transient=True, refresh_per_second=4)
        fields = {"epoch": "-", "loss": "-", "lr": "-", "val": "val -"}
        self.task = self.progress.add_task("", total=iterations, completed=done, **fields)
        self.progress.start()

    def show_iteration(self, iteration: int, epoch: int, loss: Any, lr: float) -> None:
        """Update the bar. A loss that is still a GPU tensor shows as "-", which avoids a synchronisation."""
        if self.progress is not None:
            text = f"{loss:.4f}" if isinstance(loss, float) else "-"
            self.progress.update(self.task, completed=iteration, epoch=epoch, loss=text, lr=f"{lr:.2e}")

    def show_epoch(self, row: Mapping[str, float], epochs: int, note: str = "") -> None:
        """Print one line with the metrics of an epoch, a row of epochs.csv, and a second one with a note."""
        if self.progress is not None:
            self.progress.update(self.task, val=f"val {row['val/loss']:.4f} {row['val/accuracy']:.2%}")
        if "train/eval_loss" in row:
            train = f"train {format_loss(row['train/eval_loss'])} {row['train/eval_accuracy']:.2%}"
        else:
            train = f"objective {format_loss(row['train/epoch_loss'])}"
        width = len(str(epochs))
        self.line(
            f"epoch {row['epoch']:{width}.0f}/{epochs}  {train}  "
            f"val {format_loss(row['val/loss'])} {row['val/accuracy']:.2%}  lr {row['lr']:.1e}  {row['seconds']:.1f} s"
        )
        if note:
            self.line(f"      {note}")

    def line(self, text: str) -> None:
        """Print a line above the bar, or log the line if there is no bar."""
        if self.progress is not None:
            self.progress.console.print(text, soft_wrap=True, markup=False)
        elif self.shown:
            log.info("%s", text)

    def close(self) -> None:
        """Remove the bar; printed lines stay."""
        if self.progress is not None:
            self.progress.stop()


class StatusLines:
    """Status lines that change in place at the bottom of a terminal; without a terminal only `line` prints."""

    def __enter__(self) -> Self:
        self.live: Any = None
        if is_interactive():
            from rich.live import Live

            self.live = Live(console=make_console(), transient=True, refresh_per_second=2)
            self.live.start()
        return self

    def show(self, lines: list[str]) -> None:
        """Replace the status lines."""
        if self.live is not None:
            from rich.text import Text

            self.live.update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"))

    def line(self, text: str) -> None:
        """Print a permanent line above the status lines."""
        if self.live is not None:
            self.live.console.print(text)
        else:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()
