from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from flatfix.training.speed import HOOKS_OF_A_STEP, Unprofiled, fused, skip_idle_hooks
from tests.helpers.fit import fit
from tests.helpers.models import make_classifier, make_module

CHECK = "from flatfix.training.speed import check_compiler; check_compiler('cpu')"


@pytest.mark.parametrize("optimizer", [SGD, Adam, AdamW])
def test_a_fused_optimizer_takes_the_steps_of_the_plain_one(optimizer: type[Optimizer]) -> None:
    def weights(make: Any) -> torch.Tensor:
        L.seed_everything(0, verbose=False)
        module = make_module(make_classifier("tiny_vgg"), optimizer=make)
        trainer = fit(module)
        assert trainer.optimizers[0].defaults["fused"] == (make.keywords.get("fused"))
        return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])

    plain = partial(optimizer, lr=1e-3, weight_decay=1e-3)
    torch.testing.assert_close(weights(fused(plain, clips=False)), weights(plain), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "clips"),
    [
        (partial(SGD, lr=0.1), True),
        (partial(SGD, lr=0.1, fused=False), False),
        (partial(Adam, foreach=True), False),
        (partial(RMSprop, lr=0.1), False),
    ],
)
def test_an_optimizer_stays_as_it_is_where_fused_does_not_fit(make: Any, clips: bool) -> None:
    assert fused(make, clips=clips) is make


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped_in_every_precision(precision: str) -> None:
    module = make_module(optimizer=fused(partial(SGD, lr=1.0), clips=True))
    before = torch.cat([parameter.detach().flatten().clone() for parameter in module.parameters()])
    fit(module, precision=precision, gradient_clip_val=0.001, max_steps=1, max_epochs=-1, limit_val_batches=0)
    after = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
    assert (after - before).norm().item() == pytest.approx(0.001, rel=0.01)


@pytest.mark.slow
def test_a_machine_without_a_compiler_is_told_so(tmp_path: Path) -> None:
    env = {"CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "PATH": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", CHECK], env=env, capture_output=True, text=True, timeout=300)
    assert ended.returncode != 0
    assert "UserError: trainer.compile=true: torch.compile does not work here" in ended.stderr


def test_a_trainer_that_profiles_nothing_makes_no_context_of_its_own() -> None:
    profiler = Unprofiled()
    assert profiler.profile("one") is profiler.profile("another")
    with profiler.profile("one"), profiler.profile("one"):
        pass


class _Counting(Callback):
    num_batches = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.num_batches += 1


def test_hooks_that_do_nothing_are_passed_over_and_the_others_are_called() -> None:
    module, counting, idle = make_module(), _Counting(), Callback()
    for each in (counting, idle):
        skip_idle_hooks(each)
    assert counting.on_train_batch_start is None
    assert all(getattr(idle, name) is None for name in HOOKS_OF_A_STEP)
    assert all(getattr(module, name) is None for name in HOOKS_OF_A_STEP)
    fit(module, counting, idle)
    assert counting.num_batches == 5
