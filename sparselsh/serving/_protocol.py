"""uvicorn's protocols with limits of time and size for the head of a request.

uvicorn itself waits for ever for the rest of a head, so that a client which sends a byte a minute
keeps a connection, and with httptools a head may be of any size. Other limits begin with the body.
Plain requests for /predict are answered directly (_direct).
"""
from __future__ import annotations

import asyncio
import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from ._direct import body_of

if TYPE_CHECKING:
    from ._direct import Direct

MAX_HEAD_BYTES = 1 << 16
HEAD_END = b"\r\n\r\n"
TOO_LARGE = (b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n"
             b"content-length: 0\r\n\r\n")


def protocol(timeout: float, direct: Direct) -> type[Any]:
    """A class for ``uvicorn.Config(http=)``: httptools if it is installed, else h11."""
    name = "httptools_impl.HttpToolsProtocol"
    if importlib.util.find_spec("httptools") is None:
        name = "h11_impl.H11Protocol"
    module, _, kind = name.partition(".")
    base: Any = getattr(importlib.import_module(f"uvicorn.protocols.http.{module}"), kind)

    class Timed(base):
        """Drops a connection whose head does not come, and answers plain requests."""

        _drop: asyncio.TimerHandle | None = None
        _head_bytes = 0
        _is_asked = False  # of a plain request, whose answer is yet to come
        _is_ending = False
        _later = b""  # what has come meanwhile
        _answered = 0.0  # when the last plain request was answered; 0 where the last was another

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._start()

        def data_received(self, data: bytes) -> None:
            if self._is_asked:
                self._later += data
                if len(self._later) > MAX_HEAD_BYTES + direct.limits.max_bytes:
                    self.transport.close()
                return
            if self._is_idle() and (body := body_of(data, direct.limits.max_bytes)) is not None:
                self._unset_keepalive_if_required()
                self._is_asked = True
                direct.ask(body, self.client[0] if self.client else "",
                           self.server_state.default_headers, self._reply)
                return

            if self._answered:
                self._answered = 0.0
                self._stop()  # the time of this head begins now
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

        def _is_idle(self) -> bool:
            """Whether uvicorn has no request, and waits for none of which a part has come."""
            cycle = self.cycle
            return (not self._head_bytes and not self.flow.write_paused
                    and (cycle is None or (cycle.response_complete and not cycle.more_body)))

        def _reply(self, message: bytes) -> None:
            self._is_asked = False
            if self.transport.is_closing():
                return
            self.transport.write(message)
            self._answered = asyncio.get_running_loop().time()
            if self._is_ending:
                self.transport.close()
            elif self._later:
                data, self._later = self._later, b""
                self.data_received(data)

        def shutdown(self) -> None:
            if self._is_asked:
                self._is_ending = True
            else:
                super().shutdown()

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
            if self._has_request() or self.transport.is_closing():
                return
            loop = asyncio.get_running_loop()
            rest = timeout if self._is_asked else self._answered + timeout - loop.time()
            if rest > 0:  # instead of a timer per plain request
                self._drop = loop.call_later(rest, self._expire)
            else:
                self.transport.close()

    return Timed
