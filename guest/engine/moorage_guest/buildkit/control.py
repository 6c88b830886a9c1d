"""moby.buildkit.v1.Control: the builds that clients ask for, what they tell meanwhile, and the cache that they leave.

Builds that a client leads itself are asked for here too; its part is answered by `bridge`.
"""

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime

from moorage_guest.buildkit import caps, exporters, grpc
from moorage_guest.buildkit.bridge import Bridge
from moorage_guest.buildkit.building import Building, Question
from moorage_guest.buildkit.errors import Code, GrpcError
from moorage_guest.buildkit.failures import as_failure
from moorage_guest.buildkit.gateway_messages import Empty
from moorage_guest.buildkit.history import History
from moorage_guest.buildkit.jobs import Job, Outcome
from moorage_guest.buildkit.messages import (
    BuildHistoryEvent,
    BuildHistoryRequest,
    CacheOptions,
    DiskUsageRequest,
    DiskUsageResponse,
    Exporter,
    InfoRequest,
    InfoResponse,
    ListWorkersRequest,
    ListWorkersResponse,
    PruneRequest,
    SolveRequest,
    SolveResponse,
    StatusRequest,
    StatusResponse,
    Timestamp,
    UpdateBuildHistoryRequest,
    UpdateBuildHistoryResponse,
    UsageRecord,
    WorkerRecord,
)
from moorage_guest.buildkit.session import Sessions
from moorage_guest.buildkit.status import BuildStatus
from moorage_guest.errors import EngineError, Forbidden, InvalidParameter
from moorage_guest.images import cacheuse
from moorage_guest.images.build.seams import Session
from moorage_guest.images.buildcache import MOUNT
from moorage_guest.images.image import parse_time

_SERVICE = "/moby.buildkit.v1.Control/"
_TRACES = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"

#: What a build may be allowed beyond the usual; clients have to ask for it.
_ENTITLEMENTS = frozenset({"network.host"})


class Control:
    """Answers the calls. ``worker_id`` tells this engine from others, ``host_gateway()`` is the host's address for containers."""

    def __init__(self, building: Building, worker_id: str, host_gateway: Callable[[], str]) -> None:
        self._building = building
        self._worker_id = worker_id
        self._host_gateway = host_gateway
        self._history = History()
        self._cache = cacheuse.CacheUse(building.site.images, building.site.cache)

    @property
    def sessions(self) -> Sessions:
        """What clients offer to the builds that they ask for."""
        return self._building.sessions

    def cancel(self, ref: str) -> None:
        """End a build that somebody else asked for; quiet when there is none."""
        self._building.jobs.cancel(ref)

    def methods(self) -> dict[str, grpc.Method]:
        """Return the calls by path, those of the bridge with them."""
        found = {
            "Solve": grpc.unary(SolveRequest, self.solve),
            "Status": grpc.streaming(StatusRequest, self.status),
            "Info": grpc.unary(InfoRequest, self.info),
            "ListWorkers": grpc.unary(ListWorkersRequest, self.list_workers),
            "DiskUsage": grpc.unary(DiskUsageRequest, self.disk_usage),
            "Prune": grpc.streaming(PruneRequest, self.prune),
            "ListenBuildHistory": grpc.streaming(BuildHistoryRequest, self.listen_history),
            "UpdateBuildHistory": grpc.unary(UpdateBuildHistoryRequest, self.update_history),
        }
        return {
            **{_SERVICE + name: method for name, method in found.items()},
            **Bridge(self._building, self._worker).methods(),
            _TRACES: grpc.unary(Empty, self.traces),
        }

    def _worker(self) -> WorkerRecord:
        return caps.worker(self._worker_id, self._host_gateway())

    # -- builds -----------------------------------------------------------------------------------------------------------

    async def solve(self, request: SolveRequest, call: grpc.Call) -> SolveResponse:
        """Build and bring the result where the client wants it; returns when that is done."""
        return SolveResponse(await self.run(request))

    async def run(
        self, request: SolveRequest, session: Session | None = None, status: BuildStatus | None = None
    ) -> dict[str, str]:
        """Build, and return what the client is told of the result.

        ``session`` answers instead of the one that is named, ``status`` is told instead of a new one. Raises EngineError. A cancellation ends the build.
        """
        destinations = self._checked(request)
        async with self._building.jobs.opened(request, session, status) as job:
            if request.internal:  # no build of a user's
                await self._result(job)
                return {}
            self._history.begun(job)
            answer: dict[str, str] = {}
            failure: GrpcError | None = GrpcError(Code.CANCELLED, "context canceled")
            try:
                answer = await self._export(job, await self._result(job), destinations)
                failure = None
            except EngineError as error:
                failure = as_failure(error)
                raise failure from error
            finally:
                self._history.over(job, answer, failure)
            return answer

    def _checked(self, request: SolveRequest) -> list[exporters.Destination]:
        """Refuse what is not done before it is begun; returns where the result goes. Raises EngineError."""
        if not request.ref:
            raise InvalidParameter("a build needs a ref")
        for name in request.entitlements:
            if name not in _ENTITLEMENTS:
                raise as_failure(Forbidden(f"granting entitlement {name} is not allowed by build daemon configuration"))
        if request.source_policy is not None and request.source_policy.rules:
            raise InvalidParameter("source policies are not supported by this engine")
        cache = request.cache or CacheOptions()
        kinds = {entry.type for entry in cache.exports} | ({"registry"} if cache.export_ref else set())
        for kind in sorted(kinds - {"inline"}):
            raise as_failure(InvalidParameter(f'unknown cache exporter: "{kind}"'))
        wanted = request.exporters
        if not wanted and request.exporter:
            wanted = [Exporter(request.exporter, request.exporter_attrs)]
        return exporters.wanted(
            wanted, self._building.site.images, self._building.site.layers, inline_cache="inline" in kinds
        )

    async def _result(self, job: Job) -> Outcome:
        """Return what was built, by a frontend here or led by the client. Raises EngineError."""
        request = job.request
        if request.frontend or (request.definition is not None and request.definition.definition):
            imports = (request.cache or CacheOptions()).imports
            question = Question(
                request.frontend, request.definition, request.frontend_attrs, imports, request.frontend_inputs
            )
            return await self._building.solve(job, question)
        return await job.returned

    async def _export(self, job: Job, outcome: Outcome, destinations: list[exporters.Destination]) -> dict[str, str]:
        if outcome.built is None or not destinations:
            return {}
        answer: dict[str, str] = {}
        for destination in destinations:
            client = functools.partial(self._building.sessions.get, job.request.session)
            answer.update(await destination.export(outcome.built, client, job.status))
        return answer

    async def status(self, request: StatusRequest, call: grpc.Call) -> AsyncGenerator[StatusResponse, None]:
        """Yield what a build tells of itself, from its beginning to its end."""
        call.begin({"buildkit-current-timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z")})
        found = await self._building.jobs.status(request.ref)
        async with contextlib.aclosing(found.follow()) as messages:
            async for message in messages:
                yield message

    # -- what was built -----------------------------------------------------------------------------------------------------

    async def listen_history(
        self, request: BuildHistoryRequest, call: grpc.Call
    ) -> AsyncGenerator[BuildHistoryEvent, None]:
        """Yield which builds there were, are and, unless the client wants to leave, will be."""
        async with contextlib.aclosing(self._history.listen(request)) as events:
            async for event in events:
                yield event

    async def update_history(self, request: UpdateBuildHistoryRequest, call: grpc.Call) -> UpdateBuildHistoryResponse:
        """Pin or forget a build."""
        self._history.update(request)
        return UpdateBuildHistoryResponse()

    # -- the cache ----------------------------------------------------------------------------------------------------------

    async def disk_usage(self, request: DiskUsageRequest, call: grpc.Call) -> DiskUsageResponse:
        """Return what is in the build cache."""
        chosen = cacheuse.expression(request.filter)
        entries = await asyncio.to_thread(self._cache.records)
        return DiskUsageResponse([_usage(entry) for entry in entries if chosen is None or chosen(entry)])

    async def prune(self, request: PruneRequest, call: grpc.Call) -> AsyncGenerator[UsageRecord, None]:
        """Remove what is wanted of it, and yield what went."""
        wanted = cacheuse.Prune(
            everything=request.all,
            until=time.time() - request.keep_duration / 1e9 if request.keep_duration else None,
            chosen=cacheuse.expression(request.filter),
            reserved=request.reserved_space,
            max_used=request.max_used_space,
            min_free=request.min_free_space,
        )
        self._building.sessions.keeper.clear()
        _ids, gone, _freed = await self._cache.prune(wanted)
        for entry in gone:
            yield _usage(entry)

    # -- the engine -----------------------------------------------------------------------------------------------------------

    async def info(self, request: InfoRequest, call: grpc.Call) -> InfoResponse:
        """Say who answers."""
        return InfoResponse(caps.version())

    async def list_workers(self, request: ListWorkersRequest, call: grpc.Call) -> ListWorkersResponse:
        """Say for what it builds."""
        return ListWorkersResponse([self._worker()])

    async def traces(self, request: Empty, call: grpc.Call) -> Empty:
        """Take the client's traces, which are nobody's business."""
        return Empty()


def _usage(entry: cacheuse.Entry) -> UsageRecord:
    """Return an entry of the build cache as a message."""
    used = parse_time(str(entry["LastUsedAt"])) if entry["LastUsedAt"] else None
    return UsageRecord(
        id=str(entry["ID"]),
        mutable=entry["Type"] == MOUNT,
        in_use=bool(entry["InUse"]),
        size=int(entry["Size"]),
        created_at=Timestamp.of(int(parse_time(str(entry["CreatedAt"])) * 1e9)),
        last_used_at=None if used is None else Timestamp.of(int(used * 1e9)),
        usage_count=int(entry["UsageCount"]),
        description=str(entry["Description"]),
        record_type=str(entry["Type"]),
        shared=bool(entry["Shared"]),
        parents=[str(parent) for parent in entry["Parents"] or ()],
    )
