"""Pass every picture through a frozen backbone once, and keep the features on the disk."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray

from flatfix.console import progress
from flatfix.data.cache import CACHE_VERSION, Examples, load_array
from flatfix.data.datamodule import BatchLoader, generator
from flatfix.files import replacing
from flatfix.models.classifier import Classifier
from flatfix.models.views import NUM_VIEWS
from flatfix.training import precision as precisions
from flatfix.training.augment import Augment, Identity

# Part of the key: raise it when augmentation or this module comes to give other features.
FEATURES_VERSION = 2
CHUNK = 64  # pictures a pass; not dataset.batch_size, on which no feature may depend


def cached_features(
    classifier: Classifier,
    examples: Examples,
    *,
    digest: str,
    cache_dir: Path,
    device: torch.device,
    precision: str,
    augment: Augment | None = None,
    num_views: int = 0,
    recipe: Any = None,
    seed: int = 0,
) -> Examples:
    """Return `examples` with features in place of pictures, computed now or by an earlier run.

    Those of the split `train` are of the pictures alone, as training sees them; only an answer averages the views of
    `classifier.spec.tta`.

    Args:
        classifier: its backbone is frozen.
        examples: pictures `[N, H, W, 3] uint8`.
        digest: digest of the dataset version.
        cache_dir: where features are kept, keyed by everything that they depend on.
        device: where the backbone runs.
        precision: Lightning's name of the precision; `bf16-mixed` and `16-mixed` run under autocast.
        augment: varies the pictures of each view.
        num_views: 0 gives features `[N, D]` of the pictures as they are, V > 0 gives `[N, V, D]` of varied ones.
        recipe: plain values that describe `augment`, for the key.
        seed: seed of the variation.
    """
    seen = "none" if examples.split == "train" else classifier.spec.tta
    key = {
        "versions": [FEATURES_VERSION, CACHE_VERSION, timm.__version__, torch.__version__],
        "device": device.type,
        "dataset": digest,
        "rows": hashlib.sha256("\n".join(examples.ids).encode()).hexdigest(),
        "classifier": classifier.spec.to_dict() | {"classes": None, "tta": seen},
        "weights": _digest(classifier.backbone),
        "precision": precision,
        "views": [num_views, recipe, seed] if num_views else [],
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:32]
    path = cache_dir / "features" / f"{examples.split}-{name}.npy"
    if (inputs := load_array(path)) is None:
        views = [augment or Identity()] * num_views or [Identity()]
        features = _compute(classifier, examples, views, device, precision, seed)
        inputs = features if num_views else features[:, 0]
        _save(path, inputs)
    return replace(examples, inputs=inputs)


def _compute(
    classifier: Classifier,
    examples: Examples,
    views: list[Any],
    device: torch.device,
    precision: str,
    seed: int,
) -> NDArray[np.float32]:
    """Return features `[N, V, D]`."""
    is_training = examples.split == "train"  # a frozen backbone evaluates in either mode
    loader = BatchLoader(examples, CHUNK if is_training else CHUNK // NUM_VIEWS[classifier.spec.tta], is_training=False)
    features = np.empty((len(examples), len(views), classifier.num_features), dtype=np.float32)
    half = precisions.half(precision)
    classifier.train(is_training).to(device)
    with (
        torch.inference_mode(),
        torch.autocast(device.type, dtype=half, enabled=half is not None),
        progress(f"features of {examples.split}", len(examples) * len(views)) as advance,
    ):
        for view, augment in enumerate(views):
            for batch in loader:
                draws = generator(seed, view, int(batch.indices[0]))
                output = classifier.features(augment(batch.inputs.to(device), draws))
                features[batch.indices, view] = output.float().cpu().numpy()
                advance(len(batch.indices))
    return features


def _digest(backbone: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for tensor in backbone.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _save(path: Path, features: NDArray[np.float32]) -> None:
    with replacing(path) as partial, partial.open("wb") as file:
        np.save(file, features)
