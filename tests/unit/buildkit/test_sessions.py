"""What a build gets from its client's session: files, secrets, logins, agents, outputs; and clients that misbehave."""

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest
from moorage_guest.buildkit import filesync
from moorage_guest.buildkit import session as sessions_module
from moorage_guest.buildkit.protobuf import Message
from moorage_guest.buildkit.session import ClientSession, Sessions
from moorage_guest.buildkit.session_messages import (
    BytesMessage,
    CheckAgentResponse,
    CredentialsRequest,
    CredentialsResponse,
    GetSecretRequest,
    GetSecretResponse,
    Packet,
    Stat,
)
from moorage_guest.errors import InvalidParameter
from moorage_guest.images.build.context import ContextTree
from moorage_guest.images.build.sources import Source

from tests.support.buildclient import Answer, BuildClient, End, Handler, files, session

LONG = 60.0

FOLDER, LINK, PIPE, SOCKET = 1 << 31, 1 << 27, 1 << 25, 1 << 24


@contextlib.asynccontextmanager
async def offering(tmp: Path, handlers: Mapping[str, Handler]) -> AsyncIterator[ClientSession]:
    """A session with a client that offers this."""
    async with asyncio.timeout(LONG), session(BuildClient(handlers), tmp) as sessions:
        yield await sessions.get("here")


def found(tree: ContextTree) -> dict[str, tuple[str, int, bytes | str]]:
    """Everything in a tree: kind, mode and content."""
    result: dict[str, tuple[str, int, bytes | str]] = {}
    for entry, content in tree.walk(Source(tree, "", True)):
        data: bytes | str = entry.link
        if content is not None:
            data = os.pread(content.descriptor, entry.size, content.offset)
        assert (entry.uid, entry.gid) == (0, 0)
        result[entry.name] = (entry.kind, entry.mode, data)
    return result


async def test_files_arrive_as_they_are_and_belong_to_root(tmp_path: Path) -> None:
    large = os.urandom(6 << 20)  # more than is kept in memory
    contents = {"a/empty": b"", "a/large": large, "a.txt": b"text", "b\udcff": b"raw name"}
    listed = [
        Stat("a", FOLDER | 0o700, 1000, 1000, 0, 5_000_000_007),
        Stat("a/empty", 0o600, 1000, 1000, 0, 7),
        Stat("a/hard", 0o640, 0, 0, 0, 7, "a/large"),
        Stat("a/large", 0o640 | 1 << 23, 1000, 1000, len(large), 7),
        Stat("a.txt", 0o644, 1, 1, 4, 7),
        Stat("b\udcff", 0o644, 1, 1, 8, 7),
        Stat("link", LINK | 0o777, 1, 1, 0, 7, "./a.txt"),
        Stat("pipe", PIPE | 0o644, 1, 1, 0, 7),
        Stat("sock", SOCKET | 0o644, 1, 1, 0, 7),
    ]
    listed[2], listed[3] = Stat("a/hard", *_of(listed[3])), Stat("a/large", *_of(listed[2]))
    listed[3].path, listed[3].linkname = "a/large", "a/hard"
    contents["a/hard"] = large
    told: list[int] = []
    async with offering(tmp_path, {filesync.FILES: files(*listed, contents=contents)}) as client:
        tree = await client.local("context", progress=told.append)
        with contextlib.closing(tree):
            assert found(tree) == {
                "a": ("5", 0o700, ""),
                "a/empty": ("0", 0o600, b""),
                "a/hard": ("0", 0o640 | stat.S_ISUID, large),
                "a/large": ("0", 0o640 | stat.S_ISUID, large),
                "a.txt": ("0", 0o644, b"text"),
                "b\udcff": ("0", 0o644, b"raw name"),
                "link": ("2", 0o777, "./a.txt"),
                "pipe": ("6", 0o644, ""),
            }
    assert told[-1] >= len(large)
    assert list(tmp_path.iterdir()) == []


def _of(entry: Stat) -> tuple[int, int, int, int, int, str]:
    return entry.mode, entry.uid, entry.gid, entry.size, entry.mod_time, entry.linkname


async def test_many_files_come_without_waiting_for_each_other(tmp_path: Path) -> None:
    contents = {f"{number:05d}": str(number).encode() * 100 for number in range(3000)}
    listed = [Stat(name, 0o644, 0, 0, len(data)) for name, data in contents.items()]
    async with offering(tmp_path, {filesync.FILES: files(*listed, contents=contents)}) as client:
        with contextlib.closing(await client.local("context")) as tree:
            assert {name: data for name, (_, _, data) in found(tree).items()} == contents


async def test_files_that_grow_or_shrink_meanwhile_are_taken_as_they_come(tmp_path: Path) -> None:
    contents = {"a": b"1" * 500_000, "b": b"22", "c": b"3" * 10}
    listed = [Stat("a", 0o644, 0, 0, 5), Stat("b", 0o644, 0, 0, 9_000_000), Stat("c", 0o644, 0, 0, 10)]
    async with offering(tmp_path, {filesync.FILES: files(*listed, contents=contents)}) as client:
        with contextlib.closing(await client.local("context")) as tree:
            assert {name: data for name, (_, _, data) in found(tree).items()} == contents


async def test_what_is_asked_of_the_client_says_which_files(tmp_path: Path) -> None:
    seen: list[Answer] = []

    async def handler(answer: Answer) -> None:
        seen.append(answer)
        await files(contents={})(answer)

    async with offering(tmp_path, {filesync.FILES: handler}) as client:
        exclude = ["*.o", "!keep me", "täglich", " spaced "]
        (await client.local("context", follow=["a", "b/c"], exclude=exclude)).close()
    (answer,) = seen
    assert answer.all("dir-name") == ["context"]
    assert answer.all("followpaths") == ["a", "b/c"] and answer.all("followpaths-encoded") == []
    assert answer.all("exclude-patterns-encoded") == ["1"]
    assert answer.all("exclude-patterns") == ["%2A.o", "%21keep+me", "t%C3%A4glich", "+spaced+"]


async def _nothing(answer: Answer) -> None:
    return None


def _sends(*packets: Packet) -> Handler:
    async def handler(answer: Answer) -> None:
        await answer.send(*packets)
        while await answer.packet() is not None:
            pass

    return handler


HOSTILE: dict[str, tuple[Handler, str]] = {
    "a path above": (_sends(Packet(0, Stat("../x", 0o644))), "impossible path"),
    "an absolute path": (_sends(Packet(0, Stat("/etc/passwd", 0o644))), "impossible path"),
    "a path with a dot": (_sends(Packet(0, Stat("a/./b", 0o644))), "impossible path"),
    "no path": (_sends(Packet(0, Stat("", 0o644))), "impossible path"),
    "a path twice": (_sends(Packet(0, Stat("a", 0o644)), Packet(0, Stat("a", 0o644))), "out of order"),
    "a path too late": (_sends(Packet(0, Stat("b", 0o644)), Packet(0, Stat("a", 0o644))), "out of order"),
    "a file of minus one byte": (_sends(Packet(0, Stat("a", 0o644, size=-1))), "-1 bytes"),
    "a file larger than any disk": (_sends(Packet(0, Stat("a", 0o644, size=1 << 60))), "refused"),
    "a link to nothing": (_sends(Packet(0, Stat("a", 0o644, linkname="../etc/shadow"))), "No such file"),
    "a file below a file": (_sends(Packet(0, Stat("a", 0o644)), Packet(0, Stat("a/b", 0o644))), "Not a directory"),
    "content unasked for": (_sends(Packet(0, Stat("a", 0o644, size=1)), Packet(2, id=7, data=b"x")), "not asked for"),
    "an early end": (_sends(Packet(3)), "before its end"),
    "an end without content": (_sends(Packet(0, Stat("a", 0o644, size=1)), Packet(0), Packet(3)), "before its end"),
    "more after the end": (_sends(Packet(0), Packet(0, Stat("a", 0o644))), "after the end"),
    "an error": (_sends(Packet(4, data=b"lstat x: permission denied")), "lstat x: permission denied"),
    "silence": (_nothing, "before its end"),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_client_that_sends_nonsense_fails_the_build_in_words(name: str, tmp_path: Path) -> None:
    handler, words = HOSTILE[name]
    async with offering(tmp_path, {filesync.FILES: handler}) as client:
        with pytest.raises(InvalidParameter, match=words):
            await client.local("context")
    assert list(tmp_path.iterdir()) == []


async def test_a_client_that_knows_no_such_folder_says_so(tmp_path: Path) -> None:
    async def handler(answer: Answer) -> None:
        raise End(5, 'no access allowed to dir "context"')

    async with offering(tmp_path, {filesync.FILES: handler}) as client:
        with pytest.raises(InvalidParameter, match='no access allowed to dir "context"'):
            await client.local("context")
    async with offering(tmp_path, {}) as client:
        with pytest.raises(InvalidParameter, match="no local sources enabled"):
            await client.local("context")


async def test_a_client_that_vanishes_amid_its_files_ends_the_build(tmp_path: Path) -> None:
    async def handler(answer: Answer) -> None:
        await answer.send(Packet(0, Stat("a", 0o644, size=1 << 30)), Packet(0))
        assert await answer.packet() is not None
        await answer.send(Packet(2, id=0, data=b"beginning"))
        connection = answer.stream._connection
        assert connection._transport is not None
        connection._transport.abort()

    async with offering(tmp_path, {filesync.FILES: handler}) as client:
        with pytest.raises(InvalidParameter, match=r"the client has closed its connection|the connection broke"):
            await client.local("context")
        await client.closed.wait()
    assert list(tmp_path.iterdir()) == []


def _says(answers: Callable[[Message], Message | End], kind: type[Message]) -> Handler:
    async def handler(answer: Answer) -> None:
        request = await answer.receive(kind)
        assert request is not None
        said = answers(request)
        if isinstance(said, End):
            raise said
        await answer.send(said)

    return handler


async def test_secrets_and_logins_are_asked_for_by_name(tmp_path: Path) -> None:
    def secret(request: Message) -> Message | End:
        assert isinstance(request, GetSecretRequest)
        known = {"token": b"s3cret\0", "huge": bytes(sessions_module.MAX_SECRET + 1)}
        return GetSecretResponse(known[request.id]) if request.id in known else End(5, "secret not found")

    def login(request: Message) -> Message | End:
        assert isinstance(request, CredentialsRequest)
        known = {"registry-1.docker.io": CredentialsResponse("me", "pw"), "gcr.io": CredentialsResponse("", "identity")}
        return known.get(request.host, CredentialsResponse())

    offered = {
        "/moby.buildkit.secrets.v1.Secrets/GetSecret": _says(secret, GetSecretRequest),
        "/moby.filesync.v1.Auth/Credentials": _says(login, CredentialsRequest),
    }
    async with offering(tmp_path, offered) as client:
        assert await client.secret("token") == b"s3cret\0"
        assert await client.secret("other") is None
        with pytest.raises(InvalidParameter, match="secret huge is larger"):
            await client.secret("huge")
        hub = await client.credentials("docker.io")
        assert (hub.username, hub.password) == ("me", "pw")
        assert (await client.credentials("gcr.io")).identity_token == "identity"
        nobody = await client.credentials("localhost:5000")
        assert (nobody.username, nobody.password, nobody.identity_token) == ("", "", "")
    async with offering(tmp_path, {}) as client:
        assert await client.secret("token") is None
        assert (await client.credentials("docker.io")).username == ""


async def test_an_agent_answers_at_a_socket_for_as_long_as_it_is_needed(tmp_path: Path) -> None:
    async def agent(answer: Answer) -> None:
        assert answer.all("buildkit.ssh.id") == ["work"]
        while (message := await answer.receive(BytesMessage)) is not None:
            assert isinstance(message, BytesMessage)
            await answer.send(BytesMessage(b"signed " + message.data))

    async def check(answer: Answer) -> None:
        await answer.send(CheckAgentResponse())

    offered = {"/moby.sshforward.v1.SSH/CheckAgent": check, "/moby.sshforward.v1.SSH/ForwardAgent": agent}
    folder = tmp_path / ("long" * 20) / ("path" * 20)
    folder.mkdir(parents=True)
    path = folder / "agent.sock"
    async with offering(tmp_path, offered) as client:
        async with client.ssh("work", path, 1000, 1001, 0o600):
            status = path.stat()
            assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1000, 1001, 0o600)
            loop = asyncio.get_running_loop()
            opened = []
            for number in range(3):
                connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                opened.append(connection)
                descriptor = os.open(folder, os.O_PATH)
                await loop.sock_connect(connection, f"/proc/self/fd/{descriptor}/agent.sock")
                os.close(descriptor)
                await loop.sock_sendall(connection, b"%d" % number)
                assert await loop.sock_recv(connection, 100) == b"signed %d" % number
        for connection in opened:
            assert await loop.sock_recv(connection, 100) == b""
            connection.close()
        assert not path.exists()
    async with offering(tmp_path, {}) as client:
        with pytest.raises(InvalidParameter, match="unset ssh forward key default"):
            async with client.ssh("", path, 0, 0, 0o600):
                pass


async def test_an_agent_that_the_client_lacks_is_refused_in_its_words(tmp_path: Path) -> None:
    async def check(answer: Answer) -> None:
        raise End(2, "unset ssh forward key other")

    async with offering(tmp_path, {"/moby.sshforward.v1.SSH/CheckAgent": check}) as client:
        with pytest.raises(InvalidParameter, match="unset ssh forward key other"):
            async with client.ssh("other", tmp_path / "sock", 0, 0, 0o600):
                pass
    assert list(tmp_path.iterdir()) == []


async def _pieces(*data: bytes) -> AsyncIterator[bytes]:
    for each in data:
        yield each


async def test_an_output_is_sent_as_a_stream_and_a_refusal_is_told(tmp_path: Path) -> None:
    got: list[bytes] = []
    asked: list[Answer] = []

    async def take(answer: Answer) -> None:
        asked.append(answer)
        while (message := await answer.receive(BytesMessage)) is not None:
            assert isinstance(message, BytesMessage)
            got.append(message.data)

    async with offering(tmp_path, {filesync.OUTPUT: take}) as client:
        assert await client.send_tar("1", _pieces(b"a" * 100_000, b"b"), [("name", "x")]) == 100_001
        assert b"".join(got) == b"a" * 100_000 + b"b"
        assert asked[0].all("buildkit-attachable-exporter-id") == ["1"] and asked[0].all("exporter-md-name") == ["x"]

    async def refuse(answer: Answer) -> None:
        raise End(2, "write /out: no space left on device")

    async with offering(tmp_path, {filesync.OUTPUT: refuse}) as client:
        with pytest.raises(InvalidParameter, match="no space left on device"):
            await client.send_tar("", _pieces(*[bytes(1 << 20)] * 50))
    async with offering(tmp_path, {}) as client:
        with pytest.raises(InvalidParameter, match="not supported by the client"):
            await client.send_tar("", _pieces())


async def _fetch(answer: Answer, into: dict[str, tuple[Stat, bytes]]) -> None:
    """Take files as a client does that writes them to a folder."""
    listed: list[Stat] = []
    while (packet := await answer.packet()) is not None:
        if packet.type == 0 and packet.stat is not None:
            listed.append(packet.stat)
            continue
        assert packet.type == 0
        break
    for number, each in enumerate(listed):
        data = b""
        if each.mode & (FOLDER | LINK | PIPE) == 0 and not each.linkname:
            await answer.send(Packet(1, id=number))
            while (piece := await answer.packet()) is not None and piece.data:
                assert (piece.type, piece.id) == (2, number)
                data += piece.data
        into[each.path] = (each, data)
    await answer.send(Packet(3))
    last = await answer.packet()
    assert last is not None and last.type == 3


async def test_a_folder_is_sent_with_everything_that_files_have(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "dir" / "sub").mkdir(parents=True)
    (root / "dir" / "large").write_bytes(os.urandom(3 << 20))
    (root / "dir.txt").write_bytes(b"after dir")
    (root / "dir.txt").chmod(0o4755)
    os.link(root / "dir" / "large", root / "twin")
    (root / "link").symlink_to("./dir/../dir.txt")
    os.mkfifo(root / "pipe")
    taken: dict[str, tuple[Stat, bytes]] = {}
    told: list[int] = []

    async def take(answer: Answer) -> None:
        await _fetch(answer, taken)

    async with offering(tmp_path, {filesync.OUTPUT: take}) as client:
        sent = await client.send_files("0", root, told.append)
    assert list(taken) == ["dir", "dir/large", "dir/sub", "dir.txt", "link", "pipe", "twin"]
    assert taken["dir/large"][1] == (root / "dir" / "large").read_bytes()
    assert sent == told[-1] == (3 << 20) + len(b"after dir")
    assert taken["dir.txt"][0].mode == 0o755 | 1 << 23
    assert taken["link"][0].linkname == "./dir/../dir.txt"
    assert taken["twin"][0].linkname == "dir/large" and taken["dir"][0].mode & FOLDER


@pytest.mark.parametrize(
    ("packet", "words"),
    [(Packet(1, id=99), "that there is not"), (Packet(4, data=b"disk full"), "error from receiver: disk full")],
)
async def test_a_receiver_that_asks_for_nonsense_ends_the_output(packet: Packet, words: str, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()

    async def take(answer: Answer) -> None:
        await answer.send(packet)
        while await answer.packet() is not None:
            pass

    async with offering(tmp_path, {filesync.OUTPUT: take}) as client:
        with pytest.raises(InvalidParameter, match=words):
            await client.send_files("0", tmp_path / "root")


async def test_an_upload_is_pulled_by_its_name(tmp_path: Path) -> None:
    async def give(answer: Answer) -> None:
        assert answer.all("urlpath") == ["/abc"]
        await answer.send(BytesMessage(b"1"), BytesMessage(b"2"))

    async with offering(tmp_path, {"/moby.upload.v1.Upload/Pull": give}) as client:
        assert [piece async for piece in client.upload("abc")] == [b"1", b"2"]


async def test_a_build_waits_for_its_session_and_not_forever(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path)
    with pytest.raises(InvalidParameter, match="no active session for late: context deadline exceeded"):
        await sessions.get("late", 0.01)
    waiting = [asyncio.ensure_future(sessions.get(each, LONG)) for each in ("late", "prefix:late")]
    await asyncio.sleep(0)
    async with connected(sessions, "late"):
        first, second = await asyncio.gather(*waiting)
        assert first is second and first.id == "late"
        with pytest.raises(InvalidParameter, match="session late already exists"):
            sessions.check("late", "h2c")
    with pytest.raises(InvalidParameter, match="no active session"):
        await sessions.get("late", 0.01)


@contextlib.asynccontextmanager
async def connected(sessions: Sessions, name: str) -> AsyncIterator[None]:
    """Hold a session open with a client that offers nothing."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    serving = asyncio.ensure_future(sessions.serve(ours, b"", session_id=name, name="", shared_key="", methods=[]))
    client = asyncio.ensure_future(BuildClient().serve(theirs))
    try:
        yield
    finally:
        serving.cancel()
        await asyncio.gather(serving, client, return_exceptions=True)


async def test_a_client_that_no_longer_says_it_is_well_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions_module, "_HEALTH_INTERVAL", 0.05)
    monkeypatch.setattr(sessions_module, "_HEALTH_DEADLINE", 0.1)
    asked = asyncio.Event()

    async def hang(answer: Answer) -> None:
        asked.set()
        await asyncio.sleep(LONG)

    async with offering(tmp_path, {"/grpc.health.v1.Health/Check": hang}) as client:
        await asked.wait()
        await client.closed.wait()
