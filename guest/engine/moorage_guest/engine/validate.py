"""Checks of what a client asks for when it creates or updates a container, in dockerd's words.

Whole-document checks only: names of images, volumes and networks are resolved by whoever owns them.
"""

import ipaddress
import os
import re
from pathlib import Path

from moorage_guest.api.types import ContainerConfig, HealthConfig, HostConfig, RestartPolicy
from moorage_guest.engine.settings import EngineSettings
from moorage_guest.engine.signals import parse_signal
from moorage_guest.errors import Conflict, InvalidParameter
from moorage_guest.oci import resources
from moorage_guest.oci.capabilities import granted
from moorage_guest.oci.devices import check_permissions, parse_rule
from moorage_guest.oci.security import parse_security_options

_MIN_MEMORY = 6 * 1024 * 1024
_MILLISECOND = 1_000_000
_POLICIES = ("no", "always", "on-failure", "unless-stopped")


def check_config(config: ContainerConfig) -> None:
    """Check what is portable. Raises InvalidParameter."""
    if config.working_dir and not config.working_dir.startswith("/"):
        raise InvalidParameter(
            f"the working directory '{config.working_dir}' is invalid, it needs to be an absolute path"
        )
    for entry in config.env:
        if not entry.partition("=")[0]:
            raise InvalidParameter(f"invalid environment variable: {entry}")
        if "\0" in entry:
            raise InvalidParameter("invalid environment variable: it holds a NUL byte")
    for word in [*(config.cmd or []), *(config.entrypoint or [])]:
        if "\0" in word:
            raise InvalidParameter("invalid command: it holds a NUL byte")
    if config.stop_signal:
        parse_signal(config.stop_signal)
    if len(config.hostname) > 63 and "." not in config.hostname:
        raise InvalidParameter(f"invalid hostname: {config.hostname}: a host name has at most 63 characters")
    if config.healthcheck is not None:
        check_health(config.healthcheck)


def check_health(health: HealthConfig) -> None:
    """Check a health check. Raises InvalidParameter."""
    for name, value in (
        ("Interval", health.interval),
        ("Timeout", health.timeout),
        ("StartPeriod", health.start_period),
        ("StartInterval", health.start_interval),
    ):
        if value != 0 and value < _MILLISECOND:
            raise InvalidParameter(f"{name} in Healthcheck cannot be less than 1ms")
    if health.retries < 0:
        raise InvalidParameter("Retries in Healthcheck cannot be negative")


def check_restart_policy(policy: RestartPolicy) -> None:
    """Check a restart policy. Raises InvalidParameter."""
    if policy.name in ("", "no", "always", "unless-stopped"):
        if policy.maximum_retry_count != 0:
            text = "maximum retry count can only be used with 'on-failure'"
            if policy.maximum_retry_count < 0:
                text += " and cannot be negative"
            raise InvalidParameter(f"invalid restart policy: {text}")
    elif policy.name == "on-failure":
        if policy.maximum_retry_count < 0:
            raise InvalidParameter("invalid restart policy: maximum retry count cannot be negative")
    else:
        raise InvalidParameter(
            f"invalid restart policy: unknown policy '{policy.name}'; use one of '{_POLICIES[0]}', '{_POLICIES[1]}', "
            f"'{_POLICIES[2]}', or '{_POLICIES[3]}'"
        )


def check_host_config(host: HostConfig, settings: EngineSettings) -> None:
    """Check what ties a container to its host. Raises InvalidParameter or Conflict."""
    check_restart_policy(host.restart_policy)
    if host.auto_remove and host.restart_policy.name not in ("", "no"):
        raise Conflict("can't create 'AutoRemove' container with restart policy")
    for entry in host.extra_hosts:
        name, separator, address = entry.partition("=" if "=" in entry else ":")
        if not separator or not name or not address:
            raise InvalidParameter(f'bad format for add-host: "{entry}"')
        if address != "host-gateway" and not _is_address(address):
            raise InvalidParameter(f'invalid IP address in add-host: "{address}"')
    for address in host.dns:
        if not _is_address(address):
            raise InvalidParameter(f"{address} is not an ip address")
    for port, bindings in host.port_bindings.items():
        _check_port_key(port)
        for binding in bindings:
            _check_host_port(port, binding.host_port)
    if host.runtime and host.runtime not in settings.runtimes:
        raise InvalidParameter(f"unknown or invalid runtime name: {host.runtime}")
    if host.isolation not in ("", "default"):
        raise InvalidParameter(f"invalid isolation '{host.isolation}' on linux")
    for request in (each for each in host.device_requests if each.driver != "cdi"):
        kinds = [word for group in request.capabilities for word in group]
        raise InvalidParameter(
            f'could not select device driver "{request.driver}" with capabilities: [[{" ".join(kinds)}]]'
        )
    _check_namespaces(host)
    if "" in host.annotations:
        raise InvalidParameter("invalid Annotations: the empty string is not permitted as an annotation key")
    check_resources(host)
    granted(host.cap_add, host.cap_drop, privileged=host.privileged)
    parse_security_options(host.security_opt)
    for limit in host.ulimits:
        resources.check_ulimit(limit)
    for device in host.devices:
        if device.cgroup_permissions and not check_permissions(device.cgroup_permissions):
            raise InvalidParameter(f"invalid device mode: {device.cgroup_permissions}")
    for rule in host.device_cgroup_rules:
        parse_rule(rule)
    for name, paths in (("MaskedPaths", host.masked_paths), ("ReadonlyPaths", host.readonly_paths)):
        for path in paths or []:
            if not path.startswith("/"):
                raise InvalidParameter(f'invalid {name} "{path}": it has to be an absolute path')


def check_remapped(host: HostConfig) -> None:
    """Check what a container may ask of a daemon that remaps root. Raises InvalidParameter in dockerd's words."""
    if host.userns_mode == "host":
        return
    if host.privileged:
        raise InvalidParameter(
            "privileged mode is incompatible with user namespaces.  You must run the container in the host namespace when "
            "running privileged mode"
        )
    if host.network_mode == "host":
        raise InvalidParameter("cannot share the host's network namespace when user namespaces are enabled")
    if host.pid_mode == "host":
        raise InvalidParameter("cannot share the host PID namespace when user namespaces are enabled")


def _check_namespaces(host: HostConfig) -> None:
    for mode, what, words in (
        (host.pid_mode, "PID", ("", "host", "private")),
        (host.ipc_mode, "IPC", ("", "none", "private", "shareable", "host")),
        (host.uts_mode, "UTS", ("", "host")),
        (host.cgroupns_mode, "cgroup namespace", ("", "private", "host")),
        (host.userns_mode, "userns", ("", "host", "private")),
    ):
        if mode in words:
            continue
        if what in ("PID", "IPC") and re.fullmatch(r"container:.+", mode):
            continue
        raise InvalidParameter(f"invalid {what} mode: {mode}")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return False
    return True


def _check_port_key(port: str) -> None:
    number, _, protocol = port.partition("/")
    if protocol not in ("", "tcp", "udp", "sctp"):
        raise InvalidParameter(f"invalid port specification: \"{port}\": unknown protocol '{protocol}'")
    if not _port_number(number):
        raise InvalidParameter(f'invalid port specification: "{port}"')


def _check_host_port(port: str, host_port: str) -> None:
    if not host_port:
        return
    start, dash, end = host_port.partition("-")
    if not _port_number(start) or (dash and (not _port_number(end) or int(end) < int(start))):
        raise InvalidParameter(f'invalid port specification: "{host_port}" (for container port {port})')


def _port_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) <= 65535


def check_resources(host: HostConfig) -> None:
    """Check limits against each other and against the machine. Raises InvalidParameter."""
    if 0 < host.memory < _MIN_MEMORY:
        raise InvalidParameter("Minimum memory limit allowed is 6MB")
    if host.memory < 0:
        raise InvalidParameter(f"invalid memory limit: {host.memory}")
    if host.memory > 0 and 0 < host.memory_swap < host.memory:
        raise InvalidParameter("Minimum memoryswap limit should be larger than memory limit, see usage")
    if host.memory == 0 and host.memory_swap > 0:
        raise InvalidParameter("You should always set the Memory limit when using Memoryswap limit, see usage")
    if host.memory_swap < -1:
        raise InvalidParameter(f"invalid memory swap limit: {host.memory_swap}")
    swappiness = host.memory_swappiness
    if swappiness is not None and not -1 <= swappiness <= 100:
        raise InvalidParameter(f"Invalid value: {swappiness}, valid memory swappiness range is 0-100")
    if 0 < host.memory_reservation < _MIN_MEMORY:
        raise InvalidParameter("Minimum memory reservation allowed is 6MB")
    if 0 < host.memory < host.memory_reservation:
        raise InvalidParameter("Minimum memory limit can not be less than memory reservation limit, see usage")
    if not -1000 <= host.oom_score_adj <= 1000:
        raise InvalidParameter(f"Invalid value {host.oom_score_adj}, range for oom score adj is [-1000, 1000]")
    if host.shm_size < 0:
        raise InvalidParameter("SHM size can not be less than 0")
    _check_cpu(host)
    if host.blkio_weight and not 10 <= host.blkio_weight <= 1000:
        raise InvalidParameter("Range of blkio weight is from 10 to 1000")
    for weight in host.blkio_weight_device:
        if not 10 <= weight.weight <= 1000:
            raise InvalidParameter("Range of blkio weight is from 10 to 1000")


def _check_cpu(host: HostConfig) -> None:
    for other, name in ((host.cpu_period, "CPU Period"), (host.cpu_quota, "CPU Quota")):
        if host.nano_cpus > 0 and other > 0:
            raise InvalidParameter(f"Conflicting options: Nano CPUs and {name} cannot both be set.")
    if host.nano_cpus < 0 or host.nano_cpus > (os.cpu_count() or 1) * 1_000_000_000:
        count = os.cpu_count() or 1
        raise InvalidParameter(f"range of CPUs is from 0.01 to {count}.00, as there are only {count} CPUs available")
    if host.cpu_period and not 1000 <= host.cpu_period <= 1_000_000:
        raise InvalidParameter("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
    if 0 < host.cpu_quota < 1000:
        raise InvalidParameter("CPU cfs quota can not be less than 1ms (i.e. 1000)")
    if host.cpu_realtime_runtime > 0 and not Path("/sys/fs/cgroup/cpu/cpu.rt_runtime_us").exists():
        raise InvalidParameter("Your kernel does not support CPU real-time scheduler")
    if host.cpu_realtime_period > 0 and host.cpu_realtime_runtime > host.cpu_realtime_period:
        raise InvalidParameter("cpu real-time runtime cannot be higher than cpu real-time period")
    if host.cpu_shares < 0:
        raise InvalidParameter(f"shares: invalid argument: {host.cpu_shares} is no number of CPU shares")
    for text, what in ((host.cpuset_cpus, "cpus"), (host.cpuset_mems, "mems")):
        if not text:
            continue
        asked = parse_cpuset(text)
        if asked is None:
            raise InvalidParameter(f"Invalid value {text} for cpuset {what}.")
        there = _available(what)
        if not asked <= there:
            listing = _ranges(there)
            raise InvalidParameter(
                f"Requested {'CPUs' if what == 'cpus' else 'memory nodes'} are not available - requested {text}, available: {listing}"
            )


def parse_cpuset(text: str) -> set[int] | None:
    """Return the numbers in ``0-2,4``, or None when it is no such list."""
    found: set[int] = set()
    for part in text.split(","):
        start, dash, end = part.strip().partition("-")
        if not start.isdigit() or (dash and not end.isdigit()):
            return None
        first, last = int(start), int(end) if dash else int(start)
        if last < first or last > 8191:
            return None
        found.update(range(first, last + 1))
    return found


def _available(what: str) -> set[int]:
    path = "/sys/devices/system/cpu/online" if what == "cpus" else "/sys/devices/system/node/online"
    try:
        with open(path) as file:
            return parse_cpuset(file.read().strip()) or {0}
    except OSError:
        return set(range(os.cpu_count() or 1)) if what == "cpus" else {0}


def _ranges(numbers: set[int]) -> str:
    ordered = sorted(numbers)
    return f"{ordered[0]}-{ordered[-1]}" if len(ordered) > 1 else str(ordered[0])


def check_network_conflicts(config: ContainerConfig, host: HostConfig) -> None:
    """Check options that exclude each other by network mode. Raises InvalidParameter."""
    mode = host.network_mode
    joined = mode.startswith("container:")
    if mode == "container" or (joined and not mode.removeprefix("container:")):
        raise InvalidParameter("invalid container format container:<name|id>")

    def conflict(text: str) -> InvalidParameter:
        return InvalidParameter(f"conflicting options: {text}")

    if host.uts_mode == "host" and config.hostname:
        raise conflict("hostname and the UTS mode")
    if joined and config.hostname:
        raise conflict("hostname and the network mode")
    if mode == "host" and host.links:
        raise conflict("host type networking can't be used with links. This would result in undefined behavior")
    if joined:
        if host.links:
            raise conflict("container type network can't be used with links. This would result in undefined behavior")
        if host.dns:
            raise conflict("dns and the network mode")
        if host.extra_hosts:
            raise conflict("custom host-to-IP mapping and the network mode")
        if config.mac_address:
            raise conflict("mac-address and the network mode")
        if host.port_bindings or host.publish_all_ports:
            raise conflict("port publishing and the container type network mode")
        if config.exposed_ports:
            raise conflict("port exposing and the container type network mode")
