"""The answer of `GET /system/df`: what images, containers, volumes and the build cache take on disk."""

import asyncio
from typing import Any

from moorage_guest.engine import inspect
from moorage_guest.engine.containers import Containers
from moorage_guest.images import cacheuse, listing
from moorage_guest.images.buildcache import BuildCache
from moorage_guest.images.store import Images
from moorage_guest.volumes import Volumes


async def disk_usage(
    images: Images, cache: BuildCache, containers: Containers, volumes: Volumes, wanted: set[str]
) -> dict[str, Any]:
    """Measure the kinds wanted (image, container, volume, build-cache); those not wanted are left out as dockerd does."""
    answer: dict[str, Any] = {"LayersSize": 0}
    if wanted & {"image", "build-cache"}:
        measured = await asyncio.to_thread(listing.disk_usage, images)
        if "image" in wanted:
            answer["LayersSize"] = measured["LayersSize"]
            answer["Images"] = measured["Images"]
        if "build-cache" in wanted:
            answer["BuildCache"] = await asyncio.to_thread(cacheuse.CacheUse(images, cache).records)
    if "container" in wanted:
        answer["Containers"] = [await inspect.summary(containers, each, size=True) for each in containers.all()]
    if "volume" in wanted:
        answer["Volumes"] = await volumes.usage()
    return answer
