"""Read-only layers, unpacked once by chain id, each beside the tar it came from.

Whose layers they are belongs to `images.store` and `images.layers`, which hold them; what nobody holds is removed.
"""

import errno
import hashlib
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moorage_guest.idmap import SAME, IdMap
from moorage_guest.images import kernel
from moorage_guest.images.content import ContentStore, Holds
from moorage_guest.images.streams import BufferedSource
from moorage_guest.images.tarformat import TarError
from moorage_guest.images.unpack import Unpacked, unpack, unpack_stream
from moorage_guest.store import Store

log = logging.getLogger(__name__)

KIND = "layer"

#: The folder beside the layers with the mount points of a container that has none.
NO_LAYER = "base"

#: Free bytes that unpacking leaves on the disk.
RESERVE = 64 << 20


@dataclass(frozen=True)
class Layer:
    """One unpacked layer. ``digest`` is the blob it came from, ``size`` what its files take, ``boot`` "" once on disk."""

    chain_id: str
    parent: str
    diff_id: str
    digest: str
    media_type: str
    blob_size: int
    size: int
    folder: str
    boot: str = ""

    def record(self) -> dict[str, Any]:
        """Return what the state database keeps."""
        return {"version": 1, **asdict(self)}


def chain_ids(diff_ids: Iterable[str]) -> list[str]:
    """Return the chain id of every layer, bottom first."""
    chain: list[str] = []
    for diff_id in diff_ids:
        if not chain:
            chain.append(diff_id)
        else:
            chain.append(f"sha256:{hashlib.sha256(f'{chain[-1]} {diff_id}'.encode()).hexdigest()}")
    return chain


def boot_id() -> str:
    """What tells this run of the kernel from the next."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def remove_tree(path: Path) -> None:
    """Remove a folder with everything in it; quiet if it is not there. Never follows links."""

    def retry(function: Any, name: str, info: Any) -> None:
        if not isinstance(info[1], FileNotFoundError):
            log.warning("cannot remove %s: %s", name, info[1])

    shutil.rmtree(path, onerror=retry)


class LayerStore:
    """Layers below ``<data root>/layers/<short chain id>/diff``. Blocking methods; safe from any thread."""

    def __init__(self, root: Path, tmp: Path, store: Store, content: ContentStore, ids: IdMap = SAME) -> None:
        self.root = root
        self.ids = ids
        """Who owns the files of layers on disk."""
        self.tmp = tmp
        self._store = store
        self.content = content
        self._layers: dict[str, Layer] = {}
        self._lock = threading.RLock()
        self._busy: dict[str, threading.Lock] = {}
        self._trash: list[Path] = []
        self.holds = Holds(self._remove)
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        root.chmod(0o700)
        tmp.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.unpackers: ThreadPoolExecutor = kernel.umask_free_executor(2, "unpack")
        self._helpers: ThreadPoolExecutor = kernel.umask_free_executor(2, "files")

    def close(self) -> None:
        """End the threads."""
        self.unpackers.shutdown(wait=True, cancel_futures=True)
        self._helpers.shutdown(wait=True)

    # -- start --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Read the records. A layer that a power cut may have spoiled, or whose folder is gone, is forgotten (`get` misses it)."""
        boot = boot_id()
        for key, record in self._store.all(KIND).items():
            try:
                layer = Layer(**{name: record[name] for name in Layer.__dataclass_fields__})
            except (KeyError, TypeError) as error:
                log.error("layer record %s is damaged (%s): dropped", key, error)
                self._store.delete(KIND, key)
                continue
            if layer.boot and layer.boot != boot:
                log.warning("layer %s was not on disk when the machine stopped: it is unpacked again", key)
                self._store.delete(KIND, key)
                continue
            if not (self.root / layer.folder / "diff").is_dir():
                log.error("layer %s has lost its folder %s: it is unpacked again", key, self.root / layer.folder)
                self._store.delete(KIND, key)
                continue
            self._remember(layer)

    def sweep(self) -> None:
        """Remove every layer that nobody holds and every folder that belongs to none."""
        self._remove([layer.chain_id for layer in self.all() if not self.holds.held(layer.chain_id)])
        with self._lock:
            known = {NO_LAYER, *(layer.folder for layer in self._layers.values())}
            for entry in self.root.iterdir():
                if entry.name not in known:
                    log.info("removing %s, which belongs to no layer", entry)
                    remove_tree(entry)
        self.empty_trash()

    def make_durable(self) -> None:
        """Wait until new layers and blobs are on disk and note it; called some time after work was done."""
        with self._lock:
            fresh = [layer for layer in self._layers.values() if layer.boot]
        if not fresh:
            return
        kernel.sync_filesystem(self.root)
        with self._lock, self._store.transaction():
            for layer in fresh:
                if self._layers.get(layer.chain_id) == layer:
                    done = Layer(**{**asdict(layer), "boot": ""})
                    self._layers[layer.chain_id] = done
                    self._store.put(KIND, layer.chain_id, done.record())

    # -- look-up ------------------------------------------------------------------------------------------------------

    def get(self, chain_id: str) -> Layer | None:
        """Return an unpacked layer."""
        with self._lock:
            return self._layers.get(chain_id)

    def with_diff(self, diff_id: str) -> Layer | None:
        """Return any unpacked layer of that content whose blob is there."""
        with self._lock:
            for layer in self._layers.values():
                if layer.diff_id == diff_id and self.content.has(layer.digest):
                    return layer
        return None

    def all(self) -> list[Layer]:
        """Every layer."""
        with self._lock:
            return list(self._layers.values())

    def lower_names(self, chain: Sequence[str]) -> list[str]:
        """Return the folders of a chain, topmost first, relative to `root`, as overlayfs takes them."""
        names = []
        with self._lock:
            for chain_id in reversed(chain):
                layer = self._layers.get(chain_id)
                if layer is None:
                    raise TarError(f"layer {chain_id} is missing from {self.root}; pull or load the image again")
                names.append(f"{layer.folder}/diff")
        return names

    def size(self, chain: Iterable[str]) -> int:
        """Bytes that the files of these layers take."""
        with self._lock:
            return sum(layer.size for chain_id in chain if (layer := self._layers.get(chain_id)))

    # -- making layers ------------------------------------------------------------------------------------------------

    def add(self, parent: str, diff_id: str, tar: int, *, digest: str, media_type: str, owner: str) -> Layer:
        """Unpack the uncompressed tar open as ``tar`` on top of ``parent`` and hold it for ``owner``.

        The caller has verified the tar's digest. Quick when the layer exists. Raises TarError, OSError; leaves nothing then.
        """
        chain_id = chain_ids([parent, diff_id])[-1] if parent else diff_id
        self.holds.hold(owner, [chain_id])
        with self._making(chain_id):
            if found := self.get(chain_id):
                return found
            work = self._new_folder()
            try:
                free = max(self.free_bytes() - RESERVE, 0)
                size = os.fstat(tar).st_size
                done: Unpacked = self.unpackers.submit(
                    unpack,
                    tar,
                    size,
                    work / "diff",
                    base=not parent,
                    free_bytes=free,
                    helpers=self._helpers,
                    ids=self.ids,
                ).result()
                return self._finish(work, chain_id, parent, diff_id, digest, media_type, done.size)
            except BaseException:
                remove_tree(work)
                raise

    def _new_folder(self) -> Path:
        work = Path(tempfile.mkdtemp(dir=self.tmp, prefix="layer-"))
        work.chmod(0o700)
        diff = work / "diff"
        diff.mkdir(mode=0o755)
        diff.chmod(0o755)
        return work

    def unpack_stream(self, parent: str, source: BufferedSource) -> tuple[Path, int]:
        """Unpack a tar that is still coming; returns the folder and the size that `adopt` takes once the digest is known.

        Runs in a thread of `kernel.umask_free_executor`. Raises TarError, OSError; leaves nothing then.
        """
        work = self._new_folder()
        try:
            free = max(self.free_bytes() - RESERVE, 0)
            done = unpack_stream(source, work / "diff", base=not parent, free_bytes=free, ids=self.ids)
        except BaseException:
            remove_tree(work)
            raise
        return work, done.size

    def adopt(
        self, parent: str, diff_id: str, work: Path, size: int, *, digest: str, media_type: str, owner: str
    ) -> Layer:
        """Take over ``work`` (a folder with ``diff`` in it, inside `tmp`) as the unpacked form of a layer."""
        chain_id = chain_ids([parent, diff_id])[-1] if parent else diff_id
        self.holds.hold(owner, [chain_id])
        with self._making(chain_id):
            if found := self.get(chain_id):
                remove_tree(work)
                return found
            return self._finish(work, chain_id, parent, diff_id, digest, media_type, size)

    def _finish(
        self, work: Path, chain_id: str, parent: str, diff_id: str, digest: str, media_type: str, size: int
    ) -> Layer:
        folder = chain_id.partition(":")[2][:24]
        target = self.root / folder
        remove_tree(target)
        work.rename(target)
        layer = Layer(chain_id, parent, diff_id, digest, media_type, self.content.size(digest), size, folder, boot_id())
        self._store.put(KIND, chain_id, layer.record())
        self._remember(layer)
        return layer

    def free_bytes(self) -> int:
        """Bytes free on the layers' file system."""
        status = os.statvfs(self.root)
        return status.f_bavail * status.f_frsize

    def check_space(self, needed: int) -> None:
        """Raise OSError (ENOSPC) unless so many bytes are free."""
        if needed > self.free_bytes() - RESERVE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.root))

    def _remember(self, layer: Layer) -> None:
        with self._lock:
            self._layers[layer.chain_id] = layer

    def _making(self, chain_id: str) -> threading.Lock:
        """Return the lock under which one chain id is made, so that two pulls of one layer unpack it once."""
        with self._lock:
            return self._busy.setdefault(chain_id, threading.Lock())

    def _remove(self, chain_ids: list[str]) -> None:
        with self._lock:
            for chain_id in chain_ids:
                layer = self._layers.pop(chain_id, None)
                if layer is None:
                    continue
                self._store.delete(KIND, chain_id)
                doomed = Path(tempfile.mkdtemp(dir=self.tmp, prefix="gone-"))
                (self.root / layer.folder).rename(doomed / "layer")
                self._trash.append(doomed)

    def empty_trash(self) -> None:
        """Remove the files of layers that were let go; outside of every lock, for it takes its time. Blocks."""
        while self._trash:
            try:
                doomed = self._trash.pop()
            except IndexError:  # another thread took the last
                return
            remove_tree(doomed)
