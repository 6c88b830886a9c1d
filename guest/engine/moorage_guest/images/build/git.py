"""Contexts that lie in git repositories, fetched by the git program: which addresses mean one, and the files of one commit.

Neither the client who names a repository nor what is in it may be trusted: git reads no configuration but what is given here,
asks nobody for a password, runs no hook, and speaks http, https and git, nothing else, also for submodules.
"""

import asyncio
import contextlib
import os
import posixpath
import re
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urldefrag, urlsplit

from moorage_guest.errors import EngineError, InvalidParameter, NotFound, SystemError_
from moorage_guest.images import remote
from moorage_guest.images.archive import real_path
from moorage_guest.images.layerstore import remove_tree
from moorage_guest.images.streams import finished

#: Seconds without a byte from a server after which git gives up; and bytes of what git says that a client is shown.
PATIENCE = 60
_SHOWN = 16 << 10

_SETTINGS = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.symlinks": "true",
    "credential.helper": "",
    "gc.auto": "0",
    "http.lowSpeedLimit": "1",
    "http.lowSpeedTime": str(PATIENCE),
    "init.defaultBranch": "master",
    "advice.detachedHead": "false",
    "protocol.file.allow": "never",
}

#: What git takes over from the daemon's own environment.
_KEPT = ("http_proxy", "https_proxy", "no_proxy", "all_proxy", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "SSL_CERT_DIR", "SSL_CERT_FILE")  # fmt: skip


@dataclass(frozen=True)
class Repository:
    """What an address says: where the repository is, which ref of it is meant, and which folder."""

    address: str
    ref: str
    folder: str


def is_git(address: str) -> bool:
    """Whether docker would clone this address rather than fetch it."""
    return bool(re.match(r"(git://|git@|github\.com/)", address) or re.match(r"https?://.*\.git(#.+)?$", address))


def parse(address: str) -> Repository:
    """Read ``address#ref:folder``. Raises InvalidParameter."""
    if address.startswith("git@"):
        raise InvalidParameter(
            f"{address}: the engine has no SSH keys: use an https address, or clone the repository and send its folder as context"
        )
    if not re.match(r"(git|https?)://", address):
        address = f"https://{address}"
    where, fragment = urldefrag(address)
    try:
        host = urlsplit(where).hostname
    except ValueError as error:
        raise InvalidParameter(f"parse {address!r}: {error}") from None
    if not host or host.startswith("-") or re.search(r"[\x00-\x20\x7f]", where):
        raise InvalidParameter(f"parse {address!r}: no address of a git repository")
    ref, _, folder = fragment.partition(":")
    if ref.startswith("-"):
        raise InvalidParameter(f"invalid refspec: {ref}")
    return Repository(where, ref or "master", folder)


@asynccontextmanager
async def checked_out(address: str, tmp: Path) -> AsyncIterator[Path]:
    """Fetch what an address means and give the folder, removed at the end. Raises InvalidParameter, SystemError_."""
    repository = parse(address)
    # Not in a thread: a build given up while that is at it would not know what to remove.
    root = Path(tempfile.mkdtemp(dir=tmp, prefix="git-"))
    try:
        await _git(root, "failed to init repo", "init", "--quiet", "--template=")
        await _git(root, "failed add origin repo", "remote", "add", "origin", repository.address)
        shallow = ["--depth", "1"] if await _is_smart(repository.address) else []
        await _git(root, "error fetching", "fetch", *shallow, "origin", repository.ref)
        try:
            await _git(root, f"error checking out {repository.ref}", "checkout", repository.ref, "--")
        except SystemError_:
            await _git(root, f"error checking out {repository.ref}", "checkout", "FETCH_HEAD", "--")
        await _git(root, "error initializing submodules", "submodule", "update", "--init", "--recursive", "--depth=1")
        yield await asyncio.to_thread(_inside, root, repository.folder)
    finally:
        await finished(asyncio.to_thread(remove_tree, root))


def _inside(root: Path, folder: str) -> Path:
    """Return a folder of a checkout; links that lead out of it are followed inside of it, as a container would."""
    if not folder:
        return root
    if posixpath.normpath(folder).startswith(".."):
        raise InvalidParameter(f'error setting git context, "{folder}" not within git root')
    try:
        return root / real_path(root, folder).lstrip("/")
    except NotFound:
        raise InvalidParameter(f"error setting git context: stat {folder}: no such file or directory") from None
    except InvalidParameter:
        raise InvalidParameter(f"error setting git context, not a directory: {folder}") from None


async def _is_smart(address: str) -> bool:
    """Whether the server can give the files of one commit alone; plain web servers cannot."""
    if not address.startswith("http"):
        return True
    with contextlib.suppress(EngineError):
        async with remote.fetched(f"{address}/info/refs?service=git-upload-pack") as response:
            return response.content_type == "application/x-git-upload-pack-advertisement"
    return False


async def _git(folder: Path, failed: str, *words: str) -> None:
    """Run git to its end, or kill it when cancelled. Raises InvalidParameter without a git, SystemError_ with what it said."""
    settings = [word for name, value in _SETTINGS.items() for word in ("-c", f"{name}={value}")]
    environment = {
        **{name: os.environ[name] for name in _KEPT if name in os.environ},
        "PATH": os.environ.get("PATH", os.defpath), "HOME": "/dev/null", "LC_ALL": "C.UTF-8", "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_ALLOW_PROTOCOL": "http:https:git", "GIT_PROTOCOL_FROM_USER": "0",
        "GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "true", "GIT_CEILING_DIRECTORIES": str(folder.parent),
    }  # fmt: skip
    try:
        process = await asyncio.create_subprocess_exec(
            "git", *settings, *words, cwd=folder, env=environment, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, start_new_session=True, umask=0o022,
        )  # fmt: skip
    except FileNotFoundError:
        raise InvalidParameter(
            "git is not installed beside the engine: install it (apt-get install git), or clone the repository and send its "
            "folder as context, as in docker build ./checkout"
        ) from None
    assert process.stdout is not None
    said = b""
    try:
        while piece := await process.stdout.read(1 << 16):
            said = (said + piece)[-_SHOWN:]
        code = await process.wait()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await finished(process.wait())
        raise
    if code != 0:
        raise SystemError_(f"{failed}: {said.decode('utf-8', 'replace')}: exit status {code}")
