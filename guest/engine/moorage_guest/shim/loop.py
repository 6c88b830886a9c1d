"""The event loop of agent and shim: epoll, timers and ended children, in one thread. Small, because every shim has one.

Callbacks must not block. An exception in a callback is reported to `on_error` and ends nothing.
"""

import heapq
import itertools
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
#: The other side has stopped sending, or is gone. The latter is always reported.
HANGUP = select.EPOLLRDHUP
GONE = select.EPOLLHUP | select.EPOLLERR

#: Descriptors that are told of at once; others come in the next step. Room for more would be taken anew in every step.
_EVENTS = 32

Callback = Callable[[int], None]


class Timer:
    """A call to come; `cancel` is idempotent."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None

    def run(self, _argument: int) -> None:
        """Make the call."""
        if self.callback is not None:
            self.callback()


class Loop:
    """One per process, made after the fork. Takes over SIGCHLD and its process-wide wake-up descriptor."""

    def __init__(self, on_error: Callable[[str], None]) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback] = {}
        self._masks: dict[int, int] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._on_error = on_error
        self._running = True
        self._children: dict[int, Callable[[int], None]] = {}
        self._strays: dict[int, int] = {}
        self.on_signal: Callable[[int], None] | None = None
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)
        self.take_signals()
        self.watch(self._woken.fileno(), READ, self._wake)

    def take_signals(self) -> None:
        """Have this process's signals wake this loop, and no other."""
        if signal.SIGCHLD not in _caught:  # a fork of a process with a loop has it already
            catch(signal.SIGCHLD)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)

    def report(self, text: str) -> None:
        """Tell `on_error` of a fault that was dealt with."""
        self._on_error(text)

    # -- descriptors --------------------------------------------------------------------------------------------------

    def watch(self, fd: int, mask: int, callback: Callback) -> None:
        """Call `callback(ready mask)` while something of `mask` is true; replaces an earlier watch."""
        if fd in self._masks:
            if self._masks[fd] != mask:
                self._epoll.modify(fd, mask)
        else:
            self._epoll.register(fd, mask)
        self._masks[fd] = mask
        self._callbacks[fd] = callback

    def unwatch(self, fd: int) -> None:
        """Stop watching; must come before the descriptor is closed. Idempotent."""
        if self._masks.pop(fd, None) is not None:
            self._callbacks.pop(fd, None)
            try:
                self._epoll.unregister(fd)
            except OSError:
                pass  # it was closed

    def watches(self, fd: int) -> bool:
        """Whether a descriptor is being watched."""
        return fd in self._masks

    # -- time ---------------------------------------------------------------------------------------------------------

    def later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call once after `seconds`."""
        timer = Timer(callback)
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), timer))
        return timer

    # -- children -----------------------------------------------------------------------------------------------------

    def on_child(self, pid: int, callback: Callable[[int], None]) -> None:
        """Call `callback(exit code)` when the child has ended (128 + n for signal n), also when it already has."""
        if pid in self._strays:
            status = self._strays.pop(pid)
            self.later(0, lambda: callback(status))
        else:
            self._children[pid] = callback

    def reap(self) -> None:
        """Collect every ended child and make the calls due. Done by itself on SIGCHLD."""
        ended: list[tuple[int, int]] = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            code = os.waitstatus_to_exitcode(status)
            ended.append((pid, code if code >= 0 else 128 - code))
        for pid, code in ended:
            callback = self._children.pop(pid, None)
            if callback is None:
                if len(self._strays) > 256:
                    self._strays.pop(next(iter(self._strays)))
                self._strays[pid] = code
            else:
                self._call(callback, code)

    # -- running ------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Let `run` return after the callbacks at hand."""
        self._running = False

    def close(self) -> None:
        """Let go of the process's signals and of the loop's own descriptors."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _caught.discard(signal.SIGCHLD)
        self._epoll.close()
        self._woken.close()
        self._waker.close()

    def run(self) -> None:
        """Serve until `stop`."""
        while self._running:
            self.step(None)

    def step(self, timeout: float | None) -> None:
        """Wait for at most `timeout` seconds (None: until something happens) and make the calls due."""
        now = time.monotonic()
        if self._timers:
            until = max(0.0, self._timers[0][0] - now)
            timeout = until if timeout is None else min(timeout, until)
        # epoll counts in milliseconds: round up, so that a timer is due when we wake
        for fd, ready in self._epoll.poll(None if timeout is None else timeout + 0.0005, _EVENTS):
            callback = self._callbacks.get(fd)
            if callback is not None:
                self._call(callback, ready)
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            if timer.callback is not None:
                self._call(timer.run, 0)

    def _call(self, callback: Callable[[int], None], argument: int) -> None:
        try:
            callback(argument)
        except Exception as error:
            self._on_error(trace(error))

    def _wake(self, _ready: int) -> None:
        numbers = b""
        try:
            while chunk := self._woken.recv(256):
                numbers += chunk
        except BlockingIOError:
            pass  # that was all
        self.reap()
        if self.on_signal is not None:
            for number in numbers:
                if number != signal.SIGCHLD:
                    self.on_signal(number)


def trace(error: BaseException) -> str:
    """Say what went wrong and where, in one line, without importing `traceback` into every shim."""
    places = []
    frame = error.__traceback__
    while frame is not None:
        code = frame.tb_frame.f_code
        places.append(f"{code.co_filename.rpartition('/')[2]}:{frame.tb_lineno} {code.co_name}")
        frame = frame.tb_next
    return f"{type(error).__name__}: {error} ({' < '.join(reversed(places[-4:]))})"


def _noted(_number: int, _frame: FrameType | None) -> None:
    """The wake-up descriptor has told the loop; Python only needs a handler to be there."""


def catch(number: int) -> None:
    """Have a signal reported to `Loop.on_signal`."""
    _caught.add(number)
    signal.signal(number, _noted)


#: Signals of this process that have a handler of ours; forks inherit both.
_caught: set[int] = set()
