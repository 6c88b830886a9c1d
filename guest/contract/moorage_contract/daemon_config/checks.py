"""Checks of single texts: addresses, mirrors, labels, sockets. Each returns the normal form or raises Mistake in dockerd's words."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from moorage_contract.daemon_config.errors import Mistake
from moorage_contract.daemon_config.kinds import Check

_DOMAIN = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*\.?", re.IGNORECASE | re.ASCII)
_INDEX_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.:-]+)", re.IGNORECASE | re.ASCII)


def ip_address(value: str) -> str:
    """An IPv4 or IPv6 address without brackets."""
    try:
        return str(ipaddress.ip_address(value.strip()))
    except ValueError:
        raise Mistake(f"IP address is not correctly formatted: {value}") from None


def host_gateway(value: str) -> str:
    """An address that `host-gateway` stands for; no network and no host name."""
    try:
        return str(ipaddress.ip_address(value.strip()))
    except ValueError:
        raise Mistake(f'ParseAddr("{value}"): unable to parse IP') from None


def version_of(version: int, key: str) -> Check:
    """A check for an address of one IP version."""

    def verify(value: str) -> str:
        address = ipaddress.ip_address(ip_address(value))
        if address.version != version:
            raise Mistake(f"invalid {key}: {value} is no IPv{version} address")
        return str(address)

    return verify


def interface_of(version: int, key: str) -> Check:
    """A check for an address with its prefix length, as --bip takes: an address of a host, not of the network itself."""
    example = "192.168.1.1/24" if version == 4 else "fd00:1::1/64"

    def verify(value: str) -> str:
        try:
            if "/" not in value:
                raise ValueError
            interface = ipaddress.ip_interface(value)
        except ValueError:
            raise Mistake(
                f"invalid {key}: invalid CIDR address: {value}; write an address with its prefix length, such as {example}"
            ) from None
        if interface.version != version:
            raise Mistake(f"invalid {key}: {value} is no IPv{version} address")
        last = interface.network.max_prefixlen - 1
        if interface.network.prefixlen < last and interface.ip == interface.network.network_address:
            first = f"{interface.network.network_address + 1}/{interface.network.prefixlen}"
            raise Mistake(
                f"invalid {key}: {value} is the address of the network itself; write the bridge's own, such as {first}"
            )
        return str(interface)

    return verify


def subnet_of(version: int, key: str) -> Check:
    """A check for a network in CIDR form."""

    def verify(value: str) -> str:
        try:
            if "/" not in value:
                raise ValueError
            network = ipaddress.ip_network(value, strict=False)
        except ValueError:
            raise Mistake(f"invalid {key}: invalid CIDR address: {value}") from None
        if network.version != version:
            raise Mistake(f"invalid {key}: {value} is no IPv{version} subnet")
        return str(network)

    return verify


def dns_search(value: str) -> str:
    """A domain, or `.` for none."""
    domain = value.strip()
    if domain != "." and (
        len(domain) > 255 or not re.search("[a-z]", domain, re.IGNORECASE) or not _DOMAIN.fullmatch(domain)
    ):
        raise Mistake(f"{value} is not a valid domain")
    return domain


def label(value: str) -> str:
    """key=value."""
    if "=" not in value or value.startswith("="):
        raise Mistake(f"bad attribute format: {value}")
    return value


def mirror(value: str) -> str:
    """A registry mirror's address, with a slash at its end."""
    scheme, found, _ = value.partition("://")
    if not found or not scheme:
        raise Mistake(f"invalid mirror: no scheme specified for \"{value}\": must use either 'https://' or 'http://'")
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError as error:
        raise Mistake(f'invalid mirror: "{value}" is not a valid URI: {error}') from None
    if parts.scheme not in ("http", "https"):
        raise Mistake(
            f"invalid mirror: unsupported scheme \"{scheme}\" in \"{value}\": must use either 'https://' or 'http://'"
        )
    if parts.query or parts.fragment:
        raise Mistake(f'invalid mirror: query or fragment at end of the URI "{value}"')
    if parts.username is not None:
        masked = value.replace(parts.netloc, f"{parts.username}:xxxxx@{parts.hostname}" + (f":{port}" if port else ""))
        raise Mistake(f'invalid mirror: username/password not allowed in URI "{masked}"')
    if not parts.hostname:
        raise Mistake(f'invalid mirror: "{value}" is not a valid URI: no host')
    return value.removesuffix("/") + "/"


def index_name(value: str) -> str:
    """A registry's host[:port], or a network in CIDR form."""
    name = value.strip().removeprefix("http://").removeprefix("https://")
    if name == "index.docker.io":
        name = "docker.io"
    if "/" in name:
        try:
            return str(ipaddress.ip_network(name, strict=False))
        except ValueError:
            raise Mistake(
                f"invalid index name ({value}): a registry's host and port, or a network such as 10.0.0.0/8, is expected"
            ) from None
    if name.startswith("-") or name.endswith("-"):
        raise Mistake(f"invalid index name ({value}). Cannot begin or end with a hyphen")
    if not _INDEX_HOST.fullmatch(name):
        raise Mistake(f"invalid index name ({value})")
    return name


def host(value: str) -> str:
    """A socket to listen on: unix://PATH, tcp://HOST:PORT or fd://."""
    text = value.strip()
    if "://" not in text:
        text = f"tcp://{text}"
    scheme, _, rest = text.partition("://")
    if scheme == "unix":
        if not (rest or "/").startswith("/"):
            raise Mistake(f"invalid bind address ({value}): write an absolute path: unix:///run/moorage.sock")
        return text
    if scheme == "fd":
        return text
    if scheme != "tcp":
        raise Mistake(f"invalid bind address format: {value}")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise Mistake(f"invalid bind address ({value}): its port is no number up to 65535") from None
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise Mistake(f"invalid bind address ({value}): should not contain a path element")
    if port == 0:
        raise Mistake(f"invalid bind address ({value}): port 0 is no port to listen on")
    return text


def generic_resource(value: str) -> str:
    """key=value of a swarm resource."""
    key, found, item = value.partition("=")
    if not found or not key or not item:
        raise Mistake(f"invalid node-generic-resource: {value}: expected key=value")
    return value


def exec_option(value: str) -> str:
    """opt=value; of the options only native.cgroupdriver=cgroupfs is to be had."""
    key, found, item = value.partition("=")
    key, item = key.strip().lower(), item.strip()
    if not found or not key or not item:
        raise Mistake(f"invalid exec-opt ({value}): must be formatted 'opt=value'")
    if key == "isolation":
        raise Mistake(f"invalid exec-opt ({value}): option '{key}' is only supported on windows")
    if key != "native.cgroupdriver":
        raise Mistake(f"invalid exec-opt ({value}): unknown option: '{key}'")
    if item != "cgroupfs":
        raise Mistake(
            f"invalid exec-opt ({value}): the machine runs no systemd, so only native.cgroupdriver=cgroupfs is supported"
        )
    return f"{key}={item}"


def storage_option(value: str) -> str:
    """overlay2.override_kernel_check, which says nothing on any kernel of today; no other option."""
    key, found, _ = value.partition("=")
    if not found:
        raise Mistake(f"unable to parse key/value option: {value}")
    if key.lower() not in ("overlay2.override_kernel_check", "overlay.override_kernel_check"):
        raise Mistake(
            f"overlay2: unknown option {key}; a size for containers' layers is not supported, the data disk is the limit"
        )
    return value


def absolute(value: str) -> str:
    """An absolute path."""
    if not value.startswith("/") or "\0" in value:
        raise Mistake(f"{value} is no absolute path")
    return value


def default_ipc(value: str) -> str:
    """private or shareable."""
    if value in ("private", "shareable"):
        return value
    if value in ("host", "none") or value.startswith("container:"):
        raise Mistake(f'IPC mode "{value}" is not supported as default value; use "shareable" or "private"')
    raise Mistake(f'default IPC mode setting ({value}) is invalid; use "shareable" or "private"')


def default_cgroupns(value: str) -> str:
    """private or host."""
    if value not in ("private", "host"):
        raise Mistake(f'invalid default cgroup namespace ({value}): use "host" or "private"')
    return value


def remap(value: str) -> str:
    """Whose subordinate users and groups containers get: "default", or a user with or without a group, by name or number."""
    words = value.split(":")
    if value and (len(words) > 2 or not all(words)):
        raise Mistake(
            f'Invalid user/group specification in --userns-remap: "{value}"; write "default", or user, user:group, uid or uid:gid'
        )
    return value


def storage_driver(value: str) -> str:
    """overlay2, the one driver there is."""
    if value != "overlay2":
        raise Mistake(f"driver not supported: {value}; overlay2 is the storage driver of this engine")
    return value


def log_driver(value: str) -> str:
    """One of the built-in log drivers."""
    if value not in ("json-file", "local", "none"):
        raise Mistake(f"logger: no log driver named '{value}' is registered; json-file, local and none are")
    return value


def cgroup_parent(value: str) -> str:
    """A path in the cgroup hierarchy that does not climb out of it."""
    if ".." in value.split("/") or "\0" in value:
        raise Mistake(f"invalid cgroup-parent: {value} climbs out of the hierarchy")
    if value.endswith(".slice"):
        raise Mistake(
            f"cgroup-parent for systemd cgroup should be used with the systemd driver only: {value}; write a path such as /containers"
        )
    return value
