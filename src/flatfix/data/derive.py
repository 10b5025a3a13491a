"""Make a new version from one that is published: labels corrected, pictures removed or added."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from flatfix.data.sources.base import Record
from flatfix.data.sources.csv import table_rows
from flatfix.data.sources.folder import SPLIT_FOLDERS
from flatfix.data.sources.listing import Faults
from flatfix.data.sources.published import PublishedSource
from flatfix.data.sources.tree import EXTENSIONS, extension_of
from flatfix.data.splits import SplitRule
from flatfix.data.version import DatasetVersion
from flatfix.errors import UserError, did_you_mean

REQUIRED = ("id",)
COLUMNS = (*REQUIRED, "label", "change", "path", "split", "group")
# Cells that a change reads, and of these the ones that it cannot do without.
READ = {"relabel": ("id", "label"), "remove": ("id",), "add": ("id", "label", "path", "split", "group")}
NEEDED = {"relabel": ("id", "label"), "remove": ("id",), "add": ("label", "path")}


def rule_of(version: DatasetVersion) -> SplitRule:
    """Return the split rule that draws nothing and treats groups and folds as the version's own did."""
    published = version.manifest.source
    return SplitRule(0, 0, seed=int(published["split.seed"] or 0), groups=str(published["split.groups"]))


@dataclass(frozen=True)
class DerivedSource:
    """Read a version with the changes that a table names, a row each; everything else stays, the splits too.

    The table is in UTF-8 and written as `CsvSource` reads it. Its first line names `id`
    and perhaps others of these columns:

    - `change`: `relabel` (also where the cell is empty or there is no such column), `remove` or `add`.
    - `id`: of the picture in the version; for one that is added its own, or else its path without the extension.
    - `label`: the right class, one of the version's. Where the version has targets, the picture's becomes certain
      of it.
    - `path`: file to add, relative to the table's folder.
    - `split` and `group`: of a picture that is added; train where the split is empty.

    A cell that its row's change would ignore must be empty.
    """

    version: DatasetVersion
    file: str | Path
    num_readers = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order, those of the version."""
        return self.version.manifest.classes

    def records(self) -> list[Record]:
        """List the pictures of the version as changed, then those that were added.

        Raises:
            UserError: for a table that cannot be read, for faulty rows, of which the first are named, and for one
                that changes nothing.
            DamagedVersionError: when a file of the version is missing or was altered.
        """
        return self._records

    def read(self, record: Record) -> bytes:
        """Return the original bytes of one picture."""
        is_added = record.location.startswith("/")  # as no id does
        return Path(record.location).read_bytes() if is_added else self._held.read(record)

    def describe(self) -> dict[str, str | int | float | bool | None]:
        """Name the table."""
        return {"kind": "derived", "file": str(self._path)}

    @property
    def _path(self) -> Path:
        return Path(self.file).expanduser().absolute()

    @cached_property
    def _held(self) -> PublishedSource:
        return PublishedSource(self.version)

    @cached_property
    def _records(self) -> list[Record]:
        faults = Faults("line {}")
        rows = list(self._rows(faults))
        named = {_id_of(cells) for _, cells in rows}
        held = {record.id: record for record in self._held.records() if record.id in named}
        has_targets = any(record.target for record in self._held.records())
        changed: dict[str, Record | None] = {}
        first: dict[str, int] = {}
        for number, cells in rows:
            id, record = _id_of(cells), self._changed(cells, held, has_targets)
            if isinstance(record, str):
                faults.add(number, record)
            elif id in first:
                faults.add(number, f"{id} is named again, after {faults.name(first[id])}")
            else:
                first[id] = number
                changed[id] = record
        if faults:
            raise self._wrong(str(faults))
        if changed == held:
            raise self._wrong("changes nothing.")
        added = (record for id, record in changed.items() if id not in held)
        records = [*(changed.get(record.id, record) for record in self._held.records()), *added]
        return [record for record in records if record]

    def _changed(self, cells: Mapping[str, str], held: Mapping[str, Record], has_targets: bool) -> Record | str | None:
        """Return the picture after a row's change, or None if it goes, or what is wrong with the row."""
        fault = self._fault(cells, held)
        if fault or cells["change"] == "remove":
            return fault
        label = cells["label"]
        target = tuple(float(name == label) for name in self.classes) if has_targets else None
        if cells["change"] == "relabel":
            return replace(held[cells["id"]], label=label, target=target)
        path = self._path.parent / cells["path"]
        extension = extension_of(cells["path"])
        split = SPLIT_FOLDERS[cells["split"].lower() or "train"]
        return Record(_id_of(cells), label, str(path), extension[1:], split, cells["group"] or None, target)

    def _fault(self, cells: Mapping[str, str], held: Mapping[str, Record]) -> str | None:
        """Return what is wrong with a row by itself."""
        change, id, label, path = (cells[name] for name in ("change", "id", "label", "path"))
        if change not in READ:
            return f"the change {change} is not one of {', '.join(READ)}.{did_you_mean(change, READ)}"
        for name, cell in cells.items():
            if name in NEEDED[change] and not cell:
                return f"{change} needs a {name}"
            if cell and name not in ("change", *READ[change]):
                return f"{change} does not read the {name} {cell}"
        if change != "add":
            if id not in held:
                return f"{self.version.manifest.version} holds no picture {id}"
        elif _id_of(cells) in held:
            return f"{self.version.manifest.version} holds a picture of that id: name another in the column id"
        elif extension_of(path) not in EXTENSIONS:
            return f"{path} does not have the extension of a picture"
        elif not (self._path.parent / path).is_file():
            return f"{path} does not exist"
        if cells["split"].lower() not in ("", *SPLIT_FOLDERS):
            return f"the split {cells['split']} is not one of {', '.join(SPLIT_FOLDERS)}"
        if label and label not in self.classes:
            return f"{label} is not one of the classes {', '.join(self.classes)}.{did_you_mean(label, self.classes)}"
        return None

    def _rows(self, faults: Faults) -> Iterator[tuple[int, dict[str, str]]]:
        """Yield the number of each line and its cells, one for each of `COLUMNS`."""
        try:
            text = self._path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise self._wrong(f"{getattr(error, 'strerror', None) or 'not UTF-8'}.") from error
        for number, cells in table_rows(text, COLUMNS, REQUIRED, faults, self._wrong):
            yield number, cells | {"change": cells["change"].lower() or "relabel"}

    def _wrong(self, what: str) -> UserError:
        return UserError(f"labels={self.file}: {what}")


def _id_of(cells: Mapping[str, str]) -> str:
    """Return the id that a row names, or that of the picture it adds."""
    return cells["id"] or cells["path"].removesuffix(Path(cells["path"]).suffix)
