"""Imports the whole daemon ahead, for the zygote and for image builds."""

import importlib
import os
import pkgutil

#: Not imported ahead: programs of their own.
_LEFT_OUT = ("agent", "shim", "netd")


def import_daemon() -> None:
    """Import every module of the engine, so that a fork has nothing left to read."""
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"  # there are none, and looking takes a tenth of the time
    package = importlib.import_module("moorage_guest")
    for module in pkgutil.walk_packages(package.__path__, "moorage_guest."):
        if not any(part in _LEFT_OUT for part in module.name.split(".")):
            importlib.import_module(module.name)


def build_models() -> None:
    """Build the validators of what containers' records hold: a tenth of a second that a daemon which comes back saves."""
    types = importlib.import_module("moorage_guest.api.types")
    for model in (types.ContainerConfig, types.HostConfig, types.EndpointSettings):
        model.model_rebuild()
