"""Where plugins are: sockets and files with addresses, found anew each time one is asked for by name.

Speaking to a plugin is the business of `client`.
"""

import json
import ssl
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


class SpecError(Exception):
    """A file that names a plugin cannot be used; the text says which and why."""


@dataclass(frozen=True)
class Tls:
    """How a plugin behind https is known, and how it knows the engine. Without files: whoever answers there is believed."""

    insecure: bool = True
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""

    def context(self) -> ssl.SSLContext:
        """Return the client's settings; reads the files. Raises OSError or ssl.SSLError."""
        context = ssl.create_default_context(cafile=self.ca_file or None)
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.cert_file:
            context.load_cert_chain(self.cert_file, self.key_file)
        return context


@dataclass(frozen=True)
class Address:
    """Where a plugin answers: ``unix:///path``, or a scheme with host and port."""

    name: str
    url: str
    tls: Tls | None = None

    @property
    def socket(self) -> str:
        """The path of its socket; "" when it is reached by TCP."""
        parts = urlsplit(self.url)
        return parts.path if parts.scheme == "unix" else ""

    @property
    def base(self) -> str:
        """What the address of every call begins with."""
        parts = urlsplit(self.url)
        if parts.scheme == "unix":
            return "http://plugin"
        return f"{'https' if parts.scheme == 'https' else 'http'}://{parts.netloc}"


@dataclass(frozen=True)
class Folders:
    """Where sockets and where files with addresses are looked for, in this order."""

    sockets: tuple[Path, ...]
    specs: tuple[Path, ...]

    def exist(self) -> bool:
        """Whether somebody has made one of the folders, so that a plugin may be about to appear in it."""
        return any(folder.is_dir() for folder in (*self.sockets, *self.specs))

    def find(self, name: str) -> Address | None:
        """Return where the plugin of that name is, None when it is nowhere. Raises SpecError for a file that is damaged."""
        if not name or "/" in name or name in (".", ".."):
            return None
        for path in _paths(self.sockets, name, ".sock"):
            if _is_socket(path):
                return Address(name, f"unix://{path}", Tls())
        for suffix, read in ((".spec", _read_spec), (".json", _read_json)):
            for path in _paths(self.specs, name, suffix):
                try:
                    return read(name, path.read_text())
                except FileNotFoundError:
                    continue
                except (OSError, UnicodeDecodeError, ValueError) as error:
                    raise SpecError(f"cannot use {path}: {error}") from error
        return None

    def names(self) -> list[str]:
        """Return the names of all plugins that can be found, sorted."""
        found: set[str] = set()
        for folders, suffixes in ((self.sockets, (".sock",)), (self.specs, (".spec", ".json"))):
            for folder in folders:
                try:
                    entries = list(folder.iterdir())
                except OSError:
                    continue
                for entry in entries:
                    inside = (entry / f"{entry.name}{suffix}" for suffix in suffixes)
                    if entry.suffix in suffixes and not entry.is_dir():
                        found.add(entry.stem)
                    elif any(path.exists() for path in inside):
                        found.add(entry.name)
        return sorted(found)


def _paths(folders: tuple[Path, ...], name: str, suffix: str) -> Iterator[Path]:
    for folder in folders:
        yield folder / f"{name}{suffix}"
        yield folder / name / f"{name}{suffix}"


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False


def _read_spec(name: str, text: str) -> Address:
    return _checked(Address(name, text.strip(), Tls()))


def _read_json(name: str, text: str) -> Address:
    value: Any = json.loads(text)
    if not isinstance(value, dict) or not isinstance(value.get("Addr"), str):
        raise ValueError('it needs an object with "Addr"')
    given = value.get("TLSConfig")
    tls = None
    if isinstance(given, dict):
        tls = Tls(
            bool(given.get("InsecureSkipVerify")), str(given.get("CAFile") or ""), str(given.get("CertFile") or ""),
            str(given.get("KeyFile") or ""),
        )  # fmt: skip
    return _checked(Address(str(value.get("Name") or name), value["Addr"], tls or Tls(insecure=False)))


def _checked(address: Address) -> Address:
    parts = urlsplit(address.url)
    if parts.scheme not in ("unix", "tcp", "http", "https"):
        raise ValueError(f"unknown protocol in {address.url!r}: it has to be unix, tcp, http or https")
    if not (parts.path if parts.scheme == "unix" else parts.netloc):
        raise ValueError(f"no address in {address.url!r}")
    return address
