"""The configuration in force: loaded at start, replaced as a whole on SIGHUP or not at all."""

import argparse
import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moorage_contract.daemon_config import SETTINGS, Absent, ConfigError, DaemonConfig, parse

from moorage_guest.settingsfile import read_text

log = logging.getLogger(__name__)

_KEYS = {setting.attribute: setting.key for setting in SETTINGS.values()}


class ConfigFileError(Exception):
    """The daemon cannot be configured with this file; worded as dockerd words it."""


def load(
    path: Path, flags: Mapping[str, object], *, must_exist: bool, defaults: Mapping[str, Any] | None = None
) -> DaemonConfig:
    """Read and check a daemon.json together with the command line; raise ConfigFileError with every fault.

    ``defaults`` are values of attributes that neither the file nor the command line has to give.
    """
    try:
        text = read_text(path)
    except FileNotFoundError:
        if must_exist:
            raise ConfigFileError(
                f"unable to configure the Docker daemon with file {path}: open {path}: no such file or directory"
            ) from None
        text = ""
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigFileError(f"unable to configure the Docker daemon with file {path}: {reason}") from None
    try:
        config = parse(text, flags=flags)
    except ConfigError as error:
        raise ConfigFileError(f"unable to configure the Docker daemon with file {path}: {error}") from None
    missing = {name: value for name, value in (defaults or {}).items() if _KEYS[name] not in config.given}
    return dataclasses.replace(config, **missing)


class LiveConfig:
    """What the rest of the daemon asks for settings that may change while it runs: `current`."""

    def __init__(
        self,
        path: Path,
        flags: Mapping[str, object],
        *,
        must_exist: bool,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = path
        self._defaults = defaults
        self._flags = flags
        self._must_exist = must_exist
        self.current = load(path, flags, must_exist=must_exist, defaults=defaults)

    def reload(self) -> dict[str, Any]:
        """Read the file again and put its reloadable keys in force; return those that changed with their new values.

        Raises ConfigFileError, and then nothing has changed. Keys that need a restart keep their value until then.
        """
        fresh = load(self.path, self._flags, must_exist=self._must_exist, defaults=self._defaults)
        changed: dict[str, Any] = {}
        updates: dict[str, Any] = {}
        for setting in SETTINGS.values():
            if not setting.reloadable:
                continue
            if setting.key not in fresh.given and setting.absent is Absent.KEEP:
                continue
            value = getattr(fresh, setting.attribute)
            if value != getattr(self.current, setting.attribute):
                updates[setting.attribute] = value
                changed[setting.key] = value
        self.current = dataclasses.replace(self.current, **updates)
        return changed


def add_own_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that only the command line has."""
    parser.add_argument(
        "--config-file", metavar="PATH", help="daemon configuration file (default: daemon.json in the data root)"
    )
    parser.add_argument("--validate", action="store_true", help="check the configuration and exit")
    parser.add_argument("-v", "--version", action="store_true", help="print the version and exit")
