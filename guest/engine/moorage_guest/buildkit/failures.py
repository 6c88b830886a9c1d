"""What went wrong in a build, in the form in which clients show it: with the lines of the Dockerfile, and the step."""

import base64
import json
from typing import Any

from moorage_guest.buildkit.errors import Code, GrpcError
from moorage_guest.buildkit.grpc import detail
from moorage_guest.buildkit.messages import AnyMessage
from moorage_guest.errors import EngineError
from moorage_guest.images.build.seams import BuildError, Source


def as_failure(error: EngineError) -> GrpcError:
    """Return what a client is told: the text as it is, which BuildKit gives no code of its own."""
    if isinstance(error, GrpcError):
        return error
    details: list[AnyMessage] = []
    if isinstance(error, BuildError):
        if error.source is not None:
            details.append(detail("Source", _source(error.source)))
        if error.vertex:
            details.append(detail("Vertex", {"digest": error.vertex}))
        if error.code:
            code = json.dumps({"Code": error.code}).encode()
            details.append(AnyMessage("github.com/moby/buildkit/gatewayapi.ExitMessage+json", code))
    return GrpcError(Code.UNKNOWN, str(error), details)


def unsupported_subrequest(name: str) -> GrpcError:
    """Return what a client is told that asks the frontend for something it has never heard of."""
    return GrpcError(Code.UNIMPLEMENTED, f"unsupported request {name}", [detail("Subrequest", {"name": name})])


def _source(source: Source) -> dict[str, Any]:
    info = {"filename": source.filename, "data": base64.b64encode(source.data).decode(), "language": source.language}
    ranges = [{"start": {"line": first}, "end": {"line": last}} for first, last in source.ranges]
    return {"info": info, "ranges": ranges}
