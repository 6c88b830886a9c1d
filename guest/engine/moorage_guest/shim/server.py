"""The shim's socket: connections of daemons (and of the agent), their requests, and events for all of them."""

import json
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

from moorage_guest.shim import kernel, wire
from moorage_guest.shim.attachments import Attachment, client_from
from moorage_guest.shim.clients import STDERR, STDOUT, Client
from moorage_guest.shim.connection import Connection, Refused, Request
from moorage_guest.shim.container import Container, Spec
from moorage_guest.shim.execs import ExecOptions, ExecSession
from moorage_guest.shim.loop import READ, Loop
from moorage_guest.shim.runtime import DEFAULT_RUNTIME, Runtime, RuntimeFailed

#: Execs that are made ready at a time, and seconds that one waits for its start: dockerd's clients take milliseconds.
_READY_EXECS = 4
_READY_SECONDS = 5.0

#: Runtimes that are known to read last what they are to execute. `true` plays one in the agent's rehearsal.
_LOADED_AHEAD = (DEFAULT_RUNTIME, "true")

#: Finished execs whose result is kept for a daemon that comes back.
_KEPT_EXECS = 128


class Server:
    """Answers requests about one container until it is shut down."""

    def __init__(self, loop: Loop, listener: socket.socket, spec: Spec, root: str, folder: str) -> None:
        self._loop = loop
        self._listener = listener
        self._folder = folder
        self._connections: list[Connection] = []
        self._execs: dict[str, ExecSession] = {}
        #: Those whose start is about to come.
        self._ready_execs: dict[str, ExecSession] = {}
        #: Clients whose daemon has yet to say where their output begins, by number.
        self._held: dict[int, tuple[Connection, Attachment]] = {}
        self._holds = 0
        #: Who asked for the status while the runtime is at work on the start.
        self._asked_meanwhile: list[Request] = []
        self._runtime = Runtime(loop, spec.runtime, spec.runtime_args, root, folder)
        self._container = Container(loop, spec, folder, self._runtime, self._emit)
        listener.setblocking(False)
        loop.watch(listener.fileno(), READ, self._accept)

    def _accept(self, _ready: int) -> None:
        try:
            sock = wire.accept(self._listener)
        except OSError:
            return
        self._connections.append(Connection(self._loop, sock, self._message, self._closed))

    def _closed(self, connection: Connection) -> None:
        self._connections.remove(connection)
        self._let_go_of(connection)

    def _let_go_of(self, connection: Connection) -> None:
        """Nobody will say where the output of the clients begins that are held for a daemon."""
        for key, (owner, attachment) in list(self._held.items()):
            if owner is connection:
                del self._held[key]
                if attachment.head:  # it does not know yet that it is attached: the next daemon does that
                    self._container.attachments.forget(attachment)
                else:
                    self._container.attachments.begin(attachment, {})

    def _emit(self, event: dict[str, Any]) -> None:
        for connection in list(self._connections):
            connection.send(event)

    def _message(self, connection: Connection, message: wire.Message) -> None:
        request = Request(connection, message)
        try:
            method = _METHODS.get(str(message.body.get("method")))
            if method is None:
                raise Refused("unknown", f"this shim does not know the request {message.body.get('method')!r}")
            method(self, request)
        except Refused as error:
            request.refuse(error.code, str(error))
        except (ValueError, KeyError, TypeError, OSError) as error:
            request.refuse("failed", f"{message.body.get('method')}: {error}")
        finally:
            wire.close_all(request.fds)

    # -- requests -----------------------------------------------------------------------------------------------------

    def _do_status(self, request: Request) -> None:
        """A daemon that comes back in the middle of a start is told how that went, not that nothing runs yet."""
        if self._container.starting:
            self._asked_meanwhile.append(request)
            return
        execs = [session.status() for session in self._execs.values()]
        request.answer({**self._container.status(), "execs": execs})

    def _do_fill(self, request: Request) -> None:
        status = self._container.status()
        request.answer({"pid": status["pid"], "running": self._container.running, "labels": status["labels"],
                        "pipes": self._container.fill()})  # fmt: skip

    def _do_pipes(self, request: Request) -> None:
        request.answer({"streams": self._container.streams}, fds=self._container.pipes())

    def _do_run(self, request: Request) -> None:
        def done(failure: RuntimeFailed | None) -> None:
            asked, self._asked_meanwhile = self._asked_meanwhile, []
            if failure is None:
                request.answer({"pid": self._container.pid, "started_ns": self._container.started_ns})
            else:
                request.refuse(failure.code, str(failure))
            for each in asked:
                self._do_status(each)

        uid, gid = request.params.get("owner") or (0, 0)
        self._container.run(str(request.params["bundle"]), done, (int(uid), int(gid)))

    def _do_feed(self, request: Request) -> None:
        self._container.attachments.add_feed(client_from(request.take_fd()))
        request.answer({})

    def _do_attach(self, request: Request) -> None:
        params = request.params
        client = self._client(request.take_fd(), params)
        start = {int(key): int(value) for key, value in params["start"].items()}

        def detached() -> None:
            self._emit({"event": "detached", "exec_id": None})

        held = bool(params.get("hold"))
        head = str(params.get("head", "")).encode("latin-1")
        attachment = self._container.attach(client, bool(params["stdin"]), request.blob, start, detached, head, held)
        if held:
            self._holds += 1
            self._held[self._holds] = (request.connection, attachment)
            request.answer({"held": self._holds, "greets": True})
            if not request.heard:  # it was found to be gone before the client was among those that are held
                self._let_go_of(request.connection)
        else:
            request.answer({"greets": True})

    def _do_attach_from(self, request: Request) -> None:
        """Say where the output of a client that is held begins."""
        found = self._held.pop(int(request.params["held"]), None)
        if found is not None:
            start = {int(key): int(value) for key, value in request.params["start"].items()}
            self._container.attachments.begin(found[1], start)
        request.answer({})

    def _do_finish_output(self, request: Request) -> None:
        lengths = {int(key): int(value) for key, value in request.params["offsets"].items()}
        self._container.attachments.finish(lengths, request.take_fd() if request.fds else None)
        request.answer({})

    def _do_ready_exec(self, request: Request) -> None:
        """Start the runtime for an exec ahead of `exec`, which may bring the process along then; in vain, it ends by itself."""
        params = request.params
        self._must_run()
        name = str(params["exec_id"])
        if self._container.spec.runtime not in _LOADED_AHEAD:
            raise Refused("runtime", f"nobody knows whether {self._container.spec.runtime} waits for its orders")
        if len(self._ready_execs) >= _READY_EXECS or name in self._execs or name in self._ready_execs:
            raise Refused("busy", f"exec {name} is not made ready")
        options = ExecOptions(name, bool(params["tty"]), bool(params["open_stdin"]), 0, self._container.owner)
        session = ExecSession(self._loop, self._runtime, options, self._exec_ended)

        def dropped() -> None:
            if self._ready_execs.get(name) is session:
                del self._ready_execs[name]

        session.make_ready(self._folder, self._container.spec.container_id, dropped)
        self._ready_execs[name] = session
        self._loop.later(_READY_SECONDS, session.give_up)
        request.answer({})

    def _do_exec(self, request: Request) -> None:
        params = request.params
        options = ExecOptions(
            str(params["exec_id"]),
            bool(params["tty"]),
            bool(params["open_stdin"]),
            int(params["capture"]),
            self._container.owner,
        )
        self._must_run()
        if options.exec_id in self._execs:
            raise Refused("conflict", f"exec {options.exec_id} was started before")
        client = self._client(request.take_fd(), params) if request.fds else None
        session = self._ready_execs.pop(options.exec_id, None)
        if session is None:
            session = ExecSession(self._loop, self._runtime, options, self._exec_ended)
        session.options = options
        session.on_detach = lambda: self._emit({"event": "detached", "exec_id": options.exec_id})
        self._execs[options.exec_id] = session

        def done(failure: RuntimeFailed | None) -> None:
            if failure is None:
                request.answer({"pid": session.pid, "started_ns": session.started_ns})
                if not request.heard:  # a daemon that came back meanwhile has seen it begin
                    self._emit({"event": "exec_started", "exec_id": options.exec_id, "pid": session.pid})
            elif request.heard:
                self._execs.pop(options.exec_id, None)
                request.refuse(failure.code, str(failure))
            else:  # kept for the daemon that comes, told to one that came
                session.fail(127 if failure.code == "not_found" else 126)
                self._exec_ended(session)

        process = str(params.get("process", "")).encode()
        session.start(self._folder, self._container.spec.container_id, client, request.blob, process, done)

    def _do_exec_output(self, request: Request) -> None:
        request.answer({}, blob=bytes(self._session(request).captured[: wire.MAX_BLOB]))

    def _do_forget_exec(self, request: Request) -> None:
        session = self._execs.get(str(request.params["exec_id"]))
        if session is not None and session.exit_code is not None:
            del self._execs[session.options.exec_id]
        request.answer({})

    def _do_resize(self, request: Request) -> None:
        rows, columns = int(request.params["rows"]), int(request.params["columns"])
        target = self._container if request.params["exec_id"] is None else self._session(request)
        if not target.resize(rows, columns):
            raise Refused("no_tty", "cannot resize: there is no terminal")
        request.answer({})

    def _do_signal(self, request: Request) -> None:
        spec = self._container.spec
        if request.params["exec_id"] is None and spec.runtime != DEFAULT_RUNTIME and self._container.running:
            # A process behind a kernel of its runtime's own hears only what the runtime tells it.
            self._call(request, ["kill", spec.container_id, str(int(request.params["number"]))])
            return
        target = self._container if request.params["exec_id"] is None else self._session(request)
        try:
            target.signal(int(request.params["number"]))
        except ProcessLookupError:
            raise Refused("not_running", "cannot send a signal: the process has ended") from None
        request.answer({})

    def _do_close_stdin(self, request: Request) -> None:
        if self._container.stdin is not None:
            self._container.stdin.close()
        request.answer({})

    def _do_pause(self, request: Request) -> None:
        self._must_run()
        for session in self._ready_execs.values():
            session.give_up()  # it has found the container running
        self._call(request, ["pause", self._container.spec.container_id])

    def _do_resume(self, request: Request) -> None:
        self._must_run()
        self._call(request, ["resume", self._container.spec.container_id])

    def _do_update(self, request: Request) -> None:
        self._must_run()
        file = f"{self._folder}/resources.json"
        kernel.replace_small(file, json.dumps(request.params["resources"]).encode())
        self._call(request, ["update", f"--resources={file}", self._container.spec.container_id])

    def _do_shutdown(self, request: Request) -> None:
        if self._container.running and not request.params["force"]:
            raise Refused("running", f"container {self._container.spec.container_id} runs: stop it first")

        def kill(_failure: RuntimeFailed | None) -> None:
            if self._container.running:
                self._container.signal(signal.SIGKILL)
            arguments = ["delete", "--force", self._container.spec.container_id]
            self._run_quietly(arguments, lambda _: self._end(request))

        if self._container.paused:
            self._run_quietly(["resume", self._container.spec.container_id], kill)
        else:
            kill(None)

    def close(self) -> None:
        """Let go of everything without touching the container; for a server whose container does not run."""
        self._loop.unwatch(self._listener.fileno())
        self._listener.close()
        for connection in list(self._connections):
            connection.close()
        self._container.close()

    # -- helpers ------------------------------------------------------------------------------------------------------

    def _end(self, request: Request) -> None:
        if self._container.running:  # killed: its end is about to be reported
            self._loop.later(0.01, lambda: self._end(request))
            return
        self._loop.unwatch(self._listener.fileno())
        self._listener.close()
        kernel.remove_tree(str(self._folder))
        request.answer({})
        # Clients that read slowly keep the process, and nothing else of the container.
        self._container.attachments.when_empty(self._loop.stop)

    def _call(self, request: Request, arguments: list[str]) -> None:
        def done(failure: RuntimeFailed | None) -> None:
            if failure is None:
                request.answer({})
            else:
                request.refuse("runtime", str(failure))

        self._run_quietly(arguments, done)

    def _run_quietly(self, arguments: list[str], done: Callable[[RuntimeFailed | None], None]) -> None:
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)

        def finished(failure: RuntimeFailed | None) -> None:
            os.close(null)
            done(failure)

        self._runtime.start(arguments, (null, null, null), finished)

    def _client(self, fd: int, params: dict[str, Any]) -> Client:
        streams = frozenset(
            stream for stream, wanted in ((STDOUT, params["stdout"]), (STDERR, params["stderr"])) if wanted
        )
        return Client(
            self._loop,
            client_from(fd),
            multiplexed=bool(params["multiplexed"]),
            streams=streams,
            detach_keys=bytes.fromhex(params["detach_keys"]),
        )

    def _must_run(self) -> None:
        if not self._container.running:
            raise Refused("not_running", f"container {self._container.spec.container_id} is not running")

    def _session(self, request: Request) -> ExecSession:
        session = self._execs.get(str(request.params["exec_id"]))
        if session is None:
            raise Refused("no_exec", f"no exec {request.params['exec_id']} in this container")
        return session

    def _exec_ended(self, session: ExecSession) -> None:
        self._emit({"event": "exec_exited", "exec_id": session.options.exec_id, "code": session.exit_code,
                    "at_ns": session.ended_ns})  # fmt: skip
        ended = [name for name, item in self._execs.items() if item.exit_code is not None]
        for name in ended[: max(0, len(ended) - _KEPT_EXECS)]:
            del self._execs[name]


#: What a shim can be asked, by name: the methods of Server that begin with _do_. Made once, and shared by all shims.
_METHODS: dict[str, Callable[[Server, Request], None]] = {
    name.removeprefix("_do_"): method for name, method in vars(Server).items() if name.startswith("_do_")
}
