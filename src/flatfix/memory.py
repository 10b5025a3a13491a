"""What the allocator keeps of the memory that is free, where it is that of GNU."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

LARGE_BYTES = 4 * 1024**2  # of what is asked of the allocator at once
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of mallopt(3)
_MAX_BLOCK = 32 * 1024**2  # larger ones always go back by themselves
# What the allocator comes to by itself, once it has freed a block of that size.
_LEARNT = {_MMAP_MAX: 65_536, _MMAP_THRESHOLD: _MAX_BLOCK, _TRIM_THRESHOLD: 2 * _MAX_BLOCK}


def keep_little() -> None:
    """Let memory go back to the system as soon as it is free.

    Pillow holds pixels in blocks of 16 MB. GNU's allocator learns from the first that such blocks are usual, and keeps
    them from then on, for each thread: a few large pictures, and a server of 0.3 GB has 0.75 GB for ever.
    """
    with suppress(AttributeError, OSError):
        _libc().mallopt(_MMAP_THRESHOLD, LARGE_BYTES)


@contextmanager
def kept() -> Iterator[None]:
    """Let the allocator keep what is freed, and give it back at the end.

    Otherwise each block over 32 MB goes back to the system at once, which clears its pages again when the next step of
    a training asks for them: a sixth of what it takes with tensors as large.
    """
    try:
        with suppress(AttributeError, OSError):
            _libc().mallopt(_MMAP_MAX, 0)
            _libc().mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        yield
    finally:
        with suppress(AttributeError, OSError):
            for option, value in _LEARNT.items():
                _libc().mallopt(option, value)
        give_back()


def give_back() -> None:
    """Give the system back what is free."""
    with suppress(AttributeError, OSError):
        _libc().malloc_trim(0)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL("libc.so.6" if sys.platform == "linux" else None)
