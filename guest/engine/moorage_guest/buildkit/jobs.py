"""Builds that clients ask for, by the id that each client gave its own: what they found, and what they hold until they are over.

What is built, and where it goes, is for `control` and `bridge`.
"""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from moorage_guest.buildkit.errors import Code, GrpcError
from moorage_guest.buildkit.messages import SolveRequest
from moorage_guest.buildkit.status import BuildStatus
from moorage_guest.errors import Conflict, NotFound
from moorage_guest.images.build.seams import Built, Session

log = logging.getLogger(__name__)

#: Seconds for a build to begin that somebody asks for: its client sends both questions at once.
PATIENCE = 10.0

#: Of how many builds that are over what they told is kept, and how many bytes of output.
KEPT, KEPT_BYTES = 50, 4 << 20


@dataclass(frozen=True)
class Outcome:
    """A result: an image, or what is said in ``metadata``, or nothing at all."""

    id: str = ""
    built: Built | None = None
    metadata: dict[str, bytes] = field(default_factory=dict)


class Job:
    """One build of a client's, from its Solve to the end of that."""

    def __init__(
        self, request: SolveRequest, session: Session | None = None, status: BuildStatus | None = None
    ) -> None:
        self.request = request
        #: What answers the build's questions; None for the session that the request names.
        self.session = session
        self.status = status or BuildStatus()
        self.begun_ns = time.time_ns()
        #: What the client gives back, when it leads the build itself.
        self.returned: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._outcomes: dict[str, Outcome] = {}
        self._over = asyncio.Event()
        self._building: set[asyncio.Task[None]] = set()
        self._holding: set[asyncio.Task[None]] = set()

    @property
    def ref(self) -> str:
        """The client's id of it."""
        return self.request.ref

    async def hold(self, building: AbstractAsyncContextManager[Built]) -> Outcome:
        """Build, and keep what was built until `close`. Raises what the build raises; a cancellation ends it."""
        ready: asyncio.Future[Built] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._hold(building, ready), name=f"build {self.ref}")
        self._building.add(task)
        self._holding.add(task)
        task.add_done_callback(self._holding.discard)
        try:
            built = await ready
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait([task])
            if ready.done() and not ready.cancelled():
                ready.exception()  # nobody waits for it any more
            raise
        finally:
            self._building.discard(task)
        outcome = Outcome(uuid.uuid4().hex, built)
        self._outcomes[outcome.id] = outcome
        return outcome

    async def _hold(self, building: AbstractAsyncContextManager[Built], ready: "asyncio.Future[Built]") -> None:
        try:
            async with building as built:
                if ready.done():  # who waited has gone
                    return
                ready.set_result(built)
                await self._over.wait()
        except asyncio.CancelledError:
            if not ready.done():
                ready.set_exception(_cancelled())
            raise
        except Exception as error:
            if ready.cancelled():  # the client went, and the build failed for that before it could be cancelled
                log.debug("build %s ends without its client: %s", self.ref, error)
            elif ready.done():
                log.exception("what build %s held cannot be given up", self.ref)
            else:
                ready.set_exception(error)

    @property
    def outcomes(self) -> Mapping[str, Outcome]:
        """What it has built so far, by id."""
        return self._outcomes

    def cancel(self) -> None:
        """End what is being built, or waited for; whoever waits for it is told so."""
        if not self.returned.done():
            self.returned.set_exception(_cancelled())
        for task in self._building:
            task.cancel()

    async def close(self) -> None:
        """Give up what was built, end what is being built, and say to all that nothing more comes."""
        self._over.set()
        if not self.returned.cancel() and not self.returned.cancelled():
            self.returned.exception()  # whether anybody has asked for it or not
        for task in self._building:
            task.cancel()
        if self._holding:
            await asyncio.wait(self._holding)
        self.status.close()


def _cancelled() -> GrpcError:
    return GrpcError(Code.CANCELLED, "context canceled")


class Jobs:
    """All builds under way, and what the last ones told of themselves."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._finished: dict[str, BuildStatus] = {}
        self._opened = asyncio.Event()

    @contextlib.asynccontextmanager
    async def opened(
        self, request: SolveRequest, session: Session | None = None, status: BuildStatus | None = None
    ) -> AsyncIterator[Job]:
        """A new build, known until the end of the block. Raises Conflict."""
        if request.ref in self._jobs:
            raise Conflict(f"job ID {request.ref} exists")
        job = self._jobs[request.ref] = Job(request, session, status)
        self._opened.set()
        self._opened = asyncio.Event()
        try:
            yield job
        finally:
            try:
                await job.close()
            finally:
                del self._jobs[request.ref]
                self._finished[request.ref] = job.status
                self._forget()

    def _forget(self) -> None:
        """Keep what fits of what builds that are over told, the newest always."""
        kept = 0
        for place, (ref, status) in enumerate(reversed(list(self._finished.items()))):
            kept += status.kept_bytes
            if place and (place >= KEPT or kept > KEPT_BYTES):
                del self._finished[ref]

    def find(self, ref: str) -> Job:
        """Return a build under way. Raises NotFound."""
        if ref in self._jobs:
            return self._jobs[ref]
        raise NotFound(f"no such job: {ref!r}")

    def cancel(self, ref: str) -> None:
        """End a build; quiet when there is none of that id."""
        if ref in self._jobs:
            self._jobs[ref].cancel()

    def outcome(self, outcome_id: str) -> Outcome:
        """Return a result of any build under way. Raises NotFound."""
        for job in self._jobs.values():
            if outcome_id in job.outcomes:
                return job.outcomes[outcome_id]
        raise NotFound(f"no such ref: {outcome_id}")

    async def awaited(self, ref: str) -> Job:
        """Return a build under way, also one that is about to begin. Raises NotFound."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE if ref else 0):
                while ref not in self._jobs and ref not in self._finished:
                    await self._opened.wait()
        return self.find(ref)

    async def status(self, ref: str) -> BuildStatus:
        """Return what a build tells, also when it is over; waits a while for it to begin. Raises NotFound."""
        if ref in self._finished and ref not in self._jobs:
            return self._finished[ref]
        try:
            return (await self.awaited(ref)).status
        except NotFound:
            if ref in self._finished:
                return self._finished[ref]
            raise
