"""A proxy on loopback that cuts connections, for transfers that break off."""

import contextlib
import socket
import threading


class CuttingProxy:
    """Forwards connections and cuts each after so many bytes from the server, the first ``times`` times.

    ``given`` counts the bytes that clients got.
    """

    def __init__(self, port: int, after: int, times: int) -> None:
        self._port, self._after, self.left = port, after, times
        self.given = 0
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,))
            thread.start()
            self._threads.append(thread)

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._port)) as server:
            back = threading.Thread(target=self._copy, args=(client, server, None))
            back.start()
            self._copy(server, client, self._after)
            for each in (client, server):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            back.join()

    def _copy(self, source: socket.socket, target: socket.socket, limit: int | None) -> None:
        given = 0
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                given += len(data)
                with self._lock:
                    if limit is not None and given > limit and self.left > 0:
                        self.left -= 1
                        return
                    self.given += len(data) if limit is not None else 0
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Take no more connections and wait for those there are."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        for thread in self._threads:
            thread.join()
