"""Converted networks beside PyTorch and ONNX Runtime: quality, and microseconds per query.

usage: python -P bench/pretrained.py MODEL.pt TRAIN TEST [--threads 1] [--storage float32 int8]
           [--json FILE] [--markdown FILE]

MODEL.pt is what bench/make_pretrained.py wrote, TRAIN and TEST the same XMC text. Contenders run in
one process with the same number of threads and take turns; each returns the k best outputs of the
same test rows and their scores. A figure is the median of the rounds, wall and CPU time, with the
smallest and the largest. What is not installed is left out, with a line that says so.

    torch float32    eager, inference_mode
    torch compiled   torch.compile of the network and the top k
    torch bfloat16   weights and activations in bfloat16
    torch int8       quantize_dynamic of the Linear layers
    onnxruntime      the same graph, with TopK
    onnxruntime int8 quantize_dynamic of that graph
    sparselsh        from_torch(model, calibration rows)
    sparselsh dense  the same network, every neuron computed

Inputs have the form that a contender takes before the clock starts: ids, offsets and weights for an
EmbeddingBag of PyTorch; ids and weights padded with zeros for ONNX; a csr_array for sparselsh,
whose checks of the input are on the clock.
"""
import argparse
import sys
import tempfile
import time
import warnings
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

BATCH = 256


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--storage", nargs="+", default=["float32"])
    parser.add_argument("--recall", type=float, default=0.99)
    parser.add_argument("--error", type=float, default=0.02)
    parser.add_argument("--calibration", type=int, default=2000,
                        help="training rows to calibrate on")
    parser.add_argument("--scale", type=float, default=1.0,
                        help="divides the values of a dense input")
    parser.add_argument("-k", type=int, default=5)
    parser.add_argument("--queries", type=int, default=100, help="single queries per round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quality-rows", type=int, default=5000)
    parser.add_argument("--only",
                        help="contenders whose names contain one of these, separated by commas")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--markdown", metavar="FILE")
    args = parser.parse_args()
    restart_with(thread_environment(args.threads))
    document = Bench(args).run()
    text = table(document)
    print(text)
    if args.markdown:
        Path(args.markdown).write_text(text, encoding="utf-8")
    if args.json:
        write_json(args.json, document)


class Bench:
    """The network, the rows, and the contenders: name -> (makes inputs of row numbers, answers)."""

    def __init__(self, args):
        import make_pretrained
        import torch

        torch.set_num_threads(args.threads)
        self.args, self.torch = args, torch
        self.model = make_pretrained.load(args.model)
        self.dense_input = isinstance(self.model[0], torch.nn.Linear)
        (X, _), (X_test, Y_test) = (
            sl.datasets.read_xmc(path) for path in (args.train, args.test))
        rows = spaced(X.shape[0], args.calibration)
        self.X, self.X_test, self.Y_test = self.prepared(X[rows]), self.prepared(X_test), Y_test
        self.k = min(args.k, Y_test.shape[1])
        self.networks, self.left_out = {}, {}

    def prepared(self, X):
        if not self.dense_input:
            return X
        return np.ascontiguousarray(X.toarray() / np.float32(self.args.scale))

    def contenders(self):
        """(name, given, answer) of each contender that works here."""
        makers = {
            "torch float32": lambda: (self.tensors, mlp_rivals.eager(self.model, self.k)),
            "torch compiled": lambda: (self.tensors, mlp_rivals.compiled(self.model, self.k)),
            "torch bfloat16": lambda: (lambda rows: self.tensors(rows, self.torch.bfloat16),
                                       mlp_rivals.bfloat16(self.model, self.k)),
            "torch int8": lambda: (self.tensors, mlp_rivals.int8(self.model, self.k)),
            "onnxruntime": lambda: (self.padded, self.session(quantized=False)),
            "onnxruntime int8": lambda: (self.padded, self.session(quantized=True)),
        }
        for storage in self.args.storage:
            makers[f"sparselsh {storage}"] = lambda storage=storage: self.sparselsh(storage)
        makers["sparselsh dense"] = lambda: self.sparselsh(None)
        words = self.args.only.split(",") if self.args.only else [""]
        for name, make in makers.items():
            if not any(word in name for word in words):
                continue
            begin = time.process_time()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    given, answer = make()
                    answer(given(np.arange(3)))
            except ImportError as error:
                self.left_out[name] = f"not installed ({error})"
            except Exception as error:  # a rival that fails must not end the run
                text = " ".join(str(error).split())[:160]
                self.left_out[name] = f"{type(error).__name__}: {text}"
            else:
                print(f"{name}: ready after {time.process_time() - begin:.1f} CPU s",
                      file=sys.stderr, flush=True)
                yield name, given, answer

    # -- inputs ----------------------------------------------------------------------------------

    def tensors(self, rows, dtype=None):
        torch = self.torch
        if self.dense_input:
            x = torch.from_numpy(self.X_test[rows])
            return (x if dtype is None else x.to(dtype),)

        from torch_networks import bag_inputs

        ids, offsets, weights = bag_inputs(self.X_test[rows])
        return ids, offsets, weights if dtype is None else weights.to(dtype)

    def padded(self, rows):
        if self.dense_input:
            return {"x": self.X_test[rows]}
        part = self.X_test[rows]
        counts = np.diff(part.indptr)
        there = np.arange(max(counts.max(), 1)) < counts[:, None]
        ids, weights = np.zeros(there.shape, np.int64), np.zeros(there.shape, np.float32)
        ids[there], weights[there] = part.indices, part.data
        return {"ids": ids, "weights": weights[:, None]}

    def rows(self, rows):
        return self.X_test[rows]

    # -- contenders that need more than a line ---------------------------------------------------

    def session(self, quantized):
        with tempfile.TemporaryDirectory() as folder:
            path = mlp_rivals.onnx_file(self.model, self.X_test.shape[1], self.k,
                                        Path(folder) / "model.onnx")
            if quantized:
                path = mlp_rivals.onnx_int8_file(path)
            return mlp_rivals.onnx_session(path, self.args.threads)

    def sparselsh(self, storage):
        """Converted with calibration rows; without them (storage None) every layer is dense."""
        if storage is None:
            net = sl.from_torch(self.model, n_threads=self.args.threads)
        else:
            net = sl.from_torch(self.model, self.X, recall=self.args.recall, error=self.args.error,
                                k=self.k, storage=storage, random_state=0,
                                n_threads=self.args.threads)
            self.networks[storage] = net
        return self.rows, lambda x: net.topk(x, self.k)[0]

    # -- measures --------------------------------------------------------------------------------

    def run(self):
        contenders = list(self.contenders())
        quality = {name: self.quality(name, given, answer) for name, given, answer in contenders}
        truth = quality.get("torch float32", (None, None))[1]
        times = {name: [] for name, *_ in contenders}
        order = np.random.default_rng(0).permutation(self.X_test.shape[0])
        singles, batch = order[:self.args.queries], order[:BATCH]
        inputs = {name: ([given(np.array([row])) for row in singles], given(batch))
                  for name, given, _ in contenders}

        # the compiler sees each shape once before the clock starts
        for name, _, answer in contenders:
            for part in (*inputs[name][0], inputs[name][1]):
                answer(part)
        for _ in range(self.args.rounds):
            for name, _, answer in contenders:
                single, together = inputs[name]
                wall, cpu = per_call(answer, [together])
                times[name].append((*per_call(answer, single), wall / len(batch), cpu / len(batch)))

        document = {
            "model": Path(self.args.model).stem, "threads": self.args.threads, "k": self.k,
            "shapes": [list(p.shape) for p in self.model.parameters() if p.ndim == 2],
            "quality_rows": min(self.args.quality_rows, self.X_test.shape[0]),
            "rounds": self.args.rounds, "left_out": self.left_out, "contenders": {},
            "reports": {storage: str(net.report) for storage, net in self.networks.items()}}
        keys = ("single_wall_us", "single_cpu_us", "batch_wall_us", "batch_cpu_us")
        for name, *_ in contenders:
            measures, ids = quality[name]
            agreement = None if truth is None else float((ids[:, 0] == truth[:, 0]).mean())
            columns = zip(*times[name], strict=True)
            document["contenders"][name] = measures | {"agreement": agreement} | {
                key: spread(1e6 * seconds for seconds in column)
                for key, column in zip(keys, columns, strict=True)}
        return document

    def quality(self, name, given, answer):
        """P@1, P@k and the ids.

        sparselsh answers row by row: its plans for batches stay nearer to the original network.
        """
        rows = spaced(self.X_test.shape[0], self.args.quality_rows)
        n = len(rows)
        one_by_one = name in {f"sparselsh {storage}" for storage in self.args.storage}
        size = 1 if one_by_one else BATCH
        ids = np.concatenate([answer(given(rows[i:i + size])) for i in range(0, n, size)])
        measures = {f"p_at_{k}": sl.metrics.precision_at_k(self.Y_test[rows], ids, k)
                    for k in dict.fromkeys((1, self.k))}
        return measures, ids


def spaced(n, n_wanted):
    """At most n_wanted row numbers out of n, evenly spaced: files are often sorted."""
    return np.unique(np.linspace(0, n - 1, n_wanted).astype(int))


def table(document, reports=True):
    """The figures as Markdown."""
    contenders, k = document["contenders"], document["k"]
    rivals = [c for name, c in contenders.items() if not name.startswith("sparselsh")]
    best = {mode: min((c[f"{mode}_wall_us"]["median"] for c in rivals), default=None)
            for mode in ("single", "batch")}
    ranks = dict.fromkeys((1, k))
    header = ["contender", *(f"P@{rank}, %" for rank in ranks), "same best output, %",
              "single, µs (CPU)", "min to max", "fastest rival / it",
              "batch of 256, µs per row (CPU)", "min to max", "fastest rival / it"]
    rows = []
    for name, c in contenders.items():
        same = "-" if c["agreement"] is None else f"{100 * c['agreement']:.2f}"
        cells = [name, *(f"{100 * c[f'p_at_{rank}']:.2f}" for rank in ranks), same]
        for mode in ("single", "batch"):
            wall, cpu = c[f"{mode}_wall_us"], c[f"{mode}_cpu_us"]
            ratio = "-" if best[mode] is None else f"{best[mode] / wall['median']:.2f}"
            cells += [f"{wall['median']:,.1f} ({cpu['median']:,.1f})",
                      f"{wall['min']:,.1f} to {wall['max']:,.1f}", ratio]
        rows.append(cells)
    shapes = ", ".join(" x ".join(map(str, shape)) for shape in document["shapes"])
    lines = [f"Weights of {document['model']}: {shapes}; {document['threads']} thread(s), the {k} "
             f"best outputs, {document['rounds']} rounds; quality on "
             f"{document['quality_rows']:,} test rows.", "", markdown_table(header, rows), ""]
    lines += [f"- {name}: {why}" for name, why in document["left_out"].items()]
    for storage, text in document["reports"].items() if reports else ():
        lines += ["", f"sparselsh {storage}:", "", "```", text, "```"]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    main()
