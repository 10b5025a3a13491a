"""Registered versions of real classifiers, in the seconds that an export takes: only the head is fitted.

The pictures are plain shades whose brightness tells the class, though not always. A classifier is a `cnn` with random
convolutions and a head that was fitted to their features; `noise` makes it worse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from flatfix.data.cache import Examples, decoded
from flatfix.data.publish import publish
from flatfix.data.sources.base import Record
from flatfix.data.splits import SPLITS, SplitRule
from flatfix.data.store import LocalStore
from flatfix.data.version import DatasetVersion, open_version
from flatfix.evaluation.answers import Answers
from flatfix.evaluation.metrics import compute
from flatfix.evaluation.predictions import Predictions
from flatfix.evaluation.profile import profile
from flatfix.evaluation.threshold import decide
from flatfix.models.classifier import Classifier
from flatfix.models.export import Facts, export
from flatfix.registry.packages import as_mlflow_model
from flatfix.registry.register import PACKAGE, register
from flatfix.registry.versions import Version
from flatfix.tracking.connection import connect, preflight
from tests.helpers.images import encode
from tests.helpers.models import make_classifier

CLASSES = ("ok", "defective")
SIZE = 32  # pixels a side
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Shades:
    """Offer pictures of one shade and some grain, brighter with each class; one in 20 passes for its neighbour.

    A picture depends on `seed`, its number and its class alone.
    """

    num_readers = None

    def __init__(self, num_pictures: int, classes: Sequence[str] = CLASSES, seed: int = 0) -> None:
        self.classes = tuple(classes)
        self.num_pictures = num_pictures
        self.seed = seed

    def records(self) -> list[Record]:
        """Return records with the classes in turn."""
        return [
            Record(f"shade-{self.seed}-{number:04d}", self.classes[number % len(self.classes)], str(number), "png")
            for number in range(self.num_pictures)
        ]

    def read(self, record: Record) -> bytes:
        """Draw a picture."""
        rng = np.random.default_rng((self.seed, int(record.location)))
        shade = 80 + 40 * self.classes.index(record.label) + rng.normal(0, 12)
        return encode(np.clip(rng.normal(shade, 20, (SIZE, SIZE, 3)), 0, 255).astype(np.uint8))

    def describe(self) -> dict[str, str | int | float | bool | None]:
        """Return what determines the pictures."""
        return {"kind": "shades", "num_pictures": self.num_pictures, "seed": self.seed}


def publish_shades(
    store: Path,
    version: str = "v1",
    *,
    num_pictures: int = 600,
    classes: Sequence[str] = CLASSES,
    seed: int = 0,
    test_fraction: float = 0.4,
    split_seed: int = 0,
) -> DatasetVersion:
    """Publish shades; another `split_seed` divides the same pictures in another way."""
    local = LocalStore(store)
    rule = SplitRule(val_fraction=0.2, test_fraction=test_fraction, seed=split_seed)
    publish(Shades(num_pictures, classes, seed), local, name="shades", version=version, rule=rule)
    return open_version(local, "shades", version)


def registered(uri: str, run_id: str, name: str | None = None) -> Version:
    """Register a run."""
    version = register(uri, run_id, name).version
    assert version is not None
    return version


def finished_run(uri: str, dataset: DatasetVersion, noise: float = 0.0, seed: int = 0) -> str:
    """Make a finished run that qualified, whose package holds a real classifier, and return its id.

    Args:
        uri: of MLflow.
        dataset: what the classifier is fitted to, and judged on.
        noise: how loud chance is in what the classifier says, beside what it knows. Of shades of two classes it gets
            about 94 % right with 0, 82 % with 1, and 72 % with 2.
        seed: another seed has other convolutions and other noise.
    """
    client, manifest = connect(uri), dataset.manifest
    run_id: str = client.create_run(preflight(uri, "flatfix")).info.run_id
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        train, val, test = (
            decoded(dataset, split, image_size=SIZE, resize="squash", cache_dir=folder) for split in SPLITS
        )
        classifier = _fitted(train, manifest.classes, noise, seed)
        positive = 1 if len(manifest.classes) == 2 else None
        said = _say(classifier, val)
        no_rule = dict.fromkeys(("threshold", "recall_at_least", "miss_cost", "review_fraction"))
        decision = decide(said.labels, said.probabilities, positive, calibrate=True, **no_rule)
        classifier.spec = replace(classifier.spec, decision=decision)
        answers = [Answers.of(each, decision) for each in (said, _say(classifier, test))]
        best, judged = (compute(each.labels, each.calibrated, positive, each.predictions) for each in answers)
        facts = Facts(
            dataset={"name": manifest.name, "version": manifest.version, "digest": manifest.digest},
            validation=best,
            test=judged,
            qualification=f"accuracy {best['accuracy']:.6g} reaches min_accuracy 0.5",
            run_id=run_id,
            git_commit=COMMIT,
        )
        package = export(
            classifier,
            folder / "package",
            pictures=np.concatenate([val.inputs, test.inputs]),
            reference=val.inputs[:32],
            profile=profile(val.inputs, answers[0].calibrated, _forward(classifier, val)[1]),
            facts=facts,
            config="model:\n  name: cnn\n",
        )
        client.log_artifacts(run_id, str(as_mlflow_model(package, folder / "mlflow").folder), PACKAGE)
    client.set_tag(run_id, "qualified", "true")
    client.set_tag(run_id, "qualification", facts.qualification)
    client.set_terminated(run_id)
    return run_id


def _fitted(train: Examples, classes: tuple[str, ...], noise: float, seed: int) -> Classifier:
    """Fit the head of a `cnn`, and add to its logits a noise that is `noise` times as loud as they are."""
    torch.manual_seed(seed)
    classifier = make_classifier(classes=classes, image_size=SIZE).eval()
    features = _forward(classifier, train)[1].astype(np.float64)
    centre, scale = features.mean(axis=0), features.std(axis=0) + 1e-9
    features = (features - centre) / scale
    fit = LogisticRegression(max_iter=1000).fit(features, train.labels)
    is_pair = len(classes) == 2  # it has one row then
    weight = np.concatenate([-fit.coef_, fit.coef_]) / 2 if is_pair else fit.coef_
    bias = np.concatenate([-fit.intercept_, fit.intercept_]) / 2 if is_pair else fit.intercept_
    # The noise is what the features say in directions drawn by chance, without what the logits say already.
    chance, known = np.random.default_rng(seed).normal(size=weight.shape), features @ weight.T
    chance -= np.linalg.lstsq(known, features @ chance.T, rcond=None)[0].T @ weight
    loudness = known.std(axis=0) / (features @ chance.T).std(axis=0)
    weight = (weight + noise * loudness[:, None] * chance) / scale
    with torch.no_grad():
        classifier.head.weight.copy_(torch.from_numpy(weight))
        classifier.head.bias.copy_(torch.from_numpy(bias - weight @ centre))
    return classifier


def _forward(classifier: Classifier, examples: Examples) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the probabilities and the features of all pictures."""
    with torch.inference_mode():
        logits, features = classifier(torch.from_numpy(np.asarray(examples.inputs)))
    return logits.softmax(dim=1).numpy(), features.numpy()


def _say(classifier: Classifier, examples: Examples) -> Predictions:
    return Predictions(examples.ids, examples.labels, _forward(classifier, examples)[0], classifier.spec.classes)
