"""Where COPY and ADD of one step take their files from: here-documents, downloads, checkouts, the client's folders."""

import contextlib
import hashlib
import os
import posixpath
import re
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from moorage_guest.errors import InvalidParameter
from moorage_guest.images import remote
from moorage_guest.images.build import git
from moorage_guest.images.build.filtered import FilteredTree, read_mode
from moorage_guest.images.build.ignore import Ignore
from moorage_guest.images.build.planned import Copy, is_fetched
from moorage_guest.images.build.seams import BuildError
from moorage_guest.images.build.sources import FolderTree, Source, SourceTree
from moorage_guest.images.tarformat import FOLDER

_CHECKSUM = re.compile(r"[a-z0-9]+:[0-9a-fA-F]+")


def check_checksum(step: Copy) -> None:
    """Refuse a --checksum that cannot be one, before anything is fetched. Raises BuildError."""
    if not step.checksum:
        return
    if not _CHECKSUM.fullmatch(step.checksum):
        raise step.statement.error("invalid checksum digest format")
    kind, _, digits = step.checksum.partition(":")
    if kind != "sha256":
        raise step.statement.error("unsupported digest algorithm")
    if len(digits) != 64:
        raise step.statement.error("invalid checksum digest length")
    if len(step.sources) != 1 or step.documents:
        raise step.statement.error("checksum can't be specified for multiple sources")
    if not is_fetched(step.sources[0]) or git.is_git(step.sources[0]):
        raise step.statement.error("checksum requires HTTP(S) sources")


@asynccontextmanager
async def gathered(step: Copy, tmp: Path, context: SourceTree | None) -> AsyncIterator[list[tuple[str, SourceTree]]]:
    """Give the words of a step with the trees that they mean, whatever had to be fetched for it being removed at the end.

    Raises InvalidParameter. ``context`` is where plain words lie.
    """
    async with contextlib.AsyncExitStack() as stack:
        found: list[tuple[str, SourceTree]] = []
        for word in step.sources:
            if step.is_add and git.is_git(word):
                folder = await stack.enter_async_context(git.checked_out(word, tmp))
                if not step.keep_git:
                    shutil.rmtree(folder / ".git", ignore_errors=True)
                found.append(("/", FolderTree(folder, origin="download")))
            elif step.is_add and is_fetched(word):
                folder = _folder(stack, tmp)
                await _fetch(word, folder, step)
                found.append(("*", FolderTree(folder, origin="download")))
            else:
                assert context is not None
                found.append((word, context))
        if step.documents:
            folder = _folder(stack, tmp)
            for name, text in step.documents:
                path = folder / name
                if path.parent != folder:
                    raise InvalidParameter(f"here-document {name!r} has no name of a file")
                path.write_bytes(text.encode())
                path.chmod(0o644)
                found.append((name, FolderTree(folder, origin="download")))
        yield found


def _folder(stack: contextlib.AsyncExitStack, tmp: Path) -> Path:
    folder = Path(tempfile.mkdtemp(dir=tmp, prefix="fetched-"))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    return folder


async def _fetch(url: str, folder: Path, step: Copy) -> None:
    """Put what an address gives into a folder under the name that it has there."""
    async with remote.fetched(url) as response:
        path = folder / _file_name(url, response.headers.get("Content-Disposition", ""))
        total = hashlib.sha256()
        with path.open("wb") as file:
            os.fchmod(file.fileno(), 0o600)
            async for piece in response.content.iter_any():
                file.write(piece)
                total.update(piece)
        stamp = remote.modified(response)
    found = f"sha256:{total.hexdigest()}"
    if step.checksum and step.checksum.lower() != found:
        raise InvalidParameter(f"digest mismatch {found}: {step.checksum}")
    os.utime(path, (stamp, stamp))


def _file_name(url: str, disposition: str) -> str:
    if match := re.search(r'filename="?([^";]+)"?', disposition):
        name = posixpath.basename(match[1].strip())
        if name and name not in (".", ".."):
            return name
    name = posixpath.basename(unquote(urlsplit(url).path))
    return name if name and name not in (".", "..") and "\0" not in name else "download"


def look(step: Copy, words: Sequence[tuple[str, SourceTree]]) -> list[tuple[Source, str]]:
    """Return what the words of a step mean, as it is to be copied, and where to. Blocks. Raises InvalidParameter."""
    mode = read_mode(step.chmod) if step.chmod else None
    found: list[tuple[Source, str]] = []
    for word, tree in words:
        clean = _cleaned(word)
        unpacking = step.is_add and tree.origin != "download"
        try:
            sources = tree.find(clean, command=step.statement.name, archives=unpacking)
        except InvalidParameter:
            raise not_there(tree, word) from None
        for source in sources:
            if step.exclude and not source.is_folder and _left_out(step, source):
                continue
            seen = FilteredTree(source.tree, step.exclude, mode, origin=tree.origin, with_owners=tree.with_owners)
            copied = Source(seen, source.path, source.is_folder, source.is_archive)
            found.append((copied, _target_of(step, copied, word)))
    return found


def _left_out(step: Copy, source: Source) -> bool:
    return Ignore(step.exclude)(posixpath.basename(source.path))


def _cleaned(word: str) -> str:
    """Return a path below its tree's root, where ``..`` leads no further."""
    clean = posixpath.normpath(f"/{word.lstrip('/')}")
    return clean.lstrip("/") or "/"


def not_there(tree: SourceTree, word: str) -> BuildError:
    """Return an error about files that a tree has not."""
    path = posixpath.normpath(f"/{word.lstrip('/')}")
    what = f'failed to calculate checksum of ref {tree.origin}: "{path}": not found'
    return BuildError(what, within="failed to compute cache key: ")


def _target_of(step: Copy, source: Source, word: str) -> str:
    """Return where a source goes: with --parents below folders that are called as its own."""
    if not step.parents:
        return step.target
    before, pivot, _ = word.partition("/./")
    base = posixpath.normpath(f"/{before.lstrip('/')}").strip("/") if pivot else ""
    path = source.path.removeprefix(f"{base}/") if base else source.path
    within = path if source.is_folder else posixpath.dirname(path)
    return f"{posixpath.join(step.target, within)}/".replace("//", "/")


def stands_alone(root: Path, found: Sequence[tuple[Source, str]]) -> bool:
    """Whether copying into an empty root gives what copying into this one would (--link). Blocks.

    It does not where a folder on the way is a link, or is another's or has another mode than a new one, or is a file.
    """
    paths: set[str] = set()
    for source, target in found:
        if source.is_archive:
            return False
        folder = target if source.is_folder or target.endswith("/") else posixpath.dirname(target)
        paths.add(folder.rstrip("/"))
        if not target.endswith("/"):
            paths.add(target)
        if source.is_folder:
            inner = (entry.name for entry, _ in source.tree.walk(source) if entry.kind == FOLDER)
            paths.update(posixpath.join(folder, name) for name in inner)
    return all(_is_new(root, path) for path in paths)


def _is_new(root: Path, path: str) -> bool:
    """Whether all folders up to a path are missing, or are as ones made by root."""
    here = root
    for part in path.strip("/").split("/"):
        here = here / part
        try:
            status = here.lstat()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        if not stat.S_ISDIR(status.st_mode) or (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) != (
            0o755,
            0,
            0,
        ):
            return False
    return True
