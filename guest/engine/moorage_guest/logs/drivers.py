"""Log drivers by name: which options they take, where a container's log is, and what writes and reads it.

Drivers: ``json-file``, ``local`` and ``none``. Texts of refusals are dockerd's.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from moorage_guest.errors import InvalidParameter
from moorage_guest.logs.files import LogFile, Rotation
from moorage_guest.logs.formats import Format
from moorage_guest.logs.jsonfile import JsonFile
from moorage_guest.logs.local import Local
from moorage_guest.logs.targets import Sink

DRIVERS = ("json-file", "local", "none")

_COMMON = frozenset({"mode", "max-buffer-size"})
_FILE = frozenset({"max-size", "max-file", "compress"})
_ATTRIBUTES = frozenset({"labels", "labels-regex", "env", "env-regex", "tag"})
_OPTIONS = {
    "json-file": _FILE | _ATTRIBUTES,
    "local": _FILE | _ATTRIBUTES,
}

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([kKmMgGtTpP]?)(?:[iI]?[bB])?")
_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4, "p": 1000**5}
_BINARY_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4, "p": 1024**5}

_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})

#: What a ring holds when mode is non-blocking and nothing is said.
DEFAULT_BUFFER = 1_000_000


@dataclass(frozen=True)
class LogInfo:
    """What of a container can appear in its records: by the options labels, env and tag."""

    container_id: str
    name: str
    image_id: str = ""
    image_name: str = ""
    command: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    env: Sequence[str] = ()


def _size(text: str, units: Mapping[str, int]) -> int:
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidParameter(f"invalid size: '{text}'")
    return int(float(match.group(1)) * units[match.group(2).lower()])


def _flag(text: str) -> bool:
    if text not in _TRUE | _FALSE:
        raise InvalidParameter(f'strconv.ParseBool: parsing "{text}": invalid syntax')
    return text in _TRUE


def check_options(driver: str, options: Mapping[str, str]) -> None:
    """Raise InvalidParameter when there is no such driver or it does not take these options."""
    if driver == "none":
        return
    if driver not in _OPTIONS:
        raise InvalidParameter(f"logger: no log driver named '{driver}' is registered")
    mode = options.get("mode", "")
    if mode not in ("", "blocking", "non-blocking"):
        raise InvalidParameter(f"logger: logging mode not supported: {mode}")
    if "max-buffer-size" in options:
        if mode != "non-blocking":
            raise InvalidParameter("logger: max-buffer-size option is only supported with 'mode=non-blocking'")
        try:
            _size(options["max-buffer-size"], _BINARY_UNITS)
        except InvalidParameter as error:
            raise InvalidParameter(f"error parsing option max-buffer-size: {error}") from error
    for name in options:
        if name not in _OPTIONS[driver] | _COMMON:
            suffix = "for json-file log driver" if driver == "json-file" else f"for log driver {driver}"
            raise InvalidParameter(f"unknown log opt '{name}' {suffix}")
    rotation(driver, options)
    for name in ("labels-regex", "env-regex"):
        try:
            re.compile(options.get(name, ""))
        except re.error as error:
            raise InvalidParameter(f"error parsing regexp: {error}: `{options[name]}`") from error


def rotation(driver: str, options: Mapping[str, str]) -> Rotation:
    """Return when the log's files change. Raises InvalidParameter."""
    local = driver == "local"
    max_size, max_files, compress = (20 << 20, 5, True) if local else (0, 1, False)
    if "max-size" in options:
        units = _BINARY_UNITS if local else _UNITS
        max_size = _size(options["max-size"], units)
        if max_size <= 0:
            raise InvalidParameter("max-size must be a positive number")
    if "max-file" in options:
        if not re.fullmatch(r"[+-]?[0-9]+", options["max-file"]):
            raise InvalidParameter(f'strconv.Atoi: parsing "{options["max-file"]}": invalid syntax')
        max_files = int(options["max-file"])
        if max_files < 1:
            raise InvalidParameter("max-file cannot be less than 1")
    if "compress" in options:
        compress = _flag(options["compress"])
        if compress and (max_files < 2 or not max_size) and not local:
            raise InvalidParameter("compress cannot be true when max-file is less than 2 or max-size is not set")
    return Rotation(max_size, max_files, compress and max_files > 1)


def buffer_size(options: Mapping[str, str]) -> int | None:
    """Return how many bytes may wait in memory in non-blocking mode, None in blocking mode."""
    if options.get("mode") != "non-blocking":
        return None
    text = options.get("max-buffer-size", "")
    return _size(text, _BINARY_UNITS) if text else DEFAULT_BUFFER


def log_path(folder: Path, container_id: str, driver: str) -> Path | None:
    """Return the current log file of a container whose data folder is given; None for the driver none."""
    if driver == "json-file":
        return folder / f"{container_id}-json.log"
    if driver == "local":
        return folder / "local-logs" / "container.log"
    return None


def attributes(options: Mapping[str, str], info: LogInfo) -> dict[str, str]:
    """Return what the options labels, env and tag put into every record."""
    found: dict[str, str] = {}
    names = [name for name in options.get("labels", "").split(",") if name]
    pattern = re.compile(options["labels-regex"]) if options.get("labels-regex") else None
    for name, value in info.labels.items():
        if name in names or (pattern is not None and pattern.search(name)):
            found[name] = value
    names = [name for name in options.get("env", "").split(",") if name]
    pattern = re.compile(options["env-regex"]) if options.get("env-regex") else None
    for entry in info.env:
        name, _, value = entry.partition("=")
        if name in names or (pattern is not None and pattern.search(name)):
            found[name] = value
    if options.get("tag"):
        found["tag"] = _expand_tag(options["tag"], info)
    return found


def _expand_tag(template: str, info: LogInfo) -> str:
    values = {
        "ID": info.container_id[:12],
        "FullID": info.container_id,
        "Name": info.name.removeprefix("/"),
        "ImageID": info.image_id.removeprefix("sha256:")[:12],
        "ImageFullID": info.image_id,
        "ImageName": info.image_name,
        "Command": info.command,
        "DaemonName": "docker",
    }

    def value(match: re.Match[str]) -> str:
        return values.get(match.group(1), match.group(0))

    return re.sub(r"\{\{ *\.([A-Za-z]+) *\}\}", value, template)


def log_format(driver: str, options: Mapping[str, str] | None = None, info: LogInfo | None = None) -> Format:
    """Return the driver's format; options and info are needed for writing alone."""
    found = attributes(options, info) if options and info else {}
    return Local(found) if driver == "local" else JsonFile(found)


def open_sink(folder: Path, driver: str, options: Mapping[str, str], info: LogInfo) -> Sink | None:
    """Open a container's log for the pump; None for the driver none. Blocks on the disk.

    Raises InvalidParameter or OSError.
    """
    path = log_path(folder, info.container_id, driver)
    if path is None:
        return None
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Sink(LogFile(path, rotation(driver, options)), log_format(driver, options, info), buffer_size(options))


def remove_files(folder: Path, container_id: str, driver: str) -> None:
    """Remove a container's log and its rotated files; quiet if there are none."""
    path = log_path(folder, container_id, driver)
    if path is not None and path.parent.exists():
        for file in path.parent.glob(f"{path.name}*"):
            file.unlink(missing_ok=True)
