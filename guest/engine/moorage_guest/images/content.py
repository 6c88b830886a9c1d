"""Content store: an OCI image layout of blobs by digest, written once and verified while they are written.

What a blob means and who needs it belongs to `images.store`; this module keeps the files. Safe from any thread.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from moorage_guest.errors import InvalidParameter, NotFound

log = logging.getLogger(__name__)

LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"

#: Manifests and configurations are read into memory; bigger ones are refused.
MAX_DOCUMENT = 8 << 20

#: Seconds for which a download that broke off is kept, to be gone on with.
HALF_LIFE = 7 * 24 * 3600


def write_file(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Replace a file so that after a power cut it has the old or the new content."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
        raise


class Ingest:
    """A blob being written. `commit`, `keep` or `discard` ends it; nothing is visible before `commit`."""

    def __init__(self, store: "ContentStore", descriptor: int, path: Path) -> None:
        self._store = store
        self.path = path
        self.descriptor = descriptor
        self.size = 0
        self._hash = hashlib.sha256()

    def recall(self) -> Iterator[bytes]:
        """Yield what the file holds already, which counts as written then; blocks for the disk."""
        while data := os.read(self.descriptor, 1 << 20):
            self._hash.update(data)
            self.size += len(data)
            yield data

    def write(self, data: bytes | memoryview) -> None:
        """Append; blocks for the disk."""
        self._hash.update(data)
        view = memoryview(data)
        while view:
            done = os.write(self.descriptor, view)
            self.size += done
            view = view[done:]

    @property
    def digest(self) -> str:
        """Digest of what was written so far."""
        return f"sha256:{self._hash.hexdigest()}"

    def commit(self, *, stay: bool = False) -> str:
        """Make the blob visible under its digest and return that. It has to be held or the next sweep takes it.

        With ``stay`` the half blob's file stays too, as another name of the blob, until `ContentStore.forget_half`.
        """
        digest = self.digest
        os.fchmod(self.descriptor, 0o600)
        self._close()
        if self._store.size(digest) == self.size and self.size:  # what is there may be on disk already, this is not
            self.path.unlink(missing_ok=True)
        elif stay:
            self._store.path(digest).unlink(missing_ok=True)
            self._store.path(digest).hardlink_to(self.path)
        else:
            self.path.replace(self._store.path(digest))
        return digest

    def keep(self) -> None:
        """Leave what there is of a half blob for the next `ContentStore.half`; quiet after `commit`."""
        if self.descriptor >= 0 and self.size:
            self._close()
        self.discard()

    def discard(self) -> None:
        """Throw it away; quiet after `commit`."""
        if self.descriptor >= 0:
            self.path.unlink(missing_ok=True)
            self._close()

    def _close(self) -> None:
        os.close(self.descriptor)
        self.descriptor = -1

    def __enter__(self) -> "Ingest":
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()


class Holds:
    """Who needs which things. A thing that nobody holds any more is handed to ``free``."""

    def __init__(self, free: Callable[[list[str]], None]) -> None:
        self._free = free
        self._by_owner: dict[str, set[str]] = {}
        self._count: dict[str, int] = {}
        self._lock = threading.RLock()

    def hold(self, owner: str, things: Iterable[str]) -> None:
        """Add things to what an owner holds."""
        with self._lock:
            held = self._by_owner.setdefault(owner, set())
            for thing in things:
                if thing not in held:
                    held.add(thing)
                    self._count[thing] = self._count.get(thing, 0) + 1

    def release(self, owner: str) -> None:
        """Forget an owner and free what is left without one; quiet if it holds nothing. Blocks for the disk."""
        with self._lock:
            free = []
            for thing in self._by_owner.pop(owner, set()):
                self._count[thing] -= 1
                if not self._count[thing]:
                    del self._count[thing]
                    free.append(thing)
            if free:
                self._free(free)

    def held(self, thing: str) -> bool:
        """Whether anybody holds it."""
        with self._lock:
            return thing in self._count

    def count(self, thing: str) -> int:
        """How many hold it."""
        with self._lock:
            return self._count.get(thing, 0)

    def owners(self, thing: str) -> list[str]:
        """Who holds it."""
        with self._lock:
            return [owner for owner, held in self._by_owner.items() if thing in held]


class ContentStore:
    """Blobs below ``<root>/blobs/sha256``; ``tmp`` is on the same file system and emptied at every start."""

    def __init__(self, root: Path, tmp: Path) -> None:
        self.root = root
        self.tmp = tmp
        self._folder = root / "blobs" / "sha256"
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._halves = root / "halves"
        self._halves.mkdir(exist_ok=True, mode=0o700)
        root.chmod(0o700)
        tmp.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not (root / "oci-layout").exists():
            write_file(root / "oci-layout", LAYOUT)
        self.holds = Holds(self._remove)

    def path(self, digest: str) -> Path:
        """Where a blob is or would be."""
        algorithm, _, value = digest.partition(":")
        if algorithm != "sha256" or len(value) != 64 or not value.isalnum():
            raise NotFound(f"unsupported digest {digest!r}")
        return self._folder / value

    def has(self, digest: str) -> bool:
        """Whether the blob is there."""
        return self.path(digest).exists()

    def size(self, digest: str) -> int:
        """Bytes of a blob; 0 when it is not there."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            return 0

    def ingest(self) -> Ingest:
        """Begin a blob."""
        descriptor, name = tempfile.mkstemp(dir=self.tmp, prefix="blob-")
        return Ingest(self, descriptor, Path(name))

    # -- half blobs ---------------------------------------------------------------------------------------------------

    def half(self, digest: str) -> Ingest:
        """Begin the blob of that digest, or go on with what an earlier download left of it (`Ingest.recall`).

        Locked while it is open: who comes second gets a file of its own.
        """
        path = self._halves / self.path(digest).name
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return self.ingest()
            status = os.fstat(descriptor)
            with contextlib.suppress(FileNotFoundError):
                if status.st_nlink == 1 and path.stat().st_ino == status.st_ino:
                    return Ingest(self, descriptor, path)
            if status.st_nlink > 1:  # the blob's other name: that one stays
                path.unlink(missing_ok=True)
            os.close(descriptor)

    def forget_half(self, digest: str) -> None:
        """Remove what is kept of a half blob; quiet when there is nothing. The whole blob stays."""
        (self._halves / self.path(digest).name).unlink(missing_ok=True)

    def half_bytes(self) -> int:
        """Bytes that half blobs take, without those that have become whole."""
        return sum(status.st_size for _path, status in self._half_files() if status.st_nlink == 1)

    def drop_halves(self, before: float | None = None) -> None:
        """Remove half blobs that nobody is downloading, all or those last written before a time (epoch). Blocks."""
        for path, status in self._half_files():
            if before is not None and status.st_nlink == 1 and status.st_mtime >= before:
                continue
            with contextlib.suppress(OSError):
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                finally:
                    os.close(descriptor)

    def _half_files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in list(self._halves.iterdir()):
            with contextlib.suppress(FileNotFoundError):
                yield path, path.lstat()

    # -- documents ----------------------------------------------------------------------------------------------------

    def add(self, data: bytes) -> str:
        """Store a small document and return its digest."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if not self.has(digest):
            with self.ingest() as blob:
                blob.write(data)
                blob.commit()
        return digest

    def add_json(self, value: object) -> tuple[str, int]:
        """Store a JSON document; returns digest and size."""
        data = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
        return self.add(data), len(data)

    def read(self, digest: str) -> bytes:
        """Return a small blob. Raises NotFound."""
        try:
            with self.path(digest).open("rb") as file:
                return file.read(MAX_DOCUMENT + 1)
        except FileNotFoundError:
            raise NotFound(f"content {digest} is not there") from None

    def read_json(self, digest: str) -> dict[str, Any]:
        """Return a JSON document. Raises NotFound, ValueError."""
        value = json.loads(self.read(digest))
        if not isinstance(value, dict):
            raise ValueError(f"content {digest} is no JSON object")
        return value

    def verify(self, digest: str) -> bool:
        """Whether the file's bytes have the digest; reads all of it."""
        try:
            with self.path(digest).open("rb") as file:
                return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" == digest
        except FileNotFoundError:
            return False

    def digests(self) -> Iterator[str]:
        """Every blob there is."""
        with os.scandir(self._folder) as entries:
            for entry in entries:
                yield f"sha256:{entry.name}"

    def sweep(self) -> int:
        """Remove every blob that nobody holds; returns the bytes freed. Blocks for the disk."""
        self.drop_halves(time.time() - HALF_LIFE)
        free = [digest for digest in self.digests() if not self.holds.held(digest)]
        size = sum(self.size(digest) for digest in free)
        self._remove(free)
        return size

    def _remove(self, digests: list[str]) -> None:
        for digest in digests:
            self.path(digest).unlink(missing_ok=True)

    def write_index(self, manifests: list[dict[str, Any]]) -> None:
        """Write index.json, by which other tools find the images of the layout.

        A failure is logged: the engine itself does not need it, and it is written again at every change and start.
        """
        document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}
        try:
            write_file(self.root / "index.json", json.dumps(document, indent=1).encode(), sync=False)
        except OSError as error:
            log.warning("%s/index.json cannot be written: %s", self.root, error.strerror)


def parse_document(data: bytes) -> Any:
    """Parse a JSON document from outside. Raises InvalidParameter."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidParameter(f"invalid JSON in an image: {error}") from None
