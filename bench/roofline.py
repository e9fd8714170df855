"""Where a training step spends its time, and how near each kernel comes to what the machine allows.

usage: python -P bench/roofline.py TRAIN [--hidden 128] [--batch-size 256] [--density auto] [--steps 100] [--json FILE]

Trains one network on one thread and clocks every call into the compiled core (CPU time of the thread). What a call
has to compute and to move is worked out from its arguments: `flops` counts multiplications and additions; `bytes` each
row of weights or moments that is touched once, read, and once more where it is written, and inputs and outputs
likewise. The bound of a call is the longer of flops / rate and bytes / bandwidth. Rate is the best that a product of
two matrices of 1,024 x 1,024 reached in this run. Of bandwidths there are two: "stream", what an SGD step on all of a
parameter of 256 MB moved; and "rows", what an SGD step on rows of it in random order moved, as wide as the hidden
layer: for kernels that walk rows of weights. Kernels whose work is neither, such as moves between buckets, have none.
"""
import argparse
import json
import sys
import time
from collections import defaultdict

import numpy as np

import sparselsh as sl
from sparselsh._core import _buckets, _gemm, _hashing, _losses, _patterns, _products, _select, _stores, _updates

N_UNBOUND = 0, 0
ROWS = 10_000  # updated a call to measure the bandwidth by rows, about as many as a step does
BY_ROWS = {"weighted_rows", "active_outputs", "active_input_gradient", "active_update", "update_grouped",
           "centred_rows"}


def state_bytes(*arrays):
    """Bytes a row of weights and moments, read and written."""
    return 2 * sum(a.itemsize * a.shape[1] for a in arrays if a is not None)


def weighted_rows(indptr, indices, data, w, bias, out, n_threads):
    nnz, d = int(indptr[-1] - indptr[0]), out.shape[1]
    return 2 * nnz * d, len(np.unique(indices)) * d * w.itemsize + 8 * nnz + out.nbytes


def sign_codes(v, planes, n_bits, codes, n_threads):
    return 2 * v.size * planes.shape[1], v.nbytes + planes.nbytes + codes.nbytes


def sum_columns(d_out, out, n_threads):
    return d_out.size, d_out.nbytes


def active_outputs(x, w, rows, bias, z, n_threads):
    return 2 * z.size * x.shape[1], x.nbytes + len(rows) * x.shape[1] * w.itemsize + z.nbytes


def active_input_gradient(dz, w, rows, dx, n_threads):
    return 2 * dz.size * dx.shape[1], dz.nbytes + len(rows) * dx.shape[1] * w.itemsize + dx.nbytes


def active_update(rule, w, m, v, rows, dz, x, n_threads):
    d = x.shape[1]
    return (2 * dz.size + 12 * len(rows)) * d, dz.nbytes + x.nbytes + len(rows) * state_bytes(w, m, v)


def update_grouped(rule, w, m, v, rows, starts, entries, samples, data, x, n_threads):
    d = x.shape[1]
    return (2 * len(entries) + 12 * len(rows)) * d, len(rows) * state_bytes(w, m, v) + 12 * len(entries) + x.nbytes


def update_all(rule, w, m, v, dw, n_threads):
    return 12 * dw.size, dw.nbytes + 2 * sum(a.nbytes for a in (w, m, v) if a is not None)


def softmax(offsets, z, indptr, positions, scale, losses, n_threads):
    # an exponential is some 20 operations; read for the maximum, read and written twice
    return 24 * z.size, 5 * z.nbytes


def centred_rows(w, bias, offset, rows, out, n_threads):
    return out.size, len(rows) * (out.shape[1] - 1) * w.itemsize + out.nbytes


def nothing(*arguments):
    return N_UNBOUND


KERNELS = [
    (_products, "weighted_rows", weighted_rows, "hidden units of sparse rows"),
    (_patterns, "group_columns", nothing, "features of the batch, sorted"),
    (_gemm, "active_outputs", active_outputs, "outputs of the active set"),
    (_gemm, "active_input_gradient", active_input_gradient, "gradient of the hidden units"),
    (_gemm, "active_update", active_update, "gradient and step, output layer"),
    (_updates, "update_grouped", update_grouped, "gradient and step, first layer"),
    (_updates, "update_rows", nothing, "step of the output bias"),
    (_updates, "update_all", update_all, "step of the hidden bias"),
    (_losses, "softmax_cross_entropy", softmax, "loss and its gradient"),
    (_stores, "centred_rows", centred_rows, "touched rows, centred for hashing"),
    (_updates, "sum_columns", sum_columns, "gradient of the biases"),
    (_hashing, "sign_codes", sign_codes, "codes of touched rows and inputs"),
    (_buckets, "build", nothing, "tables built anew"),
    (_buckets, "move", nothing, "touched rows moved between buckets"),
    (_buckets, "collide", nothing, "candidates: neurons counted in buckets"),
    (_select, "batch_union", nothing, "active set"),
    (_patterns, "take_rows", nothing, "rows of the batch"),
]


class Clocked:
    """A kernel that adds up what its calls took and had to do."""

    rate = bandwidth = row_bandwidth = 1.0

    def __init__(self, kernel, work, by_rows):
        self.kernel, self.work, self.by_rows = kernel, work, by_rows
        self.reset()

    def reset(self):
        self.calls = self.seconds = self.flops = self.bytes = self.bound = 0
        self.by_flops = 0.0

    def __call__(self, *arguments):
        begin = time.thread_time()
        result = self.kernel(*arguments)
        self.seconds += time.thread_time() - begin
        flops, n_bytes = self.work(*arguments)
        self.calls += 1
        self.flops += flops
        self.bytes += n_bytes
        moving = n_bytes / (Clocked.row_bandwidth if self.by_rows else Clocked.bandwidth)
        self.bound += max(flops / Clocked.rate, moving)
        self.by_flops += flops / Clocked.rate - moving
        return result


def best(call, n=7):
    """The least CPU seconds of some calls."""
    seconds = []
    for _ in range(n):
        begin = time.thread_time()
        call()
        seconds.append(time.thread_time() - begin)
    return min(seconds)


def measure_machine(d):
    """Operations a second and bytes a second, in sequence and by rows of d numbers, none in the cache; one thread."""
    a, c = np.ones((1024, 1024), np.float32), np.empty((1024, 1024), np.float32)
    nothing = np.zeros(0, np.float32)
    rate = 2 * 1024**3 / best(lambda: _gemm.matmul(a, False, a, False, nothing, c, 1))
    w, g = np.ones(1 << 26, np.float32), np.ones(1 << 26, np.float32)
    rule = _updates.sgd(1e-3, 0.0, False, 0.0)
    bandwidth = 3 * w.nbytes / best(lambda: _updates.update_all(rule, w, None, None, g, 1))
    calls = 7
    rows = np.random.default_rng(0).permutation(len(w) // d)[:calls * ROWS].astype(np.int32).reshape(calls, ROWS)
    w, g = w[:len(w) // d * d].reshape(-1, d), g[:ROWS * d].reshape(-1, d)
    others = iter(rows)  # rows that were updated before would be in the cache
    by_rows = 3 * g.nbytes / best(lambda: _updates.update_rows(rule, w, None, None, next(others), g, 1), calls)
    return rate, bandwidth, by_rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--density", type=lambda text: text if text == "auto" else float(text), default="auto")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--json")
    args = parser.parse_args()
    sl.set_num_threads(1)
    X, Y = sl.datasets.read_xmc(args.train)
    Clocked.rate, Clocked.bandwidth, Clocked.row_bandwidth = measure_machine(args.hidden)
    print(f"{Clocked.rate / 1e9:.0f} GF/s; {Clocked.bandwidth / 1e9:.1f} GB/s in sequence, "
          f"{Clocked.row_bandwidth / 1e9:.1f} GB/s by rows; one thread")

    clocked = {}
    for module, name, work, _ in KERNELS:
        clocked[name] = Clocked(getattr(module, name), work, name in BY_ROWS)
        setattr(module, name, clocked[name])
    net = sl.Network([sl.Linear(X.shape[1], args.hidden), sl.LSHLinear(args.hidden, Y.shape[1], density=args.density)],
                     random_state=0)
    optimizer = sl.Adam(1e-2)
    n = args.steps * args.batch_size
    rows = np.random.default_rng(0).permutation(X.shape[0])[:n]
    X, Y = X[rows], Y[rows]
    net.fit(X, Y, optimizer=optimizer, epochs=1, batch_size=args.batch_size, verbose=False)  # pays for new memory
    counts = defaultdict(int)
    for kernel in clocked.values():
        kernel.reset()
    counts["steps"] = -(-X.shape[0] // args.batch_size)
    net.fit(X, Y, optimizer=optimizer, epochs=1, batch_size=args.batch_size, verbose=False)
    report(clocked, counts["steps"], args)


def report(clocked, n_steps, args):
    lines, total = [], sum(kernel.seconds for kernel in clocked.values())
    for _, name, _work, what in KERNELS:
        kernel = clocked[name]
        if kernel.calls:
            bounded = kernel.bound > 0
            lines.append({
                "kernel": name, "what": what, "ms": kernel.seconds / n_steps * 1e3, "share": kernel.seconds / total,
                "mflop": kernel.flops / n_steps / 1e6, "mbyte": kernel.bytes / n_steps / 1e6,
                "bound_by": ("flops" if kernel.by_flops > 0 else "bytes") if bounded else None,
                "of_bound": kernel.bound / kernel.seconds if bounded else None,
            })
    lines.sort(key=lambda line: -line["ms"])
    print(f"{n_steps} steps, {total / n_steps * 1e3:.2f} ms of kernels a step\n")
    print("| kernel | what | ms a step | share | Mflop | MB | bound by | reached |\n|---|---|--:|--:|--:|--:|---|--:|")
    for line in lines:
        reached = f"{line['of_bound']:.0%}" if line["bound_by"] else "-"
        print(f"| {line['kernel']} | {line['what']} | {line['ms']:.2f} | {line['share']:.1%} | {line['mflop']:.1f} | "
              f"{line['mbyte']:.1f} | {line['bound_by'] or '-'} | {reached} |")
    if args.json:
        document = {"rate": Clocked.rate, "bandwidth": Clocked.bandwidth, "row_bandwidth": Clocked.row_bandwidth,
                    "steps": n_steps, "kernels": lines}
        with open(args.json, "w") as file:
            json.dump(document, file, indent=1)


if __name__ == "__main__":
    sys.exit(main())
