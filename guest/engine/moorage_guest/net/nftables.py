"""Binding of libnftables: run a text transaction in the calling thread's network namespace, read a table as JSON."""

import ctypes
import json
from typing import Any

_JSON = 1 << 4


class NftablesError(Exception):
    """The kernel or the parser refused a transaction; nothing of it took effect."""


class Nftables:
    """One libnftables context, bound to the namespace it was made in. Not thread-safe."""

    def __init__(self) -> None:
        try:
            library = ctypes.CDLL("libnftables.so.1")
        except OSError as error:
            raise NftablesError(
                f"cannot load libnftables.so.1 ({error}): install libnftables1, or set iptables to false"
            ) from error
        library.nft_ctx_new.restype = ctypes.c_void_p
        library.nft_ctx_new.argtypes = [ctypes.c_uint32]
        library.nft_ctx_free.argtypes = [ctypes.c_void_p]
        library.nft_ctx_buffer_output.argtypes = [ctypes.c_void_p]
        library.nft_ctx_buffer_error.argtypes = [ctypes.c_void_p]
        library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
        library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
            getattr(library, name).restype = ctypes.c_char_p
            getattr(library, name).argtypes = [ctypes.c_void_p]
        self._library = library
        self._context: int | None = library.nft_ctx_new(0)
        if not self._context:
            raise NftablesError("libnftables gave no context")
        library.nft_ctx_buffer_output(self._context)
        library.nft_ctx_buffer_error(self._context)
        library.nft_ctx_output_set_flags(self._context, _JSON)

    def run(self, commands: str) -> str:
        """Run commands as one transaction and return what they print."""
        status = self._library.nft_run_cmd_from_buffer(self._context, commands.encode())
        error = (self._library.nft_ctx_get_error_buffer(self._context) or b"").decode(errors="replace")
        output = (self._library.nft_ctx_get_output_buffer(self._context) or b"").decode(errors="replace")
        if status != 0:
            raise NftablesError(error.strip() or f"nftables status {status}")
        return output

    def table(self, family: str, name: str) -> list[dict[str, Any]] | None:
        """Return the objects of one table, or None when there is no such table."""
        try:
            text = self.run(f"list table {family} {name}")
        except NftablesError as error:
            if "No such file" in str(error):
                return None
            raise
        return list(json.loads(text)["nftables"]) if text else None

    def close(self) -> None:
        """Free the context."""
        if self._context is not None:
            self._library.nft_ctx_free(self._context)
            self._context = None
