"""Device nodes and the device cgroup: defaults, --device, --device-cgroup-rule, --privileged."""

import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from moorage_guest.api.types import DeviceMapping
from moorage_guest.errors import InvalidParameter, SystemError_

#: Folders below /dev that belong to each container itself.
_OWN = frozenset({"pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"})

#: (type, major, minor, access); minor None is any. What every container may use, mknod included.
_ALLOWED: tuple[tuple[str, int | None, int | None, str], ...] = (
    ("c", None, None, "m"),
    ("b", None, None, "m"),
    ("c", 1, 3, "rwm"),  # null
    ("c", 1, 5, "rwm"),  # zero
    ("c", 1, 7, "rwm"),  # full
    ("c", 1, 8, "rwm"),  # random
    ("c", 1, 9, "rwm"),  # urandom
    ("c", 5, 0, "rwm"),  # tty
    ("c", 5, 1, "rwm"),  # console
    ("c", 5, 2, "rwm"),  # ptmx
    ("c", 136, None, "rwm"),  # pts
    ("c", 10, 200, "rwm"),  # net/tun: the node is not there unless asked for
)

_RULE = re.compile(r"([acb]) ([0-9]+|\*):([0-9]+|\*) ([rwm]{1,3})")


def check_permissions(permissions: str) -> bool:
    """Whether this is a set of r, w and m, each once."""
    return bool(permissions) and len(set(permissions)) == len(permissions) and set(permissions) <= set("rwm")


def parse_rule(rule: str) -> dict[str, Any]:
    """Turn ``c 10:* rwm`` into an OCI device rule. Raises InvalidParameter."""
    match = _RULE.fullmatch(rule)
    if match is None:
        raise InvalidParameter(f"invalid device cgroup rule format: '{rule}'")
    kind, major, minor, access = match.groups()
    return _rule(kind, None if major == "*" else int(major), None if minor == "*" else int(minor), access)


def _rule(kind: str, major: int | None, minor: int | None, access: str) -> dict[str, Any]:
    rule: dict[str, Any] = {"allow": True, "type": kind, "access": access}
    if major is not None:
        rule["major"] = major
    if minor is not None:
        rule["minor"] = minor
    return rule


def default_rules() -> list[dict[str, Any]]:
    """Return the device cgroup rules of an ordinary container, the denial of all first."""
    return [{"allow": False, "access": "rwm"}, *(_rule(*each) for each in _ALLOWED if each[1:3] != (10, 200))]


def _node(host: Path, inside: str) -> dict[str, Any]:
    status = host.stat()
    if stat.S_ISCHR(status.st_mode):
        kind = "c"
    elif stat.S_ISBLK(status.st_mode):
        kind = "b"
    else:
        raise OSError("not a device node")
    return {
        "path": inside, "type": kind, "major": os.major(status.st_rdev), "minor": os.minor(status.st_rdev),
        "fileMode": stat.S_IMODE(status.st_mode), "uid": status.st_uid, "gid": status.st_gid,
    }  # fmt: skip


def _walk(folder: Path) -> Iterator[Path]:
    for entry in sorted(os.scandir(folder), key=lambda each: each.name):
        if entry.is_dir(follow_symlinks=False):
            if entry.name not in _OWN:
                yield from _walk(Path(entry.path))
        elif not entry.is_symlink():
            mode = entry.stat(follow_symlinks=False).st_mode
            if (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)) and entry.path != "/dev/console":
                yield Path(entry.path)


def host_devices() -> list[dict[str, Any]]:
    """Return every device node of the machine, for a privileged container."""
    nodes = []
    for path in _walk(Path("/dev")):
        try:
            nodes.append(_node(path, str(path)))
        except OSError:
            continue  # went away since the listing
    return nodes


def mapped_devices(mappings: Sequence[DeviceMapping]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return (nodes, cgroup rules) for --device; a folder stands for the nodes in it.

    Raises SystemError_, worded as dockerd does, when a path is no device.
    """
    nodes, rules = [], []
    for mapping in mappings:
        host = Path(mapping.path_on_host)
        inside = mapping.path_in_container or mapping.path_on_host
        access = mapping.cgroup_permissions or "rwm"
        try:
            if host.is_dir():
                found = [_node(each, f"{inside}/{each.relative_to(host.resolve())}") for each in _walk(host.resolve())]
                if not found:
                    raise OSError("not a device node")
            else:
                found = [_node(host, inside)]
        except OSError as error:
            reason = error.strerror.lower() if error.strerror else str(error)
            raise SystemError_(
                f'error gathering device information while adding custom device "{host}": {reason}'
            ) from error
        nodes += found
        rules += [_rule(each["type"], each["major"], each["minor"], access) for each in found]
    return nodes, rules
