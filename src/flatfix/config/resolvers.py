"""OmegaConf resolvers that the files in conf/ use."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from omegaconf import OmegaConf

from flatfix.errors import UserError, one_of
from flatfix.evaluation.metrics import OBJECTIVES


def package_file(package: str, relative: str) -> str:
    """Return the path of a file that the installed `package` ships, without importing the package.

    Raises:
        UserError: when the package is not installed or lacks the file.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(
            f"package '{package}' is not installed. Install the demonstration data: pip install -e '.[demo]'"
        )
    path = Path(spec.origin).parent / relative
    if not path.is_file():
        raise UserError(f"package '{package}' holds no file {relative}")
    return str(path)


def directions(objectives: Sequence[str]) -> str | list[str]:
    """Return whether to `minimize` or to `maximize` the objective of a sweep, or of two, each of them.

    Raises:
        UserError: for an unknown objective, and for none or more than two.
    """
    if not 1 <= len(objectives) <= 2 or len(set(objectives)) < len(objectives):
        raise UserError(f"sweep.objectives={list(objectives)}: name one objective, or two different ones.")
    found = [f"{OBJECTIVES[one_of('sweep.objectives', name, OBJECTIVES)]}imize" for name in objectives]
    return found[0] if len(found) == 1 else found


def register() -> None:
    """Register the resolvers; calling it again changes nothing."""
    OmegaConf.register_resolver("package_file", package_file, replace=True)
    OmegaConf.register_resolver("directions", directions, replace=True)
