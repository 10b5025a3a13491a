from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from flatfix.models.classifier import load_checkpoint
from flatfix.training.result import RunResult

Train = Callable[..., RunResult]


def test_a_run_with_every_option_of_speed_says_what_it_chose_and_keeps_the_average(
    run_tiny: Train, client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_tiny(
        "dataset.batch_size=auto",
        "trainer.accumulate=2",
        "trainer.gradient_clip=1.0",
        "trainer.ema_decay=0.9",
        "trainer.channels_last=false",
        "model.tta=flip",
    )
    chosen = client.get_run(result.run_id).data.params
    assert chosen["dataset.batch_size"] == chosen["batch_size"]
    size = int(chosen["batch_size"])
    assert size & (size - 1) == 0
    assert f"batch size: {size} (the learning rate stays" in capsys.readouterr().out

    checkpoint = torch.load(result.checkpoint, weights_only=True)
    last = checkpoint["current_model_state"]["classifier.head.weight"]
    assert not torch.equal(checkpoint["state_dict"]["classifier.head.weight"], last)
    classifier = load_checkpoint(Path(result.checkpoint))
    assert classifier.spec.tta == "flip"
    assert torch.equal(classifier.head.weight, checkpoint["state_dict"]["classifier.head.weight"])


@pytest.mark.slow  # the compiler starts
def test_a_compiled_model_learns_the_same_and_is_saved_as_it_is(run_tiny: Train) -> None:
    compiled, plain = (
        run_tiny(f"trainer.compile={word}", "model=tiny_vgg", "trainer.ema_decay=0.5", name=word)
        for word in ("true", "false")
    )
    one, other = (load_checkpoint(Path(result.checkpoint)).state_dict() for result in (compiled, plain))
    assert one.keys() == other.keys()
    assert all(torch.allclose(value, other[name], rtol=1e-3, atol=1e-4) for name, value in one.items())
