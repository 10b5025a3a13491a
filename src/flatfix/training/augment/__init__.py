"""Augmentation of whole batches on the device, with parameters drawn for each picture of its own.

Every class maps `[N, H, W, 3] uint8` to the same shape and type. Parameters come from a CPU generator, so that the same
seed gives the same pictures on every device; only `[N]` numbers travel.
"""

from flatfix.training.augment.base import Augment, Identity, Recurring
from flatfix.training.augment.cifar import Alternating, Cifar
from flatfix.training.augment.dihedral import Dihedral
from flatfix.training.augment.inspection import Inspection
from flatfix.training.augment.mix import Cutmix, Mixer, Mixing, Mixup
from flatfix.training.augment.trivial import Trivial

__all__ = [
    "Alternating",
    "Augment",
    "Cifar",
    "Cutmix",
    "Dihedral",
    "Identity",
    "Inspection",
    "Mixer",
    "Mixing",
    "Mixup",
    "Recurring",
    "Trivial",
]
