from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from flatfix.errors import UserError
from flatfix.models.classifier import ClassifierSpec, create_backbone
from flatfix.models.views import views
from tests.helpers.models import MODELS, make_classifier


# mobilenetv3 widens its features by a hidden layer after the pooling.
@pytest.mark.parametrize("name", [*MODELS, "mobilenetv3_small_050"])
def test_every_model_maps_uint8_pictures_to_logits_and_features(name: str) -> None:
    classifier = make_classifier(name).eval()
    output = classifier(torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8))
    assert output.logits.shape == (2, 3)
    assert output.features.shape == (2, classifier.num_features)
    torch.testing.assert_close(classifier.head(output.features), output.logits)


def test_normalisation_is_inside_and_per_channel() -> None:
    classifier = make_classifier()
    seen = []
    classifier.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    pixels = torch.tensor([102, 128, 204], dtype=torch.uint8).expand(1, 32, 32, 3).contiguous()
    classifier(pixels)
    expected = (torch.tensor([102.0, 128.0, 204.0]) / 255 - torch.tensor([0.4, 0.5, 0.6])) / 0.2
    torch.testing.assert_close(seen[0][0, :, 5, 5], expected)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_statistics_come_from_the_data_unless_weights_are_loaded(tmp_path: Path) -> None:
    timm_cfg = create_backbone("resnet18", {}).pretrained_cfg
    file = tmp_path / "weights.pth"
    torch.save(create_backbone("resnet18", {}).state_dict(), file)
    assert make_classifier("resnet18").spec.mean == (0.4, 0.5, 0.6)
    assert make_classifier("resnet18", weights_file=file).spec.mean == tuple(timm_cfg["mean"])
    assert make_classifier("resnet18", weights_file=file, normalise="data").spec.mean == (0.4, 0.5, 0.6)
    with pytest.raises(UserError, match=r"model\.normalise=weights: no weights"):
        make_classifier("resnet18", normalise="weights")


@pytest.mark.parametrize("name", MODELS)
def test_a_frozen_backbone_neither_learns_nor_counts_statistics(name: str) -> None:
    classifier = make_classifier(name)
    classifier.freeze_backbone()
    classifier.train()
    before = {name: value.clone() for name, value in classifier.backbone.state_dict().items()}
    classifier(torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)).logits.sum().backward()
    assert all(parameter.grad is None for parameter in classifier.backbone.parameters())
    assert all(torch.equal(before[name], value) for name, value in classifier.backbone.state_dict().items())
    assert classifier.head.weight.grad is not None


@pytest.mark.parametrize("tta", ["flip", "dihedral"])
def test_an_answer_is_the_mean_over_the_views(tta: str) -> None:
    torch.manual_seed(0)
    classifier, plain = make_classifier(tta=tta).eval(), make_classifier().eval()
    plain.load_state_dict(classifier.state_dict())
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    with torch.inference_mode():
        output, seen = classifier(images), [plain(view) for view in views(images, tta)]
    torch.testing.assert_close(output.logits, torch.stack([each.logits for each in seen]).mean(dim=0))
    torch.testing.assert_close(output.features, torch.stack([each.features for each in seen]).mean(dim=0))


def test_training_sees_a_picture_alone() -> None:
    classifier, plain = make_classifier("tiny_vgg", tta="dihedral"), make_classifier("tiny_vgg")
    plain.load_state_dict(classifier.state_dict())
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    assert torch.equal(classifier.train()(images).logits, plain.train()(images).logits)


def test_a_spec_of_before_test_time_augmentation_averages_nothing() -> None:
    plain = make_classifier().spec.to_dict()
    del plain["tta"]
    assert ClassifierSpec.from_dict(plain) == make_classifier().spec


def test_a_spec_survives_plain_values() -> None:
    spec = make_classifier().spec
    plain = spec.to_dict()
    assert {type(value) for value in plain.values()} <= {str, int, list, dict}
    assert ClassifierSpec.from_dict(plain) == spec


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "resnet81"}, r"model\.name=resnet81: unknown model\. Did you mean 'resnet"),
        ({"name": "resnet18.a1_in2k"}, r"model\.name=resnet18\.a1_in2k: .*Did you mean 'resnet18\.a1_in1k'"),
        ({"options": {"depthh": 3}}, r"model\.options: cnn does not take them.*depthh"),
        ({"name": "resnet18", "options": {"global_pool": "mean"}}, r"model\.options: resnet18 .*Invalid pool type"),
        ({"name": "resnet18", "options": {"output_stride": 5}}, r"model\.options: resnet18 .*AssertionError"),
        ({"pretrained": True, "weights_file": Path("x")}, "choose one"),
        ({"pretrained": True}, r"model\.pretrained=true: timm has no weights of cnn"),
        ({"weights_file": Path("/nowhere.pth")}, r"model\.weights=/nowhere\.pth: no such file"),
    ],
)
def test_a_model_that_cannot_be_built_names_the_option(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_classifier(**changes)
