"""Picture files for tests: class folders, and one picture in every form that a file can take."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flatfix.data.sources.base import Record

Pixels = NDArray[np.uint8]


def encode(pixels: NDArray[Any] | Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """Return the bytes of a picture file."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def colours(height: int = 24, width: int = 32, seed: int = 0) -> Pixels:
    """Draw a smooth colour picture: JPEG keeps it nearly as it is."""
    phase = np.random.default_rng(seed).uniform(0, 6, size=3)
    y, x = np.mgrid[0:height, 0:width, 0:1][:2]
    return np.rint(127.5 + 100 * np.sin(phase + x / width * 3 + y / height * 2)).astype(np.uint8)


def greys(height: int = 24, width: int = 32) -> Pixels:
    """Draw a grey ramp, `[H, W]`."""
    return np.linspace(0, 255, height * width).astype(np.uint8).reshape(height, width)


def grey_forms() -> dict[str, bytes]:
    """Return `greys()` in every form that keeps its values."""
    grey = greys()
    wide = grey.astype(np.uint16) * 257
    image = Image.fromarray(grey)
    palette = image.convert("P")
    reverse = Image.fromarray(255 - grey)
    reverse.putpalette([255 - level // 3 for level in range(768)])
    return {
        "grey png": encode(grey),
        "rgb png": encode(image.convert("RGB")),
        "rgba png": encode(image.convert("RGBA")),
        "grey png with alpha": encode(image.convert("LA")),
        "palette png": encode(reverse),
        "palette png with unused transparency": encode(reverse, transparency=bytes([255] * 256)),
        "palette gif": encode(palette, "GIF"),
        "16-bit grey png": encode(wide),
        "16-bit grey tiff": encode(wide, "TIFF"),
        "16-bit big-endian tiff": encode(Image.fromarray(wide.astype(">u2")), "TIFF"),
        "16-bit pgm": encode(Image.fromarray(wide), "PPM"),
        "16-bit rgb png": png(np.repeat(wide[..., None], 3, axis=2)),
        "bmp": encode(grey, "BMP"),
        "lossless webp": encode(image.convert("RGB"), "WEBP", lossless=True),
    }


def png(pixels: NDArray[np.uint16]) -> bytes:
    """Write a 16-bit RGB PNG, which Pillow can only read."""
    height, width, _ = pixels.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    return _png_header(width, height, bits=16) + _chunk(b"IDAT", zlib.compress(lines)) + _chunk(b"IEND", b"")


def png_claiming(width: int, height: int) -> bytes:
    """Return a small PNG whose header announces that many pixels."""
    return _png_header(width, height, bits=8) + _chunk(b"IDAT", zlib.compress(b"\0")) + _chunk(b"IEND", b"")


def blank_png(width: int, height: int) -> bytes:
    """Return a whole PNG of black pixels, one bit each: two megabytes for 60,000 x 60,000."""
    deflate = zlib.compressobj(1)
    line = bytes(1 + -(-width // 8))
    lines = b"".join(deflate.compress(line) for _ in range(height)) + deflate.flush()
    return _png_header(width, height, bits=1, colour=0) + _chunk(b"IDAT", lines) + _chunk(b"IEND", b"")


def _png_header(width: int, height: int, bits: int, colour: int = 2) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def class_folders(
    root: Path,
    classes: Sequence[str] = ("cat", "dog"),
    num_pictures: int = 10,
    splits: Sequence[str] = (),
    height: int = 12,
    width: int = 16,
) -> Path:
    """Write `num_pictures` different PNG files for each class, below each split if there are any."""
    seed = 0
    for above in [root / split for split in splits] or [root]:
        for name in classes:
            (above / name).mkdir(parents=True, exist_ok=True)
            for number in range(num_pictures):
                seed += 1
                (above / name / f"{number:03d}.png").write_bytes(encode(colours(height, width, seed)))
    return root


class MemorySource:
    """Offer pictures of a list of records, drawn from their locations; for records that no folder can hold."""

    num_readers = None

    def __init__(self, records: Sequence[Record], classes: Sequence[str] = ("cat", "dog")) -> None:
        self.classes = tuple(classes)
        self._records = list(records)

    def records(self) -> list[Record]:
        """Return the records as they were given."""
        return self._records

    def read(self, record: Record) -> bytes:
        """Draw a picture."""
        return encode(colours(seed=zlib.crc32(record.location.encode())))

    def describe(self) -> dict[str, str | int | float | bool | None]:
        """Say what it is."""
        return {"kind": "memory"}


def records(num_pictures: int = 40, classes: Sequence[str] = ("cat", "dog"), **fields: Any) -> list[Record]:
    """Return records with the classes in turn."""
    return [
        Record(f"picture-{number:04d}", classes[number % len(classes)], f"{number}.png", "png", **fields)
        for number in range(num_pictures)
    ]
