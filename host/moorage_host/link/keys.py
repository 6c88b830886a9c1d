"""The machine's two key pairs: the user's, and the guest's host key, both made here, so that it is pinned before the first boot."""

from __future__ import annotations

import functools
import json
import time
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)
from moorage_contract.postponed import postponed

from moorage_host.errors import HostError
from moorage_host.files import write_atomically

with postponed("paramiko"):  # it is imported while the guest boots
    import paramiko


@dataclass(frozen=True)
class Keys:
    """The files of two valid keys, and what the guest is told of the first: `client` logs in as root, `host` is what the guest must show."""

    client_file: Path
    host_file: Path
    authorized: str

    @functools.cached_property
    def client(self) -> paramiko.PKey:
        return paramiko.Ed25519Key(filename=str(self.client_file))

    @functools.cached_property
    def host(self) -> paramiko.PKey:
        return paramiko.Ed25519Key(filename=str(self.host_file))


def ensure(client: Path, host: Path) -> Keys:
    """Read both keys, making (0600) those that are missing. Raises HostError when a file is no key."""
    public = _ensure(client)
    _ensure(host)
    return Keys(client, host, f"{public} moorage")


def _ensure(path: Path) -> str:
    """Return the public key as in authorized_keys."""
    if not path.exists():
        private = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        write_atomically(path, private.decode("ascii"))
    try:
        key = load_ssh_private_key(path.read_bytes(), None)
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError("it is not of the kind Ed25519")
        return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise HostError(
            f"the key {path} cannot be read: {error}", hint="stop the machine, remove the file and start again"
        ) from error


def guest_config(keys: Keys, hostname: str) -> str:
    """What the guest reads from QEMU at boot: name, keys and the time. A secret: it holds the guest's private host key."""
    content = {
        "version": 1,
        "hostname": hostname,
        "ssh_authorized_key": keys.authorized,
        "ssh_host_key": keys.host_file.read_text(encoding="ascii"),
        "time": int(time.time()),
    }
    return json.dumps(content)
