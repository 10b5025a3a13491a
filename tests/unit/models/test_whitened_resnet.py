from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flatfix.models.backbones.whitened_resnet import Shift, Stage, WhitenedResNet, Whitening
from tests.helpers.draws import pictures
from tests.helpers.models import make_classifier

CHANNELS = 12


def normalised(count: int = 16) -> Tensor:
    return (pictures(count, 32, 32).permute(0, 3, 1, 2).float() - 120) / 60


def described(layer: Whitening, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return layer(pixels).double().transpose(0, 1).flatten(1)


def test_the_first_layer_makes_uncorrelated_channels_of_one_strength_and_their_negatives() -> None:
    layer, pixels = Whitening(), normalised()
    pixels += 0.1 * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    layer.initialise(pixels)
    values = described(layer, pixels)
    assert torch.equal(values[CHANNELS:], -values[:CHANNELS])
    products = values[:CHANNELS] @ values[:CHANNELS].T / values.shape[1]
    torch.testing.assert_close(products, torch.eye(CHANNELS).double(), rtol=0, atol=0.1)
    assert products.diagonal().min() < 0.99  # a weak direction is not amplified to the full


def test_directions_without_variance_stay_finite() -> None:
    layer = Whitening()
    layer.initialise(torch.ones(2, 3, 8, 8))
    assert layer.components.isfinite().all()
    assert layer.components.abs().max() <= 1 / math.sqrt(5e-4)


def test_the_first_layer_does_not_depend_on_how_many_pictures_are_laid_out_at_a_time() -> None:
    pixels = normalised(100)
    layer, expected = Whitening(), F.unfold(pixels, 2).transpose(0, 1).flatten(1).double()
    layer.initialise(pixels)
    variances = torch.linalg.eigvalsh(expected @ expected.T / expected.shape[1])
    lengths = layer.components.double().flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, (variances + 5e-4).rsqrt(), rtol=1e-3, atol=1e-3)


def test_the_first_layer_comes_from_the_pictures_and_not_from_the_seed() -> None:
    def components(seed: int) -> Tensor:
        torch.manual_seed(seed)
        classifier = make_classifier("whitened_resnet")
        classifier.initialise(pictures(32, 32, 32))
        return classifier.backbone.whitening.components

    assert torch.equal(components(0), components(1))


@pytest.mark.parametrize("is_training", [True, False])
def test_a_shift_is_batch_norm_without_a_scale_that_learns_64_times_as_fast(is_training: bool) -> None:
    inputs = torch.randn(8, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    fast, plain = Shift(5).train(is_training), nn.BatchNorm2d(5, momentum=0.4).train(is_training)
    for norm in (fast, plain):
        optimizer = torch.optim.SGD(norm.parameters(), lr=0.01)
        norm(inputs).square().mean().backward()
        optimizer.step()
        norm.train(is_training)
    torch.testing.assert_close(8 * fast.shift.detach(), 64 * plain.bias.detach())
    with torch.no_grad():
        plain.weight.fill_(1)
        plain.bias.copy_(8 * fast.shift)
        torch.testing.assert_close(fast(inputs), plain(inputs))
    torch.testing.assert_close(fast.running_var, plain.running_var)


@pytest.mark.gpu
def test_a_shift_learns_on_a_gpu() -> None:
    norm = Shift(5).cuda()
    norm(torch.randn(8, 5, 4, 4).cuda()).square().sum().backward()
    assert norm.shift.grad is not None and norm.shift.grad.isfinite().all()


def test_the_convolutions_of_a_stage_begin_as_the_identity() -> None:
    stage, inputs = Stage(4, 6), torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(stage.conv1(inputs)[:, :4], inputs)
    halved = torch.randn(2, 6, 4, 4)
    torch.testing.assert_close(stage.conv2(halved), halved)


def test_the_network_is_whitening_then_stages_of_two_convolutions_then_the_strongest_response() -> None:
    torch.manual_seed(0)
    network = WhitenedResNet(widths=(8, 16)).eval()
    for name, value in network.named_parameters():
        if name.endswith("shift"):
            nn.init.uniform_(value, -0.1, 0.1)
    pixels = torch.randn(2, 3, 16, 16)
    components = network.whitening.components
    values = F.silu(F.conv2d(pixels, torch.cat([components, -components])))
    for stage in network.stages:
        values = F.max_pool2d(F.conv2d(values, stage.conv1.weight, padding=1), 2)
        values = F.silu(values / math.sqrt(1 + 1e-5) + 8 * stage.norm1.shift.view(-1, 1, 1))
        added = F.conv2d(values, stage.conv2.weight, padding=1)
        values = values + F.silu(added / math.sqrt(1 + 1e-5) + 8 * stage.norm2.shift.view(-1, 1, 1))
    torch.testing.assert_close(network(pixels), values.flatten(2).max(dim=2).values / 9, rtol=1e-4, atol=1e-5)
