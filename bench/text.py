"""Texts to names: Tagger beside fastText, Omikuji, PECOS and one-vs-rest of scikit-learn.

    python -P bench/text.py --data debian-packages.jsonl.xz --task debtags sparselsh fasttext
    python -P bench/text.py --data FILE --task sections --python fasttext=OTHER/bin/python ...

FILE has a JSON object per line with "text", "tags", "section" and "depends", in random order. The
first nine tenths train, the last tenth is asked once. Each contender runs in a process of its own,
which needs NumPy and its package, with the Python that --python names. What is measured:

- P@1, P@5, and micro-averaged F1 of the names that reach a threshold. sparselsh chooses its
  threshold by texts that it holds out of the training. For the others a first training leaves the
  last tenth of the training texts out, by which the threshold is chosen; a second one, on all, is
  what counts. Where texts have one name each, F1 is P@1.
- CPU seconds of the training from texts, all threads together; the size of what is saved.
- CPU microseconds from a text to five names, alone and in a batch, all threads together: the median
  of rounds.

fastText trains as its tutorial says for several labels, with one-vs-all losses and pairs of words
("ova", 25 epochs; "hs" with more than 5,000 names), and with --autotune SECONDS as its autotuning
finds. Omikuji and scikit-learn
get TF-IDF rows of words and pairs of words from scikit-learn's vectorizer.
"""
import argparse
import itertools
import json
import lzma
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from common import Stopwatch, versions

FIELDS = {"debtags": "tags", "sections": "section", "depends": "depends"}
N_BEST = 30  # names per text among which a threshold is chosen
N_LONE, N_ROUNDS = 300, 5
MIN_DF = 2
MANY_NAMES = 5000  # with which one-vs-all losses would take hours


def read(path, task):
    """((texts, names) of the training, (texts, names) of the test)."""
    with lzma.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    field, cut = FIELDS[task], len(rows) * 9 // 10
    parts = []
    for part in (rows[:cut], rows[cut:]):
        part = [row for row in part if row.get(field) and row["text"].strip()]
        names = [row[field] for row in part]
        parts.append(([row["text"] for row in part],
                      [[name] if isinstance(name, str) else name for name in names]))
    return parts


# -- contenders ------------------------------------------------------------------------------------


class Sparselsh:
    def __init__(self, one_per_text, threads, options):
        import sparselsh as sl

        sl.set_num_threads(threads)
        self.sl, self.one = sl, one_per_text
        self.options = options

    def train(self, texts, names):
        tagger = self.sl.Tagger(random_state=0, **self.options)
        self.tagger = tagger.fit(texts, [row[0] for row in names] if self.one else names)

    def save(self, folder):
        path = folder / "model"
        self.tagger.save(path)
        self.tagger = self.sl.load(path)

    def best(self, texts, k):
        return self.tagger.predict_topk(texts, k)

    def names(self, texts):
        found = self.tagger.predict(texts)
        return [[name] for name in found] if self.one else found


class FastText:
    def __init__(self, one_per_text, threads, options):
        import fasttext

        self.options = {"loss": "ova", "epoch": 25, "lr": 0.2, "wordNgrams": 2, "minCount": 1,
                        "verbose": 0}

        self.fasttext, self.threads, self.seconds = fasttext, threads, options.get("autotune")
        if one_per_text:
            self.options = self.options | {"loss": "softmax", "lr": 0.5}

    def train(self, texts, names):
        if len(set().union(*names)) > MANY_NAMES:
            self.options = self.options | {"loss": "hs", "lr": 0.5}
        with tempfile.TemporaryDirectory() as folder:
            lines = [" ".join(f"__label__{name}" for name in row) + " " + self.words(text)
                     for text, row in zip(texts, names, strict=True)]
            cut = len(lines) * 9 // 10 if self.seconds else len(lines)
            path = Path(folder, "train.txt")
            path.write_text("\n".join(lines[:cut]) + "\n", encoding="utf-8")
            options = {"thread": self.threads} | self.options
            if self.seconds:
                other = Path(folder, "valid.txt")
                other.write_text("\n".join(lines[cut:]) + "\n", encoding="utf-8")
                options = {"thread": self.threads, "loss": self.options["loss"], "verbose": 0,
                           "autotuneValidationFile": str(other),
                           "autotuneDuration": self.seconds}
            self.model = self.fasttext.train_supervised(str(path), **options)

    @staticmethod
    def words(text):
        import re

        return " ".join(re.findall(r"\w\w+", text.lower()))

    def save(self, folder):
        self.model.save_model(str(folder / "model.bin"))
        self.model = self.fasttext.load_model(str(folder / "model.bin"))

    def best(self, texts, k):
        names, p = self.model.predict([self.words(text) for text in texts], k=k)
        return [[(name[9:], float(value)) for name, value in zip(row, values, strict=True)]
                for row, values in zip(names, p, strict=True)]


class OverRows:
    """A contender that takes rows, of scikit-learn's vectorizer."""

    def __init__(self, one_per_text, threads, options):
        self.threads = threads

    def train(self, texts, names):
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.preprocessing import MultiLabelBinarizer

        self.vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=MIN_DF, sublinear_tf=True,
                                          dtype=np.float32)
        X = self.vectorizer.fit_transform(texts)
        self.binarizer = MultiLabelBinarizer(sparse_output=True)
        Y = self.binarizer.fit_transform(names)
        self.fit(X, Y)

    def best(self, texts, k):
        X = self.vectorizer.transform(texts)
        names = self.binarizer.classes_
        return [[(names[j], float(p)) for j, p in row] for row in self.ranked(X, k)]


class OneVsRest(OverRows):
    def fit(self, X, Y):
        from sklearn.multiclass import OneVsRestClassifier
        from sklearn.svm import LinearSVC

        self.model = OneVsRestClassifier(LinearSVC(), n_jobs=self.threads).fit(X, Y)

    def ranked(self, X, k):
        z = self.model.decision_function(X)
        ids = np.argsort(-z, axis=1)[:, :k]
        return [[(j, z[i, j]) for j in row] for i, row in enumerate(ids)]

    def save(self, folder):
        import pickle

        (folder / "model.pkl").write_bytes(pickle.dumps((self.vectorizer, self.binarizer,
                                                         self.model)))


class Omikuji(OverRows):
    def fit(self, X, Y):
        import omikuji

        X, Y = X.tocsr(), Y.tocsr()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "train.txt")
            with open(path, "w") as file:
                n = np.count_nonzero(np.diff(X.indptr))
                file.write(f"{n} {X.shape[1]} {Y.shape[1]}\n")
                for i in np.flatnonzero(np.diff(X.indptr)):  # it refuses empty rows
                    labels = ",".join(map(str, Y.indices[Y.indptr[i]:Y.indptr[i + 1]]))
                    row = slice(X.indptr[i], X.indptr[i + 1])
                    pairs = zip(X.indices[row], X.data[row], strict=True)
                    words = " ".join(f"{j}:{v:.6g}" for j, v in pairs)
                    file.write(f"{labels} {words}\n")
            self.model = omikuji.Model.train_on_data(str(path), n_threads=self.threads)

    def ranked(self, X, k):
        X = X.tocsr()
        found = []
        for a, b in itertools.pairwise(X.indptr.tolist()):
            row = list(zip(X.indices[a:b].tolist(), X.data[a:b].tolist(), strict=True))
            found.append(self.model.predict(row, top_k=k))
        return found

    def save(self, folder):
        import pickle

        import omikuji

        self.model.save(str(folder / "model"))
        (folder / "names.pkl").write_bytes(pickle.dumps((self.vectorizer, self.binarizer)))
        self.model = omikuji.Model.load(str(folder / "model"))
        self.model.densify_weights(0.05)


class Pecos(OverRows):
    def fit(self, X, Y):
        from pecos.xmc import Indexer, LabelEmbeddingFactory
        from pecos.xmc.xlinear.model import XLinearModel

        Y = Y.tocsr().astype(np.float32)
        X = X.tocsr().astype(np.float32)
        chain = Indexer.gen(LabelEmbeddingFactory.create(Y, X))
        self.model = XLinearModel.train(X, Y, C=chain, threads=self.threads)

    def ranked(self, X, k):
        found = self.model.predict(X.tocsr().astype(np.float32), only_topk=k, threads=self.threads)
        out = []
        for i in range(found.shape[0]):
            row = slice(found.indptr[i], found.indptr[i + 1])
            pairs = zip(found.indices[row], found.data[row], strict=True)
            out.append(sorted(pairs, key=lambda pair: -pair[1]))
        return out

    def save(self, folder):
        import pickle

        from pecos.xmc.xlinear.model import XLinearModel

        self.model.save(str(folder / "model"))
        (folder / "names.pkl").write_bytes(pickle.dumps((self.vectorizer, self.binarizer)))
        self.model = XLinearModel.load(str(folder / "model"), is_predict_only=True)


CONTENDERS = {"sparselsh": Sparselsh, "fasttext": FastText, "omikuji": Omikuji, "pecos": Pecos,
              "one-vs-rest": OneVsRest}


# -- measures --------------------------------------------------------------------------------------


def precision(found, true, k):
    return float(np.mean([len({name for name, _ in row[:k]} & set(names)) / k
                          for row, names in zip(found, true, strict=True)]))


def micro_f1(found, true):
    hits = sum(len(set(row) & set(names)) for row, names in zip(found, true, strict=True))
    return 2 * hits / max(1, sum(map(len, found)) + sum(len(set(names)) for names in true))


def best_threshold(found, true):
    """The threshold of the scores with the largest micro-averaged F1."""
    pairs = sorted(((p, name in names) for row, names in zip(found, true, strict=True)
                    for (name, p), names in ((pair, set(names)) for pair in row)), reverse=True)
    hits = np.cumsum([hit for _, hit in pairs])
    n_true = sum(len(set(names)) for names in true)
    f1 = 2 * hits / (np.arange(1, len(pairs) + 1) + n_true)
    return pairs[int(np.argmax(f1))][0]


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def microseconds(contender, texts):
    """(lone, batched): CPU microseconds from a text to its five best names."""
    lone, batched = [], []
    for _ in range(N_ROUNDS):
        start = time.process_time()
        for text in texts[:N_LONE]:
            contender.best([text], 5)
        lone.append((time.process_time() - start) / N_LONE * 1e6)
        start = time.process_time()
        contender.best(texts, 5)
        batched.append((time.process_time() - start) / len(texts) * 1e6)
    return statistics.median(lone), statistics.median(batched)


def measure(name, args):
    """All figures of a contender, which runs in this process."""
    (texts, names), (test, true) = read(args.data, args.task)
    one = args.task == "sections"
    contender = CONTENDERS[name](one, args.threads, json.loads(args.options))

    threshold = None
    if name != "sparselsh" and not one:
        cut = len(texts) * 9 // 10
        contender.train(texts[:cut], names[:cut])
        threshold = best_threshold(contender.best(texts[cut:], N_BEST), names[cut:])

    with Stopwatch() as watch:
        contender.train(texts, names)
    with tempfile.TemporaryDirectory() as folder:
        contender.save(Path(folder))
        n_bytes = size_of(Path(folder))
        found = contender.best(test, N_BEST)
        if one:
            f1 = precision(found, true, 1)
        elif name == "sparselsh":
            f1 = micro_f1(contender.names(test), true)
        else:
            f1 = micro_f1([[label for label, p in row if p >= threshold] for row in found], true)
        lone, batched = microseconds(contender, test)
    return {"contender": name, "task": args.task, "p_at_1": precision(found, true, 1),
            "p_at_5": precision(found, true, 5), "micro_f1": f1, "train_cpu_seconds": watch.cpu,
            "train_seconds": watch.wall, "bytes": n_bytes, "lone_microseconds": lone,
            "batch_microseconds": batched, "versions": versions()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("contenders", nargs="*", choices=[*CONTENDERS, []], metavar="CONTENDER",
                        help=f"{', '.join(CONTENDERS)}; sparselsh by default")
    parser.add_argument("--data", required=True)
    parser.add_argument("--task", choices=list(FIELDS), default="debtags")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--autotune", type=int, help="seconds of fastText's autotuning")
    parser.add_argument("--options", default="{}", help="of Tagger, as JSON")
    parser.add_argument("--python", action="append", default=[], metavar="CONTENDER=PYTHON")
    parser.add_argument("--json", help="append each report to this file, a line each")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()

    if args.alone:
        print(json.dumps(measure(args.contenders[0], args)))
        return
    pythons = dict(entry.split("=", 1) for entry in args.python)
    reports = []
    for name in args.contenders or ["sparselsh"]:
        options = args.options
        if name == "fasttext":
            options = json.dumps({"autotune": args.autotune})
        command = [pythons.get(name, sys.executable), "-P", __file__, name, "--alone",
                   "--data", args.data, "--task", args.task, "--threads", str(args.threads),
                   "--options", options]
        done = subprocess.run(command, capture_output=True, text=True,
                              env=os.environ | {"OMP_NUM_THREADS": str(args.threads)})
        if done.returncode:
            print(f"{name}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
            continue
        reports.append(json.loads(done.stdout.splitlines()[-1]))
        if args.json:
            with open(args.json, "a", encoding="utf-8") as file:
                file.write(json.dumps(reports[-1]) + "\n")
    print(f"{'':12} {'P@1':>6} {'P@5':>6} {'F1':>6} {'CPU s':>7} {'MB':>7} {'us lone':>8} us batch")
    for r in reports:
        print(f"{r['contender']:12} {r['p_at_1']:6.3f} {r['p_at_5']:6.3f} {r['micro_f1']:6.3f} "
              f"{r['train_cpu_seconds']:7.1f} {r['bytes'] / 1e6:7.1f} "
              f"{r['lone_microseconds']:8.0f} {r['batch_microseconds']:8.0f}")


if __name__ == "__main__":
    main()
