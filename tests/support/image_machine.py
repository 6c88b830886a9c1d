"""Boot an image folder with QEMU alone: no libvirt, no host code. For tests of the image itself."""

from __future__ import annotations

import contextlib
import io
import json
import os
import selectors
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import paramiko
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

BOOT_DEADLINE_S = 240
MEMORY_MIB = 1024
VIRTIOFSD = "/usr/lib/qemu/virtiofsd"  # where Debian 12's qemu-system-common has it


def new_key() -> tuple[str, str]:
    """An ed25519 key pair as OpenSSH writes it: (private, public line)."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private.decode(), public.decode()


@dataclass
class ImageMachine:
    """A running machine; its console is read by `wait_console`, which is also what keeps it from blocking."""

    process: subprocess.Popen[bytes]
    port_file: Path
    monitor: Path
    user_key: str
    host_public: str
    console: list[str] = field(default_factory=list)
    _rest: bytes = b""

    def wait_console(self, text: str, deadline_s: float = BOOT_DEADLINE_S) -> str:
        """The first console line, from now or before, that contains `text`."""
        for line in self.console:
            if text in line:
                return line
        end = time.monotonic() + deadline_s
        for line in self._lines(end):
            if text in line:
                return line
        raise AssertionError(f"{text!r} did not appear on the console:\n" + "\n".join(self.console[-40:]))

    def wait_end(self, deadline_s: float = 120) -> int:
        """Wait until QEMU has ended; returns its exit code."""
        for _ in self._lines(time.monotonic() + deadline_s):
            pass
        return self.process.wait(timeout=30)

    def power_off(self) -> None:
        """Power off over SSH; the connection may end before the command does."""
        with contextlib.suppress(paramiko.SSHException, OSError, EOFError):
            self.run("poweroff", check=False)

    def press_power_button(self) -> None:
        """As libvirt's shutdown does."""
        self.ask_monitor("system_powerdown")

    def ask_monitor(self, command: str) -> str:
        """What QEMU's monitor says to a command, prompts and echo included."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as monitor:
            monitor.settimeout(60)
            monitor.connect(str(self.monitor))
            monitor.sendall(command.encode() + b"\n")
            answer = b""
            while answer.count(b"(qemu)") < 2:
                answer += monitor.recv(4096)
        return answer.decode("utf-8", "replace")

    def wait_monitor(self, command: str, text: str, deadline_s: float = 120) -> None:
        """Ask again and again until the answer contains `text`; the console is read meanwhile."""
        end = time.monotonic() + deadline_s
        while text not in (answer := self.ask_monitor(command)):
            assert time.monotonic() < end, f"{command!r} went on to say {answer!r}"
            list(self._lines(time.monotonic() + 0.2))

    def connect(self) -> paramiko.Transport:
        """An SSH transport whose peer has the pinned host key, not yet authenticated; waits until sshd answers."""
        end = time.monotonic() + BOOT_DEADLINE_S
        while True:
            transport = paramiko.Transport(("127.0.0.1", int(self.port_file.read_text())))
            try:
                transport.start_client(timeout=60)
                break
            except (paramiko.SSHException, OSError, EOFError):
                transport.close()
                if time.monotonic() > end:
                    raise
                list(self._lines(time.monotonic() + 0.2))
        assert transport.get_remote_server_key().get_base64() == self.host_public.split()[1]
        return transport

    def run(self, command: str, *, check: bool = True) -> str:
        """Run a command as root over SSH and return its output (stdout and stderr)."""
        transport = self.connect()
        try:
            transport.auth_publickey("root", paramiko.Ed25519Key.from_private_key(io.StringIO(self.user_key)))
            channel = transport.open_session(timeout=60)
            channel.settimeout(120)
            channel.set_combine_stderr(True)
            channel.exec_command(command)
            output = b"".join(iter(lambda: channel.recv(65536), b"")).decode()
            status = channel.recv_exit_status()
        finally:
            transport.close()
        assert not check or status == 0, f"{command!r} ended with {status}: {output}"
        return output

    def _lines(self, end: float) -> Iterator[str]:
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while time.monotonic() < end and selector.select(max(0.0, end - time.monotonic())):
                data = os.read(self.process.stdout.fileno(), 65536)
                if not data:
                    return
                *lines, self._rest = (self._rest + data).split(b"\n")
                for raw in lines:
                    line = raw.decode("utf-8", "replace").rstrip("\r")
                    self.console.append(line)
                    yield line


def data_disk(path: Path, mib: int = 2048) -> Path:
    """A blank, sparse data disk."""
    with path.open("wb") as file:
        file.truncate(mib << 20)
    return path


def free_port() -> int:
    """A TCP port that nobody on 127.0.0.1 listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ninep(folder: Path) -> list[str]:
    """QEMU's options for `folder` offered by 9p as shared-9p."""
    return [
        *("-fsdev", f"local,id=shared,path={folder},security_model=none"),
        *("-device", "virtio-9p-pci,fsdev=shared,mount_tag=shared-9p"),
    ]


@contextmanager
def virtiofs(folder: Path, scratch: Path) -> Iterator[list[str]]:
    """QEMU's options for `folder` offered by virtiofs as shared-virtiofs, by a virtiofsd that ends with the block.

    The guest's memory must be shared with virtiofsd, so the options set it too.
    """
    path = scratch / "virtiofs.sock"
    command = [VIRTIOFSD, f"--socket-path={path}", "-o", f"source={folder}", "-o", "sandbox=chroot"]
    with (scratch / "virtiofsd.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 60
        while not path.is_socket():
            assert process.poll() is None and time.monotonic() < end, (scratch / "virtiofsd.log").read_text()
            time.sleep(0.05)
        yield [
            *("-object", f"memory-backend-memfd,id=memory,size={MEMORY_MIB}M,share=on"),
            *("-machine", "memory-backend=memory"),
            *("-chardev", f"socket,id=virtiofs,path={path}"),
            *("-device", "vhost-user-fs-pci,chardev=virtiofs,tag=shared-virtiofs"),
        ]
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def booted(
    image: Path, disk: Path, folder: Path, *, append: str = "", provisioned: bool = True, devices: Sequence[str] = ()
) -> Iterator[ImageMachine]:
    """A machine that has been started from `image`; killed at the end, its console kept in folder/console.log.

    `devices` are further options of QEMU's.
    """
    assert shutil.which("qemu-system-x86_64"), "qemu-system-x86_64 is not installed"
    folder.mkdir(parents=True, exist_ok=True)
    manifest = json.loads((image / "manifest.json").read_text())
    user_private, user_public = new_key()
    host_private, host_public = new_key()
    config = {
        "version": 1,
        "hostname": "image-test",
        "ssh_authorized_key": user_public,
        "ssh_host_key": host_private,
        "time": int(time.time()),
    }
    config_file = folder / "config.json"
    config_file.touch(mode=0o600)
    config_file.write_text(json.dumps(config))
    port = free_port()
    (folder / "port").write_text(str(port))
    files = manifest["files"]
    command = [
        "qemu-system-x86_64",
        "-accel",
        "tcg",
        "-cpu",
        "max",
        "-machine",
        "q35",
        "-m",
        str(MEMORY_MIB),
        "-smp",
        "2",
    ]
    command += ["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]
    command += ["-monitor", f"unix:{folder}/monitor.sock,server=on,wait=off"]
    command += ["-kernel", str(image / files["kernel"]["name"]), "-initrd", str(image / files["initrd"]["name"])]
    command += ["-append", f"{manifest['cmdline']} {append}".strip()]
    for name, path, options in (("root", image / files["root"]["name"], ",readonly=on"), ("data", disk, "")):
        command += [
            "-drive",
            f"if=none,id={name},format=raw,file={path}{options}",
            "-device",
            f"virtio-blk-pci,drive={name}",
        ]
    command += ["-netdev", f"user,id=net0,hostfwd=tcp:127.0.0.1:{port}-:22"]
    command += [
        "-device",
        "virtio-net-pci,netdev=net0,romfile=",
        "-device",
        "virtio-rng-pci",
        "-device",
        "virtio-balloon-pci",
    ]
    command += devices
    if provisioned:
        command += ["-fw_cfg", f"name=opt/moorage/config,file={config_file}"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    machine = ImageMachine(process, folder / "port", folder / "monitor.sock", user_private, host_public)
    try:
        yield machine
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
        (folder / "console.log").write_text("\n".join(machine.console) + "\n")
