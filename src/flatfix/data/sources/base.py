"""What a source of labelled pictures offers to `publish`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Record:
    """Name one labelled picture of a source.

    Attributes:
        id: readable name, unique within the source; it comes back in every prediction.
        label: one of the source's classes.
        location: where the source finds the bytes, and the name by which errors call the picture.
        extension: lower-case file extension without the dot.
        split: train, val or test where the source decides; None where `splits.assign` does.
        group: pictures of one group (a tire, a line, a cell type) that a split rule treats together.
        target: soft label, a probability for each class in order.
    """

    id: str
    label: str
    location: str
    extension: str
    split: str | None = None
    group: str | None = None
    target: tuple[float, ...] | None = None


class Source(Protocol):
    """Labelled pictures that can be listed and read.

    Building a source touches nothing: the first look at the data is the first use of `classes` or `records`.
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""
        ...

    @property
    def num_readers(self) -> int | None:
        """How many threads read best at a time; None for as many as there are cores."""
        ...

    def records(self) -> list[Record]:
        """List every picture, in the same order each time."""
        ...

    def read(self, record: Record) -> bytes:
        """Return the original encoded bytes of one picture. Called from several threads."""
        ...

    def describe(self) -> dict[str, str | int | float | bool | None]:
        """Return what determines the content, `kind` first; keys that end in `root` or `file` only say where it lies.

        Nothing has to lie there: a version that is held is used long after its pictures have gone.
        """
        ...
