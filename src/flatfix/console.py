"""What a run says to the terminal: one console, one progress bar, plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """Print one line, as it stands: square brackets are not markup."""
    console.print(message, markup=False)


def complain(message: str) -> None:
    """Print one message on the standard error, as it stands."""
    errors.print(message, markup=False)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a header: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for first, *others in (header, *rows):
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        say("  ".join([first.ljust(widths[0]), *cells]).rstrip())


class Rate(ProgressColumn):
    """Show items a second."""

    def render(self, task: Task) -> Text:
        """Return the rate of late, or nothing before there is one."""
        return Text(f"{task.speed:,.0f}/s" if task.speed else "", style="progress.data.speed")


def bar(unit: str = "pictures") -> Progress:
    """Return a bar with count, rate and time left, which vanishes when it stops; without a terminal it stays unseen."""
    counts = (DownloadColumn(), TransferSpeedColumn()) if unit == "bytes" else (MofNCompleteColumn(), Rate())
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *counts,
        TimeRemainingColumn(),
        console=console,
        refresh_per_second=2,  # drawing takes the interpreter from what the bar is about
        transient=True,
        disable=not console.is_terminal,
    )


@contextmanager
def progress(description: str, total: int, unit: str = "pictures") -> Iterator[Callable[[int], None]]:
    """Show progress over `total` items, yield `advance(count)`, and close with a line that tells count and rate.

    Threads may share `advance`. A number of `bytes` is shown in larger units.
    """
    start = time.perf_counter()
    with bar(unit) as shown:
        task = shown.add_task(description, total=total)
        yield lambda count: shown.advance(task, count)
    seconds = max(time.perf_counter() - start, 1e-9)
    done = int(shown.tasks[task].completed)
    if unit == "bytes":
        say(f"{description}: {done / 1e6:,.1f} MB in {seconds:.1f} s ({done / 1e6 / seconds:,.0f} MB/s)")
    else:
        say(f"{description}: {done:,} {unit} in {seconds:.1f} s ({done / seconds:,.0f}/s)")
