"""Recall and time of contenders.

A contender goes through three stages: it is built; each setting of its sweep answers all queries in batches, which
gives the recall and a first idea of the time; and the settings that may matter are timed, one at a time and in
batches, in rounds in which all contenders take turns, so that a drift of the machine meets all alike.
"""
import gc
import hashlib
import json
import os
import statistics
import tempfile
import time

import numpy as np

BATCH = 256
PASS_SECONDS = 0.5  # a timed pass asks fewer queries where all of them would take longer
FEWEST = 20
SLACK = 1.2  # a setting is dropped where another with its recall was so much faster
LEAST = 0.5  # settings of less recall are of no use and not timed
ENOUGH = 0.9995  # a sweep along one parameter ends here


class Clock:
    """Wall and CPU seconds of a block; CPU is that of all threads of the process."""

    def __enter__(self):
        self._start = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *error):
        self.wall = time.perf_counter() - self._start[0]
        self.cpu = time.process_time() - self._start[1]


def recall(ids, truth):
    """Share of the true ids that stand in the same row."""
    return float((truth[:, :, None] == ids[:, None, :]).any(axis=2).mean())


def check_ids(ids, shape, n):
    """Answers must be of the right shape, distinct neurons; -1 (or what it is unsigned) for none."""
    ids = np.asarray(ids).astype(np.int64)
    assert ids.shape == shape, f"shape {ids.shape}, not {shape}"
    assert ids.min() >= -1 and ids.max() < n, f"ids from {ids.min()} to {ids.max()} for {n} neurons"
    ordered = np.sort(ids, axis=1)
    assert not ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(), "a neuron twice in an answer"
    return ids


def build(contender, layer, cache=None):
    """Build or load the index: {"wall", "cpu", "bytes", "cached"}."""
    data = layer if contender.view == "layer" else layer.vectors(contender.view)
    n, d = (len(layer.W), layer.W.shape[1]) if contender.view == "layer" else data.shape
    with tempfile.TemporaryDirectory() as folder:
        path, known = os.path.join(folder, "index"), None
        if cache is not None and contender.view != "layer":
            path = os.path.join(cache, _key(contender, data))
            os.makedirs(cache, exist_ok=True)
            if os.path.exists(path + ".json"):
                with open(path + ".json") as file:
                    known = json.load(file)
        if known is None:
            with Clock() as clock:
                contender.build(data)
            known = {"wall": clock.wall, "cpu": clock.cpu, "cached": False}
            saved = contender.save(path)
            known["bytes"] = contender.bytes_beside_weights(saved, n, getattr(contender, "d", d))
            if cache is not None and saved is not None:
                with open(path + ".json", "w") as file:
                    json.dump(known | {"cached": True}, file)
        else:
            contender.load(path, data)
    return known


def _key(contender, data):
    digest = hashlib.sha256(data.tobytes()).hexdigest()[:16]
    return "".join(c if c.isalnum() else "_" for c in contender.name) + f"-k{contender.k}-t{contender.threads}-{digest}"


def first_look(contender, layer, truth):
    """Recall of each setting, with those left out that cannot be the fastest at any recall."""
    Q = contender.prepare(layer.Q)
    points, settings = [], contender.settings()
    one_parameter = max(map(len, settings)) <= 1
    for setting in settings:
        contender.use(setting)
        try:
            with Clock() as clock:
                ids = np.concatenate([contender.search_batch(Q[i:i + BATCH]) for i in range(0, len(Q), BATCH)])
        except (RuntimeError, ValueError) as error:
            # graphs raise where they find fewer than k; such a setting has no recall to speak of
            contender.note = f"{setting}: {str(error).splitlines()[0][:100]}"
            continue
        ids = check_ids(ids, (len(Q), contender.k), len(layer.W))
        found = recall(ids, truth)
        points.append({"setting": setting, "recall": found, "recall_one": found, "first_look": clock.wall / len(Q),
                       "share": contender.share_computed(setting), "one": [], "batch": []})
        if not contender.same_in_batches:
            alone = np.stack([contender.search_one(q) for q in Q])
            points[-1]["recall_one"] = recall(check_ids(alone, ids.shape, len(layer.W)), truth)
        if one_parameter and found >= ENOUGH:
            break
    points = [p for p in points if p["recall"] >= LEAST] or points
    return undominated(points, lambda p: (p["first_look"],))


def undominated(points, times):
    """The points that no other one with as much recall clearly beats in all of its times."""
    return [p for p in points
            if not any(q["recall"] >= p["recall"] and q["recall_one"] >= p["recall_one"]
                       and all(a * SLACK < b for a, b in zip(times(q), times(p), strict=True)) for q in points)]


def timed_round(contender, layer, points, n_queries):
    """Time each setting once: a pass of single queries and one of batches, appended to the points."""
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
    with Clock() as clock:
        for q in Q[:3]:
            contender.search_one(q)
    n = int(np.clip(PASS_SECONDS / (clock.wall / 3), FEWEST, n_queries))
    queries, ids = list(Q[:n]), [None] * min(n, len(Q))
    with Clock() as clock:
        for i, q in enumerate(queries):
            ids[i] = contender.search_one(q)
    if contender.same_in_batches:
        together = np.asarray(contender.search_batch(Q[:len(queries)])).astype(np.int64)
        alone = check_ids(np.stack(ids), together.shape, np.iinfo(np.int64).max)
        same = recall(alone, together)
        assert same > 0.95, f"{contender.name}: {same:.3f} of the answers alone are those in a batch"
    return clock.wall / len(queries), clock.cpu / len(queries)


def _pass_batch(contender, Q):
    with Clock() as clock:
        contender.search_batch(Q[:BATCH])  # warm; a batch of another size came before it
    n = int(np.clip(PASS_SECONDS / clock.wall, 1, max(1, len(Q) // BATCH)))
    with Clock() as clock:
        for i in range(n):
            contender.search_batch(Q[i * BATCH:(i + 1) * BATCH])
    n_queries = min(n * BATCH, len(Q))
    return clock.wall / n_queries, clock.cpu / n_queries


def summarize(point):
    """A point with the medians of its rounds, in microseconds a query."""
    out = {key: point[key] for key in ("setting", "recall", "recall_one", "share")}
    for mode in ("one", "batch"):
        wall, cpu = zip(*point[mode], strict=True)
        out[mode] = {"wall_us": statistics.median(wall) * 1e6, "cpu_us": statistics.median(cpu) * 1e6,
                     "wall_us_rounds": [seconds * 1e6 for seconds in wall]}
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
        except Exception as error:  # a rival that fails must not end a run of an hour; the report says so
            say(f"FAILED: {type(error).__name__}: {str(error).splitlines()[0]}")
            results.append({"name": contender.name, "failed": f"{type(error).__name__}: {error}"})
            continue
        best = max((p["recall"] for p in points), default=0.0)
        say(f"built in {built['wall']:.1f} s (CPU {built['cpu']:.1f}){' [cached]' if built['cached'] else ''}, "
            f"{len(points)} settings, recall up to {best:.4f}")
        results.append({"name": contender.name, "package": contender.package, "view": contender.view,
                        "target": contender.target, "build": built, "note": contender.note, "points": points})
        alive.append((contender, points))
        if contender.name.startswith(("exact", "faiss flat")):
            assert best > 0.999, f"{contender.name} computes everything and finds {best}"
    for round_ in range(repeats):
        say(f"  round {round_ + 1} of {repeats}", flush=True)
        for contender, points in list(alive):
            try:
                timed_round(contender, layer, points, n_queries)
            except Exception as error:  # as above
                say(f"  {contender.name} FAILED: {type(error).__name__}: {error}")
                alive.remove((contender, points))
                results[:] = [{"name": contender.name, "failed": str(error)} if r["name"] == contender.name else r
                              for r in results]
                continue
            if round_ == 0:  # what the first round shows to be slower in both modes is not timed again
                points[:] = undominated(points, lambda p: (p["one"][0][0], p["batch"][0][0]))
    for result in results:
        if "points" in result:
            result["points"] = [summarize(point) for point in result["points"]]
    return results
