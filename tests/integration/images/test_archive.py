"""Copying into and out of a root file system never leaves it."""

import io
import tarfile
from pathlib import Path

import pytest
from moorage_guest.errors import InvalidParameter, NotFound
from moorage_guest.images.archive import stat_path, tar_in, tar_out
from moorage_guest.images.tarformat import TarError

from tests.support.images import layer_tar
from tests.support.imagestore import source

pytestmark = pytest.mark.root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "outside").write_text("secret")
    root = tmp_path / "root"
    for name in ("d/e", "var", "run"):
        (root / name).mkdir(parents=True)
    (root / "d/e/file").write_text("content")
    (root / "var/run").symlink_to("/run")
    (root / "climb").symlink_to("../../../outside")
    (root / "etc").symlink_to("/d")
    return root


def names(data: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getnames()


def test_a_path_is_described_without_following_its_last_link(root: Path) -> None:
    assert stat_path(root, "/d/e/file").size == 7
    assert stat_path(root, "d").is_folder
    link = stat_path(root, "/var/run")
    assert (link.mode & (1 << 27), link.link_target) == (1 << 27, "/run")
    assert stat_path(root, "/var/run/").is_folder
    assert stat_path(root, "/etc/e/file").size == 7
    with pytest.raises(NotFound):
        stat_path(root, "/climb/")
    with pytest.raises(NotFound):
        stat_path(root, "../outside")


def test_a_folder_comes_out_under_its_own_name(root: Path) -> None:
    found, stream = tar_out(root, "/d")
    assert found.name == "d"
    assert names(b"".join(stream)) == ["d", "d/e", "d/e/file"]
    assert names(b"".join(tar_out(root, "/d/.")[1])) == [".", "./e", "./e/file"]
    assert names(b"".join(tar_out(root, "/d/e/file")[1])) == ["file"]


def test_an_archive_goes_through_links_inside_the_root_alone(root: Path) -> None:
    tar_in(root, "/var/run", source(layer_tar({"x": b"1", "deep/er": b"2"})))
    assert (root / "run/x").read_bytes() == b"1"
    assert (root / "run/deep/er").read_bytes() == b"2"
    tar_in(root, "/", source(layer_tar({"climb": b"new", "etc/e/two": b"2"})), chown=(3, 4))
    assert (root / "climb").read_bytes() == b"new"
    assert (root / "d/e/two").stat().st_gid == 4
    assert (root.parent / "outside").read_text() == "secret"


def test_what_does_not_fit_is_refused(root: Path) -> None:
    with pytest.raises(TarError):
        tar_in(root, "/d", source(layer_tar({"../../x": b"1"})))
    with pytest.raises(InvalidParameter, match="cannot overwrite directory"):
        tar_in(root, "/", source(layer_tar({"d": b"1"})), no_overwrite_dir_non_dir=True)
    with pytest.raises(InvalidParameter, match="extraction point is not a directory"):
        tar_in(root, "/d/e/file", source(layer_tar({"x": b"1"})))
    with pytest.raises(NotFound):
        tar_in(root, "/nowhere", source(layer_tar({"x": b"1"})))
    with pytest.raises(TarError, match="unexpected EOF"):
        tar_in(root, "/d", source(layer_tar({"x": b"1" * 3000})[:1500]))
