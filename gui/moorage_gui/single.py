"""One window for each user: a second start brings the first one's window to the front and ends."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from PySide6.QtCore import QObject, Signal
from PySide6.QtNetwork import QLocalServer, QLocalSocket

WAIT_MS = 3000


def server_name(state: Path) -> str:
    """A name of the local socket that is the same for every start with the same state folder."""
    digest = hashlib.sha256(os.fsencode(state)).hexdigest()[:16]
    return f"moorage-gui-{digest}"


def ask_running(name: str, page: str) -> bool:
    """Ask the program that runs already to show a page. False when none runs. Blocks three seconds at most."""
    socket = QLocalSocket()
    socket.connectToServer(name)
    if not socket.waitForConnected(WAIT_MS):
        return False
    socket.write(page.encode() + b"\n")
    told = socket.waitForBytesWritten(WAIT_MS)
    with contextlib.suppress(RuntimeError):
        socket.disconnectFromServer()
    return told


class Doorbell(QObject):
    """Hears later starts. Only the same user can ring."""

    rung = Signal(str)

    def __init__(self, name: str, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._callers: list[QLocalSocket] = []
        self._server = QLocalServer(self)
        self._server.setSocketOptions(QLocalServer.SocketOption.UserAccessOption)
        self._server.newConnection.connect(self._connected)
        if not self._server.listen(name):
            QLocalServer.removeServer(name)  # left by one that was killed
            self._server.listen(name)

    @property
    def listening(self) -> bool:
        """Whether later starts will be heard."""
        return self._server.isListening()

    def close(self) -> None:
        """Hear no more."""
        self._server.close()
        for caller in self._callers:
            caller.abort()
        self._callers.clear()

    def _connected(self) -> None:
        while (caller := self._server.nextPendingConnection()) is not None:
            self._callers.append(caller)
            caller.readyRead.connect(self._read)
        self._read()

    def _read(self) -> None:
        """Read whoever has said something; a caller that has gone is forgotten, the server deletes it in the end."""
        for caller in [*self._callers]:
            while caller.canReadLine():
                self.rung.emit(bytes(caller.readLine().data()).decode("utf-8", "replace").strip())
            if caller.state() is QLocalSocket.LocalSocketState.UnconnectedState:
                self._callers.remove(caller)
