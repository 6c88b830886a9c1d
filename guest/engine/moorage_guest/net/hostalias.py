"""The machine around the virtual one: its address, by which containers reach what listens there."""

import socket
import struct
from pathlib import Path

#: Names of the host that desktop engines give to containers.
NAMES = ("host.docker.internal", "host.moorage.internal")

#: Where the virtual machine finds what its host has configured; a machine without it is nobody's guest.
MARKER = Path("/sys/firmware/qemu_fw_cfg/by_name/opt/moorage/config")

_ROUTES = Path("/proc/thread-self/net/route")


def machine_host(marker: Path = MARKER, routes: Path = _ROUTES) -> str:
    """Return the host's address as the guest sees it, the gateway of QEMU's user network; "" where there is no host."""
    if not marker.exists():
        return ""
    try:
        lines = routes.read_text().splitlines()[1:]
    except OSError:
        return ""
    for line in lines:
        words = line.split()
        if len(words) > 7 and words[1] == "00000000" and words[7] == "00000000" and words[2] != "00000000":
            return socket.inet_ntoa(struct.pack("=I", int(words[2], 16)))
    return ""
