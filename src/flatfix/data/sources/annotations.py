"""Pictures named by an annotation file in JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, ClassVar

from flatfix.data.sources.listing import Faults, ListedSource, Row
from flatfix.errors import did_you_mean

KEYS = ("FilePath", "label_value")
EXPECTED = 'Expected {"annotation": {"data": [{"FilePath": "a/1.jpg", "label_value": "ok"}, ...]}}.'


class AnnotationsSource(ListedSource):
    """Read `{"annotation": {"data": [{"FilePath": "a/1.jpg", "label_value": "ok"}, ...]}}`.

    Both values are texts: a number, a list or null is no label. Other keys are left alone. A message calls the rows
    as a program does: the first is `annotation.data[0]`.
    """

    kind: ClassVar[str] = "annotations"
    row_name: ClassVar[str] = "annotation.data[{}]"

    def rows(self, text: str, faults: Faults) -> Iterator[Row]:
        """Yield the entries of `annotation.data` that have both texts."""
        for number, entry in enumerate(self._entries(text)):
            found = [_fault(entry, key) for key in KEYS] if isinstance(entry, dict) else [f"{_json(entry)} is no row"]
            for fault in filter(None, found):
                faults.add(number, fault)
            if not any(found):
                yield Row(number, *(entry[key] for key in KEYS))

    def _entries(self, text: str) -> list[Any]:
        try:
            entries = json.loads(text)["annotation"]["data"]
        except ValueError as error:
            raise self.wrong(f"not JSON ({error}).") from error
        except (KeyError, TypeError) as error:
            raise self.wrong(f"has no annotation.data. {EXPECTED}") from error
        if not isinstance(entries, list):
            raise self.wrong(f"annotation.data is no list. {EXPECTED}")
        return entries


def _fault(entry: dict[str, Any], key: str) -> str | None:
    if key not in entry:
        return f"has no {key}.{did_you_mean(key, entry)}"
    return None if isinstance(entry[key], str) else f"{key} is {_json(entry[key])}, where a text is expected"


def _json(value: Any, length: int = 40) -> str:
    """Return a value as the file has it, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= length else f"{text[:length]}..."
