from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Generator, Tensor

from flatfix.errors import UserError
from flatfix.training.augment import Alternating, Augment, Cutmix, Identity, Mixing, Mixup
from tests.helpers.draws import drawn, pictures

MIXERS = [Mixup, Cutmix]


class Black:
    changes_pictures = True

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        return torch.zeros_like(images)


def mixed(mixer: Mixup | Cutmix, images: Tensor, seed: int = 0) -> Mixing:
    return mixer.mix(images, Generator().manual_seed(seed))


def numbered(count: int, height: int, width: int) -> Tensor:
    """Return pictures of which every pixel says its row in the batch."""
    rows = torch.arange(count)
    return (
        torch.stack([rows // 256, rows % 256, 0 * rows], dim=1)
        .to(torch.uint8)
        .view(-1, 1, 1, 3)
        .repeat(1, height, width, 1)
    )


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_picture_has_one_partner_and_is_the_partner_of_one(mixer: type[Mixup | Cutmix]) -> None:
    images = pictures(64)
    result = mixed(mixer(alpha=1.0, first=Identity()), images)
    assert sorted(result.partners.tolist()) == list(range(64))
    assert (result.images.shape, result.images.dtype) == (images.shape, torch.uint8)
    assert (result.shares.shape, result.shares.dtype) == ((64,), torch.float32)
    assert (result.partners != torch.arange(64)).float().mean() > 0.9


@pytest.mark.parametrize("mixer", MIXERS)
def test_called_as_an_augmentation_a_mixer_gives_the_pictures_that_it_mixes(mixer: type[Mixup | Cutmix]) -> None:
    augment, images = mixer(alpha=1.0, first=Identity()), pictures(16)
    assert torch.equal(drawn(augment, images, 4), mixed(augment, images, 4).images)


@pytest.mark.parametrize("mixer", MIXERS)
def test_pictures_are_varied_before_they_are_mixed(mixer: type[Mixup | Cutmix]) -> None:
    assert not mixed(mixer(alpha=1.0, first=Black()), pictures()).images.any()


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_mixup_draws_a_share_for_each_picture_from_the_beta_distribution(alpha: float) -> None:
    shares = mixed(Mixup(alpha=alpha, first=Identity()), torch.zeros(4000, 1, 1, 3, dtype=torch.uint8)).shares
    assert stats.kstest(shares.numpy(), stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_mixup_lays_the_pictures_over_one_another_by_their_shares() -> None:
    images = pictures(32)
    result = mixed(Mixup(alpha=1.0, first=Identity()), images)
    own = result.shares.view(-1, 1, 1, 1).double()
    expected = own * images + (1 - own) * images[result.partners]
    torch.testing.assert_close(result.images.double(), expected, atol=0.501, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (9, 14)])
def test_the_shares_of_cutmix_are_those_of_the_pixels(height: int, width: int) -> None:
    images = numbered(600, height, width)
    result = mixed(Cutmix(alpha=1.0, first=Identity()), images)
    is_own = (result.images == images).all(3)
    is_partners = (result.images == images[result.partners]).all(3)
    assert (is_own | is_partners).all()
    other = result.partners != torch.arange(600)
    torch.testing.assert_close(result.shares[other], is_own.float().mean((1, 2))[other])


def test_cutmix_pastes_one_rectangle_a_picture_as_the_paper_draws_it() -> None:
    size, count = 32, 4000
    result = mixed(Cutmix(alpha=1.0, first=Identity()), numbered(count, size, size))
    holes = ~(result.images == numbered(count, size, size)).all(3)
    rows, columns = holes.any(2).sum(1), holes.any(1).sum(1)
    assert torch.equal(holes.sum((1, 2)), rows * columns)

    rng = np.random.default_rng(0)
    ratios, centres = np.sqrt(1 - rng.beta(1.0, 1.0, count)), rng.integers(0, size, (2, count))
    sides = (size * ratios).astype(int)
    starts = centres - sides // 2
    lengths = np.clip(starts + sides, 0, size) - np.clip(starts, 0, size)
    assert stats.ks_2samp(1 - lengths.prod(0) / size**2, result.shares.numpy()).pvalue > 0.01
    assert stats.ks_2samp(lengths[0], rows.numpy()).pvalue > 0.01
    assert stats.ks_2samp(lengths[1], columns.numpy()).pvalue > 0.01


@pytest.mark.parametrize("mixer", MIXERS)
def test_what_cannot_be_mixed_names_its_option(mixer: type[Mixup | Cutmix]) -> None:
    with pytest.raises(UserError, match=r"augment\.alpha=0: out of range"):
        mixer(alpha=0, first=Identity())
    first: Augment = Mixup(alpha=1.0, first=Identity())
    with pytest.raises(UserError, match=r"augment\.first=Mixup: mixes pictures itself"):
        mixer(alpha=1.0, first=first)
    with pytest.raises(UserError, match=r"augment\.first=Alternating: goes by the epoch"):
        mixer(alpha=1.0, first=Alternating())
