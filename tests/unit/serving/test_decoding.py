from __future__ import annotations

import asyncio
import gc
import threading

import numpy as np
import pytest

from flatfix.inference.decode import load, load_with_sides
from flatfix.serving import decoding
from flatfix.serving.decoding import Decoders
from flatfix.serving.metrics import Metrics
from flatfix.serving.problems import Problem
from tests.helpers.images import colours, encode, png_claiming
from tests.helpers.server import wait_until

JPEG = encode(colours(240, 320), "JPEG")


def run(scenario, num_threads=2, max_pixels=100_000):
    """Run a scenario with decoders, and return the metrics as text."""
    metrics = Metrics()

    async def main():
        decoders = Decoders(num_threads, max_pixels, metrics)
        try:
            await asyncio.wait_for(scenario(decoders), 10)
        finally:
            decoders.stop()

    asyncio.run(main())
    return metrics.render()[0].decode()


def test_pictures_are_loaded_as_everywhere_else_and_counted():
    async def scenario(decoders):
        forms = [JPEG, encode(colours(30, 50))] * 5
        loaded = await asyncio.gather(*(decoders.load(data, 16, "crop") for data in forms))

        for pixels, data in zip(loaded, forms, strict=True):
            np.testing.assert_array_equal(pixels, load(data, 16, "crop"))

    assert "\ndecode_seconds_count 10.0\n" in run(scenario)


@pytest.mark.parametrize(
    ("data", "status", "reason", "detail"),
    [
        (b"<html>", 415, "not_an_image", "not a picture in a known format"),
        (png_claiming(400, 300), 413, "too_many_pixels", "400 x 300 pixels: more than 100,000"),
        (encode(colours(300, 400), "JPEG"), 413, "too_many_pixels", "400 x 300 pixels: more than 100,000"),
        (png_claiming(60_000, 60_000), 413, "too_many_pixels", "3600000000"),
        (JPEG[:-200], 422, "corrupt_image", "truncated"),
        (encode(colours())[:12], 422, "corrupt_image", "header"),
        (b"", 422, "corrupt_image", "empty"),
    ],
)
def test_what_is_wrong_with_a_picture_is_the_problem_that_the_client_is_told(data, status, reason, detail):
    async def scenario(decoders):
        for read in (decoders.load, decoders.load_with_box):
            with pytest.raises(Problem, match=detail) as caught:
                await read(data, 16, "squash")

            assert (caught.value.status, caught.value.reason) == (status, reason)

    assert "\ndecode_seconds_count 2.0\n" in run(scenario)


def test_the_part_of_the_picture_that_the_model_sees_comes_with_it():
    async def scenario(decoders):
        pixels, box = await decoders.load_with_box(JPEG, 16, "crop")

        np.testing.assert_array_equal(pixels, load(JPEG, 16, "crop"))
        assert box == pytest.approx((0.125, 0, 0.875, 1))

    run(scenario)


def test_bytes_are_let_go_by_who_waits_at_once_and_by_who_is_decoded_when_that_is_done(monkeypatch):
    has_begun, may_end = threading.Event(), threading.Event()

    def slow(data, *rest):
        has_begun.set()
        assert may_end.wait(5)
        return load_with_sides(data, *rest)

    monkeypatch.setattr(decoding, "load_with_sides", slow)

    async def scenario(decoders):
        decoded, waiting = (asyncio.create_task(decoders.load(Bytes(JPEG), 16, "crop")) for _ in range(2))
        await asyncio.to_thread(has_begun.wait, 5)
        for task in (decoded, waiting):
            task.cancel()
        await asyncio.wait([waiting], timeout=5)
        assert (decoded.done(), waiting.done()) == (False, True)
        del waiting, task
        gc.collect()
        assert Bytes.num_held == 1
        may_end.set()
        await asyncio.wait([decoded], timeout=5)
        assert decoded.cancelled()
        assert (await decoders.load(JPEG, 16, "crop")).shape == (16, 16, 3)

    run(scenario, num_threads=1)


class Bytes(bytes):
    """Bytes that are counted as long as somebody holds them."""

    num_held = 0

    def __init__(self, data):
        Bytes.num_held += 1

    def __del__(self):
        Bytes.num_held -= 1


def test_no_more_threads_decode_than_were_asked_for_and_none_is_left():
    async def scenario(decoders):
        await asyncio.gather(*(decoders.load(JPEG, 16, "squash") for _ in range(30)))

        assert 1 <= sum(thread.name.startswith("decode") for thread in threading.enumerate()) <= 3

    run(scenario, num_threads=3)
    wait_until(lambda: not any(each.name.startswith("decode") for each in threading.enumerate()), 5, "their end")
