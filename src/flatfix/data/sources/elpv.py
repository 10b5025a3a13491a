"""The elpv dataset: electroluminescence pictures of solar cells, from the package `elpv-dataset`."""

from __future__ import annotations

import importlib.metadata
from functools import cached_property
from pathlib import Path, PurePosixPath

from flatfix.data.sources.base import Record
from flatfix.errors import UserError


class ElpvSource:
    """Read 2,624 grey pictures 300x300 of solar cells, labelled by experts with a defect probability.

    A cell is defective when the probability exceeds 0.5; the probability is kept as soft target. The group is the
    cell type, mono- or polycrystalline. Source: Deitsch et al. 2019, arXiv 1807.02894. Licence: CC BY-NC-SA 4.0.
    """

    classes = ("ok", "defective")
    num_readers = None

    def records(self) -> list[Record]:
        """List the cells in the package's order.

        Raises:
            UserError: when the package is not installed.
        """
        rows = (line.split() for line in (self._data / "labels.csv").read_text(encoding="utf-8").splitlines())
        return [self._record(*row) for row in rows if row]

    def read(self, record: Record) -> bytes:
        """Return the bytes of one PNG file."""
        return (self._data / record.location).read_bytes()

    def describe(self) -> dict[str, str | int | float | bool | None]:
        """Name the package and its version."""
        return {"kind": "elpv", "package_version": self._package.version}

    @staticmethod
    def _record(location: str, probability: str, cell_type: str) -> Record:
        path, defective = PurePosixPath(location), float(probability)
        return Record(
            id=path.stem,
            label="defective" if defective > 0.5 else "ok",
            location=location,
            extension=path.suffix[1:],
            group=cell_type,
            target=(1 - defective, defective),
        )

    @cached_property
    def _data(self) -> Path:
        return Path(str(self._package.locate_file("elpv_dataset/data")))

    @cached_property
    def _package(self) -> importlib.metadata.Distribution:
        # Located, not imported: nothing of the package is needed but its files.
        try:
            return importlib.metadata.distribution("elpv-dataset")
        except importlib.metadata.PackageNotFoundError as error:
            raise UserError(
                "dataset=elpv: the package elpv-dataset is not installed. Install it with pip install 'flatfix[demo]', "
                "choose dataset=tires (no download), or dataset=published if the store already holds the version."
            ) from error
