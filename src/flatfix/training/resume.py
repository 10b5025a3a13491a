"""Where a run starts from: from nothing, from what another run reached, or from where it was itself interrupted."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from flatfix.config.entry import LOCK, command_line, go_on_in
from flatfix.config.text import as_written
from flatfix.console import complain, say
from flatfix.data.manifest import Manifest
from flatfix.errors import UserError, enumerated
from flatfix.files import locked, replacing
from flatfix.models import weights
from flatfix.registry.register import PENDING
from flatfix.tracking import past
from flatfix.tracking.connection import redact
from flatfix.tracking.past import PastRun
from flatfix.training import snapshots
from flatfix.training.facts import GIT_COMMIT, config_digest, deciding, is_below
from flatfix.training.snapshots import BEST, CHECKPOINTS

Config = Mapping[str, Any]

# Tags of every run.
CONFIG_DIGEST = "config_digest"
FOLDER = "folder"
# Tags of some.
SWEEP = "sweep"
NUM_RESUMES = "num_resumes"
RESUMED_FROM = "resumed_from"

AUTO = "auto"
# What a full state holds the values of, or is shaped by: another setting would be ignored, or would not fit.
OF_A_STATE = (
    "model.freeze",
    "model.name",
    "model.options",
    "optimizer",
    "scheduler",
    "trainer.decay_norms_and_biases",
    "trainer.devices",
    "trainer.ema_decay",
    "trainer.num_nodes",
)


@dataclass(frozen=True)
class Start:
    """Where a run starts from, in plain values.

    Attributes:
        folder: of the run.
        config_digest: see `flatfix.training.facts`.
        run_id: the run in MLflow that goes on; None for a new one.
        state: the full state to go on from.
        weights: what the classifier's weights, and its pixel statistics, are first taken from.
        resumed_from: the run or the file that a new run starts from.
        num_resumes: how often a run has gone on, this time included.
        has_facts: whether MLflow has what the run recorded of itself when it began.
        dataset_digest: of the dataset version that the run must have.
        classes: that the dataset version must have.
        batch_size: of the run that goes on.
        origin: of its weights, when it began.
    """

    folder: Path
    config_digest: str
    run_id: str | None = None
    state: Path | None = None
    weights: Path | None = None
    resumed_from: str | None = None
    num_resumes: int = 0
    has_facts: bool = False
    dataset_digest: str | None = None
    classes: tuple[str, ...] | None = None
    batch_size: int | None = None
    origin: str | None = None

    def settle(self, cfg: Config) -> Config:
        """Return the config of this start: in the run's folder, and with the batch size that it once chose."""
        settled = {**cfg, "paths": {**cfg["paths"], "run": str(self.folder)}}
        if self.batch_size:
            settled["dataset"] = {**cfg["dataset"], "batch_size": self.batch_size}
        return settled

    def tags(self) -> dict[str, str]:
        """Return the tags that a run has from this start on."""
        tags = {CONFIG_DIGEST: self.config_digest, FOLDER: str(self.folder.absolute())}
        if self.resumed_from:
            tags[RESUMED_FROM] = self.resumed_from
        if self.num_resumes:
            tags[NUM_RESUMES] = str(self.num_resumes)
        return tags

    def check_dataset(self, manifest: Manifest) -> None:
        """Refuse a dataset version that this start does not fit.

        Raises:
            UserError: naming both.
        """
        version = f"dataset.version={manifest.version}"
        if self.dataset_digest not in (None, manifest.digest):
            raise UserError(
                f"{version}: its digest is {manifest.digest[:12]}, and run {self.run_id} began with "
                f"{str(self.dataset_digest)[:12]}. Go on with the store that it began with, or in a new run with "
                "resume.mode=branch."
            )
        if self.classes not in (None, manifest.classes):
            raise UserError(
                f"{version}: has the classes {', '.join(manifest.classes)}, and the state is of "
                f"{', '.join(self.classes or ())}. resume.mode=finetune takes the weights alone."
            )


@dataclass(frozen=True)
class Record:
    """What the folder of a run tells whoever goes on with it: `run.json`.

    Attributes:
        run_id: in MLflow.
        dataset_digest: of the dataset version.
        config: as it was logged.
        origin: of the weights; None before there are any.
    """

    run_id: str
    dataset_digest: str
    config: dict[str, Any]
    origin: str | None = None

    def write(self, folder: Path) -> None:
        """Keep it in the folder of the run."""
        with replacing(folder / "run.json", durable=True) as partial:
            partial.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """Return what a folder keeps, or None where it is not that of a run, or no longer tells of which."""
        path = folder / "run.json"
        if not path.is_file():
            return None
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, ValueError):  # not JSON, or not such
            complain(f"{path}: damaged, so that the run of this folder cannot go on.")
            return None


def check(cfg: Config) -> None:
    """Refuse options that contradict one another, or that have no effect.

    Raises:
        UserError: naming them.
    """
    source, mode = cfg["resume"]["from"], cfg["resume"]["mode"]
    if source is None:
        if mode != "continue":
            raise UserError(f"resume.mode={mode}: has no effect without resume.from. Name a run or a file there.")
        return
    if source == AUTO and mode != "continue":
        raise UserError(
            f"resume.mode={mode}: resume.from=auto looks for a run that is to go on. Name a run or a file there, or "
            "set resume.mode=continue."
        )
    if mode != "finetune" and cfg["trainer"]["overfit_below"]:
        raise UserError(f"resume.from={source}: the one-batch test (trainer.overfit_below) keeps no state.")


@contextmanager
def starting(cfg: Config, experiment_id: str, dataset_digest: str | None = None) -> Iterator[Start]:
    """Choose where a run starts from, say so, and keep its folder from other processes.

    Args:
        cfg: the validated config, which `check` has seen.
        experiment_id: of the runs that `resume.from=auto` chooses from.
        dataset_digest: of the dataset version that the store holds, which those runs must have; None where that is
            still to be published.

    Raises:
        UserError: for a `resume.from` that cannot be started from, or a folder that holds another run.
    """
    source, mode = cfg["resume"]["from"], cfg["resume"]["mode"]
    with ExitStack() as held:
        start = None
        if source == AUTO:
            start = _newest_unfinished(cfg, experiment_id, dataset_digest, held)
        elif source is not None and mode == "continue":
            start = _continued(cfg, held)
        if start is None:
            start = _new(cfg, held)
            if mode == "finetune":
                start = _finetuned(cfg, start)
            elif mode == "branch":
                start = _branched(cfg, start)
        yield start


def unregistered(cfg: Config, experiment_id: str, dataset_digest: str | None = None) -> tuple[str, Path] | None:
    """Return the newest run that finished and died before it was registered, and its folder here.

    Args:
        cfg: the validated config, which it has; None is found unless `resume.from=auto`.
        experiment_id: of the run.
        dataset_digest: of the dataset version, see `starting`.
    """
    if cfg["resume"]["from"] != AUTO or not cfg["registry"]["register"]:
        return None
    tags = {CONFIG_DIGEST: config_digest(cfg), PENDING: "true"}
    for run in past.finished(cfg["tracking"]["uri"], experiment_id, tags):
        folder = Path(run.tags[FOLDER])
        record = _kept(run, folder)
        if record is None or dataset_digest not in (None, record.dataset_digest):
            continue
        with ExitStack() as held:
            if _lock(folder, held):  # else it is being registered
                say(
                    f"resume: run {run.run_id} has finished, and only its registration is left (for a new run: "
                    "resume.from=null)"
                )
                go_on_in(folder)
                return run.run_id, folder
    return None


def command(run_id: str) -> str:
    """Return the command that goes on with a run of this process."""
    resuming, begun = f"resume.from={run_id}", command_line()
    if begun is None:
        return resuming
    program, *words = begun
    kept = [word for word in words if not word.lstrip("+").startswith("resume.")]
    hidden = [re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", word) for word in kept]
    return shlex.join(["python", program, *hidden, resuming])


def _new(cfg: Config, held: ExitStack) -> Start:
    folder = Path(cfg["paths"]["run"])
    metrics = folder / "metrics.jsonl"
    if (folder / CHECKPOINTS).exists() or (metrics.is_file() and metrics.stat().st_size):
        raise UserError(f"paths.run={folder}: holds another run. Name another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    if not _lock(folder, held):
        raise UserError(f"paths.run={folder}: another run begins there. Name another folder.")
    return Start(folder, config_digest(cfg))


def _newest_unfinished(cfg: Config, experiment_id: str, dataset_digest: str | None, held: ExitStack) -> Start | None:
    """Return where the newest run goes on that has this config and has not finished, or None where there is none.

    One without a state begins again if this start is for its folder.
    """
    uri = cfg["tracking"]["uri"]
    for run in past.unfinished(uri, experiment_id, CONFIG_DIGEST, config_digest(cfg)):
        folder = Path(run.tags[FOLDER])
        record = _kept(run, folder)
        if record is None:
            continue
        if dataset_digest not in (None, record.dataset_digest):
            say(f"resume: run {run.run_id} has this config too, began with another dataset version, and is left alone")
            continue
        with ExitStack() as lock:
            if not _lock(folder, lock):
                say(f"resume: run {run.run_id} has this config too, is trained by another process, and left alone")
                continue
            now = past.find(uri, run.run_id)  # whoever held the lock may have finished it
            if now is None or now.status == "FINISHED":
                continue
            state = snapshots.newest_intact(folder / CHECKPOINTS)
            if state or folder == Path(cfg["paths"]["run"]).absolute():
                held.enter_context(lock.pop_all())
                return _going_on(now, folder, record, state)
    say("resume: no unfinished run of this config has an intact state on this machine; a new run begins")
    return None


def _kept(run: PastRun, folder: Path) -> Record | None:
    """Return what this machine keeps of a run that its config alone may find, else None.

    A run that started from another one, or from a file, has more than its config, and a sweep keeps account of its
    trials: they go on by their ids alone.
    """
    if {RESUMED_FROM, SWEEP} & run.tags.keys() or not os.access(folder, os.W_OK):
        return None
    record = Record.read(folder)
    return record if record and record.run_id == run.run_id else None


def _continued(cfg: Config, held: ExitStack) -> Start:
    """Return where the run goes on that `resume.from` names, itself or by one of its states."""
    named = _named(cfg)
    if isinstance(named, Path):
        found = named.parent.parent
        record = Record.read(found)
        if record is None:
            _refuse(cfg, "lies in no folder of a run. resume.mode=branch and finetune start a new run from a file.")
        run = _run(cfg, record.run_id)
        folder = _folder(cfg, run)
        if not folder.samefile(found):
            _refuse(cfg, f"is a copy: run {record.run_id} lies in {folder}. Name it there, or set resume.mode=branch.")
    else:
        run = _run(cfg, named)
        folder = _folder(cfg, run)
        record = Record.read(folder)
    if not _lock(folder, held):
        _refuse(cfg, "another process trains this run. Wait for its end, or end it.")
    run = _run(cfg, run.run_id)  # whoever held the lock may have finished it
    if run.status == "FINISHED":
        _refuse(cfg, "the run is FINISHED. For a new run that starts from it set resume.mode=finetune or branch.")
    if record is None or record.run_id != run.run_id:
        _refuse(cfg, f"its folder {folder} holds nothing of it any more, so that it cannot go on.")
    _refuse_differences(
        cfg,
        _differences(record.config, cfg),
        "the run has another config. Repeat its options, or set resume.mode=branch for a new run from its state",
    )
    return _going_on(run, folder, record, _state(cfg, named, folder))


def _going_on(run: PastRun, folder: Path, record: Record, state: Path | None) -> Start:
    done = _done(weights.read(state, "resume.from")) if state else "its beginning, for want of a state"
    say(f"resume: run {record.run_id} goes on from {done}, in {folder} (for a new run: resume.from=null)")
    go_on_in(folder)
    tags = run.tags
    return Start(
        folder,
        tags[CONFIG_DIGEST],
        run_id=record.run_id,
        state=state,
        weights=state,
        num_resumes=int(tags.get(NUM_RESUMES, 0)) + 1,
        has_facts=GIT_COMMIT in tags,
        dataset_digest=record.dataset_digest,
        batch_size=record.config["dataset"]["batch_size"],
        origin=record.origin,
    )


def _branched(cfg: Config, start: Start) -> Start:
    """Return how a new run starts from a full state."""
    named = _named(cfg)
    folder = named.parent.parent if isinstance(named, Path) else _folder(cfg, _run(cfg, named))
    if record := Record.read(folder):
        differences = _differences(record.config, cfg)
        _refuse_differences(
            cfg,
            {name: each for name, each in differences.items() if is_below(name, OF_A_STATE)},
            "a full state goes with these options. Set them back, or set resume.mode=finetune, which takes the "
            "weights alone",
        )
    state = _state(cfg, named, folder)
    content = weights.read(state, "resume.from")
    spec = _checked_spec(cfg, content)
    if spec is None:
        _refuse(cfg, "not a state of a run.")
    if content[snapshots.KEY]["should_stop"] or _num_epochs(content) >= cfg["trainer"]["max_epochs"]:
        _refuse(
            cfg,
            f"its training is over after {_done(content)}. Raise trainer.max_epochs, name an earlier state, or set "
            "resume.mode=finetune.",
        )
    say(f"resume: a new run goes on from {_done(content)} of {state}")
    return replace(start, state=state, weights=state, resumed_from=str(named), classes=tuple(spec["classes"]))


def _finetuned(cfg: Config, start: Start) -> Start:
    """Return how a new run starts from weights."""
    named = _named(cfg)
    file = named if isinstance(named, Path) else _folder(cfg, _run(cfg, named)) / CHECKPOINTS / BEST
    if not file.is_file():
        _refuse(cfg, f"the run has no {file}, which the first epoch writes.")
    _checked_spec(cfg, weights.read(file, "resume.from"))
    return replace(start, weights=file, resumed_from=str(named))


def _num_epochs(state: Mapping[str, Any]) -> int:
    num_epochs: int = state["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"]
    return num_epochs


def _done(state: Mapping[str, Any]) -> str:
    """Say how far a state is."""
    return f"step {state['global_step']:,} (epochs done: {_num_epochs(state)})"


def _named(cfg: Config) -> Path | str:
    """Return what `resume.from` names: a file, or the id of a run."""
    source: str = cfg["resume"]["from"]
    path = Path(source).expanduser().absolute()
    if path.is_file():
        return path
    if path.is_dir() and (record := Record.read(path)):
        _refuse(cfg, f"a folder. Its run is resume.from={record.run_id}")
    if not re.fullmatch("[0-9a-f]{32}", source):
        _refuse(cfg, "no such file, and not the id of a run in MLflow (32 of 0-9 and a-f), nor auto.")
    return source


def _run(cfg: Config, run_id: str) -> PastRun:
    uri = cfg["tracking"]["uri"]
    run = past.find(uri, run_id)
    if run is None:
        _refuse(cfg, f"tracking.uri={redact(uri)} has no run {run_id}. Is it kept elsewhere?")
    if run.is_in_trash:
        _refuse(cfg, f"run {run_id} lies in MLflow's trash. Restore it with\n  mlflow runs restore --run-id {run_id}")
    return run


def _folder(cfg: Config, run: PastRun) -> Path:
    folder = Path(run.tags.get(FOLDER, ""))
    if folder.is_absolute() and folder.is_dir():
        return folder
    where = f"its folder {folder} is not on this machine" if FOLDER in run.tags else "it has no tag folder"
    _refuse(
        cfg,
        f"{where}. Weights that it logged can start a new run:\n"
        f"  mlflow artifacts download --run-id {run.run_id} --artifact-path {CHECKPOINTS}/{BEST} -d .\n"
        f"  resume.from={CHECKPOINTS}/{BEST} resume.mode=finetune",
    )


def _state(cfg: Config, named: Path | str, folder: Path) -> Path:
    """Return the state that is named, else the newest in the folder of the run that is; intact."""
    if isinstance(named, Path):
        if not snapshots.is_intact(named):
            _refuse(cfg, "not an intact state. Name another, or the run, whose newest intact one is found.")
        return named
    state = snapshots.newest_intact(folder / CHECKPOINTS)
    if state is None:
        _refuse(cfg, f"no intact state in {folder / CHECKPOINTS}. resume.mode=finetune starts from the best weights.")
    return state


def _checked_spec(cfg: Config, content: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return what a checkpoint tells of its classifier, None where it is not one of ours, and refuse another model."""
    spec = weights.stored_spec(content)
    if spec and spec["name"] != cfg["model"]["name"]:
        _refuse(cfg, f"holds a {spec['name']}, and model.name={cfg['model']['name']}. Choose model.name={spec['name']}")
    return spec


def _lock(folder: Path, held: ExitStack) -> bool:
    """Take the lock of a folder, which says that a process trains there, and return whether it was free."""
    try:
        held.enter_context(locked(folder / LOCK, waits=False))
    except BlockingIOError:
        return False
    return True


def _differences(config: Config, cfg: Config) -> dict[str, str]:
    """Return of each option that decides, and differs, what it was and what it is."""
    if cfg["dataset"]["batch_size"] == AUTO:  # the record has the number
        cfg = {**cfg, "dataset": {**cfg["dataset"], "batch_size": config["dataset"]["batch_size"]}}
    before, now = deciding(config), deciding(cfg)

    def shown(values: Config, name: str) -> str:
        return as_written(values[name]) if name in values else "absent"

    names = sorted({*before, *now})
    return {
        name: f"{name}={shown(before, name)} there, {shown(now, name)} here"
        for name in names
        if (name in before) != (name in now) or before.get(name) != now.get(name)
    }


def _refuse_differences(cfg: Config, differences: Mapping[str, str], fault: str) -> None:
    if differences:
        _refuse(cfg, f"{fault}:{enumerated([*differences.values()])}")


def _refuse(cfg: Config, fault: str) -> NoReturn:
    raise UserError(f"resume.from={cfg['resume']['from']}: {fault}")
