"""The configuration of an image that was built in BuildKit's way: its history, its times, its layers."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from moorage_guest.errors import InvalidParameter
from moorage_guest.images.build.planned import Laid, Planned
from moorage_guest.images.build.seams import INLINE_CACHE
from moorage_guest.images.platforms import Platform

COMMENT = "buildkit.dockerfile.v0"

#: What of the base's document says nothing of what was built on it.
_DROPPED = (
    "container", "container_config", "docker_version", "id", "parent", "comment", "moby.buildkit.buildinfo.v1",
    "moby.buildkit.cache.v0", INLINE_CACHE,
)  # fmt: skip


def described(planned: Planned, laid: Laid, platform: Platform, epoch: str) -> dict[str, Any]:
    """Return the whole configuration of a stage's image. ``epoch`` is SOURCE_DATE_EPOCH. Raises InvalidParameter."""
    fixed = _fixed(epoch)
    document = {key: value for key, value in planned.document.items() if key not in _DROPPED}
    document.setdefault("architecture", platform.architecture)
    document.setdefault("os", platform.os)
    if platform.variant and document["architecture"] == platform.architecture:
        document.setdefault("variant", platform.variant)
    document["config"] = {
        key: value
        for key, value in planned.config.items()
        if value not in (None, "", [], {}, False) or (key == "Cmd" and value == [])
    }
    document.pop("author", None)
    if planned.author:
        document["author"] = planned.author
    stamp = _first_time(laid) or str(planned.document.get("created") or "") or "1970-01-01T00:00:00Z"
    rows: list[Mapping[str, Any]] = [*laid.below]
    for row in laid.rows:
        stamp = str(row.get("created") or stamp)
        rows.append({**row, "created": fixed or stamp})
    document["history"] = [_ordered(row) for row in rows]
    document["created"] = fixed or stamp
    document["rootfs"] = {"type": "layers", "diff_ids": [layer.diff_id for layer in laid.layers]}
    return dict(sorted(document.items()))


def _first_time(laid: Laid) -> str:
    """Return when the first new layer was made; without one, when the base's last was."""
    for row in (*laid.rows, *reversed(laid.below)):
        if "created" in row:
            return str(row["created"])
    return ""


def _ordered(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("created", "created_by", "author", "comment", "empty_layer") if key in row}


def rows_of(planned: Planned, times: Sequence[str]) -> list[dict[str, Any]]:
    """Return the history that a stage adds; ``times`` are those of its steps' layers. Rows without a layer get theirs later."""
    found: list[dict[str, Any]] = []
    for row in planned.rows:
        shown: dict[str, Any] = {"created_by": row.created_by, "comment": COMMENT}
        if row.step is None:
            shown["empty_layer"] = True
        else:
            shown["created"] = times[row.step]
        found.append(shown)
    return found


def _fixed(epoch: str) -> str:
    if not epoch:
        return ""
    try:
        return datetime.fromtimestamp(int(epoch), UTC).isoformat().replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        raise InvalidParameter(f"invalid SOURCE_DATE_EPOCH: {epoch}") from None
