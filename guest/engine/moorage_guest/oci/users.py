"""Who a container's process runs as: names looked up in the container's own /etc/passwd and /etc/group.

Those files are the container's to forge: they are opened with openat2(RESOLVE_IN_ROOT), so no symbolic link leaves
the root, and only regular files up to a bounded size are read.
"""

import ctypes
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from moorage_guest.errors import InvalidParameter

_SYS_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_IN_ROOT = 0x10
_MAX_ID = 2**31 - 1
_MAX_FILE = 16 * 1024 * 1024


@dataclass(frozen=True)
class ProcessUser:
    """Resolved identity of a process in its container."""

    uid: int
    gid: int
    additional_gids: tuple[int, ...]
    home: str

    def to_oci(self) -> dict[str, object]:
        """Return the OCI ``user`` object."""
        return {"uid": self.uid, "gid": self.gid, "additionalGids": list(self.additional_gids)}


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def read_confined(rootfs: Path, path: str) -> str | None:
    """Return a small text file below a container's root, or None when there is no such regular file.

    No link in ``path`` leads out of ``rootfs``. May block on the disk; never on a FIFO or device.
    """
    root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        how = _OpenHow(
            os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS
        )
        descriptor = _libc.syscall(
            ctypes.c_long(_SYS_OPENAT2), ctypes.c_int(root), ctypes.c_char_p(os.fsencode(path.lstrip("/"))),
            ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how)),
        )  # fmt: skip
    finally:
        os.close(root)
    if descriptor < 0:
        return None
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return None
        return file.read(_MAX_FILE).decode("utf-8", "replace")


def _entries(text: str | None, fields: int) -> Iterator[list[str]]:
    for line in (text or "").splitlines():
        line = line.strip()
        if line and not line.startswith("#"):
            yield (line.split(":") + [""] * fields)[:fields]


def _number(text: str) -> int | None:
    try:
        value = int(text)
    except ValueError:
        return None
    if not 0 <= value <= _MAX_ID:
        raise InvalidParameter("uids and gids must be in range 0-2147483647")
    return value


def _id(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        return 0


def resolve_user(rootfs: Path, user: str, group_add: Sequence[str] = ()) -> ProcessUser:
    """Resolve ``user[:group]`` (names or numbers, "" is root) and additional groups inside ``rootfs``.

    Raises InvalidParameter, worded as dockerd does, for a name that is not in the container's files.
    A number needs no entry: its group is then 0 and its home "/".
    """
    name, _, group = user.partition(":")
    passwd = list(_entries(read_confined(rootfs, "/etc/passwd"), 7))
    wanted = _number(name) if name else 0
    found = next((entry for entry in passwd if entry[0] == name), None) if name else None
    if found is None and wanted is not None:
        found = next((entry for entry in passwd if entry[2] == str(wanted)), None)
    if found is None and wanted is None:
        raise InvalidParameter(f"unable to find user {name}: no matching entries in passwd file")
    if found is not None:
        uid, gid, home, login = _id(found[2]), _id(found[3]), found[5] or "/", found[0]
    else:
        uid, gid, home, login = wanted or 0, 0, "/", ""

    groups: list[list[str]] = []
    if group or group_add or login:
        groups = list(_entries(read_confined(rootfs, "/etc/group"), 4))
    members: list[int] = []
    if group:
        number = _number(group)
        match = next((entry for entry in groups if entry[0] == group), None)
        if match is not None:
            gid = _id(match[2])
        elif number is not None:
            gid = number
        else:
            raise InvalidParameter(f"unable to find group {group}: no matching entries in group file")
    elif login:
        members = [_id(entry[2]) for entry in groups if login in entry[3].split(",")]
    for extra in group_add:
        match = next((entry for entry in groups if entry[0] == extra), None)
        number = _number(extra) if match is None else _id(match[2])
        if number is None:
            raise InvalidParameter(f"Unable to find group {extra}: no matching entries in group file")
        members.append(number)
    return ProcessUser(uid, gid, tuple(dict.fromkeys([gid, *members])), home)
