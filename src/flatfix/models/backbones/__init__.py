"""Our own backbones, registered with timm: one file each, found by being in this folder."""

from importlib import import_module
from pkgutil import iter_modules

for module in iter_modules(__path__):
    import_module(f"{__name__}.{module.name}")
