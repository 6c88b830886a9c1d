"""Detach keys, and what the runtime's messages mean."""

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from moorage_guest.agent.containers import stop_signal
from moorage_guest.shim.clients import DetachKeys
from moorage_guest.shim.runtime import classify, last_message

_KEYS = b"\x10\x11"


@pytest.mark.parametrize(
    ("pieces", "passed", "detached"),
    [
        ([b"abc"], b"abc", False),
        ([b"ab\x10\x11cd"], b"ab", True),
        ([b"ab\x10", b"\x11"], b"ab", True),
        ([b"a\x10b"], b"a\x10b", False),
        ([b"\x10\x10\x11"], b"\x10", True),
        ([b"\x11\x10"], b"\x11", False),
    ],
)
def test_detach_keys_are_found_across_reads(pieces: list[bytes], passed: bytes, detached: bool) -> None:
    keys = DetachKeys(_KEYS)
    out = b""
    found = False
    for piece in pieces:
        text, found = keys.scan(piece)
        out += text
    assert (out, found) == (passed, detached)


@given(st.lists(st.binary(max_size=6), max_size=6))
def test_without_detach_keys_all_input_is_passed_on(pieces: list[bytes]) -> None:
    keys = DetachKeys(b"")
    assert b"".join(keys.scan(piece)[0] for piece in pieces) == b"".join(pieces)


@given(st.lists(st.binary(max_size=4).map(lambda text: text.replace(b"\x11", b"")), max_size=8))
def test_a_sequence_that_is_not_completed_is_only_held_back(pieces: list[bytes]) -> None:
    keys = DetachKeys(_KEYS)
    out = b"".join(keys.scan(piece)[0] for piece in pieces) + keys.scan(b"end")[0]
    assert out == b"".join(pieces) + b"end"


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("executable file `x` not found in $PATH: No such file or directory", "not_found"),
        ("open executable: Permission denied", "not_executable"),
        ("exec container process `/bin/x`: Exec format error", "not_executable"),
        ("mount `proc` to `/proc`: Operation not permitted", "runtime"),
        ("open `/some/mount`: No such file or directory", "runtime"),
    ],
)
def test_a_program_that_is_missing_is_told_from_one_that_may_not_run(message: str, code: str) -> None:
    assert classify(message) == code


def test_the_last_error_of_a_runtimes_log_is_its_message() -> None:
    text = '{"level":"warning","msg":"w"}\n{"level":"error","msg":"first"}\n{"level":"error","msg":"last"}\n'
    assert last_message(text) == "last"
    assert last_message("plain words\n") == "plain words"
    assert last_message("") == ""


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("SIGUSR1", signal.SIGUSR1), ("usr1", signal.SIGUSR1), ("9", 9), ("", signal.SIGTERM), ("nonsense", signal.SIGTERM),
        ("SIGRTMIN+3", signal.SIGRTMIN + 3), ("RTMAX-1", signal.SIGRTMAX - 1), ("999", signal.SIGTERM),
    ],
)  # fmt: skip
def test_stop_signals_are_read_as_images_write_them(text: str, number: int) -> None:
    assert stop_signal(text) == number
