"""Find pictures that cost far more than their pixels, before a decoder begins: neither libjpeg nor Pillow bounds that.

A JPEG of 200 kB with 500 empty scans over 49 megapixels keeps a core busy for 8 s, one of 16 MB for hours. Pillow makes
an object for each strip of a TIFF before it knows how large the picture is, and libtiff memory for a whole tile however
small the picture around it.
"""

from __future__ import annotations

import re
import struct

MAX_SCANS = 100
"""Of a JPEG, as in libtiff; encoders write about ten."""

MAX_SEGMENTS = 4096
"""Of a JPEG up to its pixels; a colour profile has 255 at most."""

MAX_JUNK = 65_536
"""Bytes between the segments of a JPEG, which Pillow passes over one by one."""

MAX_PIECES = 32_768
"""Strips or tiles of a TIFF; Pillow needs 30 µs and 300 bytes for each."""

_MARKER = re.compile(rb"\xff[\x01-\xfe]")
_MARKER_IN_SCAN = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # neither an escaped 255 nor a restart
_SOS, _EOI = 0xDA, 0xD9
_WITHOUT_LENGTH = frozenset((0x01, *range(0xD0, 0xD9)))
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL = (0xC0, 0xC1)

_TIFFS = {b"II*\0": "<", b"MM\0*": ">", b"II+\0": "<", b"MM\0+": ">"}
_TILE_WIDTH, _TILE_LENGTH, _STRIP_OFFSETS, _TILE_OFFSETS = 322, 323, 273, 324
_SHORT, _LONG, _LONG8 = 3, 4, 16


def fault(data: bytes, max_pixels: int) -> str | None:
    """Return what is too much about a picture, None where nothing is; damage is for its decoder to find."""
    try:
        if data.startswith(b"\xff\xd8"):
            return _fault_of_jpeg(data)
        if data[:4] in _TIFFS:
            return _fault_of_tiff(data, max_pixels)
    except (struct.error, IndexError):  # cut off
        pass
    return None


def _fault_of_jpeg(data: bytes) -> str | None:
    """Walk from marker to marker (ITU-T T.81, B.1.1) up to the first scan, and on where there may be many."""
    position, num_segments, num_junk, num_scans = 2, 0, 0, 0
    num_components, is_sequential = 0, False
    while found := (_MARKER_IN_SCAN if num_scans else _MARKER).search(data, position):
        marker = data[found.start() + 1]
        num_segments += 1
        if not num_scans:
            num_junk += found.start() - position
        if num_segments > MAX_SEGMENTS or num_junk > MAX_JUNK:
            return "it has more parts than any picture needs"
        position = found.end()
        if marker == _EOI:
            return None
        if marker in _WITHOUT_LENGTH:
            continue
        if marker in _FRAMES and not num_components:
            num_components, is_sequential = data[position + 7], marker in _SEQUENTIAL
        elif marker == _SOS:
            num_scans += 1
            if num_scans > MAX_SCANS:
                return f"it has more than {MAX_SCANS} scans"
            # Of a sequential picture whose first scan holds all components a decoder reads no other, and the search
            # for them would cost a tenth of its time.
            if num_scans == 1 and is_sequential and data[position + 2] == num_components:
                return None
        position += int.from_bytes(data[position : position + 2], "big")
    return None


def _fault_of_tiff(data: bytes, max_pixels: int) -> str | None:
    """Read how the first picture is cut into pieces."""
    order = _TIFFS[data[:4]]
    is_big = data[2:4] in (b"+\0", b"\0+")
    sides = {_TILE_WIDTH: 0, _TILE_LENGTH: 0}
    (start,) = struct.unpack_from(f"{order}{'Q' if is_big else 'I'}", data, 8 if is_big else 4)
    (num_tags,) = struct.unpack_from(f"{order}{'Q' if is_big else 'H'}", data, start)
    first, size = (start + 8, 20) if is_big else (start + 2, 12)
    for place in range(first, min(first + num_tags * size, len(data)), size):
        tag, kind, count = struct.unpack_from(f"{order}{'HHQ' if is_big else 'HHI'}", data, place)
        if tag in (_STRIP_OFFSETS, _TILE_OFFSETS) and count > MAX_PIECES:
            return f"it is cut into more than {MAX_PIECES:,} pieces"
        if tag in sides:
            code = {_SHORT: "H", _LONG: "I", _LONG8: "Q"}.get(kind, "B")
            (sides[tag],) = struct.unpack_from(f"{order}{code}", data, place + (12 if is_big else 8))
    width, length = sides[_TILE_WIDTH], sides[_TILE_LENGTH]
    if width * length > max_pixels:
        return f"its tiles are {width} x {length} pixels: more than {max_pixels:,}"
    return None
