"""System calls that Python 3.11 lacks, for agent and shim."""

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
import termios
from pathlib import Path

CLONE_NEWNS = 0x00020000
MS_REC = 0x4000
MS_SLAVE = 1 << 19
MNT_DETACH = 2
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36
FITRIM = 0xC0185879

#: What a container's log pipe holds, fixed: live restore promises exactly this much while no daemon reads.
PIPE_SIZE = 64 * 1024

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def become_subreaper() -> None:
    """Adopt orphans among our descendants."""
    _check(_libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl(PR_SET_CHILD_SUBREAPER)")


def set_name(name: str) -> None:
    """Set the name that ps shows, 15 bytes of it."""
    _check(_libc.prctl(PR_SET_NAME, ctypes.c_char_p(name.encode()[:15]), 0, 0, 0), "prctl(PR_SET_NAME)")


def is_hybrid_cgroup() -> bool:
    """Whether cgroup v1 hierarchies are used beside an (unused) v2 one, which crun refuses."""
    return Path("/sys/fs/cgroup/unified/cgroup.controllers").exists()


def hide_unified_cgroup() -> None:
    """Give this process a mount namespace of its own without the v2 hierarchy; only for a child about to exec."""
    _check(_libc.unshare(CLONE_NEWNS), "unshare(CLONE_NEWNS)")
    _check(_libc.mount(b"none", b"/", None, MS_REC | MS_SLAVE, None), "make / a slave mount")
    if _libc.umount2(b"/sys/fs/cgroup/unified", MNT_DETACH) != 0 and ctypes.get_errno() != errno.EINVAL:
        _check(-1, "unmount /sys/fs/cgroup/unified")


def pipe_of_fixed_size() -> tuple[int, int]:
    """Return (read end, write end) of a pipe of PIPE_SIZE."""
    read, write = os.pipe2(os.O_CLOEXEC)
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    return read, write


def bytes_waiting(fd: int) -> int:
    """Return how many bytes could be read from a pipe."""
    return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"))[0])


def set_terminal_size(fd: int, rows: int, columns: int) -> None:
    """Set a pty's size; its foreground processes get SIGWINCH."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def trim(path: Path) -> int:
    """Discard unused blocks of the file system at `path` (may take minutes); return how many bytes."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        answer = fcntl.ioctl(folder, FITRIM, struct.pack("QQQ", 0, 2**64 - 1, 0))
    finally:
        os.close(folder)
    return int(struct.unpack("QQQ", answer)[1])


def start_time(pid: int) -> int:
    """Return a process's start time in clock ticks since boot: with the pid it names a process. 0 when there is none."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return 0


def state(pid: int) -> str:
    """Return the letter of a process's state; "" when there is none."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def cgroup_folder(pid: int, controller: str, fallback: str) -> Path | None:
    """Return the cgroup folder of a process: on v2 its only one, on v1 that of `controller`.

    `fallback` is its path below the hierarchy's root, for a process that is gone already ("" when not known).
    """
    root = Path("/sys/fs/cgroup")
    unified = (root / "cgroup.controllers").exists()
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            number, names, path = line.split(":", 2)
            if (number == "0") if unified else (controller in names.split(",")):
                return (root if unified else root / controller) / path.lstrip("/")
    if fallback:
        return (root if unified else root / controller) / fallback.lstrip("/")
    return None


def is_frozen(folder: Path | None) -> bool:
    """Whether a cgroup (v2, or v1's freezer) is frozen."""
    if folder is None:
        return False
    with contextlib.suppress(OSError):
        return "frozen 1" in (folder / "cgroup.events").read_text()
    with contextlib.suppress(OSError):
        return (folder / "freezer.state").read_text().strip() in ("FROZEN", "FREEZING")
    return False


def was_oom_killed(folder: Path | None) -> bool:
    """Whether the kernel has killed for memory in a cgroup (v2, or v1's memory)."""
    if folder is None:
        return False
    for name in ("memory.events", "memory.oom_control"):
        with contextlib.suppress(OSError, ValueError):
            for line in (folder / name).read_text().splitlines():
                key, _, value = line.partition(" ")
                if key == "oom_kill":
                    return int(value) > 0
    return False
