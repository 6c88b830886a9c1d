"""Another host without a machine on it: who gets in there, and what is copied. See tests.support.remote_libvirt for the host itself.

Run as that is; what was seen goes to stdout as one JSON object. An entry whose name begins with "error" is a sentence of ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

from moorage_contract import image_manifest as manifests
from moorage_contract.image_manifest import Manifest, described
from moorage_host.errors import HostError
from moorage_host.files import private_folder
from moorage_host.link.keys import ensure
from moorage_host.machine.connection import Connection
from moorage_host.machine.there import There
from moorage_host.paths import Paths, user_paths
from moorage_host.settings import Settings

from tests.support.host import user_home
from tests.support.remote_libvirt import GID, UID, USER, OtherHost, other_host

SIZE = 9 << 20  # of the root image: three pieces


class Interrupted(Exception):
    """Stands for a backend that is killed while it copies."""


def image(folder: Path, content: bytes) -> tuple[Path, Manifest]:
    """An image that is whole by its manifest; nothing would boot from it."""
    folder.mkdir()
    for name, data in (("vmlinuz", b"kernel"), ("initrd.img", b"initrd"), ("root.squashfs", content)):
        (folder / name).write_bytes(data)
    kernel, initrd, root = (described(folder / name) for name in ("vmlinuz", "initrd.img", "root.squashfs"))
    made = Manifest(
        "amd64", "26.11.0", "trixie", "6.12", "2026-11-01T00:00:00Z", "x", "", "ttyS0", kernel, initrd, root, {}
    )
    manifests.write(made, folder)
    return folder, made


@contextlib.asynccontextmanager
async def place(paths: Paths, uri: str) -> AsyncIterator[There]:
    """A place behind a connection of its own."""
    connection = Connection(uri, paths.embedded_root)
    assert connection.remote is not None
    try:
        yield There(paths, connection, connection.remote)
    finally:
        await asyncio.to_thread(connection.close)


async def said(asked: Awaitable[object]) -> str:
    """The sentence that something fails with."""
    try:
        await asked
    except HostError as error:
        return str(error)
    return "nothing failed"


async def ask_at_the_door(paths: Paths, laptop: Path, there: OtherHost, seen: dict[str, Any]) -> None:
    """Try to come in with what is right, missing or wrong."""
    base = f"qemu+ssh://{USER}@127.0.0.1:{there.port}/session"
    key = laptop / ".ssh" / "key"
    async with place(paths, f"{base}?keyfile={key}") as one:
        seen["arch"] = await one.arch()
        seen["error_no_emulator"] = await said(one.emulator("arm64"))
        cache = there.home / ".cache" / "libvirt" / "libvirt-sock"
        async with place(paths, f"{base}?keyfile={key}&socket={cache}") as other:
            seen["arch_by_socket"] = await other.arch()
    async with place(paths, f"{base}?keyfile={key}&socket=/nowhere") as one:
        seen["error_no_socket"] = await said(one.arch())
    stranger = laptop / "stranger"
    ensure(stranger, laptop / "other-host")
    async with place(paths, f"{base}?keyfile={stranger}") as one:
        seen["error_not_let_in"] = await said(one.arch())
    locked = laptop / "locked"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(locked)], check=True)
    async with place(paths, f"{base}?keyfile={locked}") as one:
        seen["error_locked_key"] = await said(one.arch())
    known = laptop / "known"
    for name, line in (
        ("unknown", ""),
        ("changed", (laptop / ".ssh" / "known_hosts").read_text().split()[0] + " " + public(laptop / "other-host")),
        ("revoked", (text := (laptop / ".ssh" / "known_hosts").read_text()) + "@revoked * " + text.partition(" ")[2]),
    ):
        known.write_text(line)
        async with place(paths, f"{base}?keyfile={key}&known_hosts={known}") as one:
            seen[f"error_{name}_host"] = await said(one.arch())
    (laptop / ".ssh" / "config").write_text(
        f"Host box\n HostName 127.0.0.1\n Port {there.port}\n User {USER}\n IdentityFile {key}\n"
    )
    async with place(paths, "qemu+ssh://box/session") as one:
        seen["arch_by_ssh_config"] = await one.arch()
    there.stop()
    async with place(paths, f"{base}?keyfile={key}") as one:
        seen["error_not_there"] = await said(one.arch())
    there.start()


def public(private: Path) -> str:
    """The public key of a private one, as in known_hosts."""
    return subprocess.run(
        ["ssh-keygen", "-y", "-f", str(private)], check=True, capture_output=True, text=True
    ).stdout.strip()


async def copy_images(paths: Paths, laptop: Path, there: OtherHost, seen: dict[str, Any]) -> None:
    """Copy an image, be interrupted, go on, copy another one, and remove all."""
    uri = f"qemu+ssh://{USER}@127.0.0.1:{there.port}/session?keyfile={laptop}/.ssh/key"
    first, second = (image(laptop / name, os.urandom(SIZE)) for name in ("first", "second"))
    settings = Settings(disk_gib=4)

    def interrupt(step: str) -> None:
        if "root.squashfs" in step and not step.endswith(" 0 %"):
            raise Interrupted

    async with place(paths, uri) as one:
        private_folder(paths.machine)
        try:
            await one.furnish(settings, first[1], first[0], interrupt)
        except Interrupted:
            seen["whole_when_interrupted"] = sorted(
                name.partition("-")[2] for name in json.loads(paths.remote_record.read_text())["whole"]
            )
        steps: list[str] = []
        files = await one.furnish(settings, first[1], first[0], steps.append)
        seen["copied_after_interruption"] = sorted({step.split()[1] for step in steps})
        seen["same"] = files.root.read_bytes() == (first[0] / "root.squashfs").read_bytes()
        seen["told"] = json.loads(files.guest_config.read_text())["hostname"]
        seen["modes"] = sorted({oct(path.stat().st_mode & 0o777) for path in files.root.parent.iterdir()})
        seen["folder_mode"] = oct(files.root.parent.stat().st_mode & 0o777)
        disk = files.disk.stat().st_ino
        steps.clear()
        files = await one.furnish(Settings(disk_gib=6), second[1], second[0], steps.append)
        seen["copied_of_another"] = sorted({step.split()[1] for step in steps})
        seen["files"] = len(list(files.root.parent.iterdir()))
        seen["disk_kept"] = files.disk.stat().st_ino == disk
        await one.clear()
        await one.clear()
        seen["left"] = files.root.parent.exists()
        paths.remote_record.unlink()

        share = there.home / ".local" / "share"
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size=100m,uid={UID},gid={GID}", "tmpfs", share], check=True)
        try:
            seen["error_no_space"] = await said(one.furnish(settings, first[1], first[0], steps.append))
            await one.clear()
        finally:
            subprocess.run(["umount", share], check=True)


def main() -> None:
    """Ask, copy, tell."""
    seen: dict[str, Any] = {}
    with user_home() as laptop:
        os.environ["HOME"] = str(laptop)
        os.environ.pop("SSH_AUTH_SOCK", None)
        hidden = shutil.which("qemu-system-aarch64")
        if hidden is not None:
            subprocess.run(["mount", "--bind", "/dev/null", hidden], check=True)
        with other_host(laptop) as there:
            paths = user_paths()
            private_folder(paths.state)
            asyncio.run(copy_images(paths, laptop, there, seen))
            asyncio.run(ask_at_the_door(paths, laptop, there, seen))
    json.dump(seen, sys.stdout)


if __name__ == "__main__":
    main()
