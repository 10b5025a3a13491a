"""Tread pictures drawn from a seed: the data set that needs no network and carries no licence.

A picture is a relief, lugs of rubber between grooves, into which a defect is worked and which is then lit and
photographed. Lengths are fractions of the picture's side and heights are multiples of the groove depth: a larger
picture shows the same tire in more detail.
"""

from __future__ import annotations

import cmath
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.random import Generator, SeedSequence, default_rng
from numpy.typing import NDArray
from PIL import Image

from flatfix.data.sources.base import Record
from flatfix.errors import UserError

Field = NDArray[np.float32]  # one value a pixel, [H, W]
Points = NDArray[np.complex64]  # the pixels' places as x + iy, both in -0.5..0.5: a product turns, abs measures
Path = NDArray[np.complex128]  # corners of a broken line

MIN_SIZE = 32  # below, cracks and sipes are lost between the pixels
GROOVE_DEPTH = 0.05  # of the picture's side
EDGE = 0.02  # over which a lug's wall rises: a pixel or so, which keeps edges smooth and lets them catch the light
SIPE_DEPTH, SIPE_WIDTH = 0.35, 0.013  # sipes are the fine slits across a lug


class TiresSource:
    """Draw pictures of tire treads, every second one with a defect.

    A picture depends on `seed`, `size` and its own number alone: pictures can be read in any order, and a larger set
    begins with the smaller one. (To the byte under one release of numpy and Pillow; the next may round differently.)
    The kinds of defect take turns; a record's id ends in the kind.

    Args:
        num_pictures: how many pictures; half of them, rounded down, are defective.
        size: side of the square pictures in pixels.
        seed: another seed draws other pictures.

    Raises:
        UserError: naming the option that is out of range.
    """

    classes = ("ok", "defective")
    num_readers = None

    def __init__(self, num_pictures: int = 3000, size: int = 64, seed: int = 0) -> None:
        bounds: dict[str, tuple[object, int]] = {
            "num_pictures": (num_pictures, 2),
            "size": (size, MIN_SIZE),
            "seed": (seed, 0),
        }
        for option, (value, least) in bounds.items():
            if not (isinstance(value, int) and value >= least):
                raise UserError(f"dataset.source.{option}={value}: must be a whole number, {least} or more.")
        self.num_pictures = num_pictures
        self.size = size
        self.seed = seed

    def records(self) -> list[Record]:
        """Return one record a picture, in the order of their numbers."""
        return [
            Record(
                id=f"tire-{index:06d}-{defect_of(index) or 'ok'}",
                label="defective" if defect_of(index) else "ok",
                location=str(index),
                extension="jpg",
            )
            for index in range(self.num_pictures)
        ]

    def read(self, record: Record) -> bytes:
        """Draw the picture of `record` and return it as JPEG."""
        index = int(record.location)
        picture = Image.fromarray(draw(self.seed, index, self.size, defect_of(index)))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=95, subsampling=0)
        return buffer.getvalue()

    def describe(self) -> dict[str, str | int | float | bool | None]:
        """Return what determines the pictures."""
        return {"kind": "tires", "num_pictures": self.num_pictures, "size": self.size, "seed": self.seed}


def defect_of(index: int) -> str | None:
    """Return the kind of defect on picture `index`, None for a sound tread."""
    return list(DEFECTS)[index // 2 % len(DEFECTS)] if index % 2 else None


def draw(seed: int, index: int, size: int, defect: str | None) -> NDArray[np.uint8]:
    """Draw one tread, sound or with a defect.

    Tread, defect and photograph have random streams of their own, so that the defect changes nothing but itself:
    the tire and the light stay the same without it.

    Returns:
        [size, size, 3] uint8 RGB.
    """
    tread_rng, defect_rng, photo_rng = (default_rng(stream) for stream in SeedSequence((seed, index)).spawn(3))
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    points = axis + 1j * axis[:, None]
    tread = Tread.random(tread_rng)
    relief = DEFECTS[defect](tread, points, defect_rng) if defect else tread.relief(points)[0]
    return _photograph(relief, points, photo_rng)


@dataclass(frozen=True, slots=True)
class Tread:
    """A pattern of lugs: ribs along the tire, split by lateral slots, with sipes across the lugs."""

    angle: float  # radians between the ribs and the picture's columns
    curvature: float  # the tire's, along the ribs
    rib_pitch: float
    rib_offset: float
    groove: float  # width between ribs
    zigzag: float  # how far the grooves swing to either side
    lug_pitch: float
    lug_offset: float
    slot: float  # width between the lugs of a rib
    slant: float  # tangent of the slots' angle
    is_chevron: bool  # neighbouring ribs slant against each other
    stagger: float  # shift from rib to rib, in lugs
    num_sipes: int

    @classmethod
    def random(cls, rng: Generator) -> Tread:
        """Choose a pattern."""
        return cls(
            angle=rng.uniform(-0.45, 0.45),
            curvature=rng.uniform(0.2, 1.3),
            rib_pitch=rng.uniform(0.24, 0.36),
            rib_offset=rng.uniform(),
            groove=rng.uniform(0.04, 0.07),
            zigzag=rng.uniform(0.01, 0.03) if rng.random() < 0.4 else 0.0,
            lug_pitch=rng.uniform(0.18, 0.32),
            lug_offset=rng.uniform(),
            slot=rng.uniform(0.025, 0.05),
            slant=rng.uniform(-0.7, 0.7),
            is_chevron=rng.random() < 0.5,
            stagger=rng.uniform(0.0, 0.5),
            num_sipes=int(rng.integers(3)),
        )

    def relief(self, points: Points) -> tuple[Field, Field]:
        """Return the height of the rubber (0 on a groove's floor, 1 on a lug) and the number of the lug."""
        turned = points * cmath.exp(1j * self.angle)
        across = turned.real
        along = np.arcsin(turned.imag * self.curvature) / self.curvature  # the tire bends away from the camera
        swing = 4 * np.abs((along / self.lug_pitch + self.lug_offset) % 1 - 0.5) - 1
        rib, to_groove = _cells(across + self.zigzag * swing, self.rib_pitch, self.rib_offset)
        slant = self.slant * (1 - 2 * (rib % 2)) if self.is_chevron else self.slant
        along = along + slant * across
        shift = self.lug_offset + self.stagger * rib
        lug, to_slot = _cells(along, self.lug_pitch, shift)
        parts = self.num_sipes + 1
        _, to_sipe = _cells(along, self.lug_pitch / parts, shift * parts)
        height = _smooth(np.minimum(to_groove - self.groove / 2, to_slot - self.slot / 2) / EDGE)
        return height * (1 - SIPE_DEPTH * _smooth(1 - to_sipe / SIPE_WIDTH)), 1000 * rib + lug


def _cells(position: Field, pitch: float, offset: Field | float) -> tuple[Field, Field]:
    """Return the number of the cell around each position and the distance to the nearer border of the cell."""
    phase = position / pitch + offset
    number = np.floor(phase)
    return number, (0.5 - np.abs(phase - number - 0.5)) * pitch


def _smooth(ramp: Field) -> Field:
    """Round off a ramp from 0 to 1."""
    ramp = np.clip(ramp, 0, 1)
    return ramp * ramp * (3 - 2 * ramp)


def _cut(tread: Tread, points: Points, rng: Generator) -> Field:
    """Slash the tread: a bent gash, pointed at both ends, between raised lips."""
    relief, _ = tread.relief(points)
    along = np.linspace(-0.5, 0.5, 9)
    heading = rng.uniform(0, 2 * math.pi) + rng.uniform(-0.6, 0.6) * along
    path = points[_spot_on_a_lug(relief, rng)] + rng.uniform(0.3, 0.55) * along * np.exp(1j * heading)
    half_width = rng.uniform(0.018, 0.03) * (1 - (along[:-1] + along[1:]) ** 4)  # by the middle of each segment
    outside = _distance(points, path, half_width)
    lips: Field = np.exp(-(((outside - 0.02) / 0.015) ** 2))
    gash = _smooth(0.5 - outside / EDGE)
    return relief * (1 + 0.6 * lips) - gash * (relief + 0.4)


def _crack(tread: Tread, points: Points, rng: Generator) -> Field:
    """Crack the tread: a random walk two ways from a spot, each with a finer branch or two."""
    relief, _ = tread.relief(points)
    spot = points[_spot_on_a_lug(relief, rng)]
    heading = rng.uniform(0, 2 * math.pi)
    fissure = np.zeros_like(relief)
    for trunk_heading in (heading, heading + math.pi):
        trunk = _walk(spot, trunk_heading, int(rng.integers(4, 8)), rng)
        strokes = [(trunk, 0.008)]
        for side in (-1, 1)[rng.integers(2) :]:
            twig_heading = trunk_heading + side * rng.uniform(0.6, 1.2)
            strokes.append((_walk(trunk[rng.integers(1, 4)], twig_heading, int(rng.integers(2, 5)), rng), 0.005))
        for path, half_width in strokes:
            fissure = np.maximum(fissure, _smooth(0.8 - _distance(points, path, half_width) / 0.014))
    return relief - fissure


def _bulge(tread: Tread, points: Points, rng: Generator) -> Field:
    """Blow the carcass up: a dome that stretches the tread and lifts its grooves into the light."""
    outward = points - complex(*rng.uniform(-0.28, 0.28, 2))
    swell: Field = np.exp(-((np.abs(outward) / rng.uniform(0.14, 0.22)) ** 2))
    relief, _ = tread.relief(points - 0.45 * swell * outward)
    return relief + rng.uniform(2.5, 4) * swell


def _missing_lug(tread: Tread, points: Points, rng: Generator) -> Field:
    """Tear a lug out; a rough floor stays."""
    relief, lugs = tread.relief(points)
    torn = lugs == lugs[_spot_on_a_lug(relief, rng)]
    return np.where(torn, 0.15 * rng.random(relief.shape, np.float32), relief)


DEFECTS: dict[str, Callable[[Tread, Points, Generator], Field]] = {
    "cut": _cut,
    "crack": _crack,
    "bulge": _bulge,
    "missing-lug": _missing_lug,
}


def _spot_on_a_lug(relief: Field, rng: Generator) -> tuple[int, int]:
    """Return row and column of a place on top of a lug, well inside the picture: a defect there can be seen."""
    margin = len(relief) // 5
    rows, columns = np.nonzero(relief[margin:-margin, margin:-margin] > 0.9)
    pick = rng.integers(len(rows))
    return margin + rows[pick], margin + columns[pick]


def _walk(start: complex, heading: float, num_steps: int, rng: Generator) -> Path:
    """Wander off from `start`, roughly towards `heading`."""
    headings = heading + np.cumsum(rng.normal(0, 0.45, num_steps))
    steps = rng.uniform(0.03, 0.06, num_steps) * np.exp(1j * headings)
    return start + np.concatenate([[0], np.cumsum(steps)])


def _distance(points: Points, path: Path, half_width: float | NDArray[np.float64]) -> Field:
    """Return how far each point lies outside a stroke along `path`, of one half width or one for each segment."""
    nearest = np.full(points.shape, np.inf, np.float32)
    half_widths = np.broadcast_to(half_width, len(path) - 1)
    for (start, end), radius in zip(pairwise(path.tolist()), half_widths.tolist(), strict=True):
        offset, segment = points - start, end - start
        share = np.clip((offset / segment).real, 0, 1)
        np.minimum(nearest, np.abs(offset - share * segment) - radius, out=nearest)
    return nearest


def _photograph(relief: Field, points: Points, rng: Generator) -> NDArray[np.uint8]:
    """Light the tread and take its picture.

    The exposure follows the mean, as a camera's does: its brightness says nothing about its class.
    """
    size = len(relief)
    slope_y, slope_x = np.gradient(relief * (GROOVE_DEPTH * size))
    azimuth, elevation = rng.uniform(0, 2 * math.pi), rng.uniform(0.6, 1.1)
    against_light = math.cos(elevation) * (math.cos(azimuth) * slope_x + math.sin(azimuth) * slope_y)
    lambert = np.maximum(math.sin(elevation) - against_light, 0) / np.sqrt(1 + slope_x**2 + slope_y**2)
    open_sky = np.clip(0.3 + 0.7 * relief, 0.08, 1)  # little light reaches the grooves, and less what is cut deeper
    light = open_sky * (rng.uniform(0.25, 0.5) + lambert) + rng.uniform(0.1, 0.5) * lambert**8

    dust = Image.fromarray(rng.standard_normal((5, 5), np.float32)).resize((size, size), Image.Resampling.BICUBIC)
    grain = 0.05 * rng.standard_normal(relief.shape, np.float32)
    light *= 1 + rng.uniform(0.03, 0.15) * np.asarray(dust) + grain
    light *= 1 + rng.uniform(0, 0.7) * (points * cmath.exp(1j * rng.uniform(0, 2 * math.pi))).real
    light *= 1 - rng.uniform(0, 0.9) * np.abs(points) ** 2
    light = _blur(light, rng.uniform(0, 0.22))
    light *= rng.uniform(55, 115) / light.mean()

    warmth = rng.uniform(-0.08, 0.08)
    rgb: Field = light[..., None] * np.array([1 + warmth, 1, 1 - warmth], np.float32)
    rgb += rng.uniform(1, 5) * rng.standard_normal(rgb.shape, np.float32)
    rgb = np.clip(rgb + 0.5, 0, 255)
    return rgb.astype(np.uint8)


def _blur(image: Field, spill: float) -> Field:
    """Let each pixel spill this share of its light to each neighbour."""
    image = np.pad(image, 1, mode="edge")
    image = (1 - 2 * spill) * image[1:-1] + spill * (image[:-2] + image[2:])
    return (1 - 2 * spill) * image[:, 1:-1] + spill * (image[:, :-2] + image[:, 2:])
