"""Exec sessions: further processes in running containers.

Their streams and exit codes are the shim's; here is what was asked for and what became of it. Records lie below the
exec root, so that a daemon that comes back knows the sessions that outlived it.
"""

import asyncio
import contextlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moorage_guest.engine.record import Container
from moorage_guest.engine.shims import ExecRequest, OciError, ShimError, ShimGone, ShimStatus
from moorage_guest.engine.states import Status
from moorage_guest.engine.unmanaged import check_managed
from moorage_guest.errors import Conflict, EngineError, NotFound, SystemError_
from moorage_guest.oci import cgroups
from moorage_guest.oci.spec import ExecSpecRequest, build_exec_process
from moorage_guest.shim import kernel

if TYPE_CHECKING:
    from moorage_guest.engine.containers import Containers

log = logging.getLogger(__name__)

#: Seconds that a resize waits for a start which the client has been told of: as long as dockerd waits.
START_PATIENCE = 10.0

#: The exit code of a session whose start was lost with its daemon.
UNKNOWN_EXIT = 255

#: How the record of a session begins that has not been started.
_NOT_STARTED = b'{"started": 0'

#: dockerd's words around the runtime's; the client reads the reason out of it.
FAILED = "OCI runtime exec failed: {}: unknown"


@dataclass(frozen=True)
class ExecConfig:
    """What POST /containers/{id}/exec asks for."""

    args: tuple[str, ...]
    tty: bool = False
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    env: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    privileged: bool = False
    detach_keys: str = ""
    console_size: tuple[int, int] | None = None


@dataclass(eq=False)
class Exec:
    """One session. ``exit_code`` is None until it has ended."""

    id: str
    container_id: str
    config: ExecConfig
    pid: int = 0
    running: bool = False
    started: bool = False
    exit_code: int | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    #: Set once it runs, or has ended: it can be told to do something, or not any more.
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    internal: bool = False
    #: The shim is asked to have the runtime loaded for the start; whether it has.
    loading: "asyncio.Task[None] | None" = None
    loaded: bool = False

    def to_record(self) -> dict[str, Any]:
        """Return what a later daemon needs; its first word is changed in place when the session starts."""
        return {
            "started": int(self.started), "version": 1, "id": self.id, "container_id": self.container_id,
            "config": vars(self.config),
        }  # fmt: skip

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Exec":
        """Rebuild from `to_record`'s output. Raises KeyError or TypeError when it makes no sense."""
        config = dict(record["config"])
        for name in ("args", "env"):
            config[name] = tuple(config[name])
        if config["console_size"] is not None:
            config["console_size"] = tuple(config["console_size"])
        return cls(record["id"], record["container_id"], ExecConfig(**config), started=bool(record.get("started")))

    def to_api(self) -> dict[str, Any]:
        """Return the answer of GET /exec/{id}/json."""
        process: dict[str, Any] = {
            "tty": self.config.tty,
            "entrypoint": self.config.args[0],
            "arguments": list(self.config.args[1:]),
            "privileged": self.config.privileged,
        }
        if self.config.user:
            process["user"] = self.config.user
        return {
            "ID": self.id,
            "Running": self.running,
            "ExitCode": self.exit_code,
            "ProcessConfig": process,
            "OpenStdin": self.config.attach_stdin,
            "OpenStderr": self.config.attach_stderr,
            "OpenStdout": self.config.attach_stdout,
            "CanRemove": self.exit_code is not None,
            "ContainerID": self.container_id,
            "DetachKeys": self.config.detach_keys,
            "Pid": self.pid,
        }


def find(engine: "Containers", exec_id: str) -> Exec:
    """Return a session by its id. Raises NotFound."""
    session = engine.execs.get(exec_id)
    if session is None:
        raise NotFound(f"No such exec instance: {exec_id}")
    return session


def _link_environment(engine: "Containers", container: Container) -> tuple[str, ...]:
    """Return what links give, as the container itself has it; nothing of those who do not run any more."""
    from moorage_guest.engine import namespaces

    if not container.own_network:
        return ()
    try:
        return namespaces.link_environment(engine, container)
    except (NotFound, Conflict):
        return ()


def shown(arguments: Sequence[str]) -> str:
    """Return a command as events show it: dockerd's form, the program and a blank before whatever follows."""
    return f"{arguments[0]} {' '.join(arguments[1:])}"


def check_container(container: Container, reference: str = "") -> None:
    """Raise Conflict when nothing can be executed in the container now; ``reference`` is what the client calls it."""
    check_managed(container)
    if not container.status.running:
        raise Conflict(f"container {container.id} is not running")
    if container.status == Status.PAUSED:
        raise Conflict(f"Container {reference or container.name} is paused, unpause the container before exec")
    if container.status == Status.RESTARTING:
        raise Conflict(f"container {container.id} is restarting, wait until the container is running")


def create(engine: "Containers", container: Container, config: ExecConfig, reference: str = "") -> Exec:
    """Note a session to start later. ``reference`` is what the client calls the container."""
    check_container(container, reference)
    session = Exec(secrets.token_hex(32), container.id, config)
    _keep(engine, session)
    engine.execs[session.id] = session
    container.exec_ids.append(session.id)
    # The start is about to come.
    engine.task(asyncio.to_thread(cgroups.ready_moves), f"make ready for exec {session.id[:12]}")
    session.loading = engine.task(
        _load_runtime(engine, container, session), f"load the runtime for exec {session.id[:12]}"
    )
    engine.publish(container, f"exec_create: {shown(config.args)}", execID=session.id)
    return session


async def _load_runtime(engine: "Containers", container: Container, session: Exec) -> None:
    """Have the runtime loaded while the client reads our answer and asks for the start: a third of what it takes."""
    with contextlib.suppress(ShimGone):  # the start will say so
        shim = await engine.shim_of(container)
        session.loaded = await shim.ready_exec(
            session.id, tty=session.config.tty, open_stdin=session.config.attach_stdin
        )


async def _is_loaded(session: Exec) -> bool:
    if session.loading is not None and not session.loading.done():
        await asyncio.wait([session.loading])
    return session.loaded


def check_startable(engine: "Containers", session: Exec) -> Container:
    """Return the session's container. Raises the API's error when it cannot be started."""
    container = engine.get(session.container_id)
    if container is None:
        raise NotFound(f"No such container: {session.container_id}")
    if session.exit_code is not None:
        raise Conflict(f"exec command {session.id} has already run")
    if session.started:
        raise Conflict(f"exec command {session.id} is already running")
    check_container(container)
    return container


def begin(engine: "Containers", session: Exec) -> None:
    """Note that a session is about to be started: a client that has been told so must never read an exit code of none."""
    session.started = True
    if not session.internal:
        _mark_started(engine, session)


async def start(
    engine: "Containers",
    container: Container,
    session: Exec,
    *,
    client: int | None = None,
    prefix: bytes = b"",
    multiplexed: bool | None = None,
    detach_keys: bytes = b"",
    console_size: tuple[int, int] | None = None,
    capture: int = 0,
) -> None:
    """Start a session; its streams are the client's (a descriptor, duplicated) from then on.

    ``multiplexed`` says whether the client expects frames, which by default it does of a session without terminal.
    Raises EngineError in dockerd's words; the session has ended then, with 126 or 127 where the command is at fault.
    """
    if not session.started:
        begin(engine, session)
    config = session.config
    request = ExecSpecRequest(
        config=container.config, host_config=container.host_config, rootfs=engine.data_root.mount(container.id) / "merged",
        hostname=container.config.hostname, args=config.args, env=config.env, user=config.user,
        working_dir=config.working_dir, tty=config.tty, privileged=config.privileged,
        console_size=console_size or config.console_size, defaults=engine.settings.spec_defaults(),
        extra_env=_link_environment(engine, container),
    )  # fmt: skip
    engine.publish(container, f"exec_start: {shown(config.args)}", execID=session.id)
    try:
        process = await asyncio.to_thread(build_exec_process, request)
        shim = await engine.shim_of(container)
        started = await shim.exec(
            ExecRequest(
                exec_id=session.id, process=process, tty=config.tty, open_stdin=config.attach_stdin, client=client,
                prefix=prefix, stdout=config.attach_stdout, stderr=config.attach_stderr, multiplexed=not config.tty if multiplexed is None else multiplexed,
                detach_keys=detach_keys if config.tty else b"", capture=capture,
                ready=await _is_loaded(session),
            )
        )  # fmt: skip
    except OciError as error:
        _failed(session, 127 if error.kind == "not_found" else 126)
        raise _worded(config.args[0], error) from error
    except ShimGone as error:
        _failed(session, 128)
        raise Conflict(f"container {container.id} is not running") from error
    except EngineError:
        _failed(session, 126)
        raise
    if session.exit_code is None:
        session.running = True
        session.pid = started.pid
    session.settled.set()


def abandon(session: Exec) -> None:
    """Give up a session whose client left before it was started."""
    _failed(session, 128)


def _failed(session: Exec, code: int) -> None:
    session.running = False
    session.exit_code = code
    session.ended.set()
    session.settled.set()


def _worded(command: str, error: OciError) -> EngineError:
    from moorage_guest.engine.starting import runtime_error

    return runtime_error(FAILED, "exec failed", command, error)


def ended(engine: "Containers", container: Container, exec_id: str, code: int, at_ns: int) -> None:
    """Note the end of a session and publish exec_die. Quiet for an unknown or ended one."""
    session = engine.execs.get(exec_id)
    if session is None or not session.started or session.exit_code is not None:
        return
    session.exit_code = code
    session.running = False
    session.ended.set()
    session.settled.set()
    engine.publish(container, "exec_die", time_ns=at_ns, execID=exec_id, exitCode=str(code))


def begun(engine: "Containers", exec_id: str, pid: int) -> None:
    """Note the process of a session whose start an earlier daemon asked for. Quiet for an unknown or ended one."""
    session = engine.execs.get(exec_id)
    if session is not None and session.exit_code is None:
        session.pid = pid


async def run_captured(
    engine: "Containers", container: Container, exec_id: str, args: list[str], *, timeout: float, capture: int
) -> tuple[int | None, str]:
    """Run a command without a client; returns its exit code (None when it took too long and was killed) and output."""
    session = Exec(
        exec_id, container.id, ExecConfig(tuple(args), attach_stdout=True, attach_stderr=True), internal=True
    )
    engine.execs[exec_id] = session
    try:
        shim = await engine.shim_of(container)
        await start(engine, container, session, capture=capture)
        late = False
        try:
            async with asyncio.timeout(timeout):
                await session.ended.wait()
        except TimeoutError:
            late = True
            with contextlib.suppress(ShimError):
                await shim.signal(exec_id, 9)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(10):
                    await session.ended.wait()
        output = await shim.exec_output(exec_id)
        with contextlib.suppress(ShimError):
            await shim.forget_exec(exec_id)
        text = output[: capture - 1].decode("utf-8", "replace") + ("..." if len(output) >= capture else "")
        return (None if late else session.exit_code), text
    finally:
        engine.execs.pop(exec_id, None)


# -- records ------------------------------------------------------------------------------------------------------------


def folder(engine: "Containers", container_id: str) -> Path:
    """Return where the sessions of a container are kept."""
    return engine.exec_root.root / "exec" / container_id


def _keep(engine: "Containers", session: Exec) -> None:
    place = folder(engine, session.container_id)
    path = place / f"{session.id}.json"
    content = json.dumps(session.to_record()).encode()
    try:
        kernel.replace_small(str(path), content)
    except FileNotFoundError:  # the container's first
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        kernel.replace_small(str(path), content)


def _mark_started(engine: "Containers", session: Exec) -> None:
    """Note in a session's record that it has been started: one byte, which is there or not whenever the daemon is killed."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(folder(engine, session.container_id) / f"{session.id}.json", os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.pread(descriptor, len(_NOT_STARTED), 0) == _NOT_STARTED:
                os.pwrite(descriptor, b"1", len(_NOT_STARTED) - 1)
                return
        finally:
            os.close(descriptor)
    _keep(engine, session)  # a daemon of an earlier version has written it


def drop_all(engine: "Containers", container: Container) -> None:
    """Forget the records on disk: the container has ended. In memory stay those that ran, until it goes or starts anew."""
    for exec_id in list(container.exec_ids):
        session = engine.execs.get(exec_id)
        if session is not None and not session.started:
            del engine.execs[exec_id]
            container.exec_ids.remove(exec_id)
    shutil.rmtree(folder(engine, container.id), ignore_errors=True)


def recorded(engine: "Containers") -> set[str]:
    """Return the containers of which sessions are recorded. Blocks."""
    try:
        return {path.name for path in (engine.exec_root.root / "exec").iterdir()}
    except FileNotFoundError:
        return set()


def restore(engine: "Containers", container: Container, status: ShimStatus) -> None:
    """Take back the sessions of a live container, with what its shim knows of them."""
    place = folder(engine, container.id)
    for path in sorted(place.glob("*.json")):
        try:
            session = Exec.from_record(json.loads(path.read_text()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("record of an exec session %s is damaged and left out: %r", path, error)
            continue
        known = status.execs.get(session.id)
        if known is not None:
            session.started = True
            session.pid = known.pid
            session.running = (
                known.exit_code is None
            )  # with no pid yet the runtime is at it: its end, or its pid, is told
            if known.exit_code is not None:
                session.exit_code = known.exit_code
                session.ended.set()
                engine.publish(
                    container, "exec_die", time_ns=known.at_ns, execID=session.id, exitCode=str(known.exit_code)
                )
        elif session.started:  # its daemon was killed before it had told the shim
            _failed(session, UNKNOWN_EXIT)
        engine.execs[session.id] = session
        container.exec_ids.append(session.id)


async def resize(engine: "Containers", session: Exec, rows: int, columns: int) -> None:
    """Set the size of a session's terminal; of one that is being started, as soon as it runs.

    Raises the API's error when it does not run.
    """
    if session.started and not session.running and session.exit_code is None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_PATIENCE):
                await session.settled.wait()
    container = engine.get(session.container_id)
    if container is None or not session.running:
        raise Conflict(f"cannot resize a stopped container: exec {session.id} is not running")
    if not session.config.tty:
        return
    shim = await engine.shim_of(container)
    try:
        await shim.resize(session.id, rows, columns)
    except ShimError as error:
        raise SystemError_(f"cannot resize exec {session.id}: {error}") from error
