"""libvirt: which driver to open, one thread for its events and one executor for all of its calls."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from moorage_contract.postponed import postponed

from moorage_host.errors import ErrorCode, HostError
from moorage_host.files import private_folder, write_atomically
from moorage_host.link import remote_uri
from moorage_host.machine.library import libvirt, missing

with postponed(
    "moorage_host.link.remote_host"
):  # brings paramiko, which machines of this host do without until they boot
    from moorage_host.link import remote_host

T = TypeVar("T")

# libvirt asks a remote libvirt that often (seconds) whether it is there, and gives it up after that many questions.
KEEPALIVE = (5, 4)

SYSTEM_SOCKETS = ("/run/libvirt/libvirt-sock", "/var/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock")

# The embedded driver serves one user alone, as qemu:///session does: QEMU runs as that user, confined by its own seccomp
# sandbox, and reads files from the user's private folder. /dev/kvm must be judged as that user too: as libvirt-qemu, who
# may not open it where it is 0600, libvirt would probe QEMU again and again without end.
EMBEDDED_CONFIG = """\
user = "+{uid}"
group = "+{gid}"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
max_core = 0
"""


def choose_uri(
    setting: str, embedded_root: Path, *, uid: int | None = None, system_sockets: tuple[str, ...] = SYSTEM_SOCKETS
) -> str:
    """The libvirt URI: the one that was set, else the user's session; for root the system driver, or else the embedded one."""
    if setting != "auto":
        return setting
    uid = os.getuid() if uid is None else uid
    if uid != 0:
        return "qemu:///session"
    if any(_answers(path) for path in system_sockets):
        return "qemu:///system"
    return f"qemu:///embed?root={embedded_root}"


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(2)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


class Connection:
    """One connection to libvirt. All calls run in one thread named for it; `call` awaits them.

    A connection that broke is opened anew by the next call. Of another host, `remote` is the SSH connection that it goes through.
    Raises HostError for the URI of another host that cannot be served.
    """

    def __init__(self, uri: str, embedded_root: Path) -> None:
        self.uri = uri
        self._root = embedded_root
        away = remote_uri.parse(uri)
        self.remote: remote_host.RemoteHost | None = None
        if away is not None:
            self.remote = remote_host.RemoteHost(away, embedded_root.with_name("libvirt.sock"))
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="libvirt")
        self._connection: libvirt.virConnect | None = None

    @property
    def embedded(self) -> bool:
        return ":///embed" in self.uri

    async def call(self, function: Callable[[libvirt.virConnect], T], *, deadline: float = 90) -> T:
        """Run `function` with the open connection in libvirt's thread. libvirt's own errors pass through.

        Raises HostError when there is no connection, when it breaks meanwhile, and when libvirt does not answer within `deadline`
        seconds; the call itself cannot be taken back.
        """
        future = asyncio.get_running_loop().run_in_executor(self._executor, lambda: self._do(function))
        try:
            return await asyncio.wait_for(asyncio.shield(future), deadline)
        except TimeoutError as error:
            raise HostError(
                f"libvirt ({self.uri}) did not answer within {deadline:.0f} s",
                hint="see the backend's log",
                code=ErrorCode.TIMEOUT,
            ) from error

    def _do(self, function: Callable[[libvirt.virConnect], T]) -> T:
        connection = self._open()
        try:
            return function(connection)
        except libvirt.libvirtError as error:
            if connection.isAlive():
                raise
            raise HostError(
                f"the connection to libvirt ({self.uri}) broke: {error}",
                hint="see moorage status",
                code=ErrorCode.UNAVAILABLE,
            ) from error

    def _open(self) -> libvirt.virConnect:
        if self._connection is not None and self._connection.isAlive():
            return self._connection
        if libvirt is None:
            raise HostError(
                f"libvirt is not installed: {missing}",
                hint="install it (Debian: libvirt-daemon-system; macOS: brew install libvirt)",
                code=ErrorCode.UNAVAILABLE,
            )
        _start_events()
        if self.embedded:
            self._prepare_embedded()
        try:
            self._connection = libvirt.open(self.remote.libvirt_uri() if self.remote else self.uri)
            if self.remote is not None:
                self._connection.setKeepAlive(*KEEPALIVE)
        except libvirt.libvirtError as error:
            words = self.remote.said if self.remote is not None else ""
            raise HostError(
                f"libvirt cannot open {self.uri}: {words or error}", hint=self._hint(), code=ErrorCode.UNAVAILABLE
            ) from error
        return self._connection

    def _hint(self) -> str:
        if self.remote is not None:
            return (
                f"is libvirt installed on {self.remote.name} (Debian: libvirt-daemon-system), and may this user use it?"
            )
        if sys.platform == "darwin":
            return "install it: brew install libvirt qemu"
        if self.uri == "qemu:///session" and shutil.which("libvirtd") is None and shutil.which("virtqemud") is None:
            return "install libvirt (Debian: libvirt-daemon-system)"
        return "is libvirt installed (Debian: libvirt-daemon-system) and running? the setting libvirt_uri chooses another connection"

    def _prepare_embedded(self) -> None:
        private_folder(self._root / "etc")
        config = self._root / "etc" / "qemu.conf"
        wanted = EMBEDDED_CONFIG.format(uid=os.getuid(), gid=os.getgid())
        if not config.exists() or config.read_text() != wanted:
            write_atomically(config, wanted)

    def close(self) -> None:
        """Close the connection; the machine goes on. Idempotent."""

        def close() -> None:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            if self.remote is not None:
                self.remote.close()

        self._executor.submit(close).result(timeout=30)
        self._executor.shutdown(wait=True)


_events = threading.Lock()
_events_started = False


def _start_events() -> None:
    """libvirt's event loop, which the embedded driver needs to notice anything: once a process, before the first open."""
    global _events_started
    with _events:
        if _events_started:
            return
        os.environ.setdefault("LIBVIRT_LOG_OUTPUTS", "4:stderr")
        libvirt.registerErrorHandler(
            lambda _context, _error: None, None
        )  # errors arrive as exceptions; stderr stays quiet
        libvirt.virEventRegisterDefaultImpl()
        # Without a timer in it, the loop's poll may wait for ever and miss what other threads add.
        libvirt.virEventAddTimeout(500, lambda _timer, _opaque: None, None)
        threading.Thread(target=_run_events, name="libvirt-events", daemon=True).start()
        _events_started = True


def _run_events() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()
