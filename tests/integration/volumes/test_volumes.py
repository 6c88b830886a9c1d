"""Volumes on a real disk with real mounts, in a mount namespace of the test's own where one is needed."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from moorage_guest import mountcalls
from moorage_guest.errors import Conflict, InvalidParameter, NotFound, SystemError_
from moorage_guest.events import EventBus
from moorage_guest.paths import DataRoot
from moorage_guest.store import Store
from moorage_guest.volumes import ANONYMOUS, Volumes


@pytest.fixture
def data(tmp_path: Path) -> Iterator[DataRoot]:
    root = DataRoot(tmp_path)
    yield root
    for path in root.volumes.glob("*/_data"):
        if mountcalls.is_mounted(path):
            mountcalls.unmount(path)
            pytest.fail(f"{path} was left mounted")


@pytest.fixture
def store(data: DataRoot) -> Iterator[Store]:
    made = Store(data.database)
    yield made
    made.close()


@pytest.fixture
def events() -> EventBus:
    return EventBus()


@pytest.fixture
def volumes(store: Store, events: EventBus, data: DataRoot) -> Volumes:
    return Volumes(store, events, data)


async def test_create_is_idempotent_and_survives_a_restart(
    volumes: Volumes, store: Store, events: EventBus, data: DataRoot
) -> None:
    made = await volumes.create("data", "", {}, {"a": "b"})
    assert made.mountpoint.is_dir()
    assert await volumes.create("data", "local", {}, {}) == made
    again = Volumes(store, events, data)
    assert again.get("data") == made
    assert [event.action for event in events.history()] == ["create"]


async def test_volume_without_record_keeps_its_content(volumes: Volumes, store: Store, data: DataRoot) -> None:
    made = await volumes.create("data", "", {}, {})
    (made.mountpoint / "file").write_text("kept")
    store.delete("volume", "data")
    assert (Volumes(store, EventBus(), data).get("data").mountpoint / "file").read_text() == "kept"


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("a", {}, "volume name is too short"),
        ("../x", {}, "includes invalid characters"),
        ("has space", {}, "includes invalid characters"),
        ("ok", {"hello": "x"}, 'invalid option: "hello"'),
        ("ok", {"device": "/x"}, 'missing required option: "type"'),
        ("ok", {"size": "1G"}, "quota size requested but no quota support"),
    ],
)
async def test_bad_names_and_options_are_refused(
    volumes: Volumes, name: str, options: dict[str, str], text: str
) -> None:
    with pytest.raises(InvalidParameter, match=text):
        await volumes.create(name, "local", options, {})
    assert not list(volumes.matching({}))


async def test_unknown_driver_is_not_found(volumes: Volumes) -> None:
    with pytest.raises(NotFound, match='plugin "nope" not found'):
        await volumes.create("data", "nope", {}, {})


async def test_volume_in_use_is_not_removed(volumes: Volumes) -> None:
    made = await volumes.create("data", "", {}, {})
    await volumes.reference("data", "c1")
    with pytest.raises(Conflict, match=r"remove data: volume is in use - \[c1\]"):
        await volumes.remove("data")
    await volumes.unreference("data", "c1")
    await volumes.remove("data")
    assert not made.mountpoint.parent.exists()
    with pytest.raises(NotFound, match="get data: no such volume"):
        await volumes.remove("data")
    await volumes.remove("data", force=True)


async def test_prune_takes_unused_anonymous_volumes_and_all_on_request(volumes: Volumes) -> None:
    anonymous = await volumes.create(None, "", {}, {})
    (anonymous.mountpoint / "file").write_bytes(b"x" * 1000)
    assert ANONYMOUS in anonymous.labels
    await volumes.create("named", "", {}, {"keep": "yes"})
    await volumes.create("used", "", {}, {})
    await volumes.reference("used", "c1")
    assert await volumes.prune({}) == ([anonymous.name], 1000)
    assert await volumes.prune({"all": ["1"], "label!": ["keep"]}) == ([], 0)
    assert await volumes.prune({"all": ["1"]}) == (["named"], 0)
    assert [v.name for v in volumes.matching({})] == ["used"]


async def test_list_filters(volumes: Volumes) -> None:
    await volumes.create("one", "", {}, {"colour": "red"})
    await volumes.create("two", "", {}, {})
    await volumes.reference("two", "c1")

    def names(**filters: list[str]) -> list[str]:
        return [volume.name for volume in volumes.matching(filters)]

    assert names(name=["on"]) == ["one"]
    assert names(label=["colour=red"]) == ["one"]
    assert names(dangling=["true"]) == ["one"]
    assert names(dangling=["0"]) == ["two"]
    assert names(driver=["local"]) == ["one", "two"]
    with pytest.raises(InvalidParameter, match="invalid filter 'colour'"):
        names(colour=["red"])


async def test_copy_up_keeps_everything_about_files(volumes: Volumes, tmp_path: Path) -> None:
    root = tmp_path / "rootfs"
    source = root / "srv" / "www"
    source.mkdir(parents=True)
    source.chmod(0o750)
    os.chown(source, 33, 34)
    (source / "a").write_text("content")
    os.chown(source / "a", 1000, 1001)
    (source / "a").chmod(0o4751)
    os.utime(source / "a", ns=(10**18, 10**18))
    os.link(source / "a", source / "b")
    (source / "sub").mkdir()
    (source / "link").symlink_to("/etc/passwd")
    os.mkfifo(source / "sub" / "pipe")
    volume = await volumes.create("data", "", {}, {})
    assert await volumes.populate("data", root, "/srv/www")
    got = volume.mountpoint
    status = got.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (33, 34, 0o750)
    status = (got / "a").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1000, 1001, 0o4751)
    assert status.st_mtime_ns == 10**18
    assert (got / "b").stat().st_ino == status.st_ino
    assert (got / "link").readlink() == Path("/etc/passwd")
    assert stat.S_ISFIFO((got / "sub" / "pipe").lstat().st_mode)
    (source / "later").write_text("no")
    assert not await volumes.populate("data", root, "/srv/www"), "a volume with content is left alone"
    assert not (got / "later").exists()


async def test_copy_up_does_not_follow_links_out_of_the_root(volumes: Volumes, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("x")
    root = tmp_path / "rootfs"
    root.mkdir()
    (root / "out").symlink_to(secret)
    (root / "up").symlink_to("../secret")
    volume = await volumes.create("data", "", {}, {})
    assert not await volumes.populate("data", root, "/out")
    assert not await volumes.populate("data", root, "/up")
    assert not await volumes.populate("data", root, "/missing")
    assert not list(volume.mountpoint.iterdir())


@pytest.mark.root
async def test_tmpfs_volume_is_mounted_once_and_until_the_last_user_is_gone(volumes: Volumes) -> None:
    volume = await volumes.create(
        "ram", "local", {"type": "tmpfs", "device": "tmpfs", "o": "size=1m,mode=0700,nosuid"}, {}
    )
    path = await volumes.acquire("ram", "c1")
    assert path == volume.mountpoint and mountcalls.is_mounted(path)
    (path / "file").write_text("shared")
    assert (await volumes.acquire("ram", "c2") / "file").read_text() == "shared"
    assert os.statvfs(path).f_blocks * os.statvfs(path).f_frsize == 1 << 20
    await volumes.release("ram", "c1")
    assert mountcalls.is_mounted(path)
    await volumes.release("ram", "c2")
    await volumes.release("ram", "c2")
    assert not mountcalls.is_mounted(path)


@pytest.mark.root
async def test_bind_volume_shows_the_device_read_only(volumes: Volumes, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (there / "file").write_text("bound")
    await volumes.create("host", "local", {"type": "none", "device": str(there), "o": "bind,ro"}, {})
    path = await volumes.acquire("host", "c1")
    assert (path / "file").read_text() == "bound"
    with pytest.raises(OSError, match="Read-only"):
        (path / "new").write_text("x")
    await volumes.release("host", "c1")
    assert (there / "file").exists()


@pytest.mark.root
async def test_removal_takes_nothing_of_what_is_mounted_in_the_volume(volumes: Volumes, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (there / "file").write_text("precious")
    volume = await volumes.create("data", "", {}, {})
    below = volume.mountpoint / "inner dir"
    below.mkdir()
    mountcalls.mount(str(there), below, "none", "bind")
    mountcalls.mount(str(there), below, "none", "bind")
    await volumes.remove("data")
    assert (there / "file").read_text() == "precious"
    assert not volume.mountpoint.exists() and not mountcalls.is_mounted(below)


@pytest.mark.root
async def test_mount_that_fails_says_what_and_why(volumes: Volumes) -> None:
    await volumes.create("gone", "local", {"type": "none", "device": "/no/such/place", "o": "bind"}, {})
    with pytest.raises(SystemError_, match=r"failed to mount local volume: mount /no/such/place.*no such file"):
        await volumes.acquire("gone", "c1")


@pytest.mark.root
async def test_restart_keeps_mounts_in_use_and_drops_the_rest(
    volumes: Volumes, store: Store, data: DataRoot, events: EventBus
) -> None:
    options = {"type": "tmpfs", "device": "tmpfs"}
    for name in ("kept", "left"):
        await volumes.create(name, "local", options, {})
        await volumes.acquire(name, "c1")
    (volumes.get("kept").mountpoint / "file").write_text("still")
    again = Volumes(store, events, data)
    await again.restore({"c1": ["kept", "left"]}, {"c1": ["kept"]})
    assert (again.get("kept").mountpoint / "file").read_text() == "still"
    assert not mountcalls.is_mounted(again.get("left").mountpoint)
    with pytest.raises(Conflict):
        await again.remove("left")
    await again.release("kept", "c1")


async def test_usage_counts_bytes_and_references(volumes: Volumes) -> None:
    volume = await volumes.create("data", "", {}, {})
    (volume.mountpoint / "a").write_bytes(b"x" * 10)
    os.link(volume.mountpoint / "a", volume.mountpoint / "b")
    await volumes.reference("data", "c1")
    (only,) = await volumes.usage()
    assert only["UsageData"] == {"Size": 10, "RefCount": 1}
