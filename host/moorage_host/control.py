"""The machine from the user's point of view: start until the engine answers, stop in order, notice everything in between.

One `Controller` per backend. Its `run` task watches libvirt, the SSH connection and the engine, and mends what it can.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from moorage_contract import agent as protocol
from moorage_contract.version import ENGINE_VERSION

from moorage_host import docker_context, settings
from moorage_host.api import BackendProcess, MachineStatus, PublishedPort
from moorage_host.berth import Berth, may_change
from moorage_host.engine_config import EngineConfig
from moorage_host.errors import ErrorCode, HostError
from moorage_host.link.agent import Held
from moorage_host.machine import console
from moorage_host.machine.lifecycle import RUNNING, State
from moorage_host.machine.machine import Machine, Power
from moorage_host.machine.place import Progress
from moorage_host.machine.preparing import Preparations
from moorage_host.paths import Paths
from moorage_host.ports import prepare
from moorage_host.session import Session
from moorage_host.settings import Settings
from moorage_host.standing import Standing
from moorage_host.ways import Ways

logger = logging.getLogger(__name__)

READY_DEADLINE = 180.0
STOP_TIMEOUT = 15.0  # seconds that containers get, as with dockerd; then the machine gets a little longer to power off
CLOCK_PERIOD = 10.0
STEADY = 1.0
EAGER = 0.05  # until the guest answers
PATIENT = 0.15  # until the engine does: each question costs the guest a little
LOOK = 1.0  # seconds between questions to libvirt
PING_PERIOD = 5.0
RECONNECT = 30.0  # seconds that a question to the guest waits for the connection
ADOPTION = 10.0  # seconds that the first status waits for libvirt
MEETING_PERIOD = 0.3
RESTORED = 60.0  # seconds in which a restored guest answers; two are usual
IMPATIENCE = 20.0  # seconds after which SSH is tried though the console has not said that sshd starts


class Controller:
    """The machine of one user. Operations exclude each other; `status` and `watch` are always answered."""

    def __init__(self, paths: Paths, docker_config: Path, machine: Machine | None = None) -> None:
        self._paths = paths
        self._docker_config = docker_config
        self._settings = Settings()
        self._booted_with: Settings | None = None
        self._restored = False  # and the guest's engine has not answered since
        self._unproven = False  # found running, has not answered yet: libvirt may find that it was never whole
        self._berth = Berth(paths, machine)
        self._standing = Standing()
        self._config_problem = ""
        self._engine: protocol.Status | None = None
        self._ports: list[PublishedPort] = []
        self._ways = Ways(paths, self._ports_changed)
        self._prepared: asyncio.Task[None] | None = None
        self._preparations = Preparations()  # of coming starts
        self._reconciled = False
        self._operation = asyncio.Lock()
        self._doing = ""
        self._adopted = asyncio.Event()
        self._known = False  # whether libvirt could be asked what an earlier backend has left
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started = time.time()
        self._last_look = self._last_ping = self._last_meeting = self._last_clock = self._boot_began = 0.0
        self.config = EngineConfig(paths.engine_config)

    # -- what others read

    @property
    def state(self) -> State:
        return self._standing.state

    @property
    def busy(self) -> bool:
        """Whether something is going on that a backend without clients must not walk away from."""
        return self._operation.locked() or self.state in RUNNING or self._preparations.busy

    @property
    def paths(self) -> Paths:
        return self._paths

    def status(self) -> MachineStatus:
        """Where everything stands now."""
        machine = self._berth.machine
        record = machine.record() if machine is not None else None
        running = self.state in RUNNING
        name = self._settings.name
        return MachineStatus(
            state=self.state.value,
            since=self._standing.since,
            step=self._standing.step,
            message=self._standing.message,
            warning=self._standing.warning,
            name=name,
            accelerator=record.accelerator if record and running else "",
            accelerator_note=record.accelerator_note if record and running else "",
            libvirt_uri=machine.connection.uri if machine else "",
            cpus=self._settings.cpus,
            memory_mib=self._settings.memory_mib,
            disk_gib=self._settings.disk_gib,
            restart_needed=running
            and self._booted_with is not None
            and _resources(self._booted_with) != _resources(self._settings),
            ssh_port=machine.known_ssh_port() if machine and running else 0,
            docker_socket=str(self._paths.docker_socket),
            docker_context=name if docker_context.exists(self._docker_config, name) else "",
            image_version=record.engine_version if record else "",
            engine=self._engine,
            ports=self._ports,
            config_pending=self.config.pending,
            config_problem=self._config_problem,
            backend=BackendProcess(pid=os.getpid(), version=ENGINE_VERSION, since=self._started),
        )

    async def watch(self) -> AsyncIterator[MachineStatus]:
        """The status now and after every change, for ever; changes in quick succession may come as one."""
        async for _change in self._standing.changes():
            yield self.status()

    # -- settings

    def settings(self) -> Settings:
        """The settings as they are on disk now; HostError when they cannot be read."""
        found = settings.load(self._paths.settings)
        if found != self._settings:
            self._settings = found
            self._standing.tell()
        return found

    def change_settings(self, changes: dict[str, Any]) -> Settings:
        """Change settings; they hold from the machine's next start on."""
        found = settings.changed(self.settings(), changes)
        may_change(self._settings, found, present=self.state is not State.ABSENT)
        settings.save(found, self._paths.settings)
        self._settings = found
        self._standing.tell()
        return found

    # -- operations

    async def start(self, progress: Progress) -> None:
        """Start the machine and wait until the engine answers. Idempotent. Raises HostError; a machine that booted stays up."""
        async with self._exclusively("starting the machine"):
            await self._start(progress)

    async def _start(self, progress: Progress) -> None:
        if self.state is State.READY:
            self._make_context()
            return
        found = self.settings()
        if self.state not in RUNNING:
            await self._preparations.end()
            machine = self._machine_for(found)
            self._standing.move(State.STARTING)
            self._standing.message = self._standing.warning = self._config_problem = ""
            try:
                self._standing.say("starting the machine", progress)
                started = await machine.start(found, lambda step: self._standing.say(step, progress))
            except BaseException as error:
                self._fail(error)
                raise
            self._standing.warning = started.warning
            self._unproven = False
            self._restored = started.restored
            self._booted_with = found
            self._boot_began = time.monotonic()
            self._standing.say("waiting for the guest", progress)
            self._prepared = asyncio.create_task(asyncio.to_thread(prepare), name="imports for the ports")
        elif self.state is State.PAUSED:
            await self._go_on(progress)
        self._wake.set()
        await self._standing.until(
            lambda: self.state is State.READY or self.state not in RUNNING, READY_DEADLINE, progress
        )
        if self._unproven and self.state not in RUNNING:
            self._unproven = False
            await self._start(progress)
            return
        if self._standing.state is not State.READY:
            if self._restored:
                self._machine_for(found).distrust_saved()
            raise self._not_ready()
        self._make_context()
        self._standing.say("", progress)

    async def _go_on(self, progress: Progress) -> None:
        """Let a paused machine run again; the watching task sees to the rest."""
        self._standing.say("the machine was paused: letting it go on", progress)
        await self._machine_for(self._settings).resume(self._settings.name)
        self._last_look = 0.0

    def _not_ready(self) -> HostError:
        if self.state not in RUNNING:
            return HostError(
                self._standing.message or "the machine stopped while it started", hint="see `moorage console`"
            )
        where = (
            "the guest booted, but the engine does not answer"
            if self.state is State.BOOTED
            else "the guest does not answer"
        )
        said = self._engine.daemon.last_error if self._engine is not None else None
        detail = f": {said or self._standing.message}" if said or self._standing.message else ""
        return HostError(
            f"{where} within {READY_DEADLINE:.0f} s{detail}",
            hint="see `moorage console` and `moorage logs`",
            code=ErrorCode.TIMEOUT,
        )

    async def stop(self, progress: Progress, timeout: float = STOP_TIMEOUT) -> None:
        """Stop the containers (each by its stop signal), then the machine. Idempotent."""
        async with self._exclusively("stopping the machine"):
            await self._stop(progress, timeout)
            if self._berth.machine is not None and self.state is State.STOPPED:  # nobody waits for it now
                self._preparations.begin(self._berth.machine.preparation())

    async def _stop(self, progress: Progress, timeout: float) -> None:
        if self.state not in RUNNING:
            return
        machine = self._machine_for(self._settings)
        if self.state is State.PAUSED:
            await self._go_on(progress)
        self._standing.move(State.STOPPING)
        self._standing.say("stopping the containers and the machine", progress)
        await self._ask_to_power_off(machine, timeout)
        if not await machine.goes_off(self._settings.name, timeout + 30):
            self._standing.say("the guest does not power off by itself: its power is cut", progress)
            await machine.kill(self._settings.name)
        self._went_off("")

    async def _ask_to_power_off(self, machine: Machine, timeout: float) -> None:
        if (session := self._ways.session) is not None and session.connected:
            with contextlib.suppress(HostError):
                await session.agent(protocol.Poweroff(timeout=timeout), protocol.Done, timeout=timeout + 15)
                return
            with contextlib.suppress(HostError):
                await session.run("poweroff", timeout=10)
                return
        await machine.press_power_button(self._settings.name)

    async def restart(self, progress: Progress) -> None:
        """Stop in order, then start."""
        async with self._exclusively("restarting the machine"):
            await self._stop(progress, STOP_TIMEOUT)
            await self._start(progress)

    async def kill(self, progress: Progress) -> None:
        """Cut the machine's power at once, whatever else is going on."""
        await self._adopted.wait()
        self._unproven = False
        machine = self._machine_for(self._settings)
        self._standing.say("cutting the machine's power", progress)
        await self._preparations.end()
        await machine.kill(self._settings.name)
        self._went_off("its power was cut")

    async def delete(self, progress: Progress) -> None:
        """Remove the machine with its disk, keys and docker context. Idempotent."""
        async with self._exclusively("deleting the machine"):
            await self._stop(progress, STOP_TIMEOUT)
            self._standing.say("removing the machine and its disk", progress)
            await self._preparations.end()
            await self._machine_for(self.settings()).delete(self._settings.name)
            docker_context.remove(self._docker_config, self._settings.name)
            self._standing.warning = self._standing.message = ""
            self._standing.move(State.ABSENT)
            self._standing.say("", progress)

    @contextlib.asynccontextmanager
    async def _exclusively(self, what: str) -> AsyncIterator[None]:
        if self._operation.locked():
            raise HostError(
                f"another command is {self._doing}",
                hint="wait for it (moorage status shows its progress)",
                code=ErrorCode.CONFLICT,
            )
        async with self._operation:
            self._doing = what
            try:
                await self._adopted.wait()
                yield
            finally:
                self._doing = self._standing.step = ""
                self._standing.tell()

    async def guest(self) -> Session:
        """The running guest, waited for while a machine starts or the connection comes back; HostError when there is none."""
        await self._adopted.wait()
        if self.state in (State.STARTING, State.BOOTED) and not self._ways.connected:
            await self._standing.until(
                lambda: self._ways.connected or self.state not in RUNNING, RECONNECT, lambda _step: None
            )
        if self._ways.session is None or not self._ways.connected:
            raise HostError(
                f"the machine is {self.state.value}: there is no way into the guest",
                hint="moorage start",
                code=ErrorCode.UNAVAILABLE,
            )
        return self._ways.session

    async def refresh(self) -> MachineStatus:
        """The status with the agent asked anew, when it can be; what an earlier backend left has been found by then."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._adopted.wait(), ADOPTION)
        if (session := self._ways.session) is not None and session.connected:
            with contextlib.suppress(HostError):
                self._engine = await session.agent(protocol.StatusParams(), protocol.Status, timeout=5)
        return self.status()

    # -- the watching task

    async def run(self) -> None:
        """Take over a machine that runs already, then watch for ever. Cancel to end; the machine goes on."""
        self._loop = asyncio.get_running_loop()
        trouble = ""
        try:
            while True:
                try:
                    await self._look()
                    if trouble and self._standing.message == trouble:
                        self._standing.note("")
                    trouble = ""
                except HostError as error:
                    trouble = str(error)
                    self._standing.note(trouble)
                    self._lost_if_gone()
                except Exception as error:
                    fault = f"the backend failed while it watched the machine: {error!r}"
                    if fault != self._standing.message:
                        logger.exception("watching the machine")
                    self._standing.note(fault)
                pause = STEADY if trouble else self._pause()
                self._wake.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), pause)
        finally:
            self._close_session()
            await self._preparations.end()
            await self._berth.close()

    def _pause(self) -> float:
        if time.monotonic() - self._boot_began > READY_DEADLINE:
            return STEADY
        return {State.STARTING: EAGER, State.BOOTED: PATIENT}.get(self.state, STEADY)

    async def _look(self) -> None:
        if not self._known:
            try:
                self._known = self.state in RUNNING or await self._adopt()
            finally:
                self._adopted.set()  # who waits for that learns from what it asks next why it could not be
        if self.state in RUNNING and self._boot_began and self.state is not State.STOPPING:
            now = time.monotonic()
            if now - self._last_look >= LOOK:
                self._last_look = now
                if not await self._still_on():
                    return
            await self._drive(now)

    async def _adopt(self) -> bool:
        """Find the machine that an earlier backend left, on or off. False when a command came in between, which knows better."""
        again = self._adopted.is_set()  # libvirt could not be asked before: commands no longer wait for this
        found = self.settings()
        if not self._paths.machine_record.exists():
            return True
        machine = self._machine_for(found)
        if not self._preparations.busy:
            await machine.end_preparation()
        power = await machine.power(found.name)
        if again and self._operation.locked():
            return False
        if power is Power.PAUSED and "starting" in await machine.reason(found.name):
            # The backend before died while it restored the machine, in which nothing has run yet, nor ever will.
            logger.info("cutting the power of the machine %s that was being restored", found.name)
            await machine.kill(found.name)
            power = await machine.power(found.name)
        if power in (Power.RUNNING, Power.PAUSED):
            logger.info("taking over the running machine %s", found.name)
            self._standing.set(State.STARTING)
            self._unproven = True
            self._boot_began = time.monotonic() - IMPATIENCE
        elif power is not Power.ABSENT:
            self._standing.set(State.STOPPED)
        return True

    async def _still_on(self) -> bool:
        machine, began = self._machine_for(self._settings), self._boot_began
        power = await machine.power(self._settings.name)
        if power is Power.RUNNING:
            if self.state is State.PAUSED:
                self._standing.move(State.BOOTED if self._ways.connected else State.STARTING)
                self._standing.message = ""
            return True
        if self._operation.locked() and self.state is State.STARTING and not self._boot_began:
            return True
        reason = await machine.reason(self._settings.name)
        if self._boot_began != began:
            return False  # a command came in between: this is told of the machine as it was before
        self._unproven = self._unproven and "daemon" in reason
        if power is Power.PAUSED:
            await self._paused(machine, reason)
        elif power is Power.CRASHED:
            self._went_off(f"the machine crashed ({reason})", failed=True)
        else:
            self._went_off(
                "the machine was switched off from inside"
                if "shutdown" in reason or "destroyed" in reason
                else f"the machine went off ({reason})"
            )
        return False

    async def _paused(self, machine: Machine, reason: str) -> None:
        """A machine that stopped by itself: an accelerator that gave up is replaced by tcg, a full disk is waited out."""
        accused = not any(word in reason for word in ("user", "error", "save", "migration", "starting"))
        warning = await machine.blame(f"it stopped the running machine, {reason}") if accused else None
        if warning is None:
            if self.state is not State.PAUSED:
                self._standing.move(State.PAUSED)
                self._standing.message = (
                    f"the machine is {reason}; it goes on when the host's disk has space again"
                    if "error" in reason
                    else f"the machine is {reason}; `moorage start` lets it go on"
                )
                self._standing.tell()
            if "error" in reason:
                await machine.resume(self._settings.name)
            return
        logger.warning("%s", warning)
        # Whoever waits for this machine to start holds the lock already and simply waits on.
        async with contextlib.AsyncExitStack() as stack:
            if not self._operation.locked():
                await stack.enter_async_context(self._exclusively("replacing the accelerator"))
            await self._replace(machine, warning)

    async def _replace(self, machine: Machine, warning: str) -> None:
        """Start anew without the accelerator, or the saved state, that `machine` has been blamed for."""
        self._close_session()
        self._standing.set(State.STARTING)
        self._boot_began = 0.0
        self._standing.say(warning, None)
        try:
            await machine.kill(self._settings.name)
            started = await machine.start(self._settings, lambda step: self._standing.say(step, None), use_saved=False)
        except BaseException as error:
            self._fail(error)
            raise
        self._restored = started.restored
        self._boot_began = time.monotonic()
        self._standing.warning = warning
        self._standing.tell()

    async def _drive(self, now: float) -> None:
        """One step further: connect, meet the agent, reach the engine, keep the clock."""
        session = self._session_for()
        if not session.connected:
            if self._lost_if_gone():
                self._standing.note("the connection to the guest broke; connecting again")
            started = console.said(self._paths.console_log, console.SSHD_STARTS)
            if not started and now - self._boot_began < IMPATIENCE:
                return
            try:
                await session.connect()
            except HostError as error:
                self._standing.note(error.message)
                if self._restored and now - self._boot_began > RESTORED:
                    self._machine_for(self._settings).distrust_saved()
                    await self._boot_instead(f"the restored machine does not answer within {RESTORED:.0f} s")
                return
            self._standing.move(State.BOOTED)
            self._unproven = False
            self._standing.message = ""
            self._standing.say("waiting for the engine", None)
            await self._meet_agent(session)
        elif (not self._reconciled or self._engine is None) and now - self._last_meeting >= MEETING_PERIOD:
            await self._meet_agent(session)
        runs = self._engine is not None and self._engine.daemon.state is protocol.DaemonState.RUNNING
        if (self.state is State.BOOTED and runs) or now - self._last_ping >= PING_PERIOD:
            answered = await session.ping()
            self._last_ping = time.monotonic()
            if answered and self.state is State.BOOTED:
                self._standing.move(State.READY)
                self._standing.step = self._standing.message = ""
                if self._restored:
                    self._restored = False
                    self._machine_for(self._settings).trust_saved()
                self._standing.tell()
                self._ways.follow_ports()
            elif not answered and self.state is State.READY and session.connected:
                self._standing.move(State.BOOTED)
                self._standing.note("the engine does not answer")
            if not answered and self.state is State.BOOTED and session.connected and not await session.answers():
                self._standing.note("the guest does not answer over SSH: trying another connection")
                await session.renew()
        if now - self._last_clock >= CLOCK_PERIOD and self._engine is not None:
            self._last_clock = now
            await session.set_clock()

    def _lost_if_gone(self) -> bool:
        """Say that there is no way into the guest, once there is none; whether that was news."""
        news = self.state in (State.BOOTED, State.READY) and not self._ways.connected
        if news:
            self._engine = None
            self._standing.move(State.STARTING)
        return news

    async def _meet_agent(self, session: Session) -> None:
        """Learn the agent's status and settle daemon.json; quiet while the agent is not there yet."""
        self._last_meeting = time.monotonic()
        try:
            self._engine = await session.agent(protocol.StatusParams(), protocol.Status, timeout=10)
            session.watch_agent(self._agent_said, self._agent_silent)
            if not self._reconciled:
                self._config_problem = await self.config.reconcile(session)
                self._reconciled = True
        except Held:
            await self._let_go(session)
            return
        except HostError as error:
            logger.debug("agent: %s", error)
            return
        self._standing.tell()

    async def _let_go(self, session: Session) -> None:
        """Release a held guest."""
        try:
            await session.release()
        except HostError as error:
            self._standing.note(f"the guest cannot go on: {error.message}")
        self._last_meeting = 0.0

    async def _boot_instead(self, why: str) -> None:
        """Give the saved state up and boot."""
        machine = self._machine_for(self._settings)
        warning = f"{why}: the machine boots instead"
        logger.warning("%s", warning)
        async with contextlib.AsyncExitStack() as stack:
            if not self._operation.locked():
                await stack.enter_async_context(self._exclusively("booting the machine"))
            await self._replace(machine, warning)

    def _agent_said(self, status: protocol.Status) -> None:
        def take() -> None:
            if self._engine is None or status.daemon != self._engine.daemon:
                self._last_ping = 0.0
                self._wake.set()
            self._engine = status
            self._standing.tell()

        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the backend ends
                self._loop.call_soon_threadsafe(take)

    def _agent_silent(self) -> None:
        def take() -> None:
            self._engine = None  # met again by the watching task
            self._wake.set()

        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(take)

    def _session_for(self) -> Session:
        machine, name = self._machine_for(self._settings), self._settings.name
        return self._ways.open(lambda: machine.ssh_port(name))

    def _ports_changed(self, ports: list[PublishedPort]) -> None:
        def take() -> None:
            self._ports = ports
            self._standing.tell()

        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(take)

    def _close_session(self) -> None:
        self._ways.close()
        self._engine = None
        self._ports = []
        self._reconciled = False

    # -- small ones

    def _machine_for(self, found: Settings) -> Machine:
        return self._berth.machine_for(found, running=self.state in RUNNING)

    def _make_context(self) -> None:
        try:
            docker_context.create(self._docker_config, self._settings.name, self._paths.docker_socket)
        except HostError as error:
            self._standing.warning = str(error)
            self._standing.tell()

    def _went_off(self, message: str, *, failed: bool = False) -> None:
        self._close_session()
        self._boot_began = 0.0
        self._booted_with = None
        self._standing.set(State.FAILED if failed else State.STOPPED)
        self._standing.note(message)

    def _fail(self, error: BaseException) -> None:
        self._close_session()
        self._boot_began = 0.0
        there_is_one = self._paths.disk.exists() or self._paths.remote_record.exists()
        self._standing.set(State.FAILED if there_is_one else State.ABSENT)
        self._standing.note(str(error) if isinstance(error, HostError) else "the start was interrupted")


def _resources(chosen: Settings) -> Settings:
    """What a running machine was started with; how it was started does not matter to it."""
    return chosen.model_copy(update={"saved_start": "auto"})
