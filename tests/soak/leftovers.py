"""What a machine has of mounts, namespaces, links, rules, cgroups, processes, files, descriptors and memory, to be compared."""

import json
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.moored import Moored

#: Folders that hold something for each container, network or piece of work.
_FOLDERS = (
    "run/shim", "run/exec", "run/shm", "run/netns", "run/net/sandbox", "run/crun", "data/mounts", "data/containers",
    "data/volumes", "data/tmp", "data/layers", "data/image/blobs/sha256",
)  # fmt: skip

#: Bytes by which a process's own memory may differ for reasons that are none: fragments, caches, interned text.
_SLACK = {"agent": 2 << 20, "moored": 16 << 20, "netd": 2 << 20}


@dataclass(frozen=True)
class Picture:
    """Everything at one moment: sorted lines by subject; descriptors and bytes of anonymous memory by process."""

    lines: dict[str, list[str]]
    descriptors: dict[str, int]
    memory: dict[str, int]

    def grown(self, before: "Picture") -> list[str]:
        """Sentences on what is there now and was not before."""
        found = []
        for subject, lines in self.lines.items():
            old = list(before.lines[subject])
            for line in lines:
                if line in old:
                    old.remove(line)
                else:
                    found.append(f"left behind, {subject}: {line}")
        for name, count in self.descriptors.items():
            if count > before.descriptors[name] + 2:
                found.append(f"{name} has {count} descriptors, {before.descriptors[name]} at the beginning")
        for name, size in self.memory.items():
            if size > before.memory[name] + _SLACK[name]:
                found.append(f"{name} has {size >> 10} KiB of its own, {before.memory[name] >> 10} at the beginning")
        return found


def agent_status(moored: Moored) -> dict[str, Any]:
    """Ask the supervising agent for its status."""
    return agent_ask(moored, "status")


def agent_ask(moored: Moored, method: str) -> dict[str, Any]:
    """Ask the supervising agent for something that needs no parameters."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(str(moored.exec_root / "agent.sock"))
        client.sendall(json.dumps({"id": 1, "method": method, "params": {}}).encode() + b"\n")
        data = b""
        while not data.endswith(b"\n"):
            piece = client.recv(1 << 16)
            assert piece, "the agent closed the connection"
            data += piece
    result: dict[str, Any] = json.loads(data)["result"]
    return result


def pids(moored: Moored) -> dict[str, int]:
    """The pids, inside the sandbox, of agent, daemon and netd."""
    status = agent_status(moored)
    found = {"agent": status["agent"]["pid"], "moored": status["daemon"]["pid"]}
    for line in moored.sandbox.run("ps", "-eo", "pid=,comm=").stdout.splitlines():
        pid, name = line.split(None, 1)
        if "netd" in name:
            found["netd"] = int(pid)
    return found


def take_picture(moored: Moored) -> Picture:
    """Look at everything. The daemon must answer."""
    run = moored.sandbox.run
    root = moored.sandbox.root
    mounts = [line.split()[4] for line in run("cat", "/proc/1/mountinfo").stdout.splitlines()]
    links = [line.split(": ")[1].split("@")[0] for line in run("ip", "-o", "link").stdout.splitlines()]
    rules = [
        re.sub(r"packets \d+ bytes \d+", "", line).strip() for line in run("nft", "list", "ruleset").stdout.splitlines()
    ]
    cgroups = [
        str(path)
        for hierarchy in Path("/sys/fs/cgroup").iterdir()
        for path in (hierarchy / root.name).rglob("*")
        if path.is_dir()
    ]
    files = [
        f"{folder}/{path.name}" for folder in _FOLDERS if (root / folder).is_dir() for path in (root / folder).iterdir()
    ]
    processes = pids(moored)
    memory = {}
    descriptors = {}
    for name, pid in processes.items():
        text = run("cat", f"/proc/{pid}/smaps_rollup").stdout
        memory[name] = sum(int(each) << 10 for each in re.findall(r"^Anonymous:\s+(\d+)", text, re.MULTILINE))
        descriptors[name] = len(run("ls", f"/proc/{pid}/fd").stdout.split())
    lines = {
        "mounts": sorted(mounts), "links": sorted(links), "rules": sorted(rules), "cgroups": sorted(cgroups),
        "files": sorted(files),
        "processes": sorted(name for name in run("ps", "-eo", "comm=").stdout.split("\n") if name not in ("ps", "")),
    }  # fmt: skip
    return Picture(lines, descriptors, memory)
