from __future__ import annotations

import pytest
import torch
from torch import Generator
from torchvision.transforms.v2 import functional as reference

from flatfix.errors import UserError
from flatfix.training.augment import Inspection
from flatfix.training.augment.inspection import rotate, vary_light
from tests.helpers.draws import copies, drawn, pictures


def test_flips_happen_to_half_of_the_pictures_each_way_independently() -> None:
    still = {"rotation_degrees": 0.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
    image = pictures(1)
    varied = drawn(Inspection(**still), copies(image, 4000), 5)
    kinds = [image, image.flip(1), image.flip(2), image.flip(1, 2)]
    shares = [(varied == kind).flatten(1).all(1).float().mean().item() for kind in kinds]
    assert sum(shares) == pytest.approx(1)
    assert shares == pytest.approx([0.25] * 4, abs=0.03)


def test_rotation_is_torchvisions_away_from_the_border_also_of_oblong_pictures() -> None:
    blotches = torch.rand(1, 3, 5, 7, generator=Generator().manual_seed(2)) * 255
    pixels = torch.nn.functional.interpolate(blotches, size=(80, 112), mode="bicubic").clamp(0, 255)
    ours = rotate(pixels, torch.deg2rad(torch.tensor([30.0])))
    theirs = reference.rotate(pixels, 30.0, interpolation=reference.InterpolationMode.BILINEAR)
    torch.testing.assert_close(ours[..., 25:55, 41:71], theirs[..., 25:55, 41:71], atol=0.5, rtol=0)


def test_light_is_torchvisions_colour_jitter() -> None:
    pixels = pictures(1).permute(0, 3, 1, 2).float()
    factors = (1.2, 0.8, 1.15)
    ours = vary_light(pixels, *(torch.tensor(factor).view(1, 1, 1, 1) for factor in factors))
    theirs = pixels / 255
    for name, factor in zip(("brightness", "contrast", "saturation"), factors, strict=True):
        theirs = getattr(reference, f"adjust_{name}")(theirs, factor)
    torch.testing.assert_close(ours, theirs * 255, atol=0.01, rtol=0)


def test_the_drawn_angles_and_factors_fill_their_ranges() -> None:
    grey = torch.full((3000, 8, 8, 3), 100, dtype=torch.uint8)
    varied = drawn(Inspection(brightness=0.2, contrast=0.0, saturation=0.0), grey, 7).float().mean(dim=(1, 2, 3)) / 100
    assert varied.min() == pytest.approx(0.8, abs=0.01)
    assert varied.max() == pytest.approx(1.2, abs=0.01)
    assert varied.mean() == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("wrong", [{"rotation_degrees": 181.0}, {"brightness": -0.1}, {"contrast": 1.5}])
def test_a_value_out_of_range_names_its_option(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=rf"augment\.{next(iter(wrong))}=.*out of range"):
        Inspection(**wrong)
