"""Pictures a second from encoded bytes to `[size, size, 3]` uint8: ours beside what it could be made of.

All decode the same photographs and scale them ("squash") in turns within one run, in one thread and in as many as there
are processors. Beside the rates stands how far the pixels are from Pillow's, the reference: decoded whole, then scaled
with the bilinear filter, antialiased.

    python benchmarks/decode.py --data ../shared/data
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import random
import statistics
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from flatfix.inference.decode import load
from flatfix.tracking.provenance import Provenance

DATA = Path(__file__).parents[2] / "shared" / "data"
CHUNK = 16  # pictures that a thread takes at a time
SEED = 0
BILINEAR = Image.Resampling.BILINEAR

Decoder = Callable[[bytes, int], NDArray[np.uint8]]


class Case(NamedTuple):
    """Hold encoded pictures, and the size that is asked for."""

    pictures: list[bytes]
    size: int


def pillow(data: bytes, size: int) -> NDArray[np.uint8]:
    """Decode all pixels, then scale."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return np.asarray(image.resize((size, size), BILINEAR))


def pillow_draft(data: bytes, size: int) -> NDArray[np.uint8]:
    """Let libjpeg divide the sides, then scale; a grey picture stays grey until it is small."""
    image = Image.open(io.BytesIO(data))
    _, box = image.draft(None, (2 * size, 2 * size)) or (None, None)
    return np.asarray(image.resize((size, size), BILINEAR, box).convert("RGB"))


def by_simplejpeg(data: bytes, size: int) -> NDArray[np.uint8]:
    """Decode all pixels, then scale with Pillow."""
    pixels = simplejpeg.decode_jpeg(data)
    if pixels.shape[:2] == (size, size):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size, size), BILINEAR))


def by_torchvision(data: bytes, size: int) -> NDArray[np.uint8]:
    """Decode all pixels, then scale as torchvision does, which is with the same filter."""
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    pixels = v2.functional.resize(decode_image(encoded, ImageReadMode.RGB), [size, size], antialias=True)
    return pixels.permute(1, 2, 0).contiguous().numpy()


def by_opencv(data: bytes, size: int) -> NDArray[np.uint8]:
    """Decode all pixels, then scale by area, OpenCV's only filter that averages all pixels."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA)


def archived(archive: Path, folder: str, step: int) -> list[bytes]:
    """Read every `step`-th JPEG below a folder of an archive."""
    with tarfile.open(archive) as tar:
        files = (member for member in tar if member.name.startswith(folder) and member.name.endswith(".jpg"))
        return [tar.extractfile(file).read() for number, file in enumerate(files) if number % step == 0]


def montages(pictures: list[bytes], columns: int, rows: int) -> Iterator[bytes]:
    """Lay photographs beside each other, so that a large picture has the detail of photographs."""
    chosen = random.Random(SEED)
    tiles = [Image.open(io.BytesIO(data)) for data in pictures]
    width, height = tiles[0].size
    for _ in range(4):
        canvas = Image.new("RGB", (columns * width, rows * height))
        for place in range(columns * rows):
            canvas.paste(chosen.choice(tiles), (place % columns * width, place // columns * height))
        file = io.BytesIO()
        canvas.save(file, "JPEG", quality=92)
        yield file.getvalue()


def cases(data: Path) -> Iterator[tuple[str, Case]]:
    """Yield what there is to decode, by name."""
    if (archive := data / "cifar10.tar.xz").is_file():
        yield "CIFAR-10 JPEG 32 → 32", Case(archived(archive, "test/", 5), 32)
    else:
        print(f"no {archive}: left out")
    if (archive := data / "tires_flat_full.tar.xz").is_file():
        tires = archived(archive, "", 3)
        yield "tires JPEG 240 → 224", Case(tires, 224)
        yield "tires JPEG 240 → 60", Case(tires, 60)
        yield "montage JPEG 3840 x 2880 → 224", Case(list(montages(tires, 16, 12)), 224)
    else:
        print(f"no {archive}: left out")
    if package := importlib.util.find_spec("elpv_dataset"):
        folder = Path(str(package.origin)).parent / "data" / "images"
        cells = [file.read_bytes() for file in sorted(folder.glob("*.png"))[::10]]
        yield "elpv PNG 300 → 64", Case(cells, 64)
        yield "elpv PNG 300 → 224", Case(cells, 224)
    else:
        print("elpv-dataset is not installed: left out")


def rate(decode: Decoder, case: Case, pool: ThreadPoolExecutor, seconds: float = 0.5) -> float:
    """Return pictures a second over whole passes."""
    chunk = max(1, min(CHUNK, len(case.pictures) // 4))

    def some(start: int) -> int:
        pictures = case.pictures[start : start + chunk]
        return len([decode(picture, case.size) for picture in pictures])

    start, count = time.perf_counter(), 0
    while time.perf_counter() < start + seconds:
        count += sum(pool.map(some, range(0, len(case.pictures), chunk)))
    return count / (time.perf_counter() - start)


def difference(decode: Decoder, case: Case) -> dict[str, float]:
    """Return how many levels of 255 the pixels are away from Pillow's, at most and on average."""
    away = [
        np.abs(decode(data, case.size).astype(np.int16) - pillow(data, case.size)).astype(np.uint8)
        for data in case.pictures
    ]
    return {"max": float(max(picture.max() for picture in away)), "mean": float(np.mean(away))}


def measure(case: Case, decoders: dict[str, Decoder], rounds: int, threads: list[int]) -> dict[str, Any]:
    """Return rates and differences of each decoder; a first round is not counted."""
    rates: dict[str, dict[int, list[float]]] = {name: {number: [] for number in threads} for name in decoders}
    for number in threads:
        with ThreadPoolExecutor(number) as pool:
            for turn in range(rounds + 1):
                # The order rotates, so that none always comes after the one that leaves the caches cold.
                for shift in range(len(decoders)):
                    name = list(decoders)[(turn + shift) % len(decoders)]
                    speed = rate(decoders[name], case, pool)
                    if turn:
                        rates[name][number].append(speed)
    return {
        name: {"pictures_per_s": rates[name], "difference": difference(decode, case)}
        for name, decode in decoders.items()
    }


def main() -> None:
    """Measure, print the tables, and write them as JSON beside this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help=f"folder of the archives; {DATA} by default")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)  # the threads are ours
    cv2.setNumThreads(1)
    threads = sorted({1, os.cpu_count() or 1})
    others = {"Pillow": pillow, "Pillow, draft": pillow_draft, "torchvision": by_torchvision, "OpenCV": by_opencv}
    machine = Provenance.collect(
        Path(__file__).parent, ["Pillow", "simplejpeg", "opencv-python-headless", "torchvision"]
    )
    print(f"\n{machine.cpu}, {options.rounds} rounds, seed {SEED}; {machine.packages}")
    results = {}
    for title, case in cases(options.data):
        decoders = {"flatfix": lambda data, size: load(data, size, "squash"), **others}
        if "JPEG" in title:
            decoders["simplejpeg"] = by_simplejpeg
        results[title] = measure(case, decoders, options.rounds, threads)
        print(f"\n{title}, {len(case.pictures):,} pictures")
        columns = "".join(f"{f'{number} threads' if number > 1 else '1 thread':>14}" for number in threads)
        print(f"{'median pictures/s':20}{columns}{'ours / it':>12}{'difference: max':>18}{'mean':>8}")
        ours = statistics.median(results[title]["flatfix"]["pictures_per_s"][1])
        for name, result in results[title].items():
            medians = [statistics.median(values) for values in result["pictures_per_s"].values()]
            away = result["difference"]
            row = "".join(f"{median:14,.0f}" for median in medians)
            print(f"{name:20}{row}{ours / medians[0]:12.2f}{away['max']:18.0f}{away['mean']:8.3f}")
    facts = {
        "cpu": machine.cpu,
        "packages": machine.packages,
        "seed": SEED,
        "rounds": options.rounds,
        "cases": results,
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
