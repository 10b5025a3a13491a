"""Turn the bytes of a picture into RGB pixels: the one way, for training, serving and monitoring alike.

A JPEG without EXIF is decoded by simplejpeg, to the very pixels that Pillow gives, and small ones several times as
fast. Pillow reads everything else, and says what is wrong with what neither can read. `load` lets libjpeg scale a JPEG
that is much larger than what is asked for. OpenCV gives other pixels and is nowhere far ahead; torchvision scales
faster, but needs torch, which serving does without. `benchmarks/decode.py` measures them all.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from flatfix.errors import one_of
from flatfix.inference.claims import fault

RESIZE_RULES = ("squash", "crop", "pad")

# Only these: Pillow also opens formats that start other programs (EPS runs Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")

# What a header may claim before memory is spent on it: the largest inspection cameras have 150 megapixels.
MAX_PIXELS = 160_000_000

# What it may claim where Pillow's decoder is written in Python: run-length BMP, plain PPM, and PPM of uncommon depths.
# A kilobyte of the first can ask for a loop over all pixels, half a minute of 49 megapixels.
MAX_SLOW_PIXELS = 1_000_000

# What a JPEG may be divided by as it is decoded, if its sides stay at least REDUCING_GAP times what is asked for. This
# is the `reducing_gap` of Pillow's Image.thumbnail: with 2.0, its default, "very close to fair resampling".
REDUCTIONS = (8, 4, 2)
REDUCING_GAP = 2.0

# EXIF, and the XMP that can stand in for it: either may say that a JPEG is to be turned.
_MAY_BE_TURNED = re.compile(rb"\xff\xe1..(?:Exif\0\0|http:)", re.DOTALL)
_START_OF_JPEG = b"\xff\xd8\xff"

Box = tuple[float, float, float, float]  # left, top, right, bottom
Size = tuple[int, int]  # width, height


class UnreadableImageError(ValueError):
    """Report bytes that do not decode; the message is the reason."""


class UnknownFormatError(UnreadableImageError):
    """Report bytes that do not begin as a picture in one of `FORMATS` does."""


class TooManyPixelsError(UnreadableImageError):
    """Report a header that claims more pixels than are allowed, before memory is spent on them."""


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode a picture into `[H, W, 3]` uint8 RGB (perhaps read-only).

    The EXIF orientation is applied. Grey, palette and 1-bit pictures become RGB, 16-bit grey is scaled by its full
    range (65535 is white), transparency is laid over white, CMYK is converted without a colour profile. Of a picture
    with several frames the first counts.

    Raises:
        UnreadableImageError: for anything that is not a whole picture in one of `FORMATS` with at most `max_pixels`.
    """
    return _rgb(_read(data, lambda width, height: 1, max_pixels).pixels)


def load(data: bytes, size: int, rule: str, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode a picture and scale it to `[size, size, 3]` uint8 RGB (perhaps read-only).

    The pixels are those of `resize(decode(data), size, rule)`, except that a JPEG at least four times as large as what
    is asked for is decoded to a half, a quarter or an eighth of its sides, for which libjpeg leaves out frequencies.
    That saves most of the time, and changes a pixel by less than one level of 255 on average.

    Raises:
        UnreadableImageError: as `decode` does.
        UserError: for a rule that is not one of `RESIZE_RULES`.
    """
    return load_with_sides(data, size, rule, max_pixels)[0]


def load_with_sides(
    data: bytes, size: int, rule: str, max_pixels: int = MAX_PIXELS
) -> tuple[NDArray[np.uint8], tuple[float, float]]:
    """Return what `load` does, and the width and the height of the whole picture, upright, up to a common factor.

    Raises:
        UnreadableImageError: as `decode` does.
        UserError: for a rule that is not one of `RESIZE_RULES`.
    """
    one_of("dataset.resize", rule, RESIZE_RULES)
    picture = _read(data, partial(_reduction, size=size, rule=rule), max_pixels)
    left, top, right, bottom = picture.box
    return _resized(picture, size, rule), (right - left, bottom - top)


def resize(image: NDArray[np.uint8], size: int, rule: str) -> NDArray[np.uint8]:
    """Scale `[H, W, 3]` pixels to `[size, size, 3]`, bilinear and antialiased.

    `squash` ignores the aspect ratio; `crop` takes the centre square; `pad` keeps the whole picture, centred on black.

    Raises:
        UserError: for a rule that is not one of `RESIZE_RULES`.
    """
    one_of("dataset.resize", rule, RESIZE_RULES)
    height, width = image.shape[:2]
    return _resized(_Picture(image, (0, 0, width, height)), size, rule)


def fit(box: Box, size: int, rule: str) -> tuple[Box, Size]:
    """Return what a resize rule takes of the picture in `box`, and how large that becomes in the square.

    The square is that part alone, but for `pad`: its centre is, with `(size - side) // 2` pixels of black before it.
    """
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    if rule == "crop":
        side = min(width, height)
        left, top = left + (width - side) / 2, top + (height - side) / 2
        return (left, top, left + side, top + side), (size, size)
    if rule == "pad":
        longest = max(width, height)
        return box, (max(1, round(width * size / longest)), max(1, round(height * size / longest)))
    return box, (size, size)


class _Picture(NamedTuple):
    """Hold what was decoded, upright.

    Attributes:
        pixels: `[H, W]` or `[H, W, 3]` uint8, or a picture of Pillow's in mode L or RGB: what the decoder gives.
        box: what of it shows the picture. Where a side was divided by 2, 4 or 8 with a rest, the outermost pixels are
            in part beyond the edge.
    """

    pixels: NDArray[np.uint8] | Image.Image
    box: Box


def _read(data: bytes, reduction: Callable[[int, int], int], max_pixels: int) -> _Picture:
    """Decode; a JPEG with its sides divided by the `reduction` of its width and height."""
    if not data:
        raise UnreadableImageError("the file is empty")
    if (too_much := fault(data, max_pixels)) is not None:
        raise UnreadableImageError(too_much)
    return _read_plain_jpeg(data, reduction, max_pixels) or _read_any(data, reduction, max_pixels)


def _read_plain_jpeg(data: bytes, reduction: Callable[[int, int], int], max_pixels: int) -> _Picture | None:
    """Decode a JPEG in grey or colour that is upright and has no fault; None for everything else."""
    if not data.startswith(_START_OF_JPEG) or _MAY_BE_TURNED.search(data):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if width * height > max_pixels or colours not in ("Gray", "YCbCr", "RGB"):
            return None
        by = reduction(width, height)
        mode = "Gray" if colours == "Gray" else "RGB"
        pixels = simplejpeg.decode_jpeg(data, mode, min_height=-(-height // by), min_width=-(-width // by))
    except (ValueError, KeyError):  # KeyError: a subsampling that simplejpeg has no name for
        return None
    return _Picture(pixels[..., 0] if mode == "Gray" else pixels, (0, 0, width / by, height / by))


def _read_any(data: bytes, reduction: Callable[[int, int], int], max_pixels: int) -> _Picture:
    """Decode with Pillow, or say what is wrong."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise TooManyPixelsError(f"claims {width} x {height} pixels: more than {max_pixels:,}")
            if width * height > MAX_SLOW_PIXELS and any(tile[0] in Image.DECODERS for tile in image.tile[:1]):
                raise TooManyPixelsError(f"has more than {MAX_SLOW_PIXELS:,} pixels in a form that is slow to read")
            by = reduction(width, height)
            drafted = image.draft(None, (width // by, height // by))  # None but for a JPEG
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1) if drafted else 1
            ImageOps.exif_transpose(image, in_place=True)
            box = _turned(drafted[1], orientation, image.size) if drafted else (0, 0, *image.size)
            return _Picture(_grey_or_rgb(image), box)
    except UnidentifiedImageError as error:
        if _has_known_start(data):
            raise UnreadableImageError("its header is damaged or incomplete") from error
        raise UnknownFormatError(f"not a picture in a known format ({', '.join(FORMATS)})") from error
    except Image.DecompressionBombError as error:
        raise TooManyPixelsError(str(error)) from error
    except (UnreadableImageError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders answer damaged bytes with nearly any exception
        raise UnreadableImageError(str(error) or type(error).__name__) from error


def _has_known_start(data: bytes) -> bool:
    """Return whether a reader of Pillow's takes the bytes for its own by how they begin."""
    readers = (Image.OPEN[name][1] for name in FORMATS)
    return any(accepts(data[:16]) for accepts in readers if accepts is not None)


def _turned(box: Box, orientation: int, size: Size) -> Box:
    """Return where a picture lies in pixels of `size` that were turned upright, when it lay in `box` before.

    Args:
        box: begins at 0, 0.
        orientation: of EXIF, 1 to 8.
        size: width and height of the pixels as they are now.
    """
    _, _, width, height = box
    if orientation in (5, 6, 7, 8):
        width, height = height, width
    left = size[0] - width if orientation in (2, 3, 6, 7) else 0
    top = size[1] - height if orientation in (3, 4, 7, 8) else 0
    return left, top, left + width, top + height


def _reduction(width: int, height: int, size: int, rule: str) -> int:
    """Return what the sides of a JPEG may be divided by."""
    (left, top, right, bottom), inner = fit((0, 0, width, height), size, rule)
    gap = min((right - left) / inner[0], (bottom - top) / inner[1]) / REDUCING_GAP
    return next((by for by in REDUCTIONS if by <= gap), 1)


def _resized(picture: _Picture, size: int, rule: str) -> NDArray[np.uint8]:
    """Scale grey pixels in grey, which is a third of the work, and return RGB."""
    pixels, box = picture
    if box == (0, 0, size, size):
        return _rgb(pixels)
    part, inner = fit(box, size, rule)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    scaled = image.resize(inner, Image.Resampling.BILINEAR, part)
    if inner != (size, size):
        canvas = Image.new(image.mode, (size, size))
        canvas.paste(scaled, ((size - inner[0]) // 2, (size - inner[1]) // 2))
        scaled = canvas
    return _rgb(scaled)


def _rgb(pixels: NDArray[np.uint8] | Image.Image) -> NDArray[np.uint8]:
    if isinstance(pixels, Image.Image):
        return np.asarray(pixels if pixels.mode == "RGB" else pixels.convert("RGB"))
    return pixels if pixels.ndim == 3 else np.asarray(Image.fromarray(pixels).convert("RGB"))


def _grey_or_rgb(image: Image.Image) -> Image.Image:
    """Convert to mode L or RGB, opaque and with 8 bits a channel."""
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return _from_16_bit(image)
    if image.mode == "F":
        raise UnreadableImageError("floating-point pixels have no known range")
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        return canvas.convert("RGB")
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Scale by the full range; Pillow's own conversion clips at 255."""
    stored = np.asarray(image)
    if stored.min() < 0 or stored.max() > 65535:
        raise UnreadableImageError("integer pixels outside 0 to 65535 have no known range")
    # In place, and no wider than it has to be: there may be 50 megapixels, several times at once.
    values = stored.astype(np.uint32)
    values += 128
    values //= 257
    return Image.fromarray(values.astype(np.uint8))
