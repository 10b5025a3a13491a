"""What a sweep looks for in a run: its validation metrics, and what its model costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence

import torch

from flatfix.models.classifier import Classifier

NUM_WARM_UP, NUM_TIMED = 5, 50
MAX_SECONDS = 5.0  # of a model that is slow


def objectives(
    names: Sequence[str], validation: Mapping[str, float], classifier: Classifier, image_size: int, device: torch.device
) -> dict[str, float]:
    """Return the value of each objective, in their order.

    Args:
        names: keys of `OBJECTIVES`.
        validation: metrics of the epoch that counts.
        classifier: the model; it is moved to `device` and put into evaluation mode where it has to be timed.
        image_size: pixels a side.
        device: where it is timed.
    """
    values = {}
    for name in names:
        if name == "latency_ms":
            values[name] = latency_ms(classifier.to(device).eval(), image_size, device)
        elif name == "num_parameters":
            values[name] = float(sum(parameter.numel() for parameter in classifier.parameters()))
        else:
            values[name] = validation[name]
    return values


@torch.inference_mode()
def latency_ms(classifier: Classifier, image_size: int, device: torch.device) -> float:
    """Return the median milliseconds that a classifier takes for one picture that lies on its device, in float32."""
    image = torch.zeros(1, image_size, image_size, 3, dtype=torch.uint8, device=device)
    timed: list[float] = []
    began = time.perf_counter()
    for number in range(NUM_WARM_UP + NUM_TIMED):
        start = time.perf_counter()
        classifier(image).logits.cpu()  # this waits for a GPU
        end = time.perf_counter()
        if number >= NUM_WARM_UP:
            timed.append(1000 * (end - start))
            if end - began > MAX_SECONDS:
                break
    return statistics.median(timed)
