"""Emitting a signal from Python without harm to the interpreter."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

from PySide6.QtCore import SignalInstance

_COUNTED = sys.version_info < (3, 12)


def emit(signal: SignalInstance, *values: object) -> None:
    """Emit a signal; use this instead of its method.

    PySide 6.12 returns `True` from `emit` without owning a reference to it. Before Python 3.12, which made `True` immortal, some
    thousands of emits end the process with "deallocating True or False"; the reference is therefore given back here.
    """
    emission: Callable[..., object] = signal.emit  # the stubs say that it returns nothing
    result = emission(*values)
    if _COUNTED and isinstance(result, bool):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(result))
