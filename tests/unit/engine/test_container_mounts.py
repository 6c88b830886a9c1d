"""What -v, --mount, --tmpfs and --volumes-from mean."""

from pathlib import Path

import pytest
from moorage_guest.api.types import BindOptions, ContainerConfig, HostConfig, ImageOptions, Mount, TmpfsOptions
from moorage_guest.engine.mounts import below, oci_mounts, parse_bind, parse_mount, parse_tmpfs, wanted_mounts
from moorage_guest.engine.record import MountRecord
from moorage_guest.errors import InvalidParameter


def test_bind_of_a_path() -> None:
    mount = parse_bind("/a/../b:/c/:ro,rslave")
    assert (mount.kind, mount.source, mount.destination) == ("bind", "/b", "/c")
    assert (mount.read_write, mount.propagation, mount.mode) == (False, "rslave", "ro,rslave")


def test_bind_of_a_name_is_a_volume() -> None:
    mount = parse_bind("data:/c:nocopy")
    assert (mount.kind, mount.name, mount.no_copy, mount.anonymous) == ("volume", "data", True, False)


def test_destination_alone_is_an_anonymous_volume() -> None:
    mount = parse_bind("/c")
    assert mount.anonymous
    assert mount.name == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:b:c:d", "invalid volume specification: 'a:b:c:d'"),
        ("/a:b", "mount path must be absolute"),
        ("/a:/b:nope", 'invalid mode: "nope"'),
        ("/a:/b:ro,rw", 'invalid mode: "ro,rw"'),
        ("/a:/", "destination can't be '/'"),
        ("a b:/c", "includes invalid characters for a local volume name"),
        ("x:/c:rshared", "field BindOptions must not be specified"),
        ("::", "invalid volume specification"),
    ],
)
def test_senseless_bind_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        parse_bind(text)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("mount", "message"),
    [
        (Mount(type="nope", target="/x"), 'invalid mount config for type "nope": mount type unknown'),
        (Mount(type="volume"), "field Target must not be empty"),
        (Mount(type="volume", target="x"), "mount path must be absolute"),
        (Mount(type="bind", target="/x"), "field Source must not be empty"),
        (Mount(type="bind", target="/x", source="/no/such/path"), "bind source path does not exist: /no/such/path"),
        (Mount(type="tmpfs", target="/x", source="/y"), "field Source must not be specified"),
        (Mount(type="volume", target="/x", bind_options=BindOptions()), "field BindOptions must not be specified"),
        (Mount(type="tmpfs", target="/x", tmpfs_options=TmpfsOptions(options=[["nope"]])), "invalid option"),
        (Mount(type="image", target="/x", source="a", image_options=ImageOptions(subpath="../x")), "relative path"),
    ],
)
def test_senseless_mount_is_refused(mount: Mount, message: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        parse_mount(mount)
    assert message in str(refused.value)


def test_tmpfs_options_override_the_defaults() -> None:
    assert parse_tmpfs("/t", "exec,size=1m").options == ("nosuid", "nodev", "exec", "size=1m")
    with pytest.raises(InvalidParameter, match=r'invalid tmpfs option \["nope"\]'):
        parse_tmpfs("/t", "nope")


def test_volumes_from_copies_mounts_read_only_when_asked() -> None:
    other = [MountRecord("volume", "/data", "/v", "data", anonymous=True), MountRecord("tmpfs", "/t")]
    found = wanted_mounts(ContainerConfig(), HostConfig(volumes_from=["other:ro"]), lambda name: other)
    assert [(each.destination, each.read_write, each.anonymous) for each in found] == [("/data", False, True)]


def test_images_volume_gives_way_to_what_the_user_asks_for() -> None:
    config = ContainerConfig(volumes={"/data": {}, "/more": {}})
    found = wanted_mounts(config, HostConfig(binds=["/tmp:/data"]), lambda name: [])
    assert {each.destination: each.kind for each in found} == {"/data": "bind", "/more": "volume"}


def test_same_destination_twice_is_refused() -> None:
    host = HostConfig(binds=["/tmp:/data", "x1:/data"])
    with pytest.raises(InvalidParameter, match="Duplicate mount point: /data"):
        wanted_mounts(ContainerConfig(), host, lambda name: [])


def test_oci_mount_of_a_read_only_bind() -> None:
    (point,) = oci_mounts([(parse_bind("/a:/b:ro"), Path("/a"))])
    assert point.options == ("rbind", "rro", "rprivate")


def test_subpath_cannot_leave_its_volume(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "in").mkdir()
    (tmp_path / "v" / "out").symlink_to("/etc")
    assert below(tmp_path / "v", "in") == tmp_path / "v" / "in"
    with pytest.raises(InvalidParameter, match="escapes the base directory"):
        below(tmp_path / "v", "out")
    with pytest.raises(InvalidParameter, match="no such file or directory"):
        below(tmp_path / "v", "nothing")
