"""Pull and push with Debian's docker-registry: plain, basic and token auth, broken connections, wrong content."""

import asyncio
import contextlib
import contextvars
import json
import random
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from moorage_guest.errors import EngineError, NotFound, Unauthorized
from moorage_guest.images import names, remote
from moorage_guest.images.distribution import describe
from moorage_guest.images.pulling import pull
from moorage_guest.images.pushing import push
from moorage_guest.images.registry import Credentials, RegistryError, RegistrySettings, login
from moorage_guest.images.remote import fetched

from tests.support.cutting import CuttingProxy
from tests.support.images import busybox_archive, docker_archive, layer_tar
from tests.support.imagestore import Shelf, image_api, serving, shelf
from tests.support.registry import PASSWORD, USER, Registry, TokenServer, basic_auth, registry

pytestmark = pytest.mark.root

ANONYMOUS = Credentials()
LOGIN = Credentials(USER, PASSWORD)


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Shelf]:
    async with shelf(tmp_path / "data") as found:
        yield found


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Registry]:
    with registry(tmp_path / "registry") as running:
        yield running


class Messages(list[dict[str, Any]]):
    """What a client is shown."""

    def statuses(self) -> list[str]:
        return [str(each.get("status")) for each in self]


async def pushed(opened: Shelf, name: str, own: Credentials = ANONYMOUS) -> Messages:
    messages = Messages()
    opened.images.tag(opened.images.resolve("busybox"), names.parse(name))
    await push(opened.images, names.parse(name), messages.append, credentials=own)
    return messages


async def forget(opened: Shelf) -> None:
    for image in opened.images.all():
        await opened.images.remove(image.id, force=True)
    assert opened.files() == set()


async def test_what_was_pushed_is_pulled_again_with_the_cli(opened: Shelf, plain: Registry) -> None:
    async with serving(opened, image_api(opened)):
        await opened.docker("load", "-i", str(busybox_archive()))
        name = f"{plain.host}/team/bb:v1"
        await opened.docker("tag", "busybox", name)
        done = await opened.docker("push", name)
        assert done.returncode == 0, done
        assert b"v1: digest: sha256:" in done.stdout
        again = await opened.docker("push", name)
        assert b"Layer already exists" in again.stdout
        image = opened.images.resolve(name)
        assert len(image.repo_digests) == 1
        await opened.docker("rmi", "-f", "busybox", name)
        assert opened.files() == set()
        done = await opened.docker("pull", name)
        assert done.returncode == 0, done
        assert b"Pull complete" in done.stdout
        assert b"Status: Downloaded newer image for" in done.stdout
        assert opened.images.resolve(name).id == image.id
        by_digest = image.repo_digests[0]
        assert opened.images.resolve(by_digest).id == image.id
        done = await opened.docker("pull", by_digest)
        assert b"Image is up to date" in done.stdout, done
        inspected = json.loads((await opened.docker("image", "inspect", name)).stdout)[0]
        assert inspected["RepoDigests"] == [by_digest]
        missing = await opened.docker("pull", f"{plain.host}/team/bb:nothing")
        assert b"manifest unknown" in missing.stderr
        assert missing.returncode != 0


async def test_every_tag_of_a_repository_is_pulled(opened: Shelf, plain: Registry) -> None:
    opened.load(busybox_archive().read_bytes())
    for tag in ("one", "two"):
        await pushed(opened, f"{plain.host}/all:{tag}")
    await forget(opened)
    found = await pull(
        opened.images, names.parse(f"{plain.host}/all"), Messages().append, credentials=ANONYMOUS, everything=True
    )
    assert {tag for image in found for tag in opened.images.get(image.id).repo_tags} == {
        f"{plain.host}/all:one",
        f"{plain.host}/all:two",
    }


async def test_basic_auth_lets_nobody_in_without_a_login(opened: Shelf, tmp_path: Path) -> None:
    opened.load(busybox_archive().read_bytes())
    with registry(tmp_path / "registry", basic_auth(tmp_path / "auth")) as closed:
        name = f"{closed.host}/b:1"
        with pytest.raises(Unauthorized):
            await pushed(opened, name)
        with pytest.raises(Unauthorized):
            await pushed(opened, name, Credentials(USER, "wrong"))
        await pushed(opened, name, LOGIN)
        await forget(opened)
        with pytest.raises(NotFound, match="pull access denied"):
            await pull(opened.images, names.parse(name), Messages().append, credentials=ANONYMOUS)
        await pull(opened.images, names.parse(name), Messages().append, credentials=LOGIN)
        settings = opened.images.registries
        value = {"username": USER, "password": PASSWORD, "serveraddress": closed.host}
        assert (await login(settings, value))["Status"] == "Login Succeeded"
        with pytest.raises(Unauthorized, match="failed with status: 401 Unauthorized"):
            await login(settings, {**value, "password": "wrong"})


async def test_token_auth_is_asked_for_what_is_needed(opened: Shelf, tmp_path: Path) -> None:
    opened.load(busybox_archive().read_bytes())
    server = TokenServer(tmp_path / "tokens")
    with contextlib.closing(server), registry(tmp_path / "registry", server.auth) as closed:
        await pushed(opened, f"{closed.host}/public/b:1", LOGIN)
        await pushed(opened, f"{closed.host}/private/b:1", LOGIN)
        assert "repository:private/b:pull,push" in server.asked
        await forget(opened)
        await pull(opened.images, names.parse(f"{closed.host}/public/b:1"), Messages().append, credentials=ANONYMOUS)
        with pytest.raises(NotFound, match="pull access denied"):
            await pull(
                opened.images, names.parse(f"{closed.host}/private/b:1"), Messages().append, credentials=ANONYMOUS
            )
        await pull(opened.images, names.parse(f"{closed.host}/private/b:1"), Messages().append, credentials=LOGIN)
        value = {"username": USER, "password": PASSWORD, "serveraddress": closed.host}
        assert (await login(opened.images.registries, value))["Status"] == "Login Succeeded"
        with pytest.raises(Unauthorized):
            await login(opened.images.registries, {**value, "password": "wrong"})


async def test_a_mirror_is_asked_first_and_its_absence_is_no_error(opened: Shelf, plain: Registry) -> None:
    opened.load(busybox_archive().read_bytes())
    await pushed(opened, f"{plain.host}/library/bb:1")
    await forget(opened)
    opened.images.configure(RegistrySettings(registry_mirrors=["http://127.0.0.1:1/", f"http://{plain.host}/"]))
    await pull(opened.images, names.parse("bb:1"), Messages().append, credentials=ANONYMOUS)
    assert opened.images.resolve("bb:1").repo_digests[0].startswith("bb@sha256:")


async def test_a_registry_that_is_not_declared_insecure_is_not_spoken_to_in_the_clear() -> None:
    settings = RegistrySettings(insecure_registries=["10.0.0.0/8", "reg.example:5000"])
    assert settings.is_insecure("127.0.0.9:5000")
    assert settings.is_insecure("[::1]:5000")
    assert settings.is_insecure("10.1.2.3")
    assert settings.is_insecure("reg.example:5000")
    assert not settings.is_insecure("reg.example")
    assert not settings.is_insecure("192.0.2.1:5000")


async def test_what_a_registry_has_can_be_asked_without_pulling(opened: Shelf, plain: Registry) -> None:
    opened.load(busybox_archive().read_bytes())
    name = f"{plain.host}/d:1"
    await pushed(opened, name)
    found = await describe(opened.images.registries, names.parse(name), ANONYMOUS)
    assert found["Descriptor"]["digest"] == opened.images.resolve(name).repo_digests[0].partition("@")[2]
    assert found["Platforms"][0]["os"] == "linux"


async def test_a_download_that_breaks_off_goes_on_where_it_was(opened: Shelf, plain: Registry) -> None:
    layer = layer_tar({"noise": random.Random(1).randbytes(6 << 20)})
    opened.load(docker_archive([layer], tags=["busybox"]))
    await pushed(opened, f"{plain.host}/big:1")
    await forget(opened)
    proxy = CuttingProxy(plain.port, 2 << 20, 2)
    with contextlib.closing(proxy):
        name = f"127.0.0.1:{proxy.port}/big:1"
        await pull(opened.images, names.parse(name), Messages().append, credentials=ANONYMOUS)
        assert proxy.left == 0
    assert opened.images.resolve(name).size == 6 << 20


async def test_a_blob_that_was_changed_at_the_registry_is_refused_whole(opened: Shelf, plain: Registry) -> None:
    opened.load(busybox_archive().read_bytes())
    name = f"{plain.host}/spoilt:1"
    await pushed(opened, name)
    digest = opened.images.compressed(opened.images.resolve(name).layers[0].digest)
    assert digest is not None
    await forget(opened)
    (blob,) = plain.folder.glob(f"data/**/blobs/sha256/*/{digest[0][7:]}/data")
    data = bytearray(blob.read_bytes())
    data[-20] ^= 0xFF
    blob.write_bytes(data)
    with pytest.raises(EngineError, match=r"verification failed|invalid data|diff_id|digest"):
        await pull(opened.images, names.parse(name), Messages().append, credentials=ANONYMOUS)
    assert opened.files() == set()
    shutil.rmtree(blob.parent)
    opened.images.configure(RegistrySettings(max_download_attempts=1))
    with pytest.raises((RegistryError, NotFound)):
        await pull(opened.images, names.parse(name), Messages().append, credentials=ANONYMOUS)
    assert opened.files() == set()


async def test_a_pull_that_is_given_up_leaves_nothing(opened: Shelf, plain: Registry) -> None:
    opened.load(docker_archive([layer_tar({"noise": random.Random(2).randbytes(6 << 20)})], tags=["busybox"]))
    name = f"{plain.host}/given-up:1"
    await pushed(opened, name)
    await forget(opened)
    begun = asyncio.Event()

    def progress(message: dict[str, Any]) -> None:
        if message.get("status") == "Downloading":
            begun.set()

    task = asyncio.create_task(pull(opened.images, names.parse(name), progress, credentials=ANONYMOUS))
    await asyncio.wait_for(begun.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert opened.files() == set()
    await pull(opened.images, names.parse(name), progress, credentials=ANONYMOUS)


async def test_two_pulls_of_one_image_at_a_time_both_succeed(opened: Shelf, plain: Registry) -> None:
    opened.load(busybox_archive().read_bytes())
    name = f"{plain.host}/twice:1"
    await pushed(opened, name)
    await forget(opened)
    both = await asyncio.gather(
        *(pull(opened.images, names.parse(name), Messages().append, credentials=ANONYMOUS) for _ in range(2))
    )
    assert both[0][0].id == both[1][0].id
    await opened.layers.create_rw("c", both[0][0].id)
    assert ((await opened.layers.mount("c")) / "bin/sh").is_symlink()


async def test_a_registry_that_is_not_there_is_named(opened: Shelf) -> None:
    with pytest.raises(RegistryError, match=r'Get "http://127\.0\.0\.1:1/v2/": dial tcp'):
        await pull(opened.images, names.parse("127.0.0.1:1/x"), Messages().append, credentials=ANONYMOUS)


async def test_a_layer_that_another_repository_has_is_mounted_from_there(opened: Shelf, plain: Registry) -> None:
    opened.load(busybox_archive().read_bytes())
    await pushed(opened, f"{plain.host}/team/first:1")
    messages = await pushed(opened, f"{plain.host}/team/second:1")
    assert "Mounted from team/first" in messages.statuses()
    assert not {"Pushing", "Pushed"} & set(messages.statuses())
    again = await pushed(opened, f"{plain.host}/team/second:2")
    assert "Layer already exists" in again.statuses()
    await forget(opened)
    await pull(opened.images, names.parse(f"{plain.host}/team/second:2"), Messages().append, credentials=ANONYMOUS)


async def test_layers_of_an_image_that_is_here_already_are_not_fetched(opened: Shelf, plain: Registry) -> None:
    opened.load(busybox_archive().read_bytes())
    first = await pushed(opened, f"{plain.host}/team/here:1")
    await forget(opened)
    opened.load(busybox_archive().read_bytes())  # the same image, its layers packed otherwise
    before, messages = opened.files(), Messages()
    name = names.parse(f"{plain.host}/team/here:1")
    (image,) = await pull(opened.images, name, messages.append, credentials=ANONYMOUS)
    digest = first[-1]["aux"]["Digest"]
    assert messages.statuses() == [
        "Pulling from team/here", f"Digest: {digest}", f"Status: Downloaded newer image for {name}",
    ]  # fmt: skip
    assert image.repo_digests == [f"{plain.host}/team/here@{digest}"]
    new = {path.rpartition("/")[2] for path in opened.files() - before}
    assert new == {digest.removeprefix("sha256:")}, "the manifest and nothing else is new"


async def test_why_a_registry_cannot_be_spoken_to_is_said_as_dockerd_does(tmp_path: Path, plain: Registry) -> None:
    with pytest.raises(EngineError, match="http: server gave HTTP response to HTTPS client"):
        async with fetched(f"https://{plain.host}/v2/"):
            pass
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=tests", "-keyout", tmp_path / "key", "-out", tmp_path / "certificate"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0, ssl=own)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(EngineError, match="x509: certificate signed by unknown authority"):
            async with fetched(f"https://127.0.0.1:{port}/v2/"):
                pass


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([(401, b'{"errors": [{"Code": "UNAUTHORIZED", "message": "a message"}]}')], "unauthorized: a message"),
        ([(401, b'{"error": "unauthorized"}')], "unauthorized: authentication required"),
        ([(401, b'{"details": "incorrect password"}')], "unauthorized: incorrect password"),
        ([(503, b""), (429, b'{"errors": [{"code": "TOOMANYREQUESTS", "message": "out of tokens"}]}')], "toomanyrequests: out of tokens"),
        ([(403, b"no way")], "error parsing HTTP 403 response body: "),
        ([(200, b'{"something": "wrong"}')], "authorization server did not include a token in the response"),
        ([(200, b"no json")], "unable to decode token response"),
    ],
)  # fmt: skip
async def test_what_a_token_server_says_is_told_in_dockers_words(
    opened: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: list[tuple[int, bytes]], message: str
) -> None:
    opened.load(busybox_archive().read_bytes())
    left = list(answers)
    with contextlib.closing(TokenServer(tmp_path / "auth")) as tokens:
        monkeypatch.setattr(tokens, "answer", lambda authorization, query: left.pop(0) if len(left) > 1 else left[0])
        with registry(tmp_path / "closed", tokens.auth) as closed:
            with pytest.raises(EngineError) as refused:
                await pushed(opened, f"{closed.host}/x:1")
    assert message in str(refused.value)
    assert len(left) == 1


def test_registries_are_told_on_whose_behalf_they_are_asked() -> None:
    def told(client: str) -> str:
        remote.UPSTREAM.set(client)
        return remote.me()["User-Agent"]

    own = remote.ME["User-Agent"]
    agent = contextvars.copy_context().run(told, "Docker-Client/28 (linux; x)")
    assert agent == own + r" UpstreamClient(Docker-Client/28 \(linux\; x\))"
    assert contextvars.copy_context().run(told, "two\nlines") == own
