"""What an engine holds on to: taken before and after a test, the difference is what has leaked."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from tests.support.moored import Moored

#: Files that live and grow with the daemon itself.
_OWN = re.compile(r"(^|/)(moorage\.db.*|.*\.log(\.\d+)?|events.*)$")
#: Descriptors that come and go with threads and idle connections.
_SLACK = 4
_ID = re.compile("/[0-9a-f]{64}")
_NUMBERS = re.compile(r"\d+")


@dataclass(frozen=True)
class Holdings:
    """Everything by name; `descriptors` and `memory_mib` are the daemon's own."""

    mounts: frozenset[str]
    processes: frozenset[str]
    links: frozenset[str]
    namespaces: frozenset[str]
    cgroups: frozenset[str]
    files: frozenset[str]
    rules: frozenset[str]
    descriptors: int
    memory_mib: int


def holdings(moored: Moored) -> Holdings:
    """Return what the engine holds now. Blocking."""
    run, pid = moored.sandbox.run, moored.daemon_pid()
    # A process that lasts: kernel threads and this look itself are none.
    look = "for p in /proc/[0-9]*; do echo \"$(readlink $p/exe) $(tr '\\0' ' ' < $p/cmdline)\"; done 2>/dev/null"
    seen = run("sh", "-c", look).stdout.splitlines()
    processes = [line for line in seen if line.strip() and "readlink" not in line and "/proc/[0-9]" not in line]
    mounts = {
        line.split()[4]
        for source in (run("cat", "/proc/self/mountinfo"), run("cat", f"/proc/{pid}/mountinfo"))
        for line in source.stdout.splitlines()
    }
    names = "for n in net mnt pid ipc uts user cgroup; do readlink /proc/[0-9]*/ns/$n; done | sort -u"
    status = run("cat", f"/proc/{pid}/status").stdout
    memory = re.search(r"VmRSS:\s+(\d+)", status)
    assert memory is not None
    return Holdings(
        mounts=frozenset(mounts),
        processes=frozenset(processes),
        links=frozenset(line.split(":")[1].strip() for line in run("ip", "-o", "link").stdout.splitlines()),
        namespaces=frozenset(run("sh", "-c", names).stdout.splitlines()),
        cgroups=frozenset(cgroups(moored)),
        files=frozenset(_files(moored)),
        rules=frozenset(_NUMBERS.sub("0", line) for line in run("nft", "list", "ruleset").stdout.splitlines()),
        descriptors=len(run("ls", f"/proc/{pid}/fd").stdout.splitlines()),
        memory_mib=int(memory[1]) // 1024,
    )


def leaked(before: Holdings, after: Holdings) -> Mapping[str, object]:
    """Return what is there afterwards and was not before, by kind."""
    found: dict[str, object] = {}
    for field in fields(Holdings):
        old, new = getattr(before, field.name), getattr(after, field.name)
        if isinstance(old, frozenset) and new - old:
            found[field.name] = sorted(new - old)
    if after.descriptors > before.descriptors + _SLACK:
        found["descriptors"] = f"{before.descriptors} → {after.descriptors}"
    return found


def cgroups(moored: Moored) -> Iterator[str]:
    """Yield the cgroups of the engine's containers, in all hierarchies; what --cgroup-parent asks for stays, as with dockerd."""
    for hierarchy in Path("/sys/fs/cgroup").iterdir():
        parent = hierarchy / moored.sandbox.root.name
        if parent.is_dir():
            yield from (str(each) for each in parent.rglob("*") if _ID.search(str(each)) and each.is_dir())


def _files(moored: Moored) -> Iterator[str]:
    for root in (moored.data_root, moored.exec_root):
        for each in root.rglob("*"):
            name = str(each.relative_to(root.parent))
            if not _OWN.search(name):
                yield name
