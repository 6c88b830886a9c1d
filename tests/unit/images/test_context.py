"""The index over a context shows what unpacking it would give: the same files, links and digests, and never a way out."""

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from moorage_guest.errors import InvalidParameter
from moorage_guest.images.build import context
from moorage_guest.images.build.context import ContextTree
from moorage_guest.images.build.sources import FolderTree, Source, SourceTree
from moorage_guest.images.streams import BufferedSource
from moorage_guest.images.tarformat import TarError


def archive(*members: tuple[str, str, str]) -> bytes:
    """Make a tar: name, kind (f, d, l, h, p) and content or target."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, text in members:
            info = tarfile.TarInfo(name)
            info.mtime = 1_000_000_000
            info.mode = 0o755 if kind == "d" else 0o640
            kinds = {
                "f": tarfile.REGTYPE, "d": tarfile.DIRTYPE, "l": tarfile.SYMTYPE, "h": tarfile.LNKTYPE,
                "p": tarfile.FIFOTYPE,
            }  # fmt: skip
            info.type = kinds[kind]
            if kind in "lh":
                info.linkname = text
            info.size = len(text) if kind == "f" else 0
            tar.addfile(info, io.BytesIO(text.encode()) if kind == "f" else None)
    return out.getvalue()


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[ContextTree]:
    made = ContextTree(tmp_path)
    yield made
    made.close()


def take(tree: ContextTree, *members: tuple[str, str, str]) -> None:
    tree.unpack(BufferedSource(io.BytesIO(archive(*members)).read))


def seen(tree: SourceTree, pattern: str) -> list[tuple[str, str, str, bytes]]:
    """What a pattern means: path, then each entry's name, kind and content."""
    found = []
    for source in tree.find(pattern, command="COPY", archives=False):
        for entry, content in tree.walk(source):
            data = os.pread(content.descriptor, entry.size, content.offset) if content else entry.link.encode()
            found.append((source.path, entry.name, entry.kind, data))
    return found


FILES = (
    ("Dockerfile", "f", "FROM x"), ("d/", "d", ""), ("d/a", "f", "a"), ("d/b", "h", "d/a"), ("deep/er/c", "f", "cc"),
    ("to-d", "l", "d"), ("to-a", "l", "/d/a"), ("up", "l", "../../../../etc"), ("etc/passwd", "f", "ours"),
    ("deep/back", "l", "../d"), ("pipe", "p", ""), ("to-d/through", "f", "t"), ("empty", "f", ""),
)  # fmt: skip

PATTERNS = (".", "d", "d/", "to-d", "to-d/a", "to-a", "up/passwd", "deep/back/b", "d/*", "*/a", "deep", "empty", "pipe")


def test_a_context_looks_as_if_it_had_been_unpacked(tree: ContextTree, tmp_path: Path) -> None:
    take(tree, *FILES)
    folder = tmp_path / "folder"
    for name in ("d", "deep/er", "etc"):
        (folder / name).mkdir(parents=True)
    for name, kind, text in FILES:
        path = folder / name
        if kind == "f":
            path.write_text(text)
        elif kind == "h":
            path.hardlink_to(folder / text)
        elif kind == "l":
            path.symlink_to(text)
        elif kind == "p":
            os.mkfifo(path)
        if kind in "fp":
            path.chmod(0o640)
    plain = FolderTree(folder)
    for pattern in PATTERNS:
        assert seen(tree, pattern) == seen(plain, pattern), pattern
        for one, other in zip(
            *(each.find(pattern, command="COPY", archives=True) for each in (tree, plain)), strict=True
        ):
            assert (one.path, one.is_folder, one.is_archive) == (other.path, other.is_folder, other.is_archive)
            if pattern != "pipe":
                assert tree.digest(one) == plain.digest(other), pattern


def test_what_comes_later_replaces_what_came_before(tree: ContextTree) -> None:
    take(
        tree, ("a", "f", "1"), ("a", "f", "22"), ("b/c", "f", "x"), ("b", "f", "file"), ("e", "l", "a"), ("e", "d", "")
    )
    assert seen(tree, "a") == [("a", "", "0", b"22")]
    assert seen(tree, "b") == [("b", "", "0", b"file")]
    assert tree.is_folder("e")


def test_content_beyond_the_memory_goes_to_a_file_without_a_name(
    tree: ContextTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "IN_MEMORY", 200_000)
    files = [(f"f{number}", "f", f"{number} " * 12_000) for number in range(20)]
    files[7:7] = [(f"small{number}", "f", f"s{number}") for number in range(50)]
    take(tree, *files)
    for name, _kind, text in files:
        assert seen(tree, name) == [(name, "", "0", text.encode())]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ((("../x", "f", ""),), "outside of the context"),
        ((("a", "f", ""), ("a/b", "f", "")), "a/b"),
        ((("h", "h", "none"),), "h"),
        ((("d/", "d", ""), ("h", "h", "d")), "it is a directory"),
        ((("l", "l", "l"), ("l/x", "f", "")), "too many levels"),
    ],
)
def test_what_contradicts_itself_is_refused(
    tree: ContextTree, members: tuple[tuple[str, str, str], ...], message: str
) -> None:
    with pytest.raises(InvalidParameter, match=message):
        take(tree, *members)


def test_a_context_of_too_many_files_is_refused(tree: ContextTree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "MAX_ENTRIES", 3)
    with pytest.raises(TarError, match="dockerignore"):
        take(tree, *[(str(number), "f", "") for number in range(4)])


def test_what_is_left_out_is_not_there(tree: ContextTree) -> None:
    take(tree, ("d/keep", "f", "k"), ("d/drop", "f", "d"), ("drop", "f", "d"))
    tree.ignore = lambda path: path.rpartition("/")[2] == "drop"
    assert [each[1] for each in seen(tree, "d")] == ["keep"]
    with pytest.raises(InvalidParameter, match="excluded by"):
        tree.find("drop", command="COPY", archives=False)
    assert [name for name, *_ in seen(tree, "*")] == ["d"]


def test_a_digest_changes_with_name_mode_and_content_alone(tmp_path: Path) -> None:
    digests = []
    for members in (
        (("d/a", "f", "1"),), (("d/a", "f", "2"),), (("d/b", "f", "1"),), (("d/a", "l", "1"),), (("d/a", "f", "1"),),
    ):  # fmt: skip
        made = ContextTree(tmp_path)
        take(made, *members)
        digests.append(made.digest(Source(made, "d", True)))
        made.close()
    assert len(set(digests)) == 4
    assert digests[0] == digests[-1]
