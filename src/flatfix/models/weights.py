"""Start a backbone from a file of weights."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor, nn

from flatfix.errors import UserError

PREFIXES = ("module.", "model.", "classifier.", "backbone.")
CLASSIFIER = "classifier."  # what a checkpoint of training calls the classifier
SPEC = "flatfix.spec"  # in the metadata of safetensors, where values are text
HEADS = ("head.", "fc.", "classifier.", "_fc.")
# How a file of torch.save begins: as a zip archive, or with a pickled number, as it did before torch 1.6.
WRITTEN_BY_TORCH = (b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")


@dataclass(frozen=True)
class LoadedWeights:
    """Tell what a file of weights gave: how many tensors, matched how, and the statistics it was trained with."""

    num_tensors: int
    matched_by: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def load(backbone: nn.Module, path: Path) -> LoadedWeights:
    """Copy the weights in `path` into `backbone`, which has no head.

    Tensors are matched by name, less the usual prefixes. A file with other names but tensors of the same kind (weight,
    bias …) and shape in the same order, such as a port from another library, is matched by order. Tensors of a head are
    left out.

    Raises:
        UserError: when the file cannot be read or does not fit; nothing has been copied then.
    """
    content = read(path, "model.weights")
    state = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), Mapping)), content)
    tensors = {_strip(str(name)): value for name, value in state.items() if isinstance(value, Tensor)}
    wanted = backbone.state_dict()
    matched_by = "name"
    chosen = {name: tensors[name] for name in wanted if name in tensors and tensors[name].shape == wanted[name].shape}
    if len(chosen) < len(wanted):
        matched_by = "order"
        chosen = _by_order(tensors, wanted)
    if len(chosen) < len(wanted):
        missing = [name for name in wanted if name not in tensors or tensors[name].shape != wanted[name].shape]
        raise UserError(
            f"model.weights={path}: does not fit the backbone: {len(missing)} of {len(wanted)} tensors are missing or "
            f"have another shape, first {missing[0]}. Choose the model that the file was saved from."
        )
    backbone.load_state_dict(chosen)
    spec = stored_spec(content) or {}
    return LoadedWeights(len(chosen), matched_by, spec.get("mean"), spec.get("std"))


def read(path: Path, option: str) -> Mapping[str, Any]:
    """Return what a file of weights holds: tensors and plain values, nothing that runs code.

    Raises:
        UserError: naming `option` and what the file is instead.
    """
    with path.open("rb") as file:
        start = file.read(24)
    fault = f"{option}={path}: cannot be read as weights"
    looks = f"it begins with {start!r}" if start else "it is empty"
    is_safetensors = path.suffix == ".safetensors"
    if not is_safetensors and not start.startswith(WRITTEN_BY_TORCH):
        raise UserError(f"{fault}: torch.save did not write it, {looks}")
    try:
        content = _read_safetensors(path) if is_safetensors else torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{fault}: it holds objects, which could run code, or is damaged. Save its state_dict alone."
        ) from error
    except Exception as error:  # a damaged file leads the readers to errors of nearly every type
        raise UserError(f"{fault}: damaged or cut short, {looks}") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{option}={path}: holds a {type(content).__name__}, not a mapping of tensors")
    return content


def stored_spec(content: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the plain values of the classifier whose checkpoint `content` is, or None when it is not one of ours."""
    spec = content.get("hyper_parameters")
    return spec if isinstance(spec, Mapping) and "classes" in spec else None


def save(path: Path, state: Mapping[str, Tensor], spec: Mapping[str, Any]) -> None:
    """Write the state of a classifier and its plain values as safetensors, which `read` gives as a checkpoint's."""
    tensors = {
        f"{CLASSIFIER}{name}": tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()
    }
    path.write_bytes(serialize(tensors, {SPEC: json.dumps(spec)}))  # save_file lets nobody else read the file


def _read_safetensors(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        spec = (file.metadata() or {}).get(SPEC)
    tensors = load_file(path)
    return {"state_dict": tensors, "hyper_parameters": json.loads(spec)} if spec else tensors


def _strip(name: str) -> str:
    for prefix in PREFIXES:
        if name.startswith(prefix) and not name.startswith(("classifier.weight", "classifier.bias")):
            name = name.removeprefix(prefix)
    return name


def _by_order(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    body = {name: tensor for name, tensor in tensors.items() if not name.startswith(HEADS)}
    # The last part of the name tells the four tensors of a batch norm apart, which all have one shape.
    if [_kind(*item) for item in body.items()] != [_kind(*item) for item in wanted.items()]:
        return {}
    return dict(zip(wanted, body.values(), strict=True))


def _kind(name: str, tensor: Tensor) -> tuple[str, torch.Size]:
    return name.rpartition(".")[2], tensor.shape
