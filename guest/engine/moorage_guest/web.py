"""What the engine uses of aiohttp: its server at once, its client when an address is first asked for something.

`import aiohttp` runs the package's own code, which imports the client and everything that belongs to it and reads the
certificates of all authorities: a seventh of the daemon's time to import and 5 MB, which a daemon that pulls nothing does not
need. Here that code waits until a name is used that it defines, such as `aiohttp.ClientSession`. Whoever imports aiohttp
elsewhere gets it whole, as ever.
"""

from moorage_contract.postponed import postponed

__all__ = [
    "AbstractStreamWriter", "BaseRequest", "ClientPayloadError", "HTTPException", "HttpProcessingError", "HttpVersion11",
    "RequestHandler", "Response", "Server", "StreamReader", "StreamResponse", "StreamWriter", "WSMsgType",
    "WebSocketResponse", "aiohttp",
]  # fmt: skip

# Its modules ask for the version, which stands in headers that the engine sets itself.
with postponed("aiohttp", __version__=""):
    import aiohttp
    from aiohttp.abc import AbstractStreamWriter
    from aiohttp.client_exceptions import ClientPayloadError
    from aiohttp.http import WSMsgType
    from aiohttp.http_exceptions import HttpProcessingError
    from aiohttp.http_writer import HttpVersion11, StreamWriter
    from aiohttp.streams import StreamReader
    from aiohttp.web_exceptions import HTTPException
    from aiohttp.web_protocol import RequestHandler
    from aiohttp.web_request import BaseRequest
    from aiohttp.web_response import Response, StreamResponse
    from aiohttp.web_server import Server
    from aiohttp.web_ws import WebSocketResponse
