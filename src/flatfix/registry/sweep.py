"""Register the best runs of a multirun."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from flatfix.errors import UserError, enumerated
from flatfix.registry.patience import patiently
from flatfix.registry.register import Registration, register
from flatfix.tracking.connection import connect, told_as_user_error


def register_best(
    uri: str, run_ids: Sequence[str], name: str | None, make_package: Callable[[str], None] | None = None
) -> list[Registration]:
    """Register the first run that finished, qualified, and has a package or can be given one.

    Where the runs were trained on several datasets, whose metrics do not compare, the first of each.

    Args:
        uri: where MLflow keeps the runs.
        run_ids: the runs, the best first.
        name: registered model, or None for the name of the dataset.
        make_package: makes the package of a run that has none, or not the whole of it; its `UserError` says that this
            run cannot have one.

    Returns:
        What was registered; or, where nothing was, why each of the runs could not be.

    Raises:
        UserError: when MLflow does not answer, or has no such run.
    """
    done: dict[str, Registration] = {}  # by the digest of the dataset
    reasons = []
    for run_id in run_ids:
        with told_as_user_error(uri):
            run = patiently(partial(connect(uri).get_run, run_id))
        digest = run.data.params.get("dataset_digest", "")
        if digest in done:
            continue
        try:
            registration = _register(uri, run_id, name, make_package)
        except UserError as error:
            registration = Registration(None, False, str(error))
        if registration.version is None:
            reasons.append(f"{run.info.run_name}: {registration.reason}")
        else:
            done[digest] = registration
    if not done:
        return [Registration(None, False, f"none of the {len(run_ids)} runs can be{enumerated(reasons)}")]
    return list(done.values())


def _register(uri: str, run_id: str, name: str | None, make_package: Callable[[str], None] | None) -> Registration:
    try:
        return register(uri, run_id, name)
    except UserError:
        if make_package is None:
            raise
    make_package(run_id)
    return register(uri, run_id, name)
