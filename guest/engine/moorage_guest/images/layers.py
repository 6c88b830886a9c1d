"""Read-write layers of containers: overlay mounts, what a container changed, export and commit.

A container's layer holds the image layers below it, so that it outlives its image's name. Mounts outlive the daemon.
"""

import asyncio
import contextlib
import logging
import os
import stat
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from moorage_guest.errors import InvalidParameter, NotFound, SystemError_
from moorage_guest.idmap import IdMap
from moorage_guest.images import content as media
from moorage_guest.images import kernel, names
from moorage_guest.images.image import Image, LayerBlob
from moorage_guest.images.layerstore import NO_LAYER, remove_tree
from moorage_guest.images.pack import is_opaque, is_whiteout, pack_layer, pack_tree
from moorage_guest.images.store import Images
from moorage_guest.images.streams import finished
from moorage_guest.paths import DataRoot
from moorage_guest.store import Store

log = logging.getLogger(__name__)

KIND = "rwlayer"

T = TypeVar("T")

#: What a runtime mounts over: made in a layer of its own, so that it never counts as a change of the container.
INIT_FOLDERS = ("dev", "dev/pts", "dev/shm", "proc", "sys", "etc")
INIT_FILES = ("etc/resolv.conf", "etc/hosts", "etc/hostname", "dev/console", ".dockerenv")

MODIFIED, ADDED, DELETED = 0, 1, 2


class Layers:
    """Read-write layers by container id. Every method is safe to call again after a crash in the middle."""

    def __init__(self, data_root: DataRoot, store: Store, images: Images) -> None:
        self._data_root = data_root
        self._store = store
        self._images = images
        self._layer_store = images.layer_store
        self.ids = images.layer_store.ids
        """Who owns the files of containers and layers on disk."""
        self._threads: ThreadPoolExecutor = kernel.umask_free_executor(4, "layers", data_root.layers)

    async def _run(self, function: Callable[..., T], *arguments: Any) -> T:
        return await finished(asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments))

    # -- start and end ------------------------------------------------------------------------------------------------

    async def restore(self, live: Iterable[str]) -> None:
        """Take back the layers of the containers there are; unmount and remove those of any other. Call before `Images.sweep`.

        When the state database had to be made anew, nothing is removed: a record may be missing that was lost with it.
        """
        await self._run(self._restore, set(live))

    def _restore(self, live: set[str]) -> None:
        records = self._store.all(KIND)
        for container_id, record in records.items():
            if container_id in live:
                self._layer_store.holds.hold(f"rw:{container_id}", record.get("chain", []))
        if self._store.recovered is not None:
            return
        for container_id in set(records) - live:
            log.warning("removing the layer of %s, which has no container", container_id)
            self._remove_rw(container_id)
        folder = self._data_root.mount("x").parent
        if folder.is_dir():
            for entry in folder.iterdir():
                if entry.name not in live:
                    log.warning("removing %s, which belongs to no container", entry)
                    self._remove_rw(entry.name)

    async def close(self) -> None:
        """End the threads; mounts stay."""
        await asyncio.to_thread(self._threads.shutdown)

    # -- life of a layer ----------------------------------------------------------------------------------------------

    async def create_rw(
        self,
        container_id: str,
        image_id: str | None,
        storage_opt: Mapping[str, str] | None = None,
        *,
        chain: Sequence[str] | None = None,
    ) -> None:
        """Make an empty read-write layer on top of an image, of nothing, or of a ``chain`` that no image has.

        Quiet if it exists. Raises NotFound.
        """
        for key in storage_opt or {}:
            if key.lower() != "size":
                raise InvalidParameter(f"unknown option {key}")
            raise InvalidParameter(
                "--storage-opt is supported only for overlay over xfs with 'pquota' mount option; leave it out"
            )
        if chain is None:
            chain = self._images.get(image_id).chain if image_id else ()
        await self._run(self._create_rw, container_id, image_id or "", list(chain))

    def _create_rw(self, container_id: str, image_id: str, chain: list[str]) -> None:
        self._layer_store.holds.hold(f"rw:{container_id}", chain)
        folder = self._data_root.mount(container_id)
        try:
            self._layer_store.lower_names(chain)
            self._init_layer(chain)
            self._store.put(KIND, container_id, {"version": 1, "image": image_id, "chain": chain})
            folder.parent.mkdir(mode=0o700, exist_ok=True)
            folder.mkdir(mode=0o710, exist_ok=True)
            for name in ("diff", "merged"):
                (folder / name).mkdir(mode=0o755, exist_ok=True)
            self.ids.let_through(folder.parent, folder)
            self.ids.give(folder / "diff")
            (folder / "work").mkdir(mode=0o700, exist_ok=True)
        except BaseException:
            self._remove_rw(container_id)
            raise

    async def mount(self, container_id: str) -> Path:
        """Mount the container's root file system and return its path; quiet when it is mounted. Raises NotFound."""
        return await self._run(self._mount, container_id)

    def _record(self, container_id: str) -> dict[str, Any]:
        record = self._store.get(KIND, container_id)
        if record is None:
            raise NotFound(f"container {container_id} has no layer below {self._data_root.mount(container_id)}")
        return record

    def _mount(self, container_id: str) -> Path:
        chain: list[str] = self._record(container_id)["chain"]
        folder = self._data_root.mount(container_id)
        merged = folder / "merged"
        if kernel.is_mount_point(merged):
            return merged
        lower = [self._init_layer(chain), *self._layer_store.lower_names(chain)]
        self._overlay(merged, lower, upper=folder / "diff", work=folder / "work")
        return merged

    def _overlay(
        self, target: Path, lower: Sequence[str], *, upper: Path | None = None, work: Path | None = None
    ) -> None:
        """Mount an overlay. The options have to fit a page, so lower folders are named relative to the working folder."""
        options = f"lowerdir={':'.join(lower)}"
        if upper is not None:
            options += f",upperdir={upper},workdir={work}"
        if len(options) > 4000:
            raise SystemError_(f"{len(lower)} layers are more than can be mounted at once; squash the image")
        try:
            kernel.mount("overlay", str(target), "overlay", 0 if upper else kernel.MS_RDONLY, options)
        except OSError as error:
            raise SystemError_(f"error creating overlay mount to {target}: {error.strerror}") from error

    async def unmount(self, container_id: str) -> None:
        """Unmount; quiet when it is not mounted or not there."""
        await self._run(self._unmount, container_id)

    def _unmount(self, container_id: str) -> None:
        merged = self._data_root.mount(container_id) / "merged"
        while kernel.is_mount_point(merged):
            try:
                kernel.unmount(merged, lazy=True)
            except OSError as error:
                raise SystemError_(f"cannot unmount {merged}: {error.strerror}") from error

    async def remove_rw(self, container_id: str) -> None:
        """Unmount and remove a container's layer with everything it wrote; quiet when it is not there."""
        await self._run(self._remove_rw, container_id)

    def _remove_rw(self, container_id: str) -> None:
        self._unmount(container_id)
        folder = self._data_root.mount(container_id)
        self._store.delete(KIND, container_id)
        if folder.exists():
            doomed = Path(tempfile.mkdtemp(dir=self._layer_store.tmp, prefix="gone-"))
            folder.rename(doomed / "rw")
            remove_tree(doomed)
        self._layer_store.holds.release(f"rw:{container_id}")
        self._layer_store.empty_trash()

    def _init_layer(self, chain: Sequence[str]) -> str:
        """Return the folder, relative to the layers, with mount points that the image lacks; made once for a chain."""
        top = self._layer_store.lower_names(chain[-1:])[0].partition("/")[0] if chain else ""
        home = self._layer_store.root / (top or NO_LAYER)
        done = home / "init"
        relative = f"{top or NO_LAYER}/init"
        if done.is_dir():
            return relative
        home.mkdir(exist_ok=True, mode=0o700)
        work = Path(tempfile.mkdtemp(dir=self._layer_store.tmp, prefix="init-"))
        try:
            for name in ("diff", "work", "merged"):
                (work / name).mkdir(mode=0o755)
            self.ids.give(work / "diff")
            if chain:
                lower = self._layer_store.lower_names(chain)
                self._overlay(work / "merged", lower, upper=work / "diff", work=work / "work")
                try:
                    _make_mount_points(work / "merged", self.ids)
                finally:
                    kernel.unmount(work / "merged", lazy=True)
            else:
                _make_mount_points(work / "diff", self.ids)
            with contextlib.suppress(OSError):  # another thread was faster: its folder is as good
                (work / "diff").rename(done)
        finally:
            remove_tree(work)
        return relative

    # -- what a container did -----------------------------------------------------------------------------------------

    async def changes(self, container_id: str) -> list[tuple[str, int]]:
        """Return (path, kind) of what differs from the image: 0 modified, 1 added, 2 deleted; sorted by path."""
        return await self._run(self._changes, container_id)

    def _changes(self, container_id: str) -> list[tuple[str, int]]:
        chain: list[str] = self._record(container_id)["chain"]
        names_ = [self._init_layer(chain), *self._layer_store.lower_names(chain)]
        lower = [self._layer_store.root / name for name in names_]
        found: dict[str, int] = {}
        _compare(self._data_root.mount(container_id) / "diff", "", lower, found)
        return sorted(found.items())

    async def sizes(self, container_id: str) -> tuple[int, int]:
        """Return the bytes of files that the container wrote, and of its whole root file system."""
        return await self._run(self._sizes, container_id)

    def _sizes(self, container_id: str) -> tuple[int, int]:
        chain: list[str] = self._record(container_id)["chain"]
        size = tree_size(self._data_root.mount(container_id) / "diff")
        return size, size + self._layer_store.size(chain)

    async def export(self, container_id: str) -> AsyncGenerator[bytes, None]:
        """Yield the root file system as a tar stream. Raises NotFound at the first step. To be closed (`aclosing`)."""
        mounted_before = await self._run(kernel.is_mount_point, self._data_root.mount(container_id) / "merged")
        root = await self.mount(container_id)
        try:
            async with contextlib.aclosing(self.stream(pack_tree(root, self.ids))) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            if not mounted_before:
                await asyncio.shield(self.unmount(container_id))

    async def stream(self, source: Generator[bytes, None, None]) -> AsyncGenerator[bytes, None]:
        """Yield what a blocking generator gives, gathered into pieces of about a megabyte, each made in a thread.

        To be closed (`aclosing`), which closes the generator and the files that it has open.
        """

        def gather() -> bytes:
            parts: list[bytes] = []
            size = 0
            for part in source:
                parts.append(part)
                size += len(part)
                if size >= 1 << 20:
                    break
            return b"".join(parts)

        try:
            while chunk := await self._run(gather):
                yield chunk
        finally:
            with contextlib.suppress(ValueError):  # cancelled while a thread is at it
                source.close()

    async def commit(
        self,
        container_id: str,
        *,
        config: Mapping[str, Any],
        reference: str = "",
        comment: str = "",
        author: str = "",
        created_by: str = "",
        hidden_parent: bool = True,
    ) -> str:
        """Make an image of a container's root file system and return its id.

        ``config`` is the new image's (PascalCase, as in an image's JSON); ``reference`` names it. The caller pauses
        the container if need be. A file system without changes gives an image without a new layer.
        """
        name = names.parse(reference) if reference else None
        if name is not None and name.digest:
            raise InvalidParameter("refusing to create a tag with a digest reference")
        image = await self._run(
            self._commit, container_id, dict(config), name, comment, author, created_by, hidden_parent
        )
        if name is not None:
            self._images.publish("tag", image, name.with_default_tag().familiar)
        return image.id

    def _commit(
        self,
        container_id: str,
        config: dict[str, Any],
        name: names.Reference | None,
        comment: str,
        author: str,
        created_by: str,
        hidden_parent: bool,
    ) -> Image:
        record = self._record(container_id)
        base = self._images.find(record["image"]) if record["image"] else None
        diff = self._data_root.mount(container_id) / "diff"
        with self._images.work("commit") as owner:
            layer = self._pack(diff, record["chain"], owner)
            return self._images.derive(
                base, layer, config, owner=owner, comment=comment, author=author, created_by=created_by,
                tags=[str(name.with_default_tag())] if name else [], parent=base.id if base and hidden_parent else "",
                chain_base=record["chain"],
            )  # fmt: skip

    async def change(
        self, chain: Sequence[str], owner: str, work: Callable[[Path], None], *, empty: bool = False
    ) -> LayerBlob | None:
        """Let ``work`` change a root file system made of ``chain`` and return the new layer, held by ``owner``.

        ``work`` runs in a thread. None when it changed nothing, unless an ``empty`` layer is as good as any.
        What it raises goes on, with nothing left behind.
        """
        return await self._run(self._change, list(chain), owner, work, empty)

    def _change(
        self, chain: list[str], owner: str, work: Callable[[Path], None], empty: bool = False
    ) -> LayerBlob | None:
        folder = Path(tempfile.mkdtemp(dir=self._layer_store.tmp, prefix="change-"))
        try:
            for name in ("diff", "work", "merged"):
                (folder / name).mkdir(mode=0o755)
            self.ids.give(folder / "diff")
            if not chain:
                work(folder / "diff")
            else:
                lower = self._layer_store.lower_names(chain)
                self._overlay(folder / "merged", lower, upper=folder / "diff", work=folder / "work")
                try:
                    work(folder / "merged")
                finally:
                    kernel.unmount(folder / "merged", lazy=True)
            return self._adopt(folder / "diff", chain, owner, empty)
        finally:
            remove_tree(folder)

    async def change_from(
        self,
        chain: Sequence[str],
        other: Sequence[str],
        owner: str,
        work: Callable[[Path, Path], None],
        *,
        empty: bool = False,
    ) -> LayerBlob | None:
        """As `change`, with the root file system of ``other`` as a second one that must not be changed."""
        return await self._run(
            lambda: self._read(
                list(other), lambda source: self._change(list(chain), owner, lambda root: work(root, source), empty)
            )
        )

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run work in one of the threads in which files get exactly the mode asked for, to its end."""
        return await self._run(work)

    async def read(self, chain: Sequence[str], work: Callable[[Path], T]) -> T:
        """Return what ``work`` makes of a root file system that it must not change; it runs in a thread."""
        return await self._run(self._read, list(chain), work)

    def _read(self, chain: list[str], work: Callable[[Path], T]) -> T:
        with self._view(chain) as root:
            return work(root)

    @contextlib.contextmanager
    def _view(self, chain: list[str]) -> Iterator[Path]:
        lower = self._layer_store.lower_names(chain)
        if len(lower) == 1:
            yield self._layer_store.root / lower[0]
            return
        folder = Path(tempfile.mkdtemp(dir=self._layer_store.tmp, prefix="read-"))
        try:
            (folder / "merged").mkdir()
            if lower:
                self._overlay(folder / "merged", lower)
            try:
                yield folder / "merged"
            finally:
                if lower:
                    kernel.unmount(folder / "merged", lazy=True)
        finally:
            remove_tree(folder)

    @contextlib.asynccontextmanager
    async def viewed(self, chain: Sequence[str]) -> AsyncIterator[Path]:
        """A root file system that is there to be read until the end of the block; whoever reads does so in a thread."""
        with contextlib.ExitStack() as view:
            root = await self._run(view.enter_context, self._view(list(chain)))
            closing = view.pop_all()
            try:
                yield root
            finally:
                await asyncio.shield(self._run(closing.close))

    async def take(
        self,
        container_id: str,
        owner: str,
        *,
        keep: bool,
        empty: bool = False,
        tidy: Callable[[Path], None] = lambda diff: None,
    ) -> LayerBlob | None:
        """Return what a stopped container changed as a new layer, held by ``owner``; None when it changed nothing.

        Unless ``keep`` is set the container's files become the layer: the container can only be removed then.
        ``empty`` is as for `change`; ``tidy`` may take away what is none of the container's from the folder of changes.
        """
        return await self._run(self._take, container_id, owner, keep, empty, tidy)

    def _take(
        self, container_id: str, owner: str, keep: bool, empty: bool, tidy: Callable[[Path], None]
    ) -> LayerBlob | None:
        chain: list[str] = self._record(container_id)["chain"]
        self._unmount(container_id)
        diff = self._data_root.mount(container_id) / "diff"
        tidy(diff)
        return self._pack(diff, chain, owner) if keep else self._adopt(diff, chain, owner, empty)

    def _adopt(self, diff: Path, chain: Sequence[str], owner: str, empty: bool = False) -> LayerBlob | None:
        """Store an upper folder as a blob and make it, moved, the unpacked layer."""
        layer = self._store_blob(diff, chain, owner, empty)
        if layer is None:
            return None
        work = Path(tempfile.mkdtemp(dir=self._layer_store.tmp, prefix="layer-"))
        size = tree_size(diff)
        diff.rename(work / "diff")
        self._layer_store.adopt(
            chain[-1] if chain else "", layer.diff_id, work, size, digest=layer.digest, media_type=layer.media_type,
            owner=owner,
        )  # fmt: skip
        return layer

    def _pack(self, diff: Path, chain: Sequence[str], owner: str) -> LayerBlob | None:
        """Store an upper folder as a blob and as an unpacked layer on top of ``chain``; None when it is empty."""
        layer = self._store_blob(diff, chain, owner)
        if layer is not None:
            self._images.add_layer(chain[-1] if chain else "", layer, owner=owner)
        return layer

    def _store_blob(self, diff: Path, chain: Sequence[str], owner: str, empty: bool = False) -> LayerBlob | None:
        with os.scandir(diff) as entries:
            nothing = next(entries, None) is None
        if nothing and chain and not empty:
            return None
        with self._images.content.ingest() as blob:
            for chunk in pack_layer(diff, self.ids):
                blob.write(chunk)
            size, digest = blob.size, blob.digest
            self._images.content.holds.hold(owner, [digest])
            blob.commit()
        return LayerBlob(digest, digest, media.LAYER, size)


def _make_mount_points(root: Path, ids: IdMap) -> None:
    descriptor = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in INIT_FOLDERS:
            parent, _, leaf = name.rpartition("/")
            with contextlib.suppress(FileExistsError, NotADirectoryError), _opened(descriptor, parent) as folder:
                os.mkdir(leaf, 0o755, dir_fd=folder)
                os.chown(leaf, *ids.root, dir_fd=folder, follow_symlinks=False)
        for name in INIT_FILES:
            parent, _, leaf = name.rpartition("/")
            with contextlib.suppress(FileExistsError, NotADirectoryError), _opened(descriptor, parent) as folder:
                os.close(
                    os.open(
                        leaf,
                        os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
                        0o755 if leaf == ".dockerenv" else 0o644,
                        dir_fd=folder,
                    )
                )
                os.chown(leaf, *ids.root, dir_fd=folder, follow_symlinks=False)
        with contextlib.suppress(FileExistsError, NotADirectoryError), _opened(descriptor, "etc") as folder:
            os.symlink("/proc/mounts", "mtab", dir_fd=folder)
            os.chown("mtab", *ids.root, dir_fd=folder, follow_symlinks=False)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _opened(root: int, name: str) -> Iterator[int]:
    descriptor = kernel.open_in_root(root, name or ".", os.O_PATH | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def tree_size(root: Path) -> int:
    """Bytes of the regular files below a folder, each inode once, and of what its symbolic links hold."""
    total = 0
    seen: set[tuple[int, int]] = set()
    folders = [str(root)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(status.st_mode):
                        folders.append(entry.path)
                    elif stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
                        if status.st_nlink > 1:
                            key = (status.st_dev, status.st_ino)
                            if key in seen:
                                continue
                            seen.add(key)
                        total += status.st_size
        except FileNotFoundError:
            continue
    return total


def _compare(folder: Path, name: str, lower: Sequence[Path], found: dict[str, int]) -> bool:
    """Compare one upper folder with the layers below it that are still visible there; says whether anything differs."""
    changed = False
    with os.scandir(folder) as listing:
        entries = list(listing)
    for entry in entries:
        path = f"{name}/{entry.name}"
        status = entry.stat(follow_symlinks=False)
        below, visible = _below(entry.name, lower)
        if is_whiteout(status):
            if below is not None:
                found[path] = DELETED
                changed = True
            continue
        if stat.S_ISDIR(status.st_mode):
            both = below is not None and stat.S_ISDIR(below.st_mode)
            inner = [] if not both or is_opaque(entry.path) else visible
            same = both and below is not None and _same_folder(status, below)
            if not same:
                found[path] = MODIFIED if below is not None else ADDED
            deeper = _compare(Path(entry.path), path, inner, found)
            if same and deeper:
                found[path] = MODIFIED
            changed = changed or deeper or not same
            continue
        found[path] = MODIFIED if below is not None else ADDED
        changed = True
    return changed


def _same_folder(upper: os.stat_result, lower: os.stat_result) -> bool:
    return (
        upper.st_mode == lower.st_mode
        and upper.st_uid == lower.st_uid
        and upper.st_gid == lower.st_gid
        and upper.st_mtime_ns == lower.st_mtime_ns
    )


def _below(name: str, lower: Sequence[Path]) -> tuple[os.stat_result | None, list[Path]]:
    """Return what an entry is in the layers below, and the folders that show through it."""
    first: os.stat_result | None = None
    visible: list[Path] = []
    for folder in lower:
        path = folder / name
        try:
            status = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        if is_whiteout(status):
            break
        if first is None:
            first = status
        if not stat.S_ISDIR(status.st_mode):
            break
        visible.append(path)
        if is_opaque(path):
            break
    return first, visible
