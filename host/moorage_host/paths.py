"""Where everything of the host side lies, by platform. Nothing here touches the disk; docs/files-on-disk.md lists the same."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moorage_host.errors import ErrorCode, HostError

SOCKET_PATH_BYTES = 107  # sun_path without its closing zero on Linux; macOS has 103


@dataclass(frozen=True)
class Paths:
    """The folders of one user: `config` is edited by people, `state` is ours, `data` can be built again."""

    config: Path
    state: Path
    data: Path

    @property
    def settings(self) -> Path:
        return self.config / "settings.json"

    @property
    def engine_config(self) -> Path:
        """The host's copy of daemon.json."""
        return self.config / "daemon.json"

    @property
    def image(self) -> Path:
        return self.data / "image"

    @property
    def backend_socket(self) -> Path:
        return self._socket("backend.sock")

    @property
    def backend_lock(self) -> Path:
        return self.state / "backend.lock"

    @property
    def backend_log(self) -> Path:
        return self.state / "backend.log"

    @property
    def docker_socket(self) -> Path:
        return self._socket("docker.sock")

    @property
    def machine(self) -> Path:
        """Disk, keys, guest configuration and console log of the machine: gone when it is deleted."""
        return self.state / "machine"

    @property
    def disk(self) -> Path:
        return self.machine / "data.qcow2"

    @property
    def console_log(self) -> Path:
        return self.machine / "console.log"

    @property
    def guest_config(self) -> Path:
        """What QEMU hands to the guest as fw_cfg entry opt/moorage/config; holds the guest's private host key."""
        return self.machine / "guest-config.json"

    @property
    def client_key(self) -> Path:
        return self.machine / "id_ed25519"

    @property
    def host_key(self) -> Path:
        return self.machine / "ssh_host_ed25519_key"

    @property
    def machine_record(self) -> Path:
        return self.machine / "machine.json"

    @property
    def remote_record(self) -> Path:
        """Of a machine on another host: where its volumes are there, and which of them are whole."""
        return self.machine / "remote.json"

    @property
    def saved_state(self) -> Path:
        """The machine's memory where every boot is alike, as libvirt saves it; holds the guest's private host key."""
        return self.machine / "saved.state"

    @property
    def saved_console(self) -> Path:
        """What the console had said by then."""
        return self.machine / "saved.console"

    @property
    def saved_record(self) -> Path:
        """What the saved state is valid for."""
        return self.machine / "saved.json"

    @property
    def accelerators(self) -> Path:
        """Which accelerators failed here, and under what circumstances."""
        return self.state / "accelerators.json"

    @property
    def embedded_root(self) -> Path:
        """Root of libvirt's embedded driver."""
        return self.state / "libvirt"

    def _socket(self, name: str) -> Path:
        path = self.state / name
        if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
            raise HostError(
                f"the path {path} is too long for a socket ({len(os.fsencode(path))} bytes, at most {SOCKET_PATH_BYTES})",
                hint="set XDG_STATE_HOME to a shorter folder",
                code=ErrorCode.INVALID,
            )
        return path


def user_paths(environ: Mapping[str, str] | None = None, platform: str = sys.platform) -> Paths:
    """The folders of the calling user: XDG's on Linux (its variables honoured everywhere), ~/Library's on macOS."""
    environ = os.environ if environ is None else environ
    home = Path(environ.get("HOME") or Path.home())

    def folder(variable: str, on_linux: str, on_macos: str) -> Path:
        value = environ.get(variable, "")
        if value.startswith("/"):
            return Path(value) / "moorage"
        return home / on_macos / "Moorage" if platform == "darwin" else home / on_linux / "moorage"

    support = "Library/Application Support"
    return Paths(
        config=folder("XDG_CONFIG_HOME", ".config", "Library/Preferences"),
        state=folder("XDG_STATE_HOME", ".local/state", support),
        data=folder("XDG_DATA_HOME", ".local/share", support),
    )


def docker_config(environ: Mapping[str, str] | None = None) -> Path:
    """The folder in which the docker CLI keeps its settings and contexts."""
    environ = os.environ if environ is None else environ
    return Path(environ.get("DOCKER_CONFIG") or Path(environ.get("HOME") or Path.home()) / ".docker")
