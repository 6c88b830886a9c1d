"""Packages are unpacked file by file and never out of the root."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from moorage_images import packages
from moorage_images.errors import ImageError
from moorage_images.packages import Package


def deb(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Package:
    """A .deb with exactly these members, which dpkg-deb itself would refuse to build."""

    def tar(content: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for member, data in content:
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        return buffer.getvalue()

    control = b"Package: sample\nVersion: 1\nArchitecture: all\nMaintainer: n <n@example.org>\nDescription: d\n"
    parts = [
        ("debian-binary", b"2.0\n"),
        ("control.tar", tar([(tarfile.TarInfo("./control"), control)])),
        ("data.tar", tar(members)),
    ]
    blob = b"!<arch>\n"
    for name, data in parts:
        blob += (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}".encode()
            + b"`\n"
            + data
            + b"\n" * (len(data) % 2)
        )
    path.write_bytes(blob)
    subprocess.run(["dpkg-deb", "--info", str(path)], check=True, capture_output=True)
    return Package("sample", "1", path)


def member(name: str, *, mode: int = 0o644, link: str = "", kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mode, info.linkname, info.type = mode, link, kind
    return info


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def test_files_links_and_modes_arrive_in_the_merged_layout(root: Path, tmp_path: Path) -> None:
    package = deb(
        tmp_path / "a.deb",
        [
            (member("./usr/bin/tool", mode=0o4755), b"x"),
            (member("./lib/data", mode=0o600), b"y"),
            (member("./usr/bin/same", link="./usr/bin/tool", kind=tarfile.LNKTYPE), b""),
            (member("./usr/bin/soft", link="tool", kind=tarfile.SYMTYPE), b""),
            (member("./usr/share/doc/x"), b"dropped"),
        ],
    )
    packages.unpack(package, root, lambda path: "doc" not in path)
    assert (root / "usr/bin/tool").stat().st_mode & 0o7777 == 0o755
    assert (root / "usr/lib/data").stat().st_mode & 0o777 == 0o644
    assert (root / "usr/bin/same").read_bytes() == b"x"
    assert (root / "usr/bin/soft").readlink() == Path("tool")
    assert not (root / "usr/share").exists()


@pytest.mark.parametrize("name", ["../outside", "./usr/../../outside"])
def test_path_out_of_the_root_is_refused(root: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError, match="out of the root"):
        packages.unpack(deb(tmp_path / "a.deb", [(member(name), b"x")]), root, lambda path: True)
    assert not (tmp_path / "outside").exists()


def test_path_through_a_link_out_of_the_root_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    members = [
        (member("./etc/l", link=str(tmp_path / "outside"), kind=tarfile.SYMTYPE), b""),
        (member("./etc/l/file"), b"x"),
    ]
    with pytest.raises(ImageError, match="out of the root"):
        packages.unpack(deb(tmp_path / "a.deb", members), root, lambda path: True)
    assert not list((tmp_path / "outside").iterdir())


def test_damaged_package_is_named(root: Path, tmp_path: Path) -> None:
    package = deb(tmp_path / "a.deb", [(member("./usr/bin/tool"), b"x" * 100000)])
    package.path.write_bytes(package.path.read_bytes()[:1500])
    with pytest.raises(ImageError, match=r"a\.deb is damaged"):
        packages.unpack(package, root, lambda path: True)


def test_version_is_read_from_the_file_name(tmp_path: Path) -> None:
    (tmp_path / "libx_1%3a2.0~rc1-3_amd64.deb").touch()
    assert [(p.name, p.version) for p in packages.listed(tmp_path)] == [("libx", "1:2.0~rc1-3")]
