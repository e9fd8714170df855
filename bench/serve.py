"""`sparselsh serve` under load, beside `predict_topk` in process.

usage: python -P bench/serve.py MODEL.safetensors TEXTS.jsonl [--text COLUMN] [--requests N]
                                [--clients N] [--workers N] [--texts-per-request N] [--json FILE]

MODEL is a tagger. Clients are connections of one process on loopback, each of which sends its next
request when the answer to the last one has come. In process the same texts are answered in lists of
`--clients`, with as many threads as there are workers, which is what the workers have: the client
itself has no processor of its own, so that on two cores it takes a part of both.
"""
import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import sparselsh as sl

sys.path.insert(0, str(Path(__file__).parent))
from common import write_json

K = 5


def read_texts(path, column):
    """The texts of a file of JSONL, plain or .xz."""
    import lzma

    with (lzma.open if path.endswith(".xz") else open)(path, "rt", encoding="utf-8") as file:
        return [json.loads(line)[column] for line in file]


def in_process(model, texts, n_threads, n_together):
    """Texts per second, and CPU seconds per text, of `predict_topk`; best of three passes.

    It is called with lists of `n_together` texts.
    """
    tagger = sl.load(model, n_threads=n_threads)
    tagger.predict_topk(texts[:n_together], k=K)
    found = []
    for _ in range(3):
        begin, cpu = time.perf_counter(), time.process_time()
        for start in range(0, len(texts), n_together):
            tagger.predict_topk(texts[start:start + n_together], k=K)
        found.append((len(texts) / (time.perf_counter() - begin),
                      (time.process_time() - cpu) / len(texts)))
    return max(rate for rate, _ in found), min(cpu for _, cpu in found)


def cpu_seconds(pid):
    """CPU seconds of the children of a process; Linux only."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    fields = [Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
              for child in children]
    return sum(int(field[11]) + int(field[12]) for field in fields) / os.sysconf("SC_CLK_TCK")


def requests_of(texts, n_texts):
    """The bytes of requests, `n_texts` texts each."""
    made = []
    for start in range(0, len(texts), n_texts):
        body = json.dumps({"texts": texts[start:start + n_texts], "k": K}).encode()
        made.append(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
                    b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    return made


class Client(asyncio.Protocol):
    """A connection that sends one request after the other."""

    def __init__(self, todo, seconds, errors, done):
        self.todo, self.seconds, self.errors, self.done = todo, seconds, errors, done
        self.data = b""

    def connection_made(self, transport):
        self.transport = transport
        self.next()

    def next(self):
        if not self.todo:
            self.transport.close()
            return
        self.begin = time.perf_counter()
        self.transport.write(self.todo.pop())

    def data_received(self, data):
        self.data += data
        head, end, body = self.data.partition(b"\r\n\r\n")
        if not end:
            return
        length = int(re.search(rb"content-length: (\d+)", head, re.I)[1])
        if len(body) < length:
            return
        self.seconds.append(time.perf_counter() - self.begin)
        if not head.startswith(b"HTTP/1.1 200") or b'"predictions"' not in body:
            self.errors.append(head[:80])
        self.data = body[length:]
        self.begin = None
        self.next()

    def connection_lost(self, error):
        if getattr(self, "begin", None) is not None:
            self.errors.append(f"connection lost: {error}".encode())
        self.done()


async def load(port, made, n_clients):
    """Latencies, errors and seconds of all requests."""
    todo, seconds, errors, open_ = list(reversed(made)), [], [], [n_clients]
    ended = asyncio.Event()

    def done():
        open_[0] -= 1
        if not open_[0]:
            ended.set()

    loop = asyncio.get_running_loop()
    begin = time.perf_counter()
    for _ in range(n_clients):
        await loop.create_connection(lambda: Client(todo, seconds, errors, done),
                                     "127.0.0.1", port)
    await ended.wait()
    return np.array(seconds), errors, time.perf_counter() - begin


def main():
    """Measure both and print a table."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("texts")
    parser.add_argument("--text", default="text")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--texts-per-request", type=int, default=1)
    parser.add_argument("--json")
    args = parser.parse_args()

    texts = read_texts(args.texts, args.text)
    n = args.requests * args.texts_per_request
    texts = (texts * (n // len(texts) + 1))[:n]
    alone, alone_cpu = in_process(args.model, texts[:10_000], args.workers, args.clients)

    command = [sys.executable, "-P", "-m", "sparselsh", "serve", args.model, "--port", "0",
               "--workers", str(args.workers)]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True,
                              env=os.environ | {"OMP_WAIT_POLICY": "passive"})
    try:
        port = int(re.search(r":(\d+)/", server.stderr.readline())[1])
        made = requests_of(texts, args.texts_per_request)
        asyncio.run(load(port, made[:500], args.clients))  # the first calls build what is needed
        begin, before = time.process_time(), cpu_seconds(server.pid)
        seconds, errors, wall = asyncio.run(load(port, made, args.clients))
        client, cpu = time.process_time() - begin, cpu_seconds(server.pid) - before
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()
        server.stderr.close()

    p50, p99 = np.percentile(1e3 * seconds, [50, 99])
    result = {"requests": len(seconds), "errors": len(errors), "p50_ms": p50, "p99_ms": p99,
              "max_ms": 1e3 * seconds.max(), "requests_per_second": len(made) / wall,
              "texts_per_second": n / wall, "in_process_texts_per_second": alone,
              "cpu_microseconds_per_text": 1e6 * cpu / n,
              "in_process_cpu_microseconds_per_text": 1e6 * alone_cpu,
              "client_cpu_microseconds_per_text": 1e6 * client / n}
    print(f"{len(seconds):,} requests of {args.clients} clients, {args.texts_per_request} texts "
          f"each, {args.workers} workers: {len(errors)} errors")
    print(f"latency {p50:.1f} ms (median), {p99:.1f} ms (p99), {1e3 * seconds.max():.1f} ms (max)")
    print(f"{len(made) / wall:,.0f} requests and {n / wall:,.0f} texts per second; in process "
          f"{alone:,.0f} texts per second: {n / wall / alone:.0%}")
    print(f"CPU microseconds per text: server {1e6 * cpu / n:.0f}, client {1e6 * client / n:.0f}, "
          f"in process {1e6 * alone_cpu:.0f}")
    if errors:
        print(errors[0])
    if args.json:
        write_json(args.json, result)


if __name__ == "__main__":
    main()
