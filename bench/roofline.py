"""Where a training step spends its time, and how near each kernel is to what the machine allows.

usage: python -P bench/roofline.py TRAIN [--hidden 128] [--batch-size 256] [--density auto]
           [--steps 100] [--compute-dtype float32] [--second-moment element] [--json FILE]

Trains one network on one thread and measures every call into the compiled core (CPU time of the
thread). What a call has to compute and to move is computed from its arguments: `flops` counts
multiplications and additions; `bytes` counts each touched row of weights or moments once when it is
read and once more when it is written, and inputs and outputs likewise. The bound of a call is the
longer of flops / rate and bytes / bandwidth. The rate is the best that a product of two matrices of
1,024 x 1,024 reached in this run. There are two bandwidths: "stream", what an SGD step on all of a
parameter of 256 MB moved; and "rows", what an SGD step on rows of it in random order moved, as wide
as the hidden layer: for kernels that read rows of weights. Kernels whose work is neither, such as
moves between buckets, have no bound.
"""
import argparse
import sys
import time
from pathlib import Path

import numpy as np

import sparselsh as sl
from sparselsh._core import (
    _buckets,
    _gemm,
    _hashing,
    _losses,
    _select,
    _sparse_products,
    _sparse_rows,
    _typed_arrays,
    _updates,
)

sys.path.insert(0, str(Path(__file__).parent))
from common import markdown_table, write_json

NO_WORK = 0, 0
UPDATED_ROWS = 10_000  # per call to measure the bandwidth by rows: about as many as per step
BY_ROWS = {"weighted_rows", "active_outputs", "active_input_gradient", "active_update",
           "update_grouped", "centred_rows"}


def state_bytes(*arrays):
    """Bytes per row of weights and moments, read and written."""
    return 2 * sum(a.itemsize * a.shape[1] for a in arrays if a is not None)


def weighted_rows(indptr, indices, data, w, bias, out, n_threads):
    nnz, d = int(indptr[-1] - indptr[0]), out.shape[1]
    n_rows = len(np.unique(indices))
    return 2 * nnz * d, n_rows * d * w.itemsize + 8 * nnz + out.nbytes


def sign_codes(v, planes, n_bits, codes, n_threads, in_bfloat16=False):
    return 2 * v.size * planes.shape[1], v.nbytes + planes.nbytes + codes.nbytes


def sum_columns(d_out, out, n_threads):
    return d_out.size, d_out.nbytes


def active_outputs(x, w, rows, bias, z, n_threads, in_bfloat16=False):
    d = x.shape[1]
    return 2 * z.size * d, x.nbytes + len(rows) * d * w.itemsize + z.nbytes


def active_input_gradient(dz, w, rows, dx, n_threads, in_bfloat16=False):
    d = dx.shape[1]
    return 2 * dz.size * d, dz.nbytes + len(rows) * d * w.itemsize + dx.nbytes


def active_update(rule, w, m, v, rows, dz, x, n_threads, in_bfloat16=False):
    d = x.shape[1]
    n_bytes = dz.nbytes + x.nbytes + len(rows) * state_bytes(w, m, v)
    return (2 * dz.size + 12 * len(rows)) * d, n_bytes


def update_grouped(rule, w, m, v, rows, starts, entries, samples, data, x, n_threads):
    d = x.shape[1]
    n_bytes = len(rows) * state_bytes(w, m, v) + 12 * len(entries) + x.nbytes
    return (2 * len(entries) + 12 * len(rows)) * d, n_bytes


def update_all(rule, w, m, v, dw, n_threads):
    return 12 * dw.size, dw.nbytes + 2 * sum(a.nbytes for a in (w, m, v) if a is not None)


def softmax(offsets, z, indptr, positions, scale, losses, n_threads):
    # an exponential takes about 20 operations; z is read once for the maximum, then read and
    # written twice
    return 24 * z.size, 5 * z.nbytes


def centred_rows(w, bias, offset, rows, out, n_threads):
    return out.size, len(rows) * (out.shape[1] - 1) * w.itemsize + out.nbytes


def no_work(*arguments):
    return NO_WORK


KERNELS = [
    (_sparse_products, "weighted_rows", weighted_rows, "hidden units of sparse rows"),
    (_sparse_rows, "group_columns", no_work, "features of the batch, sorted"),
    (_gemm, "active_outputs", active_outputs, "outputs of the active set"),
    (_gemm, "active_input_gradient", active_input_gradient, "gradient of the hidden units"),
    (_gemm, "active_update", active_update, "gradient and step, output layer"),
    (_updates, "update_grouped", update_grouped, "gradient and step, first layer"),
    (_updates, "update_rows", no_work, "step of the output bias"),
    (_updates, "update_all", update_all, "step of the hidden bias"),
    (_losses, "softmax_cross_entropy", softmax, "loss and its gradient"),
    (_typed_arrays, "centred_rows", centred_rows, "touched rows, centred for hashing"),
    (_updates, "sum_columns", sum_columns, "gradient of the biases"),
    (_hashing, "sign_codes", sign_codes, "codes of touched rows and inputs"),
    (_buckets, "build", no_work, "tables rebuilt"),
    (_buckets, "move", no_work, "touched rows moved between buckets"),
    (_buckets, "collide", no_work, "candidates: neurons counted in buckets"),
    (_select, "batch_union", no_work, "active set"),
    (_sparse_rows, "take_rows", no_work, "rows of the batch"),
]


class Clocked:
    """A kernel that adds up the seconds of its calls and their work."""

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
    """The smallest CPU seconds of some calls."""
    seconds = []
    for _ in range(n):
        begin = time.thread_time()
        call()
        seconds.append(time.thread_time() - begin)
    return min(seconds)


def measure_machine(d):
    """Operations per second and bytes per second, in sequence and by rows of d numbers.

    On one thread; the rows are not in the cache.
    """
    a, c = np.ones((1024, 1024), np.float32), np.empty((1024, 1024), np.float32)
    no_bias = np.zeros(0, np.float32)
    rate = 2 * 1024**3 / best(lambda: _gemm.matmul(a, False, a, False, no_bias, c, 1))
    w, g = np.ones(1 << 26, np.float32), np.ones(1 << 26, np.float32)
    rule = _updates.sgd(1e-3, 0.0, False, 0.0)
    bandwidth = 3 * w.nbytes / best(lambda: _updates.update_all(rule, w, None, None, g, 1))
    calls = 7
    rows = np.random.default_rng(0).permutation(len(w) // d)[:calls * UPDATED_ROWS]
    rows = rows.astype(np.int32).reshape(calls, UPDATED_ROWS)
    w, g = w[:len(w) // d * d].reshape(-1, d), g[:UPDATED_ROWS * d].reshape(-1, d)
    parts = iter(rows)  # other rows in each call: those of the call before are in the cache

    def update():
        _updates.update_rows(rule, w, None, None, next(parts), g, 1)

    return rate, bandwidth, 3 * g.nbytes / best(update, calls)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--density", default="auto",
                        type=lambda text: text if text == "auto" else float(text))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--compute-dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--second-moment", default="element", choices=("element", "row"))
    parser.add_argument("--json", metavar="FILE")
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
    net = sl.Network([sl.Linear(X.shape[1], args.hidden),
                      sl.LSHLinear(args.hidden, Y.shape[1], density=args.density)],
                     compute_dtype=args.compute_dtype, random_state=0)
    optimizer = sl.Adam(1e-2, second_moment=args.second_moment)
    n = args.steps * args.batch_size
    rows = np.random.default_rng(0).permutation(X.shape[0])[:n]
    X, Y = X[rows], Y[rows]

    def epoch():
        net.fit(X, Y, optimizer=optimizer, epochs=1, batch_size=args.batch_size, verbose=False)

    epoch()  # the first epoch pays for new memory
    for kernel in clocked.values():
        kernel.reset()
    epoch()
    report(clocked, -(-X.shape[0] // args.batch_size), args)


def report(clocked, n_steps, args):
    lines, total = [], sum(kernel.seconds for kernel in clocked.values())
    for _, name, _work, what in KERNELS:
        kernel = clocked[name]
        if kernel.calls:
            bounded = kernel.bound > 0
            lines.append({
                "kernel": name, "what": what, "ms": kernel.seconds / n_steps * 1e3,
                "fraction": kernel.seconds / total,
                "mflop": kernel.flops / n_steps / 1e6, "mbyte": kernel.bytes / n_steps / 1e6,
                "bound_by": ("flops" if kernel.by_flops > 0 else "bytes") if bounded else None,
                "of_bound": kernel.bound / kernel.seconds if bounded else None,
            })
    lines.sort(key=lambda line: -line["ms"])
    print(f"{n_steps} steps, {total / n_steps * 1e3:.2f} ms of kernels per step\n")
    rows = [[line["kernel"], line["what"], f"{line['ms']:.2f}", f"{line['fraction']:.1%}",
             f"{line['mflop']:.1f}", f"{line['mbyte']:.1f}", line["bound_by"] or "-",
             f"{line['of_bound']:.0%}" if line["bound_by"] else "-"] for line in lines]
    print(markdown_table(["kernel", "what", "ms per step", "fraction", "Mflop", "MB", "bound by",
                          "reached"], rows, left=2))
    if args.json:
        write_json(args.json, {"rate": Clocked.rate, "bandwidth": Clocked.bandwidth,
                               "row_bandwidth": Clocked.row_bandwidth, "steps": n_steps,
                               "kernels": lines})


if __name__ == "__main__":
    sys.exit(main())
