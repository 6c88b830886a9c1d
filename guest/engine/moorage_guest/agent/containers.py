"""What the agent can do for containers without moored: see how full their log pipes are, and stop them."""

import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from moorage_guest.agent.shims import Shims
from moorage_guest.shim import wire
from moorage_guest.shim.connection import Connection, Refused
from moorage_guest.shim.loop import Loop, Timer

#: Seconds between two looks at the pipes while somebody is interested.
INTERVAL = 1.0

#: Seconds between two looks that a rate is worked out from; one that comes sooner repeats the last rate.
SHORTEST = 0.2

#: Seconds that shims get to answer.
_PATIENCE = 3.0

#: Seconds between the stop signal and SIGKILL unless the caller says otherwise, as dockerd has it.
STOP_TIMEOUT = 10.0

_STREAMS = {1: "stdout", 2: "stderr"}


class _Pipe:
    """The look that the next rate is worked out from, and the last rate in bytes a second."""

    def __init__(self, count: int, at: float, rate: float = 0.0) -> None:
        self.bytes = count
        self.at = at
        self.rate = rate


class _Ask:
    """One question to many shims."""

    def __init__(self, left: int, done: Callable[[dict[str, dict[str, Any]]], None]) -> None:
        self.left = left
        self.done = done
        self.answers: dict[str, dict[str, Any]] = {}
        self.timer: Timer | None = None

    def answer(self, container_id: str, result: dict[str, Any] | None) -> None:
        if result is not None:
            self.answers[container_id] = result
        self.left -= 1
        if self.left == 0:
            self.finish()

    def finish(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        done, self.done = self.done, _nothing
        done(self.answers)


class Containers:
    """Speaks to all shims of an exec root."""

    def __init__(self, loop: Loop, exec_root: Path, shims: Shims, log: Callable[[str], None]) -> None:
        self._loop = loop
        self._folder = exec_root / "shim"
        self._shims = shims
        self._log = log
        self._pipes: dict[tuple[str, int], _Pipe] = {}

    def names_of_running(self) -> list[str]:
        """Return the names of running containers, by what their shims have recorded."""
        names = []
        for container_id in self._shims.running:
            record = self._shims.record(container_id)
            if record.get("pid") and record.get("exit") is None:
                names.append(_name(record, container_id))
        return sorted(names)

    def pipes(self, done: Callable[[list[dict[str, Any]]], None]) -> None:
        """Look at all pipes now. Rates compare with the look before; without one they are 0."""

        def answered(answers: dict[str, dict[str, Any]]) -> None:
            now = time.monotonic()
            seen: dict[tuple[str, int], _Pipe] = {}
            result = []
            for container_id, answer in sorted(answers.items()):
                for pipe in answer["pipes"]:
                    key = (container_id, int(pipe["stream"]))
                    count = int(pipe["bytes"])
                    before = self._pipes.get(key)
                    if before is None or count < before.bytes:
                        look = _Pipe(count, now)
                    elif now - before.at < SHORTEST:
                        look = before
                    else:
                        look = _Pipe(count, now, (count - before.bytes) / (now - before.at))
                    seen[key] = look
                    room = int(pipe["capacity"]) - count
                    result.append({
                        "container": container_id, "name": str(answer["labels"].get("name", "")).removeprefix("/"),
                        "stream": _STREAMS[key[1]], "bytes": count, "capacity": int(pipe["capacity"]), "rate": look.rate,
                        "seconds_to_full": room / look.rate if look.rate > 0 else None, "blocked": bool(pipe["blocked"]),
                    })  # fmt: skip
            self._pipes = seen
            done(result)

        self._ask_all("fill", answered)

    def stop(self, ids: Sequence[str], timeout: float | None, done: Callable[[list[str]], None]) -> None:
        """Stop containers by id, its beginning, or name (none given: all) and return the ids of those that ended.

        Each gets its stop signal, and SIGKILL after `timeout` seconds. Refused when one is not known.
        """
        chosen = [self._find(text) for text in ids] if ids else list(self._shims.running)
        running = {item: self._shims.record(item) for item in chosen}
        running = {item: record for item, record in running.items() if record.get("pid") and record.get("exit") is None}
        if not running:
            done([])
            return
        patience = STOP_TIMEOUT if timeout is None else max(0.0, timeout)
        for item, record in running.items():
            labels = (record.get("spec") or {}).get("labels") or {}
            self._shims.kill_leftover(item, stop_signal(str(labels.get("stop_signal", ""))))
        begun = time.monotonic()
        killed = False

        def look() -> None:
            nonlocal killed
            left = [item for item in running if self._shims.runs(item)]
            waited = time.monotonic() - begun
            if not left:
                done(sorted(running))
            elif waited > patience + 10:
                self._log(f"containers did not end: {', '.join(left)}")
                done(sorted(set(running) - set(left)))
            else:
                if waited >= patience and not killed:
                    killed = True
                    for item in left:
                        self._shims.kill_leftover(item, signal.SIGKILL)
                self._loop.later(0.05, look)

        look()

    def _find(self, text: str) -> str:
        found = [
            item for item in self._shims.running
            if item == text or _name(self._shims.record(item), item) == text.removeprefix("/")
        ] or [item for item in self._shims.running if text and item.startswith(text)]  # fmt: skip
        if len(found) != 1:
            reason = "no container runs with" if not found else "more than one container runs with"
            raise Refused("not_found", f"{reason} the id or name {text!r}")
        return found[0]

    def _ask_all(self, method: str, done: Callable[[dict[str, dict[str, Any]]], None]) -> None:
        ids = self._shims.running
        if not ids:
            done({})
            return
        ask = _Ask(len(ids), done)
        ask.timer = self._loop.later(_PATIENCE, ask.finish)
        for container_id in ids:
            self._ask(container_id, method, ask)

    def _ask(self, container_id: str, method: str, ask: _Ask) -> None:
        """Ask one shim on a connection of its own, so that an idle agent costs the shims nothing."""
        answered = False

        def message(connection: Connection, reply: wire.Message) -> None:
            nonlocal answered
            wire.close_all(reply.fds)
            if reply.body.get("id") == 1 and not answered:
                answered = True
                connection.close()
                ask.answer(container_id, reply.body.get("result"))

        def closed(_connection: Connection) -> None:
            nonlocal answered
            if not answered:
                answered = True
                ask.answer(container_id, None)

        try:
            sock = wire.connect(self._folder / container_id / "shim.sock")
        except OSError:
            ask.answer(container_id, None)
            return
        Connection(self._loop, sock, message, closed).send({"id": 1, "method": method, "params": {}})


def stop_signal(text: str) -> int:
    """Read a stop signal as containers have it: a name with or without SIG, or a number. SIGTERM when it is neither."""
    name = text.strip().upper()
    if name.isdigit() and 0 < int(name) <= 64:
        return int(name)
    name = name if name.startswith("SIG") else f"SIG{name}"
    if name.startswith(("SIGRTMIN+", "SIGRTMAX-")):
        offset = name[9:]
        if offset.isdigit():
            return int(signal.SIGRTMIN) + int(offset) if "MIN" in name else int(signal.SIGRTMAX) - int(offset)
    try:
        return int(signal.Signals[name])
    except KeyError:
        return int(signal.SIGTERM)


def _name(record: dict[str, Any], container_id: str) -> str:
    labels = (record.get("spec") or {}).get("labels") or {}
    return str(labels.get("name") or container_id[:12]).removeprefix("/")


def _nothing(_answers: dict[str, dict[str, Any]]) -> None:
    """A question that was answered already."""
