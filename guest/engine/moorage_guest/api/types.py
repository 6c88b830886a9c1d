"""Models of what clients send about containers; field names, defaults and meaning are the Engine API's.

Unknown fields are ignored, as dockerd ignores them. ``null`` is as good as a field that is not there.
Source: the Engine API specification v1.51, definitions ContainerConfig, HostConfig, Mount, HealthConfig, NetworkingConfig.
"""

from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_pascal

T = TypeVar("T")


def _none_to_list(value: object) -> object:
    return [] if value is None else value


def _none_to_dict(value: object) -> object:
    return {} if value is None else value


def _words(value: object) -> object:
    return [value] if isinstance(value, str) else value


List = Annotated[list[T], BeforeValidator(_none_to_list)]
Map = Annotated[dict[str, T], BeforeValidator(_none_to_dict)]
#: A command: an array, or a single string (which dockerd takes as one word).
Words = Annotated[list[str] | None, BeforeValidator(_words)]
#: As `Words` where nothing is the same as an empty list.
WordList = Annotated[List[str], BeforeValidator(_words)]


@cache
def _names(model: type[BaseModel]) -> frozenset[str]:
    return frozenset(field.alias or name for name, field in model.model_fields.items())


class ApiModel(BaseModel):
    """PascalCase in JSON, snake_case here; unknown fields are ignored."""

    # Validators are built at first use, or by the zygote once containers run (agent.imports): a twentieth of a start.
    model_config = ConfigDict(alias_generator=to_pascal, populate_by_name=True, extra="ignore", defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _any_case(cls, value: Any) -> Any:
        """Read an object as Go does: names in any case (docker-py sends ``detachKeys``), null as if it were not there."""
        if not isinstance(value, dict):
            return value
        if None in value.values():
            value = {key: each for key, each in value.items() if each is not None}
        known = _names(cls)
        if all(not isinstance(key, str) or key in known or key in cls.model_fields for key in value):
            return value
        folded = {alias.lower(): alias for alias in known}
        exact = {key for key in value if key in known}
        return {
            (
                key
                if key in known or key in cls.model_fields or folded.get(str(key).lower()) in exact
                else folded.get(str(key).lower(), key)
            ): each
            for key, each in value.items()
        }

    def to_api(self) -> dict[str, Any]:
        """Return the JSON object with the API's field names."""
        return self.model_dump(by_alias=True, mode="json")


class HealthConfig(ApiModel):
    """Durations in nanoseconds; 0 means inherit (from the image) or the default."""

    test: List[str] = Field(default_factory=list)
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


class ContainerConfig(ApiModel):
    """What is portable between hosts; images carry one too."""

    hostname: str = ""
    domainname: str = ""
    user: str = ""
    attach_stdin: bool = False
    attach_stdout: bool = True
    attach_stderr: bool = True
    exposed_ports: Map[dict[str, Any]] = Field(default_factory=dict)
    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False
    env: List[str] = Field(default_factory=list)
    cmd: Words = None
    healthcheck: HealthConfig | None = None
    args_escaped: bool = False
    image: str = ""
    volumes: Map[dict[str, Any]] = Field(default_factory=dict)
    working_dir: str = ""
    entrypoint: Words = None
    network_disabled: bool = False
    mac_address: str = ""
    on_build: List[str] = Field(default_factory=list)
    labels: Map[str] = Field(default_factory=dict)
    stop_signal: str = ""
    stop_timeout: int | None = None
    shell: Words = None


class RestartPolicy(ApiModel):
    """``no``, ``always``, ``unless-stopped`` or ``on-failure`` with a count."""

    name: str = ""
    maximum_retry_count: int = 0


class LogConfig(ApiModel):
    """Log driver and its options."""

    type: str = ""
    config: Map[str] = Field(default_factory=dict)


class PortBinding(ApiModel):
    """One address and port (or range, or empty for any) of the host."""

    host_ip: str = Field("", alias="HostIp")
    host_port: str = ""


class DeviceMapping(ApiModel):
    """One device of the host in the container."""

    path_on_host: str = ""
    path_in_container: str = ""
    cgroup_permissions: str = "rwm"


class DeviceRequest(ApiModel):
    """A request for devices by driver or capability (--gpus)."""

    driver: str = ""
    count: int = 0
    device_ids: List[str] = Field(default_factory=list, alias="DeviceIDs")
    capabilities: List[list[str]] = Field(default_factory=list)
    options: Map[str] = Field(default_factory=dict)


class ThrottleDevice(ApiModel):
    """A device and its limit, bytes or operations a second."""

    path: str = ""
    rate: int = Field(0, ge=0)


class WeightDevice(ApiModel):
    """A device and its weight, 10 to 1000."""

    path: str = ""
    weight: int = Field(0, ge=0, lt=2**16)


class Ulimit(ApiModel):
    """One resource limit; -1 is unlimited."""

    name: str = ""
    soft: int = 0
    hard: int = 0


class BindOptions(ApiModel):
    """Options of a bind mount."""

    propagation: str = ""
    non_recursive: bool = False
    create_mountpoint: bool = False
    read_only_non_recursive: bool = False
    read_only_force_recursive: bool = False


class VolumeDriverConfig(ApiModel):
    """Driver of a volume that is made on the way."""

    name: str = ""
    options: Map[str] = Field(default_factory=dict)


class VolumeOptions(ApiModel):
    """Options of a volume mount."""

    no_copy: bool = False
    labels: Map[str] = Field(default_factory=dict)
    driver_config: VolumeDriverConfig | None = None
    subpath: str = ""


class TmpfsOptions(ApiModel):
    """Size in bytes, mode as an integer."""

    size_bytes: int = 0
    mode: int = Field(0, ge=0, lt=2**32)
    options: List[list[str]] = Field(default_factory=list)


class ImageOptions(ApiModel):
    """Options of an image mount."""

    subpath: str = ""


class Mount(ApiModel):
    """One entry of HostConfig.Mounts (--mount)."""

    target: str = ""
    source: str = ""
    type: str = ""
    read_only: bool = False
    consistency: str = ""
    bind_options: BindOptions | None = None
    volume_options: VolumeOptions | None = None
    tmpfs_options: TmpfsOptions | None = None
    image_options: ImageOptions | None = None


class HostConfig(ApiModel):
    """What ties a container to its host: resources, mounts, namespaces, ports."""

    # resources
    cpu_shares: int = 0
    memory: int = 0
    nano_cpus: int = 0
    cgroup_parent: str = ""
    blkio_weight: int = Field(0, ge=0, lt=2**16)
    blkio_weight_device: List[WeightDevice] = Field(default_factory=list)
    blkio_device_read_bps: List[ThrottleDevice] = Field(default_factory=list)
    blkio_device_write_bps: List[ThrottleDevice] = Field(default_factory=list)
    blkio_device_read_iops: List[ThrottleDevice] = Field(default_factory=list, alias="BlkioDeviceReadIOps")
    blkio_device_write_iops: List[ThrottleDevice] = Field(default_factory=list, alias="BlkioDeviceWriteIOps")
    cpu_period: int = 0
    cpu_quota: int = 0
    cpu_realtime_period: int = 0
    cpu_realtime_runtime: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    devices: List[DeviceMapping] = Field(default_factory=list)
    device_cgroup_rules: List[str] = Field(default_factory=list)
    device_requests: List[DeviceRequest] = Field(default_factory=list)
    memory_reservation: int = 0
    memory_swap: int = 0
    memory_swappiness: int | None = None
    oom_kill_disable: bool | None = None
    pids_limit: int | None = None
    ulimits: List[Ulimit] = Field(default_factory=list)
    kernel_memory_tcp: int = Field(0, alias="KernelMemoryTCP")
    # the rest
    binds: List[str] = Field(default_factory=list)
    container_id_file: str = Field("", alias="ContainerIDFile")
    log_config: LogConfig = Field(default_factory=LogConfig)
    network_mode: str = ""
    port_bindings: Map[List[PortBinding]] = Field(default_factory=dict)
    restart_policy: RestartPolicy = Field(default_factory=RestartPolicy)
    auto_remove: bool = False
    volume_driver: str = ""
    volumes_from: List[str] = Field(default_factory=list)
    mounts: List[Mount] = Field(default_factory=list)
    console_size: Annotated[list[int], BeforeValidator(lambda v: v or [0, 0])] = Field(default_factory=lambda: [0, 0])
    annotations: Map[str] = Field(default_factory=dict)
    cap_add: WordList = Field(default_factory=list)
    cap_drop: WordList = Field(default_factory=list)
    cgroupns_mode: str = ""
    dns: List[str] = Field(default_factory=list)
    dns_options: List[str] = Field(default_factory=list)
    dns_search: List[str] = Field(default_factory=list)
    extra_hosts: List[str] = Field(default_factory=list)
    group_add: List[str] = Field(default_factory=list)
    ipc_mode: str = ""
    cgroup: str = ""
    links: List[str] = Field(default_factory=list)
    oom_score_adj: int = 0
    pid_mode: str = ""
    privileged: bool = False
    publish_all_ports: bool = False
    readonly_rootfs: bool = False
    security_opt: List[str] = Field(default_factory=list)
    storage_opt: Map[str] = Field(default_factory=dict)
    tmpfs: Map[str] = Field(default_factory=dict)
    uts_mode: str = Field("", alias="UTSMode")
    userns_mode: str = ""
    shm_size: int = 0
    sysctls: Map[str] = Field(default_factory=dict)
    runtime: str = ""
    isolation: str = ""
    init: bool | None = None
    masked_paths: list[str] | None = None
    readonly_paths: list[str] | None = None


class EndpointIPAMConfig(ApiModel):
    """Static addresses asked for."""

    ipv4_address: str = Field("", alias="IPv4Address")
    ipv6_address: str = Field("", alias="IPv6Address")
    link_local_ips: List[str] = Field(default_factory=list, alias="LinkLocalIPs")


class EndpointSettings(ApiModel):
    """One container's place in one network: what was asked for and what it got."""

    ipam_config: EndpointIPAMConfig | None = Field(None, alias="IPAMConfig")
    links: list[str] | None = None
    mac_address: str = ""
    aliases: list[str] | None = None
    driver_opts: dict[str, str] | None = None
    gw_priority: int = 0
    network_id: str = Field("", alias="NetworkID")
    endpoint_id: str = Field("", alias="EndpointID")
    gateway: str = ""
    ip_address: str = Field("", alias="IPAddress")
    ip_prefix_len: int = Field(0, alias="IPPrefixLen")
    ipv6_gateway: str = Field("", alias="IPv6Gateway")
    global_ipv6_address: str = Field("", alias="GlobalIPv6Address")
    global_ipv6_prefix_len: int = Field(0, alias="GlobalIPv6PrefixLen")
    dns_names: list[str] | None = Field(None, alias="DNSNames")


class NetworkingConfig(ApiModel):
    """Networks asked for at create."""

    endpoints_config: Map[EndpointSettings | None] = Field(default_factory=dict)
