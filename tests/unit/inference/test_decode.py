from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import sklearn.datasets
from PIL import Image

from flatfix.errors import UserError
from flatfix.inference.decode import (
    TooManyPixelsError,
    UnknownFormatError,
    UnreadableImageError,
    decode,
    load,
    load_with_sides,
    resize,
)
from tests.helpers.images import colours, encode, grey_forms, greys, png_claiming

PHOTOGRAPHS = Path(sklearn.datasets.__file__).parent / "images"  # china.jpg and flower.jpg, 640 x 427
RULES = ["squash", "crop", "pad"]
MIRRORED = {  # of a picture [H, W, 3], what is stored with each EXIF orientation so that it shows upright
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright),
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}


def photograph(width: int = 640, height: int = 427, name: str = "china.jpg") -> Image.Image:
    return Image.open(PHOTOGRAPHS / name).crop((0, 0, width, height))


def by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def oriented(pixels: np.ndarray, orientation: int, format: str, **options) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(np.ascontiguousarray(MIRRORED[orientation](pixels)), format, exif=exif, **options)


def assert_alike(pixels: np.ndarray, expected: np.ndarray) -> None:
    away = np.abs(pixels.astype(int) - expected)
    assert away.mean() <= 1 and away.max() <= 16


@pytest.mark.parametrize("form", grey_forms())
def test_every_lossless_form_of_a_picture_decodes_to_the_same_rgb_pixels(form):
    pixels = decode(grey_forms()[form])

    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.repeat(greys()[..., None], 3, axis=2))


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "YCbCr"])
def test_a_jpeg_in_any_colour_space_decodes_to_nearly_the_same_rgb_pixels(mode):
    data = encode(Image.fromarray(colours()).convert(mode), "JPEG", quality=95, subsampling=0)

    assert np.abs(decode(data).astype(int) - colours()).max() <= 6


def test_the_two_pictures_in_one_file_of_a_phone_decode_to_the_first():
    data = encode(colours(), "MPO", quality=95, subsampling=0, save_all=True, append_images=[Image.fromarray(greys())])

    assert np.abs(decode(data).astype(int) - colours()).max() <= 6


def test_16_bit_grey_is_scaled_by_its_full_range_and_rounded():
    levels = np.array([[0, 128, 129, 257, 32768, 65407, 65406, 65535]], dtype=np.uint16)

    assert decode(encode(levels))[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255, 254, 255]


def test_1_bit_becomes_black_and_white():
    bits = np.array([[True, False], [False, True]])

    assert decode(encode(Image.fromarray(bits)))[..., 1].tolist() == [[255, 0], [0, 255]]


def test_transparency_is_laid_over_white():
    rgba = np.array([[[0, 0, 0, 255], [200, 0, 0, 0], [0, 0, 0, 127]]], dtype=np.uint8)

    assert decode(encode(rgba)).tolist() == [[[0, 0, 0], [255, 255, 255], [128, 128, 128]]]


def test_transparent_colours_of_a_palette_and_of_a_grey_picture_are_white():
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("L")
    palette.putpalette([10, 20, 30, 40, 50, 60])

    assert decode(encode(palette, transparency=1)).tolist() == [[[10, 20, 30], [255, 255, 255]]]
    grey = Image.fromarray(np.array([[7, 9]], dtype=np.uint8))
    assert decode(encode(grey, transparency=9))[0, :, 0].tolist() == [7, 255]


@pytest.mark.parametrize("orientation", MIRRORED)
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_exif_orientation_is_applied(format, orientation):
    np.testing.assert_array_equal(decode(oriented(colours(), orientation, format)), colours())


@pytest.mark.parametrize("orientation", MIRRORED)
def test_exif_orientation_of_a_jpeg_is_applied(orientation):
    data = oriented(colours(), orientation, "JPEG", quality=95, subsampling=0)

    assert np.abs(decode(data).astype(int) - colours()).max() <= 6


def test_the_orientation_of_a_jpeg_that_only_its_xmp_knows_is_applied():
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = encode(np.ascontiguousarray(MIRRORED[6](colours())), "JPEG", quality=95, subsampling=0, xmp=xmp)

    assert np.abs(decode(data).astype(int) - colours()).max() <= 6


def test_exif_orientation_of_a_16_bit_picture_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = np.rot90(greys().astype(np.uint16) * 257)

    np.testing.assert_array_equal(decode(encode(np.ascontiguousarray(wide), exif=exif))[..., 0], greys())


def test_the_first_frame_of_an_animation_counts():
    frames = [Image.fromarray(greys()), Image.fromarray(255 - greys())]

    data = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)

    np.testing.assert_array_equal(decode(data)[..., 0], greys())


@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": "4:4:4"},
        {"subsampling": "4:2:2"},
        {"subsampling": "4:2:0"},
        {"progressive": True},
        {"restart_marker_blocks": 3},
        {"keep_rgb": True},
        {"quality": 5},
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_simplejpeg_and_pillow_give_the_same_pixels_of_a_photograph(mode, options):
    for width, height in [(640, 427), (33, 47), (1, 1)]:
        data = encode(photograph(width, height).convert(mode), "JPEG", **options)

        np.testing.assert_array_equal(simplejpeg.decode_jpeg(data), by_pillow(data))
        np.testing.assert_array_equal(decode(data), by_pillow(data))


def test_a_jpeg_that_only_pillow_reads_has_the_pixels_that_pillow_gives():
    data = encode(photograph(64, 64), "JPEG")
    frame = data.index(b"\xff\xc0")
    forms = {
        "bytes too many at the end": data[:-2] + bytes(30) + data[-2:],
        "arithmetic coding": data[:frame] + b"\xff\xc9" + data[frame + 2 :],
        "fewer lines than are stored": data[: frame + 5] + b"\0\x20" + data[frame + 7 :],
        "samples three to one": data[: frame + 11] + b"\x31" + data[frame + 12 :],
    }
    for form, changed in forms.items():
        with pytest.raises(ValueError, match="Corrupt JPEG data|Could not determine"):
            simplejpeg.decode_jpeg(changed)
        assert np.array_equal(decode(changed), by_pillow(changed)), form


def test_a_cmyk_jpeg_has_the_pixels_that_pillow_gives():
    data = encode(photograph().convert("CMYK"), "JPEG")

    np.testing.assert_array_equal(decode(data), by_pillow(data))


def test_a_jpeg_cut_anywhere_is_refused():
    data = encode(colours(), "JPEG", progressive=True)
    for read in (decode, lambda cut: load(cut, 4, "squash")):
        for end in range(1, len(data) - 2):
            with pytest.raises(UnreadableImageError):
                read(data[:end])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"not a picture at all", "not a picture in a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "not a picture in a known format"),
        (encode(colours(240, 320), "JPEG")[:-200], "truncated"),
        (encode(colours(240, 320))[:-100], "truncated"),
        (encode(colours()).replace(b"IDAT", b"IDAX"), "header is damaged"),
        (encode(colours()).replace(b"IHDR", b"\0\0\0\0"), "header is damaged"),
        (encode(greys().astype(np.float32), "TIFF"), "floating-point"),
        (encode(greys().astype(np.int32) * 1000, "TIFF"), "no known range"),
        (png_claiming(60_000, 60_000), "3600000000"),
    ],
)
def test_unreadable_bytes_are_refused_with_their_reason(data, reason):
    for read in (decode, lambda data: load(data, 8, "crop")):
        with pytest.raises(UnreadableImageError, match=reason):
            read(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("read", [decode, lambda data: load(data, 8, "crop")], ids=["decode", "load"])
def test_a_header_that_claims_too_many_pixels_is_refused_before_any_memory_is_spent(read):
    with pytest.raises(UnreadableImageError, match="claims 13000 x 13000 pixels: more than 160,000,000"):
        read(png_claiming(13_000, 13_000))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_whole_jpeg_of_too_many_pixels_is_refused():
    data = encode(Image.new("L", (65_000, 2_462)), "JPEG")

    for read in (decode, lambda data: load(data, 8, "crop")):
        with pytest.raises(UnreadableImageError, match="claims 65000 x 2462 pixels: more than 160,000,000"):
            read(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    "data",
    [png_claiming(101, 99), png_claiming(13_000, 13_000), png_claiming(60_000, 60_000)]
    + [encode(Image.new(mode, (101, 100)), "JPEG") for mode in ("L", "RGB", "CMYK")]
    + [encode(Image.new("RGB", (101, 100)), format) for format in ("GIF", "WEBP", "TIFF", "BMP", "PPM")],
)
def test_a_caller_that_allows_fewer_pixels_gets_no_picture_of_more(data):
    for read in (decode, lambda data, allowed: load(data, 8, "squash", allowed)):
        with pytest.raises(TooManyPixelsError, match="pixels"):
            read(data, 9_998)


def test_a_picture_of_as_many_pixels_as_are_allowed_is_read():
    for format in ("JPEG", "PNG"):
        data = encode(Image.new("RGB", (100, 100)), format)

        assert decode(data, 10_000).shape == (100, 100, 3)
        assert load(data, 8, "squash", 10_000).shape == (8, 8, 3)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM"])
def test_the_beginning_of_a_picture_is_a_damaged_picture_and_not_an_unknown_format(format):
    data = encode(colours(), format)

    for end in (16, 24, len(data) // 3):
        with pytest.raises(UnreadableImageError) as caught:
            load(data[:end], 8, "squash")
        assert not isinstance(caught.value, UnknownFormatError)


@pytest.mark.parametrize(
    "data", [b"\0" * 99, b"<svg></svg>", b"%PDF-1.7", b"PK\3\4", b"\xff\xd8", "Bild".encode("utf-16")]
)
def test_what_no_reader_takes_for_its_own_is_of_an_unknown_format(data):
    for read in (decode, lambda data: load(data, 8, "crop")):
        with pytest.raises(UnknownFormatError, match="not a picture in a known format"):
            read(data)


@pytest.mark.parametrize("orientation", MIRRORED)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
def test_the_sides_of_the_upright_picture_come_with_its_pixels(format, orientation):
    data = oriented(colours(330, 501), orientation, format)

    pixels, (width, height) = load_with_sides(data, 40, "pad")

    np.testing.assert_array_equal(pixels, load(data, 40, "pad"))
    assert width / height == pytest.approx(501 / 330)


@pytest.mark.parametrize("rule", RULES)
def test_load_gives_the_pixels_of_decode_and_resize(rule):
    forms = grey_forms()
    forms |= {f"{mode} jpeg": encode(Image.fromarray(colours()).convert(mode), "JPEG") for mode in ("RGB", "L", "CMYK")}
    forms |= {f"tiff turned to {turn}": oriented(colours(), turn, "TIFF") for turn in MIRRORED}
    forms |= {f"jpeg turned to {turn}": oriented(colours(), turn, "JPEG") for turn in MIRRORED}
    forms["transparent"] = encode(np.dstack([colours(), greys()]))
    forms["1-bit"] = encode(Image.fromarray(greys() > 99))
    for form, data in forms.items():
        for size in (9, 24, 50):
            pixels = load(data, size, rule)

            assert pixels.shape == (size, size, 3) and pixels.dtype == np.uint8, form
            np.testing.assert_array_equal(pixels, resize(decode(data), size, rule), form)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(("size", "is_reduced"), [(107, False), (106, True), (53, True), (26, True)])
def test_a_jpeg_four_times_too_large_is_reduced_as_it_is_decoded_and_looks_the_same(size, is_reduced, mode, rule):
    data = encode(photograph(428, 427).convert(mode), "JPEG", quality=90)

    pixels, expected = load(data, size, rule), resize(decode(data), size, rule)

    assert_alike(pixels, expected)
    assert (pixels != expected).any() == is_reduced


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("orientation", MIRRORED)
@pytest.mark.parametrize("has_exif", [True, False])
def test_a_reduced_jpeg_whose_sides_do_not_divide_is_not_shifted(has_exif, orientation, rule):
    upright = np.asarray(photograph(501, 333, "flower.jpg"))
    if has_exif:
        data = oriented(upright, orientation, "JPEG", quality=90)
    else:
        data = encode(np.ascontiguousarray(MIRRORED[orientation](upright)), "JPEG", quality=90)

    assert_alike(load(data, 40, rule), resize(decode(data), 40, rule))


@pytest.mark.parametrize("shape", [(1, 1000), (1000, 1), (3, 700), (16, 16), (9, 8)])
@pytest.mark.parametrize("rule", RULES)
def test_a_jpeg_however_thin_or_small_is_loaded(rule, shape):
    for data in (encode(colours(*shape), "JPEG"), oriented(colours(*shape), 6, "JPEG")):
        for size in (1, 2, 16):
            assert load(data, size, rule).shape == (size, size, 3)


def test_threads_load_the_pixels_that_one_loads():
    forms = [encode(photograph(640, 400 + number), "JPEG") for number in range(8)]
    forms += [encode(photograph(64, 40 + number)) for number in range(8)]
    expected = [load(data, 50, "crop") for data in forms]

    with ThreadPoolExecutor(4 * (os.cpu_count() or 1)) as pool:
        for _ in range(5):
            for pixels, alone in zip(pool.map(lambda data: load(data, 50, "crop"), forms), expected, strict=True):
                np.testing.assert_array_equal(pixels, alone)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", [(24, 32), (32, 24), (100, 7), (1000, 1), (8, 8), (16, 16)])
def test_resize_gives_a_square_of_the_size(rule, shape):
    square = resize(colours(*shape), 16, rule)

    assert square.shape == (16, 16, 3)
    assert square.dtype == np.uint8


def test_squash_keeps_every_part_of_the_picture():
    halves = np.zeros((10, 40, 3), dtype=np.uint8)
    halves[:, 20:] = 255

    squashed = resize(halves, 10, "squash")

    assert (squashed[:, :4] == 0).all() and (squashed[:, 6:] == 255).all()


def test_crop_takes_the_centre():
    thirds = np.zeros((10, 30, 3), dtype=np.uint8)
    thirds[:, 10:20] = 200

    assert (resize(thirds, 10, "crop")[:, 1:-1] == 200).all()


def test_pad_centres_the_whole_picture_on_black():
    padded = resize(np.full((10, 20, 3), 200, dtype=np.uint8), 20, "pad")

    assert (padded[5:15] == 200).all()
    assert (padded[:5] == 0).all() and (padded[15:] == 0).all()


def test_scaling_down_averages_instead_of_skipping_pixels():
    checks = np.indices((64, 64)).sum(axis=0) % 2 * 255
    pixels = np.repeat(checks[..., None], 3, axis=2).astype(np.uint8)

    assert np.abs(resize(pixels, 8, "squash").astype(int) - 127).max() <= 3


def test_an_unknown_resize_rule_names_the_nearest():
    for scale in (lambda: resize(colours(), 16, "squish"), lambda: load(b"", 16, "squish")):
        with pytest.raises(UserError, match=r"dataset\.resize=squish.*squash, crop, pad.*Did you mean 'squash'"):
            scale()


def test_a_picture_of_the_right_size_is_not_touched():
    pixels = colours(16, 16)

    assert resize(pixels, 16, "crop") is pixels
