"""Messages of moby.buildkit.v1.frontend.LLBBridge: what a client asks of a build that it leads itself (`client.Build`).

Only fields that somebody reads or writes here are declared; see `messages` for those that other services share.
"""

from moorage_guest.buildkit.messages import (
    APICap,
    CacheOptionsEntry,
    Definition,
    Platform,
    Range,
    RpcStatus,
    SourceInfo,
    SourceOp,
    SourcePolicy,
    WorkerRecord,
)
from moorage_guest.buildkit.protobuf import (
    Message,
    boolean,
    embedded,
    embedded_list,
    embedded_mapping,
    integer,
    mapping,
    octets,
    octets_list,
    octets_mapping,
    string,
)
from moorage_guest.buildkit.session_messages import Stat


class OpInput(Message):
    """pb.Input: the output of another operation."""

    digest: str = string(1)
    index: int = integer(2)


class Op(Message):
    """pb.Op, as far as definitions made here go: a source, or the last operation, which only has an input."""

    inputs: list[OpInput] = embedded_list(1, OpInput)
    source: SourceOp | None = embedded(3, SourceOp)
    platform: Platform | None = embedded(10, Platform)


class Ref(Message):
    """A result. ``definition`` is what makes it, for a client that wants to build on it."""

    id: str = string(1)
    definition: Definition | None = embedded(2, Definition)


class RefMap(Message):
    """Results by platform."""

    refs: dict[str, Ref] = embedded_mapping(1, Ref)


class Result(Message):
    """One of ``ref`` and ``refs``, and what belongs to it."""

    ref_deprecated: str = string(1)
    ref: Ref | None = embedded(3, Ref)
    refs: RefMap | None = embedded(4, RefMap)
    metadata: dict[str, bytes] = octets_mapping(10)


class ReturnRequest(Message):
    """How the client's part of the build ended."""

    result: Result | None = embedded(1, Result)
    error: RpcStatus | None = embedded(2, RpcStatus)


class Empty(Message):
    """The answer, or question, that says nothing."""


class InputsResponse(Message):
    """What the build was given to build on."""

    definitions: dict[str, Definition] = embedded_mapping(1, Definition)


class ResolveImageConfigRequest(Message):
    """Which image."""

    ref: str = string(1)
    platform: Platform | None = embedded(2, Platform)
    resolve_mode: str = string(3)
    log_name: str = string(4)


class ResolveImageConfigResponse(Message):
    """An image's configuration."""

    digest: str = string(1)
    config: bytes = octets(2)
    ref: str = string(3)


class ResolveSourceMetaRequest(Message):
    """Which source; only images are resolved."""

    source: SourceOp | None = embedded(1, SourceOp)
    platform: Platform | None = embedded(2, Platform)
    log_name: str = string(3)
    resolve_mode: str = string(4)


class ResolveSourceImageResponse(Message):
    """An image's configuration."""

    digest: str = string(1)
    config: bytes = octets(2)


class ResolveSourceMetaResponse(Message):
    """The source, and what is known of it."""

    source: SourceOp | None = embedded(1, SourceOp)
    image: ResolveSourceImageResponse | None = embedded(2, ResolveSourceImageResponse)


class SolveRequest(Message):
    """Build with a frontend, or from a definition."""

    definition: Definition | None = embedded(1, Definition)
    frontend: str = string(2)
    attrs: dict[str, str] = mapping(3)
    cache_imports: list[CacheOptionsEntry] = embedded_list(12, CacheOptionsEntry)
    inputs: dict[str, Definition] = embedded_mapping(13, Definition)
    evaluate: bool = boolean(14)
    source_policies: list[SourcePolicy] = embedded_list(15, SourcePolicy)


class SolveResponse(Message):
    """What was built."""

    result: Result | None = embedded(3, Result)


class FileRange(Message):
    """Part of a file, bytes. A length of 0 is all that follows."""

    offset: int = integer(1)
    length: int = integer(2)


class ReadFileRequest(Message):
    """A file in a result."""

    ref: str = string(1)
    path: str = string(2)
    range: FileRange | None = embedded(3, FileRange)


class ReadFileResponse(Message):
    """Its content."""

    data: bytes = octets(1)


class ReadDirRequest(Message):
    """A folder in a result; entries whose names match ``include``, all if that is empty."""

    ref: str = string(1)
    path: str = string(2)
    include: str = string(3)


class ReadDirResponse(Message):
    """Its entries, by name."""

    entries: list[Stat] = embedded_list(1, Stat)


class StatFileRequest(Message):
    """A path in a result."""

    ref: str = string(1)
    path: str = string(2)


class StatFileResponse(Message):
    """What is there."""

    stat: Stat | None = embedded(1, Stat)


class EvaluateRequest(Message):
    """A result that has to be there."""

    ref: str = string(1)


class PongResponse(Message):
    """What the bridge and the engine can do."""

    frontend_caps: list[APICap] = embedded_list(1, APICap)
    llb_caps: list[APICap] = embedded_list(2, APICap)
    workers: list[WorkerRecord] = embedded_list(3, WorkerRecord)


class WarnRequest(Message):
    """A warning that the client's part of the build has."""

    digest: str = string(1)
    level: int = integer(2)
    short: bytes = octets(3)
    detail: list[bytes] = octets_list(4)
    url: str = string(5)
    info: SourceInfo | None = embedded(6, SourceInfo)
    ranges: list[Range] = embedded_list(7, Range)
