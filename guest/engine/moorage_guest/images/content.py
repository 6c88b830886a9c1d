"""Content store: an OCI image layout of blobs by digest, written once and verified while they are written.

What a blob means and who needs it belongs to `images.store`; this module keeps the files. Safe from any thread.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from moorage_guest.errors import InvalidParameter, NotFound

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
    """A blob being written. `commit` or `discard` ends it; nothing is visible before `commit`."""

    def __init__(self, store: "ContentStore") -> None:
        self._store = store
        descriptor, name = tempfile.mkstemp(dir=store.tmp, prefix="blob-")
        self.path = Path(name)
        self.descriptor = descriptor
        self.size = 0
        self._hash = hashlib.sha256()

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

    def commit(self) -> str:
        """Make the blob visible under its digest and return that. It has to be held or the next sweep takes it."""
        digest = self.digest
        os.fchmod(self.descriptor, 0o600)
        os.close(self.descriptor)
        self.descriptor = -1
        if self._store.size(digest) == self.size and self.size:  # what is there may be on disk already, this is not
            self.path.unlink()
        else:
            self.path.replace(self._store.path(digest))
        return digest

    def discard(self) -> None:
        """Throw it away; quiet after `commit`."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
            self.path.unlink(missing_ok=True)

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


class ContentStore:
    """Blobs below ``<root>/blobs/sha256``; ``tmp`` is on the same file system and emptied at every start."""

    def __init__(self, root: Path, tmp: Path) -> None:
        self.root = root
        self.tmp = tmp
        self._folder = root / "blobs" / "sha256"
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
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
        return Ingest(self)

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
        free = [digest for digest in self.digests() if not self.holds.held(digest)]
        size = sum(self.size(digest) for digest in free)
        self._remove(free)
        return size

    def _remove(self, digests: list[str]) -> None:
        for digest in digests:
            self.path(digest).unlink(missing_ok=True)

    def write_index(self, manifests: list[dict[str, Any]]) -> None:
        """Write index.json, by which other tools find the images of the layout."""
        document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}
        write_file(self.root / "index.json", json.dumps(document, indent=1).encode(), sync=False)


def parse_document(data: bytes) -> Any:
    """Parse a JSON document from outside. Raises InvalidParameter."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidParameter(f"invalid JSON in an image: {error}") from None
