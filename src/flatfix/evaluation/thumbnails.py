"""Small pictures inside a page: the only module here that encodes pictures."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 128
"""Most pixels a side of a small picture."""


def shrink(pictures: NDArray[np.uint8], side: int = SIDE) -> NDArray[np.uint8]:
    """Reduce pictures `[K, H, W, 3]` so that no side is longer than `side`; smaller ones stay as they are."""
    height, width = pictures.shape[1:3]
    scale = side / max(height, width)
    if scale >= 1:
        return pictures
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.stack([np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX)) for picture in pictures])


def data_uri(picture: NDArray[np.uint8]) -> str:
    """Return a picture `[H, W, 3]` as the value of an HTML `src`: the smaller one of its PNG and its JPEG."""
    image = Image.fromarray(picture)
    forms = []
    for form, options in (("png", {}), ("jpeg", {"quality": 85})):
        file = io.BytesIO()
        image.save(file, form, **options)
        forms.append((len(file.getvalue()), form, file.getvalue()))
    _, form, content = min(forms)
    return f"data:image/{form};base64,{base64.b64encode(content).decode()}"
