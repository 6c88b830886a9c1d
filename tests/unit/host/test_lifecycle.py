import pytest
from moorage_host.errors import ErrorCode, HostError
from moorage_host.machine.lifecycle import MOVES, State, move


def test_every_state_has_a_way_out() -> None:
    assert set(MOVES) == set(State)
    assert all(MOVES.values())


def test_illegal_move_is_a_sentence() -> None:
    with pytest.raises(HostError, match="cannot stop an absent machine") as caught:
        move(State.ABSENT, State.STOPPING)
    assert caught.value.code is ErrorCode.CONFLICT


def test_running_machine_is_not_deleted() -> None:
    with pytest.raises(HostError, match="cannot delete a ready machine"):
        move(State.READY, State.ABSENT)


def test_staying_is_no_move() -> None:
    assert move(State.READY, State.READY) is State.READY
