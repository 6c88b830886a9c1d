"""The files hosts, hostname and resolv.conf that are mounted into a container.

They are written in place, since a bind mount shows the inode it was made from.
"""

import ipaddress
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moorage_guest.errors import InvalidParameter
from moorage_guest.net.config import NetConfig

RESOLVER = "127.0.0.11"
_FALLBACK = ("8.8.8.8", "8.8.4.4")
_RESOLVED = Path("/run/systemd/resolve/resolv.conf")

_LOCAL4 = ("127.0.0.1\tlocalhost",)
_LOCAL6 = (
    "::1\tlocalhost ip6-localhost ip6-loopback",
    "fe00::0\tip6-localnet",
    "ff00::0\tip6-mcastprefix",
    "ff02::1\tip6-allnodes",
    "ff02::2\tip6-allrouters",
)


@dataclass(frozen=True)
class ResolvConf:
    """The three settings of resolv.conf that containers take over."""

    servers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def text(self, note: str = "") -> str:
        """Return the file."""
        lines = ["# Written by Moorage when the container starts."]
        lines += [f"nameserver {server}" for server in self.servers]
        if self.search:
            lines.append(f"search {' '.join(self.search)}")
        if self.options:
            lines.append(f"options {' '.join(self.options)}")
        if note:
            lines += ["", f"# {note}"]
        return "\n".join(lines) + "\n"


def read_resolv_conf(path: Path) -> ResolvConf:
    """Parse a resolv.conf; a missing one is empty."""
    servers: list[str] = []
    search: tuple[str, ...] = ()
    options: list[str] = []
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return ResolvConf()
    for line in text.splitlines():
        words = line.split("#")[0].split(";")[0].split()
        if len(words) < 2:
            continue
        if words[0] == "nameserver" and _is_address(words[1]):
            servers.append(words[1])
        elif words[0] in ("search", "domain"):
            search = tuple(words[1:])
        elif words[0] == "options":
            options += words[1:]
    return ResolvConf(tuple(servers), search, tuple(options))


@dataclass(frozen=True)
class Resolution:
    """How a container resolves names: its resolv.conf and the servers that 127.0.0.11 asks."""

    conf: ResolvConf
    upstream: tuple[str, ...] = ()


def resolution(
    config: NetConfig, dns: Sequence[str], search: Sequence[str], options: Sequence[str], *, embedded: bool
) -> Resolution:
    """Combine a container's options, the daemon's and the host's resolv.conf, the first that says something winning."""
    host = read_resolv_conf(config.resolv_conf)
    if host.servers and all(_is_loopback(server) for server in host.servers) and _RESOLVED.exists() and not embedded:
        host = replace(read_resolv_conf(_RESOLVED), search=host.search or read_resolv_conf(_RESOLVED).search)
    servers = tuple(dns) or config.dns or host.servers
    wanted_search = tuple(search) or config.dns_search or host.search
    wanted_options = tuple(options) or config.dns_opts or host.options
    if wanted_search == (".",):
        wanted_search = ()
    if embedded:
        if not any(option.startswith("ndots:") for option in wanted_options):
            wanted_options = (*wanted_options, "ndots:0")
        return Resolution(ResolvConf((RESOLVER,), wanted_search, wanted_options), servers)
    if not dns and not config.dns:
        servers = tuple(server for server in servers if not _is_loopback(server)) or _FALLBACK
    return Resolution(ResolvConf(servers, wanted_search, wanted_options))


def hosts_text(
    own: Iterable[str], hostname: str, domainname: str, extra: Iterable[tuple[str, str]], *, ipv6: bool
) -> str:
    """Return a hosts file: loopback, the container's own addresses, then extra (name, address) pairs.

    Without ``ipv6`` there is no IPv6 in the container, and no such line on itself.
    """
    lines = [*_LOCAL4, *(_LOCAL6 if ipv6 else ())]
    lines += [own_line(address, hostname, domainname) for address in own if hostname and (ipv6 or ":" not in address)]
    lines += [f"{address}\t{name}" for name, address in extra]
    return "\n".join(lines) + "\n"


def speaks_ipv6(sysctls: Mapping[str, str]) -> bool:
    """Whether a container's kernel parameters leave it IPv6."""
    return all(sysctls.get(f"net.ipv6.conf.{name}.disable_ipv6", "0").strip() in ("0", "") for name in ("all", "lo"))


def own_line(address: str, hostname: str, domainname: str) -> str:
    """Return the line of one of the container's addresses."""
    if domainname:
        return f"{address}\t{hostname}.{domainname} {hostname}"
    short, dot, _ = hostname.partition(".")
    return f"{address}\t{hostname} {short}" if dot else f"{address}\t{hostname}"


def edit_hosts(path: Path, remove: Iterable[str], add: Iterable[str]) -> None:
    """Take the lines of some addresses out of a hosts file and put lines at its end; other lines stay as they are."""
    gone = set(remove)
    try:
        lines = path.read_text(errors="surrogateescape").splitlines()
    except FileNotFoundError:
        lines = []
    kept = [line for line in lines if not line.split() or line.split()[0] not in gone]
    write(path, "\n".join([*kept, *add]) + "\n")


def write(path: Path, text: str) -> None:
    """Replace a file's content, keeping its inode; world-readable, as programs in the container expect."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        data = text.encode(errors="surrogateescape")
        os.write(descriptor, data)
        os.ftruncate(descriptor, len(data))
    finally:
        os.close(descriptor)


def parse_extra_hosts(entries: Iterable[str], gateways: Sequence[str]) -> list[tuple[str, str]]:
    """Turn "name:address" and "name=address" into pairs; host-gateway becomes each of ``gateways``."""
    pairs: list[tuple[str, str]] = []
    for entry in entries:
        name, separator, address = entry.partition("=" if "=" in entry else ":")
        address = address.strip("[]")
        if not separator or not name:
            raise InvalidParameter(f'bad format for add-host: "{entry}"')
        if address == "host-gateway":
            if not gateways:
                raise InvalidParameter("unable to derive the IP value for host-gateway")
            pairs += [(name, gateway) for gateway in gateways]
        elif not _is_address(address):
            raise InvalidParameter(f'invalid IP address in add-host: "{address}"')
        else:
            pairs.append((name, address))
    return pairs


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True


def _is_loopback(text: str) -> bool:
    return _is_address(text) and ipaddress.ip_address(text.partition("%")[0]).is_loopback
