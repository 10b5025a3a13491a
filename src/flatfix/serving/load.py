"""Send pictures to a server, and measure what it answers: `python -m flatfix.serving.load --help`."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flatfix.config.exit_codes import ExitCode
from flatfix.console import complain, progress, say, table
from flatfix.errors import UserError
from flatfix.files import replacing
from flatfix.serving.client import ANSWER_S, Answer, Client, NoAnswerError, form_of
from flatfix.serving.load_summary import PREDICTED, Counts, Outcome, predicted_classes, summarise

Found = tuple[list[Outcome], dict[str, Any]]

SUMMARY, FIGURE = "summary.json", "latency.png"
# The endings of what the server reads, and their media types.
TYPES = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".bmp": "image/bmp",
    ".gif": "image/gif",
    ".ppm": "image/x-portable-pixmap",
    ".pgm": "image/x-portable-graymap",
}


def main(arguments: Sequence[str] | None = None) -> ExitCode:
    """Run the command.

    Returns:
        `DONE`; `NO` when a request got no prediction; `USAGE` for an option that does not work.
    """
    options = _parser().parse_args(arguments)
    try:
        return run(options)
    except UserError as error:
        complain(str(error))
        return ExitCode.USAGE


def run(options: argparse.Namespace) -> ExitCode:
    """Send the requests, write the summary and the figure, and print a table.

    Raises:
        UserError: naming the option that does not work.
    """
    for name in ("requests", "concurrency", "timeout"):
        if getattr(options, name) <= 0:
            raise UserError(f"--{name} {getattr(options, name)}: must be more than 0.")
    pictures = pictures_in(options.image_dir)
    with _writing(options.outdir):  # before the time is spent
        options.outdir.mkdir(parents=True, exist_ok=True)
    chosen = draw(pictures, options.requests, options.seed)
    headers = {"authorization": f"Bearer {options.key}"} if options.key else {}
    client = Client(options.base_url, headers=headers, answer_s=options.timeout)
    with progress("requests", options.requests, "requests") as advance:
        outcomes, found = _run_loop(_measure(client, chosen, options.concurrency, advance))
    given = {name: value for name, value in vars(options).items() if name != "key"}
    summary = {**given, "pictures": len(pictures), **found, "repeated": client.num_repeated}
    with _writing(options.outdir):
        with replacing(options.outdir / SUMMARY) as partial:
            partial.write_text(json.dumps(summary, indent=2, default=str) + "\n", encoding="utf-8")
        draw_latencies(outcomes, summary, options.outdir / FIGURE)
    show(summary)
    say(f"{options.outdir / SUMMARY}, {options.outdir / FIGURE}")
    return ExitCode.NO if found["errors"] else ExitCode.DONE


def pictures_in(folder: Path) -> list[Path]:
    """Return the pictures in a folder and below, sorted; what has no picture's ending, or is hidden, is left out.

    Raises:
        UserError: when there is none.
    """
    if not folder.is_dir():
        raise UserError(f"--image-dir {folder}: no such folder.")
    found = [path for path in folder.rglob("*") if path.suffix.lower() in TYPES and path.is_file()]
    shown = sorted(path for path in found if not any(part[0] == "." for part in path.relative_to(folder).parts))
    if not shown:
        raise UserError(f"--image-dir {folder}: no picture in it. Valid endings: {', '.join(TYPES)}.")
    return shown


def draw(pictures: Sequence[Path], num: int, seed: int) -> Iterator[Path]:
    """Yield `num` pictures in random order; none comes again before all others have come."""
    random_order = random.Random(seed)
    while num > 0:
        some = random_order.sample(pictures, min(num, len(pictures)))
        yield from some
        num -= len(some)


async def _measure(client: Client, pictures: Iterator[Path], concurrency: int, advance: Callable[[int], None]) -> Found:
    async with client:
        before = await _snapshot(client)
        start = time.perf_counter()
        outcomes = await ask(client, pictures, concurrency, advance)
        seconds = time.perf_counter() - start
        try:
            after = await _snapshot(client)
        except UserError:  # it went away: the outcomes say so
            after = None
    return outcomes, summarise(outcomes, seconds, before, after)


async def ask(
    client: Client, pictures: Iterator[Path], concurrency: int, advance: Callable[[int], None] = lambda count: None
) -> list[Outcome]:
    """Have so many callers send pictures, each the next one as soon as its last was answered.

    Returns:
        The outcomes, in the order in which the requests ended.

    Raises:
        UserError: when a picture cannot be read.
    """
    outcomes: list[Outcome] = []
    start = time.perf_counter()

    async def call() -> None:
        for picture in pictures:  # one iterator for all callers
            outcomes.append(await _ask_one(client, picture, start))
            advance(1)

    await asyncio.gather(*(call() for _ in range(concurrency)))
    return outcomes


async def _ask_one(client: Client, picture: Path, start: float) -> Outcome:
    try:
        body = form_of(picture.read_bytes(), TYPES[picture.suffix.lower()])
    except OSError as error:
        raise UserError(f"--image-dir: {picture} cannot be read: {error.strerror}.") from error
    begun = time.perf_counter()
    try:
        answer = await client.post("/predict", body)
    except NoAnswerError as error:
        return Outcome(picture, begun - start, time.perf_counter() - begun, None, error.reason)
    return _outcome(picture, begun - start, answer)


def _outcome(picture: Path, begun_s: float, answer: Answer) -> Outcome:
    """Read a prediction, or the reason that a problem document (RFC 9457) ends its type with."""
    got = (picture, begun_s, answer.seconds, answer.status)
    try:
        told = json.loads(answer.body)
        if answer.status != 200:
            return Outcome(*got, reason=str(told["type"]).rpartition("/")[2])
        (said,) = told["predictions"]
        return Outcome(
            *got, label=said["class"], version=told["model_version"], classes=frozenset(said["probabilities"])
        )
    except (ValueError, KeyError, TypeError):  # not JSON, or not as Flatfix writes it: a proxy, another server
        return Outcome(*got, reason="not_a_prediction" if answer.status == 200 else f"http_{answer.status}")


async def _snapshot(client: Client) -> Counts | None:
    """Return `predicted_class_total`; None where the server does not say.

    Raises:
        UserError: when there is no server.
    """
    try:
        answer = await client.get("/metrics")
        return predicted_classes(answer.body.decode()) if answer.status == 200 else None
    except ValueError:  # not text, or not in the form of Prometheus
        return None
    except NoAnswerError as error:
        raise UserError(f"--base-url: no server answers there ({error}). Start one: python serve.py") from error


def draw_latencies(outcomes: Sequence[Outcome], summary: dict[str, Any], path: Path) -> None:
    """Draw the latency of each request over time, and below it the share of the requests that took no longer."""
    from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter, StrMethodFormatter

    from flatfix.evaluation.figures import style

    figure = style.blank(style.WIDTH, 5.4)
    over_time, share = figure.subplots(2, 1, height_ratios=(3, 2))
    for is_answered, marker, colour, label in (
        (True, "o", style.BLUE, "answered"),
        (False, "x", style.VERMILLION, "failed"),
    ):
        some = [outcome for outcome in outcomes if (not outcome.reason) == is_answered]
        if some:
            times = [1000 * outcome.seconds for outcome in some]
            begun = [outcome.begun_s for outcome in some]
            size, alpha = (2.5, 0.6) if is_answered else (5, 1)
            over_time.plot(
                begun, times, marker, color=colour, markersize=size, alpha=alpha, label=f"{len(some):,} {label}"
            )
    over_time.set_yscale("log")
    over_time.set_ylabel("latency (ms)", fontsize=style.FONT_SIZE)
    over_time.set_xlabel("request began (s)", fontsize=style.FONT_SIZE)
    over_time.legend(loc="upper right", **style.LEGEND)

    title = f"No answer to {len(outcomes):,} requests"
    if latency := summary["latency_ms"]:
        times = sorted(1000 * outcome.seconds for outcome in outcomes if not outcome.reason)
        share.step(times, [(index + 1) / len(times) for index in range(len(times))], where="post", color=style.BLUE)
        for name in ("p50", "p95", "p99"):
            share.axvline(latency[name], color=style.GREY, linewidth=1, linestyle=":")
            share.plot(latency[name], int(name[1:]) / 100, "o", color=style.BLUE, markersize=5)
            share.annotate(
                name, (latency[name], 0), (2, 3), textcoords="offset points", color=style.GREY, fontsize=style.FONT_SIZE
            )
        shown = ", ".join(f"{name} {_milliseconds(latency[name])}" for name in ("p50", "p95", "p99"))
        title = (
            f"{shown} ms at {summary['concurrency']} clients: {summary['answered_per_second']:,.0f} answers a second"
        )
    share.set_xscale("log")
    share.set_ylim(0, 1.03)
    share.yaxis.set_major_formatter(PercentFormatter(1, symbol="\u00a0%"))
    share.set_xlabel("latency (ms)", fontsize=style.FONT_SIZE)
    share.set_ylabel("answered within", fontsize=style.FONT_SIZE)
    for axes, axis in ((over_time, over_time.yaxis), (share, share.xaxis)):
        style.tidy(axes)
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    figure.align_ylabels()
    style.set_title(figure, title)
    style.save(figure, path)


def show(summary: dict[str, Any]) -> None:
    """Print what was found in a few lines."""
    rows = [("answered", f"{summary['answered']:,} of {summary['requests']:,}")]
    rows += [(f"failed: {reason}", f"{count:,}") for reason, count in summary["errors"].items()]
    rows.append(("answers a second", f"{summary['answered_per_second']:,.1f}"))
    for name, value in (summary["latency_ms"] or {}).items():
        rows.append((f"latency, {name}", f"{_milliseconds(value)} ms"))
    rows += [(f"by model version {version}", f"{count:,}") for version, count in summary["model_versions"].items()]
    rows += [(f"class {label}", f"{count:,}") for label, count in summary["by_class"].items()]
    if counted := summary[PREDICTED]:
        rows += [(f"{PREDICTED}, class_id {key}", f"{value:+,.0f}") for key, value in counted["change"].items()]
    if found := summary["accuracy"]:
        for name, each in (("accuracy", found), *((f"accuracy, {key}", of) for key, of in found["by_class"].items())):
            low, high = each["interval"]
            rows.append((name, f"{each['accuracy']:.3f} ({low:.3f} to {high:.3f}, {each['pictures']:,} pictures)"))
    table((summary["base_url"], f"{summary['concurrency']} clients"), rows)


def _milliseconds(value: float) -> str:
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"--outdir {folder}: cannot write there: {error.strerror}.") from error


def _run_loop(main: Coroutine[Any, Any, Found]) -> Found:
    """Run with uvloop where it is installed: a request costs this process half as much."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    found: Found = uvloop.run(main)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flatfix.serving.load",
        description="Send pictures to a server, and measure what it answers.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--base-url", default="http://127.0.0.1:8000", help="of the server")
    parser.add_argument("--image-dir", required=True, type=Path, help="folder of pictures, at any depth")
    parser.add_argument("--requests", type=int, default=500, help="to send")
    parser.add_argument("--concurrency", type=int, default=4, help="requests at a time")
    parser.add_argument("--outdir", default="outputs/load", type=Path, help=f"where {SUMMARY} and {FIGURE} go")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of pictures")
    parser.add_argument("--timeout", type=float, default=ANSWER_S, help="seconds for an answer")
    parser.add_argument("--key", help="API key, where the server wants one")
    return parser


if __name__ == "__main__":
    sys.exit(main())
