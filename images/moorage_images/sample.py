"""A container image to try things with, made from a static busybox: `python -m moorage_images.sample OUTPUT.tar`.

Written as a docker-archive, as `docker load` takes it; no registry is asked. `-` is stdout.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

from moorage_images.python import build_machine

NAME = "busybox:latest"
BUSYBOX = Path("/bin/busybox")
_FOLDERS = {"bin": 0o755, "dev": 0o755, "etc": 0o755, "proc": 0o755, "root": 0o700, "sys": 0o755, "tmp": 0o1777}
_PASSWD = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"


def archive(busybox: Path = BUSYBOX) -> bytes:
    """The archive's bytes; the same busybox gives the same bytes. Raises OSError when there is no busybox that runs."""
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    layer = _tar(
        [
            *(_folder(name, mode) for name, mode in _FOLDERS.items()),
            (_entry("bin/busybox", 0o755), busybox.read_bytes()),
            *((_link(f"bin/{applet}", "busybox"), b"") for applet in sorted(set(applets) - {"busybox"})),
            (_entry("etc/passwd", 0o644), _PASSWD.encode()),
            (_entry("etc/group", 0o644), b"root:x:0:\nnogroup:x:65534:\n"),
        ]
    )
    config = json.dumps(
        {
            "architecture": build_machine(),
            "os": "linux",
            "created": "2026-11-01T00:00:00Z",
            "config": {"Cmd": ["sh"], "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]},
            "history": [{"created": "2026-11-01T00:00:00Z", "created_by": "Debian's busybox-static"}],
        }
    ).encode()
    config_name = hashlib.sha256(config).hexdigest() + ".json"
    manifest = json.dumps([{"Config": config_name, "RepoTags": [NAME], "Layers": ["layer.tar"]}]).encode()
    files = ((config_name, config), ("layer.tar", layer), ("manifest.json", manifest))
    return _tar([(_entry(name, 0o644), data) for name, data in files])


def main(arguments: list[str]) -> int:
    """Write the archive to the named file, or to stdout."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m moorage_images.sample OUTPUT.tar|-\n")
        return 2
    if arguments[0] == "-":
        sys.stdout.buffer.write(archive())
    else:
        Path(arguments[0]).write_bytes(archive())
    return 0


def _entry(name: str, mode: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mode = mode
    return info


def _folder(name: str, mode: int) -> tuple[tarfile.TarInfo, bytes]:
    info = _entry(name, mode)
    info.type = tarfile.DIRTYPE
    return info, b""


def _link(name: str, target: str) -> tarfile.TarInfo:
    info = _entry(name, 0o777)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


def _tar(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
