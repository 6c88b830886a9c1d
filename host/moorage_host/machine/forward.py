"""The one host forward of the machine's user network: a port on 127.0.0.1 to the guest's sshd.

libvirt's <interface type='user'> has no host forwards, so it is added, and found again, over QEMU's monitor.
"""

from __future__ import annotations

import re
import socket

from moorage_host.errors import ErrorCode, HostError
from moorage_host.machine.domain_xml import NETDEV
from moorage_host.machine.library import libvirt, libvirt_qemu

GUEST_PORT = 22
_FORWARD = re.compile(rf"TCP\[HOST_FORWARD\]\s+\S+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+{GUEST_PORT}\s")


def ensure(domain: libvirt.virDomain, preferred: int = 0) -> int:
    """The port on 127.0.0.1 that leads to the guest's sshd, added when it is not there. Blocks; run in libvirt's thread."""
    for _attempt in range(20):
        present = find(domain)
        if present:
            return present
        port = preferred if preferred and _free(preferred) else _any_port()
        _monitor(domain, f"hostfwd_add {NETDEV} tcp:127.0.0.1:{port}-:{GUEST_PORT}")
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


def _free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _any_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
