from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from flatfix.errors import UserError
from flatfix.training.augment import Alternating, Cifar
from tests.helpers.draws import chance, copies, counted, drawn, key, pictures

OBLONG = pictures(1, 7, 10)


def window(image: Tensor, padding: int, top: int, left: int) -> Tensor:
    height, width = image.shape[1:3]
    padded = reference.pad(image.permute(0, 3, 1, 2), [padding] * 4)
    return reference.crop(padded, top, left, height, width).permute(0, 2, 3, 1)


def test_every_window_of_the_black_bordered_picture_is_cut_equally_often_and_mirrored_half_of_the_time() -> None:
    windows = [window(OBLONG, 2, top, left) for top in range(5) for left in range(5)]
    outcomes = [key(side) for one in windows for side in (one, one.flip(2))]
    assert len(set(outcomes)) == 50
    seen = counted(drawn(Cifar(padding=2), copies(OBLONG, 20_000), 0))
    assert chance(seen, dict.fromkeys(outcomes, 1)) > 0.01


def test_windows_are_cut_without_mirroring_where_that_is_off() -> None:
    windows = {key(window(OBLONG, 1, top, left)) for top in range(3) for left in range(3)}
    assert counted(drawn(Cifar(padding=1, horizontal_flip=False), copies(OBLONG, 500), 0)).keys() == windows


def test_pictures_are_mirrored_in_place_without_padding() -> None:
    seen = counted(drawn(Cifar(padding=0), copies(OBLONG, 4000), 0))
    assert chance(seen, {key(OBLONG): 1, key(OBLONG.flip(2)): 1}) > 0.01


@pytest.mark.parametrize("side", [1, 4, 5])
def test_the_blanked_square_is_centred_on_any_pixel_equally_often_and_cut_off_at_the_border(side: int) -> None:
    height, width = OBLONG.shape[1:3]
    mean = OBLONG.float().mean(dim=(0, 1, 2)).round().to(torch.uint8)
    weights: Counter[bytes] = Counter()
    for top in range(-(side // 2), height - side // 2):
        for left in range(-(side // 2), width - side // 2):
            blanked = OBLONG.clone()
            blanked[:, max(top, 0) : top + side, max(left, 0) : left + side] = mean
            weights[key(blanked)] += 1
    augment = Cifar(padding=0, horizontal_flip=False, cutout=side)
    assert chance(counted(drawn(augment, copies(OBLONG, 20_000), 1)), weights) > 0.01


def test_blanking_leaves_the_mean_colour_of_a_batch_as_it_is() -> None:
    images = pictures(256)
    blanked = drawn(Cifar(padding=0, horizontal_flip=False, cutout=12), images, 0)
    assert (blanked != images).float().mean() > 0.1
    torch.testing.assert_close(blanked.float().mean((0, 1, 2)), images.float().mean((0, 1, 2)), atol=1.0, rtol=0)


def test_a_switch_leaves_alone_what_the_others_draw() -> None:
    images = pictures()
    both = drawn(Cifar(padding=2), images, 3)
    still = drawn(Cifar(padding=2, horizontal_flip=False), images, 3)
    assert all(
        torch.equal(one, other) or torch.equal(one, other.flip(1)) for one, other in zip(both, still, strict=True)
    )


def test_with_everything_off_pictures_stay_and_that_is_said() -> None:
    augment = Cifar(padding=0, horizontal_flip=False)
    assert not augment.changes_pictures
    assert torch.equal(drawn(augment, OBLONG, 0), OBLONG)


@pytest.mark.parametrize("name", ["padding", "cutout"])
def test_a_value_out_of_range_names_its_option(name: str) -> None:
    with pytest.raises(UserError, match=rf"augment\.{name}=-1: out of range"):
        Cifar(**{name: -1})


def sides(epoch: int, count: int = 40) -> list[bytes]:
    """Return which side each picture of a split shows, whatever else is drawn."""
    augment, images, rows = Alternating(padding=0), copies(OBLONG, count), torch.arange(count)
    return [key(picture) for picture in augment.vary(images, torch.Generator().manual_seed(epoch), rows, epoch)]


def test_two_epochs_in_a_row_show_both_sides_of_every_picture_and_the_next_two_the_same_again() -> None:
    both = {key(OBLONG), key(OBLONG.flip(2))}
    assert all({one, other} == both for one, other in zip(sides(0), sides(1), strict=True))
    assert sides(0) == sides(2)
    assert Counter(sides(0)) == dict.fromkeys(both, 20)


def test_the_side_of_a_picture_goes_by_its_row_and_not_by_its_place_in_the_batch() -> None:
    augment, images = Alternating(padding=0), pictures(8)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    in_order = augment.vary(images, torch.Generator(), torch.arange(8), 3)
    assert torch.equal(augment.vary(images[order], torch.Generator(), order, 3), in_order[order])


def test_pictures_that_alternate_are_shifted_as_ever() -> None:
    images, rows = pictures(), torch.arange(8)
    varied = Alternating(padding=2).vary(images, torch.Generator().manual_seed(3), rows, 0)
    turned = torch.where((rows % 2 == 1).view(-1, 1, 1, 1), images.flip(2), images)
    assert torch.equal(varied, drawn(Cifar(padding=2, horizontal_flip=False), turned, 3))


def test_where_no_epoch_is_known_half_of_the_pictures_are_mirrored() -> None:
    seen = counted(drawn(Alternating(padding=0), copies(OBLONG, 4000), 0))
    assert chance(seen, {key(OBLONG): 1, key(OBLONG.flip(2)): 1}) > 0.01
