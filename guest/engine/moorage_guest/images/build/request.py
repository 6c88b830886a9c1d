"""What a client asks of a build in BuildKit's way: the attributes of its frontend, read and checked."""

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moorage_guest.errors import InvalidParameter
from moorage_guest.images import names, platforms

#: What a step of a build may be allowed; anything else is never granted.
NETWORK_HOST = "network.host"
SECURITY_INSECURE = "security.insecure"

_SIZES = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@dataclass(frozen=True)
class Request:
    """One build. ``host`` are fields of HostConfig for the containers of RUN, ``contexts`` other places to copy from, by name."""

    filename: str = "Dockerfile"
    target: str = ""
    build_args: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    contexts: Mapping[str, str] = field(default_factory=dict)
    context: str = ""
    """Address of the main context; "" for the client's folder."""
    context_name: str = "context"
    dockerfile_name: str = "dockerfile"
    own_dockerfile: bool = False
    """Whether the Dockerfile is the client's though the context is elsewhere."""
    syntax: str = ""
    keep_git: bool = False
    """Whether a context from a git repository has the repository itself in it."""
    platform: platforms.Platform | None = None
    no_cache: bool = False
    no_cache_stages: frozenset[str] = frozenset()
    pull: bool = False
    network: str = ""
    hostname: str = ""
    host: Mapping[str, Any] = field(default_factory=dict)
    cache_from: tuple[str, ...] = ()
    entitlements: frozenset[str] = frozenset()

    @staticmethod
    def of(
        attributes: Mapping[str, str],
        imports: Iterable[tuple[str, Mapping[str, str]]] = (),
        entitlements: Sequence[str] = (),
    ) -> "Request":
        """Read the attributes of frontend dockerfile.v0 and the caches to take from. Raises InvalidParameter."""
        for name in entitlements:
            if name == SECURITY_INSECURE:
                raise InvalidParameter(
                    f"{name} is not allowed: run the command in a container with --privileged instead"
                )
        wanted = [each for each in attributes.get("platform", "").split(",") if each]
        if len(wanted) > 1:
            raise InvalidParameter(
                "Multi-platform build is not supported for the docker driver.\nSwitch to a different driver, or build for one "
                "platform at a time"
            )
        given = attributes.get("no-cache")
        stages = frozenset(each.strip().lower() for each in (given or "").split(",") if each.strip())
        return Request(
            filename=attributes.get("filename") or "Dockerfile",
            target=attributes.get("target", ""),
            build_args=_prefixed(attributes, "build-arg:"),
            labels=_prefixed(attributes, "label:"),
            contexts=_prefixed(attributes, "context:"),
            context=attributes.get("context", ""),
            context_name=attributes.get("contextkey") or "context",
            dockerfile_name=attributes.get("dockerfilekey") or "dockerfile",
            own_dockerfile="dockerfilekey" in attributes,
            syntax=attributes.get("build-arg:BUILDKIT_SYNTAX", ""),
            platform=platforms.parse(wanted[0]) if wanted else None,
            no_cache=given is not None and not stages,
            no_cache_stages=stages,
            pull=attributes.get("image-resolve-mode") == "pull",
            network=_network(attributes.get("force-network-mode", "")),
            keep_git=attributes.get("build-arg:BUILDKIT_CONTEXT_KEEP_GIT_DIR", "").lower() in ("1", "t", "true"),
            hostname=attributes.get("hostname") or attributes.get("build-arg:BUILDKIT_SANDBOX_HOSTNAME", ""),
            host=_host(attributes),
            cache_from=tuple(_caches(attributes, imports)),
            entitlements=frozenset(entitlements),
        )

    def named_context(self, name: str) -> str | None:
        """Return the address that a name stands for by --build-context; None when it stands for itself."""
        if name in self.contexts:
            return self.contexts[name]
        try:
            reference = names.parse(name).with_default_tag()
        except InvalidParameter:
            return None
        for known in (reference.familiar, reference.familiar.removesuffix(":latest"), str(reference)):
            if known in self.contexts:
                return self.contexts[known]
        return None


def _prefixed(attributes: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {key.removeprefix(prefix): value for key, value in attributes.items() if key.startswith(prefix)}


def _network(mode: str) -> str:
    if mode not in ("", "default", "sandbox", "host", "none"):
        raise InvalidParameter(f"network mode {mode!r} not supported by buildkit: default, host and none are")
    return "" if mode in ("default", "sandbox") else mode


def _host(attributes: Mapping[str, str]) -> dict[str, Any]:
    host: dict[str, Any] = {}
    if text := attributes.get("shm-size"):
        host["ShmSize"] = _bytes("shm-size", text)
    if text := attributes.get("cgroup-parent"):
        host["CgroupParent"] = text
    if text := attributes.get("add-hosts"):
        host["ExtraHosts"] = [re.sub("=", ":", each, count=1) for each in _fields(text)]
    if text := attributes.get("ulimit"):
        host["Ulimits"] = [_ulimit(each) for each in _fields(text)]
    return host


def _fields(text: str) -> list[str]:
    return [each.strip() for row in csv.reader([text]) for each in row if each.strip()]


def _bytes(what: str, text: str) -> int:
    match = re.fullmatch(r"(\d+)\s*([bkmgt]?)i?b?", text.strip().lower())
    if match is None:
        raise InvalidParameter(f"invalid size for {what}: {text!r}")
    return int(match[1]) * _SIZES[match[2] or "b"]


def _ulimit(text: str) -> dict[str, Any]:
    match = re.fullmatch(r"(\w+)=(-?\d+)(?::(-?\d+))?", text)
    if match is None:
        raise InvalidParameter(f"invalid ulimit argument: {text}")
    return {"Name": match[1], "Soft": int(match[2]), "Hard": int(match[3] or match[2])}


def _caches(attributes: Mapping[str, str], imports: Iterable[tuple[str, Mapping[str, str]]]) -> Iterable[str]:
    """Yield the images to take cached steps from; what is of another kind or has no name is passed over, as a cache may be."""
    for kind, own in imports:
        if kind == "registry" and own.get("ref"):
            yield own["ref"]
    if text := attributes.get("cache-imports"):
        try:
            entries = json.loads(text)
        except ValueError as error:
            raise InvalidParameter(f"failed to unmarshal cache-imports: {error}") from None
        for entry in entries if isinstance(entries, list) else ():
            item: dict[str, Any] = (
                {str(key).lower(): value for key, value in entry.items()} if isinstance(entry, dict) else {}
            )
            reference = (item.get("attrs") or {}).get("ref")
            if item.get("type") == "registry" and reference:
                yield str(reference)
    yield from _fields(attributes.get("cache-from", ""))
