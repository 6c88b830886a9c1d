"""Ping, version, info, events, disk usage and registry login of the Engine API."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from moorage_contract.version import API_VERSION, ENGINE_VERSION, MIN_API_VERSION

from moorage_guest import sysinfo, web
from moorage_guest.api.lasting import begin_lasting
from moorage_guest.api.server import (
    ApiRequest,
    GivenAway,
    Route,
    filters,
    json_object,
    json_response,
    part,
    stream_response,
    while_connected,
)
from moorage_guest.engine.shims import Agent, LastingStream
from moorage_guest.errors import InvalidParameter
from moorage_guest.events import Event, EventBus
from moorage_guest.images import remote

NO_CACHE = {"Cache-Control": "no-cache, no-store, must-revalidate", "Pragma": "no-cache"}

EVENT_FILTERS = (
    "config", "container", "daemon", "event", "image", "label", "network", "node", "plugin", "scope", "secret",
    "service", "type", "volume",
)  # fmt: skip


@dataclass
class SystemService:
    """What the system routes need from the rest of the daemon."""

    events: EventBus
    info: Callable[[], Awaitable[dict[str, Any]]]
    """The whole answer of GET /info."""
    disk_usage: Callable[[set[str]], Awaitable[dict[str, Any]]]
    """The answer of GET /system/df for the object types asked for."""
    login: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
    """Check registry credentials, as POST /auth answers."""
    builder_version: Callable[[], str]
    """Which builder clients are to take when their user has not chosen: 1 is the classic one, 2 is BuildKit."""
    agent: Agent | None = None
    components: Callable[[], list[dict[str, Any]]] = field(default=list)

    async def resume_events(self, record: dict[str, Any], lasting: LastingStream) -> None:
        """Go on with an answer to GET /events that an earlier daemon began."""
        async with self.events.subscribe() as live:
            if "number" in record:
                missed = self.events.after(record["number"], record["until"])
            else:  # of an engine that knew times only
                missed = self.events.history(record["last"] + 1, record["until"])
            await self.send_events(lasting, record, live, missed)

    async def send_events(
        self, lasting: LastingStream, resume: dict[str, Any], live: AsyncIterator[Event], backlog: list[Event]
    ) -> None:
        """Send events over a stream that outlives this daemon; ``resume`` remembers the last event sent."""
        matches = EventFilter(resume["filters"])

        async def send() -> None:
            record = resume
            async for event in _bounded(live, backlog, resume["until"]):
                record = {**record, "last": event.time_ns, "number": event.number}
                if matches(event):
                    data = _line(event)
                    await lasting.send(b"%x\r\n%b\r\n" % (len(data), data), record)
            await lasting.send(b"0\r\n\r\n", record)

        sending = asyncio.ensure_future(send())
        closed = asyncio.ensure_future(lasting.closed.wait())
        try:
            await asyncio.wait({sending, closed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, closed):
                task.cancel()
            await asyncio.gather(sending, closed, return_exceptions=True)
        await lasting.close()


def routes(service: SystemService) -> list[Route]:
    """Return the routes of this area."""
    handlers = _Handlers(service)
    return [
        Route("GET", "/_ping", handlers.ping),
        Route("HEAD", "/_ping", handlers.ping),
        Route("GET", "/version", handlers.version),
        Route("GET", "/info", handlers.info),
        Route("GET", "/events", handlers.events),
        Route("GET", "/system/df", handlers.df),
        Route("POST", "/auth", handlers.auth),
    ]


class _Handlers:
    def __init__(self, service: SystemService) -> None:
        self._service = service

    async def ping(self, request: ApiRequest) -> web.StreamResponse:
        headers = {**NO_CACHE, "Builder-Version": self._service.builder_version(), "Swarm": "inactive"}
        if request.method == "HEAD":
            return web.Response(status=200, headers={**headers, "Content-Length": "0"}, content_type="text/plain")
        return web.Response(status=200, headers=headers, text="OK")

    async def version(self, request: ApiRequest) -> web.StreamResponse:
        kernel = sysinfo.kernel_version()
        details = {
            "ApiVersion": API_VERSION,
            "Arch": sysinfo.oci_architecture(),
            "Experimental": "false",
            "KernelVersion": kernel,
            "MinAPIVersion": MIN_API_VERSION,
            "Os": "linux",
        }
        return json_response(
            {
                "Platform": {"Name": "Moorage Engine"},
                "Components": [
                    {"Name": "Engine", "Version": ENGINE_VERSION, "Details": details},
                    *await asyncio.to_thread(self._service.components),
                ],
                "Version": ENGINE_VERSION,
                "ApiVersion": API_VERSION,
                "MinAPIVersion": MIN_API_VERSION,
                "Os": "linux",
                "Arch": sysinfo.oci_architecture(),
                "KernelVersion": kernel,
                "GitCommit": "",
                "GoVersion": "",
                "BuildTime": "",
            }
        )

    async def info(self, request: ApiRequest) -> web.StreamResponse:
        return json_response(_info_for(request.api_version, await self._service.info()))

    async def df(self, request: ApiRequest) -> web.StreamResponse:
        known = {"container", "image", "volume", "build-cache"}
        wanted = set(request.query.getall("type", [])) or known
        if unknown := wanted - known:
            raise InvalidParameter(f"unknown object type: {sorted(unknown)[0]}")
        return json_response(await self._service.disk_usage(wanted))

    async def auth(self, request: ApiRequest) -> web.StreamResponse:
        remote.UPSTREAM.set(request.headers.get("User-Agent", ""))
        return json_response(await self._service.login(await json_object(request)))

    async def events(self, request: ApiRequest) -> web.StreamResponse:
        matches = EventFilter(filters(request, EVENT_FILTERS))
        since = _timestamp(request, "since")
        until = _timestamp(request, "until")
        if since is not None and until is not None and since > until:
            raise InvalidParameter(f"`since` time ({since}) cannot be after `until` time ({until})")
        resume: dict[str, Any] = {
            "op": "events",
            "filters": matches.wanted,
            "until": until,
            "chunked": not request.version_http10,
        }
        async with self._service.events.subscribe() as live:
            past = since is not None or until is not None
            backlog = self._service.events.history(since or 0, until) if past else []
            if resume["chunked"]:
                # Until the first is sent, the next daemon would begin as we do.
                resume["last"] = self._service.events.last_ns if since is None else since - 1
                if since is None:
                    resume["number"] = self._service.events.last_number
                lasting = await begin_lasting(request, self._service.agent, resume)
                if lasting is not None:
                    await self._service.send_events(lasting, resume, live, backlog)
                    part(request)
                    return GivenAway()
            response = await stream_response(request)
            await while_connected(request, _send_plainly(response, _bounded(live, backlog, until), matches))
            return response


def _info_for(version: tuple[int, int], info: dict[str, Any]) -> dict[str, Any]:
    """Return the answer of GET /info with the fields that clients of that version know."""
    info = dict(info)
    if version < (1, 25):
        info["ExecutionDriver"] = "<not supported>"
        info["SecurityOptions"] = [
            option.removeprefix("name=").partition(",")[0] for option in info.get("SecurityOptions") or ()
        ]
    if version < (1, 49):
        for name in ("ContainerdCommit", "RuncCommit", "InitCommit"):
            info[name] = {**info[name], "Expected": info[name]["ID"]}
        info.pop("FirewallBackend", None)
    return info


async def _send_plainly(response: web.StreamResponse, events: AsyncIterator[Event], matches: "EventFilter") -> None:
    with contextlib.suppress(ConnectionError):
        async for event in events:
            if matches(event):
                await response.write(_line(event))
        await response.write_eof()


def _line(event: Event) -> bytes:
    return json.dumps(event.to_api(), separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


async def _bounded(live: AsyncIterator[Event], backlog: list[Event], until: int | None) -> AsyncIterator[Event]:
    """Yield the backlog, then what happens, until the time given (nanoseconds)."""
    for event in backlog:
        yield event
    try:
        deadline = None if until is None else until / 1e9 - datetime.now(UTC).timestamp()
        async with asyncio.timeout(None if deadline is None else max(deadline, 0)):
            async for event in live:
                yield event
    except TimeoutError:
        return


def _timestamp(request: ApiRequest, name: str) -> int | None:
    """Read unix seconds with an optional fraction as nanoseconds."""
    text = request.query.get(name, "")
    if not text:
        return None
    match = re.fullmatch(r"(-?\d+)(?:\.(\d{1,9}))?", text)
    if match is None:
        raise InvalidParameter(f'strconv.ParseInt: parsing "{text}": invalid syntax')
    return int(match[1]) * 1_000_000_000 + int((match[2] or "").ljust(9, "0"))


class EventFilter:
    """Which events a client wants; several values of one name are alternatives, several names all have to match."""

    def __init__(self, wanted: Mapping[str, list[str]]) -> None:
        self.wanted = {name: list(values) for name, values in wanted.items()}

    def __call__(self, event: Event) -> bool:
        return all(self._one(name, values, event) for name, values in self.wanted.items() if values)

    def _one(self, name: str, values: list[str], event: Event) -> bool:
        attributes = event.attributes
        if name == "type":
            return event.type in values
        if name == "event":
            # exec_create, exec_start and health_status carry a detail after a colon.
            return event.action in values or event.action.split(":", 1)[0] in values
        if name == "scope":
            return event.scope in values
        if name == "label":
            return any(_label_matches(value, attributes) for value in values)
        if name == "image":
            refs = (
                {event.actor_id, attributes.get("name", "")} if event.type == "image" else {attributes.get("image", "")}
            )
            return any(value in refs or any(_bare(ref) == _bare(value) for ref in refs if ref) for value in values)
        if event.type != name:
            return False
        names = {event.actor_id, attributes.get("name", "")} - {""}
        return any(value in names or event.actor_id.startswith(value) for value in values)


def _label_matches(wanted: str, labels: Mapping[str, str]) -> bool:
    key, equals, value = wanted.partition("=")
    return key in labels and (not equals or labels[key] == value)


def _bare(reference: str) -> str:
    """Return an image reference without its tag."""
    head, slash, tail = reference.rpartition("/")
    return head + slash + tail.split(":", 1)[0]


def plugins_info() -> dict[str, Any]:
    """Return the Plugins object of GET /info as far as drivers are built in."""
    return {
        "Volume": ["local"],
        "Network": ["bridge", "host", "ipvlan", "macvlan", "null"],
        "Authorization": None,
        "Log": ["json-file", "local", "none"],
    }


def machine_info() -> dict[str, Any]:
    """Return the part of GET /info that describes the machine."""
    cgroup = sysinfo.cgroup_facts()
    system, release = sysinfo.operating_system()
    return {
        "MemoryLimit": cgroup.memory_limit,
        "SwapLimit": cgroup.swap_limit,
        "CpuCfsPeriod": cgroup.cpu_period,
        "CpuCfsQuota": cgroup.cpu_quota,
        "CPUShares": cgroup.cpu_shares,
        "CPUSet": cgroup.cpu_set,
        "PidsLimit": cgroup.pids_limit,
        "OomKillDisable": cgroup.oom_kill_disable,
        "IPv4Forwarding": sysinfo.ipv4_forwarding(),
        "BridgeNfIptables": Path("/proc/sys/net/bridge/bridge-nf-call-iptables").exists(),
        "BridgeNfIp6tables": Path("/proc/sys/net/bridge/bridge-nf-call-ip6tables").exists(),
        "NFd": sysinfo.open_files(),
        "SystemTime": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "CgroupVersion": cgroup.version,
        "KernelVersion": sysinfo.kernel_version(),
        "OperatingSystem": system,
        "OSVersion": release,
        "OSType": "linux",
        "Architecture": sysinfo.architecture(),
        "NCPU": sysinfo.cpu_count(),
        "MemTotal": sysinfo.memory_total(),
        "SecurityOptions": sysinfo.security_options(),
        "Plugins": plugins_info(),
        "GenericResources": None,
        "ProductLicense": "Apache-2.0",
        "Isolation": "",
        "ExperimentalBuild": False,
        "ServerVersion": ENGINE_VERSION,
        "Swarm": {
            "NodeID": "", "NodeAddr": "", "LocalNodeState": "inactive", "ControlAvailable": False, "Error": "",
            "RemoteManagers": None,
        },
        "CDISpecDirs": [],
    }  # fmt: skip
