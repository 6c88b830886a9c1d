"""How an answer goes out: one that is known whole in one piece, and noted as begun at the very last moment.

Until then it can still be given by the next daemon (see `kept`), should this one be killed.
"""

from collections.abc import Iterable

from moorage_guest import web
from moorage_guest.api.kept import Kept


class AnswerWriter(web.StreamWriter):
    """Writes one answer. aiohttp writes head and body apart, so that a client could get the one without the other."""

    _kept: Kept | None = None
    _holds = False
    _head = b""

    def begin(self, kept: Kept | None, *, whole: bool) -> None:
        """Before anything is written: note in ``kept`` when it is; the head of a ``whole`` answer waits for the body."""
        self._kept = kept
        self._holds = whole

    async def write_eof(self, chunk: bytes = b"") -> None:
        if not chunk:
            self._send_head()
        await super().write_eof(chunk)

    def _write(self, chunk: bytes | bytearray | memoryview) -> None:
        if self._holds:  # the head is the first that comes
            self._holds = False
            self._head = bytes(chunk)
            return
        if self._head:
            chunk = b"".join((self._head, chunk))
            self._head = b""
        self._note()
        super()._write(chunk)

    def _writelines(self, chunks: Iterable[bytes]) -> None:
        head, self._head = self._head, b""
        self._note()
        super()._writelines((head, *chunks) if head else tuple(chunks))

    def _send_head(self) -> None:
        head, self._head = self._head, b""
        if head:
            self._write(head)

    def _note(self) -> None:
        if self._kept is not None:
            self._kept.begin_answer()
