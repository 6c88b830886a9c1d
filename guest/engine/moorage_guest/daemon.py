"""moored: command line, start-up order, signals and shutdown of the daemon.

What it is made of is put together in `graph`; this module decides when each part starts and ends.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from moorage_contract.daemon_config import DaemonConfig, add_arguments, flags_from_namespace
from moorage_contract.version import API_VERSION, ENGINE_VERSION

from moorage_guest import daemonlog, systemd
from moorage_guest.engine.shims import Agent
from moorage_guest.engineconfig import SettingsError
from moorage_guest.graph import Graph
from moorage_guest.info import masked_proxy
from moorage_guest.listeners import Listener, ListenError, TlsFiles, open_listeners
from moorage_guest.liveconfig import ConfigFileError, LiveConfig, add_own_arguments, load
from moorage_guest.paths import DataRoot, ExecRoot
from moorage_guest.pidfile import AlreadyRunning, PidFile
from moorage_guest.plugins.authorization import NoSuchPlugin
from moorage_guest.remap import RemapError, Remapped, prepare_data_root, remapped
from moorage_guest.store import StoreError

log = logging.getLogger("moored")

#: Defaults that differ when the daemon runs under dockerd's name: who starts that relies on dockerd's own.
_DOCKERD_DEFAULTS = {"live_restore": False}
_DOCKERD_CONFIG = Path("/etc/docker/daemon.json")


def parser() -> argparse.ArgumentParser:
    """Return the command line: dockerd's flags, made from the declarations of daemon.json, and a few of its own."""
    result = argparse.ArgumentParser(
        prog="moored", allow_abbrev=False, description="Container daemon that speaks the Docker Engine API."
    )
    add_own_arguments(result)
    add_arguments(result)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon until it is told to stop; return its exit status.

    Blocks. Used by the console script and, in a forked child, by the agent's zygote.
    """
    command_line = parser()
    options = command_line.parse_args(sys.argv[1:] if argv is None else list(argv))
    if options.version:
        sys.stdout.write(f"Moorage engine {ENGINE_VERSION} (Engine API {API_VERSION})\n")
        return 0
    try:
        flags = flags_from_namespace(options)
    except argparse.ArgumentTypeError as error:
        command_line.error(str(error))
    data_root = Path(str(flags.get("data-root", DaemonConfig().data_root)))
    as_dockerd = argv is None and Path(sys.argv[0]).name == "dockerd"
    usual = _DOCKERD_CONFIG if as_dockerd else DataRoot(data_root).config_file
    path = Path(options.config_file) if options.config_file else usual
    must_exist = options.config_file is not None and options.validate
    try:
        defaults = _DOCKERD_DEFAULTS if as_dockerd else {}
        if options.validate:
            load(path, flags, must_exist=must_exist)
            sys.stderr.write("configuration OK\n")
            return 0
        config = LiveConfig(path, flags, must_exist=False, defaults=defaults)
    except ConfigFileError as error:
        sys.stderr.write(f"{error}\n" if options.validate else f"failed to start daemon: {error}\n")
        return 1
    daemonlog.set_up(config.current)
    log.debug("Max Concurrent Downloads: %d", config.current.max_concurrent_downloads)
    log.debug("Max Concurrent Uploads: %d", config.current.max_concurrent_uploads)
    for notice in config.current.notices:
        log.warning("%s", notice)
    _set_proxies(config.current)
    # From here on SIGHUP must not kill: one that comes before the daemon listens to it is acted on then.
    early = _EarlySignals()
    try:
        exec_root = ExecRoot(Path(config.current.exec_root))
        with PidFile(_pid_path(config.current, exec_root), exec_root.root / "moored.lock"):
            usual_hosts = default_hosts(config.current, exec_root, as_dockerd=as_dockerd)
            remap = remapped(config.current.userns_remap)
            place = prepare_data_root(Path(config.current.data_root), remap.ids)
            return asyncio.run(_serve(config, place, exec_root, early, usual_hosts, remap))
    except (AlreadyRunning, ListenError, NoSuchPlugin, RemapError, SettingsError, StoreError) as error:
        log.error("%s", error)
        sys.stderr.write(f"failed to start daemon: {error}\n")
        return 1


def _set_proxies(config: DaemonConfig) -> None:
    """Let everything that reads the environment use the proxies of the configuration."""
    for setting in ("http_proxy", "https_proxy", "no_proxy"):
        value: str = getattr(config, setting)
        for name in (setting, setting.upper()) if value else ():
            if (old := os.environ.get(name)) and old != value:
                log.warning(
                    "overriding existing proxy variable with value from configuration: %s was %s and is %s",
                    name, masked_proxy(old), masked_proxy(value),
                )  # fmt: skip
            os.environ[name] = value


class _EarlySignals:
    """Remembers signals that arrive before the event loop handles them."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda received, _frame: self.seen.append(received))


def _pid_path(config: DaemonConfig, exec_root: ExecRoot) -> Path:
    return Path(config.pidfile) if "pidfile" in config.given else exec_root.root / "moored.pid"


def default_hosts(config: DaemonConfig, exec_root: ExecRoot, *, as_dockerd: bool) -> tuple[str, ...]:
    """Return where to listen when nothing is said: under dockerd's name where dockerd does."""
    if not as_dockerd:
        return (f"unix://{exec_root.docker_sock}",)
    return ("tcp://localhost:2376",) if config.tls or config.tlsverify else ("unix:///var/run/docker.sock",)


async def _serve(
    config: LiveConfig,
    data_root: DataRoot,
    exec_root: ExecRoot,
    early: _EarlySignals,
    usual_hosts: tuple[str, ...],
    remap: Remapped,
) -> int:
    """Start everything in order, wait for a signal, end everything in reverse."""
    exec_root.root.mkdir(parents=True, exist_ok=True)
    stop = asyncio.Event()
    reload = asyncio.Event()
    _take_signals(stop, reload, early)
    async with contextlib.AsyncExitStack() as stack:
        agent = await Agent.connect(exec_root, data_root=data_root)
        stack.push_async_callback(agent.close)
        listeners = await _listen(config.current, agent, usual_hosts)
        for listener in listeners:
            stack.callback(listener.close)
        graph = Graph(config, data_root, exec_root, agent, remap)
        stack.push_async_callback(graph.close)
        await graph.start()
        for listener in listeners:
            await graph.server.serve(listener.socket, tls=listener.tls)
        await graph.server.take_over()
        await agent.ready()
        graph.spare.soon()
        systemd.notify("READY=1")
        log.info("Daemon has completed initialization")
        for listener in listeners:
            log.info("API listen on %s", listener.path or listener.socket.getsockname())
        await _until_stopped(graph, stop, reload)
        systemd.notify("STOPPING=1")
        log.info("Processing signal: stopping")
        log.debug("daemon configured with a %d seconds minimum shutdown timeout", config.current.shutdown_timeout)
        await graph.shut_down()
    log.info("Daemon shutdown complete")
    return 0


async def _listen(config: DaemonConfig, agent: Agent, usual_hosts: tuple[str, ...]) -> list[Listener]:
    """Open the sockets asked for, or take the supervisor's; there always is one."""
    supervised = await agent.listener()
    found = [Listener(supervised)] if supervised is not None else []
    tls = None
    if config.tls or config.tlsverify:
        home = Path(os.environ.get("DOCKER_CERT_PATH", "/etc/docker"))
        tls = TlsFiles(
            config.tlscacert or str(home / "ca.pem"),
            config.tlscert or str(home / "cert.pem"),
            config.tlskey or str(home / "key.pem"),
            config.tlsverify,
        )
    hosts = config.hosts or (() if found else usual_hosts)
    group = config.group if "group" in config.given else ""
    passed = systemd.take_sockets()
    try:
        for host in hosts:
            found.extend(open_listeners(host, tls, group, passed=passed))
    except ListenError:
        for listener in found:
            listener.close()
        raise
    return found


def _take_signals(stop: asyncio.Event, reload: asyncio.Event, early: _EarlySignals) -> None:
    """SIGTERM and SIGINT stop, the third one at once; SIGHUP reloads. What came early counts."""
    loop = asyncio.get_running_loop()
    count = 0

    def on_stop(number: int) -> Callable[[], None]:
        def handler() -> None:
            nonlocal count
            count += 1
            stop.set()
            if count >= 3:
                log.error("Forcing daemon shutdown without cleanup: %d signals", count)
                os._exit(128 + number)

        return handler

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_stop(number))
    loop.add_signal_handler(signal.SIGHUP, reload.set)
    if signal.SIGHUP in early.seen:
        reload.set()
    if any(number != signal.SIGHUP for number in early.seen):
        stop.set()


async def _until_stopped(graph: Graph, stop: asyncio.Event, reload: asyncio.Event) -> None:
    """Act on SIGHUP until told to stop."""
    stopping = asyncio.ensure_future(stop.wait())
    try:
        while not stop.is_set():
            reloading = asyncio.ensure_future(reload.wait())
            await asyncio.wait({stopping, reloading}, return_when=asyncio.FIRST_COMPLETED)
            reloading.cancel()
            if reload.is_set():
                reload.clear()
                graph.reload()
    finally:
        stopping.cancel()


if __name__ == "__main__":
    sys.exit(main())
