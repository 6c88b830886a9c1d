"""What the supervising agent does for containers while moored is dead."""

import signal
from collections.abc import AsyncIterator

import pytest
from moorage_guest.engine.shims import ContainerExited

from tests.support.shims import Harness, close_pipes, until
from tests.support.supervised import AgentRefused, Host, Supervised

pytestmark = pytest.mark.root


@pytest.fixture
async def host(guest: Supervised) -> AsyncIterator[Host]:
    host = await guest.host()
    yield host
    await host.close()


@pytest.fixture
async def harness(guest: Supervised, host: Host) -> AsyncIterator[Harness]:
    harness = await guest.harness()
    yield harness
    await harness.end_containers()
    await harness.agent.close()


async def test_fill_of_every_pipe_and_who_is_blocked_are_reported(host: Host, harness: Harness) -> None:
    full, _ = await harness.run("sh", "-c", "while :; do echo 0123456789; done", labels={"name": "/chatty"})
    quiet, _ = await harness.run("sh", "-c", "echo hello >&2; sleep 1000", labels={"name": "/quiet"})

    async def blocked() -> dict[tuple[str, str], dict[str, object]] | None:
        pipes = (await host.ask("pipes"))["pipes"]
        found = {(pipe["name"], pipe["stream"]): pipe for pipe in pipes}
        ready = found.get(("chatty", "stdout"), {}).get("blocked") and found.get(("quiet", "stderr"), {}).get("bytes")
        return found if ready else None

    found = await until("a blocked container", blocked)
    chatty = found["chatty", "stdout"]
    assert chatty["capacity"] == 65536
    assert 61440 < chatty["bytes"] <= 65536
    assert chatty["container"] == full.container_id
    assert (found["chatty", "stderr"]["bytes"], found["chatty", "stderr"]["blocked"]) == (0, False)
    assert (found["quiet", "stderr"]["bytes"], found["quiet", "stderr"]["blocked"]) == (6, False)
    assert quiet.container_id == found["quiet", "stderr"]["container"]


async def test_time_until_a_pipe_is_full_follows_from_its_rate(host: Host, harness: Harness) -> None:
    await harness.run("sh", "-c", "while :; do echo 0123456789; sleep 0.05; done")

    async def rate() -> dict[str, float] | None:
        pipe = next(pipe for pipe in (await host.ask("pipes"))["pipes"] if pipe["stream"] == "stdout")
        return pipe if pipe["rate"] > 0 else None

    pipe = await until("a rate", rate)
    assert pipe["seconds_to_full"] == pytest.approx((65536 - pipe["bytes"]) / pipe["rate"])


async def test_containers_are_stopped_by_name_with_their_stop_signal_or_killed(host: Host, harness: Harness) -> None:
    script = "trap 'exit 42' USR1; echo ready; while :; do sleep 0.05; done"
    polite, _ = await harness.run("sh", "-c", script, labels={"name": "/polite", "stop_signal": "SIGUSR1"})
    stubborn, _ = await harness.run("sleep", "1000", labels={"name": "/stubborn", "stop_signal": "SIGTERM"})
    pipes = await polite.pipes()

    async def ready() -> bool:
        found = (await host.ask("pipes"))["pipes"]
        return any(pipe["container"] == polite.container_id and pipe["bytes"] for pipe in found)

    await until("the trap to be set", ready)
    close_pipes(pipes)
    assert (await host.ask("containers.stop", ids=["polite"], timeout=30))["stopped"] == [polite.container_id]
    event = await anext(polite.events)
    assert isinstance(event, ContainerExited)
    assert event.exit_code == 42
    assert (await host.ask("containers.stop", ids=[], timeout=0.2))["stopped"] == [stubborn.container_id]
    event = await anext(stubborn.events)
    assert isinstance(event, ContainerExited)
    assert event.exit_code == 128 + signal.SIGKILL
    with pytest.raises(AgentRefused, match="no container runs"):
        await host.ask("containers.stop", ids=["nobody"])


async def test_bad_requests_get_a_sentence_and_the_connection_goes_on(host: Host) -> None:
    host.writer.write(b"not json\n")
    assert (await host.line())["error"]["code"] == "invalid"
    with pytest.raises(AgentRefused, match="does not know"):
        await host.ask("no.such.method")
    with pytest.raises(AgentRefused, match="content"):
        await host.ask("config.validate", content=3)
    with pytest.raises(AgentRefused, match="there is no log"):
        await host.ask("logs", what="../../etc/passwd")
    with pytest.raises(AgentRefused, match="no container id"):
        await host.ask("logs", what="shim", container="../x")
    assert "agent" in (await host.ask("logs", what="agent", lines=5))["text"]
    assert (await host.ask("status"))["agent"]["pid"]
