"""A run in MLflow that no outage of its server can stop."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flatfix.errors import UserError
from flatfix.tracking.connection import connect, in_one_line, redact, told_as_user_error
from flatfix.tracking.outbox import Fact, Kind, Lost, Outbox, Refused, Unsent
from flatfix.tracking.system_metrics import SystemMetrics

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

Status = Literal["FINISHED", "FAILED", "KILLED"]

MAX_PARAM_LENGTH = 6000  # MLflow's limits; it would cut longer values itself, with a warning for each
MAX_TAG_LENGTH = 8000

RESUMABLE = "resumable"  # tag of a run that was interrupted: whether another start can go on with it
_REASON = "status_reason"  # tag
_OF_AN_END = (_REASON, RESUMABLE)


class Run:
    """One run: parameters, metrics, tags and artifacts on their way to MLflow.

    Every call returns at once and a thread sends, in order. Metrics are first appended to `metrics.jsonl` in the buffer
    folder, one JSON object a value. While the server is away everything waits; what has still not arrived when the run
    ends stays in `unsent.jsonl`, and `end` says so. Nothing here raises because of the server, `start` and `resume`
    excepted.

    Args:
        client: Client of `uri`.
        run_id: A run that exists.
        uri: Where it is kept; see `preflight`.
        buffer_dir: Folder for `metrics.jsonl` and `unsent.jsonl`, one for each run.
    """

    def __init__(self, client: MlflowClient, run_id: str, uri: str, buffer_dir: Path) -> None:
        self.run_id = run_id
        self.uri = uri
        self._client = client
        self._unsent_path = buffer_dir / "unsent.jsonl"
        buffer_dir.mkdir(parents=True, exist_ok=True)
        self._kept_before = self._unsent_path.read_bytes() if self._unsent_path.exists() else b""
        self._metrics_path = buffer_dir / "metrics.jsonl"
        self._metrics_file = self._metrics_path.open("ab", buffering=0)  # a call is one write: it is whole
        self._outbox = Outbox(f"MLflow at {redact(uri)}", self._deliver)
        self._system_metrics: SystemMetrics | None = None
        self._held: set[tuple[Kind, str, int]] = set()  # kind, key and step of what an earlier process logged
        self._has_ended = False
        self._last_word: str | None = None

    @classmethod
    def start(
        cls,
        uri: str,
        experiment_id: str,
        *,
        name: str,
        tags: Mapping[str, str],
        buffer_dir: Path,
        system_metrics: bool = False,
        parent_run_id: str | None = None,
    ) -> Run:
        """Create a run in MLflow and return it, with the tags MLflow knows of its own (user, source, git commit).

        Args:
            uri: Where runs are kept; see `preflight`.
            experiment_id: As returned by `preflight`.
            name: Name of the run.
            tags: Tags that it has from the start.
            buffer_dir: Folder for `metrics.jsonl` and `unsent.jsonl`, one for each run.
            system_metrics: Log what the machine does, every 10 s.
            parent_run_id: Run that this one is shown under.

        Raises:
            UserError: MLflow cannot be used.
        """
        with told_as_user_error(uri):
            from mlflow.tracking.context.registry import resolve_tags
            from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

            client = connect(uri)
            parent = {MLFLOW_PARENT_RUN_ID: parent_run_id} if parent_run_id else {}
            created = client.create_run(experiment_id, run_name=name, tags=resolve_tags({**tags, **parent}))
        run = cls(client, created.info.run_id, uri, buffer_dir)
        if system_metrics:
            run._system_metrics = SystemMetrics(run.log_metrics, run.run_id, uri)
        return run

    @classmethod
    def resume(cls, uri: str, run_id: str, buffer_dir: Path, *, system_metrics: bool = False) -> Run:
        """Return a run that exists, RUNNING again whatever it ended as.

        What its folder keeps and the server lacks is sent. A parameter, or a metric at a step, that either of them has
        is not logged again.

        Args:
            uri: Where it is kept; see `preflight`.
            run_id: Its id.
            buffer_dir: Folder for `metrics.jsonl` and `unsent.jsonl`; that of the run has them already.
            system_metrics: Log what the machine does, every 10 s.

        Raises:
            UserError: MLflow cannot be used, or has no such run.
        """
        with told_as_user_error(uri):
            from mlflow.exceptions import MlflowException

            client = connect(uri)
            try:
                data = client.get_run(run_id).data
                held: set[tuple[Kind, str, int]] = {("param", key, 0) for key in data.params}
                for key in data.metrics:
                    held.update(("metric", key, point.step) for point in client.get_metric_history(run_id, key))
                client.update_run(run_id, status="RUNNING")  # once all is read: until then it is as it was
            except MlflowException as error:
                if error.get_http_status_code() not in (400, 404):  # malformed or in the trash, and unknown
                    raise
                raise UserError(f"tracking.uri={redact(uri)}: has no run {run_id} to go on with.") from error
            for tag in data.tags.keys() & _OF_AN_END:
                client.delete_tag(run_id, tag)  # of an end that was none
        run = cls(client, run_id, uri, buffer_dir)
        run._catch_up(held)
        if system_metrics:
            sampled = [step for kind, key, step in run._held if kind == "metric" and key.startswith("system/")]
            run._system_metrics = SystemMetrics(run.log_metrics, run_id, uri, first_step=max(sampled, default=-1) + 1)
        return run

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters as text, cut to the 6,000 characters that MLflow keeps."""
        new = {key: value for key, value in params.items() if ("param", key, 0) not in self._held}
        self._put("param", {key: str(value)[:MAX_PARAM_LENGTH] for key, value in new.items()})

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the values of metrics at a step; NaN and infinities too."""
        assert not self._has_ended, "the run has ended"
        new = {key: value for key, value in metrics.items() if ("metric", key, step) not in self._held}
        facts = [Fact("metric", key, float(value), _now_ms(), step) for key, value in new.items()]
        self._metrics_file.write(b"".join(_line(asdict(fact)) for fact in facts))
        os.fsync(self._metrics_file.fileno())  # a loss of power leaves no state that is further than its metrics
        self._outbox.put(facts)

    def history(self) -> dict[int, dict[str, float]]:
        """Return the metrics logged at each step, in the order of the steps, without those of the machine."""
        rows: dict[int, dict[str, float]] = {}
        for fact in _facts(self._metrics_path.read_bytes()):
            if not fact.key.startswith("system/"):
                rows.setdefault(fact.step, {})[fact.key] = float(fact.value)
        return dict(sorted(rows.items()))

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags as text, cut to the 8,000 characters that MLflow keeps."""
        self._put("tag", {key: str(value)[:MAX_TAG_LENGTH] for key, value in tags.items()})

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Log a file or a folder, which is read when it is sent: it must stay in place until the run has ended."""
        self._put("artifact", {folder: str(path.absolute())})

    def log_text(self, text: str, artifact: str) -> None:
        """Log a text as the file `artifact`, a path among the run's artifacts."""
        self._put("text", {artifact: text})

    def log_dict(self, content: Mapping[str, Any], artifact: str) -> None:
        """Log a mapping as the JSON file `artifact`, a path among the run's artifacts."""
        self.log_text(json.dumps(content, indent=2) + "\n", artifact)

    def end(self, status: Status, reason: str | None = None) -> str | None:
        """Send what is left and set the status; the reason becomes the tag `status_reason`.

        Waits while the server takes what it is sent, and 15 s on one that does not answer. Ending a second time changes
        nothing.

        Returns:
            None, or the sentence that says what has not arrived and which file keeps it.
        """
        if self._has_ended:
            return self._last_word
        if self._system_metrics:
            self._system_metrics.stop()
        if reason is not None:
            self.set_tags({_REASON: reason})
        self._put("status", {"status": status})
        self._has_ended = True
        try:
            self._outbox.close()
        finally:  # also when Ctrl-C ends the wait
            self._metrics_file.close()
            self._last_word = self._keep(self._outbox.unsent)
        return self._last_word

    def _catch_up(self, held: set[tuple[Kind, str, int]]) -> None:
        """Send what the folder keeps of this run, less what the server holds, and remember both."""
        kept = [fact for fact in _facts(self._kept_before) if fact.kind != "status" and fact.key not in _OF_AN_END]
        self._kept_before = b""  # whatever of it does not arrive is kept again
        logged = self._metrics_path.read_bytes()
        num_whole = logged.rfind(b"\n") + 1
        self._metrics_file.truncate(num_whole)  # less what a machine that died was writing
        for fact in [*kept, *_facts(logged[:num_whole])]:
            identity = (fact.kind, fact.key, fact.step)
            if identity in held:
                continue
            self._outbox.put([fact])
            if fact.kind in ("param", "metric"):
                held.add(identity)
        self._held = held

    def _put(self, kind: Kind, values: Mapping[str, str]) -> None:
        assert not self._has_ended, "the run has ended"
        self._outbox.put(Fact(kind, key, value, _now_ms()) for key, value in values.items())

    def _deliver(self, facts: Sequence[Fact]) -> None:
        """Send facts of one kind; when that fails, find out whose fault it is."""
        from mlflow.exceptions import MlflowException

        try:
            self._send(facts)
            return
        except Exception as error:  # whatever MLflow, its HTTP client or an artifact store raises
            failure = error
        if why_lost := self._why_lost():
            raise Lost(why_lost)
        why = in_one_line(failure)
        if facts[0].kind in ("text", "artifact") or not isinstance(failure, MlflowException):
            raise RuntimeError(why)  # at fault may be the file, or an artifact store that is not MLflow's own
        # A server that answers and still cannot write has a full disk or a locked database: that will pass.
        raise (Lost if failure.get_http_status_code() >= 500 else Refused)(why)

    def _send(self, facts: Sequence[Fact]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        first = facts[0]
        match first.kind:
            case "metric":
                metrics = [Metric(fact.key, float(fact.value), fact.timestamp_ms, fact.step) for fact in facts]
                self._client.log_batch(self.run_id, metrics=metrics)
            case "param":
                self._client.log_batch(self.run_id, params=[Param(fact.key, str(fact.value)) for fact in facts])
            case "tag":
                self._client.log_batch(self.run_id, tags=[RunTag(fact.key, str(fact.value)) for fact in facts])
            case "text":
                self._client.log_text(self.run_id, str(first.value), first.key)
            case "artifact":
                self._client.log_artifact(self.run_id, str(first.value), first.key or None)
            case "status":
                self._client.set_terminated(self.run_id, str(first.value), end_time=first.timestamp_ms)

    def _why_lost(self) -> str | None:
        try:
            found = self._client.get_run(self.run_id)
        except Exception as error:  # whatever it is: a server that cannot tell of the run cannot be told of it
            return in_one_line(error)
        return None if found.info.lifecycle_stage == "active" else "the run has been deleted"

    def _keep(self, unsent: Sequence[Unsent]) -> str | None:
        """Write what has not arrived to `unsent.jsonl`, after what another run left there."""
        if not unsent:
            if not self._kept_before:
                self._unsent_path.unlink(missing_ok=True)
            return None
        rows = [asdict(each.fact) | ({"reason": each.reason} if each.reason else {}) for each in unsent]
        temporary = self._unsent_path.with_suffix(".tmp")
        temporary.write_bytes(self._kept_before + b"".join(map(_line, rows)))
        os.replace(temporary, self._unsent_path)

        counts = Counter(each.fact.kind for each in unsent)
        what = ", ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in counts.items())
        why = self._outbox.why_lost or next((each.reason for each in unsent if each.reason), "no answer in time")
        return (
            f"MLflow at {redact(self.uri)} did not take {what} of run {self.run_id} ({why}). "
            f"Kept in {self._unsent_path.absolute()}"
        )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _facts(lines: bytes) -> list[Fact]:
    """Read lines that `_line` wrote."""
    rows = map(json.loads, lines.splitlines())
    return [Fact(**{name: value for name, value in row.items() if name != "reason"}) for row in rows]


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"
