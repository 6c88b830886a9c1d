"""One thread, epoll and timers: the whole concurrency of netd."""

import heapq
import itertools
import logging
import selectors
import socket
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

Callback = Callable[[], None]

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE


class Timer:
    """A call that is due later; `cancel` makes it nothing."""

    __slots__ = ("action", "due")

    def __init__(self, due: float, action: Callback) -> None:
        self.due = due
        self.action: Callback | None = action

    def cancel(self) -> None:
        """Forget the call; quiet when it has been made."""
        self.action = None


class Loop:
    """Calls back for sockets that are ready and timers that are due until `stop`. A callback's error ends only itself."""

    def __init__(self) -> None:
        self._selector = selectors.EpollSelector()
        self._timers: list[tuple[float, int, Timer]] = []
        self._count = itertools.count()
        self._running = True

    def watch(self, sock: socket.socket, events: int, callback: Callable[[int], None]) -> None:
        """Call back with the ready events; replaces an earlier watch. No events means not to watch any more."""
        try:
            if events == 0:
                self._selector.unregister(sock)
            else:
                self._selector.modify(sock, events, callback)
        except KeyError:
            if events:
                self._selector.register(sock, events, callback)

    def forget(self, sock: socket.socket) -> None:
        """Stop watching and close a socket."""
        try:
            self._selector.unregister(sock)
        except (KeyError, ValueError):
            log.debug("socket was not watched")
        sock.close()

    def later(self, seconds: float, action: Callback) -> Timer:
        """Call once, at least ``seconds`` from now."""
        timer = Timer(time.monotonic() + seconds, action)
        heapq.heappush(self._timers, (timer.due, next(self._count), timer))
        return timer

    def stop(self) -> None:
        """Return from `run` after the present callback."""
        self._running = False

    def run(self) -> None:
        """Serve until `stop`."""
        while self._running:
            while self._timers and self._timers[0][2].action is None:
                heapq.heappop(self._timers)
            wait = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
            for key, ready in self._selector.select(wait):
                # An earlier callback of this round may have closed the socket.
                if key.fd in self._selector.get_map():
                    self._call(lambda key=key, ready=ready: key.data(ready))  # type: ignore[misc]
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                _, _, timer = heapq.heappop(self._timers)
                if timer.action is not None:
                    self._call(timer.action)

    @staticmethod
    def _call(action: Callback) -> None:
        try:
            action()
        except Exception:
            log.exception("netd: a callback failed")
