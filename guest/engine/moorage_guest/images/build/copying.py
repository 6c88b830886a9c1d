"""COPY and ADD: putting sources in place in a root file system. All blocks."""

import os
import posixpath
from collections.abc import Sequence
from pathlib import Path

from moorage_guest.errors import InvalidParameter
from moorage_guest.idmap import SAME, IdMap
from moorage_guest.images.archive import TreeWriter, link_end, make_folders, opened
from moorage_guest.images.build.sources import Source
from moorage_guest.images.streams import BufferedSource, uncompressed
from moorage_guest.images.tarformat import read_entries


def place(
    root: Path,
    sources: Sequence[Source],
    target: str,
    *,
    chown: tuple[int, int] | None,
    chmod: int | None,
    ids: IdMap = SAME,
) -> None:
    """Put sources at ``target`` (absolute; a slash at its end makes it a folder) of a root file system.

    ``ids`` says who owns its files on disk.
    """
    descriptor = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for source in sources:
            _place_one(descriptor, source, target, chown, chmod, ids)
    finally:
        os.close(descriptor)


def _place_one(
    root: int, source: Source, target: str, chown: tuple[int, int] | None, chmod: int | None, ids: IdMap
) -> None:
    if source.is_archive:  # its files have owners of their own
        chown = None
    owner = chown or (0, 0)
    if source.is_folder or source.is_archive:
        folder, leaf = target, ""
    elif target.endswith("/") or _is_folder(root, target):
        folder, leaf = target, posixpath.basename(source.path)
    else:
        folder, leaf = posixpath.split(link_end(root, target))
    try:
        make_folders(root, folder, ids.outside(*owner))
    except NotADirectoryError:
        raise InvalidParameter(f"cannot copy to non-directory: {target}") from None
    writer = TreeWriter(root, folder or "/", chown=chown, chmod=chmod, new_folder_owner=owner, ids=ids)
    if source.is_archive:
        _extract(source, writer)
    else:
        for entry, content in source.tree.walk(source):
            entry.name = entry.name or leaf
            writer.put(entry, content)
    writer.finish()


def _is_folder(root: int, path: str) -> bool:
    try:
        with opened(root, path):
            return True
    except OSError:
        return False


def _extract(source: Source, writer: TreeWriter) -> None:
    for archive, content in source.tree.walk(source):
        assert content is not None
        descriptor, offset, end = content.descriptor, content.offset, content.offset + archive.size

        def some() -> bytes:
            nonlocal offset
            data = os.pread(descriptor, min(end - offset, 1 << 20), offset)  # noqa: B023 -- used up in this turn
            offset += len(data)
            return data

        plain = uncompressed(BufferedSource(some))
        for entry in read_entries(plain.read, plain.skip):
            writer.put(entry, plain)
