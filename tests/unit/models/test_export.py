from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from flatfix.inference.decision import Decision, softmax
from flatfix.inference.package import MODEL, WEIGHTS, Package
from flatfix.inference.predictor import Predictor
from flatfix.inference.runtime import ONNXRUNTIME, OPENVINO_BF16, available, open_runtime
from flatfix.models import export as exporting
from flatfix.models.classifier import Classifier, ClassifierSpec, build, load_checkpoint
from flatfix.models.export import MIN_PICTURES, OPSET, ExportError, export
from tests.helpers.models import MODELS, make_classifier, save_checkpoint
from tests.helpers.packages import FACTS, pictures

CHEAP = ("cnn", "tiny_vgg")


class Colours(nn.Module):
    """The mean of each channel, once a function has seen it."""

    num_features = 3

    def __init__(self, change: Callable[[Tensor], Tensor] = lambda values: values) -> None:
        super().__init__()
        self.change = change
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.change(pixels.mean(dim=(2, 3)) * self.scale)


def by_colour(change: Callable[[Tensor], Tensor] = lambda values: values) -> Classifier:
    """Tell red, green and blue pictures from each other."""
    spec = ClassifierSpec("colours", ("red", "green", "blue"), 8, "squash", (0.5,) * 3, (0.25,) * 3)
    classifier = Classifier(spec, Colours(change))
    with torch.no_grad():
        classifier.head.weight.copy_(4 * torch.eye(3))
    return classifier


def lively(name: str, size: int, **changes: Any) -> Classifier:
    """Build a model, and give it statistics and a certainty as if it were trained."""
    torch.manual_seed(0)
    classifier = make_classifier(name, image_size=size, **changes).train()
    norms = [module for module in classifier.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    images = torch.from_numpy(pictures(16, size, seed=3))
    with torch.no_grad():
        classifier(images)
        for norm in norms:
            norm.running_var.clamp_(min=norm.running_var.mean())  # no channel is blown up that hardly varies
        features = classifier.eval()(images).features
        spread = (features - features.mean(dim=0)).norm(dim=1).mean()
        nn.init.normal_(classifier.head.weight, std=4 / spread.item())
        classifier.head.bias.copy_(-classifier.head.weight @ features.mean(dim=0))
    return classifier


def exported(classifier: Classifier, folder: Path, num_pictures: int = 16, **changes: Any) -> Package:
    size = classifier.spec.image_size
    settings: dict[str, Any] = {
        "pictures": pictures(num_pictures, size, seed=1),
        "reference": pictures(4, size, seed=2),
        "profile": {},
        "facts": FACTS,
        "config": "seed: 0\n",
    }
    return export(classifier, folder, **{**settings, **changes})


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in CHEAP else pytest.mark.slow) for name in MODELS]
)
def test_checkpoint_and_package_of_every_model_answer_alike(name: str, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(save_checkpoint(lively(name, 32), tmp_path / "best.ckpt"))
    package = exported(checkpoint, tmp_path / "package")
    images = pictures(12, 32, seed=4)
    with torch.inference_mode():
        expected = checkpoint(torch.from_numpy(images))
    logits = expected.logits.numpy()
    assert np.ptp(logits, axis=0).min() > 1
    assert len(set(logits.argmax(axis=1))) > 1
    assert {permit.runtime for permit in package.card.permits} == {pair.runtime for pair in available()}
    for permit in package.card.permits:
        found = Predictor(package, permit.runtime, permit.precision).predict(images)
        assert np.abs(found.logits - logits).max() <= package.card.parity.tolerance
        assert (found.logits.argmax(axis=1) == logits.argmax(axis=1)).all()
        np.testing.assert_allclose(found.features, expected.features.numpy(), rtol=0, atol=1e-4)


def test_what_is_exported_averages_the_views_that_were_evaluated(tmp_path: Path) -> None:
    classifier = lively("tiny_vgg", 32, tta="dihedral")
    package = exported(classifier, tmp_path / "package")
    images = pictures(12, 32, seed=4)
    with torch.inference_mode():
        expected = classifier(torch.from_numpy(images))
    for permit in package.card.permits:
        found = Predictor(package, permit.runtime, permit.precision).predict(images)
        assert np.abs(found.logits - expected.logits.numpy()).max() <= package.card.parity.tolerance
        np.testing.assert_allclose(found.features, expected.features.numpy(), rtol=0, atol=1e-4)
    turned = Predictor(package, *ONNXRUNTIME).predict(np.rot90(images, axes=(1, 2)).copy())
    np.testing.assert_allclose(turned.logits, expected.logits.numpy(), rtol=0, atol=1e-3)
    assert load_checkpoint(package.path(WEIGHTS)).spec.tta == "dihedral"


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Classifier, Package]:
    folder, classifier = tmp_path_factory.mktemp("cnn"), lively("cnn", 32)
    np.save(folder / "pictures.npy", pictures(16, seed=1))
    on_disk = np.load(folder / "pictures.npy", mmap_mode="r")
    return classifier, exported(classifier, folder / "package", pictures=on_disk)


def test_the_model_is_one_plain_file_with_pictures_in_and_logits_and_features_out(
    cnn: tuple[Classifier, Package],
) -> None:
    _, package = cnn
    assert sorted(path.name for path in package.folder.iterdir()) == sorted(["card.json", *package.card.files])
    model = onnx.load(package.path(MODEL), load_external_data=False)
    shapes = {
        value.name: [each.dim_param or each.dim_value for each in value.type.tensor_type.shape.dim]
        for value in [*model.graph.input, *model.graph.output]
    }
    assert shapes == {"images": ["N", 32, 32, 3], "logits": ["N", 3], "features": ["N", 256]}
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [opset.version for opset in model.opset_import] == [package.card.opset] == [OPSET]
    assert not {"Gather", "Range"} & {node.op_type for node in model.graph.node}  # a pooling in another layout
    assert b"classifier.py" not in package.path(MODEL).read_bytes()


def test_the_card_says_what_it_is_of(cnn: tuple[Classifier, Package]) -> None:
    classifier, package = cnn
    card = package.card
    assert (card.model_name, card.classes, card.image_size) == ("cnn", ("ok", "defective", "unknown"), 32)
    assert (card.decision, card.num_features) == (classifier.spec.decision, 256)
    assert {name: getattr(card, name) for name in vars(FACTS)} == vars(FACTS)
    assert card.parity.num_pictures == 16
    assert card.parity.max_difference < card.parity.tolerance
    assert card.versions["torch"] == torch.__version__.partition("+")[0]
    assert package.path("config.yaml").read_text() == "seed: 0\n"


def test_a_classifier_is_rebuilt_from_the_weights(cnn: tuple[Classifier, Package]) -> None:
    classifier, package = cnn
    again = load_checkpoint(package.path(WEIGHTS))
    images = torch.from_numpy(pictures(4))
    assert again.spec == classifier.spec
    assert torch.equal(again(images).logits, classifier(images).logits)


def test_training_starts_from_the_weights_with_the_statistics_that_belong_to_them(
    cnn: tuple[Classifier, Package],
) -> None:
    trained, package = cnn
    started, origin = build(
        name="cnn",
        options={},
        pretrained=False,
        weights_file=package.path(WEIGHTS),
        normalise="auto",
        classes=("new", "newer"),
        image_size=32,
        resize="squash",
        data_mean=(0.1,) * 3,
        data_std=(0.1,) * 3,
    )
    assert "matched by name" in origin
    assert (started.spec.mean, started.spec.std) == (trained.spec.mean, trained.spec.std)
    wanted = trained.backbone.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in started.backbone.state_dict().items())


def test_the_weights_can_be_read_by_others(cnn: tuple[Classifier, Package]) -> None:
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in cnn[1].folder.iterdir()}
    assert len(set(modes.values())) == 1, modes


def test_the_classifier_stays_as_it_is_and_nothing_is_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    classifier = by_colour().train().bfloat16()
    before = {name: (value, value.clone()) for name, value in classifier.state_dict(keep_vars=True).items()}
    draws = torch.get_rng_state()
    package = exported(classifier, tmp_path / "package")
    assert classifier.training
    assert not classifier.backbone._forward_pre_hooks
    for name, value in classifier.state_dict(keep_vars=True).items():
        assert value is before[name][0]
        assert torch.equal(value, before[name][1])
    assert torch.equal(torch.get_rng_state(), draws)
    assert package.reference().logits.dtype == np.float32
    assert capfd.readouterr() == ("", "")


@pytest.mark.gpu
def test_a_classifier_on_a_gpu_is_exported(tmp_path: Path) -> None:
    classifier = by_colour().cuda()
    package = exported(classifier, tmp_path / "package")
    assert classifier.head.weight.is_cuda
    assert package.card.permits


def doubled_when_exported(values: Tensor) -> Tensor:
    return 2 * values if torch.compiler.is_exporting() else values


def nan(values: Tensor) -> Tensor:
    return values * math.nan


@pytest.mark.parametrize("change", [doubled_when_exported, nan])
def test_a_model_that_answers_otherwise_once_exported_is_refused_and_leaves_nothing(
    change: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=r"model\.name=colours: .* they differ by up to .* is tolerated"):
        exported(by_colour(change), tmp_path / "package")
    assert list(tmp_path.iterdir()) == []


def by_what_it_sees(values: Tensor) -> Tensor:
    return values if values.sum().item() > 0 else -values


def test_a_model_that_torch_cannot_export_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"model\.name=colours: torch cannot export it to ONNX \(.*data-dependent"):
        exported(by_colour(by_what_it_sees), tmp_path / "package")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "kept").touch()
    with pytest.raises(FileExistsError):
        exported(by_colour(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def pairs(package: Package) -> list[tuple[str, str]]:
    return [(permit.runtime, permit.precision) for permit in package.card.permits]


HAS_BF16 = pytest.mark.skipif(OPENVINO_BF16 not in available(), reason="needs OpenVINO and a processor with bf16")


@pytest.fixture
def converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all exports of a test have the ONNX file of the first: they are of the same weights."""
    write, kept = exporting._write_onnx, tmp_path / "kept.onnx"

    def copied(model: Classifier, path: Path) -> None:
        if not kept.exists():
            write(model, kept)
        shutil.copy(kept, path)

    monkeypatch.setattr(exporting, "_write_onnx", copied)


@HAS_BF16
@pytest.mark.usefixtures("converted_once")
def test_reduced_precision_is_permitted_by_the_same_classes_of_enough_pictures(tmp_path: Path) -> None:
    classifier = lively("tiny_vgg", 32)
    various, three = pictures(MIN_PICTURES), pictures(3)[np.arange(MIN_PICTURES) % 3]
    few = exported(classifier, tmp_path / "few", pictures=three[1:])
    assert (few.card.parity.num_pictures, OPENVINO_BF16 in pairs(few)) == (256, False)
    # Some of a thousand pictures lie so near to a boundary that bf16 puts them on the other side.
    assert OPENVINO_BF16 not in pairs(exported(classifier, tmp_path / "various", pictures=various))
    package = exported(classifier, tmp_path / "package", pictures=three)
    permit = package.card.permits[pairs(package).index(OPENVINO_BF16)]
    assert permit.num_pictures == MIN_PICTURES
    assert permit.max_difference > package.card.parity.max_difference
    Predictor(package, *OPENVINO_BF16).prove()


@HAS_BF16
@pytest.mark.usefixtures("converted_once")
def test_reduced_precision_must_decide_alike_too_however_near_its_logits_are(tmp_path: Path) -> None:
    classifier = lively("tiny_vgg", 32, classes=("ok", "defective"))
    with torch.no_grad():
        for parameter in classifier.head.parameters():
            parameter *= 0.003
    images = pictures(1)[np.zeros(MIN_PICTURES, np.int64)]
    package = exported(classifier, tmp_path / "package", pictures=images)
    permit = package.card.permits[pairs(package).index(OPENVINO_BF16)]
    assert permit.max_difference < package.card.parity.tolerance
    full, reduced = (
        softmax(open_runtime(package.path(MODEL), *pair).run(images[:32])[0])[0, 1]
        for pair in (ONNXRUNTIME, OPENVINO_BF16)
    )
    decision = Decision(positive=1, threshold=(full + reduced) / 2, rule="between the two")
    classifier.spec = replace(classifier.spec, decision=decision)
    assert OPENVINO_BF16 not in pairs(exported(classifier, tmp_path / "split", pictures=images))
