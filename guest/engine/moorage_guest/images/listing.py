"""Images as the Engine API shows them: lists with filters, inspect, history, disk usage."""

import fnmatch
import re
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from moorage_guest.errors import InvalidParameter
from moorage_guest.images import names
from moorage_guest.images.image import Image, created_seconds, parse_time
from moorage_guest.images.store import Images

LIST_FILTERS = ("before", "dangling", "label", "reference", "since", "until")
PRUNE_FILTERS = ("dangling", "label", "label!", "until")
CACHE_FILTERS = (
    "description", "id", "inuse", "label", "label!", "parent", "private", "shared", "type", "until", "unused-for",
)  # fmt: skip

#: Fields that clients before 1.50 expect in an inspected image's Config.
_LEGACY: Mapping[str, Any] = {
    "Hostname": "", "Domainname": "", "User": "", "AttachStdin": False, "AttachStdout": False, "AttachStderr": False,
    "Tty": False, "OpenStdin": False, "StdinOnce": False, "Env": None, "Cmd": None, "Image": "", "Volumes": None,
    "WorkingDir": "", "Entrypoint": None, "OnBuild": None, "Labels": None,
}  # fmt: skip

_IMAGE_FIELDS = (
    "User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels", "StopSignal", "ArgsEscaped",
    "Healthcheck", "OnBuild", "Shell",
)  # fmt: skip


def boolean(name: str, values: Sequence[str]) -> bool | None:
    """Read a filter that is true or false; None when it is not given."""
    if not values:
        return None
    found = {value.lower() for value in values}
    if found <= {"true", "1"}:
        return True
    if found <= {"false", "0"}:
        return False
    raise InvalidParameter(f"invalid filter '{name}={values[0]}'")


def timestamp(text: str) -> float:
    """Read a moment: unix seconds, RFC 3339, or a Go duration before now. Raises InvalidParameter."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    parts = re.findall(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)", text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        seconds = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
        return time.time() - timedelta(seconds=sum(float(n) * seconds[unit] for n, unit in parts)).total_seconds()
    found = parse_time(text)
    if not found:
        raise InvalidParameter(f'failed to parse "{text}" as a time: use RFC 3339, unix seconds or a duration like 24h')
    return found


def label_matches(labels: Mapping[str, str], wanted: str) -> bool:
    """Whether labels have ``key`` or ``key=value``."""
    key, equals, value = wanted.partition("=")
    return key in labels and (not equals or labels[key] == value)


def labels_of(image: Image) -> Mapping[str, str]:
    """The image's labels."""
    return image.config.get("Labels") or {}


def reference_matches(pattern: str, familiar: str) -> bool:
    """Whether a name fits a shell pattern with or without its tag or digest, as dockerd compares."""
    bare = names.parse(familiar).familiar_name
    return any(
        fnmatch.fnmatchcase(text, pattern) and text.count("/") == pattern.count("/") for text in (familiar, bare)
    )


def list_images(
    images: Images, filters: Mapping[str, list[str]], *, everything: bool = False, shared_size: bool = False
) -> list[dict[str, Any]]:
    """Return the answer of GET /images/json, newest first."""
    dangling = boolean("dangling", filters.get("dangling", []))
    matches = _matcher(images, filters)
    users = images.in_use()
    parents = {image.parent for image in images.all() if image.parent}
    found = []
    for image in images.all():
        tags, digests = image.repo_tags, image.repo_digests
        patterns = filters.get("reference", [])
        if patterns:
            tags = [tag for tag in tags if any(reference_matches(p, tag) for p in patterns)]
            digests = [digest for digest in digests if any(reference_matches(p, digest) for p in patterns)]
            if not tags and not digests:
                continue
        bare = not image.tags and not image.digests
        if bare and not everything and (image.id in parents or dangling is False):
            continue
        if dangling is not None and dangling != (not image.tags):
            continue
        if not matches(image):
            continue
        found.append(summary(images, image, tags, digests, users, shared_size=shared_size))
    found.sort(key=lambda each: (-each["Created"], each["Id"]))
    return found


def _matcher(images: Images, filters: Mapping[str, list[str]]) -> Callable[[Image], bool]:
    before = min((created_seconds(images.resolve(each)) for each in filters.get("before", [])), default=None)
    since = max((created_seconds(images.resolve(each)) for each in filters.get("since", [])), default=None)
    until = min((timestamp(each) for each in filters.get("until", [])), default=None)
    wanted = filters.get("label", [])

    def matches(image: Image) -> bool:
        made = created_seconds(image)
        return (
            (before is None or made < before)
            and (since is None or made > since)
            and (until is None or made < until)
            and all(label_matches(labels_of(image), each) for each in wanted)
        )

    return matches


def summary(
    images: Images,
    image: Image,
    tags: Sequence[str],
    digests: Sequence[str],
    users: Mapping[str, list[str]],
    *,
    shared_size: bool,
    count: bool = False,
) -> dict[str, Any]:
    """Return an ImageSummary."""
    return {
        "Id": image.id,
        "ParentId": image.parent,
        "RepoTags": list(tags),
        "RepoDigests": list(digests),
        "Created": int(created_seconds(image)),
        "Size": image.size,
        "SharedSize": images.shared_size(image) if shared_size else -1,
        "Labels": dict(labels_of(image)),
        "Containers": len(users.get(image.id, [])) if count else -1,
    }


def inspect(images: Images, image: Image, api_version: tuple[int, int]) -> dict[str, Any]:
    """Return an ImageInspect."""
    document = image.document
    config = {key: value for key in _IMAGE_FIELDS if (value := image.config.get(key)) not in (None, "", [], {}, False)}
    if api_version < (1, 50):
        config = {**_LEGACY, "Image": image.parent, **config}
        if image.config.get("Cmd") == []:  # CMD [], which these clients can tell from none at all
            config["Cmd"] = []
    config.setdefault("OnBuild", None)  # docker-py's own suite reads it whatever the version
    found: dict[str, Any] = {
        "Id": image.id,
        "RepoTags": image.repo_tags,
        "RepoDigests": image.repo_digests,
        "Parent": image.parent,
        "Comment": _comment(document),
        "Created": image.created or "0001-01-01T00:00:00Z",
        "DockerVersion": str(document.get("docker_version") or ""),
        "Author": str(document.get("author") or ""),
        "Config": config,
        "Architecture": image.architecture,
        "Os": image.os,
        "Size": image.size,
        "GraphDriver": {"Name": "overlay2", "Data": images.upper_path(image)},
        "RootFS": {"Type": "layers", "Layers": [layer.diff_id for layer in image.layers]},
        "Metadata": {"LastTagTime": image.last_tagged or "0001-01-01T00:00:00Z"},
    }
    for key, name in (("variant", "Variant"), ("os.version", "OsVersion")):
        if document.get(key):
            found[name] = str(document[key])
    if api_version < (1, 44):
        found["VirtualSize"] = image.size
    return found


def _comment(document: Mapping[str, Any]) -> str:
    if document.get("comment"):
        return str(document["comment"])
    history = document.get("history") or []
    return str(history[-1].get("comment") or "") if history else ""


def history(images: Images, image: Image) -> list[dict[str, Any]]:
    """Return the answer of GET /images/…/history, newest first."""
    rows: list[dict[str, Any]] = []
    chain = list(image.chain)
    steps = list(image.document.get("history") or [])
    if not steps:
        steps = [{} for _ in chain]
    number = 0
    for step in steps:
        size = 0
        if not step.get("empty_layer") and number < len(chain):
            size = images.layer_store.size([chain[number]])
            number += 1
        rows.append(
            {
                "Id": "<missing>",
                "Created": int(parse_time(str(step.get("created") or ""))),
                "CreatedBy": str(step.get("created_by") or ""),
                "Tags": None,
                "Size": size,
                "Comment": str(step.get("comment") or ""),
            }
        )
    rows.reverse()
    here: Image | None = image
    for row in rows:
        if here is None:
            break
        row["Id"], row["Tags"] = here.id, here.repo_tags or None
        here = images.find(here.parent) if here.parent else None
    return rows


def build_cache(images: Images) -> list[dict[str, Any]]:
    """Return the build cache of GET /system/df: images that only stand between a base and what was built on it.

    Shared is what an image with a name was built on; the rest goes with `docker builder prune`.
    """
    used: set[str] = set()
    known = {image.id: image for image in images.all()}
    for image in known.values():
        step: Image | None = image if image.tags or image.digests else None
        while step is not None and step.id not in used:
            used.add(step.id)
            step = known.get(step.parent)
    parents = {image.parent for image in known.values()}
    found = []
    for image in known.values():
        if image.tags or image.digests or not (image.parent or image.id in parents):
            continue
        own = image.chain[-1:] if not (known.get(image.parent) and known[image.parent].chain == image.chain) else ()
        history = image.document.get("history") or [{}]
        found.append(
            {
                "ID": image.id.partition(":")[2],
                "Parents": [image.parent.partition(":")[2]] if image.parent else None,
                "Type": "regular",
                "Description": str(history[-1].get("created_by") or ""),
                "InUse": False,
                "Shared": image.id in used,
                "Size": images.layer_store.size(own),
                "CreatedAt": image.created or "0001-01-01T00:00:00Z",
                "LastUsedAt": None,
                "UsageCount": 0,
            }
        )
    return found


def cached(entry: Mapping[str, Any], wanted: Mapping[str, list[str]]) -> bool:
    """Whether an entry of the build cache passes filters; their times are not looked at, and labels it has none."""
    tests: dict[str, Callable[[str], bool]] = {
        "description": lambda value: value in entry["Description"],
        "id": lambda value: str(entry["ID"]).startswith(value.removeprefix("sha256:")),
        "inuse": lambda value: boolean("inuse", [value]) == entry["InUse"],
        "label": lambda value: False,
        "parent": lambda value: any(each.startswith(value) for each in entry["Parents"] or ()),
        "private": lambda value: boolean("private", [value]) != entry["Shared"],
        "shared": lambda value: boolean("shared", [value]) == entry["Shared"],
        "type": lambda value: value == entry["Type"],
    }
    return all(any(tests[name](value) for value in values) for name, values in wanted.items() if name in tests)


def disk_usage(images: Images) -> dict[str, Any]:
    """Return the parts of GET /system/df that are about images."""
    users = images.in_use()
    parents = {image.parent for image in images.all() if image.parent}
    return {
        "LayersSize": images.stored_bytes(),
        "Images": [
            summary(images, image, image.repo_tags, image.repo_digests, users, shared_size=True, count=True)
            for image in images.all()
            if image.tags or image.digests or not (image.parent or image.id in parents)
        ],
    }
