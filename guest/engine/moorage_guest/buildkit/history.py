"""Which builds there were, for clients that list them; kept in memory, as long as the daemon runs."""

import asyncio
import copy
import time
from collections.abc import AsyncGenerator, Mapping

from moorage_guest.buildkit.errors import GrpcError
from moorage_guest.buildkit.jobs import KEPT, Job
from moorage_guest.buildkit.messages import (
    BuildHistoryEvent,
    BuildHistoryRecord,
    BuildHistoryRequest,
    RpcStatus,
    Timestamp,
    UpdateBuildHistoryRequest,
)
from moorage_guest.errors import InvalidParameter, NotFound

STARTED, COMPLETE, DELETED = range(3)


class History:
    """Records of builds, the newest last. Used in the event loop alone."""

    def __init__(self) -> None:
        self._records: dict[str, BuildHistoryRecord] = {}
        self._listeners: set[asyncio.Queue[BuildHistoryEvent]] = set()

    def begun(self, job: Job) -> None:
        """A build has begun."""
        request = job.request
        record = BuildHistoryRecord(
            ref=job.ref,
            frontend=request.frontend,
            frontend_attrs=dict(request.frontend_attrs),
            exporters=list(request.exporters),
            created_at=Timestamp.of(job.begun_ns),
        )
        self._records[job.ref] = record
        self._tell(STARTED, record)

    def over(self, job: Job, answer: Mapping[str, str], error: GrpcError | None) -> None:
        """A build has ended."""
        record = copy.copy(self._records[job.ref])  # listeners may have the old one still
        record.completed_at = Timestamp.of(time.time_ns())
        record.exporter_response = dict(answer)
        record.num_total_steps, record.num_completed_steps, record.num_cached_steps = job.status.steps
        record.num_warnings = job.status.warnings
        record.generation = 1
        if error is not None:
            record.error = RpcStatus(int(error.code), str(error), list(error.details))
        self._records[job.ref] = record
        self._tell(COMPLETE, record)
        loose = [ref for ref, each in self._records.items() if each.completed_at is not None and not each.pinned]
        for ref in loose[:-KEPT]:
            self._delete(ref)

    async def listen(self, request: BuildHistoryRequest) -> AsyncGenerator[BuildHistoryEvent, None]:
        """Yield the builds that there were and are and, unless the client wants to leave, those to come. Raises InvalidParameter."""
        if request.filter:
            raise InvalidParameter("the build history has no filters: list it whole")
        queue: asyncio.Queue[BuildHistoryEvent] = asyncio.Queue()
        self._listeners.add(queue)
        try:
            for ref, record in list(self._records.items()):
                running = record.completed_at is None
                if (request.ref and request.ref != ref) or (request.active_only and not running):
                    continue
                yield BuildHistoryEvent(STARTED if running else COMPLETE, record)
            if request.early_exit:
                return
            while True:
                event = await queue.get()
                record_ref = event.record.ref if event.record is not None else ""
                if not request.ref or request.ref == record_ref:
                    yield event
        finally:
            self._listeners.discard(queue)

    def update(self, request: UpdateBuildHistoryRequest) -> None:
        """Pin a build, let it go or forget it. Raises NotFound."""
        if request.ref not in self._records:
            raise NotFound(f"no such build: {request.ref}")
        if request.delete:
            self._delete(request.ref)
        elif not request.finalize:  # which has nothing to write
            record = self._records[request.ref]
            record.pinned = request.pinned
            self._tell(COMPLETE if record.completed_at is not None else STARTED, record)

    def _delete(self, ref: str) -> None:
        self._tell(DELETED, self._records.pop(ref))

    def _tell(self, kind: int, record: BuildHistoryRecord) -> None:
        for queue in self._listeners:
            queue.put_nowait(BuildHistoryEvent(kind, record))
