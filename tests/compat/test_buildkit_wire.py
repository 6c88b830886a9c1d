"""What clients of BuildKit may ask beyond what buildx of today does: files of results, history, and what is refused."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
from moorage_guest.buildkit import gateway_messages as gateway
from moorage_guest.buildkit.errors import Code, GrpcError
from moorage_guest.buildkit.grpc import Channel
from moorage_guest.buildkit.http2 import Connection
from moorage_guest.buildkit.messages import (
    BuildHistoryEvent,
    BuildHistoryRequest,
    CacheOptions,
    CacheOptionsEntry,
    Definition,
    Exporter,
    PolicyRule,
    RpcStatus,
    SolveRequest,
    SolveResponse,
    SourceOp,
    SourcePolicy,
    StatusRequest,
    StatusResponse,
    UpdateBuildHistoryRequest,
    UpdateBuildHistoryResponse,
)
from moorage_guest.buildkit.protobuf import Message
from moorage_guest.buildkit.session_messages import Stat

from tests.compat.test_buildkit_session import upgrade
from tests.support.buildclient import BuildClient, files
from tests.support.moored import Moored

pytestmark = pytest.mark.root

CONTROL = "/moby.buildkit.v1.Control/"
BRIDGE = "/moby.buildkit.v1.frontend.LLBBridge/"
FILES = "/moby.filesync.v1.FileSync/DiffCopy"
DOCKERFILE = b"FROM busybox\nRUN mkdir /d && echo content > /d/f && chmod 4711 /d/f && ln -s f /d/l && ln -s /etc/passwd /d/out\n"

M = TypeVar("M", bound=Message)


@dataclass
class Client:
    """Calls the engine; ``session`` serves the Dockerfile. ``build`` is the last build that `request` made."""

    channel: Channel
    session: str
    build: str = ""

    async def control(self, name: str, request: Message, answer: type[M]) -> M:
        return await self.channel.unary(CONTROL + name, request, answer)

    async def bridge(self, name: str, request: Message, answer: type[M]) -> M:
        metadata = [("buildkit-controlapi-buildid", self.build)]
        return await self.channel.unary(BRIDGE + name, request, answer, metadata=metadata)

    async def streamed(self, name: str, request: Message, answer: type[M]) -> list[M]:
        """Return all that a call yields until its end."""
        found = []
        async with self.channel.stream(CONTROL + name) as stream:
            await stream.send(request)
            await stream.finish()
            while (message := await stream.receive(answer)) is not None:
                found.append(message)
        return found

    def request(self, **fields: Any) -> SolveRequest:
        self.build = uuid.uuid4().hex
        return SolveRequest(ref=self.build, session=self.session, **fields)

    async def built(self) -> gateway.Ref:
        """Build the Dockerfile as part of the last build, once that is known."""
        await self.bridge("Ping", gateway.Empty(), gateway.PongResponse)
        wanted = gateway.SolveRequest(frontend="dockerfile.v0", attrs={"filename": "Dockerfile"})
        answer = await self.bridge("Solve", wanted, gateway.SolveResponse)
        assert answer.result is not None
        assert answer.result.ref is not None
        assert b"PATH=" in answer.result.metadata["containerimage.config"]
        return answer.result.ref


@contextlib.asynccontextmanager
async def client(moored: Moored) -> AsyncIterator[Client]:
    """A client with a session and a connection for calls."""
    session = uuid.uuid4().hex
    upgraded = "Connection: Upgrade", "Upgrade: h2c"
    head, held = upgrade(
        moored, "/session", *upgraded, f"X-Docker-Expose-Session-Uuid: {session}", "X-Docker-Expose-Session-Name: test",
        f"X-Docker-Expose-Session-Grpc-Method: {FILES}",
    )  # fmt: skip
    assert " 101 " in head
    head, calls = upgrade(moored, "/grpc", *upgraded)
    assert " 101 " in head
    for connection in (held, calls):
        connection.setblocking(False)
    dockerfile = Stat("Dockerfile", 0o644, 0, 0, len(DOCKERFILE))
    serving = BuildClient({FILES: files(dockerfile, contents={"Dockerfile": DOCKERFILE})})
    async with asyncio.TaskGroup() as group:
        task = group.create_task(serving.serve(held))
        opened = await Connection.open(calls, client=True)
        try:
            yield Client(Channel(opened), session)
        finally:
            opened.close()
            if serving.connection is not None:
                serving.connection.close()
            task.cancel()


async def test_a_client_that_leads_its_build_reads_what_came_out(moored: Moored) -> None:
    async with client(moored) as kit:
        request = kit.request(exporters=[Exporter("moby", {"name": "led"})])
        solving = asyncio.create_task(kit.control("Solve", request, SolveResponse))
        pong = await kit.bridge("Ping", gateway.Empty(), gateway.PongResponse)
        assert {"readfile", "return", "frontend.inputs"} <= {cap.id for cap in pong.frontend_caps if cap.enabled}
        ref = await kit.built()
        await kit.bridge("Evaluate", gateway.EvaluateRequest(ref.id), gateway.Empty)

        async def read(path: str, part: gateway.FileRange | None = None) -> bytes:
            wanted = gateway.ReadFileRequest(ref.id, path, part)
            return (await kit.bridge("ReadFile", wanted, gateway.ReadFileResponse)).data

        assert await read("/d/f") == await read("d/l") == b"content\n"
        assert await read("/d/f", gateway.FileRange(3, 2)) == b"te"
        assert await read("../../d/f") == b"content\n", "above the root there is the root"
        assert b"root:x:0:0" in await read("/d/out"), "of the result, not of the machine"
        listed = await kit.bridge("ReadDir", gateway.ReadDirRequest(ref.id, "/d", ""), gateway.ReadDirResponse)
        assert [(each.path, each.linkname) for each in listed.entries] == [
            ("f", ""),
            ("l", "f"),
            ("out", "/etc/passwd"),
        ]
        assert listed.entries[0].mode == 0o711 | 1 << 23, "set-user-id as Go writes it"
        chosen = await kit.bridge("ReadDir", gateway.ReadDirRequest(ref.id, "d", "o*"), gateway.ReadDirResponse)
        assert [each.path for each in chosen.entries] == ["out"]
        found = await kit.bridge("StatFile", gateway.StatFileRequest(ref.id, "/d/l"), gateway.StatFileResponse)
        assert found.stat is not None
        assert (found.stat.path, found.stat.linkname, found.stat.mode & 1 << 27) == ("l", "f", 1 << 27)
        for path, words in (("/nope", "no such file"), ("/d", "not a file")):
            with pytest.raises(GrpcError, match=words):
                await read(path)
        await kit.bridge("Warn", gateway.WarnRequest(short=b"mind the gap"), gateway.Empty)
        await kit.bridge("Return", gateway.ReturnRequest(gateway.Result(ref=gateway.Ref(ref.id))), gateway.Empty)
        answer = (await solving).exporter_response
        assert answer["image.name"] == "docker.io/library/led"
        assert moored.docker("image", "inspect", "-f", "{{.Id}}", "led") == answer["containerimage.digest"]
        told = await kit.streamed("Status", StatusRequest(kit.build), StatusResponse)
        assert [each.short for message in told for each in message.warnings] == [b"mind the gap"]
        assert "exporting to image" in {each.name for message in told for each in message.vertexes}


async def test_what_a_client_says_of_its_failure_is_how_the_build_fails(moored: Moored) -> None:
    async with client(moored) as kit:
        solving = asyncio.create_task(kit.control("Solve", kit.request(), SolveResponse))
        await kit.built()
        failed = gateway.ReturnRequest(error=RpcStatus(int(Code.UNKNOWN), "the client's own trouble"))
        await kit.bridge("Return", failed, gateway.Empty)
        with pytest.raises(GrpcError, match="the client's own trouble"):
            await solving


async def test_a_client_that_goes_before_it_returns_leaves_no_build(moored: Moored) -> None:
    async with client(moored) as kit:
        solving = asyncio.create_task(kit.control("Solve", kit.request(), SolveResponse))
        ref = await kit.built()
        solving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await solving
        await kit.streamed("Status", StatusRequest(kit.build), StatusResponse)  # which ends when the build is over
        with pytest.raises(GrpcError) as caught:
            await kit.bridge("Evaluate", gateway.EvaluateRequest(ref.id), gateway.Empty)
        assert caught.value.code == Code.NOT_FOUND


async def test_builds_are_listed_and_forgotten(moored: Moored) -> None:
    async with client(moored) as kit:
        request = kit.request(frontend="dockerfile.v0", exporters=[Exporter("moby", {"name": "listed"})])
        await kit.control("Solve", request, SolveResponse)

        async def records() -> dict[str, BuildHistoryEvent]:
            asked = BuildHistoryRequest(early_exit=True)
            found = await kit.streamed("ListenBuildHistory", asked, BuildHistoryEvent)
            return {each.record.ref: each for each in found if each.record is not None}

        event = (await records())[kit.build]
        assert event.type == 1
        assert event.record is not None
        assert event.record.exporter_response["image.name"] == "docker.io/library/listed"
        assert event.record.num_completed_steps == event.record.num_total_steps > 3
        forget = UpdateBuildHistoryRequest(kit.build, delete=True)
        await kit.control("UpdateBuildHistory", forget, UpdateBuildHistoryResponse)
        assert kit.build not in await records()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"frontend": "gateway.v0", "frontend_attrs": {"source": "some/frontend"}},
            "gateway.v0 some/frontend is not run",
        ),
        ({"definition": Definition([gateway.Op(source=SourceOp("git://x")).encode()])}, "no graphs of operations"),
        ({"definition": Definition([b"\xff"])}, "malformed definition"),
        ({"frontend": "dockerfile.v0", "exporters": [Exporter("oci")]}, 'exporter "oci" could not be found'),
        ({"frontend": "dockerfile.v0", "exporters": [Exporter("image", {"push": "true"})]}, "does not push"),
        ({"frontend": "dockerfile.v0", "exporters": [Exporter("moby", {"name": "UPPER"})]}, "must be lowercase"),
        ({"cache": CacheOptions(exports=[CacheOptionsEntry("registry")])}, 'unknown cache exporter: "registry"'),
        ({"entitlements": ["security.insecure"]}, "granting entitlement security.insecure is not allowed"),
        ({"source_policy": SourcePolicy(1, [PolicyRule(1)])}, "source policies are not supported"),
    ],
)
async def test_what_is_not_done_is_refused_before_anything_is(
    moored: Moored, fields: dict[str, Any], words: str
) -> None:
    async with client(moored) as kit:
        with pytest.raises(GrpcError, match=words):
            await kit.control("Solve", kit.request(**fields), SolveResponse)


async def test_calls_that_nobody_answers_say_so(moored: Moored) -> None:
    async with client(moored) as kit:
        with pytest.raises(GrpcError) as caught:
            await kit.bridge("Ping", gateway.Empty(), gateway.PongResponse)
        assert caught.value.code == Code.NOT_FOUND
        with pytest.raises(GrpcError) as caught:
            await kit.bridge("NewContainer", gateway.Empty(), gateway.Empty)
        assert caught.value.code == Code.UNIMPLEMENTED
