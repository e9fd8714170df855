"""The ASGI application: routes, checks of requests, answers."""
from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ._answers import BadRequest, served
from ._batching import Batcher
from ._direct import Direct, TooOften, error_body, refusal
from ._limits import Limits, Rates
from ._metrics import Metrics
from ._page import HEADERS, page

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from starlette.requests import Request

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

JSON = (b"content-type", b"application/json")
SHUT = (b"connection", b"close")  # after a body that was not read


class _Refused(Exception):
    """A request that gets a status other than 200."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


class _Gone(Exception):
    """The client has closed the connection."""


class _Post:
    """An ASGI application for POST requests with a JSON body.

    `answer` takes the body and returns that of the answer.
    """

    def __init__(self, path: str, answer: Callable[[bytes], Awaitable[bytes]], limits: Limits,
                 rates: Rates, metrics: Metrics) -> None:
        self.path, self.answer = path, answer
        self.limits, self.rates, self.metrics = limits, rates, metrics

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        begin, extra = time.perf_counter(), []
        try:
            status, body = 200, await self._answered(scope, receive)
        except _Gone:
            return
        except _Refused as refused:
            status, body = refused.status, error_body(refused.text)
            if status in (408, 413):
                extra = [SHUT]
            elif status in (429, 503):
                extra = [(b"retry-after", b"1")]
            elif status == 405:
                extra = [(b"allow", b"POST")]
        headers = [JSON, (b"content-length", str(len(body)).encode()), *extra]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        self.metrics.request(self.path, status, time.perf_counter() - begin)

    async def _answered(self, scope: Any, receive: Receive) -> bytes:
        if scope["method"] != "POST":
            raise _Refused(405, "use POST")
        client = scope.get("client")
        if not self.rates.allows(client[0] if client else ""):
            raise _Refused(*refusal(TooOften(), self.rates))
        body = await self._body(scope, receive)
        try:
            return await self.answer(body)
        except Exception as error:
            raise _Refused(*refusal(error, self.rates)) from error

    async def _body(self, scope: Any, receive: Receive) -> bytes:
        most = self.limits.max_bytes
        too_large = _Refused(413, f"the body has more than {most} bytes")
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > most:
                raise too_large
        end, body, is_whole = time.monotonic() + self.limits.timeout, b"", False
        while not is_whole:
            message = await self._received(receive, end - time.monotonic())
            body += message.get("body", b"")
            if len(body) > most:
                raise too_large
            is_whole = not message.get("more_body")
        return body

    async def _received(self, receive: Receive, timeout: float) -> Message:
        try:
            async with asyncio.timeout(timeout):
                message = await receive()
        except TimeoutError:
            raise _Refused(408, f"the body did not come within {self.limits.timeout:g} s"
                           ) from None
        if message["type"] == "http.disconnect":
            raise _Gone
        return message


class Application(Starlette):
    """Starlette, with a way around its middleware for /predict, which it would slow down most."""

    predict: _Post
    direct: Direct  # for the protocol, which answers plain requests without this application

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] == "/predict":
            await self.predict(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def application(model: Any, *, limits: Limits | None = None, metrics: Metrics | None = None,
                name: str = "") -> Application:
    """An ASGI application that answers by a model.

    Parameters
    ----------
    model : Tagger, Recommender, Network or InferenceNetwork
        Trained.
    limits : Limits or None
        None for ``Limits()``.
    metrics : Metrics or None
        Counters that workers share; None for some of its own.
    name : str
        Name of the model, shown by /health and the page.

    Returns
    -------
    starlette.applications.Starlette
    """
    limits = limits or Limits()
    if metrics is None:
        metrics = Metrics(1)
        metrics.use_row(0)
    answers, rates = served(model), Rates(limits.rate)
    batcher = Batcher(answers.answers, limits, metrics.batch)

    async def predict(body: bytes) -> bytes:
        return await batcher.answer(answers.job(body, limits))

    async def explain(body: bytes) -> bytes:
        if not answers.has_explanations:
            raise BadRequest(f"the model answers {answers.kind}, which have no words to explain")
        return await batcher.run(answers.explanation, body)

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok", "model": name, "answers": answers.kind,
                             "labels": answers.n_labels, "waiting": batcher.n_waiting,
                             "worker": metrics.worker()})

    async def counters(request: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    async def front(request: Request) -> Response:
        return Response(page(name, answers), media_type="text/html", headers=HEADERS)

    def counted(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        metrics.request("other", status, 0.0)
        text = {404: "there are /predict, /explain, /health, /metrics and /",
                405: "use GET"}.get(status, "error")
        return JSONResponse({"error": text}, status_code=status)

    routes = [Route("/explain", _Post("/explain", explain, limits, rates, metrics)),
              Route("/health", health), Route("/metrics", counters), Route("/", front)]
    app = Application(routes=routes, exception_handlers={HTTPException: counted})
    app.predict = _Post("/predict", predict, limits, rates, metrics)
    app.direct = Direct(answers, batcher, limits, rates, metrics)
    return app
