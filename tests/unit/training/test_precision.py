from __future__ import annotations

import pytest
import torch
from torch import nn

from flatfix.errors import UserError
from flatfix.training.precision import choose


def test_auto_takes_what_this_machine_is_fast_in_and_says_why() -> None:
    has_amx = torch.cpu._is_amx_tile_supported()
    expected = ("bf16-mixed", "this CPU has AMX") if has_amx else ("32-true", "no hardware bf16")
    assert choose("auto", "cpu") == expected


def test_auto_trains_depthwise_convolutions_on_a_processor_in_fp32_unless_they_are_frozen() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8))
    plain = choose("auto", "cpu")
    assert choose("auto", "cpu", network[:1]) == plain
    assert choose("auto", "cpu", network)[0] == "32-true"
    assert choose("bf16-mixed", "cpu", network)[0] == "bf16-mixed"
    assert choose("auto", "cpu", network.requires_grad_(False)) == plain


def test_a_precision_that_is_asked_for_is_taken() -> None:
    assert choose("32", "cpu") == ("32-true", "as configured")
    assert choose("bf16-mixed", "cpu") == ("bf16-mixed", "as configured")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_what_needs_a_gpu_is_refused_without_one() -> None:
    with pytest.raises(UserError, match=r"trainer\.accelerator=gpu: torch sees no GPU"):
        choose("auto", "gpu")
    with pytest.raises(UserError, match=r"trainer\.precision=16-mixed: needs a GPU"):
        choose("16-mixed", "auto")
