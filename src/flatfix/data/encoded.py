"""Pictures that stay in their shards, and are decoded when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from flatfix.data.ahead import map_ahead
from flatfix.data.decoders import Decoders, UnreadablePictureError
from flatfix.data.version import DamagedVersionError, DatasetVersion
from flatfix.machine import num_cores

Rows = NDArray[np.int64]

CHUNK = 64  # pictures a thread or process decodes at a time where the caller does not say
WINDOW = 4  # shards that are fetched ahead, and that training mixes
NUM_FETCHED = 4  # shards that are fetched at the same time
# Encoded bytes from which processes decode. They start in 0.3 s, in which two threads decode 10,000 pictures of 32 x 32
# or 200 of 300 x 300. On two cores they are hardly faster, but they leave this process to the one who trains in it: a
# picture of CIFAR-10 takes 7 us of its time rather than 30.
PAYS_FOR_PROCESSES = 32 << 20


@dataclass(frozen=True, eq=False)
class EncodedPictures:
    """Stand for an array `[N, size, size, 3]` uint8 of pictures that are decoded whenever they are read.

    Attributes:
        version: whose shards hold the pictures.
        ids: of the pictures.
        shards: `[N]` positions in the manifest's shards.
        offsets: `[N]` of the first byte in the shard.
        lengths: `[N]` in bytes.
        size: pixels a side.
        resize: rule by which a picture becomes a square.
    """

    version: DatasetVersion
    ids: list[str]
    shards: Rows
    offsets: Rows
    lengths: Rows
    size: int
    resize: str

    def __len__(self) -> int:
        """Count the pictures."""
        return len(self.ids)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of the array."""
        return len(self), self.size, self.size, 3

    def __getitem__(self, rows: Any) -> NDArray[np.uint8]:
        """Decode the pictures of a row number, a slice, or an array of row numbers."""
        wanted = np.arange(len(self))[rows]
        pixels = np.empty((wanted.size, *self.shape[1:]), np.uint8)
        self.decode_into(pixels, wanted.reshape(-1))
        return pixels.reshape(*wanted.shape, *self.shape[1:])

    def select(self, rows: Rows) -> EncodedPictures:
        """Return these rows, in this order; nothing is decoded."""
        return replace(
            self,
            ids=[self.ids[row] for row in rows],
            shards=self.shards[rows],
            offsets=self.offsets[rows],
            lengths=self.lengths[rows],
        )

    def decode_into(
        self, pixels: NDArray[np.uint8], rows: Rows, advance: Callable[[int], None] = lambda _: None
    ) -> None:
        """Write the pictures of these rows into an array of as many, and report how many are done."""
        chunks = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
        start = 0
        for batch in self.batches(chunks):
            pixels[start : start + len(batch)] = batch
            start += len(batch)
            advance(len(batch))

    def batches(self, batches: Sequence[Rows]) -> Generator[NDArray[np.uint8], None, None]:
        """Yield the pictures of each batch of rows, in order.

        Batches are decoded ahead on all cores, and shards are fetched ahead while others are read. A shard is open from
        before its first batch until after its last: a cache that has no more room for it may delete it.

        Raises:
            DamagedVersionError: when a shard is missing or was altered, or a picture does not decode.
        """
        num_bytes = sum(int(self.lengths[rows].sum()) for rows in batches)
        num_threads = num_cores()
        num_ahead = num_threads + 1
        with ExitStack() as stack:
            shards = stack.enter_context(_Shards(self.version))
            num_processes = num_threads if num_bytes >= PAYS_FOR_PROCESSES else 0
            decoders = stack.enter_context(Decoders(self.size, self.resize, num_processes))

            def decode(rows: Rows) -> NDArray[np.uint8]:
                places = (column[rows].tolist() for column in (self.shards, self.offsets, self.lengths))
                try:
                    return decoders.decode([shards.read(*place) for place in zip(*places, strict=True)])
                except UnreadablePictureError as error:
                    raise DamagedVersionError(
                        f"dataset.version={self.version.manifest.version}: {self.ids[rows[error.place]]} does not "
                        f"decode here ({error.reason}). Publish the source again as another version with "
                        "dataset.on_bad_image=skip."
                    ) from error

            yield from map_ahead(decode, self._kept_open(batches, shards, num_ahead), num_ahead, num_threads)

    def _kept_open(self, batches: Sequence[Rows], shards: _Shards, num_ahead: int) -> Iterator[Rows]:
        """Yield the batches; before each, see to the shards that it and the next ones need and close what is read.

        Whoever takes a batch has been given all but the last `num_ahead` before it.
        """
        needed = [np.unique(self.shards[rows]).tolist() for rows in batches]
        coming = list(dict.fromkeys(shard for of_batch in needed for shard in of_batch))
        last = {shard: number for number, of_batch in enumerate(needed) for shard in of_batch}
        read = sorted(last, key=lambda shard: last[shard])
        position = {shard: place for place, shard in enumerate(coming)}
        num_fetched = num_closed = 0
        try:
            for number, rows in enumerate(batches):
                furthest = max((position[shard] for shard in needed[number]), default=0)
                for shard in coming[num_fetched : furthest + 1 + WINDOW]:
                    shards.fetch(shard)
                num_fetched = max(num_fetched, min(furthest + 1 + WINDOW, len(coming)))
                while num_closed < len(read) and last[read[num_closed]] < number - num_ahead:
                    shards.close(read[num_closed])
                    num_closed += 1
                yield rows
        except BaseException:  # nobody wants the rest: Ctrl-C, or an error in an earlier batch
            shards.abandon()
            raise


class _Shards:
    """Fetch shards in threads, and hold them open."""

    def __init__(self, version: DatasetVersion) -> None:
        self._version = version
        self._files: dict[int, Future[BinaryIO]] = {}
        self._fetchers = ThreadPoolExecutor(NUM_FETCHED)

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, *_: object) -> None:
        self._fetchers.shutdown(cancel_futures=True)
        for shard in list(self._files):
            self.close(shard)

    def fetch(self, shard: int) -> None:
        """Begin to fetch a shard."""
        self._files[shard] = self._fetchers.submit(self._open, shard)

    def read(self, shard: int, offset: int, length: int) -> bytes:
        """Return bytes of a shard that was asked for; wait until it is here."""
        return os.pread(self._files[shard].result().fileno(), length, offset)

    def abandon(self) -> None:
        """Begin no other fetch: whoever waits for one is told that it was cancelled."""
        self._fetchers.shutdown(wait=False, cancel_futures=True)

    def close(self, shard: int) -> None:
        """Let go of a shard."""
        file = self._files.pop(shard)
        if not file.cancelled() and not file.exception():
            file.result().close()

    def _open(self, shard: int) -> BinaryIO:
        return self._version.open_shard(self._version.manifest.shards[shard].name)
