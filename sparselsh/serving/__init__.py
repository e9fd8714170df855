"""`sparselsh serve`: answers over HTTP, by forked workers that share one model.

    socket ─► _workers ─► uvicorn ─► _app ─► _batching ─► _answers ─► model
              forks and              checks,  waiting      parses, answers,
              restarts               limits   requests     explains
                                              together

    _answers   what a request asks of a model, and its answer
    _batching  one call to the model for all requests that wait
    _limits    sizes, rates and times
    _metrics   counters of all workers, in shared memory, as text for Prometheus
    _page      a page to try the model in a browser
    _app       the ASGI application, on Starlette
    _direct    plain requests for /predict, from bytes to bytes
    _protocol  uvicorn's protocol, which drops requests that never end, and asks _direct
    _workers   the socket, forks, restarts, signals

It needs the extra ``serve``: starlette and uvicorn.
"""
from ._app import application
from ._limits import Limits
from ._workers import serve

__all__ = ["Limits", "application", "serve"]
