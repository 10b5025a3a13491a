from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from flatfix.errors import UserError
from flatfix.inference.decode import UnreadableImageError, decode, resize
from tests.helpers.images import colours, encode, grey_forms, greys, png_claiming


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


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_exif_orientation_is_applied(format, orientation):
    upright = colours()
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation

    np.testing.assert_array_equal(decode(encode(np.ascontiguousarray(stored), format, exif=exif)), upright)


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
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"not a picture at all", "not a picture in a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "not a picture in a known format"),
        (encode(colours(240, 320), "JPEG")[:-200], "truncated"),
        (encode(colours(240, 320))[:-100], "truncated"),
        (encode(colours()).replace(b"IDAT", b"IDAX"), "not a picture"),
        (encode(colours()).replace(b"IHDR", b"\0\0\0\0"), "not a picture"),
        (encode(greys().astype(np.float32), "TIFF"), "floating-point"),
        (encode(greys().astype(np.int32) * 1000, "TIFF"), "no known range"),
        (png_claiming(60_000, 60_000), "3600000000"),
    ],
)
def test_unreadable_bytes_are_refused_with_their_reason(data, reason):
    with pytest.raises(UnreadableImageError, match=reason):
        decode(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_header_that_claims_too_many_pixels_is_refused_before_any_memory_is_spent():
    with pytest.raises(UnreadableImageError, match="claims 13000 x 13000 pixels: more than 160,000,000"):
        decode(png_claiming(13_000, 13_000))


@pytest.mark.parametrize("rule", ["squash", "crop", "pad"])
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
    with pytest.raises(UserError, match=r"dataset\.resize=squish.*squash, crop, pad.*Did you mean 'squash'"):
        resize(colours(), 16, "squish")


def test_a_picture_of_the_right_size_is_not_touched():
    pixels = colours(16, 16)

    assert resize(pixels, 16, "crop") is pixels
