from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flatfix.errors import UserError
from flatfix.models.backbones.wrn import Block
from flatfix.models.classifier import create_backbone, num_features
from flatfix.training.plan import make_plan
from tests.helpers.compose import compose_train
from tests.helpers.models import MODELS, make_classifier


def pictures(number: int = 4, size: int = 32) -> Tensor:
    draws = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (number, size, size, 3), dtype=torch.uint8, generator=draws)


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("size", [32, 48, 64])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_built_and_tried_without_memory(name: str, size: int) -> None:
    with torch.device("meta"):
        backbone = create_backbone(name, {}).eval()
        features = backbone(torch.empty(2, 3, size, size))
    assert features.shape == (2, num_features(backbone))
    assert all(tensor.is_meta for tensor in backbone.state_dict().values())


@pytest.mark.parametrize("name", MODELS)
def test_every_model_judges_a_picture_alike_whatever_else_is_in_the_batch(name: str) -> None:
    classifier = make_classifier(name).eval()
    images = pictures(2, size=48)
    with torch.inference_mode():
        together = classifier(images).logits
        assert torch.equal(together, classifier(images).logits)
        torch.testing.assert_close(together[1:2], classifier(images[1:2]).logits, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(together[0], together[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_of_every_model_trains(name: str) -> None:
    torch.manual_seed(0)
    classifier = make_classifier(name).train()
    before = {name: parameter.detach().clone() for name, parameter in classifier.named_parameters()}
    optimizer = torch.optim.Adam(classifier.parameters(), lr=0.001)
    for _ in range(2):  # the first step leaves a branch as it is whose last scale begins at zero
        loss = F.cross_entropy(classifier(pictures(3)).logits, torch.tensor([0, 1, 2]))
        assert loss.isfinite()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert [name for name, value in classifier.named_parameters() if torch.equal(value, before[name])] == []


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("efficientnet_b0", {"drop_rate": 0.5}),
        ("resnet18", {"drop_rate": 0.5}),
        ("wrn_28_10", {"dropout": 0.5, "depth": 10, "width": 1}),
    ],
)
def test_dropout_acts_in_training_only(name: str, options: dict[str, Any]) -> None:
    dropping = make_classifier(name, options=options)
    with torch.no_grad():
        assert not torch.equal(dropping(pictures()).logits, dropping(pictures()).logits)
        dropping.eval()
        assert torch.equal(dropping(pictures()).logits, dropping(pictures()).logits)


@pytest.mark.parametrize(
    ("depth", "width", "millions"),
    [
        (40, 1, 0.6),
        (40, 2, 2.2),
        (40, 4, 8.9),
        (16, 8, 11.0),
        (16, 10, 17.1),
        (22, 8, 17.2),
        (22, 10, 26.8),
        (28, 12, 52.5),
    ],
)
def test_wide_resnets_have_the_size_that_the_paper_gives(depth: int, width: int, millions: float) -> None:
    with torch.device("meta"):
        network = create_backbone("wrn_28_10", {"depth": depth, "width": width})
    assert num_parameters(network) / 1e6 == pytest.approx(millions, abs=0.06)


def test_wrn_28_10_has_the_published_parameters_and_convolutions() -> None:
    with torch.device("meta"):
        network = create_backbone("wrn_28_10", {})
    assert num_parameters(network) + num_parameters(nn.Linear(640, 10)) == 36_479_194
    assert sum(isinstance(module, nn.Conv2d) for module in network.modules()) == 28


def test_wide_resnets_begin_with_kaimings_variance_of_the_fan_out() -> None:
    torch.manual_seed(0)
    network = create_backbone("wrn_28_10", {"depth": 10, "width": 4})
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.1)


@pytest.mark.parametrize(("before", "after", "stride"), [(8, 8, 1), (8, 16, 1), (8, 16, 2)])
def test_a_wide_block_is_two_preactivated_convolutions_and_a_shortcut(before: int, after: int, stride: int) -> None:
    torch.manual_seed(0)
    block = Block(before, after, stride, dropout=0.5).eval()
    for norm in (block.norm1, block.norm2):
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            nn.init.uniform_(tensor, 0.5, 1.5)
    inputs = torch.randn(2, before, 8, 8)

    def activated(values: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        mean, variance, weight, bias = (
            tensor.view(-1, 1, 1) for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        return ((values - mean) / (variance + 1e-5).sqrt() * weight + bias).clamp(min=0)

    first = F.conv2d(activated(inputs, block.norm1), block.conv1.weight, stride=stride, padding=1)
    expected = F.conv2d(activated(first, block.norm2), block.conv2.weight, padding=1)
    if before == after:
        expected = expected + inputs
    else:
        expected = expected + F.conv2d(activated(inputs, block.norm1), block.shortcut.weight, stride=stride)
    torch.testing.assert_close(block(inputs), expected, rtol=1e-4, atol=1e-4)


def test_tiny_vgg_is_the_network_of_cnn_explainer_at_64_pixels() -> None:
    torch.manual_seed(0)
    backbone = create_backbone("tiny_vgg", {}).eval()
    assert num_parameters(backbone) == 3 * 10 * 9 + 10 + 3 * (10 * 10 * 9 + 10)
    images = values = torch.randn(2, 3, 64, 64)
    weights = list(backbone.parameters())
    for number in range(4):
        values = F.conv2d(values, weights[2 * number], weights[2 * number + 1]).clamp(min=0)
        if number % 2:
            values = F.max_pool2d(values, 2)
    assert values.shape == (2, 10, 13, 13)
    torch.testing.assert_close(backbone(images), values.flatten(1))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=tiny_vgg", "dataset.image_size=15"], r"dataset\.image_size=15: tiny_vgg does not take it"),
        (["model=cnn", "dataset.image_size=8"], r"dataset\.image_size=8: cnn does not take it"),
        (["model=wrn_28_10", "+model.options.depth=27"], r"model\.options: wrn_28_10 .*depth=27: expected 6 n \+ 4"),
        (["model=wrn_28_10", "model.options.dropout=1.5"], r"model\.options: wrn_28_10 .*between 0 and 1"),
        (["model=timm"], r"model\.name: needs a value \(backbone: one of ours or any timm model\)"),
        (["model=timm", "model.name=convnext_tinny"], r"model\.name=convnext_tinny: .*Did you mean 'convnext_tiny'"),
        (["model=timm", "model.name=tinyvgg"], r"model\.name=tinyvgg: .*Did you mean 'tiny_vgg'"),
    ],
)
def test_a_model_that_does_not_work_is_named_before_any_data_is_read(
    words: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        make_plan(compose_train(tmp_path, "dataset=tires", *words))


def test_a_backbone_of_ours_has_no_weights_to_download() -> None:
    with pytest.raises(ValueError, match="tiny_vgg has no pretrained weights"):
        create_backbone("tiny_vgg", {}, pretrained=True)
