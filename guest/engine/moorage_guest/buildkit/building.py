"""Runs what a client asks a frontend for, as part of one of its jobs.

The one frontend there is reads Dockerfiles and is built in. Graphs of operations (LLB) that a client made itself are not
run; those given back by us stand for what was built, so that one build can go on where another ended.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moorage_guest.buildkit import gateway_messages as gateway
from moorage_guest.buildkit.failures import unsupported_subrequest
from moorage_guest.buildkit.jobs import Job, Jobs, Outcome
from moorage_guest.buildkit.messages import CacheOptionsEntry, Definition, OpMetadata, SourceOp
from moorage_guest.buildkit.protobuf import WireError
from moorage_guest.buildkit.session import Sessions
from moorage_guest.errors import InvalidParameter, NotFound
from moorage_guest.images.build import subrequests
from moorage_guest.images.build.request import Request
from moorage_guest.images.build.seams import Built
from moorage_guest.images.build.solve import Site, solving

DOCKERFILE = "dockerfile.v0"

#: By this a definition names a result of ours.
_OURS = "moorage-result://"

#: The key of a result's metadata under which its image's configuration is.
CONFIG = "containerimage.config"


@dataclass(frozen=True)
class Question:
    """What is asked of a frontend."""

    frontend: str
    definition: Definition | None
    attrs: Mapping[str, str]
    cache_imports: Sequence[CacheOptionsEntry]
    inputs: Mapping[str, Definition]


@dataclass(frozen=True)
class Building:
    """What builds consist of."""

    site: Site
    sessions: Sessions
    jobs: Jobs

    async def solve(self, job: Job, question: Question) -> Outcome:
        """Return what comes out. Raises EngineError; a cancellation ends what has begun."""
        if question.definition is not None and question.definition.definition:
            return self.given(question.definition)
        if not question.frontend:
            return Outcome()
        if question.frontend != DOCKERFILE:
            source = question.attrs.get("source", "")
            raise InvalidParameter(
                f"frontend {question.frontend}{' ' + source if source else ''} is not run by this engine, which has the frontend "
                f"{DOCKERFILE} built in; use a builder of the docker-container driver for another"
            )
        inputs = {name: self._input(name, definition) for name, definition in question.inputs.items()}
        imports = [(entry.type, entry.attrs) for entry in question.cache_imports]
        wanted = Request.of(question.attrs, imports, job.request.entitlements)
        session = job.session or await self.sessions.get(job.request.session)
        if asked := question.attrs.get("requestid", ""):
            tmp = self.site.images.content.tmp
            said = await subrequests.answer(asked, wanted, session, job.status, tmp)
            if said is None:
                raise unsupported_subrequest(asked)
            return Outcome(metadata=said)
        building = solving(self.site, wanted, session, job.status, inputs)
        outcome = await job.hold(building)
        assert outcome.built is not None
        outcome.metadata[CONFIG] = configuration(outcome.built)
        return outcome

    def given(self, definition: Definition) -> Outcome:
        """Return the result that a definition stands for. Raises InvalidParameter, NotFound."""
        for data in definition.definition:
            try:
                source = gateway.Op.decode(data).source
            except WireError as error:
                raise InvalidParameter(f"malformed definition: {error}") from None
            if source is None or not source.identifier.startswith(_OURS):
                continue
            return self.jobs.outcome(source.identifier.removeprefix(_OURS))
        raise InvalidParameter(
            "this engine builds Dockerfiles and runs no graphs of operations (LLB) that a client made; use a builder of the "
            "docker-container driver for these"
        )

    def _input(self, name: str, definition: Definition) -> Built:
        try:
            built = self.given(definition).built
        except NotFound:
            raise InvalidParameter(f"the build that context {name} comes from is over") from None
        if built is None:
            raise InvalidParameter(f"context {name} is nothing that was built")
        return built


def definition_of(outcome: Outcome) -> Definition | None:
    """Return what a client may give back to us instead of the result itself; None for an empty one."""
    if outcome.built is None:
        return None
    source = gateway.Op(source=SourceOp(identifier=_OURS + outcome.id)).encode()
    digest = "sha256:" + hashlib.sha256(source).hexdigest()
    last = gateway.Op(inputs=[gateway.OpInput(digest)]).encode()
    return Definition([source, last], {digest: OpMetadata(description={"llb.customname": "result of another build"})})


def configuration(built: Built) -> bytes:
    """Return an image's configuration as it is stored."""
    return json.dumps(built.document, separators=(",", ":"), ensure_ascii=False).encode()
