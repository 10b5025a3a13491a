"""What a run says to the terminal: one console, one progress bar, plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

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


@contextmanager
def progress(description: str, total: int, unit: str = "pictures") -> Iterator[Callable[[int], None]]:
    """Show progress over `total` items and yield `advance(count)`.

    A terminal gets a bar with rate and time left; anything else gets one closing line with the count and the rate.
    """
    start = time.perf_counter()
    done = 0
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(show_speed=True),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task(description, total=total)

    def advance(count: int) -> None:
        nonlocal done
        done += count
        bar.advance(task, count)

    with bar:
        yield advance
    seconds = time.perf_counter() - start
    say(f"{description}: {done:,} {unit} in {seconds:.1f} s ({done / max(seconds, 1e-9):,.0f}/s)")
