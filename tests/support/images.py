"""Small images for tests, made from what Debian has installed: no registry is asked.

Archives are docker-archives (what `docker save` writes), made once and kept in ``.cache/tests`` of the checkout.
"""

import gzip
import hashlib
import io
import json
import platform
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

CACHE = Path(__file__).parents[2] / ".cache" / "tests"
BUSYBOX = Path("/bin/busybox")
BUSYBOX_IMAGE = "busybox:latest"

#: What a test can put into a layer: bytes is a file, str a symbolic link, None a folder, a TarInfo itself.
Content = bytes | str | None | tarfile.TarInfo


def layer_tar(entries: Mapping[str, Content] | Iterable[tuple[str, Content]]) -> bytes:
    """Return an uncompressed layer; the order is kept and names are written as given, however hostile."""
    pairs = entries.items() if isinstance(entries, Mapping) else entries
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in pairs:
            if isinstance(content, tarfile.TarInfo):
                content.name = name
                tar.addfile(content, io.BytesIO(b"\0" * content.size) if content.size else None)
                continue
            info = tarfile.TarInfo(name)
            info.mtime = 1_700_000_000
            if content is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(info)
            elif isinstance(content, str):
                info.type, info.linkname, info.mode = tarfile.SYMTYPE, content, 0o777
                tar.addfile(info)
            else:
                info.size, info.mode = len(content), 0o644
                tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def digest(data: bytes) -> str:
    """Return "sha256:…" of data."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def image_config(layers: Sequence[bytes], config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return an image's configuration for uncompressed layers."""
    return {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()),
        "os": "linux",
        "created": "2024-01-02T03:04:05Z",
        "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], **(config or {})},
        "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
        "history": [{"created": "2024-01-02T03:04:05Z", "created_by": f"layer {n}"} for n in range(len(layers))],
    }


def docker_archive(
    layers: Sequence[bytes],
    *,
    tags: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    compress: bool = False,
    change_document: Callable[[dict[str, Any]], None] | None = None,
) -> bytes:
    """Return a docker-archive of one image. ``change_document`` may spoil the image's configuration."""
    document = image_config(layers, config)
    if change_document is not None:
        change_document(document)
    raw = json.dumps(document).encode()
    config_name = f"{digest(raw).partition(':')[2]}.json"
    files: dict[str, Content] = {}
    names = []
    for number, layer in enumerate(layers):
        name = f"{number}-{digest(layer)[7:19]}/layer.tar"
        files[name] = gzip.compress(layer, 1, mtime=0) if compress else layer
        names.append(name)
    files[config_name] = raw
    files["manifest.json"] = json.dumps([{"Config": config_name, "RepoTags": list(tags), "Layers": names}]).encode()
    return layer_tar(files)


def busybox_layer(program: Path = BUSYBOX) -> bytes:
    """Return a layer with Debian's static busybox, a link for every applet, and the files a small system has.

    ``program`` may be the busybox of another architecture.
    """
    applets = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True, timeout=60).stdout.split()
    binary = tarfile.TarInfo("bin/busybox")
    data = program.read_bytes()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:

        def add(info: tarfile.TarInfo, content: bytes = b"") -> None:
            info.mtime = 1_700_000_000
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))

        folders = {
            "bin": 0o755, "dev": 0o755, "etc": 0o755, "home": 0o755, "proc": 0o755, "root": 0o700, "sys": 0o755,
            "tmp": 0o1777, "usr": 0o755, "usr/bin": 0o755, "usr/sbin": 0o755, "var": 0o755, "var/spool": 0o755,
            "var/www": 0o755, "run": 0o755,
        }  # fmt: skip
        for name, mode in folders.items():
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, mode
            add(info)
        binary.mode = 0o755
        add(binary, data)
        for applet in sorted(set(applets) - {"busybox"}):
            info = tarfile.TarInfo(f"bin/{applet}")
            info.type, info.linkname, info.mode = tarfile.SYMTYPE, "/bin/busybox", 0o777
            add(info)
        files = {
            "etc/passwd": "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\n"
            "www-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n",
            "etc/group": "root:x:0:\ndaemon:x:1:\nwheel:x:10:root\nwww-data:x:33:\nnogroup:x:65534:\n",
            "etc/shadow": "root:*:::::::\n",
        }
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.mode = 0o640 if name == "etc/shadow" else 0o644
            add(info, text.encode())
    return out.getvalue()


def cached(name: str, make: Callable[[], bytes]) -> Path:
    """Return a file of the cache, made by the first who asks; several processes may ask at once."""
    path = CACHE / name
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=CACHE, delete=False) as file:
            file.write(make())
        Path(file.name).chmod(0o644)
        Path(file.name).replace(path)
    return path


def busybox_archive() -> Path:
    """Return a docker-archive of ``busybox:latest`` (command: sh)."""
    stamp = BUSYBOX.stat()
    name = f"busybox-{stamp.st_size}-{int(stamp.st_mtime)}-1.tar"
    return cached(name, lambda: docker_archive([busybox_layer()], tags=[BUSYBOX_IMAGE], config={"Cmd": ["sh"]}))
