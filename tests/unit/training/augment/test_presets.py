from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from flatfix.config.instantiate import build
from flatfix.training.augment import Augment, Mixer
from tests.helpers.compose import CONF, compose_train
from tests.helpers.draws import copies, drawn, pictures

PRESETS = sorted(path.stem for path in (CONF / "augment").glob("[!_]*.yaml"))


@cache
def preset(name: str) -> Augment:
    return build(compose_train(Path("unused"), f"augment={name}")["augment"], "augment")


@pytest.mark.parametrize("size", [24, 33])
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_keeps_shape_and_type_and_its_input(name: str, size: int) -> None:
    images = pictures(8, size, size)
    before = images.clone()
    varied = drawn(preset(name), images, 1)
    assert (varied.shape, varied.dtype) == (images.shape, torch.uint8)
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_draws_the_same_for_the_same_seed_and_says_whether_it_changes_pictures(name: str) -> None:
    augment, images = preset(name), pictures()
    assert torch.equal(drawn(augment, images, 1), drawn(augment, images, 1))
    assert augment.changes_pictures == (not torch.equal(drawn(augment, images, 1), images))
    assert augment.changes_pictures == (not torch.equal(drawn(augment, images, 1), drawn(augment, images, 2)))


@pytest.mark.parametrize("name", PRESETS)
def test_no_preset_takes_what_it_draws_from_the_global_generator(name: str) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    drawn(preset(name), pictures(), 1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "none"])
def test_every_picture_of_a_batch_gets_parameters_of_its_own(name: str) -> None:
    varied = drawn(preset(name), copies(pictures(1), 32), 3)
    ways = 8 if name == "dihedral" else 32
    assert len({picture.numpy().tobytes() for picture in varied}) > ways / 2


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_takes_a_single_picture(name: str) -> None:
    assert drawn(preset(name), pictures(1), 1).shape == (1, 24, 24, 3)


@pytest.mark.parametrize("name", PRESETS)
def test_mixed_precision_changes_no_pixel(name: str) -> None:
    images = pictures(16, 64, 64)
    expected = drawn(preset(name), images, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(drawn(preset(name), images, 1), expected)


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "inspection"])  # it needs autocast
def test_no_preset_reads_anything_back_from_the_device(name: str) -> None:
    images = pictures(64, 33, 33).to("meta")  # where no pixel has a value that could be read
    assert drawn(preset(name), images, 1).shape == images.shape


@pytest.mark.gpu
@pytest.mark.parametrize("name", PRESETS)
def test_no_preset_waits_for_a_gpu(name: str) -> None:
    images = pictures(64, 33, 33).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        drawn(preset(name), images, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_gives_the_same_pictures_on_a_gpu(name: str) -> None:
    images = pictures(64, 33, 33)
    there, here = drawn(preset(name), images.cuda(), 1), drawn(preset(name), images, 1)
    assert there.is_cuda
    assert ((there.cpu().int() - here.int()).abs() > 1).float().mean() < 0.001


def test_the_presets_that_mix_pictures_are_told_from_those_that_do_not() -> None:
    assert [name for name in PRESETS if isinstance(preset(name), Mixer)] == ["cutmix", "mixup"]
