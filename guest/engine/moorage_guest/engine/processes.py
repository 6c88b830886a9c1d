"""The processes of a container, as `docker top` shows them."""

import asyncio
import os
import pwd
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from moorage_guest.engine.containers import Containers
from moorage_guest.engine.lifecycle import check_running
from moorage_guest.engine.record import Container
from moorage_guest.errors import InvalidParameter, SystemError_
from moorage_guest.oci import cgroups

_TITLES = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]

#: Seconds that ps may take.
_DEADLINE = 20.0


async def top(engine: Containers, container: Container, arguments: str) -> dict[str, Any]:
    """Return titles and rows. Raises Conflict when the container does not run, InvalidParameter for bad arguments."""
    check_running(container)
    engine.publish(container, "top")
    pids = await asyncio.to_thread(cgroups.processes, container.cgroup_path)
    if arguments.strip() in ("", "-ef"):
        return {"Titles": _TITLES, "Processes": await asyncio.to_thread(_full_list, pids)}
    return await asyncio.to_thread(_by_ps, pids, arguments)


def _full_list(pids: list[int]) -> list[list[str]]:
    """Return the rows of ps -ef, read from /proc."""
    ticks = os.sysconf("SC_CLK_TCK")
    booted = time.time() - float(Path("/proc/uptime").read_text().split()[0])
    rows = []
    for pid in pids:
        folder = Path("/proc", str(pid))
        try:
            text = (folder / "stat").read_text()
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
            uid = folder.stat().st_uid
        except (FileNotFoundError, ProcessLookupError):
            continue
        name, _, rest = text.partition("(")[2].rpartition(")")
        fields = rest.split()
        started = booted + int(fields[19]) / ticks
        used = (int(fields[11]) + int(fields[12])) // ticks
        share = int(100 * used / max(time.time() - started, 1))
        recent = time.time() - started < 86400
        rows.append(
            [
                _user(uid), str(pid), fields[1], str(min(share, 99)),
                time.strftime("%H:%M" if recent else "%b%d", time.localtime(started)), _terminal(int(fields[4])),
                f"{used // 3600:02d}:{used % 3600 // 60:02d}:{used % 60:02d}", command or f"[{name}]",
            ]
        )  # fmt: skip
    return rows


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _terminal(number: int) -> str:
    if number == 0:
        return "?"
    major, minor = (number >> 8) & 0xFFF, (number & 0xFF) | ((number >> 12) & 0xFFF00)
    return f"pts/{minor + (major - 136) * 256}" if 136 <= major <= 143 else f"tty{minor}"


def _by_ps(pids: list[int], arguments: str) -> dict[str, Any]:
    """Run the machine's ps with the client's arguments and keep the container's rows."""
    program = shutil.which("ps")
    if program is None:
        raise SystemError_("there is no ps program on this machine: use the default columns of `docker top`")
    try:
        words = shlex.split(arguments)
    except ValueError as error:
        raise InvalidParameter(f"ps arguments: {error}") from None
    if any(word.startswith(("-q", "q", "--quick-pid")) and word not in ("q",) for word in words):
        raise InvalidParameter("ps: selecting processes by number is docker's own business")
    done = subprocess.run(
        [program, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_DEADLINE, check=False,
        errors="replace",
    )  # fmt: skip
    if done.returncode != 0:
        raise InvalidParameter(f"ps: {done.stderr.strip()}")
    lines = done.stdout.splitlines()
    titles = lines[0].split() if lines else []
    if "PID" not in titles:
        raise SystemError_("Couldn't find PID field in ps output")
    column = titles.index("PID")
    rows = []
    wanted = {str(pid) for pid in pids}
    for line in lines[1:]:
        fields = line.split(None, len(titles) - 1)
        if len(fields) > column and fields[column] in wanted:
            rows.append(fields)
    return {"Titles": titles, "Processes": rows}
