"""From pictures to answers with a model package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from flatfix.inference.decision import Decision, softmax
from flatfix.inference.package import MODEL, DamagedPackageError, Package
from flatfix.inference.selection import permit_of, select

NUM_AT_ONCE = 32  # pictures: with 64, no runtime is faster, and the activations of resnet18 at 224 take 0.6 GB, not 0.3

# What reduced precision may differ from the logits of the reference pictures, as a multiple of the largest difference
# that the card measured over many more pictures: another processor may round its sums in another order.
SLACK = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """What a model said of N pictures.

    Attributes:
        logits: `[N, C]`, as the model gave them.
        features: `[N, D]`.
        probabilities: `[N, C]`, calibrated.
        labels: `[N]` classes that are decided, as indices into the card's.
        needs_review: `[N]`, whether a person should see the picture.
    """

    logits: NDArray[np.float32]
    features: NDArray[np.float32]
    probabilities: NDArray[np.float64]
    labels: NDArray[np.int64]
    needs_review: NDArray[np.bool_]

    @classmethod
    def of(cls, logits: NDArray[np.float32], features: NDArray[np.float32], decision: Decision) -> Self:
        """Apply a decision to what a model gave."""
        calibrated = decision.calibrate(softmax(logits))
        return cls(logits, features, calibrated, decision.predict(calibrated), decision.needs_review(calibrated))


class Predictor:
    """Predict with the model of a package, from any number of threads at once.

    Attributes:
        package: that the model is from.
        runtime: that runs it.
        precision: that it computes in.
        reason: why this runtime and this precision, in words.
    """

    def __init__(
        self,
        package: Package,
        runtime: str = "auto",
        precision: str = "auto",
        num_threads: int | None = None,
        cache_dir: Path | None = None,
    ) -> None:
        """Load the model.

        Args:
            package: from `open_package`.
            runtime: `onnxruntime`, `openvino`, or `auto`: the fastest here that the card permits, see `select`.
            precision: `fp32`, `bf16`, or `auto`: likewise.
            num_threads: that compute one batch; all cores that this process may use by default.
            cache_dir: where the choice of `auto` is kept for the next time, or None.

        Raises:
            UserError: when the card does not permit what is asked for, or this machine does not run it.
        """
        self.package = package
        self._runtime, self.reason = select(package, runtime, precision, num_threads, cache_dir)
        self.runtime, self.precision = self._runtime.name, self._runtime.precision

    def predict(self, images: NDArray[np.uint8]) -> Predictions:
        """Answer pictures `[N, H, W, 3] uint8`, as large as the card says.

        Raises:
            ValueError: for another shape or type.
        """
        card = self.package.card
        size = card.image_size
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (size, size, 3):
            raise ValueError(f"need pictures [N, {size}, {size}, 3] uint8, got {list(images.shape)} {images.dtype}")
        logits = np.empty((len(images), len(card.classes)), np.float32)
        features = np.empty((len(images), card.num_features), np.float32)
        for start in range(0, len(images), NUM_AT_ONCE):
            rows = slice(start, start + NUM_AT_ONCE)
            logits[rows], features[rows] = self._runtime.run(np.ascontiguousarray(images[rows]))
        return Predictions.of(logits, features, card.decision)

    def prove(self) -> None:
        """Answer the reference pictures of the package and compare with what was said of them when it was made.

        In fp32 a logit may differ by the card's tolerance; in reduced precision, besides, by `SLACK` times what the
        card's permit measured.

        Raises:
            DamagedPackageError: when a logit differs by more.
        """
        card, reference = self.package.card, self.package.reference()
        allowed = card.parity.tolerance
        if self.precision != "fp32":
            allowed += SLACK * permit_of(card, self.runtime, self.precision).max_difference
        differences = np.abs(self.predict(reference.images).logits - reference.logits).max(axis=1)
        is_right = differences <= allowed  # nan is not
        if not is_right.all():
            raise DamagedPackageError(
                f"{self.package.path(MODEL)}: {(~is_right).sum()} of the {len(is_right)} reference pictures are not "
                f"answered by {self.runtime} {self.precision} as they were when the package was made: a logit differs "
                f"by {differences.max():.2g}, where {allowed:.2g} is allowed. Fetch or export the package again"
            )
