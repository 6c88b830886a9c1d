"""Tar headers as tarfile writes and reads them; compression in pieces of any size; nothing crashes on noise."""

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from moorage_guest.images.compression import Bounded, compression
from moorage_guest.images.streams import BufferedSource, uncompressed
from moorage_guest.images.tarformat import REGULAR, Entry, TarError, header, looks_like_tar, padding, read_entries

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1, max_size=120)


def read(data: bytes) -> list[Entry]:
    source = BufferedSource(io.BytesIO(data).read)
    return list(read_entries(source.read, source.skip))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(NAMES, min_size=1, max_size=3), NAMES, st.integers(0, 0o7777), st.integers(0, 2**33), st.integers(0, 2**40),
    st.dictionaries(st.sampled_from(["user.a", "security.capability"]), st.binary(max_size=40)),
)  # fmt: skip
def test_what_was_written_is_read_again_here_and_by_tarfile(
    parts: list[str], link: str, mode: int, owner: int, seconds: int, xattrs: dict[str, bytes]
) -> None:
    name = "/".join(parts)
    wanted = Entry(name, REGULAR, 5, mode, owner, owner, seconds * 1_000_000_000, "", 0, 0, 0, xattrs)
    symlink = Entry("l", "2", 0, 0o777, 0, 0, 0, link, 0, 0, 0)
    data = header(wanted) + b"12345" + padding(5) + header(symlink) + bytes(1024)
    assert looks_like_tar(data[:512])
    first, second = read(data)
    assert (first.name, first.mode, first.uid, first.mtime_ns, first.xattrs) == (
        name,
        mode,
        owner,
        wanted.mtime_ns,
        xattrs,
    )
    assert data[first.offset : first.offset + 5] == b"12345"
    assert second.link == link
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert [member.name for member in tar.getmembers()] == [name, "l"]


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=2000), st.integers(0, 3000), st.integers(0, 255))
def test_noise_is_refused_or_read_but_never_worse(noise: bytes, place: int, value: int) -> None:
    whole = bytearray(header(Entry("n" * 150, REGULAR, 700, 0o644, 1, 1, 0, "", 0, 0, 0)) + bytes(1024) + bytes(1024))
    whole[place % len(whole)] = value
    for data in (noise, bytes(whole), bytes(whole)[: place % len(whole)]):
        try:
            read(data)
        except TarError:
            continue


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_of_tarfile_is_read(format: int) -> None:
    out = io.BytesIO()
    long = "d" * 80 + "/" + "f" * 90
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for name in ("short", long):
            info = tarfile.TarInfo(name)
            info.size, info.uid = 3, 2_000_000
            tar.addfile(info, io.BytesIO(b"abc"))
    assert [(entry.name, entry.uid, entry.size) for entry in read(out.getvalue())] == [
        ("short", 2_000_000, 3),
        (long, 2_000_000, 3),
    ]


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
}


@pytest.mark.parametrize("kind", PACKERS)
@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_compression_is_undone_piece_by_piece(kind: str, step: int) -> None:
    plain = bytes(range(256)) * 40
    packed = PACKERS[kind](plain) + PACKERS[kind](plain)  # several members, as parallel packers write
    assert compression(packed) == kind
    undo = Bounded(kind)
    out = b"".join(piece for start in range(0, len(packed), step) for piece in undo.feed(packed[start : start + step]))
    assert out == plain * 2
    undo.finish()
    cut = Bounded(kind)
    with pytest.raises(TarError):
        for start in range(0, len(packed) - 5, step):
            list(cut.feed(packed[:-5][start : start + step]))
        cut.finish()


def test_a_source_is_decompressed_when_it_has_to_be() -> None:
    for data in (b"plain text that is no archive", gzip.compress(b"plain text that is no archive")):
        assert uncompressed(BufferedSource(io.BytesIO(data).read)).read(100) == b"plain text that is no archive"


def test_an_archive_may_end_without_the_padding_of_its_last_file() -> None:
    entry = Entry("f", REGULAR, 5, 0o644, 0, 0, 0, "", 0, 0, 0)
    assert [each.name for each in read(header(entry) + b"12345")] == ["f"]
    with pytest.raises(TarError, match="unexpected EOF"):
        read(header(entry) + b"1234")


def test_an_archive_cut_short_in_its_last_block_is_damaged() -> None:
    whole = header(Entry("f", REGULAR, 0, 0o644, 0, 0, 0, "", 0, 0, 0)) + bytes(1024)
    assert len(read(whole)) == len(read(whole[:-512])) == 1
    with pytest.raises(TarError, match="unexpected EOF"):
        read(whole[:-1])
