"""Chooses the image of an index that fits this machine, or the platform somebody asked for."""

import json
import platform as host
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moorage_guest.errors import InvalidParameter
from moorage_guest.sysinfo import oci_architecture

_SYSTEMS = frozenset(
    {
        "aix", "android", "darwin", "dragonfly", "freebsd", "hurd", "illumos", "ios", "js", "linux", "nacl", "netbsd",
        "openbsd", "plan9", "solaris", "windows", "zos",
    }
)  # fmt: skip
_ARCHITECTURES = frozenset(
    {
        "386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc", "ppc64", "ppc64le",
        "riscv", "riscv64", "s390", "s390x", "sparc", "sparc64", "wasm",
    }
)  # fmt: skip
_COMPONENT = "^[A-Za-z0-9_.-]+$"
_ALIASES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "armhf": "arm", "i386": "386"}


#: What the kernel hands to an emulator (binfmt_misc): a file for each format, by qemu-user's names.
_FORMATS = Path("/proc/sys/fs/binfmt_misc")
_EMULATORS = {"qemu-x86_64": "amd64", "qemu-aarch64": "arm64"}


@dataclass(frozen=True)
class Platform:
    """os/architecture[/variant]."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return f"{self.os}/{self.architecture}" + (f"/{self.variant}" if self.variant else "")

    def matches(self, other: Mapping[str, Any]) -> bool:
        """Whether an image for ``other`` (OCI platform object) is what is wanted."""
        if other.get("os", "linux") != self.os or other.get("architecture") != self.architecture:
            return False
        theirs = _variant(self.architecture, str(other.get("variant") or ""))
        mine = _variant(self.architecture, self.variant)
        return theirs == mine or (self.architecture == "arm" and theirs <= mine)


def _variant(architecture: str, variant: str) -> str:
    defaults = {"arm64": "v8", "arm": "v7", "amd64": "v1"}
    return variant or defaults.get(architecture, "")


def this_platform() -> Platform:
    """The platform of the machine this runs on."""
    return Platform("linux", oci_architecture(), "v7" if host.machine() == "armv7l" else "")


def runnable_platforms() -> list[Platform]:
    """This machine's platform, then those whose programs the kernel hands to an emulator now."""
    here = this_platform()
    emulated = (Platform("linux", name) for format, name in _EMULATORS.items() if (_FORMATS / format).exists())
    return [here, *(platform for platform in emulated if platform.architecture != here.architecture)]


def parse(text: str) -> Platform:
    """Parse ``linux/arm64``, ``arm64`` or ``linux``. Raises InvalidParameter."""
    parts = text.split("/")
    for part in parts:
        if not re.fullmatch(_COMPONENT, part):
            raise InvalidParameter(
                f'"{part}" is an invalid component of "{text}": platform specifier component must match "{_COMPONENT}": '
                "invalid argument"
            )
    parts = [part.lower() for part in parts]
    if len(parts) > 3:
        raise InvalidParameter(f'"{text}": cannot parse platform specifier: invalid argument')
    parts[0] = {"macos": "darwin"}.get(parts[0], parts[0])
    if len(parts) == 1:
        if parts[0] in _SYSTEMS:
            return Platform(parts[0], this_platform().architecture)
        if _ALIASES.get(parts[0], parts[0]) not in _ARCHITECTURES:
            raise InvalidParameter(f'"{text}": unknown operating system or architecture: invalid argument')
        parts = ["linux", parts[0]]
    return Platform(parts[0], _ALIASES.get(parts[1], parts[1]), parts[2] if len(parts) == 3 else "")


def choose(manifests: Iterable[dict[str, Any]], wanted: Platform | None) -> dict[str, Any] | None:
    """Return the descriptor of the image for a platform (this machine's by default); None when there is none.

    An entry without a platform is taken when nothing fits better; attestations never are.
    """
    platform = wanted or this_platform()
    fallback = None
    for descriptor in manifests:
        offered = descriptor.get("platform")
        if (descriptor.get("annotations") or {}).get("vnd.docker.reference.type") == "attestation-manifest":
            continue
        if not isinstance(offered, dict):
            fallback = fallback or descriptor
        elif platform.matches(offered):
            return descriptor
    return fallback if wanted is None else None


def of_query(text: str) -> Platform | None:
    """Read the parameter ``platform``: a JSON object of OCI, or os/architecture; "" is none. Raises InvalidParameter."""
    if not text:
        return None
    return from_json(text) if text.startswith("{") else parse(text)


def from_json(text: str) -> Platform:
    """Parse OCI's platform object. Raises InvalidParameter."""
    try:
        value = json.loads(text)
        return Platform(str(value.get("os") or "linux"), str(value["architecture"]), str(value.get("variant") or ""))
    except (ValueError, KeyError, AttributeError) as error:
        raise InvalidParameter(f"invalid platform {text!r}: {error!r}") from None
