"""Messages of `moby.buildkit.v1.Control` and what they consist of (pb, types, google.rpc), under their own names in snake case.

Those of sessions are in `session_messages`, those of the gateway in `gateway_messages`.
"""

from moorage_guest.buildkit.protobuf import (
    Message,
    boolean,
    embedded,
    embedded_list,
    embedded_mapping,
    flags_mapping,
    integer,
    mapping,
    numbered_mapping,
    octets,
    octets_list,
    string,
    strings,
)

# -- google -------------------------------------------------------------------------------------------------------------


class Timestamp(Message):
    """google.protobuf.Timestamp."""

    seconds: int = integer(1)
    nanos: int = integer(2)

    @classmethod
    def of(cls, ns: int) -> "Timestamp":
        """Return nanoseconds since 1970 as a message."""
        return cls(ns // 1_000_000_000, ns % 1_000_000_000)

    @property
    def ns(self) -> int:
        """Nanoseconds since 1970."""
        return self.seconds * 1_000_000_000 + self.nanos


class AnyMessage(Message):
    """google.protobuf.Any: some message, and after the last slash of the URL its full name."""

    type_url: str = string(1)
    value: bytes = octets(2)


class RpcStatus(Message):
    """google.rpc.Status: what ``grpc-status-details-bin`` holds."""

    code: int = integer(1)
    message: str = string(2)
    details: list[AnyMessage] = embedded_list(3, AnyMessage)


# -- pb -----------------------------------------------------------------------------------------------------------------


class Platform(Message):
    """pb.Platform."""

    architecture: str = string(1)
    os: str = string(2)
    variant: str = string(3)
    os_version: str = string(4)
    os_features: list[str] = strings(5)


class Position(Message):
    """pb.Position. Lines count from one."""

    line: int = integer(1)
    character: int = integer(2)


class Range(Message):
    """pb.Range; its end belongs to it."""

    start: Position | None = embedded(1, Position)
    end: Position | None = embedded(2, Position)


class Location(Message):
    """pb.Location."""

    source_index: int = integer(1)
    ranges: list[Range] = embedded_list(2, Range)


class Locations(Message):
    """pb.Locations."""

    locations: list[Location] = embedded_list(1, Location)


class ExportCache(Message):
    """pb.ExportCache."""

    value: bool = boolean(1)


class ProgressGroup(Message):
    """pb.ProgressGroup."""

    id: str = string(1)
    name: str = string(2)
    weak: bool = boolean(3)


class OpMetadata(Message):
    """pb.OpMetadata."""

    ignore_cache: bool = boolean(1)
    description: dict[str, str] = mapping(2)
    export_cache: ExportCache | None = embedded(4, ExportCache)
    caps: dict[str, bool] = flags_mapping(5)
    progress_group: ProgressGroup | None = embedded(6, ProgressGroup)


class SourceDefinition(Message):
    """pb.Definition as a source names it: without sources of its own."""

    definition: list[bytes] = octets_list(1)


class SourceInfo(Message):
    """pb.SourceInfo: a file that vertices come from."""

    filename: str = string(1)
    data: bytes = octets(2)
    definition: SourceDefinition | None = embedded(3, SourceDefinition)
    language: str = string(4)


class Source(Message):
    """pb.Source."""

    locations: dict[str, Locations] = embedded_mapping(1, Locations)
    infos: list[SourceInfo] = embedded_list(2, SourceInfo)


class Definition(Message):
    """pb.Definition: a marshalled graph of operations (LLB)."""

    definition: list[bytes] = octets_list(1)
    metadata: dict[str, OpMetadata] = embedded_mapping(2, OpMetadata)
    source: Source | None = embedded(3, Source)


class SourceOp(Message):
    """pb.SourceOp."""

    identifier: str = string(1)
    attrs: dict[str, str] = mapping(2)


# -- types --------------------------------------------------------------------------------------------------------------


class BuildkitVersion(Message):
    """moby.buildkit.v1.types.BuildkitVersion."""

    package: str = string(1)
    version: str = string(2)
    revision: str = string(3)


class GCPolicy(Message):
    """moby.buildkit.v1.types.GCPolicy. Space in bytes, duration in nanoseconds."""

    all: bool = boolean(1)
    keep_duration: int = integer(2)
    reserved_space: int = integer(3)
    filters: list[str] = strings(4)
    max_used_space: int = integer(5)
    min_free_space: int = integer(6)


class WorkerRecord(Message):
    """moby.buildkit.v1.types.WorkerRecord."""

    id: str = string(1)
    labels: dict[str, str] = mapping(2)
    platforms: list[Platform] = embedded_list(3, Platform)
    gc_policy: list[GCPolicy] = embedded_list(4, GCPolicy)
    buildkit_version: BuildkitVersion | None = embedded(5, BuildkitVersion)


class APICap(Message):
    """moby.buildkit.v1.apicaps.APICap."""

    id: str = string(1)
    enabled: bool = boolean(2)
    deprecated: bool = boolean(3)
    disabled_reason: str = string(4)
    disabled_reason_message: str = string(5)
    disabled_alternative: str = string(6)


# -- Control ------------------------------------------------------------------------------------------------------------


class PruneRequest(Message):
    """Of Prune. Space in bytes, duration in nanoseconds."""

    filter: list[str] = strings(1)
    all: bool = boolean(2)
    keep_duration: int = integer(3)
    reserved_space: int = integer(4)
    max_used_space: int = integer(5)
    min_free_space: int = integer(6)


class DiskUsageRequest(Message):
    """Of DiskUsage."""

    filter: list[str] = strings(1)
    age_limit: int = integer(2)


class UsageRecord(Message):
    """One thing in the build cache."""

    id: str = string(1)
    mutable: bool = boolean(2)
    in_use: bool = boolean(3)
    size: int = integer(4)
    parent: str = string(5)
    created_at: Timestamp | None = embedded(6, Timestamp)
    last_used_at: Timestamp | None = embedded(7, Timestamp)
    usage_count: int = integer(8)
    description: str = string(9)
    record_type: str = string(10)
    shared: bool = boolean(11)
    parents: list[str] = strings(12)


class DiskUsageResponse(Message):
    """Of DiskUsage."""

    record: list[UsageRecord] = embedded_list(1, UsageRecord)


class CacheOptionsEntry(Message):
    """A cache to import from or to export to."""

    type: str = string(1)
    attrs: dict[str, str] = mapping(2)


class CacheOptions(Message):
    """Caches of a solve; the first three are how old clients ask."""

    export_ref: str = string(1)
    import_refs: list[str] = strings(2)
    export_attrs: dict[str, str] = mapping(3)
    exports: list[CacheOptionsEntry] = embedded_list(4, CacheOptionsEntry)
    imports: list[CacheOptionsEntry] = embedded_list(5, CacheOptionsEntry)


class AttrConstraint(Message):
    """moby.buildkit.v1.sourcepolicy.AttrConstraint."""

    key: str = string(1)
    value: str = string(2)
    condition: int = integer(3)


class PolicySelector(Message):
    """moby.buildkit.v1.sourcepolicy.Selector."""

    identifier: str = string(1)
    match_type: int = integer(2)
    constraints: list[AttrConstraint] = embedded_list(3, AttrConstraint)


class PolicyUpdate(Message):
    """moby.buildkit.v1.sourcepolicy.Update."""

    identifier: str = string(1)
    attrs: dict[str, str] = mapping(2)


class PolicyRule(Message):
    """moby.buildkit.v1.sourcepolicy.Rule. Actions: 0 allow, 1 deny, 2 convert."""

    action: int = integer(1)
    selector: PolicySelector | None = embedded(2, PolicySelector)
    updates: PolicyUpdate | None = embedded(3, PolicyUpdate)


class SourcePolicy(Message):
    """moby.buildkit.v1.sourcepolicy.Policy."""

    version: int = integer(1)
    rules: list[PolicyRule] = embedded_list(2, PolicyRule)


class Exporter(Message):
    """Where a result goes."""

    type: str = string(1)
    attrs: dict[str, str] = mapping(2)


class SolveRequest(Message):
    """Of Solve."""

    ref: str = string(1)
    definition: Definition | None = embedded(2, Definition)
    exporter: str = string(3)
    exporter_attrs: dict[str, str] = mapping(4)
    session: str = string(5)
    frontend: str = string(6)
    frontend_attrs: dict[str, str] = mapping(7)
    cache: CacheOptions | None = embedded(8, CacheOptions)
    entitlements: list[str] = strings(9)
    frontend_inputs: dict[str, Definition] = embedded_mapping(10, Definition)
    internal: bool = boolean(11)
    source_policy: SourcePolicy | None = embedded(12, SourcePolicy)
    exporters: list[Exporter] = embedded_list(13, Exporter)
    enable_session_exporter: bool = boolean(14)


class SolveResponse(Message):
    """Of Solve."""

    exporter_response: dict[str, str] = mapping(1)


class StatusRequest(Message):
    """Of Status."""

    ref: str = string(1)


class Vertex(Message):
    """One step of a build."""

    digest: str = string(1)
    inputs: list[str] = strings(2)
    name: str = string(3)
    cached: bool = boolean(4)
    started: Timestamp | None = embedded(5, Timestamp)
    completed: Timestamp | None = embedded(6, Timestamp)
    error: str = string(7)
    progress_group: ProgressGroup | None = embedded(8, ProgressGroup)


class VertexStatus(Message):
    """Progress within a step."""

    id: str = string(1)
    vertex: str = string(2)
    name: str = string(3)
    current: int = integer(4)
    total: int = integer(5)
    timestamp: Timestamp | None = embedded(6, Timestamp)
    started: Timestamp | None = embedded(7, Timestamp)
    completed: Timestamp | None = embedded(8, Timestamp)


class VertexLog(Message):
    """Output of a step: stream 1 or 2."""

    vertex: str = string(1)
    timestamp: Timestamp | None = embedded(2, Timestamp)
    stream: int = integer(3)
    msg: bytes = octets(4)


class VertexWarning(Message):
    """A warning, shown at the end of a build."""

    vertex: str = string(1)
    level: int = integer(2)
    short: bytes = octets(3)
    detail: list[bytes] = octets_list(4)
    url: str = string(5)
    info: SourceInfo | None = embedded(6, SourceInfo)
    ranges: list[Range] = embedded_list(7, Range)


class StatusResponse(Message):
    """Of Status: what is new."""

    vertexes: list[Vertex] = embedded_list(1, Vertex)
    statuses: list[VertexStatus] = embedded_list(2, VertexStatus)
    logs: list[VertexLog] = embedded_list(3, VertexLog)
    warnings: list[VertexWarning] = embedded_list(4, VertexWarning)


class ListWorkersRequest(Message):
    """Of ListWorkers."""

    filter: list[str] = strings(1)


class ListWorkersResponse(Message):
    """Of ListWorkers."""

    record: list[WorkerRecord] = embedded_list(1, WorkerRecord)


class InfoRequest(Message):
    """Of Info."""


class InfoResponse(Message):
    """Of Info."""

    buildkit_version: BuildkitVersion | None = embedded(1, BuildkitVersion)


class BuildHistoryRequest(Message):
    """Of ListenBuildHistory."""

    active_only: bool = boolean(1)
    ref: str = string(2)
    early_exit: bool = boolean(3)
    filter: list[str] = strings(4)
    limit: int = integer(5)


class Descriptor(Message):
    """Content by digest."""

    media_type: str = string(1)
    digest: str = string(2)
    size: int = integer(3)
    annotations: dict[str, str] = mapping(5)


class BuildResultInfo(Message):
    """What one platform's build came to."""

    result: Descriptor | None = embedded(1, Descriptor)
    attestations: list[Descriptor] = embedded_list(2, Descriptor)
    results: dict[int, Descriptor] = numbered_mapping(3, Descriptor)


class BuildHistoryRecord(Message):
    """One build that was."""

    ref: str = string(1)
    frontend: str = string(2)
    frontend_attrs: dict[str, str] = mapping(3)
    exporters: list[Exporter] = embedded_list(4, Exporter)
    error: RpcStatus | None = embedded(5, RpcStatus)
    created_at: Timestamp | None = embedded(6, Timestamp)
    completed_at: Timestamp | None = embedded(7, Timestamp)
    logs: Descriptor | None = embedded(8, Descriptor)
    exporter_response: dict[str, str] = mapping(9)
    result: BuildResultInfo | None = embedded(10, BuildResultInfo)
    results: dict[str, BuildResultInfo] = embedded_mapping(11, BuildResultInfo)
    generation: int = integer(12)
    trace: Descriptor | None = embedded(13, Descriptor)
    pinned: bool = boolean(14)
    num_cached_steps: int = integer(15)
    num_total_steps: int = integer(16)
    num_completed_steps: int = integer(17)
    external_error: Descriptor | None = embedded(18, Descriptor)
    num_warnings: int = integer(19)


class BuildHistoryEvent(Message):
    """Of ListenBuildHistory. Types: 0 started, 1 complete, 2 deleted."""

    type: int = integer(1)
    record: BuildHistoryRecord | None = embedded(2, BuildHistoryRecord)


class UpdateBuildHistoryRequest(Message):
    """Of UpdateBuildHistory."""

    ref: str = string(1)
    pinned: bool = boolean(2)
    delete: bool = boolean(3)
    finalize: bool = boolean(4)


class UpdateBuildHistoryResponse(Message):
    """Of UpdateBuildHistory."""
