"""The one host forward of the machine's user network: a port on 127.0.0.1 to the guest's sshd.

libvirt's <interface type='user'> has no host forwards, so it is added, and found again, over QEMU's monitor.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Callable

from moorage_host.errors import ErrorCode, HostError
from moorage_host.machine.domain_xml import NETDEV
from moorage_host.machine.library import libvirt, libvirt_qemu

GUEST_PORT = 22
_FORWARD = re.compile(rf"TCP\[HOST_FORWARD\]\s+\S+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+{GUEST_PORT}\s")


def ensure(domain: libvirt.virDomain, unused: Callable[[int], int], preferred: int = 0) -> int:
    """The port on QEMU's 127.0.0.1 that leads to the guest's sshd, added when it is not there. Blocks; run in libvirt's thread.

    `unused` gives a port to try, its argument when that will do.
    """
    for _attempt in range(20):
        present = find(domain)
        if present:
            return present
        _monitor(domain, f"hostfwd_add {NETDEV} tcp:127.0.0.1:{unused(preferred)}-:{GUEST_PORT}")
        preferred = 0
    raise HostError(
        "QEMU takes no forward to the guest's SSH port",
        hint="are all ports of 127.0.0.1 in use?",
        code=ErrorCode.CONFLICT,
    )


def find(domain: libvirt.virDomain) -> int | None:
    """The port that leads to the guest's sshd now, if any."""
    match = _FORWARD.search(_monitor(domain, "info usernet"))
    return int(match.group(1)) if match else None


def _monitor(domain: libvirt.virDomain, command: str) -> str:
    return str(libvirt_qemu.qemuMonitorCommand(domain, command, libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP))


def unused_port(preferred: int) -> int:
    """A port of this host's 127.0.0.1 that nobody has, `preferred` when it is one."""
    for port in (preferred, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise HostError("no port of 127.0.0.1 is free", code=ErrorCode.CONFLICT)
