"""A package made ready to answer, beside the model that answers meanwhile."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np

from flatfix.errors import UserError
from flatfix.inference.package import Package
from flatfix.inference.predictor import Predictor

LARGE_BYTES = 4 * 1024**2  # of what is asked of the allocator at once
_MMAP_THRESHOLD = -3  # of mallopt(3)


def load(
    package: Package,
    like: Predictor | None,
    *,
    runtime: str,
    precision: str,
    cache_dir: Path | None = None,
) -> Predictor:
    """Load a model as the one that answers now is loaded, where it is one of its kind and its card permits it.

    To measure which runtime is fastest, as `auto` does, would take the cores from requests, and they from it.

    Args:
        package: of the model.
        like: what answers now.
        runtime: see `Predictor`; for a model of another kind.
        precision: likewise.
        cache_dir: likewise; no matter whether it can be written to.

    Raises:
        UserError: as `Predictor`.
    """
    if like is not None and _is_one_of_its_kind(package, like):
        runtime, precision = like.runtime, like.precision
    try:
        return Predictor(package, runtime, precision, cache_dir=cache_dir)
    except (OSError, UserError) as error:
        if not isinstance(error, OSError) and not isinstance(error.__cause__, OSError):
            raise
    return Predictor(package, runtime, precision)  # only the choice of a runtime could not be kept


def warm(predictor: Predictor, batch_size: int, check: Callable[[], None]) -> None:
    """Answer one batch of each size up to `batch_size`: the first of a size takes longer than all that follow.

    Args:
        predictor: that answers.
        batch_size: pictures of the largest batch.
        check: called before each batch; may raise.
    """
    size = predictor.package.card.image_size
    for count in range(1, batch_size + 1):
        check()
        predictor.predict(np.zeros((count, size, size, 3), np.uint8))


def set_aside() -> None:
    """Take all that there is by now out of the garbage collector's sight.

    MLflow alone brings half a million objects that stay. A full collection goes through all of them, and nothing else
    runs for 0.2 s: no request is answered, none is refused.
    """
    gc.collect()
    gc.freeze()


def put_back() -> None:
    """Undo `set_aside`, for a process that goes on to something else."""
    gc.unfreeze()


def keep_little_memory() -> None:
    """Let memory go back to the system as soon as it is free, where the allocator is that of GNU.

    Pillow holds pixels in blocks of 16 MB. GNU's allocator learns from the first that such blocks are usual, and keeps
    them from then on, for each thread: a few large pictures, and a server of 0.3 GB has 0.75 GB for ever.
    """
    with suppress(AttributeError, OSError):
        _libc().mallopt(_MMAP_THRESHOLD, LARGE_BYTES)


def give_back_memory() -> None:
    """Give the system back what a model that is gone has freed, where the allocator is that of GNU."""
    with suppress(AttributeError, OSError):
        _libc().malloc_trim(0)


def _is_one_of_its_kind(package: Package, like: Predictor) -> bool:
    card, other = package.card, like.package.card
    is_permitted = (like.runtime, like.precision) in {(permit.runtime, permit.precision) for permit in card.permits}
    return is_permitted and (card.model_name, card.image_size) == (other.model_name, other.image_size)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL("libc.so.6" if sys.platform == "linux" else None)
