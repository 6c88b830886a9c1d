"""Reads and writes tar headers, fast and strictly: POSIX ustar and pax, GNU long names and base-256 numbers.

Reading gives entries with the place of their content; what an entry means, and whether its name is to be trusted,
belongs to the callers. The standard library's tarfile takes several times as long for an entry.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from moorage_contract.postponed import postponed

from moorage_guest.errors import InvalidParameter

with postponed("tarfile"):
    import tarfile
import zlib

BLOCK = 512
END = bytes(BLOCK)

REGULAR, HARD_LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, FOLDER, FIFO = "0", "1", "2", "3", "4", "5", "6"

#: Bytes that the extended header of one entry may have; a real one has a few hundred.
MAX_EXTENDED = 1 << 20

_XATTR = "SCHILY.xattr."


class TarError(InvalidParameter):
    """The archive is damaged, cut short, or asks for something that is not allowed."""


#: What the kernel says to members that contradict each other or that no file system holds.
_SENSELESS = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.ENXIO)


@contextlib.contextmanager
def blamed_on_archive() -> Iterator[None]:
    """Raise TarError for what only the archive can be blamed for, such as a file below a file; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in _SENSELESS:
            raise
        raise TarError(f"{error.filename or 'archive'}: {(error.strerror or '').lower()}") from error


@dataclass(slots=True)
class Entry:
    """One member of an archive. ``offset`` is where its content begins, counted from the archive's first byte."""

    name: str
    kind: str
    size: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    link: str
    major: int
    minor: int
    offset: int
    xattrs: dict[str, bytes] = field(default_factory=dict)


def _number(raw: bytes) -> int:
    first = raw[0]
    if first & 0x80:
        value = int.from_bytes(raw, "big") & ((1 << (8 * len(raw) - 1)) - 1)
        return value - (1 << (8 * len(raw) - 1)) if first & 0x40 else value
    text = raw.strip(b" \0")
    return int(text, 8) if text else 0


def _checksum(head: bytes) -> int:
    """Return the sum of a header's bytes, its own field counted as spaces."""
    # Below 65521, as the sum of ASCII is, the lower half of Adler-32 is the sum and one, at a tenth of the cost.
    total = (zlib.adler32(head) & 0xFFFF) - 1 if head.isascii() else sum(head)
    return total - sum(head[148:156]) + 256


def _text(raw: bytes) -> str:
    end = raw.find(b"\0")
    return os.fsdecode(raw if end < 0 else raw[:end])


def _pax(data: bytes) -> dict[str, bytes]:
    """Parse the records of an extended header; values stay bytes."""
    records: dict[str, bytes] = {}
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 12)
        if space < 0:
            if not data[position:].strip(b"\0"):
                break
            raise TarError("archive/tar: invalid tar header (extended header record)")
        try:
            length = int(data[position:space])
        except ValueError:
            raise TarError("archive/tar: invalid tar header (extended header length)") from None
        record = data[space + 1 : position + length]
        key, equals, value = record[:-1].partition(b"=")
        if length <= 0 or position + length > len(data) or not equals or record[-1:] != b"\n":
            raise TarError("archive/tar: invalid tar header (extended header record)")
        records[os.fsdecode(key)] = value
        position += length
    return records


#: Returns exactly n bytes from where reading stands, or fewer at the end of the archive.
Reader = Callable[[int], bytes]
#: Skips n bytes; raises TarError when the archive ends before.
Skipper = Callable[[int], None]


def read_entries(read: Reader, skip: Skipper, *, start: int = 0) -> Iterator[Entry]:
    """Yield entries in order. When resumed, skips what the caller left unread of the content.

    The caller that reads content itself must read all of it, padding included, and set ``entry.size`` to -1.
    Raises TarError on the first thing wrong. An archive may end without the two empty blocks, and even
    without the padding of its last file.
    """
    position = start
    pending: dict[str, bytes] = {}
    long_name = long_link = ""
    while True:
        head = read(BLOCK)
        position += len(head)
        if not head or head == END:
            if pending or long_name or long_link or (head and 0 < len(read(BLOCK)) < BLOCK):
                raise TarError("unexpected EOF")
            return
        if len(head) < BLOCK:
            raise TarError("unexpected EOF")
        try:
            checksum = _number(head[148:156])
            size = _number(head[124:136])
            if checksum != _checksum(head):
                raise TarError("archive/tar: invalid tar header")
            kind = chr(head[156])
            if kind in "xgLK":
                if not 0 <= size <= MAX_EXTENDED:
                    raise TarError("archive/tar: header field too long")
                padded = (size + 511) & ~511
                data = read(padded)
                if len(data) < padded:
                    raise TarError("unexpected EOF")
                position += padded
                if kind == "x":
                    pending = _pax(data[:size])
                elif kind == "L":
                    long_name = _text(data[:size])
                elif kind == "K":
                    long_link = _text(data[:size])
                continue
            name = _text(head[:100])
            if head[257:263] == b"ustar\0" and head[345]:
                name = f"{_text(head[345:500])}/{name}"
            link = _text(head[157:257])
            if kind == "\0":
                kind = FOLDER if name.endswith("/") else REGULAR
            elif kind == "7":
                kind = REGULAR
            entry = Entry(
                long_name or name,
                kind,
                size,
                _number(head[100:108]) & 0o7777,
                _number(head[108:116]),
                _number(head[116:124]),
                _number(head[136:148]) * 1_000_000_000,
                long_link or link,
                _number(head[329:337]) if kind in "34" else 0,
                _number(head[337:345]) if kind in "34" else 0,
                position,
            )
            if pending:
                _apply(entry, pending)
        except ValueError:
            raise TarError("archive/tar: invalid tar header") from None
        pending, long_name, long_link = {}, "", ""
        if kind == "S":
            raise TarError(f'sparse file "{entry.name}" in an archive is not supported: pack it without --sparse')
        if kind not in "0123456":
            raise TarError(f'unhandled tar header type {ord(kind)} of "{entry.name}"')
        if kind != REGULAR:
            entry.size = 0
        if entry.size < 0 or entry.uid < 0 or entry.gid < 0 or "\0" in entry.name or not entry.name:
            raise TarError("archive/tar: invalid tar header")
        padded = (entry.size + 511) & ~511
        yield entry
        if entry.size > 0:
            skip(entry.size)
            if rest := padded - entry.size:
                read(rest)  # an archive may end without it, as those do that the docker CLI makes for `build -f -`
        position += padded


def _apply(entry: Entry, records: dict[str, bytes]) -> None:
    for key, value in records.items():
        if key == "path":
            entry.name = os.fsdecode(value)
        elif key == "linkpath":
            entry.link = os.fsdecode(value)
        elif key == "size":
            entry.size = int(value)
        elif key == "uid":
            entry.uid = int(value)
        elif key == "gid":
            entry.gid = int(value)
        elif key == "mtime":
            seconds, _, fraction = value.partition(b".")
            entry.mtime_ns = int(seconds) * 1_000_000_000 + int(fraction[:9].ljust(9, b"0") or 0)
        elif key.startswith(_XATTR):
            entry.xattrs[key[len(_XATTR) :]] = value
        elif key.startswith("GNU.sparse."):
            raise TarError(f'sparse file "{entry.name}" in an archive is not supported: pack it without --sparse')


def looks_like_tar(block: bytes) -> bool:
    """Whether the first 512 bytes of a file are a tar header."""
    try:
        return any(block) and _number(block[148:156]) == _checksum(block[:BLOCK])
    except ValueError:
        return False


def header(entry: Entry) -> bytes:
    """Return the header blocks of an entry, with extended records where ustar has no room. Whole seconds only."""
    info = tarfile.TarInfo(entry.name)
    info.type = entry.kind.encode()
    info.size = entry.size if entry.kind == REGULAR else 0
    info.mode, info.uid, info.gid = entry.mode, entry.uid, entry.gid
    info.mtime = entry.mtime_ns // 1_000_000_000
    info.linkname = entry.link
    info.devmajor, info.devminor = entry.major, entry.minor
    if not entry.xattrs:
        return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    # tarfile encodes pax values as UTF-8 and would spoil binary ones: this part is written here.
    records = b""
    for key, value in sorted(entry.xattrs.items()):
        body = b" " + os.fsencode(_XATTR + key) + b"=" + value + b"\n"
        length = len(body) + len(str(len(body)))
        if len(str(length)) + len(body) != length:
            length = len(body) + len(str(length))
        records += str(length).encode() + body
    extended = tarfile.TarInfo("PaxHeaders/xattr")
    extended.type, extended.size = tarfile.XHDTYPE, len(records)
    plain = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    if plain[156:157] == b"x":  # merge with the records that tarfile made
        size = int(plain[124:135], 8)
        records = plain[BLOCK : BLOCK + size] + records
        extended.size = len(records)
        plain = plain[BLOCK + ((size + 511) & ~511) :]
    return extended.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % BLOCK) + plain


def padding(size: int) -> bytes:
    """Return the zeros after content of that size."""
    return bytes(-size % BLOCK)
