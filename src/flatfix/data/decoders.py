"""Decode batches of pictures, in processes where there are enough pictures to pay for them."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from flatfix.inference.decode import UnreadableImageError, load

Process = subprocess.Popen[bytes]
SERVE = "from flatfix.data.decoders import serve; serve()"


class UnreadablePictureError(Exception):
    """Report the picture of a batch that does not decode: its place in the batch, and the reason."""

    def __init__(self, place: int, reason: str) -> None:
        super().__init__(place, reason)
        self.place, self.reason = place, reason


class Decoders:
    """Decode pictures to `[size, size, 3]` in some processes, or (with none) in the threads that ask.

    The processes are fresh interpreters that read work from a pipe. They end when it closes, and so with this process
    however it ends; Ctrl-C is not for them. They share no locks with the threads of this process, as forked ones
    would, and import nothing of its main script, as those of `multiprocessing` that are not forked do.
    """

    def __init__(self, size: int, rule: str, num_processes: int) -> None:
        self._size, self._rule = size, rule
        self._processes = [_start() for _ in range(num_processes)]
        self._idle: SimpleQueue[Process] = SimpleQueue()
        for process in self._processes:
            self._idle.put(process)

    def __enter__(self) -> Decoders:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            _end(process)

    def decode(self, pictures: Sequence[bytes]) -> NDArray[np.uint8]:
        """Return `[N, size, size, 3]`; any number of threads may ask at once.

        Raises:
            UnreadablePictureError: for the first picture that does not decode.
            RuntimeError: when a process was killed.
        """
        if not self._processes:
            return _decode(pictures, self._size, self._rule)
        process = self._idle.get()
        try:
            return self._ask(process, pictures)
        except (EOFError, BrokenPipeError) as error:
            raise RuntimeError(
                f"a process that decodes pictures ended (exit code {process.wait()}); if it was killed, memory was "
                "short: lower dataset.batch_size"
            ) from error
        finally:
            self._idle.put(process)

    def _ask(self, process: Process, pictures: Sequence[bytes]) -> NDArray[np.uint8]:
        assert process.stdin and process.stdout
        pickle.dump((pictures, self._size, self._rule), process.stdin, pickle.HIGHEST_PROTOCOL)
        process.stdin.flush()
        unreadable: UnreadablePictureError | None = pickle.load(process.stdout)
        if unreadable:
            raise unreadable
        pixels = np.empty((len(pictures), self._size, self._size, 3), np.uint8)
        if process.stdout.readinto(pixels.reshape(-1).data) < pixels.nbytes:  # type: ignore[attr-defined]
            raise EOFError
        return pixels


def serve() -> None:
    """Decode what comes on the standard input until it ends, and write pixels to the standard output."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    with suppress(EOFError, pickle.UnpicklingError, BrokenPipeError):  # as the one who asks ends, or is killed
        while True:
            pictures, size, rule = pickle.load(source)
            try:
                pixels = _decode(pictures, size, rule)
            except UnreadablePictureError as error:
                pickle.dump(error, sink)
            else:
                pickle.dump(None, sink)
                sink.write(pixels.reshape(-1).data)
            sink.flush()


def _decode(pictures: Sequence[bytes], size: int, rule: str) -> NDArray[np.uint8]:
    pixels = np.empty((len(pictures), size, size, 3), np.uint8)
    for place, data in enumerate(pictures):
        try:
            pixels[place] = load(data, size, rule)
        except UnreadableImageError as error:
            raise UnreadablePictureError(place, str(error)) from error
    return pixels


def _start() -> Process:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")  # numpy would start some that idle
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(
        [sys.executable, "-P", "-c", SERVE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **threads, "PYTHONPATH": path},
        start_new_session=True,
    )


def _end(process: Process) -> None:
    assert process.stdin and process.stdout
    with suppress(BrokenPipeError):  # it was killed
        process.stdin.close()
    process.stdout.close()
    process.wait()
