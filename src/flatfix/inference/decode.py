"""Turn the bytes of a picture into RGB pixels: the one way, for training, serving and monitoring alike."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from flatfix.errors import one_of

RESIZE_RULES = ("squash", "crop", "pad")

# Only these: Pillow also opens formats that start other programs (EPS runs Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")

# What a header may claim before memory is spent on it: the largest inspection cameras have 150 megapixels.
MAX_PIXELS = 160_000_000


class UnreadableImageError(ValueError):
    """Report bytes that do not decode; the message is the reason."""


def decode(data: bytes) -> NDArray[np.uint8]:
    """Decode a picture into `[H, W, 3]` uint8 RGB (read-only).

    The EXIF orientation is applied. Grey, palette and 1-bit pictures become RGB, 16-bit grey is scaled by its full
    range (65535 is white), transparency is laid over white, CMYK is converted without a colour profile. Of a picture
    with several frames the first counts.

    Raises:
        UnreadableImageError: for anything that is not a whole picture in one of `FORMATS` with at most `MAX_PIXELS`.
    """
    if not data:
        raise UnreadableImageError("the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableImageError(f"claims {image.width} x {image.height} pixels: more than {MAX_PIXELS:,}")
            ImageOps.exif_transpose(image, in_place=True)
            return np.asarray(_to_rgb(image))
    except UnidentifiedImageError as error:
        raise UnreadableImageError(f"not a picture in a known format ({', '.join(FORMATS)})") from error
    except (UnreadableImageError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders answer damaged bytes with nearly any exception
        raise UnreadableImageError(str(error) or type(error).__name__) from error


def resize(image: NDArray[np.uint8], size: int, rule: str) -> NDArray[np.uint8]:
    """Scale `[H, W, 3]` pixels to `[size, size, 3]`, bilinear and antialiased.

    `squash` ignores the aspect ratio; `crop` takes the centre square; `pad` keeps the whole picture, centred on black.

    Raises:
        UserError: for a rule that is not one of `RESIZE_RULES`.
    """
    one_of("dataset.resize", rule, RESIZE_RULES)
    height, width = image.shape[:2]
    if height == width == size:
        return image
    picture = Image.fromarray(image)
    if rule == "squash":
        return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))
    if rule == "crop":
        return np.asarray(ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR))
    longest = max(height, width)
    inner = max(1, round(width * size / longest)), max(1, round(height * size / longest))
    canvas = Image.new("RGB", (size, size))
    left_top = (size - inner[0]) // 2, (size - inner[1]) // 2
    canvas.paste(picture.resize(inner, Image.Resampling.BILINEAR), left_top)
    return np.asarray(canvas)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return _from_16_bit(image).convert("RGB")
    if image.mode == "F":
        raise UnreadableImageError("floating-point pixels have no known range")
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        return canvas.convert("RGB")
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Scale by the full range; Pillow's own conversion clips at 255."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise UnreadableImageError("integer pixels outside 0 to 65535 have no known range")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))
