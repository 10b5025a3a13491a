"""A lock between machines that share nothing but an S3 server: an object that its holder renews."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
import uuid
from contextlib import suppress

from flatfix.console import say
from flatfix.data import s3
from flatfix.errors import UserError

LEASE_S = 30.0  # not renewed for so long, it is anybody's
POLL_S = 1.0
FREE = b""
NO_TAG = '"00000000000000000000000000000000"'  # of no content


class Lease:
    """Hold the object at `uri`, which says for whom, and renew it until it is released.

    All writes are conditional on what was there before, so of two that take it at once one fails. Whether a holder
    is still alive is told by the server's clock alone. `server` is what `s3.client` takes.
    """

    def __init__(self, uri: str, *server: str | None) -> None:
        self._uri = uri
        self._server = server
        self._mark = f"{socket.gethostname()} (process {os.getpid()}) {uuid.uuid4().hex}"
        self._tag: str | None = None
        self._renewed = 0.0  # by the clock on the wall: the monotonic one stands still while a machine sleeps
        self._turn = threading.Lock()
        self._is_released = threading.Event()

    def take(self) -> None:
        """Wait until nobody holds the lease, and hold it.

        Where the server knows no conditional writes, say so and hold nothing: nobody is kept out.
        """
        try:
            self._wait_and_take()
            # Some servers pass over a condition rather than refuse it, or know but one of the two.
            for untrue in (None, NO_TAG):
                if s3.put(self._uri, FREE, *self._server, over=untrue) is not None:
                    raise s3.UnconditionalServerError
        except s3.UnconditionalServerError:
            say(f"{self._uri}: this server has no conditional writes. Let nobody else publish this version meanwhile.")
            self._is_released.set()
            s3.put(self._uri, FREE, *self._server)  # that nobody waits for us
            return
        threading.Thread(target=self._keep, daemon=True).start()

    def confirm(self) -> None:
        """Return if the lease is still held, and will be for `LEASE_S / 2`.

        Raises:
            UserError: when another took it, after this process was out of touch, or the server cannot be asked.
        """
        with self._turn:
            if not self._is_released.is_set() and time.time() - self._renewed > LEASE_S / 2:
                self._renew()

    def release(self) -> None:
        """Let others have it at once; if that fails they have to wait for its end."""
        with self._turn:
            if self._tag and not self._is_released.is_set():
                self._is_released.set()
                with suppress(UserError, OSError):
                    s3.put(self._uri, FREE, *self._server, over=self._tag, is_hasty=True)

    def _keep(self) -> None:
        while not self._is_released.wait(LEASE_S / 3):
            with self._turn, suppress(UserError, OSError):  # `confirm` will say
                if not self._is_released.is_set():
                    self._renew(is_hasty=True)

    def _renew(self, is_hasty: bool = False) -> None:
        if not self._write(over=self._tag, is_hasty=is_hasty):
            raise UserError(
                f"{_holder(self._look())} took over {self._uri}, as this process was out of touch for more than "
                f"{LEASE_S:.0f} s. Nothing was published. Run again."
            )

    def _wait_and_take(self) -> None:
        told = ""
        while True:
            seen = self._look()
            is_free = seen is None or seen.content == FREE or seen.age_s > LEASE_S
            if is_free and self._write(over=seen and seen.tag):
                return
            if (holder := _holder(seen)) != told:
                say(f"waiting for {holder}, which holds {self._uri}")
                told = holder
            time.sleep(random.SystemRandom().uniform(0.5, 1) * POLL_S)

    def _write(self, over: str | None, is_hasty: bool = False) -> bool:
        """Write the object if it is still as it was; say whether."""
        for _ in range(s3.ATTEMPTS):
            now = time.time()
            content = f"{self._mark} {uuid.uuid4().hex}".encode()  # no two writes have the same tag
            tag = s3.put(self._uri, content, *self._server, over=over, is_hasty=is_hasty)
            if tag:
                self._tag, self._renewed = tag, now
                return True
            seen = self._look()
            if seen is None or not seen.content.startswith(self._mark.encode()):
                return False
            over = seen.tag  # a request of ours arrived, though its answer did not
        return False

    def _look(self) -> s3.Seen | None:
        with suppress(FileNotFoundError):
            return s3.look(self._uri, *self._server)
        return None


def _holder(seen: s3.Seen | None) -> str:
    """Return who holds a lease, and another if that is not known."""
    return seen.content.decode(errors="replace").rsplit(" ", 2)[0] if seen and seen.content else "another"
