"""Decode the pictures of requests beside the event loop."""

from __future__ import annotations

import asyncio
import warnings
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from flatfix.inference.decode import (
    Box,
    TooManyPixelsError,
    UnknownFormatError,
    UnreadableImageError,
    load_with_sides,
)
from flatfix.serving.explain import shown_box
from flatfix.serving.metrics import Metrics
from flatfix.serving.problems import Problem

# Pillow warns of what is odd in a picture, in words of the picture's own: clients would write the log, and fill the
# memory in which Python keeps each text that was warned of.
warnings.filterwarnings("ignore", module=r"PIL\.")

_Loaded = tuple[NDArray[np.uint8], tuple[float, float]]


class Decoders:
    """Decode on a few threads: simplejpeg and Pillow let go of the interpreter while they decode and scale."""

    def __init__(self, num_threads: int, max_pixels: int, metrics: Metrics) -> None:
        """Make the threads when they are needed.

        Args:
            num_threads: that decode at once.
            max_pixels: of a picture, as its header claims.
            metrics: of this process.
        """
        self._max_pixels = max_pixels
        self._metrics = metrics
        # A pool keeps what waits in its queue, bytes and all, even when it is cancelled: none waits there.
        self._free = asyncio.Semaphore(num_threads)
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")

    async def load(self, data: bytes, size: int, rule: str) -> NDArray[np.uint8]:
        """Decode and scale a picture to `[size, size, 3] uint8`, see `inference.decode.load`.

        Raises:
            Problem: 415, 413 or 422 for bytes that are no picture, too large a one, or a damaged one; 503 when there
                is no memory for it.
        """
        return (await self._run(data, size, rule))[0]

    async def load_with_box(self, data: bytes, size: int, rule: str) -> tuple[NDArray[np.uint8], Box]:
        """Return what `load` does, and which part of the picture that is, see `explain.shown_box`.

        Raises:
            Problem: as `load` does.
        """
        pixels, sides = await self._run(data, size, rule)
        return pixels, shown_box(*sides, size, rule)

    def stop(self) -> None:
        """End the threads once they have decoded what they are at, without waiting for it; what waits is cancelled."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _run(self, data: bytes, size: int, rule: str) -> _Loaded:
        try:
            async with self._free:
                work = asyncio.get_running_loop().run_in_executor(self._pool, self._load, data, size, rule)
                try:
                    return await asyncio.shield(work)
                except asyncio.CancelledError:
                    await asyncio.wait([work])  # the bytes are held until then, and the guard counts them
                    raise
        except UnknownFormatError as error:
            raise Problem(415, "Not an image", _said(error), reason="not_an_image") from error
        except TooManyPixelsError as error:
            raise Problem(413, "Too many pixels", _said(error), reason="too_many_pixels") from error
        except UnreadableImageError as error:
            raise Problem(422, "Corrupt image", _said(error), reason="corrupt_image") from error
        except MemoryError as error:
            detail = "There is no memory to decode this picture now. Try again, or send a smaller one."
            raise Problem(503, "Overloaded", detail, reason="overloaded", headers={"Retry-After": "1"}) from error

    def _load(self, data: bytes, size: int, rule: str) -> _Loaded:
        begun = perf_counter()
        try:
            return load_with_sides(data, size, rule, self._max_pixels)
        finally:
            self._metrics.decode.observe(perf_counter() - begun)


def _said(error: UnreadableImageError) -> str:
    """Return a reason as a sentence about the picture."""
    return f"The picture cannot be read: {str(error)[:200].rstrip('.')}."
