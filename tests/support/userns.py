"""A daemon that remaps root: users, groups and ranges of its own over those of the test machine."""

import contextlib
from collections.abc import Iterator

from tests.support.moored import Moored, Sandbox, running_moored

#: What container's root is on the machine.
ROOT = 231072

_FILES = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\ndockremap:x:998:997::/:/bin/false\nother:x:1001:1001::/:/bin/false\n",
    "group": "root:x:0:\ntty:x:5:\ndockremap:x:997:\nother:x:1001:\n",
    "subuid": f"dockremap:{ROOT}:65536\nother:400000:65536\n",
    "subgid": f"dockremap:{ROOT}:65536\nother:400000:65536\n",
}


def give_users(sandbox: Sandbox) -> None:
    """Let everything started in a sandbox from now on know the users ``dockremap`` and ``other`` with their ranges."""
    folder = sandbox.root / "etc"
    sandbox.run("cp", "-a", "/etc", folder)
    for name, text in _FILES.items():
        (folder / name).write_text(text)
    sandbox.run("mount", "--bind", folder, "/etc")


@contextlib.contextmanager
def remapping_moored(setting: str = "default") -> Iterator[Moored]:
    """A running daemon with ``userns-remap``, as `running_moored`."""
    with running_moored("--userns-remap", setting, prepare=give_users) as moored:
        yield moored
