"""Which capabilities a container gets: Docker's default set, --cap-add, --cap-drop, --privileged.

Names are kernel names with the CAP_ prefix. What the daemon itself lacks cannot be given and is left out.
"""

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from moorage_guest.errors import InvalidParameter


def _names(words: str) -> tuple[str, ...]:
    return tuple("CAP_" + word for word in words.split())


#: In the order of their numbers in linux/capability.h.
ALL = _names(
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
    "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT "
    "SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL "
    "SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
)

#: What a container has when nothing is asked for.
DEFAULT = _names(
    "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT "
    "KILL AUDIT_WRITE"
)


@cache
def available() -> frozenset[str]:
    """Return the capabilities in this process's bounding set: no container can have more."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^CapBnd:\s*([0-9a-f]+)$", status, re.MULTILINE)
    bits = int(found.group(1), 16) if found else 0
    return frozenset(name for number, name in enumerate(ALL) if bits >> number & 1)


def normalize(names: Iterable[str]) -> list[str]:
    """Return names in upper case with the CAP_ prefix; "ALL" stays. Raises InvalidParameter on an unknown one."""
    result = []
    for name in names:
        upper = name.upper()
        if upper == "ALL":
            result.append(upper)
            continue
        if not upper.startswith("CAP_"):
            upper = "CAP_" + upper
        if upper not in ALL:
            raise InvalidParameter(f'invalid capability: "{name}"')
        result.append(upper)
    return result


def granted(add: Iterable[str], drop: Iterable[str], *, privileged: bool) -> list[str]:
    """Return the bounding set for a container. Raises InvalidParameter on an unknown name."""
    adds, drops = normalize(add), normalize(drop)
    here = available()
    if privileged:
        return [name for name in ALL if name in here]
    if "ALL" in adds:
        wanted = [name for name in ALL if name not in drops]
    elif "ALL" in drops:
        wanted = adds
    else:
        wanted = [name for name in DEFAULT if name not in drops]
        wanted += [name for name in adds if name not in wanted and name not in drops]
    return [name for name in dict.fromkeys(wanted) if name in here]


def process_capabilities(bounding: list[str], uid: int) -> dict[str, list[str]]:
    """Return the OCI capabilities object: root has all it may have, another user only the bounding set."""
    if uid == 0:
        return {"bounding": bounding, "effective": bounding, "permitted": bounding}
    return {"bounding": bounding}
