"""The classifier: uint8 pictures in, logits and features out, with its preprocessing inside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, Self

import timm
import torch
from torch import Tensor, nn

import flatfix.models.backbones  # noqa: F401  registers our backbones with timm
from flatfix.errors import UserError, did_you_mean
from flatfix.inference.decision import Decision
from flatfix.models import weights
from flatfix.models.registration import Initialised
from flatfix.models.views import views


@dataclass(frozen=True)
class ClassifierSpec:
    """Describe a classifier in plain values: what a checkpoint stores and what rebuilds it.

    `mean` and `std` are per channel, of pixels scaled to 0..1. `image_size` (pixels) and `resize` say how a picture
    becomes the square that the classifier was trained on. `decision` says how its probabilities become an answer, and
    `tta` (a key of `NUM_VIEWS`) which views of a picture an answer averages.
    """

    name: str
    classes: tuple[str, ...]
    image_size: int
    resize: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    options: dict[str, Any] = field(default_factory=dict)
    decision: Decision = field(default_factory=Decision)
    tta: str = "none"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, fit for a checkpoint that loads with `weights_only=True`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        return plain | {"options": dict(self.options), "decision": self.decision.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild a spec from `to_dict`."""
        arguments: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**{**arguments, "decision": Decision.from_dict(arguments["decision"])})


class Output(NamedTuple):
    """Hold logits `[N, classes]` and features `[N, D]`, in float32, or in the type of the autocast they ran under."""

    logits: Tensor
    features: Tensor


class Classifier(nn.Module):
    """Normalise uint8 pictures, run the backbone, and classify its pooled features with one linear layer.

    In evaluation mode the features are the mean over the views of `spec.tta`: since the head is linear, the logits are
    the mean of those of the views.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: ClassifierSpec, backbone: nn.Module) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = backbone
        self.num_features = num_features(backbone)
        self.head = nn.Linear(self.num_features, len(spec.classes))
        self.is_frozen = False
        self.register_buffer("mean", 255 * torch.tensor(spec.mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(spec.std).view(1, 3, 1, 1))
        self.to(memory_format=torch.channels_last)
        self._memory_format = torch.channels_last

    def forward(self, images: Tensor) -> Output:
        """Classify `[N, H, W, 3] uint8` pictures."""
        features = self.features(images)
        return Output(self.head(features), features)

    def features(self, images: Tensor) -> Tensor:
        """Map `[N, H, W, 3] uint8` to pooled features `[N, D]`."""
        if self.training or self.spec.tta == "none":
            return self._features(images)
        # In one pass: exported, a pass each would be as many copies of the backbone's graph.
        seen = views(images, self.spec.tta)
        of_views: Tensor = self._features(torch.cat(seen)).unflatten(0, (len(seen), -1))
        return of_views.mean(dim=0)

    def _features(self, images: Tensor) -> Tensor:
        features: Tensor = self.backbone(self._normalise(images))
        return features

    def _normalise(self, images: Tensor) -> Tensor:
        # A permuted NHWC tensor is channels_last as it stands: no copy is made.
        pixels = (images.permute(0, 3, 1, 2).to(self.mean.dtype) - self.mean) / self.std
        return pixels.contiguous(memory_format=self._memory_format)

    def initialise(self, images: Tensor) -> None:
        """Let a backbone that is `Initialised` look at `[N, H, W, 3] uint8` training pictures."""
        assert isinstance(self.backbone, Initialised)
        self.backbone.initialise(self._normalise(images))

    def part_channels(self) -> None:
        """Keep the pixels of a channel together in memory, in place of the channels of a pixel."""
        self._memory_format = torch.contiguous_format
        self.to(memory_format=self._memory_format)

    def freeze_backbone(self) -> None:
        """Stop training of the backbone, its batch statistics included."""
        self.is_frozen = True
        self.backbone.requires_grad_(False)
        self.backbone.eval()

    def train(self, mode: bool = True) -> Self:
        """Set the training mode; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.is_frozen:
            self.backbone.eval()
        return self


def num_features(backbone: nn.Module) -> int:
    """Return the width of what a headless timm model returns; some widen it by a last hidden layer."""
    return int(getattr(backbone, "head_hidden_size", None) or backbone.num_features)  # type: ignore[arg-type]


def create_backbone(name: str, options: Mapping[str, Any], pretrained: bool = False) -> nn.Module:
    """Build a timm model without its head: `[N, 3, H, W]` to `[N, num_features]`.

    Raises:
        UserError: for a name that timm does not know or options that the model does not take.
    """
    architecture, _, tag = name.partition(".")
    tagged = timm.list_pretrained(f"{architecture}.*")
    if not timm.is_model(architecture) or (tag and name not in tagged):
        raise UserError(f"model.name={name}: unknown model.{did_you_mean(name, [*timm.list_models(), *tagged])}")
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except Exception as error:  # each model refuses its options in its own way: a KeyError, an assertion, …
        if pretrained and isinstance(error, RuntimeError | OSError):
            raise UserError(
                f"model.pretrained=true: the weights of {name} could not be had from the hub ({error}). "
                "Give a file with model.weights, or train from scratch with model.pretrained=false."
            ) from error
        if options:
            reason = str(error) or type(error).__name__
            raise UserError(f"model.options: {name} does not take them: {reason}") from error
        raise


def check_start(name: str, pretrained: bool, weights_file: Path | None, normalise: str) -> None:
    """Check, without loading anything, what a classifier is to start from.

    Raises:
        UserError: naming the option that does not fit.
    """
    if pretrained and weights_file:
        raise UserError("model.pretrained=true and model.weights are both given: choose one")
    if pretrained and not timm.is_model_pretrained(name):
        raise UserError(f"model.pretrained=true: timm has no weights of {name}. Give a file with model.weights.")
    if weights_file and not weights_file.is_file():
        raise UserError(f"model.weights={weights_file}: no such file")
    if normalise == "weights" and not pretrained and not weights_file:
        raise UserError("model.normalise=weights: no weights are loaded. Use auto or data, or give model.weights.")


def build(
    *,
    name: str,
    options: Mapping[str, Any],
    pretrained: bool,
    weights_file: Path | None,
    normalise: str,
    classes: tuple[str, ...],
    image_size: int,
    resize: str,
    data_mean: tuple[float, ...],
    data_std: tuple[float, ...],
    tta: str = "none",
) -> tuple[Classifier, str]:
    """Build a classifier, load its starting weights, and choose the pixel statistics.

    Args:
        name: one of our backbones or any timm model.
        options: keyword arguments of the backbone.
        pretrained: load timm's weights from its hub.
        weights_file: file of weights to start from, or None.
        normalise: `weights` (statistics that the weights were trained with), `data` (the dataset's), or `auto` (the
            former where weights are loaded, else the latter).
        classes: class names in label order.
        image_size: pixels a side.
        resize: `squash`, `crop` or `pad`.
        data_mean: mean of the training pictures a channel, 0..1.
        data_std: standard deviation of the training pictures a channel, 0..1.
        tta: `none`, `flip` or `dihedral`: the views of a picture that an answer averages.

    Returns:
        The classifier, and a line that says what it starts from.

    Raises:
        UserError: naming the option that does not fit.
    """
    check_start(name, pretrained, weights_file, normalise)
    backbone = create_backbone(name, options, pretrained)
    loaded = weights.load(backbone, weights_file) if weights_file else None
    has_weights = pretrained or loaded is not None
    mean, std = data_mean, data_std
    if has_weights and normalise != "data":
        published = getattr(backbone, "pretrained_cfg", None) or {}
        mean = (loaded and loaded.mean) or published.get("mean", data_mean)
        std = (loaded and loaded.std) or published.get("std", data_std)
    spec = ClassifierSpec(name, classes, image_size, resize, tuple(mean), tuple(std), dict(options), tta=tta)
    origin = "timm's weights" if pretrained else "random weights"
    if loaded:
        origin = f"{weights_file} ({loaded.num_tensors} tensors, matched by {loaded.matched_by})"
    return Classifier(spec, backbone), f"{name} from {origin}"


def load_head(classifier: Classifier, path: Path) -> bool:
    """Copy the head from a checkpoint, where it is one of ours and of the same classes, and return whether it is."""
    content = weights.read(path, "resume.from")
    spec = weights.stored_spec(content)
    if spec is None or tuple(spec["classes"]) != classifier.spec.classes:
        return False
    prefix = f"{weights.CLASSIFIER}head."
    classifier.head.load_state_dict(
        {name: content["state_dict"][f"{prefix}{name}"] for name in classifier.head.state_dict()}
    )
    return True


def load_checkpoint(path: Path) -> Classifier:
    """Rebuild the classifier that a training checkpoint holds, in evaluation mode.

    Raises:
        UserError: when the file is not a Flatfix checkpoint.
    """
    content = weights.read(path, "checkpoint")
    values = weights.stored_spec(content)
    if values is None:
        raise UserError(f"checkpoint={path}: not a checkpoint of Flatfix")
    prefix = weights.CLASSIFIER
    state = {
        name.removeprefix(prefix): value for name, value in content["state_dict"].items() if name.startswith(prefix)
    }
    try:
        spec = ClassifierSpec.from_dict(values)
        classifier = Classifier(spec, create_backbone(spec.name, spec.options))
        classifier.load_state_dict(state)
    except (KeyError, TypeError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"checkpoint={path}: another Flatfix wrote it, or it was altered ({reason})") from error
    return classifier.eval()
