"""What only some systems have is called in few named modules, so that the rest is the same on Linux, macOS and Windows."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).parents[3]
SOURCES = {"host": TOP / "host/moorage_host", "gui": TOP / "gui/moorage_gui"}

# Absent on Windows.
POSIX_MODULES = {"fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"}
POSIX_CALLS = {
    *(
        "os.execv",
        "os.execve",
        "os.execvp",
        "os.fork",
        "os.forkpty",
        "os.geteuid",
        "os.getgid",
        "os.getuid",
        "os.killpg",
    ),
    *("os.mkfifo", "os.mknod", "os.setsid", "os.setuid", "os.uname", "os.wait", "os.waitpid", "signal.SIGKILL"),
    *("signal.SIGHUP", "signal.SIGWINCH"),
}
POSIX_PLACES = {
    "host/backend.py": {"fcntl"},  # one backend a user
    "host/cli/docker.py": {"os.execve"},
    "host/cli/gui.py": {"os.execv"},
    "host/link/terminal.py": {"signal.SIGWINCH", "termios", "tty"},
    "host/machine/connection.py": {"os.getgid", "os.getuid"},  # whose libvirt it is
}
# Absent on macOS too.
LINUX_CALLS = {
    *("os.copy_file_range", "os.eventfd", "os.getrandom", "os.memfd_create", "os.pidfd_open", "os.sched_getaffinity"),
    *(
        "os.setns",
        "os.splice",
        "os.unshare",
        "select.epoll",
        "socket.AF_NETLINK",
        "socket.AF_VSOCK",
        "socket.SO_PEERCRED",
    ),
}
LINUX_MODULES = {"ctypes"}
LINUX_PATHS = ("/proc", "/sys/", "/dev/", "/etc/", "/run/", "/var/")
LINUX_PLACES = {
    "host/backend.py": {"/var/lib/moorage/engine.incoming"},  # in the guest
    "host/machine/accelerator.py": {"/dev/kvm", "/etc/machine-id", "/var/lib/dbus/machine-id"},
    "host/machine/connection.py": {
        *("/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock", "/var/run/libvirt/libvirt-sock"),
    },
    "host/machine/domain_xml.py": {"/dev/urandom"},  # macOS has it too
    "host/link/remote_host.py": {
        "/etc/ssh/ssh_known_hosts",  # macOS has it too
        *("/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock", "/var/run/libvirt/libvirt-sock"),  # over there
        *("/run/user/{uid}/libvirt/libvirt-sock", "/run/user/{uid}/libvirt/virtqemud-sock"),
    },
    "host/machine/there.py": {"/var/lib/libvirt/images"},  # on the other host
    "host/machine/saved.py": {"/proc/cpuinfo"},  # else what Python knows of the processor
    "host/session.py": {"/run/moorage/docker.sock"},  # in the guest
    "host/link/agent.py": {"/run/moorage/agent.sock"},  # in the guest
}


def files() -> Iterator[tuple[str, ast.Module]]:
    for name, folder in SOURCES.items():
        for path in sorted(folder.rglob("*.py")):
            yield f"{name}/{path.relative_to(folder)}", ast.parse(path.read_text(encoding="utf-8"))


def names(tree: ast.Module) -> Iterator[str]:
    """Modules that are imported and attributes of them that are used, as `module` and `module.name`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"


def paths(tree: ast.Module) -> Iterator[str]:
    """Texts that name a place of Linux's file system."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(LINUX_PATHS):
            yield node.value


def used(wanted: set[str]) -> dict[str, set[str]]:
    found = {file: wanted.intersection(names(tree)) for file, tree in files()}
    return {file: what for file, what in found.items() if what}


def test_what_windows_lacks_is_called_in_named_places_alone() -> None:
    assert used(POSIX_MODULES | POSIX_CALLS) == POSIX_PLACES


def test_what_macos_lacks_is_not_called() -> None:
    assert used(LINUX_CALLS | LINUX_MODULES) == {}


def test_places_of_linux_are_named_where_it_is_about_linux() -> None:
    found = {file: set(paths(tree)) for file, tree in files()}
    assert {file: what for file, what in found.items() if what} == {
        file: what for file, what in LINUX_PLACES.items() if what
    }


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import fcntl", {"fcntl"}),
        ("def f():\n    import pwd", {"pwd"}),
        ("from os import fork", {"os.fork"}),
        ("import os\nos.fork()", {"os.fork"}),
        ("from moorage_host.link import terminal", set()),
    ],
)
def test_scan_sees_every_way_to_import(text: str, found: set[str]) -> None:
    assert (POSIX_MODULES | POSIX_CALLS).intersection(names(ast.parse(text))) == found
