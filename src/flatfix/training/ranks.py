"""Processes that train one model together: what rank 0 decides, who goes first, and how all end when one of them fails.

Rank 0 leads: it alone publishes, tracks, prints and reports, and it is the one whose run is read about. The others
follow it, whether it has started them or torchrun or Slurm has. What they tell one another in words goes through the
store in which `torch.distributed` lets processes find each other, so that it needs no further port; tensors and what
all must decide alike go through its process group.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from types import FrameType
from typing import IO, Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from flatfix.config.exit_codes import ExitCode
from flatfix.console import complain, console, errors
from flatfix.errors import Failure, UserError
from flatfix.machine import CORES, death, num_cores
from flatfix.training.devices import Place
from flatfix.training.interruption import SIGNALS

RANK = "from flatfix.training.rank import main; main()"
THREADS = "OMP_NUM_THREADS"
LOOK_EVERY_S = 0.2
HEARING_S = 2.0  # from what one process sees of another's end to what the other said of it
GRACE_S = 6.0  # in which rank 0 gets out of waiting for one that is gone
LAST_LINES = 20  # of what a process printed, where it ended without a word
FOREVER = timedelta(days=30)

T = TypeVar("T")


class Ranks:
    """The processes that train together, as one of them sees them; of a process by itself, nobody else."""

    def __init__(self, place: Place, store: Store | None = None) -> None:
        self.place = place
        self._store = store
        self._num_turns = 0
        self._joined = ExitStack()
        self.at_worst: Callable[[str], None] = lambda reason: None
        """Is told why, in another thread, when rank 0 must end without getting out of what it waits for."""

    def tell(self, decision: Mapping[str, Any]) -> None:
        """Tell the others, in plain values, what they are to do."""
        if self._store:
            self._store.set("decision", json.dumps(decision))

    def told(self) -> dict[str, Any]:
        """Wait for what rank 0 tells; from then on it alone heeds signals, and lets all stop at the same step."""
        assert self._store
        self._store.wait(["decision"], FOREVER)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        decision: dict[str, Any] = json.loads(self._store.get("decision"))
        return decision

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Have the first process of each machine go through the block before the others: what it makes, they find."""
        self._num_turns += 1
        done = f"turn/{self._num_turns}/{self.place.machine}"
        if self._store and self.place.local_rank:
            self._store.wait([done], FOREVER)
        yield
        if self._store and not self.place.local_rank:
            self._store.set(done, "")

    def join(self, device: torch.device) -> None:
        """Let tensors on this device, and on the processor, go between the processes, which divide the cores."""
        if self._store:
            shares = {} if self.place.is_started else _shares(self.place)
            self._joined.enter_context(_environment(shares))
            self._joined.enter_context(_threads(int(os.environ.get(THREADS, torch.get_num_threads()))))
            backend = "gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:nccl"
            dist.init_process_group(backend, store=self._store, rank=self.place.rank, world_size=self.place.num_ranks)
            self._joined.callback(dist.destroy_process_group)

    def leave(self) -> None:
        """Have done with what needs the others; a second time changes nothing."""
        self._joined.close()


def from_rank_zero(make: Callable[[], T]) -> T:
    """Return what `make` gives in rank 0 to every process that has joined, so that all of them decide alike."""
    if not dist.is_initialized():
        return make()
    box: list[Any] = [make() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    value: T = box[0]
    return value


def is_true_of_any(decision: bool) -> bool:
    """Tell every process that has joined whether one of them decided so; no GPU is waited for."""
    if not dist.is_initialized():
        return decision
    votes = torch.tensor(int(decision))
    dist.all_reduce(votes, dist.ReduceOp.MAX)
    return bool(votes)


@contextmanager
def leading(place: Place) -> Iterator[Ranks]:
    """Have the others run beside the block, which is that of rank 0; they are gone when it is left.

    Raises:
        Failure: another process has failed, or was killed.
        UserError: another process has refused to go on.
    """
    if place.num_ranks == 1:
        yield Ranks(place)
        return
    place, store = _found(place)
    with _environment(place.variables(place.rank)), _Children(place) as children:
        ranks = Ranks(place, store)
        watch = _Watch(ranks, store.clone(), children)
        try:
            children.start()
            yield ranks
        except BaseException as error:
            if place.is_started:  # what started all ends all where one is gone, and there is an end to be told of
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            failure = watch.failure_behind(error)
            if failure is None:
                raise
            raise failure from None
        finally:
            ranks.leave()
            watch.close()


@contextmanager
def following(place: Place) -> Iterator[Ranks]:
    """Go through the block as another than rank 0: in silence, as long as rank 0 wants, and telling it of any error."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)  # a handler would have to wait until rank 0 has spoken
    place, store = _found(place)
    console.quiet = errors.quiet = True
    ranks = Ranks(place, store)
    with _environment(place.variables(place.rank)):
        try:
            yield ranks
            with suppress(dist.DistError):  # rank 0 is gone, with nothing left to do
                store.set(f"done/{place.rank}", "")
        except Exception as error:
            if not _is_lost(error):  # else it only suffers from the end of another
                is_refusal = isinstance(error, UserError)
                text = str(error) if is_refusal else traceback.format_exc().rstrip()
                store.compare_set("failure", "", json.dumps([place.rank, is_refusal, text]))  # the first one counts
            raise
        finally:
            ranks.leave()


class _Children:
    """The processes that rank 0 has started, and what they print."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._outputs: dict[int, IO[bytes]] = {}

    def __enter__(self) -> _Children:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        for process in self._processes.values():
            if error is None:
                with suppress(subprocess.TimeoutExpired):  # it is done, too
                    process.wait(GRACE_S)
            process.kill()
        for process in self._processes.values():
            process.wait()
            assert process.stdin
            process.stdin.close()
        for output in self._outputs.values():
            output.close()

    def start(self) -> None:
        if not self._place.is_started:
            for rank in range(1, self._place.num_ranks):
                self._start(rank)

    def kill(self) -> None:
        for process in self._processes.values():
            process.kill()

    def dead(self) -> Iterator[tuple[int, str]]:
        """Return the rank of each that ended with an error, and how it did."""
        for rank, process in list(self._processes.items()):  # more may be started meanwhile
            if process.poll() not in (None, ExitCode.DONE):
                output = self._outputs[rank]
                output.seek(0)
                lines = output.read().decode(errors="replace").splitlines()[-LAST_LINES:]
                how = f"the process of rank {rank} ({process.pid}) ended: {death(process.returncode)}"
                yield rank, "\n  ".join([f"{how}. The last that it printed:" if lines else f"{how}.", *lines])

    def _start(self, rank: int) -> None:
        self._outputs[rank] = tempfile.TemporaryFile()  # noqa: SIM115
        self._processes[rank] = subprocess.Popen(
            [sys.executable, "-P", "-c", RANK],
            stdin=subprocess.PIPE,  # closes with this process, however that ends
            stdout=self._outputs[rank],
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                **self._place.variables(rank),
                **_shares(self._place),
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },
            start_new_session=True,  # Ctrl-C in the terminal is for rank 0
        )


class _Watch:
    """Look whether all others live and do well, while rank 0 trains.

    What one of them says of its failure counts, else how its process ended. Rank 0 is told in its main thread, by the
    signal that comes with the end of a child anyway; torch's DataLoader does the same for its workers. It may be
    waiting for the one that is gone, in a library that heeds no signal: with gloo the wait fails at once, with NCCL it
    does not, and the process is ended from here.
    """

    def __init__(self, ranks: Ranks, store: Store, children: _Children) -> None:
        self._ranks = ranks
        self._store = store  # of its own: one that is waited with answers nobody else
        self._children = children
        self._failure: BaseException | None = None
        self._is_found = threading.Event()
        self._is_over = threading.Event()
        self._is_heard = False
        self._thread = threading.Thread(target=self._look, name="ranks", daemon=True)

        self._before: Any = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGCHLD, self._heed)
        self._thread.start()

    def close(self) -> None:
        """Look no longer."""
        self._is_over.set()
        self._thread.join()
        if self._before is not None:
            signal.signal(signal.SIGCHLD, self._before)

    def failure_behind(self, error: BaseException) -> BaseException | None:
        """Return the failure of another process that an error of rank 0 comes from, None where it is its own.

        From here on rank 0 has `GRACE_S` to get away from the others, which are ended.
        """
        self._is_heard = True
        is_signal = not isinstance(error, Exception)  # torchrun sends one to all when one is gone
        cause = error.__context__ if is_signal else error
        if isinstance(cause, RuntimeError) and not self._failure:  # a connection is lost sooner than it is known why
            self._is_found.wait(HEARING_S)
        failure = self._failure
        if _is_lost(cause):
            failure = failure or Failure(f"another process is gone: {cause}")
        elif (is_signal or isinstance(error, UserError)) and cause is not failure:
            failure = None
        self._failure = failure or error
        return failure

    def _look(self) -> None:
        while not self._failure:
            if self._is_over.wait(LOOK_EVERY_S):
                return
            if failure := self._find():
                self._failure = failure
        self._is_found.set()
        self._children.kill()
        os.kill(os.getpid(), signal.SIGCHLD)
        if not self._is_over.wait(GRACE_S):
            self._end(self._failure)

    def _find(self) -> Failure | UserError | None:
        try:
            dead = [how for rank, how in self._children.dead() if not self._store.check([f"done/{rank}"])]
            if self._store.check(["failure"]):
                rank, is_refusal, text = json.loads(self._store.get("failure"))
                return UserError(text) if is_refusal else Failure(f"rank {rank} failed.\n{text}")
        except Exception as error:  # where this thread ended in silence, rank 0 would wait for ever
            return Failure(f"the other processes are out of sight: {error}")
        return Failure(dead[0]) if dead else None

    def _heed(self, number: int, frame: FrameType | None) -> None:
        if self._failure and not self._is_heard:
            self._is_heard = True
            raise self._failure

    def _end(self, failure: BaseException) -> NoReturn:
        self._ranks.at_worst(f"{type(failure).__name__}: {failure}")
        complain(f"error: {failure}")
        os._exit(ExitCode.ERROR)


def _is_lost(error: BaseException | None) -> bool:
    """Tell whether an error is that of a connection to another process, of which gloo has no class."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo/transport" in str(error))


def _found(place: Place) -> tuple[Place, Store]:
    """Return a place, with its port, and the store there; where torchrun or Slurm started all, once they are there."""
    if not place.is_started:
        store = TCPStore(place.address, 0, is_master=True, wait_for_workers=False)
        return replace(place, port=store.port), store
    url = f"tcp://{place.address}:{place.port}"
    return place, next(iter(rendezvous(url, place.rank, place.num_ranks)))[0]


def _shares(place: Place) -> dict[str, str]:
    """Return the variables that give a process its share of the machine."""
    cores = max(1, num_cores() // place.num_local)
    asked = os.environ.get(THREADS, "")
    return {CORES: str(cores), THREADS: str(min(cores, int(asked)) if asked.isdecimal() else cores)}


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Have torch compute in so many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
