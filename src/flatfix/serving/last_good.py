"""The last model that went live, on this machine's disk: what a server starts from when it cannot ask the registry."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from flatfix.errors import UserError
from flatfix.files import filling, locked, replacing
from flatfix.inference.package import CARD, DamagedPackageError, Package, open_package

POINTER = "last_good.json"

_log = logging.getLogger("flatfix.serving")


@dataclass(frozen=True, slots=True)
class Facts:
    """Say which version a package that was kept is.

    Attributes:
        name: of the registered model.
        version: its number.
        run_id: the run that trained it.
        digest: of the package.
    """

    name: str
    version: int
    run_id: str
    digest: str


class LastGood:
    """Keep one package, for all processes that serve the same alias."""

    def __init__(self, folder: Path) -> None:
        """Use a folder, which is made when a package is kept."""
        self.folder = folder

    @classmethod
    def of(cls, root: Path, uri: str, name: str | None, alias: str) -> Self:
        """Use a folder below `root` that no server of another alias, registered model or registry uses."""
        key = hashlib.sha256(json.dumps([uri, name]).encode()).hexdigest()[:12]
        return cls(root / f"{re.sub(r'[^A-Za-z0-9._-]', '-', alias)[:40]}-{key}")

    def keep(self, package: Package, facts: Facts) -> None:
        """Copy a package, and forget the one before; the copy is checked before it counts.

        Raises:
            DamagedPackageError: when the package is no longer what it was.
            OSError: when there is no room for it, or no permission. What was kept stays.
        """
        with self._lock():
            if self.facts() != facts or not self._is_whole(facts.digest):
                self._copy(package)
                with replacing(self.folder / POINTER) as partial:
                    partial.write_text(json.dumps(asdict(facts), indent=2) + "\n", encoding="utf-8")
            for path in self.folder.iterdir():  # older ones, and what a process that was killed left
                if path.is_dir() and path.name != facts.digest:
                    shutil.rmtree(path, ignore_errors=True)

    def open(self) -> tuple[Package, Facts] | None:
        """Return what was kept last, every file checked; None, and a line in the log, when that is damaged."""
        if not (self.folder / POINTER).exists():
            return None
        try:
            with self._lock():
                facts = self.facts()
                package = open_package(self.folder / facts.digest) if facts else None
        except (UserError, OSError) as error:
            reason = str(error)
        else:
            if facts and package and package.digest == facts.digest:
                return package, facts
            reason = f"{self.folder / POINTER} does not name what is there"
        _log.warning("last_good_unusable", extra={"fields": {"reason": reason}})
        return None

    def facts(self) -> Facts | None:
        """Return what is said to be kept, without a look at the package; None for nothing that can be read."""
        with suppress(OSError, ValueError, TypeError):
            facts = Facts(**json.loads((self.folder / POINTER).read_bytes()))
            if re.fullmatch("[0-9a-f]{64}", facts.digest):
                return facts
        return None

    def _is_whole(self, digest: str) -> bool:
        with suppress(UserError, OSError):
            return open_package(self.folder / digest).digest == digest
        return False

    def _copy(self, package: Package) -> None:
        target = self.folder / package.digest
        if self._is_whole(package.digest):
            return
        if target.exists():
            shutil.rmtree(target)
        with filling(target) as draft:
            for name in (CARD, *package.card.files):
                shutil.copyfile(package.path(name), draft / name)
            if open_package(draft).digest != package.digest:
                raise DamagedPackageError(f"{package.folder}: changed since it was loaded")

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Keep other processes from the folder; without a lock where the disk cannot be written to."""
        with ExitStack() as held:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(self.folder / ".lock"))
            except OSError as error:
                if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                    raise
            yield
