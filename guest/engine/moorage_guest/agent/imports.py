"""Imports the whole daemon ahead, for the zygote and for image builds."""

import contextlib
import importlib
import os
import pkgutil
from collections.abc import Iterator

#: Not imported ahead: programs of their own.
_LEFT_OUT = ("agent", "shim", "netd")

#: pydantic need neither look for plugins, of which there are none, nor check the schemas that it makes itself: together a
#: twentieth of the time. Read from the environment, see pydantic/plugin/_loader.py and _internal/_core_utils.py (2.10).
_PYDANTIC = {"PYDANTIC_DISABLE_PLUGINS": "__all__", "PYDANTIC_SKIP_VALIDATING_CORE_SCHEMAS": "1"}


def import_daemon() -> None:
    """Import every module of the engine, so that a fork has nothing left to read."""
    with _quick_pydantic():
        package = importlib.import_module("moorage_guest")
        for module in pkgutil.walk_packages(package.__path__, "moorage_guest."):
            if not any(part in _LEFT_OUT for part in module.name.split(".")):
                importlib.import_module(module.name)


def build_models() -> None:
    """Build the validators of what containers' records hold: a tenth of a second that a daemon which comes back saves."""
    types = importlib.import_module("moorage_guest.api.types")
    with _quick_pydantic():
        for model in (types.ContainerConfig, types.HostConfig, types.EndpointSettings):
            model.model_rebuild()


@contextlib.contextmanager
def _quick_pydantic() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _PYDANTIC}
    os.environ.update(_PYDANTIC)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
