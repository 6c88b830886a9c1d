"""The types that settings have: each checks a JSON value, reads a command-line text and names itself for the reference.

What a value means is not decided here. Texts are dockerd's where it has one.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from moorage_contract.daemon_config.document import Json
from moorage_contract.daemon_config.errors import Mistake

T = TypeVar("T")
Check = Callable[[str], str]

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s?([kmgtp]?)(i?b?)", re.IGNORECASE)
_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


def word_for(value: Json) -> str:
    """Name a JSON value's type for a sentence."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'the string "{value}"' if len(value) <= 40 else "a string"
    if isinstance(value, int | float):
        return f"the number {value}"
    return "a list" if isinstance(value, list) else "an object"


def wrong(wanted: str, value: Json, path: tuple[str | int, ...] = ()) -> Mistake:
    """The mistake of a value that has another type."""
    return Mistake(f"expected {wanted}, got {word_for(value)}", path)


class Kind(Generic[T]):
    """A setting's type. `repeatable` kinds collect several flags into one value."""

    repeatable = False
    name = "value"

    def check(self, value: Json) -> T:
        """Return the typed value; raise Mistake when it cannot be taken."""
        raise Mistake("has no value")

    def read_flag(self, text: str) -> Json:
        """Turn a flag's text into the JSON value it stands for; raise Mistake when it stands for none."""
        return text

    def collect(self, texts: Sequence[str]) -> Json:
        """Turn the texts of a repeated flag into one JSON value."""
        return [*texts]


class Switch(Kind[bool]):
    name = "true or false"

    def check(self, value: Json) -> bool:
        if not isinstance(value, bool):
            raise wrong(self.name, value)
        return value

    def read_flag(self, text: str) -> Json:
        lowered = text.lower()
        if lowered in ("1", "t", "true"):
            return True
        if lowered in ("0", "f", "false"):
            return False
        raise Mistake(f'strconv.ParseBool: parsing "{text}": invalid syntax')


@dataclass(frozen=True)
class Integer(Kind[int]):
    """A whole number inside of bounds; `fault` is dockerd's sentence with `{}` for the number."""

    low: int | None = None
    high: int | None = None
    fault: str = "{} is out of range"

    name = "whole number"

    def check(self, value: Json) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong("a whole number", value)
        if (self.low is not None and value < self.low) or (self.high is not None and value > self.high):
            raise Mistake(self.fault.format(value))
        return value

    def read_flag(self, text: str) -> Json:
        try:
            return int(text, 0)
        except ValueError:
            raise Mistake(f'strconv.ParseInt: parsing "{text}": invalid syntax') from None


def any_text(value: str) -> str:
    """The check that lets every string pass."""
    return value


@dataclass(frozen=True)
class Text(Kind[str]):
    """A string that `verify` returns in its normal form, raising Mistake for a wrong one."""

    verify: Check = any_text
    label: str = "string"

    @property
    def name(self) -> str:  # type: ignore[override]  # a class attribute elsewhere, read only everywhere
        return self.label

    def check(self, value: Json) -> str:
        if not isinstance(value, str):
            raise wrong("a string", value)
        return self.verify(value)


def choice(values: Sequence[str], fault: str) -> Text:
    """A string out of `values`, in any case; `fault` is the sentence, with `{}` for the value."""

    def verify(value: str) -> str:
        if value.lower() not in values:
            raise Mistake(fault.format(value))
        return value.lower()

    return Text(verify, " | ".join(f'"{value}"' for value in values))


@dataclass(frozen=True)
class TextList(Kind[tuple[str, ...]]):
    """A list of strings, each in the normal form that `verify` gives it."""

    verify: Check = any_text
    label: str = "list of strings"

    repeatable = True

    @property
    def name(self) -> str:  # type: ignore[override]  # as above
        return self.label

    def check(self, value: Json) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise wrong('a list of strings, such as ["a", "b"]', value)
        found = []
        for index, item in enumerate(value):
            if not isinstance(item, str):
                raise wrong("a string in the list", item, (index,))
            found.append(self.verify(item))
        return tuple(found)


def _mapping(value: Json, wanted: str) -> dict[str, Json]:
    if not isinstance(value, dict):
        raise wrong(wanted, value)
    return value


class TextMap(Kind[Mapping[str, str]]):
    name = "object of strings"
    repeatable = True

    def check(self, value: Json) -> Mapping[str, str]:
        found = {}
        for key, item in _mapping(value, 'an object of strings, such as {"max-size": "10m"}').items():
            if not isinstance(item, str):
                hint = (
                    "" if item is None or isinstance(item, list | dict) else f': write "{str(item).lower()}" in quotes'
                )
                raise Mistake(f"{key}: expected a string, got {word_for(item)}{hint}", (key,))
            found[key] = item
        return found

    def collect(self, texts: Sequence[str]) -> Json:
        pairs: dict[str, Json] = {}
        for text in texts:
            key, _, value = text.partition("=")
            pairs[key] = value
        return pairs


class TextMapMap(Kind[Mapping[str, Mapping[str, str]]]):
    name = "object of objects of strings"
    repeatable = True

    def check(self, value: Json) -> Mapping[str, Mapping[str, str]]:
        found = {}
        inner = TextMap()
        for key, item in _mapping(
            value, 'an object, such as {"bridge": {"com.docker.network.driver.mtu": "1400"}}'
        ).items():
            try:
                found[key] = inner.check(item)
            except Mistake as mistake:
                raise Mistake(f"{key}: {mistake}", (key, *mistake.path)) from None
        return found

    def collect(self, texts: Sequence[str]) -> Json:
        found: dict[str, Json] = {}
        for text in texts:
            driver, _, pair = text.partition("=")
            key, equals, value = pair.partition("=")
            if not equals:
                raise Mistake(f"{text}: expected driver=option=value")
            options = found.setdefault(driver, {})
            if isinstance(options, dict):
                options[key] = value
        return found


class Flags(Kind[Mapping[str, bool]]):
    name = "object of true or false"
    repeatable = True

    def check(self, value: Json) -> Mapping[str, bool]:
        found = {}
        for key, item in _mapping(value, 'an object, such as {"buildkit": false}').items():
            if not isinstance(item, bool):
                raise Mistake(f"{key}: expected true or false, got {word_for(item)}", (key,))
            found[key] = item
        return found

    def collect(self, texts: Sequence[str]) -> Json:
        found: dict[str, Json] = {}
        for text in texts:
            key, equals, value = text.partition("=")
            found[key] = Switch().read_flag(value) if equals else True
        return found


class Free(Kind[Mapping[str, Json]]):
    """An object whose content is somebody else's."""

    name = "object"

    def check(self, value: Json) -> Mapping[str, Json]:
        return _mapping(value, "an object")


def bytes_from(text: str) -> int:
    """Read a size such as 64M or 1.5g; units are powers of 1024. Raises Mistake."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise Mistake(f"invalid size: '{text}'")
    return int(float(match.group(1)) * 1024 ** _UNITS[match.group(2).lower()])


class Size(Kind[int]):
    name = 'size in bytes, or text such as "64M"'

    def check(self, value: Json) -> int:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise wrong('a size such as "64M"', value)
        size = bytes_from(value) if isinstance(value, str) else value
        if size < 0:
            raise Mistake(f"invalid size: '{value}'")
        return size


@dataclass(frozen=True)
class Ulimit:
    """Soft and hard limit of one resource; -1 is unlimited."""

    name: str
    soft: int
    hard: int


ULIMITS = frozenset(
    ["core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack"]
)  # fmt: skip


@dataclass(frozen=True)
class Ulimits(Kind[Mapping[str, Ulimit]]):
    name = 'object of {"Name", "Soft", "Hard"}'
    repeatable = True

    def check(self, value: Json) -> Mapping[str, Ulimit]:
        example = '{"nofile": {"Name": "nofile", "Soft": 1024, "Hard": 2048}}'
        return {
            key: self._one(key, item, example) for key, item in _mapping(value, f"an object, such as {example}").items()
        }

    def _one(self, key: str, item: Json, example: str) -> Ulimit:
        if not isinstance(item, dict):
            raise Mistake(f"{key}: expected an object, such as {example}, got {word_for(item)}", (key,))
        lowered = {name.lower(): part for name, part in item.items()}
        extra = sorted(lowered.keys() - {"name", "soft", "hard"})
        if extra:
            raise Mistake(f"{key}: {extra[0]} is no part of a ulimit: Name, Soft and Hard are", (key,))
        name = lowered.get("name") or key
        if not isinstance(name, str) or name not in ULIMITS:
            raise Mistake(f"invalid ulimit type: {name}", (key,))
        numbers = []
        for part in ("soft", "hard"):
            number = lowered.get(part, 0)
            if isinstance(number, bool) or not isinstance(number, int):
                raise Mistake(f"{key}: {part.capitalize()}: expected a whole number, got {word_for(number)}", (key,))
            numbers.append(number)
        soft, hard = numbers
        if hard != -1 and (soft == -1 or soft > hard):
            raise Mistake(
                f"invalid ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}", (key,)
            )
        return Ulimit(name, soft, hard)

    def collect(self, texts: Sequence[str]) -> Json:
        found: dict[str, Json] = {}
        for text in texts:
            name, equals, limits = text.partition("=")
            soft, _, hard = limits.partition(":")
            try:
                found[name] = {"Name": name, "Soft": int(soft), "Hard": int(hard or soft)}
            except ValueError:
                raise Mistake(
                    f"invalid ulimit argument: {text}" if not equals else f"invalid ulimit value: {text}"
                ) from None
        return found


#: Names of the runtime that is always there, crun.
STOCK_RUNTIMES = ("crun", "io.containerd.runc.v2", "runc")


@dataclass(frozen=True)
class Runtime:
    """An OCI runtime by path, with arguments before its command."""

    path: str
    args: tuple[str, ...] = ()


class Runtimes(Kind[Mapping[str, Runtime]]):
    name = 'object of {"path", "runtimeArgs"}'
    repeatable = True

    def check(self, value: Json) -> Mapping[str, Runtime]:
        found = {}
        for key, item in _mapping(value, 'an object, such as {"name": {"path": "/usr/bin/crun"}}').items():
            if key == "runc":
                raise Mistake(f"runtime name '{key}' is reserved", (key,))
            if not isinstance(item, dict) or not isinstance(item.get("path", ""), str):
                raise Mistake(f'{key}: expected an object with a "path"', (key,))
            if item.get("runtimeType") or item.get("options"):
                raise Mistake(
                    f"runtime {key}: runtimeType and options are for containerd's shims, which this engine does not have; "
                    'give the "path" of an OCI runtime',
                    (key,),
                )
            path = str(item.get("path", ""))
            if not path:
                raise Mistake(f"runtime {key}: either a runtimeType or a path must be configured", (key,))
            found[key] = Runtime(path, TextList().check(item.get("runtimeArgs") or []))
        return found

    def collect(self, texts: Sequence[str]) -> Json:
        found: dict[str, Json] = {}
        for text in texts:
            name, equals, path = text.partition("=")
            if not equals or not name or not path:
                raise Mistake(f"invalid runtime argument: {text}: expected name=path")
            found[name] = {"path": path}
        return found


@dataclass(frozen=True)
class AddressPool:
    """A base network that is cut into subnets of prefix length `size`."""

    base: str
    size: int


class AddressPools(Kind[tuple[AddressPool, ...]]):
    name = 'list of {"base", "size"}'
    repeatable = True

    def check(self, value: Json) -> tuple[AddressPool, ...]:
        if not isinstance(value, list):
            raise wrong('a list, such as [{"base": "10.10.0.0/16", "size": 24}]', value)
        pools = [self._one(index, item) for index, item in enumerate(value)]
        networks = [ipaddress.ip_network(pool.base, strict=False) for pool in pools]
        for index, network in enumerate(networks):
            for other in networks[:index]:
                if network.version == other.version and network.overlaps(other):
                    raise Mistake(f"default address pools {other} and {network} overlap", (index,))
        return tuple(pools)

    def _one(self, index: int, item: Json) -> AddressPool:
        if not isinstance(item, dict) or item.keys() - {"base", "size"}:
            raise Mistake('expected an object with "base" and "size" and nothing else', (index,))
        base, size = item.get("base"), item.get("size")
        if not isinstance(base, str):
            raise Mistake(f'"base": expected a network such as "10.10.0.0/16", got {word_for(base)}', (index, "base"))
        if isinstance(size, bool) or not isinstance(size, int):
            raise Mistake(f'"size": expected a prefix length such as 24, got {word_for(size)}', (index, "size"))
        try:
            network = ipaddress.ip_network(base, strict=False)
        except ValueError:
            raise Mistake(f"invalid base pool {base!r}: invalid CIDR address: {base}", (index, "base")) from None
        if not network.prefixlen <= size <= network.max_prefixlen:
            raise Mistake(f"invalid pools: size {size} does not fit into {network}", (index, "size"))
        return AddressPool(str(network), size)

    def collect(self, texts: Sequence[str]) -> Json:
        pools: list[Json] = []
        for text in texts:
            fields: dict[str, Json] = {}
            for part in text.split(","):
                key, equals, item = part.partition("=")
                if not equals or key not in ("base", "size"):
                    raise Mistake(f"unexpected key '{key}' in '{part}': expected base=NETWORK,size=BITS")
                try:
                    fields[key] = int(item) if key == "size" else item
                except ValueError:
                    raise Mistake(f"invalid size value {item!r}: expected a prefix length such as 24") from None
            pools.append(fields)
        return pools


@dataclass(frozen=True)
class LogOptions:
    """Names that a log driver's options may have."""

    driver: str
    names: frozenset[str] = field(default_factory=frozenset)


_COMMON_LOG_OPTIONS = {"mode", "max-buffer-size"}
LOG_DRIVERS: Mapping[str, LogOptions] = {
    "json-file": LogOptions(
        "json-file",
        frozenset(
            {"max-size", "max-file", "compress", "labels", "labels-regex", "env", "env-regex", "tag"}
            | _COMMON_LOG_OPTIONS
        ),
    ),
    "local": LogOptions(
        "local", frozenset({"max-size", "max-file", "compress", "labels", "env", "tag"} | _COMMON_LOG_OPTIONS)
    ),
    "none": LogOptions("none", frozenset()),
}


def check_log_options(driver: str, options: Mapping[str, str]) -> list[Mistake]:
    """Every mistake in a driver's options, in dockerd's words; paths are below `log-opts`."""
    known = LOG_DRIVERS[driver].names
    mistakes = []
    for key, value in options.items():
        try:
            if key not in known:
                raise Mistake(f"unknown log opt '{key}' for {driver} log driver")
            if key in ("max-size", "max-buffer-size") and (value != "-1" or key != "max-size"):
                bytes_from(value)
            if key == "max-file" and (not value.isascii() or not value.isdigit() or int(value) < 1):
                raise Mistake(
                    "max-file cannot be less than 1"
                    if value.lstrip("-").isdigit()
                    else f"max-file: expected a number, got {value!r}"
                )
            if key == "compress":
                Switch().read_flag(value)
            if key == "mode" and value not in ("blocking", "non-blocking"):
                raise Mistake(f"logger: logging mode not supported: {value}")
        except Mistake as mistake:
            mistakes.append(Mistake(f"failed to set log opts: {mistake}", (key,)))
    if options.get("mode") != "non-blocking" and "max-buffer-size" in options:
        mistakes.append(
            Mistake(
                "failed to set log opts: logger: max-buffer-size option is only supported with 'mode=non-blocking'",
                ("max-buffer-size",),
            )
        )
    return mistakes
