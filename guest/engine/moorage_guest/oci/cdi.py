"""Devices by CDI (Container Device Interface): found in specifications on disk, put into an OCI spec.

A specification names devices of one kind, ``vendor.com/class``, and says for each what a container needs to use it: device
nodes, mounts, variables, hooks, groups. https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md
"""

import json
import logging
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moorage_guest.errors import SystemError_
from moorage_guest.oci.plainyaml import parse as parse_yaml

log = logging.getLogger(__name__)

#: Where specifications are looked for; of two that name one device the folder that comes later wins.
FOLDERS = ("/etc/cdi", "/var/run/cdi")

VERSIONS = ("0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0")

_KIND = re.compile(r"[A-Za-z]([A-Za-z0-9._-]*[A-Za-z0-9])?/[A-Za-z]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._:-]*[A-Za-z0-9])?")
_HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
_FIELDS: Mapping[str, frozenset[str]] = {
    "specification": frozenset({"cdiVersion", "kind", "devices", "containerEdits", "annotations"}),
    "device": frozenset({"name", "containerEdits", "annotations"}),
    "containerEdits": frozenset({"env", "deviceNodes", "hooks", "mounts", "intelRdt", "additionalGids"}),
    "device node": frozenset(
        {"path", "hostPath", "type", "major", "minor", "fileMode", "permissions", "uid", "gid"}
    ),
    "mount": frozenset({"hostPath", "containerPath", "options", "type"}),
    "hook": frozenset({"hookName", "path", "args", "env", "timeout"}),
}  # fmt: skip


@dataclass(frozen=True)
class Edits:
    """What a device, or all of a kind, need of a container's spec."""

    env: tuple[str, ...] = ()
    nodes: tuple[Mapping[str, Any], ...] = ()
    mounts: tuple[Mapping[str, Any], ...] = ()
    hooks: tuple[Mapping[str, Any], ...] = ()
    groups: tuple[int, ...] = ()
    rdt: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Specification:
    """One file's devices by their full names, and what they have in common."""

    path: Path
    common: Edits
    devices: Mapping[str, Edits]


def is_qualified(name: str) -> bool:
    """Whether this is a device's full name, ``vendor.com/class=name``."""
    kind, equals, device = name.partition("=")
    return bool(equals and _KIND.fullmatch(kind) and _NAME.fullmatch(device))


def devices(folders: Sequence[str]) -> dict[str, Specification]:
    """Return all devices that can be asked for, by full name. Blocks. What is wrong with a file is logged."""
    found: dict[str, Specification] = {}
    for folder in folders:
        here: dict[str, Specification] = {}
        doubted: set[str] = set()
        for path in _files(Path(folder)):
            try:
                specification = _read(path)
            except (OSError, ValueError) as error:
                log.warning("CDI specification %s is left out: %s", path, error)
                continue
            for name in specification.devices:
                if name in here:
                    log.warning("CDI device %s is in %s and in %s: in neither", name, here[name].path, path)
                    doubted.add(name)
                here[name] = specification
        found.update(here)
        for name in doubted:
            del found[name]
    return found


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix in (".json", ".yaml"))
    except OSError:
        return []


def _read(path: Path) -> Specification:
    text = path.read_text()
    value = _object("specification", json.loads(text) if path.suffix == ".json" else parse_yaml(text))
    version = str(value.get("cdiVersion") or "").removeprefix("v")
    if version not in VERSIONS:
        raise ValueError(f"cdiVersion {version!r} is none of {', '.join(VERSIONS)}")
    kind = value.get("kind")
    if not isinstance(kind, str) or not _KIND.fullmatch(kind):
        raise ValueError(f"kind {kind!r} has to be vendor/class")
    named: dict[str, Edits] = {}
    for each in _objects("device", value.get("devices")):
        name = str(each.get("name"))
        if not _NAME.fullmatch(name) or f"{kind}={name}" in named:
            raise ValueError(f"device name {name!r} cannot be used, or is there twice")
        named[f"{kind}={name}"] = _edits(each.get("containerEdits"))
    return Specification(path, _edits(value.get("containerEdits")), named)


def _object(what: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"a {what} has to be an object")
    if unknown := sorted(set(map(str, value)) - _FIELDS[what]):
        raise ValueError(f"a {what} has no {', '.join(unknown)} that is known here")
    return value


def _objects(what: str, value: Any) -> list[dict[str, Any]]:
    if value is not None and not isinstance(value, list):
        raise ValueError(f"there has to be a list of every {what}")
    return [_object(what, each) for each in value or ()]


def _texts(what: str, value: Any) -> tuple[str, ...]:
    if value is not None and not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
        raise ValueError(f"{what} has to be a list of texts")
    return tuple(value or ())


def _edits(value: Any) -> Edits:
    if value is None:
        return Edits()
    edits = _object("containerEdits", value)
    env = _texts("env", edits.get("env"))
    nodes, mounts = _objects("device node", edits.get("deviceNodes")), _objects("mount", edits.get("mounts"))
    hooks, groups = _objects("hook", edits.get("hooks")), edits.get("additionalGids") or []
    if bad := [each for each in env if "=" not in each]:
        raise ValueError(f"env {bad[0]!r} has to be NAME=value")
    for node in nodes:
        if not isinstance(node.get("path"), str) or set(str(node.get("permissions") or "")) - set("rwm"):
            raise ValueError("a device node needs a path, and permissions of r, w and m")
        if node.get("type") not in (None, "", "b", "c", "u", "p"):
            raise ValueError(f"device node {node['path']} has the type {node['type']!r}")
    for mount in mounts:
        if not isinstance(mount.get("hostPath"), str) or not isinstance(mount.get("containerPath"), str):
            raise ValueError("a mount needs hostPath and containerPath")
        _texts("options", mount.get("options"))
    for hook in hooks:
        if hook.get("hookName") not in _HOOKS or not isinstance(hook.get("path"), str):
            raise ValueError(f"a hook needs a path, and for hookName one of {', '.join(_HOOKS)}")
        _texts("args", hook.get("args")), _texts("env", hook.get("env"))
    if not isinstance(groups, list) or not all(isinstance(each, int) and each >= 0 for each in groups):
        raise ValueError("additionalGids has to be a list of numbers")
    rdt = edits.get("intelRdt") or {}
    if not isinstance(rdt, dict):
        raise ValueError("intelRdt has to be an object")
    return Edits(env, tuple(nodes), tuple(mounts), tuple(hooks), tuple(groups), rdt)


def inject(spec: dict[str, Any], names: Sequence[str], folders: Sequence[str]) -> None:
    """Change a container's spec so that it has these devices. Blocks; raises SystemError_ in dockerd's words."""
    if not folders:
        raise SystemError_("CDI device injection failed: no CDI specification directories specified")
    known = devices(folders)
    if missing := [name for name in names if name not in known]:
        raise SystemError_(f"CDI device injection failed: unresolvable CDI devices {', '.join(missing)}")
    seen: set[Path] = set()
    try:
        for name in names:
            specification = known[name]
            if specification.path not in seen:
                seen.add(specification.path)
                _apply(spec, specification.common)
            _apply(spec, specification.devices[name])
    except (OSError, ValueError) as error:
        raise SystemError_(f"CDI device injection failed: {error}") from error


def _apply(spec: dict[str, Any], edits: Edits) -> None:
    process, linux = spec["process"], spec["linux"]
    for entry in edits.env:
        name = entry.partition("=")[0]
        process["env"] = [*(each for each in process["env"] if each.partition("=")[0] != name), entry]
    for node in edits.nodes:
        device = _node(node, process["user"])
        linux["devices"] = [*(each for each in linux["devices"] if each["path"] != device["path"]), device]
        if device["type"] in ("b", "c", "u"):
            linux["resources"]["devices"].append(
                {
                    "allow": True, "type": "c" if device["type"] == "u" else device["type"], "major": device["major"],
                    "minor": device["minor"], "access": node.get("permissions") or "rwm",
                }
            )  # fmt: skip
    for mount in edits.mounts:
        options = list(mount.get("options") or ())
        added: dict[str, Any] = {"destination": mount["containerPath"], "source": mount["hostPath"], "options": options}
        kind = mount.get("type") or ("bind" if {"bind", "rbind"} & set(options) else "")
        if kind:
            added["type"] = kind
        spec["mounts"] = [*(each for each in spec["mounts"] if each["destination"] != added["destination"]), added]
    for hook in edits.hooks:
        called = {key: hook[key] for key in ("path", "args", "env", "timeout") if hook.get(key)}
        spec.setdefault("hooks", {}).setdefault(hook["hookName"], []).append(called)
    groups = process["user"].setdefault("additionalGids", [])
    groups += [each for each in edits.groups if each and each not in groups]
    if edits.rdt:
        linux["intelRdt"] = dict(edits.rdt)


def _node(node: Mapping[str, Any], user: Mapping[str, Any]) -> dict[str, Any]:
    """Return the OCI device, what the specification leaves open taken from the machine's own node."""
    path = str(node["path"])
    device: dict[str, Any] = {"path": path, "type": node.get("type") or ""}
    device.update(major=node.get("major") or 0, minor=node.get("minor") or 0)
    if not device["type"] or (not device["major"] and device["type"] != "p"):
        host = str(node.get("hostPath") or path)
        status = Path(host).stat()
        kind = {stat.S_IFCHR: "c", stat.S_IFBLK: "b", stat.S_IFIFO: "p"}.get(stat.S_IFMT(status.st_mode), "")
        if not kind:
            raise ValueError(f"{host} is not a device node")
        if device["type"] not in ("", kind):
            raise ValueError(f"{host} is of another type ({kind}) than the specification says ({device['type']})")
        device.update(type=kind, major=os.major(status.st_rdev), minor=os.minor(status.st_rdev))
    for key in ("fileMode", "uid", "gid"):
        if node.get(key) is not None:
            device[key] = int(node[key])
        elif key != "fileMode" and user.get(key):
            device[key] = user[key]
    return device
