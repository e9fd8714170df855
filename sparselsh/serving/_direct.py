"""POST /predict from the bytes of a request to those of its answer, without ASGI.

A text is answered in some microseconds; its way through a parser, a scope, a task and two messages
takes many times as long. A request that is plain and has come whole goes this way. Everything else,
such as another path, a body in parts, ``Expect`` or what is no HTTP, goes through uvicorn.
"""
from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any

from ._answers import BadRequest
from ._batching import Busy

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._batching import Batcher
    from ._limits import Limits, Rates
    from ._metrics import Metrics

REQUEST = b"POST /predict HTTP/1.1\r\n"
HEADERS = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*\r\n)+")
LENGTH = re.compile(rb"^content-length:[ \t]*([0-9]{1,9})[ \t]*\r$", re.I | re.M)
UNUSUAL = re.compile(rb"^(?:content-length[ \t]*:(?![ \t]*[0-9]{1,9}[ \t]*\r)|transfer-encoding|"
                     rb"expect|connection|upgrade)", re.I | re.M)
REASONS = {200: b"OK", 400: b"Bad Request", 429: b"Too Many Requests",
           500: b"Internal Server Error", 503: b"Service Unavailable"}
RETRY_STATUSES = (429, 503)


def body_of(data: bytes, max_bytes: int) -> bytes | None:
    """The body of one whole and plain request for /predict; None where the bytes are none."""
    if not data.startswith(REQUEST):
        return None
    end = data.find(b"\r\n\r\n", len(REQUEST)) + 2
    if end < 2 or not HEADERS.fullmatch(data, len(REQUEST), end):
        return None
    head = data[len(REQUEST):end]
    lengths = LENGTH.findall(head)
    if len(lengths) != 1 or UNUSUAL.search(head):
        return None
    n = int(lengths[0])
    return data[end + 2:] if n <= max_bytes and len(data) == end + 2 + n else None


def refusal(error: Exception, rates: Rates) -> tuple[int, str]:
    """The status of a request that is not answered, and why."""
    if isinstance(error, BadRequest):
        return 400, str(error)
    if isinstance(error, Busy):
        return 503, "too many requests wait; try again later"
    if isinstance(error, TooOften):
        return 429, f"more than {rates.rate:g} requests per second; try again later"
    return 500, f"{type(error).__name__} while answering"


def error_body(text: str) -> bytes:
    """The body of an answer with another status than 200."""
    return json.dumps({"error": text}, ensure_ascii=False).encode("utf-8", "backslashreplace")


class TooOften(Exception):
    """The client has sent more requests than it may."""


class Direct:
    """Answers the bodies of requests for /predict by messages."""

    def __init__(self, answers: Any, batcher: Batcher, limits: Limits, rates: Rates,
                 metrics: Metrics) -> None:
        self.answers, self.batcher, self.limits = answers, batcher, limits
        self.rates, self.metrics = rates, metrics

    def ask(self, body: bytes, client: str, headers: list[tuple[bytes, bytes]],
            reply: Callable[[bytes], None]) -> None:
        """Have `reply` called with the message of the answer, which has these headers, too."""
        begin = time.perf_counter()

        def done(answer: Any) -> None:
            status = 200
            if isinstance(answer, Exception):
                status, text = refusal(answer, self.rates)
                answer = error_body(text)
            lines = [b"HTTP/1.1 %d %s" % (status, REASONS[status]),
                     *[b"%s: %s" % header for header in headers],
                     b"content-type: application/json", b"content-length: %d" % len(answer)]
            if status in RETRY_STATUSES:
                lines.append(b"retry-after: 1")
            self.metrics.request("/predict", status, time.perf_counter() - begin)
            reply(b"\r\n".join([*lines, b"", answer]))

        try:
            if not self.rates.allows(client):
                raise TooOften
            self.batcher.submit(self.answers.job(body, self.limits), done)
        except Exception as error:
            done(error)
