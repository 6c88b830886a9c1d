"""The backend's client for asyncio, apart from the blocking one: the command line must not wait for aiohttp's import."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, TypeVar

import aiohttp
from pydantic import BaseModel

from moorage_host.api import PREFIX, Line, MachineStatus
from moorage_host.backend_process import ensure_backend
from moorage_host.client import Progress, failure, quiet
from moorage_host.errors import ErrorCode, HostError
from moorage_host.paths import Paths, user_paths

M = TypeVar("M", bound=BaseModel)


class AsyncClient:
    """The backend's methods for asyncio: `call` with a model of the result, and `watch`."""

    def __init__(self, paths: Paths | None = None) -> None:
        self._paths = user_paths() if paths is None else paths

    @contextlib.asynccontextmanager
    async def _request(self, method: str, params: dict[str, Any] | None) -> AsyncIterator[aiohttp.ClientResponse]:

        await asyncio.to_thread(ensure_backend, self._paths)
        connector = aiohttp.UnixConnector(path=str(self._paths.backend_socket))
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        try:
            async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
                async with session.post(f"http://moorage{PREFIX}{method}", json=params or {}) as response:
                    yield response
        except aiohttp.ClientError as error:
            raise HostError(
                f"the backend does not answer: {error}",
                hint="try again: the machine goes on",
                code=ErrorCode.UNAVAILABLE,
            ) from error

    async def call(
        self, method: str, result: type[M], params: dict[str, Any] | None = None, progress: Progress = quiet
    ) -> M:
        """One method, its result as `result`."""
        async with self._request(method, params) as response:
            async for text in response.content:
                line = Line.model_validate_json(text)
                if line.progress is not None:
                    progress(line.progress)
                elif line.error is not None:
                    raise failure(line)
                elif line.result is not None:
                    return result.model_validate(line.result)
        raise HostError(
            "the backend ended before it answered", hint="try again: the machine goes on", code=ErrorCode.UNAVAILABLE
        )

    async def status(self) -> MachineStatus:
        """Where everything stands."""
        return await self.call("status", MachineStatus)

    async def watch(self) -> AsyncGenerator[MachineStatus, None]:
        """The status now and on every change, until the backend ends (HostError)."""
        async with self._request("watch", None) as response:
            async for text in response.content:
                line = Line.model_validate_json(text)
                if line.event is not None:
                    yield MachineStatus.model_validate(line.event)
        raise HostError("the backend ended", code=ErrorCode.UNAVAILABLE)
