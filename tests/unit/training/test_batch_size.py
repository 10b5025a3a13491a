from __future__ import annotations

import pytest
import torch

from flatfix.training.batch_size import kept_bytes, largest
from tests.helpers.models import make_classifier


@pytest.mark.parametrize(
    ("room", "most", "expected"),
    [(100, 1000, 64), (64, 1000, 64), (1000, 100, 64), (1000, 128, 128), (1000, 0, 2), (2, 9, 2), (1, 9, 0)],
)
def test_the_largest_power_of_two_that_fits_is_taken(room: int, most: int, expected: int) -> None:
    assert largest(lambda num: num <= room, most) == expected


@pytest.mark.parametrize("half", [None, torch.bfloat16])
def test_a_step_keeps_as_much_of_every_picture_as_its_layers_put_out(half: torch.dtype | None) -> None:
    classifier, outputs = make_classifier("cnn"), []
    for layer in classifier.backbone.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.BatchNorm2d):
            layer.register_forward_hook(lambda _, inputs, output: outputs.append(output[0].nbytes))
    kept = kept_bytes(classifier, half)
    once = sum(outputs) / 2  # of two passes
    assert 0.5 * once < kept < 2 * once
