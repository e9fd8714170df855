"""The socket, the workers that share it and the model, and the signals that end them.

The parent loads the model, binds the socket and forks. It uses one thread before it forks, because
the thread pool of OpenMP does not survive a fork; what it has read and built is shared by the
workers until one writes to it, which none does. A worker that dies is replaced.
"""
from __future__ import annotations

import os
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Any, NoReturn

import uvicorn

from ._answers import served
from ._app import application
from ._limits import Limits
from ._metrics import Metrics
from ._protocol import protocol

if TYPE_CHECKING:
    from collections.abc import Callable

BACKLOG = 1024
GRACE_SECONDS = 30  # for requests that run when the server ends
MIN_LIFE_SECONDS = 1.0  # a worker that dies sooner is replaced after a pause
CHECK_SECONDS = 0.2


def serve(model: Any, *, host: str = "127.0.0.1", port: int = 8000, workers: int = 1,
          n_threads: int | None = 1, limits: Limits | None = None, name: str = "",
          ready: Callable[[str, int], None] | None = None) -> None:
    """Answer requests until SIGTERM or SIGINT; requests that run then are answered first.

    Parameters
    ----------
    model : Tagger, Recommender, Network or InferenceNetwork
        Loaded with ``n_threads=1``, and not yet used with more: see above.
    host : str
    port : int
        0 for a free one.
    workers : int
        Processes that answer.
    n_threads : int or None
        Threads of the kernels in each.
    limits : Limits or None
    name : str
    ready : callable or None
        Called with host and port when connections are accepted.

    Raises
    ------
    OSError
        If the port cannot be used.
    """
    limits = limits or Limits()
    answers = served(model)
    answers.warm_up()
    sock = _bound(host, port)
    metrics = Metrics(workers)
    if not hasattr(os, "fork"):
        if ready is not None:
            ready(*sock.getsockname()[:2])
        _work(model, answers, sock, 0, n_threads, limits, metrics, name)
        return
    _supervise(workers, sock, ready, lambda worker: _work(
        model, answers, sock, worker, n_threads, limits, metrics, name))


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    sock.set_inheritable(True)
    return sock


def _work(model: Any, answers: Any, sock: socket.socket, worker: int, n_threads: int | None,
          limits: Limits, metrics: Metrics, name: str) -> None:
    """Serve until a signal ends this process's server."""
    answers.use_threads(n_threads)
    metrics.use_row(worker)
    app = application(model, limits=limits, metrics=metrics, name=name)
    config = uvicorn.Config(
        app, http=protocol(limits.timeout, app.direct), ws="none", lifespan="off", access_log=False,
        log_level="warning", timeout_keep_alive=max(5, int(limits.timeout)),
        timeout_graceful_shutdown=GRACE_SECONDS, server_header=False, backlog=BACKLOG)
    uvicorn.Server(config).run(sockets=[sock])


def _supervise(n_workers: int, sock: socket.socket, ready: Callable[[str, int], None] | None,
               work: Callable[[int], None]) -> None:
    """Fork workers, replace those that die, and end all at a signal."""
    ending: list[int] = []
    before = {number: signal.signal(number, lambda number, _: ending.append(number))
              for number in (signal.SIGTERM, signal.SIGINT)}
    running: dict[int, tuple[int, float]] = {}  # pid: (worker, when it began)
    try:
        for worker in range(n_workers):
            running[_forked(worker, work)] = worker, time.monotonic()
        if ready is not None:
            ready(*sock.getsockname()[:2])
        while not ending:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                time.sleep(CHECK_SECONDS)
                continue
            if pid not in running:
                continue
            worker, begin = running.pop(pid)
            print(f"sparselsh: worker {pid} ended ({_reason(status)}); another takes its place",
                  file=sys.stderr, flush=True)
            if time.monotonic() - begin < MIN_LIFE_SECONDS:
                time.sleep(MIN_LIFE_SECONDS)
            if not ending:
                running[_forked(worker, work)] = worker, time.monotonic()
    finally:
        sock.close()
        _end(running)
        for number, handler in before.items():
            signal.signal(number, handler)


def _forked(worker: int, work: Callable[[int], None]) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    _child(worker, work)


def _child(worker: int, work: Callable[[int], None]) -> NoReturn:
    code = 1
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        work(worker)
        code = 0
    except KeyboardInterrupt:  # uvicorn raises the signal again when it has ended
        code = 0
    except BaseException as error:
        print(f"sparselsh: worker {os.getpid()}: {type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _end(running: dict[int, tuple[int, float]]) -> None:
    """Let workers finish their requests; kill those that do not."""
    for pid in running:
        _signal(pid, signal.SIGTERM)
    limit = time.monotonic() + GRACE_SECONDS + 5
    while running and time.monotonic() < limit:
        for pid in list(running):
            if os.waitpid(pid, os.WNOHANG)[0]:
                del running[pid]
        time.sleep(0.02)
    for pid in running:
        _signal(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _reason(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"signal {os.WTERMSIG(status)}"
    return f"exit code {os.WEXITSTATUS(status)}"
