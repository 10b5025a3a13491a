"""What `promote.py` prints: versions with their metrics, gates with their numbers, moves with their reasons."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flatfix.console import say, table
from flatfix.evaluation.comparison import Comparison
from flatfix.evaluation.metrics import METRICS
from flatfix.registry.choose import Pick
from flatfix.registry.exam import Exam
from flatfix.registry.gates import OFF
from flatfix.registry.journal import GateResult, Move
from flatfix.registry.moves import Outcome
from flatfix.registry.state import ARCHIVED, PRODUCTION, Difference
from flatfix.registry.versions import Version
from flatfix.registry.view import View

LONGEST_REPEATED = 80  # characters of what several gates say alike
VERDICTS = {True: "passed", False: "REFUSED", None: "-"}


def repairs(found: Sequence[Difference]) -> None:
    """Say what a move that was interrupted had left undone."""
    for difference in found:
        say(f"repaired: {difference}")


def ranking(picked: Pick, stage: str) -> None:
    """Show the versions of a stage that were compared, the best first."""
    best = picked.best
    dataset = f"{best.dataset_name}/{best.dataset_version}, digest {best.dataset_digest[:12]}"
    say(f"in stage {stage}, of {dataset}, by validation {picked.metric}:")
    names = list(dict.fromkeys((picked.metric, *METRICS)))
    rows = [
        [str(version.number), version.model_name, *(_number(version.validation.get(name)) for name in names)]
        for version in picked.ranked
    ]
    table(["version", "model", *names], rows)
    if picked.left_out:
        numbers = ", ".join(str(version.number) for version in picked.left_out)
        say(f"not compared, because they were trained on other pictures: {numbers}")


def gates(challenger: Version, incumbent: Version | None, results: Sequence[GateResult]) -> None:
    """Show what each gate said of a version."""
    against = f"version {incumbent.number}, which is live" if incumbent else "nothing: no version is live yet"
    say(f"gates for version {challenger.number} against {against}:")
    _gates(results)


def outcome(found: Outcome, name: str, *, is_dry_run: bool) -> None:
    """Say what moved, or why nothing did."""
    number, move = found.version.number, found.move
    if move is None:
        refusing = ", ".join(gate.name for gate in found.gates if gate.is_passed is False)
        say(f"refused by {refusing}: version {number} stays in staging" if refusing else f"nothing to do: {found.note}")
        return
    lead = "dry run, nothing is moved: " if is_dry_run else ""
    say(f"{lead}version {number} of {name}: {move.from_stage} -> {move.to_stage}{_by(move)}")
    if move.to_stage == PRODUCTION:
        if move.replaced is not None:
            say(f"{lead}version {move.replaced}, which was live: {PRODUCTION} -> {ARCHIVED}")
        say(f"{lead}live: models:/{name}@{PRODUCTION}")


def info(name: str, view: View) -> None:
    """Show what is live, and every version."""
    if view.production and view.went_live:
        _live(name, view.production, view.went_live)
    else:
        say(f"{name}: no version is in production")
    rows = [
        [
            str(version.number),
            view.state.stage(version.number),
            " ".join(f"@{alias}" for alias, number in view.state.aliases.items() if number == version.number),
            version.model_name,
            f"{version.dataset_name}/{version.dataset_version}",
            *(_number(version.validation.get(metric)) for metric in METRICS),
        ]
        for version in view.versions
    ]
    say("all versions, with their validation metrics:")
    table(["version", "stage", "alias", "model", "dataset", *METRICS], rows)


def _live(name: str, version: Version, move: Move) -> None:
    facts = {
        "uri": f"models:/{name}@{PRODUCTION}",
        "version": f"{version.number} ({version.model_name})",
        "since": f"{move.when} by {move.who}",
        "how": f"{move.action}{', forced' if move.forced else ''}{_by(move)}{_why(move)}",
        "dataset": f"{version.dataset_name}/{version.dataset_version}, digest {version.dataset_digest}",
        "commit": version.tags["git_commit"],
        "run": version.run_id,
        "package": version.source,
    }
    for key, value in facts.items():
        say(f"{key:<8} {value}")
    metrics([version])


def metrics(versions: Sequence[Version]) -> None:
    """Show the metrics of versions as they were judged after training, side by side."""
    names = list(dict.fromkeys(name for version in versions for name in (*version.validation, *version.test)))
    header = [f"{split} {version.number}" for split in ("val", "test") for version in versions]
    sources = [*(version.validation for version in versions), *(version.test for version in versions)]
    table(["metric", *header], [[name, *(_number(source.get(name)) for source in sources)] for name in names])


def comparisons(a: Version, b: Version, exam: Exam, found: Sequence[Comparison]) -> None:
    """Show by how much version `b` is better than `a` on the same pictures."""
    level = f"{100 * (1 - 2 * found[0].alpha):g} %"
    say(f"on the same {exam.pictures}; differences above 0 are for version {b.number}:")
    rows = [
        [
            each.metric,
            f"{each.incumbent:.4f}",
            f"{each.challenger:.4f}",
            f"{each.difference:+.4f}",
            f"{each.interval[0]:+.4f} to {each.interval[1]:+.4f}",
            f"{each.p_worse:.3g}",
            f"{each.p_better:.3g}",
            each.test,
        ]
        for each in found
    ]
    header = ["metric", str(a.number), str(b.number), "difference", f"{level} interval", "p worse", "p better", "test"]
    table(header, rows)


def history(name: str, moves: Sequence[Move]) -> None:
    """Show every move, oldest first, and below the table the reasons and what the gates said."""
    if not moves:
        say(f"{name}: no version has moved yet")
        return
    rows = [
        [
            str(move.number),
            move.when[:19].replace("T", " "),
            move.action,
            str(move.version),
            move.from_stage,
            move.to_stage,
            "" if move.replaced is None else str(move.replaced),
            "" if move.metric is None else f"{move.metric} {_number(move.value)}",
            move.who,
        ]
        for move in moves
    ]
    table(["move", "when (UTC)", "action", "version", "from", "to", "instead of", "chosen by", "who"], rows)
    for move in moves:
        if move.gates or move.why or move.forced:
            say(f"move {move.number}:{' forced, past staging and the gates' if move.forced else ''}{_why(move)}")
            _gates(move.gates)


def _gates(results: Sequence[GateResult]) -> None:
    width = max((len(gate.name) for gate in results), default=0)
    said: dict[str, str] = {}
    for gate in results:
        if gate.detail != OFF:
            first = said.setdefault(gate.detail, gate.name)
            is_repeated = first != gate.name and len(gate.detail) > LONGEST_REPEATED
            detail = f"the same as {first}" if is_repeated else gate.detail
            say(f"  {gate.name:<{width}}  {VERDICTS[gate.is_passed]:<7}  {detail}")
    if off := [gate.name for gate in results if gate.detail == OFF]:
        say(f"  {OFF}: {', '.join(off)}")


def _by(move: Move) -> str:
    return "" if move.metric is None else f", by validation {move.metric} {_number(move.value)}"


def _why(move: Move) -> str:
    return "" if move.why is None else f' "{move.why}"'


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.4f}"
