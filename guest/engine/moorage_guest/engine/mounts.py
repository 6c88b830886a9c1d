"""Mounts of a container: what -v, --mount, --tmpfs, --volumes-from and the image ask for, checked and resolved.

Making volumes and mounting them belongs to the Volumes service; this module only says which are wanted.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from moorage_guest.api.types import ContainerConfig, HostConfig, Mount
from moorage_guest.engine.record import MountRecord
from moorage_guest.errors import InvalidParameter
from moorage_guest.idmap import SAME, IdMap
from moorage_guest.oci.spec import MountPoint

PROPAGATIONS = frozenset({"private", "rprivate", "shared", "rshared", "slave", "rslave"})
_LABELS = frozenset({"z", "Z"})
_CONSISTENCY = frozenset({"consistent", "cached", "delegated", "default"})
_VOLUME_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")

#: What the kernel tells of the machine, and who emulates a container's view of it (lxcfs) mounts over.
_IN_PROC = frozenset(
    [
        *(f"/proc/{name}" for name in ("cpuinfo", "diskstats", "meminfo", "stat", "swaps", "uptime", "loadavg")),
        "/proc/slabinfo",
        "/proc/net/dev",
        "/proc/sys/kernel/ns_last_pid",
        "/proc/sys/crypto/fips_enabled",
    ]
)

_TMPFS_FLAGS = frozenset(
    [
        "ro",
        "rw",
        "nosuid",
        "suid",
        "nodev",
        "dev",
        "noexec",
        "exec",
        "sync",
        "async",
        "dirsync",
        "remount",
        "mand",
        "nomand",
        "atime",
        "noatime",
        "diratime",
        "nodiratime",
        "bind",
        "rbind",
        "unbindable",
        "runbindable",
        "private",
        "rprivate",
        "shared",
        "rshared",
        "slave",
        "rslave",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
    ]
)
_TMPFS_VALUES = frozenset({"mode", "uid", "gid", "nr_inodes", "nr_blocks", "size", "mpol"})
_TMPFS_DEFAULTS = ("noexec", "nosuid", "nodev")


def parse_bind(specification: str, volume_driver: str = "", data_root: Path | None = None) -> MountRecord:
    """Read one entry of HostConfig.Binds: ``[source:]destination[:mode]``. Raises InvalidParameter in dockerd's words.

    ``data_root`` is the daemon's own: what holds it, or lies in it, may not be mounted with every propagation.
    """
    parts = specification.split(":")
    mode = ""
    if len(parts) == 1:
        source, destination = "", parts[0]
    elif len(parts) == 2:
        if parts[1].startswith("/") or not _valid_mode(parts[1]):
            source, destination = parts
        else:
            source, (destination, mode) = "", parts
    elif len(parts) == 3:
        source, destination, mode = parts
    else:
        raise InvalidParameter(f"invalid volume specification: '{specification}'")
    if (len(parts) > 1 and not source and len(parts) != 2) or not destination:
        raise InvalidParameter(f"invalid volume specification: '{specification}'")
    if not destination.startswith("/"):
        raise InvalidParameter(
            f"invalid volume specification: '{specification}': invalid mount config for type "
            f'"{"bind" if source.startswith("/") else "volume"}": invalid mount path: '
            f"'{destination}' mount path must be absolute"
        )
    if mode and not _valid_mode(mode):
        raise InvalidParameter(f'invalid mode: "{mode}"')
    destination = _clean(destination, specification)
    words = set(mode.split(",")) if mode else set()
    propagation = next(iter(words & PROPAGATIONS), "")
    read_write = "ro" not in words
    if source.startswith("/"):
        if "nocopy" in words:
            raise InvalidParameter(f'invalid mode: "{mode}"')
        source = os.path.normpath(source)
        return MountRecord(
            "bind", destination, source, mode=mode, read_write=read_write,
            propagation=_propagation(propagation, source, data_root), create_source=True,
        )  # fmt: skip
    if propagation:
        raise InvalidParameter('invalid mount config for type "volume": field BindOptions must not be specified')
    if source and not _VOLUME_NAME.fullmatch(source):
        raise InvalidParameter(
            f'create {source}: "{source}" includes invalid characters for a local volume name, only '
            '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path'
        )
    return MountRecord(
        "volume", destination, name=source, driver=volume_driver, mode=mode or "z", read_write=read_write,
        no_copy="nocopy" in words, anonymous=not source,
    )  # fmt: skip


def _propagation(asked: str, source: str, data_root: Path | None) -> str:
    """Return the propagation of a bind. The daemon's own mounts must not be held by a container that sees them."""
    if data_root is None or not (source.startswith(str(data_root)) or str(data_root).startswith(source)):
        return asked or "rprivate"
    if asked not in ("", "rslave", "rshared"):
        raise InvalidParameter(
            'invalid mount config: must use either propagation mode "rslave" or "rshared" when mount source is within the '
            f'daemon root, daemon root: "{data_root}", bind mount source: "{source}", propagation: "{asked}"'
        )
    return asked or "rslave"


def _valid_mode(mode: str) -> bool:
    words = mode.split(",")
    groups = [{"ro", "rw"}, _LABELS, PROPAGATIONS, {"nocopy"}, _CONSISTENCY]
    if any(word not in set().union(*groups) for word in words):
        return False
    return all(sum(word in group for word in words) <= 1 for group in groups)


def _clean(destination: str, specification: str) -> str:
    cleaned = os.path.normpath(destination).replace("//", "/")
    if cleaned == "/":
        raise InvalidParameter(
            f"invalid volume specification: '{specification}': invalid specification: destination can't be '/'"
        )
    return cleaned


def parse_mount(mount: Mount, data_root: Path | None = None) -> MountRecord:
    """Check one entry of HostConfig.Mounts. Raises InvalidParameter in dockerd's words. ``data_root`` as in `parse_bind`."""

    def fault(text: str) -> InvalidParameter:
        return InvalidParameter(f'invalid mount config for type "{mount.type}": {text}')

    if mount.type not in ("bind", "volume", "tmpfs", "image"):
        raise fault("mount type unknown")
    if not mount.target:
        raise fault("field Target must not be empty")
    if not mount.target.startswith("/"):
        raise fault(f"invalid mount path: '{mount.target}' mount path must be absolute")
    target = os.path.normpath(mount.target).replace("//", "/")
    if target == "/":
        raise fault("invalid specification: destination can't be '/'")
    for kind, given, field_name in (
        ("bind", mount.bind_options, "BindOptions"),
        ("volume", mount.volume_options, "VolumeOptions"),
        ("tmpfs", mount.tmpfs_options, "TmpfsOptions"),
        ("image", mount.image_options, "ImageOptions"),
    ):
        if given is not None and kind != mount.type:
            raise fault(f"field {field_name} must not be specified")
    read_write = not mount.read_only
    if mount.type == "bind":
        return _parse_bind_mount(mount, target, fault, data_root)
    if mount.type == "volume":
        volume = mount.volume_options
        if mount.source.startswith("/") or (mount.source and not _VOLUME_NAME.fullmatch(mount.source)):
            raise InvalidParameter(
                f'create {mount.source}: "{mount.source}" includes invalid characters for a local volume name, only '
                '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path'
            )
        subpath = volume.subpath if volume else ""
        if subpath and (subpath.startswith("/") or ".." in Path(subpath).parts):
            raise fault(f"subpath must be a relative path within the volume: {subpath}")
        if subpath and not mount.source:
            raise fault("must not set Subpath when using anonymous volumes")
        driver = volume.driver_config.name if volume and volume.driver_config else ""
        return MountRecord(
            "volume", target, name=mount.source, driver=driver, mode="z", read_write=read_write,
            no_copy=bool(volume and volume.no_copy), subpath=subpath, anonymous=not mount.source, from_mounts=True,
        )  # fmt: skip
    if mount.type == "image":
        if not mount.source:
            raise fault("field Source must not be empty")
        subpath = mount.image_options.subpath if mount.image_options else ""
        if subpath and (subpath.startswith("/") or ".." in Path(subpath).parts):
            raise fault(f"subpath must be a relative path within the image: {subpath}")
        return MountRecord(
            "image", target, source=mount.source, name=mount.source, read_write=False, subpath=subpath,
            from_mounts=True,
        )  # fmt: skip
    if mount.source:
        raise fault("field Source must not be specified")
    options = list(_TMPFS_DEFAULTS)
    if mount.tmpfs_options is not None:
        tmpfs = mount.tmpfs_options
        if tmpfs.size_bytes < 0:
            raise fault("size must not be negative")
        if tmpfs.mode:
            options.append(f"mode={tmpfs.mode:o}")
        if tmpfs.size_bytes:
            options.append(f"size={tmpfs.size_bytes}")
        for words in tmpfs.options:
            name = words[0] if words else ""
            if len(words) == 1 and name in _TMPFS_FLAGS:
                options = _override(options, name)
            elif len(words) == 2 and name in _TMPFS_VALUES:
                options.append(f"{name}={words[1]}")
            else:
                raise fault(f"invalid option: {words}")
    if mount.read_only:
        options.append("ro")
    return MountRecord("tmpfs", target, read_write=read_write, options=tuple(options), from_mounts=True)


def _parse_bind_mount(
    mount: Mount, target: str, fault: Callable[[str], InvalidParameter], data_root: Path | None
) -> MountRecord:
    if not mount.source:
        raise fault("field Source must not be empty")
    if not mount.source.startswith("/"):
        raise fault(f"invalid mount path: '{mount.source}' mount path must be absolute")
    bind = mount.bind_options
    propagation = bind.propagation if bind else ""
    if propagation and propagation not in PROPAGATIONS:
        raise fault(f"invalid propagation mode: {propagation}")
    for name, given in (
        ("ReadOnlyNonRecursive", bind and bind.read_only_non_recursive),
        ("ReadOnlyForceRecursive", bind and bind.read_only_force_recursive),
    ):
        if given and not mount.read_only:
            raise InvalidParameter(f"mount options conflict: !ReadOnly && BindOptions.{name}")
    if bind and bind.read_only_non_recursive and bind.read_only_force_recursive:
        raise InvalidParameter("mount options conflict: ReadOnlyNonRecursive && BindOptions.ReadOnlyForceRecursive")
    create = bool(bind and bind.create_mountpoint)
    if not create and not Path(mount.source).exists():
        raise fault(f"bind source path does not exist: {mount.source}")
    source = os.path.normpath(mount.source)
    return MountRecord(
        "bind", target, source, read_write=not mount.read_only,
        propagation=_propagation(propagation, source, data_root), create_source=create, from_mounts=True,
        non_recursive=bool(bind and bind.non_recursive),
        read_only_non_recursive=bool(bind and bind.read_only_non_recursive),
    )  # fmt: skip


def parse_tmpfs(destination: str, text: str) -> MountRecord:
    """Check one entry of HostConfig.Tmpfs. Raises InvalidParameter."""
    if not destination.startswith("/"):
        raise InvalidParameter(
            f"invalid mount config for type \"tmpfs\": invalid mount path: '{destination}' mount path must be absolute"
        )
    target = os.path.normpath(destination).replace("//", "/")
    if target == "/":
        raise InvalidParameter(
            "invalid mount config for type \"tmpfs\": invalid specification: destination can't be '/'"
        )
    options = list(_TMPFS_DEFAULTS)
    for word in filter(None, text.split(",")):
        name, has_value, _ = word.partition("=")
        if word in _TMPFS_FLAGS:
            options = _override(options, word)
        elif has_value and name in _TMPFS_VALUES:
            options.append(word)
        else:
            raise InvalidParameter(f'invalid tmpfs option ["{word}"]')
    return MountRecord("tmpfs", target, read_write="ro" not in options, options=tuple(options))


def _override(options: list[str], flag: str) -> list[str]:
    opposite = {"exec": "noexec", "suid": "nosuid", "dev": "nodev", "rw": "ro"}.get(flag, f"no{flag}")
    return [*(each for each in options if each not in (opposite, flag)), flag]


def wanted_mounts(
    config: ContainerConfig,
    host: HostConfig,
    mounts_of: Callable[[str], list[MountRecord]],
    data_root: Path | None = None,
) -> list[MountRecord]:
    """Return every mount of a new container, one for each destination, without sources of volumes yet.

    ``mounts_of`` returns the mounts of the container that --volumes-from names. Later kinds win as in dockerd:
    volumes-from, then binds, then mounts, then the image's volumes where nothing else is.
    """
    found: dict[str, MountRecord] = {}
    for entry in host.volumes_from:
        name, _, mode = entry.partition(":")
        if not name:
            raise InvalidParameter(f"invalid volumes-from specification: {entry}")
        if mode and (not _valid_mode(mode) or "nocopy" in mode.split(",")):
            raise InvalidParameter(f"invalid mode: {mode}")
        read_only = "ro" in mode.split(",")
        for mount in mounts_of(name):
            if mount.kind != "tmpfs":
                found[mount.destination] = replace(mount, read_write=mount.read_write and not read_only, no_copy=True)
    taken: set[str] = set()

    def add(mount: MountRecord) -> None:
        if mount.destination in taken:
            raise InvalidParameter(f"Duplicate mount point: {mount.destination}")
        taken.add(mount.destination)
        found[mount.destination] = mount

    for specification in host.binds:
        add(parse_bind(specification, host.volume_driver, data_root))
    for each in host.mounts:
        add(parse_mount(each, data_root))
    for destination, text in host.tmpfs.items():
        tmpfs = parse_tmpfs(destination, text)
        if tmpfs.destination in taken:
            raise InvalidParameter(f"Duplicate mount point: {tmpfs.destination}")
        found[tmpfs.destination] = tmpfs
    for destination in config.volumes:
        cleaned = _clean(f"/{destination.lstrip('/')}", destination)  # images may say VOLUME data
        if cleaned not in found:
            found[cleaned] = MountRecord("volume", cleaned, driver=host.volume_driver, anonymous=True)
    for mount in found.values():
        if mount.kind != "tmpfs" and mount.destination.startswith("/proc/") and mount.destination not in _IN_PROC:
            raise InvalidParameter(f'"{mount.destination}" cannot be mounted because it is inside /proc')
    return list(found.values())


def volume_options(host: HostConfig) -> Mapping[str, tuple[Mapping[str, str], Mapping[str, str]]]:
    """Return (driver options, labels) by destination for volumes that --mount makes on the way."""
    found: dict[str, tuple[Mapping[str, str], Mapping[str, str]]] = {}
    for mount in host.mounts:
        if mount.type == "volume" and mount.volume_options is not None:
            driver = mount.volume_options.driver_config
            found[os.path.normpath(mount.target)] = (
                driver.options if driver else {},
                mount.volume_options.labels,
            )
    return found


def oci_mounts(mounts: Iterable[tuple[MountRecord, Path | None]]) -> list[MountPoint]:
    """Return the OCI mounts. Each comes with the folder or file that stands behind it (None for tmpfs)."""
    points = []
    for mount, source in mounts:
        if mount.kind == "tmpfs":
            points.append(MountPoint("tmpfs", mount.destination, "tmpfs", mount.options))
            continue
        assert source is not None
        options = ["bind" if mount.non_recursive else "rbind"]
        if mount.read_write:
            options.append("rw")
        else:  # what is mounted below is read-only too, unless the client is older than that; crun takes no file for a tree
            whole = recursive_read_only() and not mount.read_only_non_recursive and not source.is_file()
            options.append("rro" if whole else "ro")
        propagation = mount.propagation or "rprivate"
        if mount.non_recursive:  # crun takes a whole tree for a propagation of whole trees
            propagation = propagation.removeprefix("r")
        options.append(propagation)
        points.append(MountPoint(str(source), mount.destination, "bind", tuple(options)))
    return points


@cache
def recursive_read_only() -> bool:
    """Whether the kernel makes a whole tree of mounts read-only at once (mount_setattr, Linux 5.12)."""
    major, minor = (int(re.match(r"\d*", part)[0] or 0) for part in f"{os.uname().release}.0".split(".")[:2])  # type: ignore[index]
    return (major, minor) >= (5, 12)


def bind_source(mount: MountRecord, ids: IdMap = SAME) -> Path:
    """Return the source of a bind, made as a folder of a container's root where -v may make it. Blocks; raises InvalidParameter."""
    source = Path(mount.source)
    if not source.exists():
        if not mount.create_source:
            raise InvalidParameter(
                f'invalid mount config for type "bind": bind source path does not exist: {mount.source}'
            )
        try:
            missing = [each for each in (source, *source.parents) if not each.exists()]
            source.mkdir(parents=True, exist_ok=True)
            ids.give(*missing)
        except OSError as error:
            raise InvalidParameter(
                f"error while creating mount source path '{mount.source}': mkdir {mount.source}: "
                f"{(error.strerror or str(error)).lower()}"
            ) from error
    return source


def below(root: Path, subpath: str) -> Path:
    """Return ``root/subpath``, which must exist and stay below root even through symbolic links. Blocks."""
    if not subpath:
        return root
    target = Path(os.path.realpath(root / subpath))
    if not target.is_relative_to(os.path.realpath(root)):
        raise InvalidParameter(f"cannot access path {subpath}: path concatenation escapes the base directory")
    if not target.exists():
        raise InvalidParameter(f"cannot access path {root / subpath}: no such file or directory")
    return target
