"""What a client asks of a build: the query of POST /build, read and checked."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from multidict import MultiMapping

from moorage_guest.errors import InvalidParameter
from moorage_guest.images import names, platforms
from moorage_guest.images.registry import Credentials

#: Parameters that become a field of HostConfig of the containers that RUN makes.
_NUMBERS = {
    "memory": "Memory", "memswap": "MemorySwap", "cpushares": "CpuShares", "cpuperiod": "CpuPeriod",
    "cpuquota": "CpuQuota", "shmsize": "ShmSize",
}  # fmt: skip
_TEXTS = {
    "cpusetcpus": "CpusetCpus",
    "cpusetmems": "CpusetMems",
    "cgroupparent": "CgroupParent",
    "networkmode": "NetworkMode",
}


#: Bytes with which a container starts at all.
MIN_MEMORY = 6 << 20


@dataclass(frozen=True)
class BuildOptions:
    """See the API's reference for POST /build."""

    dockerfile: str = "Dockerfile"
    tags: tuple[names.Reference, ...] = ()
    remote: str = ""
    build_args: Mapping[str, str | None] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    target: str = ""
    no_cache: bool = False
    pull: bool = False
    quiet: bool = False
    remove: bool = True
    force_remove: bool = False
    platform: platforms.Platform | None = None
    cache_from: tuple[str, ...] = ()
    host: Mapping[str, Any] = field(default_factory=dict)
    logins: Mapping[str, Credentials] = field(default_factory=dict, repr=False)

    def login(self, reference: names.Reference) -> Credentials:
        """Return the login for a registry."""
        if reference.domain == names.DEFAULT_DOMAIN:
            for key in ("https://index.docker.io/v1/", "index.docker.io", names.DEFAULT_DOMAIN):
                if key in self.logins:
                    return self.logins[key]
            return Credentials()
        for key, own in self.logins.items():
            bare = re.sub(r"^https?://", "", key).partition("/")[0]
            if bare == reference.domain:
                return own
        return Credentials()


def flag(query: Mapping[str, str], name: str, default: bool = False) -> bool:
    """Return a yes or no of the query, as dockerd reads it."""
    if name not in query:
        return default
    return query[name].strip().lower() not in ("", "0", "no", "false", "none")


def json_value(query: Mapping[str, str], name: str, kind: type) -> Any:
    """Return what the query says in JSON; an empty one of the kind when it says nothing. Raises InvalidParameter."""
    text = query.get(name, "")
    if not text:
        return kind()
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidParameter(f"error reading build {name}: {error}") from None
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise InvalidParameter(f"error reading build {name}: unexpected JSON")
    return value


def read_options(query: "MultiMapping[str]", logins: Mapping[str, Any]) -> BuildOptions:
    """Read the query of POST /build; ``logins`` is X-Registry-Config. Raises InvalidParameter."""
    if query.get("version", "1") not in ("", "1"):
        raise InvalidParameter(f'invalid version "{query["version"]}"')
    if flag(query, "squash"):
        raise InvalidParameter("squash is only supported with experimental mode, which this engine does not have")
    if query.get("outputs"):
        raise InvalidParameter("custom outputs need BuildKit: build with docker buildx build")
    host: dict[str, Any] = {}
    for name, target in _NUMBERS.items():
        if query.get(name):
            try:
                host[target] = int(query[name])
            except ValueError:
                raise InvalidParameter(f'strconv.ParseInt: parsing "{query[name]}": invalid syntax') from None
    if 0 < host.get("Memory", 0) < MIN_MEMORY:
        raise InvalidParameter("Minimum memory limit allowed is 6MB")
    for name, target in _TEXTS.items():
        if query.get(name):
            host[target] = query[name]
    if ulimits := json_value(query, "ulimits", list):
        host["Ulimits"] = ulimits
    if query.get("extrahosts"):
        host["ExtraHosts"] = [each for value in query.getall("extrahosts") for each in value.split(",") if each]
    tags = []
    for text in query.getall("t", []):
        if text:
            tag = names.parse(text)
            if tag.digest:
                raise InvalidParameter("build tag cannot contain a digest")
            tags.append(tag.with_default_tag())
    quiet = flag(query, "q")
    return BuildOptions(
        dockerfile=query.get("dockerfile") or "Dockerfile",
        tags=tuple(dict.fromkeys(tags)),
        remote=query.get("remote", ""),
        build_args={str(k): None if v is None else str(v) for k, v in json_value(query, "buildargs", dict).items()},
        labels={str(k): str(v) for k, v in json_value(query, "labels", dict).items()},
        target=query.get("target", ""),
        no_cache=flag(query, "nocache"),
        pull=flag(query, "pull"),
        quiet=quiet,
        remove=flag(query, "rm", True),
        force_remove=flag(query, "forcerm"),
        platform=platforms.parse(query["platform"]) if query.get("platform") else None,
        cache_from=tuple(str(each) for each in json_value(query, "cachefrom", list)),
        host=host,
        logins={str(key): Credentials.of(value) for key, value in logins.items() if isinstance(value, dict)},
    )
