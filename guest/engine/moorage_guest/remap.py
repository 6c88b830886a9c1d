"""Reads ``userns-remap``: whose subordinate users and groups the containers of a daemon get, as /etc/subuid and /etc/subgid say.

Texts are dockerd's. Blocking; done once, when a daemon starts.
"""

import logging
import pwd
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from grp import getgrgid, getgrnam, struct_group
from pathlib import Path

from moorage_guest.idmap import SAME, IdMap, IdRange
from moorage_guest.paths import DataRoot

log = logging.getLogger(__name__)

#: Who is meant by "default"; made when it is not there.
DEFAULT_USER = "dockremap"

#: Numbers that a user made for "default" gets, and the first of them that is looked at.
_COUNT, _FIRST = 65536, 100000

_SUBUID, _SUBGID = Path("/etc/subuid"), Path("/etc/subgid")


class RemapError(Exception):
    """``userns-remap`` names somebody who is not there or has no numbers to give away."""


@dataclass(frozen=True)
class Remapped:
    """``name`` is the setting as user and group, "" when nothing is remapped."""

    name: str = ""
    ids: IdMap = SAME


def remapped(setting: str, subuid: Path = _SUBUID, subgid: Path = _SUBGID) -> Remapped:
    """Return what a value of ``userns-remap`` means on this machine. Raises RemapError.

    "default" makes the user `DEFAULT_USER` and its ranges where they are missing.
    """
    if not setting:
        return Remapped()
    user, group = _names(setting)
    if user.pw_name == "root":
        log.warning("User namespaces: root cannot be remapped with itself; user namespaces are OFF")
        return Remapped()
    log.info("User namespaces: ID ranges will be mapped to subuid/subgid ranges of: %s", user.pw_name)
    if setting.partition(":")[0] == "default":
        _give_ranges(subuid, subgid)
    ids = IdMap(_ranges(subuid, user, "subuid"), _ranges(subgid, user, "subgid"))
    return Remapped(f"{user.pw_name}:{group}", ids)


def prepare_data_root(root: Path, ids: IdMap) -> DataRoot:
    """Make the data root, or the folder in it that is for these users, and return it. Raises RemapError."""
    root.mkdir(parents=True, exist_ok=True)
    if not ids:
        return DataRoot(root)
    own = root / ids.folder
    own.mkdir(exist_ok=True)
    ids.let_through(root, own)
    for folder in root.parents:
        mode = folder.stat()
        wanted = 0o100 if mode.st_uid == ids.root[0] else 0o010 if mode.st_gid == ids.root[1] else 0o001
        if not mode.st_mode & wanted:
            raise RemapError(
                f"a subdirectory in your graphroot path ({own}) restricts access to the remapped root uid/gid; please fix by "
                f"allowing 'o+x' permissions on existing directories, here {folder}"
            )
    return DataRoot(own)


def _names(setting: str) -> tuple[pwd.struct_passwd, str]:
    words = setting.split(":")
    if len(words) > 2 or not words[0]:
        raise RemapError(f'Invalid user/group specification in --userns-remap: "{setting}"')
    user = _user(words[0])
    if len(words) == 2:
        return user, _group(words[1], words[1], "groupname").gr_name
    number = words[0] if words[0].isdigit() else ""
    return user, _group(number or user.pw_name, number or user.pw_name, "gid").gr_name


def _user(word: str) -> pwd.struct_passwd:
    if word.isdigit():
        try:
            return pwd.getpwuid(int(word))
        except (KeyError, OverflowError):
            raise RemapError(
                f'Uid {word} has no entry in /etc/passwd: getent unable to find entry "{word}" in passwd database'
            ) from None
    name = DEFAULT_USER if word == "default" else word
    try:
        return pwd.getpwnam(name)
    except KeyError:
        if word != "default":
            raise RemapError(
                f'Error during uid lookup for "{name}": getent unable to find entry "{name}" in passwd database'
            ) from None
    _make_user()
    return pwd.getpwnam(name)


def _group(word: str, shown: str, what: str) -> struct_group:
    if word.isdigit():
        try:
            return getgrgid(int(word))
        except (KeyError, OverflowError):
            file = "group" if what == "gid" else "passwd"  # dockerd's own slip
            raise RemapError(
                f'Gid {word} has no entry in /etc/{file}: getent unable to find entry "{word}" in group database'
            ) from None
    try:
        return getgrnam(word)
    except KeyError:
        raise RemapError(
            f'Error during {what} lookup for "{shown}": getent unable to find entry "{word}" in group database'
        ) from None


def _make_user() -> None:
    """Make the user for "default", with a group of its own."""
    fault = f'Error during "{DEFAULT_USER}" user creation: '
    for command in (
        ["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/bin/false", DEFAULT_USER],
        [
            "adduser",
            "--system",
            "--shell",
            "/bin/false",
            "--no-create-home",
            "--disabled-login",
            "--group",
            DEFAULT_USER,
        ],
    ):
        if shutil.which(command[0]) is not None:
            done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
            if done.returncode != 0:
                raise RemapError(f"{fault}{command[0]}: {(done.stderr or done.stdout).strip()}")
            return
    raise RemapError(f"{fault}neither useradd nor adduser is there; make the user, or name another in userns-remap")


def _give_ranges(*files: Path) -> None:
    """Give the user for "default" numbers that nobody else has, in the files where it has none."""
    for file in files:
        lines = _lines(file)
        if any(line.split(":")[0] == DEFAULT_USER for line in lines):
            continue
        taken = [(first, count) for line in lines for first, count in _numbers(line)]
        start = _FIRST
        for first, count in sorted(taken):
            if first < start + _COUNT and start < first + count:
                start = first + count
        try:
            with file.open("a") as stream:
                stream.write(f"{DEFAULT_USER}:{start}:{_COUNT}\n")
        except OSError as error:
            raise RemapError(f"Couldn't create subordinate ID ranges in {file}: {error.strerror}") from error


def _ranges(file: Path, user: pwd.struct_passwd, what: str) -> tuple[IdRange, ...]:
    """Return a user's ranges, joined one behind the other. Raises RemapError when it has none."""
    for name in (str(user.pw_uid), user.pw_name):
        found = [each for line in _lines(file) if line.split(":")[0] == name for each in _numbers(line)]
        if found:
            return _joined(sorted(found))
    raise RemapError(
        f'Can\'t create ID mappings: no {what} ranges found for user "{user.pw_name}"; add a line such as '
        f"{user.pw_name}:{_FIRST}:{_COUNT} to {file}"
    )


def _joined(ranges: Iterable[tuple[int, int]]) -> tuple[IdRange, ...]:
    inside = 0
    result = []
    for first, count in ranges:
        result.append(IdRange(inside, first, count))
        inside += count
    return tuple(result)


def _lines(file: Path) -> list[str]:
    try:
        text = file.read_text()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise RemapError(f"Can't create ID mappings: cannot read {file}: {error}") from error
    return [line for each in text.splitlines() if (line := each.strip()) and not line.startswith("#")]


def _numbers(line: str) -> list[tuple[int, int]]:
    words = line.split(":")
    if len(words) != 3 or not words[1].isdigit() or not words[2].isdigit():
        raise RemapError(
            f"Can't create ID mappings: cannot parse subuid/gid information: Format not correct for line: {line}"
        )
    return [(int(words[1]), int(words[2]))] if int(words[2]) else []
