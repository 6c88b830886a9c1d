"""Engines on the data disk: staging a built file, the link to the one in force, and the rule for changing it.

A built engine is a tar (compressed or not) or zip whose top level has `moorage_guest` and `moorage_contract`. Without a link the
engine of the image is in force. Switching and probing is done by `upgrade`.
"""

import contextlib
import importlib.util
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from moorage_guest.agent.jsonfile import write_json
from moorage_guest.shim import kernel

_VERSION = re.compile(r"""^ENGINE_VERSION\s*(?::\s*\w+\s*)?=\s*["'](\d+\.\d+\.\d+)["']""", re.MULTILINE)
_TOP = ("moorage_guest", "moorage_contract")

#: Bytes that an engine may have unpacked; far more than one needs.
_MAX_SIZE = 256 * 1024 * 1024

#: The name of the image's own engine in state.json.
BUILT_IN = "built-in"


class EngineError(Exception):
    """An engine cannot be used; the text says which and why."""


class Engines:
    """The folder `engine` of the data root: one folder per version, the link `current`, state.json."""

    def __init__(self, data_root: Path) -> None:
        self._folder = data_root / "engine"

    @property
    def current(self) -> str:
        """The folder's name of the engine in force, or BUILT_IN."""
        try:
            name = (self._folder / "current").readlink().name
        except OSError:
            return BUILT_IN
        return name if (self._folder / name / "moorage_guest").is_dir() else BUILT_IN

    @property
    def previous(self) -> str | None:
        """The engine before the one in force, if one was replaced."""
        name = self._state().get("previous")
        return str(name) if name in (BUILT_IN, *self.names()) else None

    @property
    def unproven(self) -> tuple[str, str | None] | None:
        """The engine that was put in force and has not been seen to work, and the one to go back to, if there is one."""
        try:
            record = self._state()["unproven"]
            name, back = str(record["name"]), record["back"]
        except (KeyError, TypeError):
            return None
        return name, str(back) if back in (BUILT_IN, *self.names()) else None

    def _state(self) -> dict[str, Any]:
        try:
            state = json.loads((self._folder / "state.json").read_text())
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}

    def names(self) -> list[str]:
        """Versions that are staged, oldest first."""
        try:
            found = [
                item.name
                for item in self._folder.iterdir()
                if (item / "moorage_guest").is_dir() and not item.is_symlink()
            ]
        except OSError:
            return []
        return sorted((name for name in found if re.fullmatch(r"\d+\.\d+\.\d+", name)), key=numbers)

    def version_of(self, name: str) -> str:
        """Return the version of an engine by its name here."""
        return built_in_version() if name == BUILT_IN else name

    def folder(self, name: str) -> Path | None:
        """Return where an engine's packages are; None for the image's own."""
        return None if name == BUILT_IN else self._folder / name

    def environment(self, name: str | None = None) -> dict[str, str]:
        """Return the environment in which Python finds that engine (default: the one in force)."""
        result = dict(os.environ)
        folder = self.folder(self.current if name is None else name)
        result.setdefault("MOORAGE_BUILT_IN", built_in_version())
        own = result.setdefault("MOORAGE_PYTHONPATH", result.get("PYTHONPATH", ""))
        path = [str(folder)] if folder is not None else []
        path += [own] if own else []
        result.pop("PYTHONPATH", None)
        if path:
            result["PYTHONPATH"] = os.pathsep.join(path)
        return result

    def switch(self, name: str, *, previous: str | None, back: str | None = None) -> None:
        """Put an engine in force for whatever starts from now on; it is `unproven` until `proven` is called.

        An agent that is killed meanwhile leaves to the next one what is to be proven, and which engine to go `back` to.
        """
        state = self._state()
        if previous is not None:
            state["previous"] = previous
        self._keep({**state, "unproven": {"name": name, "back": back}})
        link = self._folder / "current"
        if name == BUILT_IN:
            link.unlink(missing_ok=True)
        else:
            new = self._folder / "current.new"
            new.unlink(missing_ok=True)
            new.symlink_to(name)
            new.rename(link)
        _sync(self._folder)

    def proven(self) -> None:
        """The engine in force works, or nothing can be done about it. Idempotent; on a full disk it is proven once more later."""
        state = self._state()
        if state.pop("unproven", None) is not None:
            with contextlib.suppress(OSError):
                self._keep(state)

    def _keep(self, state: dict[str, Any]) -> None:
        file = self._folder / "state.json"
        self._folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_json(file, state)
        _sync(file)

    def stage(self, file: Path, sha256: str) -> str:
        """Check and unpack a built engine; return its version. Blocks. Raises EngineError, and leaves nothing then."""
        import hashlib  # only in the child that stages: the agent and all its shims do without

        if not file.is_file():
            raise EngineError(f"{file}: no such file in the virtual machine")
        digest = hashlib.sha256()
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        if digest.hexdigest() != sha256.lower().removeprefix("sha256:"):
            raise EngineError(f"{file}: its sha256 is {digest.hexdigest()}, not {sha256}: transfer it again")
        self._folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        staging = self._folder / "staging"
        kernel.remove_tree(str(staging))
        staging.mkdir()
        try:
            _unpack(file, staging)
            version = version_in(staging / "moorage_contract" / "version.py")
            if not (staging / "moorage_guest" / "daemon.py").is_file():
                raise EngineError(f"{file}: no engine: moorage_guest/daemon.py is missing in it")
            target = self._folder / version
            if target.exists() and self.current == version:
                raise EngineError(f"engine {version} is in force already")
            kernel.remove_tree(str(target))
            os.sync()
            staging.rename(target)
        finally:
            kernel.remove_tree(str(staging))
        return version

    def discard(self, name: str) -> None:
        """Remove a staged engine that is not in force."""
        if name not in (self.current, BUILT_IN) and name in self.names():
            kernel.remove_tree(str(self._folder / name))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def numbers(version: str) -> tuple[int, ...]:
    """Return a version for comparing: 26.8.3 is older than 26.11.0."""
    return tuple(int(part) for part in version.split("."))


def refusal(before: str, after: str, running: Sequence[str]) -> str:
    """Say why an engine may not be replaced by that one now; "" when it may. `running` are names of containers."""
    if numbers(before)[:2] == numbers(after)[:2] or not running:
        return ""
    verb = "upgrade" if numbers(after) > numbers(before) else "rollback"
    return (
        f"{verb} from {before} to {after} leaves {'.'.join(before.split('.')[:2])}, and live restore keeps containers only "
        f"within one YY.MM; stop these first: {', '.join(running)}"
    )


def version_in(file: Path) -> str:
    """Read the version from an engine's version.py without running it. Raises EngineError."""
    try:
        match = _VERSION.search(file.read_text())
    except OSError as error:
        raise EngineError(f"no engine: {file.parent.name}/{file.name} is missing ({error.strerror})") from None
    if match is None:
        raise EngineError(f"no engine: {file.parent.name}/{file.name} has no version")
    return match[1]


def built_in_version() -> str:
    """Return the version of the image's own engine, also when this agent is another's."""
    if known := os.environ.get("MOORAGE_BUILT_IN"):
        return known
    spec = importlib.util.find_spec("moorage_contract")
    if spec is None or spec.origin is None:
        return "0.0.0"
    return version_in(Path(spec.origin).parent / "version.py")


def _unpack(file: Path, target: Path) -> None:
    import tarfile  # see `Engines.stage`
    import zipfile

    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                _check([(item.filename, item.file_size) for item in archive.infolist()], file)
                archive.extractall(target)
        else:
            with tarfile.open(file) as archive_:
                members = archive_.getmembers()
                _check([(item.name, item.size) for item in members], file)
                if any(not (item.isfile() or item.isdir()) for item in members):
                    raise EngineError(f"{file}: an engine has files and folders only")
                # Python has the filter since 3.11.4, Debian 12 has 3.11.2; names and kinds are checked above.
                safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
                archive_.extractall(target, **safely)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise EngineError(f"{file}: cannot be unpacked: {error}") from None


def _check(members: Sequence[tuple[str, int]], file: Path) -> None:
    total = 0
    for name, size in members:
        parts = PurePosixPath(name).parts
        if not parts:
            continue
        if parts[0] not in _TOP or ".." in parts or name.startswith("/"):
            raise EngineError(f"{file}: unexpected {name!r} in it; an engine has {' and '.join(_TOP)} at its top level")
        total += size
    if total > _MAX_SIZE:
        raise EngineError(f"{file}: {total} bytes unpacked are more than an engine has")
