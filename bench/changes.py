"""Changes of an index: how many per second, and the recall after a million of them.

usage: python -P bench/changes.py LAYER.npz [LAYER.npz ...] [--recall 0.95] [--changes 1000000]

bench/make_layers.py makes the layers. Rows are replaced by those of other neurons times 0.8 to 1.2,
in calls of 1,000; a tenth are removed and put back. The changed index is compared with one that is
built anew from the same rows. CPU time on one thread.
"""
import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from common import markdown_table

import sparselsh as sl
from sparselsh.metrics import neighbour_recall

N_ROWS = 1000  # per call
SIZES = (1, 10, 100, 1000)  # rows per call, of which the speed is measured
N_CHANGES, K = 4000, 5


def main():
    """Print two tables per layer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("layers", nargs="+")
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--changes", type=int, default=1_000_000)
    args = parser.parse_args()
    sl.set_num_threads(1)
    for path in args.layers:
        with np.load(path) as file:
            W, bias, H, Q = (np.ascontiguousarray(file[key], np.float32)
                             for key in ("W", "bias", "H", "Q"))
        print(f"## {Path(path).stem}: {W.shape[0]:,} x {W.shape[1]}\n")
        index = made(W, bias, H, args)
        print(speeds(index, W, min(N_CHANGES, args.changes)), "\n")
        print(after_many(W, bias, H, Q[:1000], args), "\n", flush=True)


def made(W, bias, H, args):
    """An index."""
    return sl.LSHIndex(recall=args.recall, plan="sketches", random_state=0).fit(W, bias, queries=H)


def speeds(index, W, n_changes):
    """Changes per CPU second, by their kind and the rows per call."""
    rng, n = np.random.default_rng(0), len(W)
    rows = []
    for size in SIZES:
        seconds = dict.fromkeys(("update", "remove", "put back", "add"), 0.0)
        n_calls = max(3, n_changes // size)
        for _ in range(n_calls):
            ids = rng.permutation(n)[:size]
            calls = {"update": lambda ids=ids: index.update(W[ids], ids),
                     "remove": lambda ids=ids: index.remove(ids),
                     "put back": lambda ids=ids: index.update(W[ids], ids),
                     "add": lambda ids=ids: index.add(W[ids])}
            for name, call in calls.items():
                begin = time.process_time()
                call()
                seconds[name] += time.process_time() - begin
        rows.append((size, *(f"{n_calls * size / value:,.0f}" for value in seconds.values())))
    return markdown_table(("rows per call", "update", "remove", "put back", "add"), rows, left=0)


def after_many(W, bias, H, Q, args):
    """The recall and the time of a search by an index that has changed, and by a fresh one."""
    rng, n = np.random.default_rng(0), len(W)
    now, index = W.copy(), made(W.copy(), bias, H, args)
    done, seconds = 0, 0.0
    while done < args.changes:
        ids = rng.permutation(n)[:N_ROWS]
        factors = rng.uniform(0.8, 1.2, (N_ROWS, 1)).astype(np.float32)
        now[ids] = W[rng.permutation(n)[:N_ROWS]] * factors
        some = ids[:N_ROWS // 10]
        begin = time.process_time()
        index.update(now[ids], ids)
        index.remove(some)
        index.update(now[some], some)
        seconds += time.process_time() - begin
        done += N_ROWS + 2 * len(some)
        index.search(Q[:20], K)

    truth = np.argsort(-(Q @ now.T + bias), axis=1, kind="stable")[:, :K]
    rows = []
    for name, each in (("changed", index), ("fresh", made(now, bias, H, args))):
        begin = time.process_time()
        ids, _ = each.search(Q, K)
        microseconds = (time.process_time() - begin) / len(Q) * 1e6
        rows.append((name, f"{neighbour_recall(ids, truth):.4f}", f"{microseconds:.0f}"))
    return (f"{done:,} changes, {done / seconds:,.0f} per CPU second\n\n"
            + markdown_table(("index", f"recall@{K}", "search, µs"), rows, left=1))


if __name__ == "__main__":
    main()
