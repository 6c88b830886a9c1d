"""Imports the whole daemon ahead, for the zygote and for image builds."""

import contextlib
import importlib
import os
from collections.abc import Iterator

#: pydantic need neither look for plugins, of which there are none, nor check the schemas that it makes itself: together a
#: twentieth of the time. Read from the environment, see pydantic/plugin/_loader.py and _internal/_core_utils.py (2.10).
_PYDANTIC = {"PYDANTIC_DISABLE_PLUGINS": "__all__", "PYDANTIC_SKIP_VALIDATING_CORE_SCHEMAS": "1"}


def import_daemon() -> None:
    """Import what the daemon imports when it starts: what it has postponed (see `moorage_contract.postponed`) stays so."""
    with _quick_pydantic():
        importlib.import_module("moorage_guest.daemon")


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
