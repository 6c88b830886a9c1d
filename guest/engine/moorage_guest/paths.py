"""Every path below the data root and the exec root, named once. Listed for people in docs/files-on-disk.md."""

from dataclasses import dataclass
from pathlib import Path

from moorage_guest.plugins.discovery import Folders


@dataclass(frozen=True)
class DataRoot:
    """What must survive a reboot. Default: /var/lib/moorage."""

    root: Path

    @property
    def database(self) -> Path:
        return self.root / "moorage.db"

    @property
    def config_file(self) -> Path:
        return self.root / "daemon.json"

    @property
    def engine_id(self) -> Path:
        return self.root / "engine-id"

    @property
    def images(self) -> Path:
        """An OCI image layout."""
        return self.root / "image"

    @property
    def layers(self) -> Path:
        """Unpacked read-only layers, by chain id."""
        return self.root / "layers"

    @property
    def volumes(self) -> Path:
        return self.root / "volumes"

    @property
    def build_cache(self) -> Path:
        """Folders that commands of builds share (RUN --mount=type=cache)."""
        return self.root / "buildcache"

    @property
    def networks(self) -> Path:
        return self.root / "network"

    @property
    def plugins(self) -> Path:
        """Addresses of plugins (NAME.spec, NAME.json), put there by whoever installs one."""
        return self.root / "plugins"

    @property
    def tmp(self) -> Path:
        """Work in progress; emptied at every start."""
        return self.root / "tmp"

    def container(self, container_id: str) -> Path:
        """Logs, hostname, hosts and resolv.conf of one container (0710)."""
        return self.root / "containers" / container_id

    def mount(self, container_id: str) -> Path:
        """Read-write layer (diff, work) and mount point (merged) of one container."""
        return self.root / "mounts" / container_id


@dataclass(frozen=True)
class ExecRoot:
    """What lives until the next boot. Default: /run/moorage. Must be a short path: it holds sockets."""

    root: Path

    @property
    def docker_sock(self) -> Path:
        return self.root / "docker.sock"

    @property
    def agent_sock(self) -> Path:
        return self.root / "agent.sock"

    @property
    def supervise_sock(self) -> Path:
        return self.root / "supervise.sock"

    @property
    def options(self) -> Path:
        """Options of the daemon under which running containers were started."""
        return self.root / "options.json"

    @property
    def plugins(self) -> Path:
        """Sockets of plugins (NAME.sock), put there by the plugins."""
        return self.root / "plugins"

    @property
    def crun(self) -> Path:
        """crun's --root."""
        return self.root / "crun"

    @property
    def shims(self) -> Path:
        return self.root / "shim"

    def shim(self, container_id: str) -> Path:
        """Socket, bundle (config.json), journal and exit record of one container's shim."""
        return self.root / "shim" / container_id

    @property
    def netns(self) -> Path:
        """Bind mounts of network namespaces."""
        return self.root / "netns"

    @property
    def userns(self) -> Path:
        """Bind mounts of the user namespaces that own those network namespaces, where containers' root is remapped."""
        return self.root / "userns"

    @property
    def net(self) -> Path:
        return self.root / "net"


def plugin_folders(data_root: DataRoot, exec_root: ExecRoot) -> Folders:
    """Return where plugins are looked for: where those for dockerd put themselves, and in folders of the engine's own."""
    return Folders(
        sockets=(Path("/run/docker/plugins"), exec_root.plugins),
        specs=(Path("/etc/docker/plugins"), Path("/usr/lib/docker/plugins"), data_root.plugins),
    )
