"""A package made ready to answer, beside the model that answers meanwhile."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np

from flatfix.errors import UserError
from flatfix.inference.package import Package
from flatfix.inference.predictor import Predictor


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


def _is_one_of_its_kind(package: Package, like: Predictor) -> bool:
    card, other = package.card, like.package.card
    is_permitted = (like.runtime, like.precision) in {(permit.runtime, permit.precision) for permit in card.permits}
    return is_permitted and (card.model_name, card.image_size) == (other.model_name, other.image_size)
