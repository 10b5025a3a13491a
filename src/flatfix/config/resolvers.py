"""OmegaConf resolvers that the files in conf/ use."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from flatfix.errors import UserError


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


def multirun() -> str | None:
    """Return the name of the folder of the multirun that this job belongs to, or None where it runs by itself."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    return Path(HydraConfig.get().sweep.dir).name


def register() -> None:
    """Register the resolvers; calling it again changes nothing."""
    OmegaConf.register_resolver("package_file", package_file, replace=True)
    OmegaConf.register_resolver("multirun", multirun, replace=True)
