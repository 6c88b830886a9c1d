"""Runs the specs that `moorage_guest.oci` builds with the real crun on a busybox root file system. Needs root."""

import contextlib
import json
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from moorage_guest.api.types import ContainerConfig, HostConfig
from moorage_guest.oci.spec import SpecDefaults, SpecRequest, build_spec

#: Seconds for one crun command on a busy machine.
DEADLINE = 60

#: crun refuses a hybrid cgroup host: it gets a mount namespace in which the v2 half is not mounted.
_PREPARE = 'umount /sys/fs/cgroup/unified 2>/dev/null; exec "$@"'


@dataclass
class Bench:
    """A root file system, a crun state folder and a cgroup parent of its own."""

    root: Path
    cgroup_parent: str
    running: list[str] = field(default_factory=list)

    @property
    def rootfs(self) -> Path:
        return self.root / "rootfs"

    def request(self, *command: str, config: dict[str, Any] | None = None, **host: Any) -> SpecRequest:
        """Return a request for ``command`` with HostConfig fields as keywords."""
        return SpecRequest(
            container_id=uuid.uuid4().hex,
            config=ContainerConfig(cmd=list(command), **(config or {})),
            host_config=HostConfig(**{"network_mode": "none", **host}),
            rootfs=self.rootfs,
            hostname="box",
            cgroup_parent=self.cgroup_parent,
            defaults=SpecDefaults(),
        )

    def crun(self, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run crun and return what it printed."""
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", _PREPARE, "sh", "crun", "--root", str(self.root / "crun"), *arguments],
            capture_output=True, text=True, timeout=DEADLINE, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        if check and done.returncode != 0:
            raise AssertionError(f"crun {arguments} ended with {done.returncode}: {done.stderr}{done.stdout}")
        return done

    def bundle(self, spec: dict[str, Any]) -> Path:
        """Write a bundle and return its folder."""
        folder = Path(tempfile.mkdtemp(dir=self.root))
        (folder / "config.json").write_text(json.dumps(spec))
        return folder

    def run(self, request: SpecRequest, check: bool = True) -> str:
        """Run to the end; return standard output without the last newline."""
        done = self.crun("run", "--bundle", str(self.bundle(build_spec(request))), request.container_id, check=check)
        return done.stdout.removesuffix("\n") if check else done.stdout + done.stderr

    @contextlib.contextmanager
    def started(self, request: SpecRequest) -> Iterator[int]:
        """Start in the background; gives the pid, removes the container at the end."""
        bundle = self.bundle(build_spec(request))
        pid_file = bundle / "pid"
        with (bundle / "output").open("wb") as output:
            subprocess.run(
                ["unshare", "--mount", "sh", "-c", _PREPARE, "sh", "crun", "--root", str(self.root / "crun"), "run",
                 "--detach", "--pid-file", str(pid_file), "--bundle", str(bundle), request.container_id],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=DEADLINE, check=False,
            )  # fmt: skip
        if not pid_file.exists():
            raise AssertionError(f"crun did not start: {(bundle / 'output').read_text()}")
        try:
            yield int(pid_file.read_text())
        finally:
            self.crun("delete", "--force", request.container_id, check=False)


def with_config(request: SpecRequest, **fields: Any) -> SpecRequest:
    """Return the request with fields of its ContainerConfig replaced."""
    return replace(request, config=request.config.model_copy(update=fields))


@contextlib.contextmanager
def oci_bench() -> Iterator[Bench]:
    """A bench with busybox in its root file system; leaves nothing behind."""
    root = Path(tempfile.mkdtemp(prefix="mo-oci-", dir="/var/tmp"))
    bench = Bench(root, f"/{root.name}")
    try:
        for folder in ("bin", "etc", "proc", "sys", "dev", "tmp", "sbin", "root", "home"):
            (bench.rootfs / folder).mkdir(parents=True)
        shutil.copy2("/bin/busybox", bench.rootfs / "bin/busybox")
        for applet in ("sh", "cat", "id", "env", "sleep", "mount", "ls", "hostname", "ps", "mkdir", "unshare", "stat"):
            (bench.rootfs / "bin" / applet).symlink_to("busybox")
        (bench.rootfs / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nann:x:1000:1001::/home/ann:/bin/sh\n")
        (bench.rootfs / "etc/group").write_text("root:x:0:\nann:x:1001:\nwheel:x:10:root,ann\naudio:x:29:\n")
        yield bench
    finally:
        shutil.rmtree(root)
        top = Path("/sys/fs/cgroup")
        for parent in (top, *top.iterdir()):
            with contextlib.suppress(OSError):
                (parent / root.name).rmdir()
