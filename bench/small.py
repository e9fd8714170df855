"""Networks too small to gain: what converting them costs, beside PyTorch, ONNX Runtime and the unconverted network.

usage: python -P bench/small.py [--threads 1] [--rounds 15]

MLPs of random weights, asked for the best five outputs of dense inputs, alone and 256 at once; contenders take turns
in one process, on as many threads. Medians of the rounds, wall and CPU microseconds a row, and their spread. "dense" is
the network without calibration, each layer of which computes every neuron.
"""
import argparse
import itertools
import os
import sys
import time

import numpy as np

SIZES = ((20, 64, 10), (784, 128, 10), (256, 256, 256, 100), (784, 300, 100, 10))
QUESTIONS = {1: 200, 256: 5}  # rows at once: how often in a round


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != str(args.threads):  # read when libraries are loaded
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(args.threads))
        os.execve(sys.executable, [sys.executable, "-P", __file__, *sys.argv[1:]],
                  os.environ | threads | {"OMP_WAIT_POLICY": "passive"})
    print("| network | contender | one: us (CPU) | spread | batch of 256: us a row (CPU) | spread |\n"
          "|---|---|--:|---|--:|---|")
    for sizes in SIZES:
        compare(sizes, args)


def compare(sizes, args):
    import torch
    from torch import nn

    import sparselsh as sl

    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())][:-1]
    model = nn.Sequential(*layers).eval()
    x = np.random.default_rng(0).standard_normal((512, sizes[0])).astype(np.float32)
    k = 5
    net = sl.from_torch(model, x, k=k, random_state=0, n_threads=args.threads)
    kept = all(set(layer.plan.values()) == {"dense"} for layer in net.layers)
    dense = sl.from_torch(model, n_threads=args.threads)

    def eager(rows):
        with torch.inference_mode():
            return torch.topk(model(torch.from_numpy(rows)), k)[1].numpy()

    contenders = {"torch": eager, "sparselsh dense": lambda rows: dense.topk(rows, k)[0],
                  "sparselsh, converted" + ("" if kept else " (NOT kept dense)"): lambda rows: net.topk(rows, k)[0]}
    if (ask := onnxruntime(model, sizes, k, args.threads)) is not None:
        contenders["onnxruntime"] = ask
    want = eager(x[:256])
    times = {name: [] for name in contenders}
    for name, answer in contenders.items():
        assert (answer(x[:256])[:, 0] == want[:, 0]).mean() > 0.99, name
    for _ in range(args.rounds):
        for name, answer in contenders.items():
            times[name].append([t for n, often in QUESTIONS.items() for t in clock(answer, x, n, often)])
    for name, measured in times.items():
        median, low, high = (f(np.array(measured), 0) * 1e6 for f in (np.median, np.min, np.max))
        print(f"| {'-'.join(map(str, sizes))} | {name} | {median[0]:.1f} ({median[1]:.1f}) | {low[0]:.1f} to "
              f"{high[0]:.1f} | {median[2]:.2f} ({median[3]:.2f}) | {low[2]:.2f} to {high[2]:.2f} |", flush=True)


def clock(answer, x, n, often):
    """Wall and CPU seconds a row."""
    parts = [x[i:i + n] for i in range(often)]
    wall, cpu = time.perf_counter(), time.process_time()
    for part in parts:
        answer(part)
    return (time.perf_counter() - wall) / (n * often), (time.process_time() - cpu) / (n * often)


def onnxruntime(model, sizes, k, threads):
    """The network with TopK in ONNX Runtime, or None where it is not installed."""
    try:
        import onnx
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        print("onnxruntime left out: it is not installed", file=sys.stderr)
        return None
    nodes, constants, value = [], [numpy_helper.from_array(np.array([k]), "k")], "x"
    for i, module in enumerate(model):
        if hasattr(module, "weight"):
            constants += [numpy_helper.from_array(p.detach().numpy(), f"{name}{i}")
                          for name, p in module.named_parameters()]
            nodes.append(helper.make_node("Gemm", [value, f"weight{i}", f"bias{i}"], [f"v{i}"], transB=1))
        else:
            nodes.append(helper.make_node("Relu", [value], [f"v{i}"]))
        value = f"v{i}"
    nodes.append(helper.make_node("TopK", [value, "k"], ["scores", "best"]))
    graph = helper.make_graph(
        nodes, "mlp", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", sizes[0]])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", k]),
         helper.make_tensor_value_info("best", TensorProto.INT64, ["n", k])], constants)
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    file.ir_version = 9
    onnx.checker.check_model(file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(file.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda rows: session.run(["best"], {"x": rows})[0]


if __name__ == "__main__":
    main()
