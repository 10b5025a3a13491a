from __future__ import annotations

import pytest
import torch

from flatfix.config.instantiate import build
from flatfix.errors import UserError
from flatfix.training.augment import Inspection


def test_it_builds_an_object_and_a_partial() -> None:
    augment = build({"_target_": "flatfix.training.augment.Inspection", "brightness": 0.1}, "augment")
    assert isinstance(augment, Inspection)
    optimizer = build({"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.5}, "optimizer")
    built = optimizer([{"params": [torch.nn.Parameter(torch.zeros(2))]}])
    assert isinstance(built, torch.optim.SGD)
    assert built.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "os.system", "command": "true"}, r"optimizer\._target_=os\.system is not allowed"),
        ({"_target_": "torch.optimizers.SGD"}, r"_target_=torch\.optimizers\.SGD is not allowed"),
        ({"_target_": "torch.optim.Sgd", "_partial_": True}, r"optimizer\._target_=torch\.optim\.Sgd"),
        (
            {"_target_": "torch.optim.SGD", "_partial_": True, "momentun": 0.9},
            r"optimizer\.momentun: no such option\. Valid: lr, momentum.*Did you mean 'momentum'",
        ),
        (
            {"_target_": "torch.optim.sgd.torch.save", "_partial_": True, "obj": 1, "f": "x"},
            "not in the Hydra execution whitelist",
        ),
        ({"_target_": "flatfix.training.augment.Inspection", "brightness": 7}, "brightness=7"),
    ],
)
def test_it_refuses_what_is_not_allowed_or_does_not_fit(node: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(node, "optimizer")
