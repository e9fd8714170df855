"""`sparselsh serve`: real processes on loopback, and requests that are wrong in every way."""
import concurrent.futures
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

import sparselsh as sl

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("safetensors")
if not hasattr(os, "fork"):
    pytest.skip("workers are forked", allow_module_level=True)

TOPICS = {"fruit": "apple pear plum cherry", "traffic": "car bus tram lorry",
          "music": "violin drum flute harp", "weather": "rain wind snow cloud"}


def texts(n, seed=0):
    rng = np.random.default_rng(seed)
    names = rng.choice(list(TOPICS), n)
    return [" ".join(rng.choice(TOPICS[name].split(), 3)) for name in names], names.tolist()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with a tagger, a recommender, and networks with and without probabilities."""
    folder = tmp_path_factory.mktemp("models")
    written, names = texts(800)
    sl.Tagger(hidden=8, random_state=0).fit(written, [[name] for name in names]).save(
        folder / "tagger.safetensors")
    rng = np.random.default_rng(0)
    sequences = [[f"item {(begin + i) % 20}" for i in range(5)] for begin in range(20)] * 20
    sl.Recommender(hidden=16, random_state=0).fit(sequences).save(folder / "items.safetensors")
    y = rng.integers(12, size=700)
    import scipy.sparse as sp
    X = sp.csr_array(np.eye(30, dtype=np.float32)[y * 2])
    net = sl.Network([sl.Linear(30, 8), sl.LSHLinear(8, 12)], random_state=0)
    net.fit(X, y, epochs=8, batch_size=32, verbose=False)
    net.save(folder / "plain.safetensors")
    sl.InferenceNetwork.from_network(net, storage="int8").save(folder / "small.safetensors")
    net.calibrate(X, y).save(folder / "network.safetensors")
    return folder


class Server:
    """A running server."""

    def __init__(self, process, port):
        self.process, self.port = process, port

    def ask(self, method, path, body=None, headers=None):
        """(status, headers, body) of one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            if isinstance(body, dict):
                body = json.dumps(body).encode()
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, dict(answer.headers), answer.read()

    def post(self, path, body, status=200):
        found, _, text = self.ask("POST", path, body)
        assert found == status, text
        return json.loads(text)

    def raw(self, data, timeout=20.0):
        """What comes back to these bytes, until the server closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as sock:
            sock.sendall(data)
            found = b""
            with contextlib.suppress(ConnectionResetError):
                while part := sock.recv(65536):
                    found += part
            return found

    def worker(self):
        return json.loads(self.ask("GET", "/health")[2])["worker"]


@contextlib.contextmanager
def running(model, *options):
    command = [sys.executable, "-P", "-m", "sparselsh", "serve", str(model), "--port", "0",
               *map(str, options)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
        assert found, line + process.stderr.read()
        yield Server(process, int(found[1]))
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        finally:
            process.kill()
            process.stderr.close()


@pytest.fixture(scope="module")
def server(models):
    with running(models / "tagger.safetensors", "--timeout", 1, "--max-bytes", 10_000) as found:
        yield found


# -- answers ---------------------------------------------------------------------------------------


def test_texts_get_the_names_and_probabilities_of_predict_topk(server, models):
    tagger = sl.load(models / "tagger.safetensors")
    asked = [*texts(20, seed=1)[0], "", "unknown words only", "äöü \u2028 \U0001f600"]
    found = server.post("/predict", {"texts": asked, "k": 3})["predictions"]
    for row, wanted in zip(found, tagger.predict_topk(asked, k=3), strict=True):
        assert [one["label"] for one in row] == [name for name, _ in wanted]
        np.testing.assert_allclose([one["probability"] for one in row], [p for _, p in wanted],
                                   atol=2e-6)
    assert server.post("/predict", {"text": "apple plum"})["predictions"][0][0]["label"] == "fruit"


def test_k_and_threshold_of_a_request_are_its_own(server):
    rows = server.post("/predict", {"text": "apple plum", "k": 4, "threshold": 0.5})["predictions"]
    assert [one["label"] for one in rows[0]] == ["fruit"]
    assert len(server.post("/predict", {"text": "apple", "k": 1000})["predictions"][0]) == 4


def test_an_explanation_names_the_words(server):
    words = server.post("/explain", {"text": "apple bus", "label": "fruit", "n": 5})["words"]
    assert words[0]["word"] == "apple" and words[0]["weight"] > 0
    assert "no-label" in server.post("/explain", {"text": "a", "label": "no-label"}, 400)["error"]


def test_many_requests_at_once_get_their_own_answers(server, models):
    tagger = sl.load(models / "tagger.safetensors")
    asked, _ = texts(200, seed=2)
    wanted = [row[0][0] for row in tagger.predict_topk(asked, k=1)]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda text: server.post("/predict", {"text": text, "k": 1}), asked))
    assert [one["predictions"][0][0]["label"] for one in found] == wanted
    counters = server.ask("GET", "/metrics")[2].decode()
    calls, items = (int(re.search(rf"sparselsh_{name}_total (\d+)", counters)[1])
                    for name in ("model_calls", "items"))
    assert items >= 200 and calls < items, "requests that wait are answered together"


@pytest.mark.parametrize("name, word", [("network", "probability"), ("plain", "score"),
                                        ("small", "score")])
def test_networks_answer_rows_of_features(models, name, word):
    with running(models / f"{name}.safetensors") as server:
        body = {"rows": [{"6": 1.0}, {"10": 1, "0": 0.0}, {}], "k": 2}
        found = server.post("/predict", body)["predictions"]
        assert [row[0]["label"] for row in found[:2]] == [3, 5]
        assert all(set(one) == {"label", word} for row in found for one in row)
        assert server.post("/predict", {"features": {"6": 1}})["predictions"][0][0]["label"] == 3
        for row, words in (({"30": 1}, "no feature of 0 to 29"), ({"-1": 1}, "no feature"),
                           ({"x": 1}, "no feature"), ({"1": "a"}, "finite number"),
                           ({"1": 1e300}, "finite number"), ({"1": 1, "01": 1}, "twice"),
                           ([1], "must be an object")):
            assert words in server.post("/predict", {"features": row}, 400)["error"]
        assert "no words" in server.post("/explain", {"text": "a", "label": "b"}, 400)["error"]
        if word == "score":
            body = {"features": {"6": 1}, "threshold": 0.5}
            assert "no probabilities" in server.post("/predict", body, 400)["error"]


def test_sequences_get_the_names_of_recommend(models):
    recommender = sl.load(models / "items.safetensors")
    asked = [["item 3", "item 4"], ["item 19"], [], ["never seen"]]
    with running(models / "items.safetensors") as server:
        for k, exclude_seen in ((3, True), (3, False), (20, True)):
            body = {"sequences": asked, "k": k, "exclude_seen": exclude_seen}
            found = server.post("/predict", body)["predictions"]
            wanted = recommender.recommend(asked, k, exclude_seen)
            assert [[one["label"] for one in row] for row in found] == [
                [name for name, _ in row] for row in wanted]
        best = server.post("/predict", {"items": ["item 4"]})["predictions"][0][0]
        assert best["label"] == "item 5" and 0.5 < best["probability"] <= 1
        for body, words in (({"items": "item 4"}, "list of names"), ({"items": [4]}, "list of"),
                            ({"items": [""]}, "no name"), ({"text": "item 4"}, "unknown"),
                            ({"items": [], "exclude_seen": 1}, "true or false")):
            assert words in server.post("/predict", body, 400)["error"]
        assert "no words" in server.post("/explain", {"text": "a", "label": "b"}, 400)["error"]
        assert b"Items so far" in server.ask("GET", "/")[2]


def test_health_and_metrics(server):
    health = json.loads(server.ask("GET", "/health")[2])
    assert (health["status"], health["labels"], health["answers"]) == ("ok", 4, "texts")
    assert health["model"] == "tagger.safetensors"

    def count(text):
        found = re.search(r'requests_total{path="/predict",status="200"} (\d+)', text)
        return int(found[1]) if found else 0

    before = count(server.ask("GET", "/metrics")[2].decode())
    server.post("/predict", {"text": "apple"})
    status, headers, text = server.ask("GET", "/metrics")
    assert status == 200 and headers["content-type"].startswith("text/plain; version=0.0.4")
    assert count(text.decode()) == before + 1
    line = re.compile(r'(#.*|[a-z_]+({[a-z]+="[^"]+"(,[a-z]+="[^"]+")*})? [0-9.+e]+)')
    assert all(line.fullmatch(one) for one in text.decode().splitlines())
    buckets = [int(n) for n in re.findall(r'seconds_bucket{le="[^"]+"} (\d+)', text.decode())]
    assert buckets == sorted(buckets)


# -- requests that are wrong -----------------------------------------------------------------------


@pytest.mark.parametrize("body, words", [
    (b"", "no JSON"), (b"{", "no JSON"), (b"[1]", "must be a JSON object"),
    (b"\xff\xfe", "no JSON"),
    (b"[" * 5000, "no JSON"), (b'{"text": 3}', "must be a string"), (b"{}", "give either"),
    (b'{"text": "a", "texts": []}', "give either"), (b'{"texts": []}', "list of 1 to"),
    (b'{"texts": "a"}', "list of 1 to"), (b'{"text": "a", "k": 0}', "whole number of 1"),
    (b'{"text": "a", "k": 2.5}', "whole number"), (b'{"text": "a", "k": true}', "whole number"),
    (b'{"text": "a", "threshold": 2}', "number of 0 to 1"),
    (b'{"text": "a", "top": 3}', "'top' is unknown"),
    (b'{"texts": [' + b'"a",' * 1500 + b'"a"]}', "list of 1 to 1024"),
])
def test_malformed_bodies_are_answered_with_400_and_the_remedy(server, body, words):
    assert words in server.post("/predict", body, 400)["error"]
    assert server.post("/predict", {"text": "apple"})  # and the server goes on


def test_other_paths_and_methods(server):
    assert server.ask("GET", "/nothing")[0] == 404
    status, headers, _ = server.ask("GET", "/predict")
    assert status == 405 and headers["allow"] == "POST"
    assert server.ask("DELETE", "/health")[0] == 405


def test_oversized_bodies_are_refused_before_they_are_read(server):
    assert "more than 10000 bytes" in server.post("/predict", b"x" * 10_001, 413)["error"]
    head = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n"
    assert b" 413 " in server.raw(head)
    chunked = (b"POST /predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
               + (b"1000\r\n" + b"x" * 4096 + b"\r\n") * 3)
    assert b" 413 " in server.raw(chunked)


@pytest.mark.parametrize("data", [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET\r\n\r\n", b"\x00" * 100,
    b"POST /predict HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X-A: " + b"a" * 200_000 + b"\r\n\r\n",
])
def test_what_is_no_http_is_answered_or_dropped(server, data):
    found = server.raw(data)
    assert found == b"" or b" 400 " in found.split(b"\r\n")[0] or b" 431 " in found
    assert server.ask("GET", "/health")[0] == 200


def test_slow_requests_are_dropped_and_hold_nobody_up(server):
    begin = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port)) as head, \
            socket.create_connection(("127.0.0.1", server.port)) as body, \
            socket.create_connection(("127.0.0.1", server.port)) as nothing:
        head.sendall(b"POST /predict HTTP/1.1\r\nHost:")
        body.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\n{")
        assert server.post("/predict", {"text": "apple"})
        for sock in (head, body, nothing):
            sock.settimeout(30)
        head.sendall(b" a\r\n")
        assert head.recv(999) == b"", "the head did not come"
        assert b" 408 " in body.recv(999), "the body did not come"
        assert nothing.recv(999) == b""
    assert time.monotonic() - begin < 25


def test_a_client_that_goes_away_leaves_the_server_as_it_was(server):
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            sock.sendall(b'POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 17\r\n\r\n'
                         b'{"text": "apple"}')
    assert server.post("/predict", {"text": "apple"})


def test_a_rate_limit_refuses_with_429(models):
    with running(models / "tagger.safetensors", "--rate", 3) as server:
        found = [server.ask("POST", "/predict", {"text": "apple"})[0] for _ in range(12)]
        assert found[:3] == [200] * 3 and 429 in found
        time.sleep(1.1)
        assert server.ask("POST", "/predict", {"text": "apple"})[0] == 200
        assert server.ask("GET", "/health")[0] == 200, "health has no limit"


# -- processes -------------------------------------------------------------------------------------


def test_a_killed_worker_loses_its_own_requests_only_and_is_replaced(models):
    with running(models / "tagger.safetensors", "--workers", 2) as server:
        workers = set()
        for _ in range(200):
            workers.add(server.worker())
            if len(workers) == 2:
                break
        assert workers, "at least one worker has answered"
        os.kill(workers.pop(), signal.SIGKILL)
        answered = 0
        for _ in range(100):
            with contextlib.suppress(OSError, http.client.HTTPException):
                answered += server.ask("POST", "/predict", {"text": "apple"})[0] == 200
        assert answered >= 95, "the other worker goes on"
        assert "signal 9" in server.process.stderr.readline()
        for _ in range(100):
            counters = server.ask("GET", "/metrics")[2].decode()
            if int(re.search(r"worker_starts_total (\d+)", counters)[1]) == 3:
                break
            time.sleep(0.1)
        else:
            raise AssertionError("no other worker has taken its place")


def test_sigterm_ends_the_server_after_the_requests_that_run(models):
    with running(models / "tagger.safetensors", "--workers", 2) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            sock.settimeout(30)
            sock.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 17\r\n\r\n")
            time.sleep(0.5)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            sock.sendall(b'{"text": "apple"}')
            assert b" 200 " in sock.recv(9999)
        assert server.process.wait(timeout=60) == 0


def test_workers_share_the_counters(models):
    with running(models / "tagger.safetensors", "--workers", 2) as server:
        for _ in range(30):
            server.post("/predict", {"text": "apple"})
        counters = server.ask("GET", "/metrics")[2].decode()
        assert 'requests_total{path="/predict",status="200"} 30' in counters


def test_a_port_in_use_and_a_missing_model_are_named(server, models):
    for arguments, words in (
            ([models / "tagger.safetensors", "--port", server.port], "choose another port"),
            ([models / "none"], "no such file"),
            ([models / "tagger.safetensors", "--port", 99999], "must be at most 65535")):
        done = subprocess.run([sys.executable, "-P", "-m", "sparselsh", "serve",
                               *map(str, arguments)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1


# -- the page --------------------------------------------------------------------------------------


def test_the_page_needs_nothing_from_elsewhere(server):
    status, headers, text = server.ask("GET", "/")
    page = text.decode()
    assert status == 200 and headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in headers["content-security-policy"]
    assert not re.search(r'(src|href)="(?!data:)', page) and "http" not in page
    for wanted in ('lang="en"', 'for="input"', 'for="k"', 'role="alert"', "<caption>", "<main>"):
        assert wanted in page
    import base64
    import hashlib

    for tag in ("script", "style"):
        inline = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.S)[1]
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in headers["content-security-policy"]


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
                None)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_page_answers_in_a_browser(server, tmp_path):
    pytest.importorskip("websockets")
    import asyncio

    asyncio.run(_drive(server, tmp_path))


async def _drive(server, tmp_path):
    """Type a text into the page, submit it and ask why, by Chromium's debugging protocol."""
    import asyncio

    import websockets

    process = await asyncio.create_subprocess_exec(
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
        "--disable-dev-shm-usage", f"--user-data-dir={tmp_path}", "about:blank",
        stderr=asyncio.subprocess.PIPE)
    try:
        while b"DevTools listening on" not in (line := await process.stderr.readline()):
            assert line, "chromium has ended"
        port = re.search(rb":(\d+)/", line)[1].decode()
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=30)
        with contextlib.closing(connection):
            connection.request("PUT", f"/json/new?http://127.0.0.1:{server.port}/")
            page = json.loads(connection.getresponse().read())["webSocketDebuggerUrl"]
        async with websockets.connect(page, max_size=None) as socket_:
            number = 0

            async def evaluate(code):
                nonlocal number
                number += 1
                await socket_.send(json.dumps({
                    "id": number, "method": "Runtime.evaluate",
                    "params": {"expression": code, "awaitPromise": True, "returnByValue": True}}))
                while (found := json.loads(await socket_.recv())).get("id") != number:
                    pass
                return found["result"]["result"].get("value")

            async def until(code):
                for _ in range(200):
                    if found := await evaluate(code):
                        return found
                    await asyncio.sleep(0.1)
                raise AssertionError(code)

            await until("document.readyState === 'complete' && !!document.getElementById('form')")
            await evaluate("document.getElementById('input').value = 'apple plum pear';"
                           "document.querySelector('button[type=submit]').click()")
            first = await until("document.querySelector('#answers:not([hidden]) tbody td')"
                                "?.textContent")
            assert first == "fruit"
            await evaluate("document.querySelector('tbody button').click()")
            assert "apple" in await until("document.getElementById('words').textContent")
    finally:
        process.terminate()
        await process.wait()


# -- plain requests, which are answered without ASGI ----------------------------------------------

BODY = b'{"text": "apple plum", "k": 1}'
HEAD = b"POST /predict HTTP/1.1\r\nHost: a\r\n"
PLAIN = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


@pytest.mark.parametrize("data, body", [
    (PLAIN, BODY),
    (PLAIN.replace(b"Content-Length:", b"content-length:\t"), BODY),
    (PLAIN[:-1], None),
    (PLAIN + b"x", None),
    (PLAIN + PLAIN, None),
    (PLAIN.replace(b"/predict", b"/predict?"), None),
    (PLAIN.replace(b"1.1", b"1.0"), None),
    (PLAIN.replace(b"\r\n", b"\n"), None),
    (PLAIN.replace(b"Host: a", b"Host a"), None),
    (PLAIN.replace(b"Host: a", b"Host: a\x00"), None),
    (PLAIN.replace(b"Host: a", b"Content-Length: 3"), None),
    (PLAIN.replace(b"Host: a", b"Content-Length: +3"), None),
    (PLAIN.replace(b"Host: a", b"Transfer-Encoding: chunked"), None),
    (PLAIN.replace(b"Host: a", b"Expect: 100-continue"), None),
    (PLAIN.replace(b"Host: a", b"Connection: close"), None),
    (PLAIN.replace(b"Host: a", b" folded: a"), None),
    (HEAD + b"\r\n", None),
    (b"", None),
])
def test_only_whole_and_plain_requests_are_answered_directly(data, body):
    from sparselsh.serving._direct import body_of

    assert body_of(data, 1000) == body
    assert body_of(data, len(BODY) - 1) is None


@pytest.mark.parametrize("first, second", [(PLAIN, PLAIN), (HEAD + b"Content-Length: 1\r\n\r\n{",
                                                            PLAIN)])
def test_requests_of_one_connection_are_answered_in_their_order(server, first, second):
    last = PLAIN.replace(b"Host: a", b"Connection: close")
    answers = server.raw(first + second + last).split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"200" if first == PLAIN else b"400", b"200",
                                                  b"200"]
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as sock:
        for request, status in ((first, answers[0][:3]), (second, b"200"), (last, b"200")):
            sock.sendall(request)
            assert sock.recv(65536).startswith(b"HTTP/1.1 " + status)
