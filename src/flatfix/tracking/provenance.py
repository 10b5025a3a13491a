"""Which code, on which machine, with which packages."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from flatfix.machine import cpu_name

MAX_DIFF_CHARS = 5_000_000
GIT_TIMEOUT_S = 10


@dataclass(frozen=True, slots=True)
class Provenance:
    """What it takes to find the code and the machine of a run again.

    Outside a git checkout `commit`, `branch`, `is_dirty` and `diff` are None; a detached head has no branch. `diff` is
    what `git diff HEAD` prints; `untracked` names the files and folders that neither it nor a commit holds.
    """

    commit: str | None
    branch: str | None
    is_dirty: bool | None
    diff: str | None
    untracked: tuple[str, ...]
    packages: dict[str, str | None]
    python: str
    platform: str
    hostname: str
    cpu: str
    num_cpus: int | None
    gpus: tuple[str, ...]

    @classmethod
    def collect(cls, root: Path, packages: Iterable[str]) -> Provenance:
        """Ask git about the checkout that `root` lies in, and this process about the rest.

        A package that is not installed has the version None. GPUs are named only when torch has been imported already.
        """
        changes = _git(root, "status", "--porcelain", "--no-renames", "-z")
        diff = _git(root, "diff", "--no-ext-diff", "--no-textconv", "HEAD")
        return cls(
            commit=_git(root, "rev-parse", "--verify", "HEAD"),
            branch=_git(root, "symbolic-ref", "--quiet", "--short", "HEAD"),
            is_dirty=None if changes is None else bool(changes),
            diff=diff and _cut(diff),
            untracked=tuple(line[3:] for line in (changes or "").split("\0") if line.startswith("?? ")),
            packages={name: _version(name) for name in packages},
            python=platform.python_version(),
            platform=platform.platform(),
            hostname=platform.node(),
            cpu=cpu_name(),
            num_cpus=os.cpu_count(),
            gpus=_gpus(),
        )

    def summary(self) -> dict[str, Any]:
        """Return everything but the diff as plain values that JSON can hold."""
        return {key: value for key, value in asdict(self).items() if key != "diff"}


def _git(root: Path, *arguments: str) -> str | None:
    """Return what a git command prints, or None where it fails: no git, no checkout, no commit."""
    command = ["git", "-c", "color.ui=never", "-C", str(root), *arguments]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            timeout=GIT_TIMEOUT_S,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},  # only look: never hold up a git command of the user's
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace").rstrip("\n") if done.returncode == 0 else None


def _cut(diff: str) -> str:
    if len(diff) <= MAX_DIFF_CHARS:
        return diff + "\n" if diff else diff
    return f"{diff[:MAX_DIFF_CHARS]}\n[cut: {len(diff) - MAX_DIFF_CHARS:,} more characters]\n"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _gpus() -> tuple[str, ...]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return ()
    return tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
