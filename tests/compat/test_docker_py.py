"""What docker-py sends and expects to read beyond what the docker CLI does."""

import io
from collections.abc import Iterator

import docker
import pytest
from docker.models.containers import Container
from docker.types import Healthcheck, IPAMConfig, IPAMPool
from moorage_guest.api.types import ApiModel, ContainerConfig, EndpointSettings, HostConfig

from tests.support.moored import Moored


@pytest.fixture
def client(moored: Moored) -> Iterator[docker.DockerClient]:
    with moored.client() as found:
        yield found


@pytest.fixture
def box(client: docker.DockerClient) -> Iterator[Container]:
    """A container that waits for its input."""
    container = client.containers.run("busybox", "cat", detach=True, stdin_open=True)
    yield container
    container.remove(force=True)


def test_null_is_as_good_as_a_field_that_is_not_there(moored: Moored, client: docker.DockerClient) -> None:
    def nulls(model: type[ApiModel]) -> dict[str, object]:
        return {field.alias or name: None for name, field in model.model_fields.items()}

    body = {**nulls(ContainerConfig), "Image": "busybox", "HostConfig": nulls(HostConfig)}
    body["NetworkingConfig"] = {"EndpointsConfig": {"bridge": nulls(EndpointSettings)}}
    made = moored.api.post("/containers/create", body)
    assert made.status == 201, made.body
    plain = moored.api.post("/containers/create", {"Image": "busybox"})
    kept, other = (moored.api.get(f"/containers/{each.json['Id']}/json").json for each in (made, plain))
    assert kept["HostConfig"] == {**other["HostConfig"], "NetworkMode": kept["HostConfig"]["NetworkMode"]}
    for each in (made, plain):
        moored.api.delete(f"/containers/{each.json['Id']}")

    check = Healthcheck(test=["CMD-SHELL", "true"], retries=2)  # docker-py sends the other durations as null
    container = client.containers.create("busybox", "cat", healthcheck=check)
    # Ansible's docker_container takes a duration of zero for one that was asked for, and makes the container anew.
    assert container.attrs["Config"]["Healthcheck"] == {"Test": ["CMD-SHELL", "true"], "Retries": 2}
    container.remove()
    network = client.networks.create("nulls", ipam=IPAMConfig(pool_configs=[IPAMPool(subnet="10.93.0.0/24")]))
    assert network.attrs["IPAM"]["Config"][0]["Gateway"] == "10.93.0.1"
    network.remove()


def test_an_exec_is_framed_as_its_start_asks(client: docker.DockerClient, box: Container) -> None:
    api = client.api
    command = ["sh", "-c", "echo out; echo err >&2"]
    framed = api.exec_start(api.exec_create(box.id, command, tty=True)["Id"], demux=True)
    assert framed == (b"out\r\nerr\r\n", None)
    raw = api.exec_start(api.exec_create(box.id, command, tty=True)["Id"], tty=True)
    assert raw == b"out\r\nerr\r\n"
    assert api.exec_start(api.exec_create(box.id, command)["Id"], demux=True) == (b"out\n", b"err\n")
    missing = api.exec_start(api.exec_create(box.id, ["no-such-program"], tty=True)["Id"])
    assert b"no-such-program" in missing and not missing.startswith(b"\x01")


def test_the_runtime_of_a_container_has_the_name_that_info_gives_it(client: docker.DockerClient) -> None:
    container = client.containers.create("busybox", "true")
    assert container.attrs["HostConfig"]["Runtime"] == client.info()["DefaultRuntime"] == "runc"
    container.remove()


def test_what_a_container_at_its_end_wrote_is_committed(client: docker.DockerClient) -> None:
    for _ in range(10):
        container = client.containers.create("busybox", ["touch", "/written"])
        container.start()
        image = container.commit()  # it ends before, while or after it is paused
        container.remove(force=True)
        assert client.containers.run(image, ["echo", "there"], remove=True) == b"there\n"
        image.remove()


def test_a_load_that_fails_is_told_in_the_stream(client: docker.DockerClient) -> None:
    with pytest.raises(docker.errors.ImageLoadError):
        client.images.load(b"abc")


def test_errors_of_a_build_step_are_red_and_whole(client: docker.DockerClient) -> None:
    script = io.BytesIO("FROM busybox\nRUN echo plain; echo 'Ümlaut (tempel)' >&2\n".encode())
    lines = [chunk.get("stream") for chunk in client.api.build(fileobj=script, decode=True, nocache=True, rm=True)]
    assert "\x1b[91mÜmlaut (tempel)\n\x1b[0m" in lines and "plain\n" in lines


def test_images_named_as_cache_are_the_only_cache(client: docker.DockerClient) -> None:
    def hits(*sources: str) -> int:
        script = io.BytesIO(b"FROM busybox\nENV SOME=thing\nRUN touch one\nRUN touch two\n")
        chunks = list(client.api.build(fileobj=script, tag="cached", decode=True, rm=True, cache_from=list(sources)))
        assert not any("error" in chunk for chunk in chunks)
        return sum("Using cache" in chunk.get("stream", "") for chunk in chunks)

    hits()
    assert hits() == 3
    assert hits("no-such-tag") == 0
    assert hits("cached") == 3
    client.images.remove("cached")


def test_what_an_ipv4_network_is_told_of_ipv6_is_kept_to_no_effect(client: docker.DockerClient) -> None:
    pool = IPAMPool(subnet="2001:389::1/64", iprange="2001:389::0/96", gateway="2001:389::ffff")
    network = client.networks.create("no-six", ipam=IPAMConfig(driver="default", pool_configs=[pool]))
    container = client.containers.create("busybox", "cat", stdin_open=True, network="no-six")
    network.disconnect(container)
    network.connect(container, ipv6_address="2001:389::f00d")
    container.start()
    container.reload()
    joined = container.attrs["NetworkSettings"]["Networks"]["no-six"]
    assert joined["IPAMConfig"]["IPv6Address"] == "2001:389::f00d"
    assert joined["GlobalIPv6Address"] == "" and joined["IPAddress"]
    assert any(":" in each["Subnet"] for each in network.attrs["IPAM"]["Config"])
    with pytest.raises(docker.errors.APIError, match="only when connecting to networks with user configured subnets"):
        client.networks.create("no-six-2").connect(container, ipv6_address="2001:390::1")
    container.remove(force=True)
    for name in ("no-six", "no-six-2"):
        client.networks.get(name).remove()


def test_an_inspected_image_says_that_it_has_no_triggers(client: docker.DockerClient) -> None:
    assert not client.images.get("busybox").attrs["Config"]["OnBuild"]
