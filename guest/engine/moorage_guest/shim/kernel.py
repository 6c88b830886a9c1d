"""System calls that Python 3.11 lacks, for agent and shim."""

import ctypes
import errno
import fcntl
import functools
import os
import stat
import struct
import termios
from collections.abc import Iterable
from pathlib import Path

CLONE_NEWNS = 0x00020000
MS_REC = 0x4000
MS_SLAVE = 1 << 19
MNT_DETACH = 2
PR_SET_CHILD_SUBREAPER = 36
FITRIM = 0xC0185879

AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_OPEN_TREE_CLONE = 1
_MOUNT_ATTR_RDONLY = 1
#: The same on all architectures.
_SYS_OPEN_TREE = 428
_SYS_MOUNT_SETATTR = 442
_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 430, 431, 432
_CLOEXEC = 1
_FSCONFIG_CREATE = 6

#: oom_score_adj of agent, shims and netd, which must not die, and of moored, which may.
KEEP_ALIVE = -900
DAEMON_SCORE = -500

#: What a container's log pipe holds, fixed: live restore promises exactly this much while no daemon reads.
PIPE_SIZE = 64 * 1024

_libc = ctypes.CDLL(None, use_errno=True)


#: glibc's alone.
_malloc_trim = getattr(_libc, "malloc_trim", None)


def give_back() -> None:
    """Give the memory back to the system that is free and kept for later. Blocks for milliseconds, without holding the interpreter."""
    if _malloc_trim is not None:
        _malloc_trim(0)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def become_subreaper() -> None:
    """Adopt orphans among our descendants."""
    _check(_libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl(PR_SET_CHILD_SUBREAPER)")


def set_name(name: str) -> None:
    """Set the name that ps shows, 15 bytes of it. By way of /proc: a call through ctypes costs every shim 100 KB."""
    descriptor = os.open("/proc/self/comm", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, name.encode())
    finally:
        os.close(descriptor)


@functools.cache
def is_hybrid_cgroup() -> bool:
    """Whether cgroup v1 hierarchies are used beside an (unused) v2 one, which crun refuses."""
    return os.access("/sys/fs/cgroup/unified/cgroup.controllers", os.F_OK)


@functools.cache
def is_unified_cgroup() -> bool:
    """Whether there is cgroup v2 alone."""
    return os.access("/sys/fs/cgroup/cgroup.controllers", os.F_OK)


def hide_unified_cgroup() -> None:
    """Give this process a mount namespace of its own without the v2 hierarchy; only for a child about to exec."""
    _check(_libc.unshare(CLONE_NEWNS), "unshare(CLONE_NEWNS)")
    _check(_libc.mount(b"none", b"/", None, MS_REC | MS_SLAVE, None), "make / a slave mount")
    if _libc.umount2(b"/sys/fs/cgroup/unified", MNT_DETACH) != 0 and ctypes.get_errno() != errno.EINVAL:
        _check(-1, "unmount /sys/fs/cgroup/unified")


def open_read_only(path: str) -> int:
    """Return a descriptor (close-on-exec) of a file on a read-only mount of its own, which is in nobody's tree and ends with it.

    Raises OSError: the file is not there, or the kernel is older than 5.12, or mounting is not allowed.
    """
    descriptor = int(_libc.syscall(_SYS_OPEN_TREE, AT_FDCWD, os.fsencode(path), _OPEN_TREE_CLONE | os.O_CLOEXEC))
    if descriptor < 0:
        _check(-1, f"open_tree({path})")
    try:
        attributes = struct.pack("QQQQ", _MOUNT_ATTR_RDONLY, 0, 0, 0)
        _check(
            _libc.syscall(_SYS_MOUNT_SETATTR, descriptor, b"", _AT_EMPTY_PATH, attributes, len(attributes)),
            f"mount_setattr({path})",
        )
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def open_null() -> int:
    """Return a descriptor (close-on-exec) of a null device of its own, which is in nobody's tree and ends with it.

    The machine's own, where the kernel is older than 5.2 or allows no mounts.
    """
    try:
        context = int(_libc.syscall(_SYS_FSOPEN, b"tmpfs", _CLOEXEC))
        if context < 0:
            _check(-1, "fsopen(tmpfs)")
        try:
            _check(_libc.syscall(_SYS_FSCONFIG, context, _FSCONFIG_CREATE, None, None, 0), "fsconfig(tmpfs)")
            folder = int(_libc.syscall(_SYS_FSMOUNT, context, _CLOEXEC, 0))
        finally:
            os.close(context)
        if folder < 0:
            _check(-1, "fsmount(tmpfs)")
        try:
            os.mkdir("dev", dir_fd=folder)  # so that it is called /dev/null
            os.mknod("dev/null", stat.S_IFCHR, os.makedev(1, 3), dir_fd=folder)
            os.chmod("dev/null", 0o666, dir_fd=folder)
            return os.open("dev/null", os.O_RDWR | os.O_CLOEXEC, dir_fd=folder)
        finally:
            os.close(folder)
    except OSError:
        return os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)


def pipe_of_fixed_size() -> tuple[int, int]:
    """Return (read end, write end) of a pipe of PIPE_SIZE."""
    read, write = os.pipe2(os.O_CLOEXEC)
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    return read, write


def set_oom_score(adjustment: int) -> None:
    """Make this process a likelier or less likely victim of memory shortage; quietly nothing where that is not allowed."""
    try:
        descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.write(descriptor, b"%d" % adjustment)
    except OSError:
        pass  # lowering takes CAP_SYS_RESOURCE, which build machines lack
    finally:
        os.close(descriptor)


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


def read_small(path: str) -> bytes:
    """Return a small file's content, b"" when there is none. Without Python's io layers, which would cost every shim memory."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(descriptor, 16384)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def replace_small(path: str, data: bytes) -> None:
    """Replace a file (0600) as a whole; for tmpfs, so nothing is synced."""
    descriptor = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)
    os.rename(path + ".new", path)  # noqa: PTH104 -- see read_small


def give(descriptors: Iterable[int], owner: tuple[int, int]) -> None:
    """Make pipes the root's of a container where that is another user than ours."""
    if owner != (0, 0):
        for descriptor in descriptors:
            os.fchown(descriptor, *owner)


def remove(path: str) -> None:
    """Remove a file; quietly when there is none."""
    try:
        os.unlink(path)  # noqa: PTH108 -- see read_small
    except FileNotFoundError:
        pass


def remove_tree(path: str) -> None:
    """Remove a folder of ours with all that is in it, following no link; what cannot be removed stays."""
    try:
        with os.scandir(path) as entries:
            for entry in list(entries):
                if entry.is_dir(follow_symlinks=False):
                    remove_tree(entry.path)
                else:
                    remove(entry.path)
        os.rmdir(path)  # noqa: PTH106 -- see read_small
    except OSError:
        pass  # it is gone, or in use


def start_time(pid: int) -> int:
    """Return a process's start time in clock ticks since boot: with the pid it names a process. 0 when there is none."""
    fields = read_small(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return int(fields[19]) if len(fields) > 19 else 0


def state(pid: int) -> str:
    """Return the letter of a process's state; "" when there is none."""
    fields = read_small(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return fields[0].decode() if fields else ""


#: Flag of a process that the kernel is taking apart (PF_EXITING in the kernel's sched.h).
_EXITING = 0x4


def is_exiting(pid: int) -> bool:
    """Whether a process is about to end, or has. Its sockets close before its parent hears of its end."""
    fields = read_small(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return len(fields) < 7 or fields[0] in (b"Z", b"X") or bool(int(fields[6]) & _EXITING)


def cgroup_folder(pid: int, controller: str, fallback: str) -> str:
    """Return the cgroup folder of a process: on v2 its only one, on v1 that of `controller`; "" when not known.

    `fallback` is its path below the hierarchy's root, for a process that is gone already ("" when not known).
    """
    root = "/sys/fs/cgroup" if is_unified_cgroup() else f"/sys/fs/cgroup/{controller}"
    for line in read_small(f"/proc/{pid}/cgroup").decode().splitlines():
        number, names, path = line.split(":", 2)
        if (number == "0") if is_unified_cgroup() else (controller in names.split(",")):
            return root + path
    return f"{root}/{fallback.lstrip('/')}" if fallback else ""


def is_frozen(folder: str) -> bool:
    """Whether a cgroup (v2, or v1's freezer) is frozen."""
    if is_unified_cgroup():
        return b"frozen 1" in read_small(folder + "/cgroup.events")
    return read_small(folder + "/freezer.state").strip() in (b"FROZEN", b"FREEZING")


def was_oom_killed(folder: str) -> bool:
    """Whether the kernel has killed for memory in a cgroup (v2, or v1's memory)."""
    name = "/memory.events" if is_unified_cgroup() else "/memory.oom_control"
    for line in read_small(folder + name).splitlines():
        key, _, value = line.partition(b" ")
        if key == b"oom_kill":
            return int(value) > 0
    return False
