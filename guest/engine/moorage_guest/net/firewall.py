"""The engine's nftables table: one per daemon, changed by whole transactions, never rebuilt where it already matches.

Published ports are elements of maps, so that a container costs a constant. Each network has chains whose names carry a
hash of their rules: a chain that has the right name has the right rules. A restarted daemon reads the table, compares,
and touches only what differs. Other tables of the machine are left alone.
"""

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from moorage_guest.net.nftables import Nftables, NftablesError

log = logging.getLogger(__name__)

Elements = dict[str, dict[str, str]]

_MAPS = {
    "dnat4": "type inet_proto . inet_service : ipv4_addr . inet_service;",
    "dnat4at": "type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service;",
    "dnat6": "type inet_proto . inet_service : ipv6_addr . inet_service;",
    "dnat6at": "type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service;",
    "into": "type ifname : verdict;",
    "outof": "type ifname : verdict;",
    "post4": "type ipv4_addr : verdict; flags interval;",
    "post6": "type ipv6_addr : verdict; flags interval;",
}
_SETS = {
    "bridges": "type ifname;",
    "open4": "type ipv4_addr . inet_proto . inet_service;",
    "open6": "type ipv6_addr . inet_proto . inet_service;",
}
_NAMED_BY_INTERFACE = ("into", "outof", "bridges")

# An address of the loopback range that comes from a container is a forgery: route_localnet, which published ports need
# for clients on 127.0.0.1, would let it in.
_BASE = {
    "to_container": (
        "",
        (
            "dnat ip to ip daddr . meta l4proto . th dport map @dnat4at",
            "dnat ip to meta l4proto . th dport map @dnat4",
            "dnat ip6 to ip6 daddr . meta l4proto . th dport map @dnat6at",
            "dnat ip6 to meta l4proto . th dport map @dnat6",
        ),
    ),
    "guard": (
        "type filter hook prerouting priority raw; policy accept;",
        ("iifname @bridges ip daddr 127.0.0.0/8 drop", "iifname @bridges ip saddr 127.0.0.0/8 drop"),
    ),
    "prerouting": (
        "type nat hook prerouting priority dstnat; policy accept;",
        ("fib daddr type local jump to_container",),
    ),
    "output": (
        "type nat hook output priority -100; policy accept;",
        ("fib daddr type local jump to_container",),
    ),
    "forward": (
        "type filter hook forward priority filter; policy accept;",
        ("iifname vmap @outof", "oifname vmap @into"),
    ),
    "postrouting": (
        "type nat hook postrouting priority srcnat; policy accept;",
        (
            "ip saddr 127.0.0.0/8 oifname @bridges masquerade",
            "ip saddr vmap @post4",
            "ip6 saddr vmap @post6",
        ),
    ),
}


@dataclass
class Change:
    """What is to become of the table: chains by stem (None removes), elements by map and key (None removes)."""

    chains: dict[str, tuple[str, ...] | None] = field(default_factory=dict)
    elements: dict[str, dict[str, str | None]] = field(default_factory=dict)

    def put(self, name: str, key: str, value: str = "") -> None:
        """Set an element of a map, or of a set when there is no value."""
        self.elements.setdefault(name, {})[key] = value

    def drop(self, name: str, key: str) -> None:
        """Remove an element."""
        self.elements.setdefault(name, {})[key] = None


@dataclass(frozen=True)
class NetworkRules:
    """What the firewall has to know about one network with a bridge of its own."""

    id: str
    interface: str
    subnets: tuple[str, ...]
    internal: bool = False
    icc: bool = True
    masquerade4: bool = True
    masquerade6: bool = True
    source4: str = ""
    source6: str = ""
    open4: str = "nat"
    open6: str = "nat"
    """Gateway modes: nat, nat-unprotected, routed."""


class Firewall:
    """Owns one table. Not thread-safe; calls take well under a millisecond each, plus the table's size once at load."""

    def __init__(self, table: str, *, ipv6: bool = True) -> None:
        self.table = table
        self._nft = Nftables()
        self._ipv6 = ipv6
        self._chains: dict[str, str] = {}
        self._rules: dict[str, int] = {}
        self._elements: Elements = {name: {} for name in (*_MAPS, *_SETS)}
        self._prefix = f"inet {table}"

    def load(self) -> None:
        """Read the table, or make it. A table of another layout is replaced when the wanted state is applied."""
        objects = self._nft.table("inet", self.table)
        if objects is not None and self._take(objects):
            return
        lines = [f"delete table {self._prefix}"] if objects is not None else []
        lines.append(f"add table {self._prefix}")
        lines += [f"add map {self._prefix} {name} {{ {kind} }}" for name, kind in _MAPS.items()]
        lines += [f"add set {self._prefix} {name} {{ {kind} }}" for name, kind in _SETS.items()]
        for name, (hook, _) in _BASE.items():
            lines.append(f"add chain {self._prefix} {name}" + (f" {{ {hook} }}" if hook else ""))
        for name, (_, rules) in _BASE.items():
            lines += [f"add rule {self._prefix} {name} {rule}" for rule in rules]
        lines.append(f"add chain {self._prefix} {_layout()}")
        self._run(lines)
        self._chains.clear()
        for known in self._elements.values():
            known.clear()

    def _take(self, objects: list[dict[str, Any]]) -> bool:
        """Adopt what the kernel reports; False when it is another layout or somebody has thinned it out."""
        chains: dict[str, int] = {}
        elements: Elements = {name: {} for name in (*_MAPS, *_SETS)}
        for entry in objects:
            if "chain" in entry:
                chains.setdefault(entry["chain"]["name"], 0)
            elif "rule" in entry:
                chains[entry["rule"]["chain"]] = chains.get(entry["rule"]["chain"], 0) + 1
            elif "map" in entry or "set" in entry:
                body = entry.get("map") or entry["set"]
                if body["name"] in elements:
                    elements[body["name"]] = _parse_elements(body)
        if _layout() not in chains or any(chains.get(name) != len(rules) for name, (_, rules) in _BASE.items()):
            return False
        self._chains.clear()
        self._rules = {name: count for name, count in chains.items() if name not in _BASE and name != _layout()}
        for name in self._rules:
            self._chains[name.rpartition("-")[0]] = name
        self._elements = elements
        return True

    def apply(self, change: Change) -> bool:
        """Make one transaction of what differs from the table; False when nothing does. All or nothing."""
        first: list[str] = []
        last: list[str] = []
        gone: list[str] = []  # before anything comes: a new interval may overlap an old one
        come: list[str] = []
        chains = dict(self._chains)
        for stem, rules in change.chains.items():
            old = chains.get(stem)
            name = None if rules is None else chain_name(stem, rules)
            if name is not None and name == old and self._rules.get(name) == len(rules or ()):
                continue
            if name == old and old is not None:
                first.append(f"flush chain {self._prefix} {old}")
            elif old is not None:
                last += [f"flush chain {self._prefix} {old}", f"delete chain {self._prefix} {old}"]
                del chains[stem]
            if name is not None and rules is not None:
                first.append(f"add chain {self._prefix} {name}")
                first += [f"add rule {self._prefix} {name} {rule}" for rule in rules]
                chains[stem] = name
        for name, wanted in change.elements.items():
            if not self._ipv6 and name in ("dnat6", "dnat6at", "post6", "open6"):
                continue
            known = self._elements[name]
            for key, value in wanted.items():
                value = _resolve(value, chains)
                if known.get(key) == value:
                    continue
                quoted = f'"{key}"' if name in _NAMED_BY_INTERFACE else key
                if key in known:
                    gone.append(f"delete element {self._prefix} {name} {{ {quoted} }}")
                if value is not None:
                    text = f"{quoted} : {value}" if value else quoted
                    come.append(f"add element {self._prefix} {name} {{ {text} }}")
        if not (first or gone or come or last):
            return False
        self._run([*first, *gone, *come, *last])
        for stem, rules in change.chains.items():
            if rules is not None:
                self._rules[chain_name(stem, rules)] = len(rules)
        self._chains = chains
        for name, wanted in change.elements.items():
            known = self._elements[name]
            for key, value in wanted.items():
                value = _resolve(value, chains)
                if value is None:
                    known.pop(key, None)
                else:
                    known[key] = value
        return True

    def reconcile(self, wanted: Change) -> bool:
        """Bring the table to exactly ``wanted`` in one transaction; False when it already was."""
        change = Change(dict(wanted.chains), {name: dict(values) for name, values in wanted.elements.items()})
        for stem in self._chains:
            change.chains.setdefault(stem, None)
        for name, known in self._elements.items():
            target = change.elements.setdefault(name, {})
            for key in known:
                target.setdefault(key, None)
        return self.apply(change)

    def remove(self) -> None:
        """Delete the whole table; quiet when there is none."""
        if self._nft.table("inet", self.table) is not None:
            self._run([f"delete table {self._prefix}"])

    def close(self) -> None:
        """Let go of the library; the table stays."""
        self._nft.close()

    def _run(self, lines: Iterable[str]) -> None:
        text = "\n".join(lines) + "\n"
        try:
            self._nft.run(text)
        except NftablesError as error:
            log.error("nftables refused a transaction: %s\n%s", error, text)
            raise


def chain_name(stem: str, rules: tuple[str, ...]) -> str:
    """Return the name of a chain with these rules."""
    return f"{stem}-{hashlib.sha256(chr(10).join(rules).encode()).hexdigest()[:8]}"


def network_change(rules: NetworkRules) -> Change:
    """Return the chains and elements of one network."""
    change = Change()
    stem, bridge = rules.id[:12], rules.interface
    if rules.internal:
        change.chains[f"in-{stem}"] = (f'iifname "{bridge}" {"accept" if rules.icc else "drop"}', "drop")
        change.chains[f"from-{stem}"] = (f'oifname "{bridge}" return', "drop")
        change.put("outof", bridge, f"jump from-{stem}")
        change.put("into", bridge, f"jump in-{stem}")
        change.put("bridges", bridge)
        return change
    inner = [
        "ct state established,related accept",
        f'iifname "{bridge}" {"accept" if rules.icc else "ct status dnat accept"}',
    ]
    if not rules.icc:
        inner.append(f'iifname "{bridge}" drop')
    inner.append("ct status dnat accept")
    for family, mode, protocol in (("ip", rules.open4, "ipv4"), ("ip6", rules.open6, "ipv6")):
        if mode == "nat-unprotected":
            inner.append(f"meta nfproto {protocol} accept")
        elif mode == "routed":
            inner.append(f"{family} daddr . meta l4proto . th dport @open{protocol[-1]} accept")
            inner.append(f"meta l4proto {'icmp' if family == 'ip' else 'ipv6-icmp'} accept")
    change.chains[f"in-{stem}"] = (*inner, "drop")
    change.put("into", bridge, f"jump in-{stem}")
    change.put("bridges", bridge)
    for version, masquerade, source in ((4, rules.masquerade4, rules.source4), (6, rules.masquerade6, rules.source6)):
        ours = [subnet for subnet in rules.subnets if (":" in subnet) == (version == 6)]
        if not ours:
            continue
        # Two containers of one network that speak through a published port: the answer has to come back this way.
        outward = [f'oifname "{bridge}" ct status dnat masquerade']
        if masquerade:
            target = f"snat {'ip' if version == 4 else 'ip6'} to {source}" if source else "masquerade"
            outward.append(f'oifname != "{bridge}" {target}')
        change.chains[f"post{version}-{stem}"] = tuple(outward)
        for subnet in ours:
            change.put(f"post{version}", subnet, f"jump post{version}-{stem}")
    return change


def removal(change: Change) -> Change:
    """Return the change that takes back another one."""
    return Change(
        dict.fromkeys(change.chains),
        {name: dict.fromkeys(values) for name, values in change.elements.items()},
    )


def merge(changes: Iterable[Change]) -> Change:
    """Return one change for several."""
    whole = Change()
    for change in changes:
        whole.chains.update(change.chains)
        for name, values in change.elements.items():
            whole.elements.setdefault(name, {}).update(values)
    return whole


def port_change(proto: str, host_ip: str, host_port: int, container_ip: str, container_port: int) -> Change:
    """Return the element that sends a port of the host to a container of the same IP version."""
    change = Change()
    six = ":" in container_ip
    name = "dnat6" if six else "dnat4"
    value = f"{container_ip} . {container_port}"
    if host_ip in ("0.0.0.0", "::"):
        change.put(name, f"{proto} . {host_port}", value)
    else:
        change.put(f"{name}at", f"{host_ip} . {proto} . {host_port}", value)
    return change


def _layout() -> str:
    text = repr((_MAPS, _SETS, _BASE))
    return f"layout-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _resolve(value: str | None, chains: Mapping[str, str]) -> str | None:
    """Turn "jump stem" into the chain's full name."""
    if value is not None and value.startswith("jump "):
        return f"jump {chains.get(value[5:], value[5:])}"
    return value


def _parse_elements(body: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for element in body.get("elem", []):
        if isinstance(element, list):
            found[_atom(element[0])] = _atom(element[1])
        else:
            found[_atom(element)] = ""
    return found


def _atom(value: Any) -> str:
    if isinstance(value, dict):
        if "elem" in value:
            return _atom(value["elem"]["val"])
        if "concat" in value:
            return " . ".join(_atom(part) for part in value["concat"])
        if "prefix" in value:
            return f"{value['prefix']['addr']}/{value['prefix']['len']}"
        if "jump" in value:
            return f"jump {value['jump']['target']}"
        if "range" in value:
            return "-".join(_atom(part) for part in value["range"])
    return str(value)
