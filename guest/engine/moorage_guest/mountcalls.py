"""mount(2) and umount(2) as volumes need them: options in words, mounts of this process's namespace."""

import ctypes
import errno
import os
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

_MNT_DETACH = 2

_FLAGS = {
    "ro": 1,
    "nosuid": 2,
    "nodev": 4,
    "noexec": 8,
    "sync": 16,
    "remount": 32,
    "mand": 64,
    "dirsync": 128,
    "noatime": 1024,
    "nodiratime": 2048,
    "bind": 4096,
    "rbind": 4096 | 16384,
    "silent": 1 << 15,
    "relatime": 1 << 21,
    "strictatime": 1 << 24,
    "lazytime": 1 << 25,
}
_NOTHING = ("rw", "defaults", "suid", "dev", "exec", "async", "atime", "diratime", "nomand")
_PROPAGATION = {
    "unbindable": 1 << 17,
    "runbindable": 1 << 17 | 16384,
    "private": 1 << 18,
    "rprivate": 1 << 18 | 16384,
    "slave": 1 << 19,
    "rslave": 1 << 19 | 16384,
    "shared": 1 << 20,
    "rshared": 1 << 20 | 16384,
}


def split_options(text: str) -> tuple[int, str, list[int]]:
    """Split mount's comma separated words into flags, the file system's own data and propagation changes."""
    flags, data, propagation = 0, [], []
    for word in text.split(","):
        if word in _FLAGS:
            flags |= _FLAGS[word]
        elif word in _PROPAGATION:
            propagation.append(_PROPAGATION[word])
        elif word and word not in _NOTHING:
            data.append(word)
    return flags, ",".join(data), propagation


def mount(device: str, target: Path, kind: str, options: str) -> None:
    """Mount; raises OSError with the kernel's reason. A bind with more flags is remounted, since the kernel ignores them."""
    flags, data, propagation = split_options(options)
    _mount(device, target, "" if flags & _FLAGS["bind"] else kind, flags, data)
    extra = flags & ~_FLAGS["rbind"]
    if flags & _FLAGS["bind"] and extra:
        _mount("", target, "", extra | _FLAGS["bind"] | _FLAGS["remount"], "")
    for change in propagation:
        _mount("", target, "", change, "")


def _mount(device: str, target: Path, kind: str, flags: int, data: str) -> None:
    result = _libc.mount(
        os.fsencode(device) or b"none",
        os.fsencode(target),
        kind.encode() or None,
        ctypes.c_ulong(flags),
        data.encode() or None,
    )
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))


def unmount(target: Path) -> None:
    """Unmount, lazily when it is busy; quiet when nothing is mounted there."""
    if _libc.umount2(os.fsencode(target), 0) == 0:
        return
    _libc.umount2(os.fsencode(target), _MNT_DETACH)


def is_mounted(target: Path) -> bool:
    """Whether something is mounted exactly there."""
    return str(target) in _mount_points()


def unmount_all(target: Path) -> None:
    """Unmount everything there and below; raises OSError when something stays, since its content is somebody else's."""
    for _ in range(64):
        found = [where for where in _mount_points() if where == str(target) or where.startswith(f"{target}/")]
        if not found:
            return
        for where in reversed(found):
            unmount(Path(where))
    raise OSError(errno.EBUSY, "something stays mounted there", str(target))


def _mount_points() -> list[str]:
    """Return where something is mounted, the oldest first."""
    points = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        where = line.split(" ", 5)[4]
        if "\\" in where:
            where = where.encode().decode("unicode_escape").encode("latin-1").decode(errors="surrogateescape")
        points.append(where)
    return points
