"""Recognises and undoes the compression of layers and archives: gzip, bzip2, xz and zstd, each by its C library.

Bounded: what grows beyond all measure is a bomb and raises TarError.
"""

import bz2
import contextlib
import hashlib
import lzma
import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from moorage_contract.postponed import postponed

from moorage_guest.images.tarformat import TarError

with postponed("zstandard"):
    import zstandard

_CHUNK = 1 << 20

#: What a compressed stream may grow to whatever its size, bytes, and above that how many times its own size.
BOMB_FLOOR = 256 << 20
BOMB_RATIO = 200

GZIP, BZIP2, XZ, ZSTD = b"\x1f\x8b\x08", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"


def compression(head: bytes) -> str:
    """Name what the first bytes of a file say: gzip, bzip2, xz, zstd or "" for none."""
    for magic, name in ((GZIP, "gzip"), (BZIP2, "bzip2"), (XZ, "xz"), (ZSTD, "zstd")):
        if head.startswith(magic):
            return name
    return ""


class Decompressor(Protocol):
    """Undoes one kind of compression piece by piece."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what these bytes decompress to, in pieces of bounded size."""

    def finish(self) -> None:
        """Raise TarError when the stream ended too early."""


class _Plain:
    def feed(self, data: bytes) -> Iterator[bytes]:
        yield data

    def finish(self) -> None:
        return None


class _Gzip:
    """gzip with several members, as pigz and estargz write."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(31)
        self._fresh = True

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._inflate.eof:
                data = data.lstrip(b"\0")
                if not data:
                    return
                self._inflate = zlib.decompressobj(31)
            self._fresh = False
            try:
                out = self._inflate.decompress(data, _CHUNK)
            except zlib.error as error:
                raise TarError(f"gzip: invalid data ({error})") from None
            if out:
                yield out
            data = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail

    def finish(self) -> None:
        if self._fresh or not self._inflate.eof:
            raise TarError("unexpected EOF")


class _Xz:
    def __init__(self) -> None:
        self._decoder = self._make()

    @staticmethod
    def _make() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=512 << 20)

    def feed(self, data: bytes) -> Iterator[bytes]:
        try:
            while data or not (self._decoder.needs_input or self._decoder.eof):
                if self._decoder.eof:
                    data = data.lstrip(b"\0")
                    if not data:
                        return
                    self._decoder = self._make()
                out = self._decoder.decompress(data, _CHUNK)
                data = self._decoder.unused_data if self._decoder.eof else b""
                if out:
                    yield out
        except lzma.LZMAError as error:
            raise TarError(f"xz: invalid data ({error})") from None

    def finish(self) -> None:
        if not self._decoder.eof:
            raise TarError("unexpected EOF")


class _Bzip2:
    def __init__(self) -> None:
        self._decoder = bz2.BZ2Decompressor()

    def feed(self, data: bytes) -> Iterator[bytes]:
        try:
            while data or not (self._decoder.needs_input or self._decoder.eof):
                if self._decoder.eof:
                    self._decoder = bz2.BZ2Decompressor()
                out = self._decoder.decompress(data, _CHUNK)
                data = self._decoder.unused_data if self._decoder.eof else b""
                if out:
                    yield out
        except OSError as error:
            raise TarError(f"bzip2: invalid data ({error})") from None

    def finish(self) -> None:
        if not self._decoder.eof:
            raise TarError("unexpected EOF")


class _Zstd:
    def __init__(self) -> None:
        self._maker = zstandard.ZstdDecompressor(max_window_size=128 << 20)
        self._decoder = self._maker.decompressobj()
        self._fresh = True

    def feed(self, data: bytes) -> Iterator[bytes]:
        try:
            for start in range(0, len(data), 16384):  # a block of 16 KiB can grow to some MiB, not to gigabytes
                piece = data[start : start + 16384]
                while piece:
                    if self._decoder.eof:
                        self._decoder = self._maker.decompressobj()
                    self._fresh = False
                    out = self._decoder.decompress(piece)
                    piece = self._decoder.unused_data if self._decoder.eof else b""
                    if out:
                        yield out
        except zstandard.ZstdError as error:
            raise TarError(f"zstd: invalid data ({error})") from None

    def finish(self) -> None:
        if self._fresh or not self._decoder.eof:
            raise TarError("unexpected EOF")


def decompressor(kind: str) -> Decompressor:
    """Return one for a name that `compression` gave."""
    makers: dict[str, type[_Plain] | type[_Gzip] | type[_Xz] | type[_Bzip2] | type[_Zstd]] = {
        "": _Plain, "gzip": _Gzip, "xz": _Xz, "bzip2": _Bzip2, "zstd": _Zstd,
    }  # fmt: skip
    return makers[kind]()


class Bounded:
    """Undoes compression and refuses bombs; counts and hashes what comes out."""

    def __init__(self, kind: str) -> None:
        self._decoder = decompressor(kind)
        self._compressed = bool(kind)
        self.taken = 0
        self.given = 0
        self._hash = hashlib.sha256()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield decompressed pieces."""
        self.taken += len(data)
        for piece in self._decoder.feed(data):
            self.given += len(piece)
            if self._compressed and self.given > BOMB_FLOOR and self.given > self.taken * BOMB_RATIO:
                raise TarError(f"refused as a decompression bomb: {self.taken} bytes grow to more than {self.given}")
            self._hash.update(piece)
            yield piece

    def finish(self) -> str:
        """Return the digest of everything that came out; raises TarError when the stream ended too early."""
        self._decoder.finish()
        return f"sha256:{self._hash.hexdigest()}"


@contextlib.contextmanager
def opened_uncompressed(path: Path, digest: str, diff_id: str, tmp: Path) -> Iterator[int]:
    """Open a layer's blob for reading as a plain tar, decompressed into ``tmp`` if need be. Blocks.

    Raises TarError when what comes out has not the digest ``diff_id``.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        kind = compression(os.pread(descriptor, 8, 0))
        if not kind:
            if digest != diff_id:
                with os.fdopen(os.dup(descriptor), "rb") as file:
                    found = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
                check_diff_id(found, diff_id)
            yield descriptor
            return
        with tempfile.TemporaryFile(dir=tmp, prefix="plain-", buffering=0) as plain:
            undo = Bounded(kind)
            while data := os.read(descriptor, _CHUNK // 4):
                for piece in undo.feed(data):
                    write_all(plain.fileno(), piece)
            check_diff_id(undo.finish(), diff_id)
            yield plain.fileno()
    finally:
        os.close(descriptor)


def check_diff_id(found: str, wanted: str) -> None:
    """Raise TarError unless a layer's content is what the image's configuration says."""
    if found != wanted:
        raise TarError(f"layer's content has digest {found}, the image's configuration says {wanted}: refused")


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
