"""The shims of one exec root: forked here, found again after the agent itself was replaced, buried when they died.

A shim that dies without being shut down leaves its container without a guardian: the container is killed and its folder
kept, with the exit recorded, until the daemon has taken note (`bury`).
"""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moorage_guest.agent.jsonfile import write_json
from moorage_guest.agent.nursery import Nursery
from moorage_guest.shim import kernel, wire
from moorage_guest.shim.connection import Refused
from moorage_guest.shim.container import Spec
from moorage_guest.shim.loop import READ, Loop
from moorage_guest.shim.runtime import Runtime, RuntimeFailed

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", re.ASCII)

#: Exit code of a container whose shim was killed: nobody can know a better one.
KILLED = 137


class Shims:
    """Knows which shims run. `on_change` is called whenever that changes."""

    def __init__(self, loop: Loop, exec_root: Path, log: Callable[[str], None]) -> None:
        self._loop = loop
        self._folder = exec_root / "shim"
        self._runtime_root = exec_root / "crun"
        self._log = log
        self._nursery = Nursery(loop, exec_root / "nursery.log", log)
        self._running: dict[str, int] = {}
        self._dying: dict[str, list[Callable[[], None]]] = {}
        #: Burials of shims whose end the daemon has seen before us: their sockets close first.
        self._burials: dict[str, list[Callable[[], None]]] = {}
        self.on_change: Callable[[], None] = _nothing
        self._folder.mkdir(mode=0o700, exist_ok=True)

    @property
    def running(self) -> list[str]:
        """Containers whose shims run; not those shut down that only have slow clients left to serve."""
        return [item for item in self._running if (self._folder / item).exists()]

    @property
    def dead(self) -> list[str]:
        """Containers whose shims died, not yet buried."""
        return [item.name for item in self._folders() if item.name not in self._running]

    def folder(self, container_id: str) -> Path:
        """Return the folder of a container's shim; Refused when the text is no container's id."""
        if not _ID.fullmatch(container_id):
            raise Refused("invalid", f"{container_id!r} is no container id")
        return self._folder / container_id

    def record(self, container_id: str) -> dict[str, Any]:
        """Return what the files of a shim say (shim.json is the agent's, state.json the shim's), {} when nothing."""
        record: dict[str, Any] = {}
        for name in ("shim.json", "state.json"):
            try:
                part = json.loads((self.folder(container_id) / name).read_text())
            except (OSError, ValueError):
                continue
            if isinstance(part, dict):
                record.update(part)
        return record

    def find(self) -> None:
        """Take over the shims that run already, and clean up after those that died meanwhile."""
        for folder in self._folders():
            record = self.record(folder.name)
            pid = int(record.get("shim_pid", 0))
            if (
                pid
                and kernel.start_time(pid) == record.get("shim_start_time")
                and kernel.state(pid) not in ("Z", "X", "")
            ):
                self._watch(folder.name, pid)
            else:
                self._died(folder.name)
        self.on_change()

    def spawn(self, spec: Spec) -> int:
        """Fork a shim and return its pid; its socket is there already. Refused when the container has one."""
        folder = self.folder(spec.container_id)
        if spec.container_id in self._running and folder.exists():  # without folder it is on its way out
            raise Refused("conflict", f"container {spec.container_id} has a shim already")
        if folder.exists():
            raise Refused("conflict", f"the shim of container {spec.container_id} died and is not buried yet")
        folder.mkdir(mode=0o700)
        try:
            pid = self._fork(spec, folder)
        except OSError as error:
            kernel.remove_tree(str(folder))
            raise Refused("failed", f"cannot start a shim in {folder}: {error.strerror}") from None
        self._running[spec.container_id] = pid
        self._loop.on_child(pid, lambda code: self._ended(spec.container_id, pid, code))
        self.on_change()
        return pid

    def _fork(self, spec: Spec, folder: Path) -> int:
        # Written before the fork with what is known, so that a full disk is noticed while nothing has happened.
        record: dict[str, Any] = {"shim_pid": 0, "shim_start_time": 0, "spec": spec._asdict()}
        write_json(folder / "shim.json", record)
        with wire.listen(folder / "shim.sock") as listener:
            pid = self._nursery.fork(spec, self._runtime_root, folder, listener.fileno())
        try:
            record.update(shim_pid=pid, shim_start_time=kernel.start_time(pid))
            write_json(folder / "shim.json", record)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            raise
        return pid

    def bury(self, container_id: str, done: Callable[[dict[str, Any]], None]) -> None:
        """Remove what a dead shim left, and give its container's exit record. Refused while the shim runs."""
        folder = self.folder(container_id)

        def remove() -> None:
            record = self.record(container_id).get("exit") or {"code": KILLED, "at_ns": time.time_ns(), "oom": False}
            kernel.remove_tree(str(folder))
            self.on_change()
            done(record)

        if container_id in self._running:
            if not kernel.is_exiting(self._running[container_id]):
                raise Refused("running", f"the shim of container {container_id} runs")
            self._burials.setdefault(container_id, []).append(remove)
        elif container_id in self._dying:
            self._dying[container_id].append(remove)
        else:
            remove()

    def kill_leftover(self, container_id: str, number: int) -> bool:
        """Signal a container's first process by its record; False when it has ended."""
        record = self.record(container_id)
        pid = int(record.get("pid", 0))
        if not pid or not record.get("start_time"):
            return False
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            return False
        try:
            if kernel.start_time(pid) != record["start_time"] or kernel.state(pid) in ("Z", "X", ""):
                return False
            signal.pidfd_send_signal(descriptor, number)
        except OSError:
            return False
        finally:
            os.close(descriptor)
        return True

    def runs(self, container_id: str) -> bool:
        """Whether the first process of a container still runs."""
        record = self.record(container_id)
        return bool(
            record.get("exit") is None
            and record.get("start_time")
            and kernel.start_time(int(record["pid"])) == record["start_time"]
            and kernel.state(int(record["pid"])) not in ("Z", "X", "")
        )

    # -- deaths -------------------------------------------------------------------------------------------------------

    def _folders(self) -> list[Path]:
        return [item for item in self._folder.iterdir() if item.is_dir() and _ID.fullmatch(item.name)]

    def _watch(self, container_id: str, pid: int) -> None:
        """A shim that another agent forked is no child of ours."""
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            self._died(container_id)
            return

        def ended(_ready: int) -> None:
            self._loop.unwatch(descriptor)
            os.close(descriptor)
            self._ended(container_id, pid, -1)

        self._running[container_id] = pid
        self._loop.watch(descriptor, READ, ended)

    def _ended(self, container_id: str, pid: int, code: int) -> None:
        if self._running.get(container_id) != pid:
            return  # the container has another shim by now
        del self._running[container_id]
        if (self._folder / container_id).exists():
            self._log(f"the shim of container {container_id} died (status {code}): ending its container")
            self._died(container_id)
        for done in self._burials.pop(container_id, []):
            done()
        self.on_change()

    def _died(self, container_id: str) -> None:
        """Kill what has no guardian any more, let the runtime clean up, and record the end."""
        self._dying[container_id] = self._burials.pop(container_id, [])
        folder = self._folder / container_id
        self.kill_leftover(container_id, signal.SIGKILL)
        record = self.record(container_id)
        spec = record.get("spec") or {}
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        runtime = Runtime(
            self._loop, spec.get("runtime", "crun"), spec.get("runtime_args", []), self._runtime_root, folder
        )

        def deleted(failure: RuntimeFailed | None) -> None:
            os.close(null)
            if failure is not None and "not exist" not in str(failure):
                self._log(f"cleaning up container {container_id}: {failure}")
            if folder.exists():
                if not record.get("exit"):
                    record["exit"] = {"code": KILLED, "at_ns": time.time_ns(), "oom": False}
                try:
                    write_json(folder / "state.json", {"pid": record.get("pid", 0), "exit": record["exit"]})
                except OSError as error:
                    self._log(f"cannot record the end of container {container_id}: {error.strerror}")
            for done in self._dying.pop(container_id):
                done()
            self.on_change()

        runtime.start(["delete", "--force", container_id], (null, null, null), deleted)


def _nothing() -> None:
    """Until somebody wants to know."""
