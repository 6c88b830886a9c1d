"""The named states of a container and the one table of moves between them."""

from enum import StrEnum

from moorage_guest.errors import Conflict


class Status(StrEnum):
    """What `State.Status` of the API says."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    RESTARTING = "restarting"
    REMOVING = "removing"
    EXITED = "exited"
    DEAD = "dead"

    @property
    def alive(self) -> bool:
        """Whether there is a process."""
        return self in (Status.RUNNING, Status.PAUSED)

    @property
    def running(self) -> bool:
        """What `State.Running` says: dockerd counts a container that waits for its next start as running."""
        return self in (Status.RUNNING, Status.PAUSED, Status.RESTARTING)


#: From each state, the states that may follow it. EXITED follows CREATED when a start fails.
MOVES: dict[Status, frozenset[Status]] = {
    Status.CREATED: frozenset({Status.RUNNING, Status.EXITED, Status.RESTARTING, Status.REMOVING}),
    Status.RUNNING: frozenset({Status.PAUSED, Status.EXITED, Status.RESTARTING}),
    Status.PAUSED: frozenset({Status.RUNNING, Status.EXITED, Status.RESTARTING}),
    Status.RESTARTING: frozenset({Status.RUNNING, Status.EXITED, Status.RESTARTING, Status.REMOVING}),
    Status.EXITED: frozenset({Status.RUNNING, Status.EXITED, Status.RESTARTING, Status.REMOVING}),
    Status.REMOVING: frozenset({Status.DEAD}),
    Status.DEAD: frozenset({Status.REMOVING}),
}


def check_move(now: Status, then: Status) -> None:
    """Raise Conflict with a sentence when the table has no such move."""
    if then not in MOVES[now]:
        raise Conflict(f"a container that is {now} cannot become {then}")
