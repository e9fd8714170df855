"""Converted networks beside PyTorch and ONNX Runtime: quality, and microseconds a question, alone and in batches.

usage: python -P bench/pretrained.py MODEL.pt TRAIN TEST [--threads 1] [--storage float32 int8] [--markdown F]

MODEL.pt is what bench/make_pretrained.py wrote, TRAIN and TEST the same XMC text. Contenders run in one process with
the same number of threads and take turns; each answers the k best outputs and their scores of the same test rows. A
figure is the median of the rounds, wall and CPU time. What is missing is left out, with a line that says so.

    torch float32    eager, inference_mode                  torch compiled   torch.compile of the network and top k
    torch bfloat16   weights and activations in bfloat16    torch int8       quantize_dynamic of the Linear layers
    onnxruntime      the same graph, TopK in it             onnxruntime int8 quantize_dynamic of that graph
    sparselsh        from_torch(model, calibration rows)    sparselsh dense  the same network, every neuron computed

Inputs are in the form that a contender takes before the clock starts: ids, offsets and weights for an EmbeddingBag in
PyTorch, ids and weights filled up with zeros for ONNX, scipy's CSR for sparselsh, whose checks are on the clock.
"""
import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

BATCH = 256


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--storage", nargs="+", default=["float32"])
    parser.add_argument("--recall", type=float, default=0.99)
    parser.add_argument("--error", type=float, default=0.02)
    parser.add_argument("--calibration", type=int, default=2000, help="training rows to calibrate on")
    parser.add_argument("--scale", type=float, default=1.0, help="divides the values of a dense input")
    parser.add_argument("-k", type=int, default=5)
    parser.add_argument("--queries", type=int, default=100, help="questions asked one by one, a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quality-rows", type=int, default=5000)
    parser.add_argument("--only", help="contenders whose names contain one of these words, by commas")
    parser.add_argument("--json")
    parser.add_argument("--markdown")
    args = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != str(args.threads):  # read when libraries are loaded
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(args.threads))
        os.execve(sys.executable, [sys.executable, "-P", __file__, *sys.argv[1:]],
                  os.environ | threads | {"OMP_WAIT_POLICY": "passive"})
    report = Bench(args).run()
    text = table(report)
    print(text)
    if args.markdown:
        Path(args.markdown).write_text(text)
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=2))


class Bench:
    def __init__(self, args):
        import torch

        sys.path.insert(0, str(Path(__file__).parent))
        import make_pretrained

        from sparselsh import datasets

        torch.set_num_threads(args.threads)
        self.args, self.torch = args, torch
        self.model = make_pretrained.load(args.model)
        self.dense_input = isinstance(self.model[0], torch.nn.Linear)
        (X, _), (X_test, Y_test) = (datasets.read_xmc(path) for path in (args.train, args.test))
        rows = np.unique(np.linspace(0, X.shape[0] - 1, args.calibration).astype(int))
        self.X, self.X_test, self.Y_test = self.prepared(X[rows]), self.prepared(X_test), Y_test
        self.k = min(args.k, Y_test.shape[1])
        self.notes = []

    def prepared(self, X):
        return np.ascontiguousarray(X.toarray() / np.float32(self.args.scale)) if self.dense_input else X

    # -- contenders: name -> (what makes the input of some rows, what answers it with ids (n, k)) ---------------------

    def contenders(self):
        makers = {"torch float32": self.eager, "torch compiled": self.compiled, "torch bfloat16": self.bfloat16,
                  "torch int8": self.int8, "onnxruntime": self.onnxruntime, "onnxruntime int8": self.onnxruntime_int8}
        for storage in self.args.storage:
            makers[f"sparselsh {storage}"] = lambda storage=storage: self.sparselsh(storage)
        makers["sparselsh dense"] = self.sparselsh_dense
        words = self.args.only.split(",") if self.args.only else [""]
        self.networks = {}
        for name, make in makers.items():
            if any(word in name for word in words):
                begin = time.process_time()
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        given, answer = make()
                        answer(given(np.arange(3)))
                except Exception as error:
                    self.notes.append(f"{name} left out: {type(error).__name__}: {' '.join(str(error).split())[:160]}")
                    continue
                print(f"{name}: ready after {time.process_time() - begin:.1f} CPU s", file=sys.stderr, flush=True)
                yield name, given, answer

    def tensors(self, rows, dtype=None):
        torch = self.torch
        if self.dense_input:
            x = torch.from_numpy(self.X_test[rows])
            return (x if dtype is None else x.to(dtype),)
        part = self.X_test[rows]
        weights = torch.from_numpy(part.data)
        return (torch.from_numpy(part.indices.astype(np.int32)), torch.from_numpy(part.indptr[:-1].astype(np.int32)),
                weights if dtype is None else weights.to(dtype))

    def forward(self, model):
        torch, k = self.torch, self.k

        def answer(inputs):
            if len(inputs) == 1:
                z = model(inputs[0])
            else:
                z = model[1:](model[0](inputs[0], inputs[1], per_sample_weights=inputs[2]))
            return torch.topk(z, k)

        return answer

    def inferring(self, answer):
        def call(inputs):
            with self.torch.inference_mode():
                return answer(inputs)[1].numpy()

        return call

    def eager(self):
        return self.tensors, self.inferring(self.forward(self.model))

    def compiled(self):
        return self.tensors, self.inferring(self.torch.compile(self.forward(self.model), dynamic=False))

    def bfloat16(self):
        import copy

        torch = self.torch
        model = copy.deepcopy(self.model).to(torch.bfloat16)
        return lambda rows: self.tensors(rows, torch.bfloat16), self.inferring(self.forward(model))

    def int8(self):
        torch = self.torch
        model = torch.ao.quantization.quantize_dynamic(self.model, {torch.nn.Linear}, dtype=torch.qint8)
        return self.tensors, self.inferring(self.forward(model))

    def onnx_file(self, folder):
        """The network with TopK as an ONNX file."""
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        nodes, constants, value = [], [], "x"
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", self.X_test.shape[1]])]
        for i, module in enumerate(self.model):
            name = f"v{i}"
            if isinstance(module, self.torch.nn.ReLU):
                nodes.append(helper.make_node("Relu", [value], [name]))
            elif isinstance(module, self.torch.nn.Linear):
                constants += [numpy_helper.from_array(np.ascontiguousarray(module.weight.detach().numpy().T), f"w{i}"),
                              numpy_helper.from_array(module.bias.detach().numpy(), f"b{i}")]
                nodes += [helper.make_node("MatMul", [value, f"w{i}"], [f"p{i}"]),
                          helper.make_node("Add", [f"p{i}", f"b{i}"], [name])]
            else:
                inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", "m"]),
                          helper.make_tensor_value_info("weights", TensorProto.FLOAT, ["n", 1, "m"])]
                constants.append(numpy_helper.from_array(module.weight.detach().numpy(), f"w{i}"))
                constants.append(numpy_helper.from_array(np.array([1]), "axis"))
                nodes += [helper.make_node("Gather", [f"w{i}", "ids"], ["rows"]),
                          helper.make_node("MatMul", ["weights", "rows"], ["bags"]),
                          helper.make_node("Squeeze", ["bags", "axis"], [name])]
            value = name
        constants.append(numpy_helper.from_array(np.array([self.k]), "k"))
        nodes.append(helper.make_node("TopK", [value, "k"], ["scores", "best"]))
        outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", self.k]),
                   helper.make_tensor_value_info("best", TensorProto.INT64, ["n", self.k])]
        graph = helper.make_graph(nodes, "mlp", inputs, outputs, constants)
        path = Path(folder) / "model.onnx"
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        model.ir_version = 9
        onnx.save(model, path)
        return path

    def session(self, path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.args.threads, 1
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return self.padded, lambda inputs: session.run(["scores", "best"], inputs)[1]

    def padded(self, rows):
        if self.dense_input:
            return {"x": self.X_test[rows]}
        part = self.X_test[rows]
        counts = np.diff(part.indptr)
        there = np.arange(max(counts.max(), 1)) < counts[:, None]
        ids, weights = np.zeros(there.shape, np.int64), np.zeros(there.shape, np.float32)
        ids[there], weights[there] = part.indices, part.data
        return {"ids": ids, "weights": weights[:, None]}

    def onnxruntime(self):
        with tempfile.TemporaryDirectory() as folder:
            return self.session(self.onnx_file(folder))

    def onnxruntime_int8(self):
        from onnxruntime.quantization import QuantType, quantize_dynamic

        with tempfile.TemporaryDirectory() as folder:
            small = Path(folder) / "int8.onnx"
            quantize_dynamic(self.onnx_file(folder), small, weight_type=QuantType.QInt8, per_channel=True,
                             op_types_to_quantize=["MatMul"])
            return self.session(small)

    def sparselsh(self, storage):
        import sparselsh as sl

        net = sl.from_torch(self.model, self.X, recall=self.args.recall, error=self.args.error, k=self.k,
                            storage=storage, random_state=0, n_threads=self.args.threads)
        self.networks[storage] = net
        return self.rows, lambda x: net.topk(x, self.k)[0]

    def sparselsh_dense(self):
        import sparselsh as sl

        net = sl.from_torch(self.model, n_threads=self.args.threads)
        return self.rows, lambda x: net.topk(x, self.k)[0]

    def rows(self, rows):
        return self.X_test[rows]

    # -- measures -----------------------------------------------------------------------------------------------------

    def run(self):
        contenders = list(self.contenders())
        quality = {name: self.quality(name, given, answer) for name, given, answer in contenders}
        truth = quality.get("torch float32", (None, None))[1]
        times = {name: [] for name, *_ in contenders}
        rng = np.random.default_rng(0)
        rows = rng.permutation(self.X_test.shape[0])
        singles, batch = rows[:self.args.queries], rows[:BATCH]
        inputs = {name: ([given(np.array([row])) for row in singles], given(batch)) for name, given, _ in contenders}
        for name, _, answer in contenders:  # the compiler sees each shape once before the clock starts
            for part in (inputs[name][0][0], inputs[name][1]):
                answer(part)
        for _ in range(self.args.rounds):
            for name, _, answer in contenders:
                alone, together = inputs[name]
                times[name].append((*clock(answer, alone), *clock(answer, [together])))
        report = {"model": Path(self.args.model).stem, "threads": self.args.threads, "k": self.k,
                  "shapes": [list(p.shape) for p in self.model.parameters() if p.ndim == 2], "notes": self.notes,
                  "contenders": {}, "conversion": {s: net.report.to_dict() for s, net in self.networks.items()},
                  "tables": {s: str(net.report) for s, net in self.networks.items()}}
        for name, *_ in contenders:
            columns = np.array(times[name]) * 1e6
            median, low, high = np.median(columns, 0), columns.min(0), columns.max(0)
            report["contenders"][name] = quality[name][0] | {
                "agreement": None if truth is None else float((quality[name][1][:, 0] == truth[:, 0]).mean()),
                "single_us": median[0], "single_cpu_us": median[1], "single_spread": [low[0], high[0]],
                "batch_us": median[2] / BATCH, "batch_cpu_us": median[3] / BATCH,
                "batch_spread": [low[2] / BATCH, high[2] / BATCH]}
        return report

    def quality(self, name, given, answer):
        """P@1, P@k and the ids. sparselsh is asked row by row: its plans for batches are nearer to the network."""
        from sparselsh import metrics

        n = min(self.args.quality_rows, self.X_test.shape[0])
        few = n if name in {f"sparselsh {storage}" for storage in self.args.storage} else 0
        parts = [answer(given(np.array([row]))) for row in range(few)]
        parts += [answer(given(np.arange(start, min(start + BATCH, n)))) for start in range(few, n, BATCH)]
        ids = np.concatenate(parts)
        Y = self.Y_test[:n]
        return {f"p_at_{k}": metrics.precision_at_k(Y, ids, k) for k in dict.fromkeys((1, self.k))}, ids


def clock(answer, parts):
    """Wall and CPU seconds a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    for part in parts:
        answer(part)
    return (time.perf_counter() - wall) / len(parts), (time.process_time() - cpu) / len(parts)


def table(report):
    """The report as Markdown."""
    rivals = {name: c for name, c in report["contenders"].items() if "torch" in name or "onnx" in name}
    best = {key: min((c[key] for c in rivals.values()), default=float("nan")) for key in ("single_us", "batch_us")}
    k = report["k"]
    lines = [f"## {report['model']}: {', '.join(' x '.join(map(str, s)) for s in report['shapes'])}; "
             f"{report['threads']} thread(s), the {k} best", "",
             f"| contender | P@1 | P@{k} | best is the same | one: us (CPU) | spread | fastest rival / it "
             "| batch of 256: us a row (CPU) | spread | fastest rival / it |",
             "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"]
    for name, c in report["contenders"].items():
        same = "" if c["agreement"] is None else f"{c['agreement']:.2%}"
        cells = [name, f"{c['p_at_1']:.2%}", f"{c[f'p_at_{k}']:.2%}", same]
        for kind in ("single", "batch"):
            low, high = c[f"{kind}_spread"]
            cells += [f"{c[f'{kind}_us']:.1f} ({c[f'{kind}_cpu_us']:.1f})", f"{low:.1f} to {high:.1f}",
                      f"{best[f'{kind}_us'] / c[f'{kind}_us']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [""] + [f"- {note}" for note in report["notes"]]
    for storage, text in report["tables"].items():
        lines += ["", f"sparselsh {storage}:", "", "```", text, "```"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
