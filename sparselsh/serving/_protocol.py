"""uvicorn's protocols with limits of time and size for the head of a request.

uvicorn itself waits for ever for the rest of a head, so that a client which sends a byte a minute
keeps a connection, and with httptools a head may be of any size. Other limits begin with the body.
"""
from __future__ import annotations

import asyncio
import importlib
import importlib.util
from typing import Any

MAX_HEAD_BYTES = 1 << 16
HEAD_END = b"\r\n\r\n"
TOO_LARGE = (b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n"
             b"content-length: 0\r\n\r\n")


def protocol(timeout: float) -> type[Any]:
    """A class for ``uvicorn.Config(http=)``: httptools if it is installed, else h11."""
    name = "httptools_impl.HttpToolsProtocol"
    if importlib.util.find_spec("httptools") is None:
        name = "h11_impl.H11Protocol"
    module, _, kind = name.partition(".")
    base: Any = getattr(importlib.import_module(f"uvicorn.protocols.http.{module}"), kind)

    class Timed(base):
        """Drops a connection whose head does not come."""

        _drop: asyncio.TimerHandle | None = None
        _head_bytes = 0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._start()

        def data_received(self, data: bytes) -> None:
            self._start()
            if not self._has_request():
                end = data.find(HEAD_END)
                self._head_bytes += len(data) if end < 0 else end
                if self._head_bytes > MAX_HEAD_BYTES:
                    self.transport.write(TOO_LARGE)
                    self.transport.close()
                    return
            super().data_received(data)
            if self._has_request():
                self._stop()

        def connection_lost(self, error: Exception | None) -> None:
            self._stop()
            super().connection_lost(error)

        def _has_request(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _start(self) -> None:
            if self._drop is None and not self._has_request():
                self._drop = asyncio.get_running_loop().call_later(timeout, self._expire)

        def _stop(self) -> None:
            if self._drop is not None:
                self._drop.cancel()
                self._drop = None
            self._head_bytes = 0

        def _expire(self) -> None:
            self._drop = None
            if not self._has_request() and not self.transport.is_closing():
                self.transport.close()

    return Timed
