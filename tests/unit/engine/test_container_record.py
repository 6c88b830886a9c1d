"""States, names and records of containers."""

import pytest
from moorage_guest.api.types import ContainerConfig, EndpointSettings, HostConfig
from moorage_guest.engine.names import Names, check_name
from moorage_guest.engine.record import Container, Health, MountRecord, Probe, RecordError, RunState
from moorage_guest.engine.states import MOVES, Status
from moorage_guest.errors import Conflict, InvalidParameter


def _container() -> Container:
    return Container(
        id="a" * 64,
        name="web",
        created_ns=5,
        image_id="sha256:1",
        config=ContainerConfig(image="busybox", cmd=["true"], labels={"a": "b"}, stop_timeout=3),
        host_config=HostConfig(network_mode="bridge", memory=64 << 20),
        path="true",
        mounts=[MountRecord("volume", "/data", "/v", "data", options=("x",), anonymous=True)],
        endpoints={"bridge": EndpointSettings(ip_address="10.0.0.2")},
        wanted_endpoints={"bridge": EndpointSettings()},
        ports={"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}]},
        state=RunState(Status.RUNNING, pid=7, started_ns=6),
        health=Health("healthy", 0, (Probe(1, 2, 0, "ok"),)),
    )


def test_record_survives_the_database_whole() -> None:
    container = _container()
    again = Container.from_record(container.to_record())
    assert again.to_record() == container.to_record()
    assert again.config == container.config
    assert again.host_config == container.host_config
    assert again.health == container.health
    assert again.mounts == container.mounts


@pytest.mark.parametrize("damage", [{"version": 99}, {"state": {}}, {"mounts": [{"nonsense": 1}]}, {"config": 3}])
def test_damaged_record_is_refused_with_a_sentence(damage: dict[str, object]) -> None:
    with pytest.raises(RecordError, match="container record a"):
        Container.from_record({**_container().to_record(), **damage})


def test_state_moves_along_the_table_only() -> None:
    container = _container()
    container.move(Status.PAUSED)
    container.move(Status.RUNNING)
    container.move(Status.EXITED, pid=0, exit_code=3)
    assert container.state.exit_code == 3
    with pytest.raises(Conflict, match="a container that is exited cannot become paused"):
        container.move(Status.PAUSED)


def test_every_state_can_be_left() -> None:
    assert set(MOVES) == set(Status)
    assert all(MOVES.values())


def test_waiting_for_a_restart_counts_as_running() -> None:
    assert Status.RESTARTING.running
    assert not Status.RESTARTING.alive


def test_taken_name_is_refused_in_dockerds_words() -> None:
    names = Names()
    names.reserve("web", "1" * 64)
    with pytest.raises(Conflict, match=r'Conflict\. The container name "/web" is already in use by container "1{64}"'):
        names.reserve("web", "2" * 64)
    names.release("web", "2" * 64)
    assert names.get("web") == "1" * 64


def test_made_up_names_are_valid_and_unique() -> None:
    names = Names()
    made = {names.make_up(f"{number:064x}") for number in range(500)}
    assert len(made) == 500
    assert all(check_name(name) == name for name in made)


@pytest.mark.parametrize("name", ["", "a", "-ab", "a b", "ä1", "a/b", "../x"])
def test_invalid_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidParameter, match=r"only \[a-zA-Z0-9\]\[a-zA-Z0-9_.-\] are allowed"):
        check_name(name)
