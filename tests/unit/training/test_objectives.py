from __future__ import annotations

import time

import torch

from flatfix.training.objectives import NUM_WARM_UP, objectives
from tests.helpers.models import make_classifier

CPU = torch.device("cpu")


def test_each_objective_is_found_by_its_name() -> None:
    classifier = make_classifier()
    found = objectives(["num_parameters", "loss"], {"loss": 0.5, "accuracy": 0.9}, classifier, 32, CPU)
    assert found == {"num_parameters": sum(each.numel() for each in classifier.parameters()), "loss": 0.5}


def test_latency_is_milliseconds_of_one_picture_once_the_model_is_warm() -> None:
    classifier = make_classifier().train()
    shapes = []

    def wait(module: object, inputs: tuple[torch.Tensor]) -> None:
        shapes.append(tuple(inputs[0].shape))
        time.sleep(0.05 if len(shapes) <= NUM_WARM_UP else 0.002)

    classifier.register_forward_pre_hook(wait)
    milliseconds = objectives(["latency_ms"], {}, classifier, 48, CPU)["latency_ms"]
    assert 2 <= milliseconds < 50
    assert set(shapes) == {(1, 48, 48, 3)}
    assert not classifier.training, "dropout was timed"
