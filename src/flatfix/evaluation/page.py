"""The report as one page: `report.html.j2` filled in, with every picture inside it."""

from __future__ import annotations

import base64
import math
import struct
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Self

import jinja2
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

import flatfix
from flatfix.evaluation.answers import Answers
from flatfix.evaluation.figures.style import smallest_font_size
from flatfix.evaluation.thumbnails import data_uri
from flatfix.evaluation.wording import counted, percent

_LEAST_PIXELS = 9  # that a letter needs to be read
_PIXELS_PER_INCH = 105  # that make 10 points some 15 pixels


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure on the page.

    Attributes:
        uri: the picture itself.
        title: what it shows.
        width: pixels of the picture.
        height: likewise.
        least_width: pixels on the page below which its letters cannot be read: it scrolls in its box there.
        most_width: pixels on the page at which its letters have the size of the text around.
    """

    uri: str
    title: str
    width: int
    height: int
    least_width: int
    most_width: int

    @classmethod
    def of(cls, figure: Figure, path: Path) -> Self:
        """Take a figure from the PNG file that was written of it."""
        content = path.read_bytes()
        width, height = struct.unpack(">II", content[16:24])  # the first chunk of a PNG begins with them
        inches = width / figure.dpi
        return cls(
            uri=f"data:image/png;base64,{base64.b64encode(content).decode()}",
            title=figure.get_suptitle().replace("\n", " "),
            width=width,
            height=height,
            least_width=math.ceil(inches * 72 * _LEAST_PIXELS / smallest_font_size(figure)),
            most_width=round(inches * _PIXELS_PER_INCH),
        )


@dataclass(frozen=True, slots=True)
class Shot:
    """A picture on the page, and what was said of it."""

    uri: str
    id: str
    truth: str
    prediction: str
    score: str
    is_right: bool


@dataclass(frozen=True, slots=True, eq=False)
class Gallery:
    """Some pictures under one title; `thumbnails` `[K, h, w, 3]` are those of `shots`."""

    title: str
    thumbnails: NDArray[np.uint8]
    shots: list[Shot]

    @classmethod
    def of(cls, answers: Answers, rows: NDArray[np.int64], thumbnails: NDArray[np.uint8], title: str) -> Self:
        """Say of each picture what was answered in its row."""
        shots = [
            Shot(
                uri=data_uri(thumbnail),
                id=answers.ids[row],
                truth=answers.classes[answers.labels[row]],
                prediction=answers.classes[answers.predictions[row]],
                score=percent(float(answers.scores[row])),
                is_right=bool(answers.is_right[row]),
            )
            for row, thumbnail in zip(rows, thumbnails, strict=True)
        ]
        return cls(title, thumbnails, shots)

    @property
    def captions(self) -> list[tuple[str, ...]]:
        """[K] lines below each picture of a contact sheet."""
        return [(shot.truth, f"→ {shot.prediction}", shot.score, shot.id) for shot in self.shots]


def render(**content: Any) -> str:
    """Return the page.

    Names of classes and pictures come from outside: everything is escaped.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "counted": counted}
    template = resources.files("flatfix.evaluation").joinpath("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(version=flatfix.__version__, **content)
