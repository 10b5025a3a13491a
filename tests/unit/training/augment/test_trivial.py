from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import TrivialAugmentWide

from flatfix.errors import UserError
from flatfix.training.augment import Trivial
from flatfix.training.augment.trivial import NUM_STRENGTHS, OPERATIONS
from tests.helpers.draws import chance, copies, counted, drawn, key, pictures

REFERENCE = TrivialAugmentWide()
SPACE = REFERENCE._AUGMENTATION_SPACE
FLOATS = {"Brightness", "Color", "Contrast", "Sharpness", "AutoContrast"}  # may round the other way elsewhere


def applied(name: str, images: Tensor, strength: float) -> Tensor:
    options = {"interpolation": REFERENCE.interpolation, "fill": REFERENCE._fill}
    planes = images.permute(0, 3, 1, 2)
    return REFERENCE._apply_image_or_video_transform(planes, name, strength, **options).permute(0, 2, 3, 1)


def strengths(name: str, height: int, width: int) -> list[float]:
    """Return all that torchvision may draw, each as often as it is likely."""
    magnitudes, is_signed = SPACE[name]
    steps = magnitudes(NUM_STRENGTHS, height, width)
    values = [0.0] if steps is None else steps.tolist()
    return [sign * value for value in values for sign in ((1, -1) if is_signed else (1,))]


def test_the_operations_and_strengths_are_torchvisions() -> None:
    assert list(OPERATIONS) == list(SPACE)
    for name, operation in OPERATIONS.items():
        magnitudes, is_signed = SPACE[name]
        assert operation.is_signed == is_signed
        if (steps := magnitudes(NUM_STRENGTHS, 32, 32)) is not None:
            assert operation.strengths.tolist() == steps.tolist()


@pytest.mark.parametrize(("height", "width"), [(33, 33), (32, 32), (20, 34), (2, 1)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_gives_torchvisions_pixels_at_every_strength(name: str, height: int, width: int) -> None:
    noise = torch.randint(256, (3, height, width, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = torch.cat([pictures(3, height, width), noise, torch.full_like(noise[:1], 200)])
    # Turned by 45 degrees, a diagonal of an even square comes from half-way between pixels: any neighbour is nearest.
    ties = 0.01 if name == "Rotate" else 0.0
    for strength in strengths(name, height, width):
        ours = OPERATIONS[name].function(images, torch.full((len(images),), strength, dtype=torch.float64))
        theirs = applied(name, images, strength)
        assert (ours.shape, ours.dtype) == (images.shape, torch.uint8)
        apart = (ours.int() - theirs.int()).abs().amax(dim=3)
        assert (apart > (name in FLOATS)).float().mean() <= ties, strength


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_picture_is_changed_by_its_own_strength(name: str) -> None:
    operation, images = OPERATIONS[name], pictures(NUM_STRENGTHS)
    together = operation.function(images, operation.strengths)
    for row, strength in enumerate(operation.strengths):
        assert torch.equal(together[row : row + 1], operation.function(images[row : row + 1], strength[None]))


def test_operation_and_strength_are_drawn_for_each_picture_as_often_as_torchvision_draws_them() -> None:
    picture = pictures(1, 15, 15)
    weights: Counter[bytes] = Counter()
    for name in SPACE:
        values = strengths(name, 15, 15)
        for strength in values:
            weights[key(applied(name, picture, strength))] += 1 / len(values)
    assert len(weights) > 300
    seen = counted(drawn(Trivial(horizontal_flip=False), copies(picture, 60_000), 0))
    assert chance(seen, weights) > 0.01


def test_pictures_are_shifted_and_mirrored_after_the_operation() -> None:
    images = pictures(200, 15, 15)
    changed = drawn(Trivial(horizontal_flip=False), images, 0)
    then = drawn(Trivial(padding=1), images, 0)
    assert len(counted(changed)) > 150
    padded = torch.nn.functional.pad(changed, (0, 0, 1, 1, 1, 1))
    for picture, frame in zip(then, padded, strict=True):
        windows = [frame[top : top + 15, left : left + 15] for top in range(3) for left in range(3)]
        assert key(picture) in {key(side) for window in windows for side in (window, window.flip(1))}


def test_a_square_is_blanked_after_the_operation() -> None:
    images = pictures(200, 15, 15)
    changed = drawn(Trivial(horizontal_flip=False), images, 0)
    blanked = drawn(Trivial(horizontal_flip=False, cutout=6), images, 0)
    mean = changed.float().mean((0, 1, 2)).round().to(torch.uint8)
    holes = (blanked != changed).any(3)
    assert (blanked[holes] == mean).all()
    assert holes.any(2).sum(1).max() == holes.any(1).sum(1).max() == 6


def test_a_value_out_of_range_names_its_option() -> None:
    with pytest.raises(UserError, match=r"augment\.padding=-1: out of range"):
        Trivial(padding=-1)
