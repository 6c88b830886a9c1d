"""libvirt URIs that name another host: what of them is understood, and which cannot be served.

Such a host is reached by SSH alone: libvirt itself and the guest's SSH port both go through one connection to its sshd.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from moorage_host.errors import ErrorCode, HostError

SSH = ("qemu+ssh", "qemu+libssh", "qemu+libssh2")
PARAMETERS = ("keyfile", "known_hosts", "socket")
_FORM = "qemu+ssh://[user@]host[:port]/system or …/session, with ?keyfile=, &known_hosts= and &socket= as wanted"
# What libvirt's own client would take and is left out here: why, in words for the user.
_REFUSED = {
    "no_verify": "host keys are always checked: connect once with ssh to make the host known",
    "known_hosts_verify": "host keys are always checked: connect once with ssh to make the host known",
    "command": "Moorage speaks SSH itself; what an ssh program would add belongs into ~/.ssh/config",
    "proxy": "`virt-ssh-helper` is used where it is installed, and the socket where it is not",
    "netcat": "`virt-ssh-helper` is used where it is installed, and the socket where it is not",
}


@dataclass(frozen=True)
class RemoteUri:
    """A libvirt on another host. `user` "" and `port` 0 stand for what ssh would take; `socket` is libvirt's socket over there."""

    host: str
    user: str
    port: int
    driver: str
    keyfile: Path | None = None
    known_hosts: Path | None = None
    socket: str = ""

    @property
    def session(self) -> bool:
        """Whether it is the remote user's own libvirt rather than the system's."""
        return self.driver == "qemu:///session"


def parse(uri: str) -> RemoteUri | None:
    """The other host that `uri` names, or None when it names this one. Raises HostError for what cannot be served. Pure."""
    try:
        parts = urlsplit(uri)
        port = parts.port or 0
        parameters = {
            name: values[-1] for name, values in parse_qs(parts.query, strict_parsing=bool(parts.query)).items()
        }
    except ValueError as error:
        raise _invalid(f"{uri} is no libvirt URI: {error}") from None
    if parts.scheme == "qemu+unix" and parts.hostname is None:
        return None
    if "+" not in parts.scheme and parts.hostname is None:
        return None
    if parts.scheme not in SSH:
        raise HostError(
            f"{uri} cannot be used: the guest is reached through the other host's SSH server, so libvirt is too",
            hint=f"give {_FORM}",
            code=ErrorCode.INVALID,
        )
    if not parts.hostname:
        raise _invalid(f"{uri} names no host")
    if parts.path not in ("/system", "/session"):
        raise _invalid(f"{uri} does not end in /system or /session")
    for name in parameters:
        if name not in PARAMETERS:
            why = _REFUSED.get(name)
            raise _invalid(f"{uri}: the parameter {name} is not taken" + (f" ({why})" if why else ""))
    if parts.password is not None:
        raise HostError(
            "a password in the libvirt URI would be kept in the settings for all programs to read",
            hint="use a key, in ssh-agent or by ?keyfile=",
            code=ErrorCode.INVALID,
        )
    return RemoteUri(
        host=parts.hostname,
        user=unquote(parts.username or ""),
        port=port,
        driver=f"qemu://{parts.path}",
        keyfile=_path(uri, "keyfile", parameters),
        known_hosts=_path(uri, "known_hosts", parameters),
        socket=parameters.get("socket", ""),
    )


def same_place(one: str, other: str) -> bool:
    """Whether two URIs lead to the same machines, by whatever way. Pure; HostError for what cannot be served."""
    first, second = parse(one), parse(other)
    if first is None or second is None:
        return first is second
    if first.session and first.user != second.user:
        return False
    return (first.host, first.driver) == (second.host, second.driver)


def _path(uri: str, name: str, parameters: dict[str, str]) -> Path | None:
    if name not in parameters:
        return None
    path = Path(parameters[name]).expanduser()
    if not path.is_absolute():
        raise _invalid(f"{uri}: {name} is not an absolute path")
    return path


def _invalid(message: str) -> HostError:
    return HostError(message, hint=f"give {_FORM}", code=ErrorCode.INVALID)
