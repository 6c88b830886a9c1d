"""What host and agent say to each other survives the wire and newer senders."""

import json

import pytest
from moorage_contract.agent import RESULTS, ConfigApply, Envelope, Logs, PipeFill, Reply, Status, request_line
from pydantic import ValidationError


def test_request_goes_over_the_wire_as_the_page_says() -> None:
    line = request_line(7, ConfigApply(content="{}", mode="restart"))
    assert json.loads(line) == {"id": 7, "method": "config.apply", "params": {"content": "{}", "mode": "restart"}}
    assert line.endswith(b"\n") and Envelope.model_validate_json(line).request() == ConfigApply(
        content="{}", mode="restart"
    )


def test_absent_parameter_is_left_out() -> None:
    assert json.loads(request_line(1, Logs(what="agent")))["params"] == {"what": "agent", "lines": 200}


def test_unknown_method_is_refused() -> None:
    with pytest.raises(ValidationError):
        Envelope(id=1, method="format.disk").request()


def test_status_of_a_newer_agent_is_read() -> None:
    status = Status.model_validate(
        {
            "engine_version": "26.11.0",
            "api_version": "1.51",
            "daemon": {
                "state": "running",
                "pid": 3,
                "since": 1.5,
                "restarts": 2,
                "last_exit": None,
                "last_error": None,
                "mood": "good",
            },
            "agent": {"pid": 2, "since": 1.0},
            "config": {"sha256": "00", "rolled_back": {"message": "no", "at": 2.0}},
            "memory": {"total": 10, "available": 5},
            "clock": 3.0,
            "weather": "fine",
        }
    )
    assert status.daemon.state == "running" and status.config.rolled_back is not None


def test_pipe_fill_is_a_fraction() -> None:
    assert PipeFill(container="a", stream="stdout", bytes=16384, capacity=65536).fraction == 0.25


def test_every_method_has_a_result() -> None:
    assert {"status", "pipes", "config.apply", "watch", "poweroff", "engine.upgrade"} <= RESULTS.keys()


def test_error_reply_is_read() -> None:
    reply = Reply.model_validate_json('{"id": 1, "error": {"code": "invalid", "message": "no such method"}}')
    assert reply.error is not None and reply.result is None
