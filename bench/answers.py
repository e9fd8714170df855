"""Scores, probabilities and labels of LSHClassifier's defaults, on sets that it was not tuned on.

usage: python -P bench/answers.py DATA_DIR [--sets NAMES] [--seeds 3] [--folds N] [--variants]
           [--rivals] [--pecos-python PATH] [--omikuji-python PATH] [--threads 2] [--rows N]
           [--json FILE]

DATA_DIR holds folders with train.txt and test.txt (XMC text) for tib-core, eurlex57k and
diginetica, and debian-packages.jsonl.xz for tags, section and depends: TF-IDF (sublinear, min_df 2)
of the packages' texts, the first nine tenths for training. digits is that of scikit-learn, dense
and sparse; covtype-like is drawn by `make_classification`. Sets that are absent are skipped.

Per set and contender: P@1; micro-F1 of `predict`, and of the best constant number of labels, chosen
on test rows; the calibration error of the best label, that of perfect probabilities for as many
rows (the mean of 20 draws), the debiased one, whose mean does not depend on the number of rows, and
that of the five best labels; the log-loss; the sum of the probabilities over the number of true
labels, which for the frequencies of the training rows ("constant") says how many more labels
these have than the test rows; CPU seconds of `fit`. For the default also: rows
whose `predict` is not the argmax of `predict_proba`, and P@1 with exact=True. --variants adds the
four combinations of loss and refine, --rivals logistic regression and SGD. For sparse rows with
several labels, --pecos-python and --omikuji-python add P@1 and F1 of PECOS and Omikuji, whose
thresholds are chosen like ours: on a tenth of the training rows, at most 2,048, that they leave
out.
"""
import argparse
import json
import lzma
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import scipy.sparse as sp

import sparselsh as sl

sys.path.insert(0, str(Path(__file__).parent))
from common import Stopwatch, spread, text_table, write_json

MAX_OUTPUTS = 1 << 26  # probabilities in memory at a time
SETS = ("digits", "digits-sparse", "covtype-like", "section", "tags", "depends", "eurlex57k",
        "tib-core", "diginetica", "yso-100k")
KEYS = ("p_at_1", "f1", "f1_constant", "ece", "ece_of_perfect", "ece_debiased", "ece_5", "log_loss",
        "sum", "cpu")
VARIANTS = {f"{loss}{' refined' if refine else ''}": {"loss": loss, "refine": refine}
            for loss in ("softmax", "bce") for refine in (False, True)}


class Data:
    """Rows for training and for testing; y is class ids or an indicator."""

    def __init__(self, X, y, X_test, y_test):
        self.X, self.y, self.X_test, self.y_test = X, y, X_test, y_test
        self.several = y.ndim == 2
        self.Y_test = y_test if self.several else indicator(y_test, int(y.max()) + 1)


def indicator(y, n):
    return sp.csr_array((np.ones(len(y), np.float32), (np.arange(len(y)), y)), shape=(len(y), n))


def load(name, folder, n_rows):
    if name.startswith("digits"):
        from sklearn.datasets import load_digits

        X, y = load_digits(return_X_y=True)
        X = sp.csr_array(X / 16) if name == "digits-sparse" else X / 16
        order = np.random.default_rng(0).permutation(len(y))
        return Data(*(part[rows] for rows in (order[:1300], order[1300:]) for part in (X, y)))
    if name == "covtype-like":
        from sklearn.datasets import make_classification

        X, y = make_classification(50_000, 54, n_informative=20, n_classes=7, class_sep=0.8,
                                   n_clusters_per_class=3, flip_y=0.1, random_state=0,
                                   weights=[.4, .3, .1, .08, .06, .04, .02])
        return Data(X[:40_000], y[:40_000], X[40_000:], y[40_000:])
    if name in ("tags", "section", "depends"):
        return debian(name, folder, n_rows)
    parts = []
    for part in ("train", "test"):
        X, Y = sl.datasets.read_xmc(folder / name / f"{part}.txt")
        parts += [X, Y]
    n_labels = max(parts[1].shape[1], parts[3].shape[1])
    for i in (1, 3):
        parts[i].resize(parts[i].shape[0], n_labels)
    X, Y, X_test, Y_test = parts
    if n_rows:
        X, Y = X[:n_rows], Y[:n_rows]
    if (np.diff(Y.indptr) == 1).all():  # classes; those that training rows lack are lost
        return Data(X, Y.indices, X_test, Y_test.indices)
    return Data(X, Y, X_test, Y_test)


def debian(name, folder, n_rows):
    """`debian-packages.jsonl.xz`, whose packages are in random order."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import LabelEncoder, MultiLabelBinarizer

    with lzma.open(folder / "debian-packages.jsonl.xz", "rt", encoding="utf-8") as lines:
        packages = [json.loads(line) for line in lines]
    packages = [package for package in packages if package.get(name)]
    if name == "section":
        packages = packages[:20_000]
    if n_rows:
        packages = packages[:n_rows]
    n = len(packages) * 9 // 10
    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2, dtype=np.float32)
    texts = [package["text"] for package in packages]
    X, X_test = vectorizer.fit_transform(texts[:n]), vectorizer.transform(texts[n:])
    values = [package[name] for package in packages]
    encoder = LabelEncoder() if name == "section" else MultiLabelBinarizer(sparse_output=True)
    y = encoder.fit_transform(values)
    if name != "section":
        y = sp.csr_array(y, dtype=np.float32)
    return Data(sp.csr_array(X), y[:n], sp.csr_array(X_test), y[n:])


# --- measures -----------------------------------------------------------------------------------


def measured(data, proba, predict):
    """The figures of one model, chunk by chunk of the test rows, which both take as a slice."""
    n, n_labels = data.Y_test.shape
    step = max(4, MAX_OUTPUTS // n_labels)
    parts, losses, totals, wrong = [], 0.0, 0.0, 0
    hits = n_predicted = 0
    for start in range(0, n, step):
        rows = slice(start, start + step)
        Y, y = data.Y_test[rows], data.y_test[rows]
        p, predicted = proba(rows), predict(rows)
        losses += sl.metrics.log_loss(y, p) * len(p)
        totals += float(p.sum(dtype=np.float64))
        best = np.argsort(-p, axis=1, kind="stable")[:, :50] if n_labels < 2000 else top(p, 50)
        values = np.take_along_axis(p, best, axis=1)
        true = np.asarray(Y[np.repeat(np.arange(len(p)), best.shape[1]), best.ravel()])
        parts.append((values, true.reshape(best.shape) > 0))
        if data.several:
            predicted = sp.csr_array(predicted)
            hits += predicted.multiply(Y.astype(bool)).nnz
            n_predicted += predicted.nnz
        else:
            hits += int((predicted == y).sum())
            n_predicted += len(predicted)
            wrong += int((predicted != best[:, 0]).sum())
    values, true = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    n_true = data.Y_test.nnz
    constant = max(2 * true[:, :k].sum() / (k * n + n_true) for k in range(1, true.shape[1] + 1))
    ones = true.astype(np.float32)

    def error(k, debiased=False):
        return sl.metrics.expected_calibration_error(
            ones[:, :k].reshape(-1, 1), np.clip(values[:, :k].reshape(-1, 1), 0, 1),
            debiased=debiased)

    rng = np.random.default_rng(0)
    perfect = [sl.metrics.expected_calibration_error(
        (rng.random(len(values)) < values[:, 0]).astype(np.float32)[:, None],
        np.clip(values[:, :1], 0, 1)) for _ in range(20)]
    return {"ece_of_perfect": float(np.mean(perfect)),
            "p_at_1": float(true[:, 0].mean()), "f1": 2 * hits / (n_predicted + n_true),
            "f1_constant": float(constant), "ece": error(1), "ece_5": error(5),
            "ece_debiased": error(1, debiased=True),
            "log_loss": losses / n, "sum": totals / n_true, "not_argmax": wrong}


def top(p, k):
    some = np.argpartition(-p, k, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(p, some, axis=1), axis=1, kind="stable")
    return np.take_along_axis(some, order, axis=1)


def fitted(X, y, seed, threads, **options):
    """A classifier, and the CPU seconds of its training."""
    from sparselsh.estimators import LSHClassifier

    if options:
        options["init"] = "labels" if sp.issparse(X) else "random"
    model = LSHClassifier(random_state=seed, n_jobs=threads, **options)
    with warnings.catch_warnings(), Stopwatch() as watch:
        warnings.simplefilter("ignore")
        model.fit(X, y)
    return model, watch.cpu


def all_probabilities(model, data, X):
    """(n, n_labels), of classes that the training did not have, too."""
    p = model.predict_proba(X)
    if data.several:
        return p
    out = np.zeros((len(p), data.Y_test.shape[1]), np.float32)
    out[:, model.classes_] = p
    return out


def in_folds(data, seed, threads, n_folds):
    """The figures of the default on all rows, each asked of a model that has not seen it."""
    X = sp.vstack([data.X, data.X_test], "csr") if sp.issparse(data.X) else np.concatenate(
        [data.X, data.X_test])
    y = sp.vstack([data.y, data.y_test], "csr") if data.several else np.concatenate(
        [data.y, data.y_test])
    fold = np.sort(np.arange(X.shape[0]) % n_folds)
    order = np.random.default_rng(seed).permutation(X.shape[0])
    X, y = X[order], y[order]
    models, cpu = [], 0.0
    for each in range(n_folds):
        model, seconds = fitted(X[fold != each], y[fold != each], seed, threads)
        models.append(model)
        cpu += seconds
    pooled = Data(X[:0], y[:0] if data.several else y, X, y)

    def asked(answer):
        def of(rows):
            parts = np.split(np.arange(rows.start, min(rows.stop, X.shape[0])), np.flatnonzero(
                np.diff(fold[rows])) + 1)
            answers = [answer(models[fold[part[0]]], X[part]) for part in parts]
            return sp.vstack(answers, "csr") if sp.issparse(answers[0]) else np.concatenate(answers)
        return of

    return measured(pooled, asked(lambda model, X: all_probabilities(model, pooled, X)),
                    asked(lambda model, X: model.predict(X))) | {"cpu": cpu / n_folds}


def classifier(data, seed, threads, **options):
    model, cpu = fitted(data.X, data.y, seed, threads, **options)
    figures = measured(data, lambda rows: all_probabilities(model, data, data.X_test[rows]),
                       lambda rows: model.predict(data.X_test[rows])) | {"cpu": cpu}
    if not options:
        figures["refined"] = model.network_.refinement is not None
        figures["exact_p_at_1"] = sl.metrics.precision_at_k(
            data.Y_test, model.predict_topk(data.X_test, 1, exact=True)[0], 1)
        five = model.predict_topk(data.X_test[:2000], 5)[0]
        k = min(500, len(model.classes_))
        many = model.predict_topk(data.X_test[:2000], k)[0][:, :5]
        figures["five_of_500_differ"] = int((five != many).any(axis=1).sum())
    return figures


def constant(data):
    """Label frequencies of the training rows."""
    p = np.asarray(data.y.sum(axis=0)).ravel() if data.several else np.bincount(
        data.y, minlength=data.Y_test.shape[1])
    p = (p / len(data.y) if not data.several else p / data.y.shape[0]).astype(np.float32)
    shape = data.Y_test.shape
    losses, step = 0.0, max(4, MAX_OUTPUTS // shape[1])
    for start in range(0, shape[0], step):
        y = data.y_test[start:start + step]
        rows = y.shape[0]
        losses += sl.metrics.log_loss(y, np.broadcast_to(p, (rows, shape[1]))) * rows
    return {"log_loss": losses / shape[0],
            "sum": float(p.sum()) * shape[0] / data.Y_test.nnz}


def scikit(data, seed, kind):
    """Logistic regression, or SGD; one-vs-rest for several labels per row."""
    from sklearn.linear_model import LogisticRegression, SGDClassifier
    from sklearn.multiclass import OneVsRestClassifier

    model = (LogisticRegression(max_iter=1000, C=10.0 if sp.issparse(data.X) else 1.0)
             if kind == "logistic" else SGDClassifier(loss="log_loss", random_state=seed))
    if data.several:
        model = OneVsRestClassifier(model)
    with warnings.catch_warnings(), Stopwatch() as watch:
        warnings.simplefilter("ignore")
        model.fit(sp.csr_matrix(data.X) if sp.issparse(data.X) else data.X,
                  sp.csr_matrix(data.y) if data.several else data.y)

    def inputs(rows):
        X = data.X_test[rows]
        return sp.csr_matrix(X) if sp.issparse(X) else X

    def proba(rows):
        p = model.predict_proba(inputs(rows))
        out = np.zeros((len(p), data.Y_test.shape[1]), np.float32)
        out[:, np.arange(p.shape[1]) if data.several else model.classes_] = p
        return np.clip(out, 0, 1)

    return (measured(data, proba, lambda rows: model.predict(inputs(rows)))
            | {"cpu": watch.cpu})


def rival(data, name, python, threads):
    """P@1 and F1 of a rival whose threshold is chosen on rows that its training left out."""
    n = data.X.shape[0]
    order = np.random.default_rng(0).permutation(n)
    n_held_out = min(2048, n // 10)
    rows, kept = np.sort(order[:n_held_out]), np.sort(order[n_held_out:])
    matrices = {"X": data.X[kept], "Y": data.y[kept], "X_held_out": data.X[rows],
                "X_test": data.X_test}
    arrays = {f"{key}_{part}": getattr(matrix, part) for key, matrix in matrices.items()
              for part in ("data", "indices", "indptr", "shape")}
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/data.npz", **arrays)
        script = Path(__file__).with_name("answers_rivals.py")
        subprocess.run([python, "-P", str(script), name, f"{folder}/data.npz",
                        f"{folder}/out.npz", "--threads", str(threads)], check=True,
                       stdout=subprocess.DEVNULL)
        with np.load(f"{folder}/out.npz") as file:
            out = dict(file)
    own = data.y[rows]
    threshold = best_f1_threshold(out["scores"], true_pairs(out["ids"], own), own.nnz)
    hit = true_pairs(out["ids_test"], data.Y_test)
    chosen = out["scores_test"] >= threshold
    return {"p_at_1": float(hit[:, 0].mean()), "cpu": float(out["cpu"]),
            "f1": 2 * (hit & chosen).sum() / (chosen.sum() + data.Y_test.nnz)}


def true_pairs(ids, Y):
    rows = np.repeat(np.arange(len(ids)), ids.shape[1])
    true = np.asarray(Y[rows, np.maximum(ids.ravel(), 0)]).reshape(ids.shape) > 0
    return true & (ids >= 0)


def best_f1_threshold(scores, hit, n_true):
    order = np.argsort(-scores.ravel(), kind="stable")
    f1 = 2 * np.cumsum(hit.ravel()[order]) / (np.arange(1, len(order) + 1) + n_true)
    return scores.ravel()[order][f1.argmax()]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", nargs="+", default=SETS, choices=SETS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folds", type=int)
    parser.add_argument("--variants", action="store_true")
    parser.add_argument("--rivals", action="store_true")
    parser.add_argument("--pecos-python", metavar="PATH")
    parser.add_argument("--omikuji-python", metavar="PATH")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, help="only so many rows of a set, to try things")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()

    results = {}
    for name in args.sets:
        try:
            data = load(name, args.data, args.rows)
        except FileNotFoundError as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        if args.folds:
            runs = [in_folds(data, seed, args.threads, args.folds) for seed in range(args.seeds)]
            figures = {key: spread([run[key] for run in runs]) for key in runs[0]}
            results[name] = {"default in folds": figures}
            n = data.X.shape[0] + data.X_test.shape[0]
            print(f"\n{name}: {n:,} rows in {args.folds} folds, medians of {args.seeds} seeds")
            print(text_table(KEYS, [[f"{figures[key]['median']:.4g}" for key in KEYS]]),
                  flush=True)
            continue
        contenders = {"default": {}} | (VARIANTS if args.variants else {})
        runs = {title: [classifier(data, seed, args.threads, **options)
                        for seed in range(args.seeds)] for title, options in contenders.items()}
        if args.rivals:
            if not data.several:
                runs["logistic"] = [scikit(data, 0, "logistic")]
            runs["SGD"] = [scikit(data, seed, "SGD") for seed in range(args.seeds)]
        if data.several:
            for title, python in (("pecos", args.pecos_python), ("omikuji", args.omikuji_python)):
                if python:
                    runs[title] = [rival(data, title, python, args.threads)]
        figures = {title: {key: spread([run[key] for run in own]) for key in own[0]}
                   for title, own in runs.items()}
        figures["constant"] = {key: spread([value]) for key, value in constant(data).items()}
        results[name] = figures
        kind = "labels" if data.several else "classes"
        print(f"\n{name}: {data.X.shape[0]:,} rows, {data.Y_test.shape[1]:,} {kind}, "
              f"medians of {args.seeds} seeds")
        print(text_table(["", *KEYS], [
            [title, *(f"{own[key]['median']:.4g}" if key in own else "" for key in KEYS)]
            for title, own in figures.items()]), flush=True)
        own = figures["default"]
        print(f"default: {own['not_argmax']['max']} rows whose predict is not the argmax; P@1 with "
              f"exact=True {own['exact_p_at_1']['median']:.4f}; rows whose first five of topk(500) "
              f"differ {own['five_of_500_differ']['max']}; refined {own['refined']['median']}",
              flush=True)
    if args.json:
        write_json(args.json, results)


if __name__ == "__main__":
    main()
