"""Recall and time of contenders.

A contender goes through three stages: it is built; each setting of its sweep answers all queries in
batches, which gives the recall and a first estimate of the time; and the settings that may be the
fastest at some recall are timed, with single queries and with batches, in rounds in which all
contenders take turns, so that a drift of the machine affects all alike.
"""
import gc
import hashlib
import json
import os
import statistics
import tempfile

import numpy as np
from common import Stopwatch

BATCH = 256
MAX_PASS_SECONDS = 0.5  # a timed pass takes fewer queries where all of them would take longer
MIN_QUERIES = 20
SLACK = 1.2  # a setting is dropped where another one of its recall was so much faster
MIN_RECALL = 0.5  # settings below it are of no use and not timed
MAX_RECALL = 0.9995  # a sweep along one parameter ends here


def recall(ids, truth):
    """Fraction of the true ids that are in the same row."""
    return float((truth[:, :, None] == ids[:, None, :]).any(axis=2).mean())


def check_ids(ids, shape, n):
    """Ids must have the right shape and be distinct; -1 (or its unsigned value) stands for none."""
    ids = np.asarray(ids).astype(np.int64)
    assert ids.shape == shape, f"shape {ids.shape}, not {shape}"
    low, high = ids.min(), ids.max()
    assert low >= -1 and high < n, f"ids from {low} to {high} for {n} neurons"
    ordered = np.sort(ids, axis=1)
    repeated = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    assert not repeated.any(), "an id occurs twice in a row"
    return ids


def build(contender, layer, cache=None):
    """Build or load the index: {"wall", "cpu", "bytes", "cached"}."""
    if contender.view == "layer":
        data, (n, d) = layer, layer.W.shape
    else:
        data = layer.vectors(contender.view)
        n, d = data.shape
    with tempfile.TemporaryDirectory() as folder:
        path, known = os.path.join(folder, "index"), None
        if cache is not None and contender.view != "layer":
            path = os.path.join(cache, _key(contender, data))
            os.makedirs(cache, exist_ok=True)
            if os.path.exists(path + ".json"):
                with open(path + ".json") as file:
                    known = json.load(file)
        if known is None:
            with Stopwatch() as clock:
                contender.build(data)
            known = {"wall": clock.wall, "cpu": clock.cpu, "cached": False}
            saved = contender.save(path)
            d = getattr(contender, "d", d)
            known["bytes"] = contender.bytes_beside_weights(saved, n, d)
            if cache is not None and saved is not None:
                with open(path + ".json", "w") as file:
                    json.dump(known | {"cached": True}, file)
        else:
            contender.load(path, data)
    return known


def _key(contender, data):
    digest = hashlib.sha256(data.tobytes()).hexdigest()[:16]
    name = "".join(c if c.isalnum() else "_" for c in contender.name)
    return f"{name}-k{contender.k}-t{contender.threads}-{digest}"


def first_look(contender, layer, truth):
    """Recall of each setting, without those that cannot be the fastest at any recall."""
    Q = contender.prepare(layer.Q)
    points, settings = [], contender.settings()
    one_parameter = max(map(len, settings)) <= 1
    for setting in settings:
        contender.use(setting)
        try:
            with Stopwatch() as clock:
                ids = np.concatenate([contender.search_batch(Q[i:i + BATCH])
                                      for i in range(0, len(Q), BATCH)])
        except (RuntimeError, ValueError) as error:
            # graphs raise where they find fewer than k; the recall of such a setting is low
            contender.note = f"{setting}: {str(error).splitlines()[0][:100]}"
            continue
        ids = check_ids(ids, (len(Q), contender.k), len(layer.W))
        found = recall(ids, truth)
        point = {"setting": setting, "recall": found, "recall_one": found,
                 "first_look": clock.wall / len(Q),
                 "fraction": contender.fraction_computed(setting), "one": [], "batch": []}
        points.append(point)
        if not contender.same_in_batches:
            single = np.stack([contender.search_one(q) for q in Q])
            point["recall_one"] = recall(check_ids(single, ids.shape, len(layer.W)), truth)
        if one_parameter and found >= MAX_RECALL:
            break
    points = [p for p in points if p["recall"] >= MIN_RECALL] or points
    return undominated(points, lambda p: (p["first_look"],))


def undominated(points, times):
    """The points without those that another one of at least their recall clearly beats in time."""

    def beats(q, p):
        return (q["recall"] >= p["recall"] and q["recall_one"] >= p["recall_one"]
                and all(a * SLACK < b for a, b in zip(times(q), times(p), strict=True)))

    return [p for p in points if not any(beats(q, p) for q in points)]


def timed_round(contender, layer, points, n_queries):
    """Time each setting once: append a pass of single queries and one of batches to the points."""
    Q = contender.prepare(layer.Q)
    gc.collect()
    gc.disable()
    try:
        for point in points:
            contender.use(point["setting"])
            point["one"].append(_pass_one(contender, Q, n_queries))
            point["batch"].append(_pass_batch(contender, Q))
    finally:
        gc.enable()


def _pass_one(contender, Q, n_queries):
    with Stopwatch() as clock:
        for q in Q[:3]:
            contender.search_one(q)
    n = int(np.clip(MAX_PASS_SECONDS / (clock.wall / 3), MIN_QUERIES, n_queries))
    queries, ids = list(Q[:n]), [None] * min(n, len(Q))
    with Stopwatch() as clock:
        for i, q in enumerate(queries):
            ids[i] = contender.search_one(q)
    if contender.same_in_batches:
        together = np.asarray(contender.search_batch(Q[:len(queries)])).astype(np.int64)
        single = check_ids(np.stack(ids), together.shape, np.iinfo(np.int64).max)
        same = recall(single, together)
        assert same > 0.95, f"{contender.name}: {same:.3f} of the single results equal the batch's"
    return clock.wall / len(queries), clock.cpu / len(queries)


def _pass_batch(contender, Q):
    with Stopwatch() as clock:
        contender.search_batch(Q[:BATCH])  # warm-up: a batch of another size came before it
    n = int(np.clip(MAX_PASS_SECONDS / clock.wall, 1, max(1, len(Q) // BATCH)))
    with Stopwatch() as clock:
        for i in range(n):
            contender.search_batch(Q[i * BATCH:(i + 1) * BATCH])
    n_queries = min(n * BATCH, len(Q))
    return clock.wall / n_queries, clock.cpu / n_queries


def summarize(point):
    """A point with the medians of its rounds and their spread, in microseconds per query."""
    out = {key: point[key] for key in ("setting", "recall", "recall_one", "fraction")}
    for mode in ("one", "batch"):
        wall, cpu = zip(*point[mode], strict=True)
        out[mode] = {}
        for kind, seconds in (("wall", wall), ("cpu", cpu)):
            out[mode] |= {f"{kind}_us": statistics.median(seconds) * 1e6,
                          f"{kind}_us_spread": [min(seconds) * 1e6, max(seconds) * 1e6]}
    return out


def run_layer(layer, contenders, *, repeats, n_queries, cache=None, say=print):
    """Results of all contenders on a layer, in the order given."""
    k = contenders[0].k
    truth = layer.truth(k)
    results, alive = [], []
    for contender in contenders:
        say(f"  {contender.name}: ", end="", flush=True)
        try:
            built = build(contender, layer, cache)
            points = first_look(contender, layer, truth)
        except Exception as error:  # a rival that fails must not end a long run; the report says so
            say(f"FAILED: {type(error).__name__}: {' '.join(str(error).split())[:160]}")
            results.append({"name": contender.name, "failed": f"{type(error).__name__}: {error}"})
            continue
        best = max((p["recall"] for p in points), default=0.0)
        cached = " [cached]" if built["cached"] else ""
        say(f"built in {built['wall']:.1f} s (CPU {built['cpu']:.1f}){cached}, "
            f"{len(points)} settings, recall up to {best:.4f}")
        results.append({"name": contender.name, "package": contender.package,
                        "view": contender.view, "target": contender.target, "build": built,
                        "note": contender.note, "points": points})
        alive.append((contender, points))
        if contender.name.startswith(("exact", "faiss flat")):
            assert best > 0.999, f"{contender.name} computes everything, recall {best}"
    for round_ in range(repeats):
        say(f"  round {round_ + 1} of {repeats}", flush=True)
        for contender, points in list(alive):
            try:
                timed_round(contender, layer, points, n_queries)
            except Exception as error:  # as above
                say(f"  {contender.name} FAILED: {type(error).__name__}: {error}")
                alive.remove((contender, points))
                failed = {"name": contender.name, "failed": str(error)}
                results[:] = [failed if r["name"] == contender.name else r for r in results]
                continue
            if round_ == 0:  # what is slower in both modes in the first round is not timed again
                points[:] = undominated(points, lambda p: (p["one"][0][0], p["batch"][0][0]))
    for result in results:
        if "points" in result:
            result["points"] = [summarize(point) for point in result["points"]]
    return results
