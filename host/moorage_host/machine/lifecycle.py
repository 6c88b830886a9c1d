"""States of the machine and the one table of moves between them."""

from __future__ import annotations

from enum import Enum

from moorage_host.errors import ErrorCode, HostError


class State(Enum):
    """`booted`: the guest answers over SSH. `ready`: the engine answered /_ping through the tunnel."""

    ABSENT = "absent"
    STOPPED = "stopped"
    STARTING = "starting"
    BOOTED = "booted"
    READY = "ready"
    STOPPING = "stopping"
    PAUSED = "paused"
    FAILED = "failed"


RUNNING = frozenset({State.STARTING, State.BOOTED, State.READY, State.STOPPING, State.PAUSED})

MOVES: dict[State, frozenset[State]] = {
    State.ABSENT: frozenset({State.STOPPED, State.STARTING}),
    State.STOPPED: frozenset({State.STARTING, State.ABSENT, State.FAILED}),
    State.STARTING: frozenset({State.BOOTED, State.READY, State.STOPPING, State.STOPPED, State.PAUSED, State.FAILED}),
    State.BOOTED: frozenset({State.READY, State.STARTING, State.STOPPING, State.STOPPED, State.PAUSED, State.FAILED}),
    State.READY: frozenset({State.BOOTED, State.STARTING, State.STOPPING, State.STOPPED, State.PAUSED, State.FAILED}),
    State.STOPPING: frozenset({State.STOPPED, State.FAILED, State.STARTING}),
    State.PAUSED: frozenset({State.STARTING, State.BOOTED, State.READY, State.STOPPING, State.STOPPED, State.FAILED}),
    State.FAILED: frozenset({State.STARTING, State.STOPPED, State.STOPPING, State.ABSENT}),
}

_VERBS = {
    State.STARTING: "start",
    State.STOPPING: "stop",
    State.ABSENT: "delete",
    State.PAUSED: "pause",
    State.READY: "use",
    State.BOOTED: "use",
}


def move(old: State, new: State) -> State:
    """`new`, when the table allows it; otherwise HostError in a sentence. Staying where one is is always allowed."""
    if new is not old and new not in MOVES[old]:
        article = "an" if old.value[0] in "aeiou" else "a"
        raise HostError(
            f"cannot {_VERBS.get(new, 'change')} {article} {old.value} machine",
            hint="see moorage status",
            code=ErrorCode.CONFLICT,
        )
    return new
