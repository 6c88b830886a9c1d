"""Validation, defaults, restart policies, waits, texts."""

import asyncio
from typing import Any

import pytest
from moorage_guest.api.times import parse_time_ns
from moorage_guest.api.types import ContainerConfig, HealthConfig, HostConfig, PortBinding, RestartPolicy
from moorage_guest.engine import restart, validate
from moorage_guest.engine.attach import parse_detach_keys
from moorage_guest.engine.create import apply_defaults, merge_image
from moorage_guest.engine.health import command, pause, timestamp
from moorage_guest.engine.inspect import ago
from moorage_guest.engine.record import Container, RunState
from moorage_guest.engine.settings import EngineSettings
from moorage_guest.engine.signals import parse_signal
from moorage_guest.engine.states import Status
from moorage_guest.engine.waits import Outcome, Waits
from moorage_guest.errors import Conflict, EngineError, InvalidParameter


def _container(**more: Any) -> Container:
    host = more.pop("host_config", HostConfig())
    return Container("c" * 64, "cc", 1, "sha256:1", ContainerConfig(), host, **more)


@pytest.mark.parametrize(
    ("host", "message"),
    [
        (HostConfig(memory=1), "Minimum memory limit allowed is 6MB"),
        (HostConfig(memory=64 << 20, memory_swap=32 << 20), "Minimum memoryswap limit should be larger than memory"),
        (HostConfig(memory_swap=1 << 30), "You should always set the Memory limit when using Memoryswap limit"),
        (HostConfig(memory_swappiness=101), "valid memory swappiness range is 0-100"),
        (HostConfig(oom_score_adj=1001), "range for oom score adj is [-1000, 1000]"),
        (HostConfig(shm_size=-1), "SHM size can not be less than 0"),
        (HostConfig(nano_cpus=10**9, cpu_quota=5000), "Nano CPUs and CPU Quota cannot both be set"),
        (HostConfig(nano_cpus=10**15), "as there are only"),
        (HostConfig(cpu_period=1), "CPU cfs period can not be less than 1ms"),
        (HostConfig(cpuset_cpus="999"), "Requested CPUs are not available"),
        (HostConfig(cpuset_cpus="a"), "Invalid value a for cpuset cpus"),
        (HostConfig(blkio_weight=5), "Range of blkio weight is from 10 to 1000"),
        (HostConfig(restart_policy=RestartPolicy(name="nope")), "invalid restart policy: unknown policy 'nope'"),
        (HostConfig(restart_policy=RestartPolicy(name="always", maximum_retry_count=2)), "can only be used with"),
        (HostConfig(restart_policy=RestartPolicy(name="on-failure", maximum_retry_count=-1)), "cannot be negative"),
        (HostConfig(auto_remove=True, restart_policy=RestartPolicy(name="always")), "can't create 'AutoRemove'"),
        (HostConfig(extra_hosts=["nope"]), 'bad format for add-host: "nope"'),
        (HostConfig(dns=["nope"]), "nope is not an ip address"),
        (HostConfig(port_bindings={"x/tcp": []}), "invalid port specification"),
        (HostConfig(port_bindings={"80/tcp": [PortBinding(host_port="99999")]}), "invalid port specification"),
        (HostConfig(runtime="nope"), "unknown or invalid runtime name: nope"),
        (HostConfig(pid_mode="nope"), "invalid PID mode: nope"),
        (HostConfig(ipc_mode="container:"), "invalid IPC mode"),
        (HostConfig(cap_add=["NOPE"]), "NOPE"),
        (HostConfig(security_opt=["nope"]), "invalid --security-opt"),
    ],
)
def test_senseless_host_config_is_refused(host: HostConfig, message: str) -> None:
    with pytest.raises((InvalidParameter, Conflict)) as refused:
        validate.check_host_config(host, EngineSettings())
    assert message in str(refused.value)


def test_ordinary_host_config_is_taken() -> None:
    host = HostConfig(memory=64 << 20, cpuset_cpus="0", extra_hosts=["a:host-gateway", "b=::1"], dns=["1.1.1.1"])
    validate.check_host_config(host, EngineSettings())


@pytest.mark.parametrize(
    ("config", "host"),
    [
        (ContainerConfig(hostname="h"), HostConfig(network_mode="container:x")),
        (ContainerConfig(hostname="h"), HostConfig(uts_mode="host")),
        (ContainerConfig(), HostConfig(network_mode="host", links=["a:b"])),
        (ContainerConfig(exposed_ports={"80/tcp": {}}), HostConfig(network_mode="container:x")),
        (ContainerConfig(), HostConfig(network_mode="container:x", publish_all_ports=True)),
        (ContainerConfig(), HostConfig(network_mode="container:")),
    ],
)
def test_options_that_exclude_each_other_are_refused(config: ContainerConfig, host: HostConfig) -> None:
    with pytest.raises(InvalidParameter):
        validate.check_network_conflicts(config, host)


def test_health_check_shorter_than_a_millisecond_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="Interval in Healthcheck cannot be less than 1ms"):
        validate.check_config(ContainerConfig(healthcheck=HealthConfig(test=["CMD", "true"], interval=5)))


def test_image_fills_what_was_left_open() -> None:
    image = {
        "Env": ["A=image", "B=image"], "Cmd": ["sh"], "Entrypoint": ["/init"], "WorkingDir": "/w", "User": "u",
        "Labels": {"x": "1"}, "ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGQUIT",
    }  # fmt: skip
    merged = merge_image(ContainerConfig(env=["A=own"], labels={"y": "2"}), image)
    assert merged.env == ["A=own", "B=image"]
    assert (merged.entrypoint, merged.cmd, merged.working_dir, merged.user) == (["/init"], ["sh"], "/w", "u")
    assert merged.labels == {"x": "1", "y": "2"}
    assert merged.stop_signal == "SIGQUIT"


def test_own_entrypoint_drops_the_images_command() -> None:
    merged = merge_image(ContainerConfig(entrypoint=["/own"]), {"Cmd": ["sh"], "Entrypoint": ["/init"]})
    assert (merged.entrypoint, merged.cmd) == (["/own"], None)


def test_empty_entrypoint_resets_the_images() -> None:
    merged = merge_image(ContainerConfig(entrypoint=[""], cmd=["ls"]), {"Entrypoint": ["/init"]})
    assert (merged.entrypoint, merged.cmd) == (None, ["ls"])


def test_no_command_at_all_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="no command specified"):
        merge_image(ContainerConfig(), {})


def test_defaults_of_the_daemon_are_filled_in() -> None:
    settings = EngineSettings(log_options={"max-size": "1m"}, cgroup_version="2")
    host = apply_defaults(HostConfig(memory=64 << 20), settings)
    assert host.memory_swap == 128 << 20
    assert (host.network_mode, host.ipc_mode, host.cgroupns_mode) == ("bridge", "private", "private")
    assert host.log_config.config == {"max-size": "1m"}
    assert host.restart_policy.name == "no"


def test_log_options_of_another_driver_are_left_alone() -> None:
    host = HostConfig()
    host.log_config.type = "local"
    assert apply_defaults(host, EngineSettings(log_options={"max-size": "1m"})).log_config.config == {}


class _Engine:
    shutting_down = False


@pytest.mark.parametrize(
    ("policy", "code", "restarts", "expected"),
    [
        ("no", 1, 0, False),
        ("always", 0, 0, True),
        ("unless-stopped", 0, 0, True),
        ("on-failure", 0, 0, False),
        ("on-failure", 1, 2, True),
        ("on-failure", 1, 3, False),
    ],
)
def test_restart_policy_decides(policy: str, code: int, restarts: int, expected: bool) -> None:
    limit = 3 if policy == "on-failure" else 0
    host = HostConfig(restart_policy=RestartPolicy(name=policy, maximum_retry_count=limit))
    container = _container(host_config=host, restart_count=restarts)
    assert restart.wanted(_Engine(), container, code) is expected  # type: ignore[arg-type] # all it asks for is there
    container.stop_requested = True
    assert restart.wanted(_Engine(), container, code) is False  # type: ignore[arg-type] # as above


@pytest.mark.parametrize(
    ("policy", "stopped", "started", "expected"),
    [
        ("always", True, 5, True), ("always", False, 0, False), ("unless-stopped", True, 5, False),
        ("unless-stopped", False, 5, True), ("no", False, 5, False), ("on-failure", False, 5, True),
    ],
)  # fmt: skip
def test_policy_at_the_daemons_start(policy: str, stopped: bool, started: int, expected: bool) -> None:
    host = HostConfig(restart_policy=RestartPolicy(name=policy))
    state = RunState(Status.EXITED, exit_code=1, started_ns=started)
    container = _container(host_config=host, manually_stopped=stopped, state=state)
    assert restart.wanted_at_boot(container) is expected


def test_back_off_doubles_and_begins_anew_after_a_good_run() -> None:
    container = _container()
    delays = []
    for _ in range(12):
        restart.count(container, 0)
        delays.append(container.restart_delay_ns // 10**6)
    assert delays[:4] == [100, 200, 400, 800]
    assert delays[-1] == 60_000
    restart.count(container, 11 * 10**9)
    assert container.restart_delay_ns == 100 * 10**6
    assert container.restart_count == 13


async def test_wait_is_met_by_an_end_and_by_removal() -> None:
    waits = Waits()
    container = _container(state=RunState(Status.RUNNING))
    with waits.register(container, "next-exit") as ended, waits.register(container, "removed") as removed:
        container.state = RunState(Status.EXITED, exit_code=4)
        waits.ended(container)
        assert await ended == Outcome(4)
        assert not removed.done()
        waits.removed(container)
        assert await removed == Outcome(4)


async def test_not_running_is_met_at_once_and_next_exit_is_not() -> None:
    waits = Waits()
    container = _container()
    with waits.register(container, "not-running") as met:
        assert await met == Outcome(0)
    with waits.register(container, "next-exit") as later:
        await asyncio.sleep(0)
        assert not later.done()
    with pytest.raises(InvalidParameter, match='invalid condition: "nope"'), waits.register(container, "nope"):
        pass


@pytest.mark.parametrize(
    ("text", "number"), [("TERM", 15), ("sigterm", 15), ("9", 9), ("SIGRTMIN+3", 37), ("RTMAX-1", 63), ("WINCH", 28)]
)
def test_signals_by_name_and_number(text: str, number: int) -> None:
    assert parse_signal(text) == number


@pytest.mark.parametrize("text", ["", "nope", "0", "65", "-1", "SIGSIGTERM"])
def test_unknown_signal_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match="invalid signal"):
        parse_signal(text)


def test_detach_keys() -> None:
    assert parse_detach_keys("") == b"\x10\x11"
    assert parse_detach_keys("ctrl-a,x,ctrl-@,ctrl-_") == b"\x01x\x00\x1f"
    with pytest.raises(InvalidParameter, match="Invalid detach keys"):
        parse_detach_keys("ctrl-1")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "Less than a second"), (1, "1 second"), (59, "59 seconds"), (60, "About a minute"), (3599, "59 minutes"),
        (3600, "About an hour"), (47 * 3600, "47 hours"), (3 * 86400, "3 days"), (20 * 86400, "2 weeks"),
        (90 * 86400, "3 months"), (800 * 86400, "2 years"),
    ],
)  # fmt: skip
def test_durations_read_as_in_docker(seconds: int, text: str) -> None:
    assert ago(seconds * 10**9) == text


def test_times_have_nanoseconds() -> None:
    assert timestamp(0) == "0001-01-01T00:00:00Z"
    assert timestamp(1_700_000_000_000_000_001) == "2023-11-14T22:13:20.000000001Z"
    assert timestamp(1_700_000_000_000_000_000) == "2023-11-14T22:13:20Z"


@pytest.mark.parametrize(
    ("text", "expected"), [("10", 10**10), ("1.5", 1_500_000_000), ("1970-01-01T00:00:02Z", 2 * 10**9)]
)
def test_times_of_parameters(text: str, expected: int) -> None:
    assert parse_time_ns(text) == expected


@pytest.mark.parametrize("text", ["nope", "1h2", "9999999999999999999-01-01", ""])
def test_senseless_time_is_refused(text: str) -> None:
    with pytest.raises(EngineError, match="failed to parse value as time or duration"):
        parse_time_ns(text)


def test_health_command_forms() -> None:
    assert command(HealthConfig(test=["CMD", "a", "b"]), None) == ["a", "b"]
    assert command(HealthConfig(test=["CMD-SHELL", "a b"]), None) == ["/bin/sh", "-c", "a b"]
    assert command(HealthConfig(test=["CMD-SHELL", "a b"]), ["/bin/bash", "-c"]) == ["/bin/bash", "-c", "a b"]
    assert command(HealthConfig(test=["NONE"]), None) is None


def test_field_names_are_taken_in_any_case() -> None:
    config = ContainerConfig.model_validate({"image": "a", "CMD": ["x"], "Env": ["A=b"], "nonsense": 1})
    assert (config.image, config.cmd, config.env) == ("a", ["x"], ["A=b"])
    assert ContainerConfig.model_validate({"Image": "right", "image": "wrong"}).image == "right"


def test_next_probe_is_never_further_away_than_the_interval() -> None:
    second = 1_000_000_000
    assert pause(100 * second, 30 * second, 110 * second) == 20
    assert pause(100 * second, 30 * second, 5000 * second) == 0, "the clock was set forward"
    assert pause(5000 * second, 30 * second, 100 * second) == 30, "the clock was set back"


def test_container_that_ran_long_restarts_soon_also_when_the_clock_was_set_back() -> None:
    container = _container()
    container.restart_delay_ns = 1_600_000_000
    restart.count(container, -3_600_000_000_000)
    assert container.restart_delay_ns == 100_000_000
