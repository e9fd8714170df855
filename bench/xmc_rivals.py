"""Contenders of bench/accuracy.py, one process each: they train, and then answer in turns.

A contender reads commands from standard input, one JSON object per line, and answers each with one
line of JSON:

    {"do": "train", "seed": 0}           trains, saves and loads: seconds, size of the files
    {"do": "predict", "file": PATH}      the best k labels of every test row, written as .npy
    {"do": "batch"}                      seconds per row for some test rows, on all threads
    {"do": "single", "round": 0}         seconds per row for single rows, on one thread

So the process that asks can let contenders of different environments alternate. This script needs
NumPy, SciPy and the package of its contender; the data come in an .npz file from bench/accuracy.py.

Each contender answers in the mode in which its users deploy it:

- sparselsh: the saved model, loaded by `sparselsh.load`.
- PECOS: the saved folder, loaded with `is_predict_only=True`, which keeps the weights in the
  memory-mapped chunked format of its C++ inference. (The model that training returns takes ten
  times as long per row.)
- Omikuji: the saved folder, loaded, and `densify_weights(0.05)` as in its README. Its Python
  interface takes one row per call; a batch is distributed over as many Python threads.
- napkinXC: the saved folder, loaded in a new `PLT`. (Of its other modes, beam search is about a
  quarter faster on tib-core and less accurate, and sparse weights are slower.)
- fastText: the saved .bin file, loaded. It reads text: features are words, their values are lost.
"""
import argparse
import importlib
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import scipy.sparse as sp

sys.path.insert(0, str(Path(__file__).parent))
from common import Stopwatch, peak_megabytes

BATCH_ROWS = 512  # evenly spaced over the test set, whose rows may be sorted
SINGLE_ROWS = 100  # per round, the same for all contenders
SINGLE_K = 5
FASTTEXT = {"loss": "hs", "epoch": 25, "lr": 0.5}  # the tutorial's; the defaults learn far less


class Contender:
    """A package: it trains in `folder` and answers from what it has saved there."""

    def __init__(self, data, folder, threads, k):
        self.data, self.folder, self.threads, self.k = data, folder, threads, k

    def train(self, seed):
        """Train and save; return {"cpu", "wall"}, the seconds of the training alone."""
        raise NotImplementedError

    def load(self):
        """Take the saved model in the mode in which users deploy it."""
        raise NotImplementedError

    def use_threads(self, n_threads):
        """Prepare for `batch` or `single`, where the package has one setting for both."""

    def batch(self, rows):
        """The best k labels of the rows, (n, k), filled up with -1; on all threads."""
        raise NotImplementedError

    def single(self, row):
        """Find the best SINGLE_K labels of a matrix of one row, on one thread."""
        raise NotImplementedError

    def inputs(self, rows):
        """The rows in the form that the package takes; its making is not on the clock."""
        return rows

    def seconds(self, train):
        with Stopwatch() as watch:
            self.model = train()
        return {"cpu": watch.cpu, "wall": watch.wall}

    def filled(self, lists):
        """Lists of labels as one array."""
        ids = np.full((len(lists), self.k), -1)
        for i, labels in enumerate(lists):
            ids[i, :len(labels)] = labels
        return ids


class Sparselsh(Contender):
    """`sparselsh train` with its defaults, and more of its options."""

    def train(self, seed):
        from sparselsh.cli import main as command

        report = f"{self.folder}/report.json"
        code = command(["train", self.data.train_path, "--model", self.path(), "--json", report,
                        "--seed", str(seed), "--threads", str(self.threads), "--quiet",
                        *self.data.options])
        if code:
            sys.exit(code)
        figures = json.loads(Path(report).read_text())
        os.unlink(report)
        return {"cpu": figures["train_cpu_seconds"], "wall": figures["train_seconds"]}

    def path(self):
        return f"{self.folder}/model.safetensors"

    def load(self):
        import sparselsh as sl

        self.net = sl.load(self.path(), n_threads=self.threads)
        self.alone = sl.load(self.path(), n_threads=1)
        for net in (self.net, self.alone):
            net.topk(self.data.X_test[:1], k=self.k)  # the first query builds the index

    def batch(self, rows):
        return self.net.topk(rows, k=self.k)[0]

    def single(self, row):
        return self.alone.topk(row, k=SINGLE_K)


class Pecos(Contender):
    """XR-Linear with its defaults."""

    def train(self, seed):
        from pecos.xmc import Indexer, LabelEmbeddingFactory
        from pecos.xmc.xlinear.model import XLinearModel

        X, Y = (sp.csr_matrix(matrix, dtype=np.float32) for matrix in (self.data.X, self.data.Y))

        def train():
            chain = Indexer.gen(LabelEmbeddingFactory.create(Y, X), threads=self.threads)
            return XLinearModel.train(X, Y, C=chain, threads=self.threads)

        seconds = self.seconds(train)
        self.model.save(self.folder)
        return seconds

    def load(self):
        from pecos.xmc.xlinear.model import XLinearModel

        self.model = XLinearModel.load(self.folder, is_predict_only=True)

    def inputs(self, rows):
        return sp.csr_matrix(rows, dtype=np.float32)

    def batch(self, rows):
        found = self.model.predict(rows, only_topk=self.k, threads=self.threads).tocsr()
        lists = []
        for a, b in zip(found.indptr[:-1], found.indptr[1:], strict=True):
            best = np.argsort(-found.data[a:b], kind="stable")
            lists.append(found.indices[a:b][best])
        return self.filled(lists)

    def single(self, row):
        return self.model.predict(row, only_topk=SINGLE_K, threads=1)


class Omikuji(Contender):
    """Parabel: its default hyperparameters."""

    max_sparse_density = 0.05

    def hyperparameters(self, omikuji):
        return omikuji.Model.default_hyper_param()

    def train(self, seed):
        import omikuji

        options = self.hyperparameters(omikuji)
        # it reads the file itself, which takes some tenths of a second of these
        seconds = self.seconds(
            lambda: omikuji.Model.train_on_data(self.data.train_path, options, self.threads))
        self.model.save(self.folder)
        return seconds

    def load(self):
        import omikuji

        self.model = omikuji.Model.load(self.folder)
        self.model.densify_weights(self.max_sparse_density)
        self.pool = ThreadPoolExecutor(self.threads)

    def use_threads(self, n_threads):
        self.model.init_prediction_thread_pool(n_threads)

    def inputs(self, rows):
        parts = zip(rows.indptr[:-1], rows.indptr[1:], strict=True)
        pairs = [list(zip(rows.indices[a:b].tolist(), rows.data[a:b].tolist(), strict=True))
                 for a, b in parts]
        return pairs

    def batch(self, rows):
        found = self.pool.map(lambda row: self.model.predict(row, top_k=self.k), rows)
        return self.filled([[label for label, _ in best] for best in found])

    def single(self, row):
        return self.model.predict(row[0], top_k=SINGLE_K)


class OmikujiBonsai(Omikuji):
    """Bonsai: wide and flat trees, as the README sets them up."""

    def hyperparameters(self, omikuji):
        options = super().hyperparameters(omikuji)
        options.cluster_balanced = False
        options.cluster_k = 100
        options.max_depth = 3
        return options


class Napkinxc(Contender):
    """A probabilistic label tree with its defaults."""

    def train(self, seed):
        from napkinxc.models import PLT

        X = sp.csr_matrix(self.data.X)
        model = PLT(self.folder, threads=self.threads, verbose=False)
        return self.seconds(lambda: model.fit(X, label_lists(self.data.Y)))

    def load(self):
        from napkinxc.models import PLT

        self.model = PLT(self.folder, threads=self.threads, verbose=False)
        self.model.load()
        self.alone = PLT(self.folder, threads=1, verbose=False)
        self.alone.load()

    def inputs(self, rows):
        return sp.csr_matrix(rows)

    def batch(self, rows):
        return self.filled(self.model.predict(rows, top_k=self.k))

    def single(self, row):
        return self.alone.predict(row, top_k=SINGLE_K)


class Fasttext(Contender):
    """Hierarchical softmax, which its documentation advises for many labels."""

    def train(self, seed):
        import fasttext

        path = f"{self.folder}/train.txt"
        with open(path, "w", encoding="ascii") as file:
            for labels, words in zip(label_lists(self.data.Y), self.inputs(self.data.X),
                                     strict=True):
                if labels:
                    file.write(" ".join(f"__label__{label}" for label in labels) + f" {words}\n")
        # it reads the file itself, which is on the clock
        seconds = self.seconds(lambda: fasttext.train_supervised(
            path, thread=self.threads, verbose=0, **FASTTEXT))
        os.unlink(path)
        self.model.save_model(f"{self.folder}/model.bin")
        return seconds

    def load(self):
        import fasttext

        self.model = fasttext.load_model(f"{self.folder}/model.bin")

    def inputs(self, rows):
        parts = zip(rows.indptr[:-1], rows.indptr[1:], strict=True)
        return [" ".join(f"f{feature}" for feature in rows.indices[a:b]) for a, b in parts]

    def batch(self, rows):
        labels, _ = self.model.predict(rows, k=self.k)
        return self.filled([[int(label[len("__label__"):]) for label in best] for best in labels])

    def single(self, row):
        return self.model.predict(row, k=SINGLE_K)


CONTENDERS = {  # name: class, the module that must import, the name on PyPI
    "sparselsh": (Sparselsh, "sparselsh", "sparselsh-nn"),
    "pecos": (Pecos, "pecos", "libpecos"),
    "omikuji-parabel": (Omikuji, "omikuji", "omikuji"),
    "omikuji-bonsai": (OmikujiBonsai, "omikuji", "omikuji"),
    "napkinxc": (Napkinxc, "napkinxc", "napkinxc"),
    "fasttext": (Fasttext, "fasttext", "fasttext-numpy2"),
}


class Data:
    """What bench/accuracy.py has written for its contenders."""

    def __init__(self, path):
        with np.load(path) as file:
            for name in ("X", "Y", "X_test"):
                data, indices, indptr, shape = (
                    file[f"{name}_{part}"] for part in ("data", "indices", "indptr", "shape"))
                setattr(self, name, sp.csr_array((data, indices, indptr), shape=tuple(shape)))
            self.train_path = str(file["train_path"])
            self.options = str(file["options"]).split()


def save_data(path, matrices, train_path, options):
    """Write an .npz file for `Data`: {"X": csr_array, "Y": ..., "X_test": ...} and two strings."""
    arrays = {"train_path": str(Path(train_path).resolve()), "options": options}
    for name, matrix in matrices.items():
        arrays |= {f"{name}_data": matrix.data, f"{name}_indices": matrix.indices,
                   f"{name}_indptr": matrix.indptr, f"{name}_shape": matrix.shape}
    np.savez(path, **arrays)


def label_lists(Y):
    """The labels of each row."""
    return [Y.indices[a:b].tolist() for a, b in zip(Y.indptr[:-1], Y.indptr[1:], strict=True)]


# --- the process --------------------------------------------------------------------------------


class Server:
    """Carries the commands out."""

    def __init__(self, args):
        self.args = args
        self.data = Data(args.data)
        self.make = CONTENDERS[args.name][0]
        self.folder = tempfile.TemporaryDirectory()
        X_test = self.data.X_test
        n = X_test.shape[0]
        self.batch_rows = X_test[np.unique(np.linspace(0, n - 1, BATCH_ROWS).astype(int))]
        self.order = np.random.default_rng(0).permutation(n)

    def train(self, seed):
        self.folder.cleanup()
        self.folder = tempfile.TemporaryDirectory()
        self.contender = self.make(self.data, self.folder.name, self.args.threads, self.args.k)
        report = self.contender.train(seed) | {"peak_mb": peak_megabytes()}
        files = [path for path in Path(self.folder.name).rglob("*") if path.is_file()]
        report["bytes"] = sum(path.stat().st_size for path in files)
        with Stopwatch() as watch:
            self.contender.load()
        return report | {"load_seconds": watch.wall}

    def predict(self, file):
        self.contender.use_threads(self.args.threads)
        np.save(file, self.contender.batch(self.contender.inputs(self.data.X_test)))
        return {}

    def batch(self):
        self.contender.use_threads(self.args.threads)
        rows = self.contender.inputs(self.batch_rows)
        with Stopwatch() as watch:
            self.contender.batch(rows)
        n = self.batch_rows.shape[0]
        return {"wall_us": 1e6 * watch.wall / n, "cpu_us": 1e6 * watch.cpu / n}

    def single(self, round):
        self.contender.use_threads(1)
        # other rows in each round, the same ones for all contenders
        chosen = np.take(self.order, np.arange(SINGLE_ROWS) + round * SINGLE_ROWS, mode="wrap")
        rows = [self.contender.inputs(self.data.X_test[i:i + 1]) for i in chosen]
        wall, cpu = [], []
        for row in rows:
            start = time.perf_counter(), time.process_time()
            self.contender.single(row)
            wall.append(time.perf_counter() - start[0])
            cpu.append(time.process_time() - start[1])
        return {"wall_us": 1e6 * float(np.median(wall)), "cpu_us": 1e6 * float(np.median(cpu))}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=CONTENDERS)
    parser.add_argument("data", help="the .npz file that bench/accuracy.py has written")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--k", type=int, default=20)
    args = parser.parse_args()

    # the answers alone go to standard output; libraries that print there print to standard error
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(document):
        print(json.dumps(document), file=answers, flush=True)

    try:
        importlib.import_module(CONTENDERS[args.name][1])
    except ImportError as error:
        answer({"missing": str(error)})
        return
    server = Server(args)
    answer({"ready": True})
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer(getattr(server, command.pop("do"))(**command))
        except Exception as error:  # the other contenders go on; the report says what happened
            answer({"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"})


if __name__ == "__main__":
    main()
