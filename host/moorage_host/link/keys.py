"""The machine's two key pairs: the user's, and the guest's host key, both made here, so that it is pinned before the first boot."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import paramiko
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from moorage_host.errors import HostError
from moorage_host.files import write_atomically


@dataclass(frozen=True)
class Keys:
    """`client` logs in as root, `host` is what the guest must show."""

    client: paramiko.PKey
    host: paramiko.PKey

    @property
    def authorized(self) -> str:
        return f"{self.client.get_name()} {self.client.get_base64()} moorage"


def ensure(client: Path, host: Path) -> Keys:
    """Read both keys, making (0600) those that are missing. Raises HostError when a file is no key."""
    return Keys(_ensure(client), _ensure(host))


def _ensure(path: Path) -> paramiko.PKey:
    if not path.exists():
        private = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        write_atomically(path, private.decode("ascii"))
    try:
        return paramiko.Ed25519Key(filename=str(path))
    except (OSError, paramiko.SSHException, ValueError) as error:
        raise HostError(
            f"the key {path} cannot be read: {error}", hint="stop the machine, remove the file and start again"
        ) from error


def write_guest_config(path: Path, keys: Keys, host_key_file: Path, hostname: str) -> None:
    """Write (0600) what the guest reads from QEMU at boot: name, keys and the time."""
    content = {
        "version": 1,
        "hostname": hostname,
        "ssh_authorized_key": keys.authorized,
        "ssh_host_key": host_key_file.read_text(encoding="ascii"),
        "time": int(time.time()),
    }
    write_atomically(path, json.dumps(content))
