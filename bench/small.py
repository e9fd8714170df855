"""Networks too small to gain: what converting them costs, beside PyTorch and ONNX Runtime.

usage: python -P bench/small.py [--threads 1] [--rounds 15] [--json FILE]

MLPs with random weights return the best five outputs of dense inputs, one row and 256 rows per
call. Contenders take turns in one process with the same number of threads. Figures are medians of
the rounds, wall and CPU microseconds per row, with the smallest and the largest. "sparselsh dense"
is the network without calibration, each layer of which computes every neuron.
"""
import argparse
import itertools
import sys
import tempfile
from pathlib import Path

import numpy as np

import sparselsh as sl

sys.path.insert(0, str(Path(__file__).parent))
import mlp_rivals
from common import (
    markdown_table,
    per_call,
    restart_with,
    spread,
    thread_environment,
    write_json,
)

SIZES = ((20, 64, 10), (784, 128, 10), (256, 256, 256, 100), (784, 300, 100, 10))
CALLS = {1: 200, 256: 5}  # rows per call: calls per round
K = 5


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    restart_with(thread_environment(args.threads))
    document = {"threads": args.threads, "rounds": args.rounds, "networks": {}}
    for sizes in SIZES:
        document["networks"]["-".join(map(str, sizes))] = compare(sizes, args)
    print(table(document))
    if args.json:
        write_json(args.json, document)


def compare(sizes, args):
    """{"contenders": {name: figures}, "kept_dense": bool, "left_out": {name: why}}."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())][:-1]
    model = nn.Sequential(*layers).eval()
    x = np.random.default_rng(0).standard_normal((512, sizes[0])).astype(np.float32)
    net = sl.from_torch(model, x, k=K, random_state=0, n_threads=args.threads)
    dense = sl.from_torch(model, n_threads=args.threads)

    torch_eager, left_out = mlp_rivals.eager(model, K), {}
    contenders = {"torch": lambda rows: torch_eager((torch.from_numpy(rows),))}
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = mlp_rivals.onnx_file(model, sizes[0], K, f"{folder}/model.onnx")
            session = mlp_rivals.onnx_session(path, args.threads)
        contenders["onnxruntime"] = lambda rows: session({"x": rows})
    except ImportError as error:
        left_out["onnxruntime"] = f"not installed ({error})"
    contenders |= {"sparselsh dense": lambda rows: dense.topk(rows, K)[0],
                   "sparselsh converted": lambda rows: net.topk(rows, K)[0]}

    want = contenders["torch"](x[:256])
    for name, answer in contenders.items():
        same = (answer(x[:256])[:, 0] == want[:, 0]).mean()
        assert same > 0.99, f"{name}: the best output is PyTorch's in {same:.1%} of the rows"
    times = {name: [] for name in contenders}
    for _ in range(args.rounds):
        for name, answer in contenders.items():
            times[name].append([t / n for n, calls in CALLS.items()
                                for t in per_call(answer, [x[i:i + n] for i in range(calls)])])
    keys = ("single_wall_us", "single_cpu_us", "batch_wall_us", "batch_cpu_us")
    figures = {name: {key: spread(1e6 * seconds for seconds in column)
                      for key, column in zip(keys, zip(*rounds, strict=True), strict=True)}
               for name, rounds in times.items()}
    kept = all(set(layer.plan.values()) == {"dense"} for layer in net.layers)
    return {"contenders": figures, "kept_dense": kept, "left_out": left_out}


def table(document):
    """The figures as Markdown."""
    rows, notes = [], {}
    for sizes, result in document["networks"].items():
        for name, figures in result["contenders"].items():
            cells = []
            for mode, digits in (("single", 1), ("batch", 2)):
                wall, cpu = figures[f"{mode}_wall_us"], figures[f"{mode}_cpu_us"]
                cells += [f"{wall['median']:.{digits}f} ({cpu['median']:.{digits}f})",
                          f"{wall['min']:.{digits}f} to {wall['max']:.{digits}f}"]
            rows.append([sizes, name, *cells])
        if not result["kept_dense"]:
            notes[sizes] = "the conversion did not leave every layer dense"
        notes |= result["left_out"]
    header = ["network", "contender", "single, µs (CPU)", "min to max",
              "batch of 256, µs per row (CPU)", "min to max"]
    lines = [f"- {name}: {why}" for name, why in notes.items()]
    return "\n".join([markdown_table(header, rows, left=2), *([""] if lines else []), *lines])


if __name__ == "__main__":
    main()
