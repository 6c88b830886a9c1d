"""HTTP/2 on a connection that has left HTTP/1.1, in either role: streams with flow control. h2 keeps the protocol's rules.

What is said on a stream is `grpc`'s business. Everything belongs to the event loop; nothing blocks.
"""

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable, Sequence

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RemoteSettingsChanged,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings
from hyperframe.frame import Frame

from moorage_guest.buildkit.errors import PeerGone

log = logging.getLogger(__name__)

# h2 makes a text of every frame that comes, for a log which nobody reads: half of what a frame costs.
Frame.__repr__ = object.__repr__  # type: ignore[method-assign]

# A daemon that says much (debug) would have every byte of every header in its log.
logging.getLogger("hpack").setLevel(logging.WARNING)

Headers = Sequence[tuple[bytes, bytes]]

#: Bytes that a peer may send on one stream before they are read: more where we choose how many streams there are, since a
#: folder comes from afar, and over a slow tunnel no faster than a window for each round trip.
STREAM_WINDOW = 64 << 10
OWN_STREAM_WINDOW = 4 << 20

#: Bytes on all streams together between two updates of the window; what waits to be read is bounded by the streams' windows.
CONNECTION_WINDOW = 16 << 20

#: Streams that a peer may have open at once: a client that builds many targets has two for each all the while.
MAX_STREAMS = 1000

#: Bytes that wait to be written, beyond which the peer is let go: it makes us answer and does not listen.
MAX_BACKLOG = 1 << 20


class Reset(PeerGone):
    """The other side has given up this stream."""


class Stream:
    """One stream. ``headers`` are the request's, or the answer's once `answered`; ``trailers`` came at the end."""

    def __init__(self, connection: "Connection", number: int, headers: Headers = ()) -> None:
        self.number = number
        self.headers: Headers = headers
        self.trailers: Headers = ()
        #: Called once when the other side gives up or is gone, unless the stream has ended on both sides.
        self.on_gone: Callable[[], None] | None = None
        self.gone: PeerGone | None = None
        self._connection = connection
        self._chunks: deque[bytes] = deque()
        self._ended = False
        self._finished = False
        self._uncredited = 0
        self._news = asyncio.Event()
        self._room = asyncio.Event()

    # -- reading ------------------------------------------------------------------------------------------------------

    async def answered(self) -> Headers:
        """Wait for the answer's headers. Raises PeerGone."""
        while not self.headers:
            await self._wait()
        return self.headers

    async def read(self) -> bytes:
        """Return what has come, at least one byte; nothing at the end. Raises PeerGone."""
        while not self._chunks:
            if self._ended:
                return b""
            await self._wait()
        data = self._chunks.popleft()
        self._credit(len(data))
        return data

    async def _wait(self) -> None:
        if self.gone is not None:
            raise self.gone
        self._news.clear()
        await self._news.wait()

    def _credit(self, size: int) -> None:
        self._uncredited += size
        if self._uncredited >= self._connection.stream_window // 2 and not self._ended and self.gone is None:
            size, self._uncredited = self._uncredited, 0
            self._connection.open_window(size, self.number)

    # -- writing ------------------------------------------------------------------------------------------------------

    def send_headers(self, headers: Headers, *, end: bool = False) -> None:
        """Send headers, or trailers. Raises PeerGone."""
        if self.gone is not None:
            raise self.gone
        self._connection.send_headers(self.number, headers, end)
        self._finish(end)

    async def send(self, data: bytes, *, end: bool = False) -> None:
        """Send data, waiting for as long as the other side takes none. Raises PeerGone."""
        view = memoryview(data)
        while True:
            if self.gone is not None:
                raise self.gone
            if self._ended and self._connection.client:
                raise Reset("the call was answered before all of it was sent")
            if not self._connection.writable.is_set():
                await self._connection.writable.wait()
                continue
            room = self._connection.room(self.number)
            if view and not room:
                self._room.clear()
                await self._room.wait()
                continue
            piece, view = view[:room], view[room:]
            last = end and not view
            self._connection.send_data(self.number, bytes(piece), last)
            if not view:
                self._finish(last)
                return

    def reset(self, code: int = ErrorCodes.CANCEL) -> None:
        """Give the stream up; quiet when it has ended on both sides or is gone."""
        if self.gone is None and not (self._ended and self._finished):
            self._finished = self._ended = True
            self._connection.reset(self.number, code)

    def _finish(self, end: bool) -> None:
        if end:
            self._finished = True
            self._forget_if_over()

    # -- what the connection tells ------------------------------------------------------------------------------------

    def received(self, data: bytes, flow_length: int) -> None:
        """Data has come, which counted so much against the window."""
        if data:
            self._chunks.append(data)
        if flow_length > len(data):
            self._credit(flow_length - len(data))
        self._news.set()

    def ended(self) -> None:
        """The other side sends no more."""
        self._ended = True
        self._news.set()
        self._room.set()
        self._forget_if_over()

    def got_headers(self, headers: Headers) -> None:
        """The answer has begun."""
        self.headers = headers
        self._news.set()

    def may_send(self) -> None:
        """There may be room to send."""
        self._room.set()

    def lose(self, error: PeerGone) -> None:
        """The other side has given up, or the connection is lost."""
        if self.gone is not None:
            return
        self.gone = error
        self._news.set()
        self._room.set()
        if self.on_gone is not None and not (self._ended and self._finished):
            self.on_gone()

    def _forget_if_over(self) -> None:
        if self._ended and self._finished:
            self._connection.forget(self.number)


class Connection(asyncio.Protocol):
    """One connection, in the role of the client or the server. ``on_stream`` is told of each stream that the peer opens."""

    def __init__(self, *, client: bool, prefix: bytes = b"", on_stream: Callable[[Stream], None] | None = None) -> None:
        settings = H2Configuration(
            client_side=client, header_encoding=None, normalize_outbound_headers=False, validate_outbound_headers=False
        )
        self.client = client
        self.stream_window = OWN_STREAM_WINDOW if client else STREAM_WINDOW
        self.closed = asyncio.Event()
        self._h2 = H2Connection(settings)
        values = {
            SettingCodes.INITIAL_WINDOW_SIZE: self.stream_window,
            SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
            SettingCodes.MAX_HEADER_LIST_SIZE: H2Connection.DEFAULT_MAX_HEADER_LIST_SIZE,
        }
        if client:
            values[SettingCodes.ENABLE_PUSH] = 0
        # What stands here before the connection begins is said in its first frame; later changes would wait for an answer.
        self._h2.local_settings = Settings(client=client, initial_values=values)
        self._prefix = prefix
        self._on_stream = on_stream
        self._streams: dict[int, Stream] = {}
        self._transport: asyncio.Transport | None = None
        self._uncredited = 0
        #: Whether the socket takes more now.
        self.writable = asyncio.Event()
        self.writable.set()
        self._fewer = asyncio.Event()
        self._lost: PeerGone | None = None

    @classmethod
    async def open(
        cls,
        connection: socket.socket,
        prefix: bytes = b"",
        *,
        client: bool,
        on_stream: Callable[[Stream], None] | None = None,
    ) -> "Connection":
        """Speak HTTP/2 on a connected, non-blocking socket, which is owned from now on; ``prefix`` was read from it before."""
        made = cls(client=client, prefix=prefix, on_stream=on_stream)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: made, connection)
        except BaseException:
            connection.close()
            raise
        return made

    def close(self) -> None:
        """Say goodbye and close; quiet when closed. Streams that are open are lost."""
        if self._transport is not None and not self._transport.is_closing():
            try:
                self._h2.close_connection()
                self._flush()
            except H2Error:
                pass  # it has ended already
            self._transport.close()
        self._lose(PeerGone("the connection was closed"))

    async def request(self, headers: Headers, *, end: bool = False) -> Stream:
        """Open a stream (in the client's role), waiting while the peer takes no more of them. Raises PeerGone."""
        while self._lost is None and self._h2.open_outbound_streams >= self._h2.remote_settings.max_concurrent_streams:
            self._fewer.clear()
            await self._fewer.wait()
        if self._lost is not None:
            raise self._lost
        try:
            number = self._h2.get_next_available_stream_id()
            self._h2.send_headers(number, headers, end_stream=end)
        except H2Error as error:
            raise PeerGone(f"cannot open a stream: {error}") from None
        stream = self._streams[number] = Stream(self, number)
        stream._finish(end)
        self._flush()
        return stream

    # -- for streams --------------------------------------------------------------------------------------------------

    def send_headers(self, number: int, headers: Headers, end: bool) -> None:
        """Send headers of a stream."""
        try:
            self._h2.send_headers(number, headers, end_stream=end)
        except H2Error as error:
            raise self._broken(number, error) from None
        self._flush()

    def room(self, number: int) -> int:
        """Return how many bytes of data may be sent on a stream in one frame now."""
        try:
            return max(0, min(self._h2.local_flow_control_window(number), self._h2.max_outbound_frame_size))
        except H2Error as error:
            raise self._broken(number, error) from None

    def send_data(self, number: int, data: bytes, end: bool) -> None:
        """Send one frame of data that there is `room` for."""
        try:
            self._h2.send_data(number, data, end_stream=end)
        except H2Error as error:
            raise self._broken(number, error) from None
        self._flush()

    def open_window(self, size: int, number: int) -> None:
        """Let the peer send more on a stream."""
        try:
            self._h2.increment_flow_control_window(size, number)
        except (H2Error, KeyError):
            return  # the stream has ended meanwhile
        self._flush()

    def reset(self, number: int, code: int) -> None:
        """End a stream on both sides."""
        self.forget(number)
        try:
            self._h2.reset_stream(number, code)
        except H2Error:
            return
        self._flush()

    def forget(self, number: int) -> None:
        """The stream is over on both sides."""
        self._streams.pop(number, None)
        self._fewer.set()

    def _broken(self, number: int, error: H2Error) -> PeerGone:
        return self._lost or PeerGone(f"stream {number} is over: {error}")

    # -- asyncio's protocol -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(CONNECTION_WINDOW)
        self._flush()
        prefix, self._prefix = self._prefix, b""
        if prefix:
            self.data_received(prefix)

    def data_received(self, data: bytes) -> None:
        if self._lost is not None:
            return
        try:
            for event in self._h2.receive_data(data):
                self._act_on(event)
        except H2Error as error:
            log.debug("a peer broke HTTP/2: %s", error)
            self._flush()
            self._lose(PeerGone(f"the peer broke HTTP/2: {error}"))
            if self._transport is not None:
                self._transport.close()
            return
        self._flush()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._transport = None
        self._lose(PeerGone("the client has closed its connection" if exc is None else f"the connection broke: {exc}"))

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        transport = self._transport
        if not data or transport is None or transport.is_closing():
            return
        transport.write(data)
        if transport.get_write_buffer_size() > MAX_BACKLOG:
            log.debug("a peer does not take what it asks for and is let go")
            transport.abort()

    def _act_on(self, event: Event) -> None:
        if isinstance(event, DataReceived):
            self._data(event)
        elif isinstance(event, RequestReceived):
            self._opened(event)
        elif isinstance(event, RemoteSettingsChanged):
            self._may_send(0)
        elif isinstance(event, WindowUpdated):
            self._may_send(event.stream_id)
        elif isinstance(event, ConnectionTerminated):
            self._lose(PeerGone("the peer has ended the connection"))
            if self._transport is not None:
                self._transport.close()
        elif isinstance(event, ResponseReceived | TrailersReceived | StreamEnded | StreamReset):
            stream = self._streams.get(event.stream_id or 0)
            if stream is None:
                return
            if isinstance(event, ResponseReceived):
                stream.got_headers(_pairs(event.headers))
            elif isinstance(event, TrailersReceived):
                stream.trailers = _pairs(event.headers)
            elif isinstance(event, StreamEnded):
                stream.ended()
            else:
                self.forget(stream.number)
                stream.lose(Reset("the client has given up the call"))

    def _data(self, event: DataReceived) -> None:
        size = event.flow_controlled_length or 0
        self._uncredited += size
        if self._uncredited >= CONNECTION_WINDOW // 2:
            size_all, self._uncredited = self._uncredited, 0
            self._h2.increment_flow_control_window(size_all)
        stream = self._streams.get(event.stream_id or 0)
        if stream is not None:
            stream.received(event.data or b"", size)

    def _opened(self, event: RequestReceived) -> None:
        number = event.stream_id or 0
        stream = self._streams[number] = Stream(self, number, _pairs(event.headers))
        if self._on_stream is None:
            stream.reset(ErrorCodes.REFUSED_STREAM)
        else:
            self._on_stream(stream)

    def _may_send(self, number: int | None) -> None:
        for stream in list(self._streams.values()) if not number else filter(None, [self._streams.get(number)]):
            stream.may_send()

    def _lose(self, error: PeerGone) -> None:
        if self._lost is None:
            self._lost = error
        self.writable.set()
        self._fewer.set()
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.lose(self._lost)
        self.closed.set()


def _pairs(headers: object) -> Headers:
    assert isinstance(headers, list)
    return [(bytes(name), bytes(value)) for name, value in headers]
