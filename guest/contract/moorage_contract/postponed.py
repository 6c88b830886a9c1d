"""Imports that wait: modules which a process seldom needs, or not at once, are run when first used.

    with postponed("moorage_guest.images.pushing"):
        from moorage_guest.images import pushing

binds a module whose code runs as soon as one of its names is asked for, in whatever thread. Names must therefore be
used as `pushing.push`, and not in anything that is itself evaluated at import. What has been imported already stays as it is.
(importlib's own LazyLoader runs a module as soon as a second one imports it.)
"""

import contextlib
import gc
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

#: pydantic need neither look for plugins, of which there are none, nor check the schemas that it makes itself. Read from the
#: environment, see pydantic/plugin/_loader.py and _internal/_core_utils.py (2.10).
_PYDANTIC = {"PYDANTIC_DISABLE_PLUGINS": "__all__", "PYDANTIC_SKIP_VALIDATING_CORE_SCHEMAS": "1"}


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Import inside the block in three quarters of the time: it makes little garbage, which nobody looks for meanwhile."""
    before = {name: os.environ.get(name) for name in _PYDANTIC}
    collecting = gc.isenabled()
    gc.disable()
    os.environ.update(_PYDANTIC)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        gc.freeze()
        if collecting:
            gc.enable()


class Postponed(ModuleType):
    """A module whose code has not run. The modules inside such a package can be imported all the same."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}", name=name, obj=self)
        if "__path__" in vars(self) and importlib.util.find_spec(f"{self.__name__}.{name}") is not None:
            return importlib.import_module(f"{self.__name__}.{name}")
        waiting = vars(self).get("__waiting__")
        if waiting is not None:
            _run(self, waiting)
        try:
            return vars(self)[name]
        except KeyError:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}", name=name, obj=self) from None


@contextlib.contextmanager
def postponed(*names: str, **values: str) -> Iterator[None]:
    """Have each of `names` wait that the block imports. `values` are what its own modules may ask of a package before."""
    for name in names:
        spec = importlib.util.find_spec(name) if name not in sys.modules else None
        if spec is None:  # is there already, or the import will say that it does not exist
            continue
        module = importlib.util.module_from_spec(spec)
        object.__setattr__(module, "__class__", Postponed)
        vars(module).update(values, __waiting__=threading.RLock())
        sys.modules[name] = module
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, module)
    yield


def _run(module: Postponed, lock: "threading.RLock") -> None:
    """Run the module's code, once: other threads wait until it has been run, its own goes on with what is there already."""
    spec = module.__spec__
    assert spec is not None and spec.loader is not None
    with lock:
        if "__waiting__" not in vars(module) or vars(module).get("__running__"):
            return
        vars(module)["__running__"] = True
        try:
            spec.loader.exec_module(module)
            object.__setattr__(module, "__class__", ModuleType)
            del vars(module)["__waiting__"]
        finally:
            del vars(module)["__running__"]
