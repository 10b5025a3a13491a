from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from flatfix.inference.claims import MAX_PIECES, MAX_SCANS, fault
from flatfix.inference.decode import TooManyPixelsError, UnreadableImageError, decode
from tests.helpers.hostile import scans, tiff
from tests.helpers.images import colours, encode, grey_forms, greys

PROGRESSIVE = encode(colours(64, 64), "JPEG", progressive=True)
PLAIN = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 8, 279: 64}


def test_a_jpeg_of_more_scans_than_any_encoder_writes_is_refused():
    assert fault(scans(MAX_SCANS - 20, side=64), 10**6) is None
    assert "scans" in fault(scans(MAX_SCANS, side=64), 10**6)
    with pytest.raises(UnreadableImageError, match="more than 100 scans"):
        decode(scans(MAX_SCANS, side=64))


def test_scans_that_are_repeated_in_a_baseline_jpeg_are_counted_where_its_decoder_reads_on():
    baseline = encode(colours(64, 64), "JPEG")
    start = baseline.rfind(b"\xff\xda")
    again = baseline[start:-2] * 200
    assert fault(baseline[:-2] + again + baseline[-2:], 10**6) is None  # libjpeg ends after the first
    first = baseline[:start] + b"\xff\xda\0\x08\1\1\0\0\x3f\0" + bytes(9)  # of one component alone
    assert "scans" in fault(first + again + baseline[-2:], 10**6)


def test_what_follows_a_jpeg_is_not_counted():
    assert fault(PROGRESSIVE + b"\xff\xda\0\2" * 1000, 10**6) is None
    np.testing.assert_array_equal(decode(PROGRESSIVE + b"\xff\xda\0\2" * 1000), decode(PROGRESSIVE))


def test_what_a_segment_holds_is_not_counted():
    profile = b"\xff\xda\0\2" * 16_000
    segment = b"\xff\xe2" + struct.pack(">H", len(profile) + 2) + profile
    assert fault(PROGRESSIVE[:2] + segment + PROGRESSIVE[2:], 10**6) is None


def test_a_jpeg_with_junk_or_very_many_segments_is_refused():
    assert "parts" in fault(PROGRESSIVE[:2] + b"\xff" * 100_000 + PROGRESSIVE[2:], 10**6)
    assert "parts" in fault(PROGRESSIVE[:2] + b"\xff\xfe\0\2" * 5000 + PROGRESSIVE[2:], 10**6)


def test_a_tiff_in_very_many_pieces_or_with_huge_tiles_is_refused():
    assert fault(tiff(PLAIN), 10**6) is None
    assert fault(tiff(PLAIN, (273, bytes(2 * MAX_PIECES))), 10**6) is None
    assert "pieces" in fault(tiff(PLAIN, (273, bytes(2 * MAX_PIECES + 2))), 10**6)
    assert "pieces" in fault(tiff(PLAIN, (324, bytes(2 * MAX_PIECES + 2)), drop=273), 10**6)
    assert "2000 x 1000" in fault(tiff({**PLAIN, 322: 2000, 323: 1000}), 10**6)


def test_a_big_tiff_is_bounded_too():
    tags = [(322, 16, 1, 2000), (323, 4, 1, 1000)]
    rows = b"".join(
        struct.pack(">HHQQ", tag, kind, count, value << (32 if kind == 4 else 0)) for tag, kind, count, value in tags
    )
    data = b"MM\0+" + struct.pack(">HHQ", 8, 0, 16) + struct.pack(">Q", len(tags)) + rows + bytes(8)
    assert "2000 x 1000" in fault(data, 10**6)
    assert fault(data, 2 * 10**6) is None


def test_real_pictures_have_no_fault():
    pictures = [
        *grey_forms().values(),
        PROGRESSIVE,
        encode(colours(), "JPEG"),
        encode(greys(), "TIFF", compression="jpeg"),
    ]
    for data in pictures:
        assert fault(data, 10**6) is None


@pytest.mark.parametrize("picture", [PROGRESSIVE, encode(colours(), "TIFF"), encode(greys(), "JPEG")])
def test_a_picture_cut_anywhere_has_no_fault_but_that(picture):
    for end in range(0, len(picture), 7):
        assert fault(picture[:end], 10**6) is None


def test_a_form_that_is_slow_to_read_is_read_when_it_is_small():
    plain = b"P3 2 1 255\n255 0 0 0 0 255\n"
    np.testing.assert_array_equal(decode(plain), [[[255, 0, 0], [0, 0, 255]]])
    with pytest.raises(TooManyPixelsError, match="slow to read"):
        decode(b"P3 1001 1000 255\n" + b"0 " * 3_003_000)


def test_a_16_bit_picture_is_scaled_alike_in_every_kind_of_integer():
    values = np.array([[0, 128, 129, 65535]])
    for kind, format in ((np.uint16, "PNG"), (np.int32, "TIFF")):
        file = io.BytesIO()
        Image.fromarray(values.astype(kind)).save(file, format)
        assert decode(file.getvalue())[0, :, 0].tolist() == [0, 0, 1, 255]
