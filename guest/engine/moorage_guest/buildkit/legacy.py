"""POST /build with version=2: how clients asked for builds in BuildKit's way before they spoke gRPC.

The client's session, if it has one, is the same; what the build tells goes into the answer, message by message.
"""

import asyncio
import base64
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moorage_guest import web
from moorage_guest.buildkit.building import DOCKERFILE
from moorage_guest.buildkit.control import Control
from moorage_guest.buildkit.errors import GrpcError
from moorage_guest.buildkit.messages import CacheOptions, CacheOptionsEntry, Exporter, SolveRequest
from moorage_guest.buildkit.status import BuildStatus
from moorage_guest.errors import InvalidParameter
from moorage_guest.images.build.context import ContextTree
from moorage_guest.images.build.options import flag, json_value
from moorage_guest.images.build.seams import Session
from moorage_guest.images.registry import Credentials
from moorage_guest.images.streams import Progress

if TYPE_CHECKING:
    from multidict import MultiMapping

#: Where a context comes from that is the request's body.
_BODY = "http://buildkit-session/"

#: Bytes of the body that are passed on at once.
_PIECE = 1 << 20


@dataclass
class BodySession:
    """A session whose upload is the request's body; everything else is asked of the client's, if there is one."""

    inner: Session | None
    upload_id: str
    body: web.StreamReader

    def _client(self) -> Session:
        if self.inner is None:
            raise InvalidParameter("the build needs something of its client, which has opened no session")
        return self.inner

    async def local(
        self,
        name: str,
        *,
        follow: Sequence[str] = (),
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        progress: Callable[[int], None] | None = None,
    ) -> ContextTree:
        """See `Session`."""
        return await self._client().local(name, follow=follow, include=include, exclude=exclude, progress=progress)

    async def secret(self, name: str) -> bytes | None:
        """See `Session`."""
        return None if self.inner is None else await self.inner.secret(name)

    def ssh(self, name: str, path: Path, uid: int, gid: int, mode: int) -> AbstractAsyncContextManager[None]:
        """See `Session`."""
        return self._client().ssh(name, path, uid, gid, mode)

    async def credentials(self, host: str) -> Credentials:
        """See `Session`."""
        return Credentials() if self.inner is None else await self.inner.credentials(host)

    async def upload(self, path: str) -> AsyncIterator[bytes]:
        """See `Session`."""
        if path == self.upload_id:
            async for piece in self.body.iter_chunked(_PIECE):
                yield piece
        else:
            async for piece in self._client().upload(path):
                yield piece


async def build(control: Control, query: "MultiMapping[str]", body: web.StreamReader, progress: Progress) -> None:
    """Build, and send what the build tells to ``progress``. Raises EngineError."""
    request = solve_request(query)
    session: Session | None = None
    if request.session:
        session = await control.sessions.get(request.session)
    if not query.get("remote"):
        upload_id = uuid.uuid4().hex
        request.frontend_attrs["context"] = _BODY + upload_id
        session = BodySession(session, upload_id, body)
    elif session is None:
        session = BodySession(None, "", body)

    status = BuildStatus()

    async def tell() -> None:
        async for message in status.follow():
            progress({"id": "moby.buildkit.trace", "aux": base64.b64encode(message.encode()).decode()})

    async with asyncio.TaskGroup() as group:
        group.create_task(tell(), name=f"what build {request.ref} tells")
        try:
            answer = await control.run(request, session, status)
        except GrpcError as error:
            failed: str | None = str(error)
        else:
            failed = None
        finally:
            status.close()
    if failed is not None:
        raise InvalidParameter(failed)
    if image_id := answer.get("containerimage.digest"):
        progress({"id": "moby.image.id", "aux": {"ID": image_id}})


def solve_request(query: "MultiMapping[str]") -> SolveRequest:
    """Read the query of POST /build. Raises InvalidParameter."""
    attrs = {"filename": query.get("dockerfile") or "Dockerfile"}
    for name, key in _TEXTS.items():
        if query.get(name):
            attrs[key] = query[name]
    remote = query.get("remote", "")
    if remote and remote != "client-session":
        attrs["context"] = remote
    if flag(query, "nocache"):
        attrs["no-cache"] = ""
    attrs["image-resolve-mode"] = "pull" if flag(query, "pull") else "local"
    if hosts := query.getall("extrahosts", []):
        attrs["add-hosts"] = ",".join(each for each in hosts if each)
    arguments = {str(key): value for key, value in json_value(query, "buildargs", dict).items() if value is not None}
    attrs.update({f"build-arg:{key}": str(value) for key, value in arguments.items()})
    attrs.update({f"label:{key}": str(value) for key, value in json_value(query, "labels", dict).items()})
    if limits := json_value(query, "ulimits", list):
        attrs["ulimit"] = ",".join(_ulimit(limit) for limit in limits)
    imports = [CacheOptionsEntry("registry", {"ref": str(ref)}) for ref in json_value(query, "cachefrom", list)]
    inline = arguments.get("BUILDKIT_INLINE_CACHE") == "1"
    return SolveRequest(
        ref=query.get("buildid") or uuid.uuid4().hex,
        session=query.get("session", ""),
        frontend=DOCKERFILE,
        frontend_attrs=attrs,
        cache=CacheOptions(imports=imports, exports=[CacheOptionsEntry("inline")] if inline else []),
        exporters=_exporters(query),
    )


_TEXTS = {
    "target": "target", "platform": "platform", "networkmode": "force-network-mode", "shmsize": "shm-size",
    "cgroupparent": "cgroup-parent",
}  # fmt: skip


def _exporters(query: "MultiMapping[str]") -> list[Exporter]:
    outputs = json_value(query, "outputs", list)
    if len(outputs) > 1:
        raise InvalidParameter("multiple outputs not supported")
    names = ",".join(each for each in query.getall("t", []) if each)
    if not outputs:
        return [Exporter("moby", {"name": names} if names else {})]
    output: Mapping[str, Any] = outputs[0] if isinstance(outputs[0], dict) else {}
    kind = str(output.get("Type", ""))
    if kind in ("", "cacheonly"):
        return []
    attrs = {str(key): str(value) for key, value in (output.get("Attrs") or {}).items()}
    if kind in ("moby", "image") and names:
        attrs["name"] = names
    return [Exporter(kind, attrs)]


def _ulimit(limit: object) -> str:
    if not isinstance(limit, dict) or not {"Name", "Soft", "Hard"} <= limit.keys():
        raise InvalidParameter("error reading build ulimits: each has Name, Soft and Hard")
    return f"{limit['Name']}={limit['Soft']}:{limit['Hard']}"
