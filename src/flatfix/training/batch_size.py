"""What `dataset.batch_size=auto` stands for: as many pictures a step as the device takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import Optimizer

from flatfix.console import say
from flatfix.data.cache import counts
from flatfix.data.datamodule import has_room
from flatfix.data.version import DatasetVersion
from flatfix.errors import UserError
from flatfix.models.classifier import Classifier, ClassifierSpec, create_backbone
from flatfix.training import precision as precisions
from flatfix.training.devices import Place
from flatfix.training.module import parameter_groups
from flatfix.training.plan import Plan

AUTO = "auto"
SHARE = 0.9  # of the memory that is free
MIN_STEPS = 8  # of an epoch
MIN, MAX_ON_CPU = 2, 128  # one picture has no batch statistics; a processor is hardly faster with more
NEED = 2  # times what a step keeps for its gradients, to be what it takes with them

Config = Mapping[str, Any]


def settle(cfg: Config, plan: Plan, version: DatasetVersion, place: Place) -> Config:
    """Put a number in the place of the word `auto`, and say which; it is that of each device.

    It is the largest power of two that leaves an epoch eight steps, and a tenth of the free memory: of a GPU by taking
    steps, of the machine by what a step of two pictures keeps, and there 128 at most. The learning rate stays as it is.

    Raises:
        UserError: when not even two pictures fit.
    """
    dataset, trainer = cfg["dataset"], cfg["trainer"]
    if dataset["batch_size"] != AUTO:
        return cfg
    num_train = int(dataset["sample_fraction"] * sum(counts(version, plan.fold)["train"].values()))
    most = num_train // (MIN_STEPS * place.num_ranks)
    classifier = _classifier(cfg, version)
    half = precisions.half(precisions.choose(trainer["precision"], trainer["accelerator"], classifier)[0])
    if trainer["accelerator"] != "cpu" and torch.cuda.is_available():
        device = torch.device("cuda", place.local_rank)
        classifier.to(device)
        held = 3 * num_train * dataset["image_size"] ** 2
        held = held if has_room(device, held) else 0
        if trainer["ema_decay"]:
            held += sum(tensor.nbytes for tensor in classifier.state_dict().values())
        size = _by_trying(classifier, plan.optimizer, half, most, held)
    else:
        room = SHARE * psutil.virtual_memory().available / place.num_local
        each = NEED * kept_bytes(classifier, half)
        size = largest(lambda num: num * each <= room, min(most, MAX_ON_CPU))
    if not size:
        raise UserError(
            f"dataset.batch_size=auto: not even {MIN} pictures of {dataset['image_size']} px fit into the memory that "
            "is free. Lower dataset.image_size, or choose a smaller model."
        )
    say(f"batch size: {size} (the learning rate stays {cfg['optimizer'].get('lr', 'its own')})")
    return {**cfg, "dataset": {**dataset, "batch_size": size}}


def largest(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest power of two that fits, none above `most` (or `MIN`, if that is more), 0 if none does."""
    size = 0
    while (size * 2 or MIN) <= max(most, MIN) and fits(size * 2 or MIN):
        size = size * 2 or MIN
    return size


def kept_bytes(classifier: Classifier, half: torch.dtype | None) -> float:
    """Return what a training step keeps of one picture until its gradients are computed."""
    few, more = _kept_bytes(classifier, MIN, half), _kept_bytes(classifier, 2 * MIN, half)
    return (more - few) / MIN  # without the weights, which are kept once


def _kept_bytes(classifier: Classifier, num: int, half: torch.dtype | None) -> int:
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = _loss(classifier, num, half)  # while it lives, no two storages have the same address
    assert loss.requires_grad
    return sum(kept.values())


def _by_trying(
    classifier: Classifier,
    make_optimizer: Callable[..., Optimizer],
    half: torch.dtype | None,
    most: int,
    held: int,
) -> int:
    """Return what fits into a GPU beside bytes that will be held there; its memory is free again afterwards."""
    device = classifier.mean.device
    total = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)

    def fits(num: int) -> bool:
        torch.cuda.reset_peak_memory_stats(device)
        try:
            _train_and_answer(classifier, make_optimizer, num, half)
            return torch.cuda.max_memory_reserved(device) + held <= SHARE * total
        except torch.cuda.OutOfMemoryError:
            return False
        finally:
            classifier.zero_grad()
            torch.cuda.empty_cache()

    return largest(fits, most)


def _train_and_answer(
    classifier: Classifier, make_optimizer: Callable[..., Optimizer], num: int, half: torch.dtype | None
) -> None:
    """Take two steps, of which the second has an optimizer with a state; then evaluate, in float32 as a test does."""
    optimizer = make_optimizer(parameter_groups(classifier.named_parameters(), decay_norms_and_biases=False))
    for _ in range(2):
        optimizer.zero_grad()
        _loss(classifier, num, half).backward()
        optimizer.step()
    with torch.inference_mode():
        classifier.eval()(_pictures(classifier, num))


def _loss(classifier: Classifier, num: int, half: torch.dtype | None) -> Tensor:
    images = _pictures(classifier, num)
    with torch.autocast(images.device.type, dtype=half, enabled=half is not None):
        logits = classifier.train()(images).logits
        return F.cross_entropy(logits, torch.zeros(num, dtype=torch.int64, device=images.device))


def _pictures(classifier: Classifier, num: int) -> Tensor:
    size = classifier.spec.image_size
    return torch.zeros(num, size, size, 3, dtype=torch.uint8, device=classifier.mean.device)


def _classifier(cfg: Config, version: DatasetVersion) -> Classifier:
    """Build what will train, with weights that do not matter."""
    model, dataset, manifest = cfg["model"], cfg["dataset"], version.manifest
    spec = ClassifierSpec(
        model["name"],
        manifest.classes,
        dataset["image_size"],
        dataset["resize"],
        manifest.mean,
        manifest.std,
        model["options"],
        tta=model["tta"],
    )
    return Classifier(spec, create_backbone(model["name"], model["options"]))
