"""Accuracy on many labels with every default: the library beside PECOS, Omikuji and napkinXC.

usage: python -P bench/accuracy.py TRAIN.txt TEST.txt [--contenders NAME ...] [--seeds N ...] [--json OUT]

XMC text. Each contender runs in a process of its own, one after the other; one whose package is missing is left out.
CPU seconds are those of the training: for the library, PECOS and napkinXC without reading the text, for Omikuji, which
reads it itself, with it (about half a second). "us alone" is CPU time of a question asked alone, on one thread, the
median of 300. Precisions count all rows of the test, those without labels too; HR@20 and MRR@20 are for the first
right label among 20. The size is that of the files that the contender writes.
"""
import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CONTENDERS = {"sparselsh": "sparselsh", "pecos": "libpecos", "omikuji-parabel": "omikuji", "omikuji-bonsai": "omikuji",
              "napkinxc": "napkinxc"}
MODULES = {"libpecos": "pecos"}
K = 20
ALONE = 300


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the library; the others run once")
    parser.add_argument("--options", default="", help="more options of `sparselsh train`")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        name, seed = args.run
        print("REPORT " + json.dumps(run(name, int(seed), args)))
        return
    reports = []
    print(f"{'':<18}" + "".join(f"{h:>9}" for h in ("CPU s", "wall s", "P@1", "P@3", "P@5", "PSP@5", "HR@20", "MRR@20",
                                                  "us alone", "MB")))
    for name in args.contenders:
        if importlib.util.find_spec(MODULES.get(CONTENDERS[name], CONTENDERS[name])) is None:
            print(f"{name:<18} is not installed: pip install {CONTENDERS[name]}")
            continue
        for seed in args.seeds if name == "sparselsh" else [0]:
            reports.append(report := child(name, seed, args))
            r = report
            print(f"{name:<18}{r['cpu']:9.1f}{r['wall']:9.1f}" + "".join(f"{100 * r[m]:9.2f}" for m in (
                "p1", "p3", "p5", "psp5", "hr20", "mrr20")) + f"{r['alone']:9.0f}{r['bytes'] / 1e6:9.1f}", flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(reports, indent=2))


def child(name, seed, args):
    counts = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(args.threads))
    waits = {} if name == "sparselsh" else {"OMP_WAIT_POLICY": "passive"}  # spinning would count as CPU time
    done = subprocess.run([sys.executable, "-P", *sys.argv, "--run", name, str(seed)],
                          env={**os.environ, **counts, **waits}, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("REPORT ")]
    if not lines:
        sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
    return {"name": name, "seed": seed} | json.loads(lines[-1][7:])


def run(name, seed, args):
    import sparselsh as sl

    X, Y = sl.datasets.read_xmc(args.train)
    X_test, Y_test = sl.datasets.read_xmc(args.test, n_features=X.shape[1], n_labels=Y.shape[1])
    with tempfile.TemporaryDirectory() as folder:
        train = {"sparselsh": ours, "pecos": pecos, "napkinxc": napkinxc}.get(name, omikuji)
        cpu, wall, ask, ask_all = train(name, seed, X, Y, args, folder)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        ids = ask_all(X_test)
        alone = []
        for i in range(min(ALONE, X_test.shape[0])):
            row = X_test[i:i + 1]
            begin = time.process_time()
            ask(row)
            alone.append(time.process_time() - begin)
    propensities = sl.metrics.propensities(Y)
    first = np.full(len(ids), np.inf)
    for i, (a, b) in enumerate(zip(Y_test.indptr[:-1], Y_test.indptr[1:], strict=True)):
        hits = np.flatnonzero(np.isin(ids[i], Y_test.indices[a:b]))
        if len(hits):
            first[i] = hits[0] + 1
    return {"cpu": cpu, "wall": wall, "alone": 1e6 * float(np.median(alone)), "bytes": size,
            "psp5": sl.metrics.psp_at_k(Y_test, ids, 5, propensities), "hr20": float(np.isfinite(first).mean()),
            "mrr20": float((1 / first).mean())} | {
                f"p{k}": sl.metrics.precision_at_k(Y_test, ids, k) for k in (1, 3, 5)}


def clocked(train):
    cpu, wall = time.process_time(), time.perf_counter()
    model = train()
    return time.process_time() - cpu, time.perf_counter() - wall, model


def ours(name, seed, X, Y, args, folder):
    import sparselsh as sl
    from sparselsh.cli import main as command

    report, model = f"{folder}/report.json", f"{folder}/model.safetensors"
    code = command(["train", args.train, "--model", model, "--json", report, "--seed", str(seed), "--threads",
                    str(args.threads), "--quiet", *args.options.split()])
    if code:
        sys.exit(code)
    figures = json.loads(Path(report).read_text())
    os.unlink(report)
    net = sl.load(model, n_threads=args.threads)
    alone = sl.load(model, n_threads=1)
    alone.topk(X[:1], k=5)  # makes the index
    return (figures["train_cpu_seconds"], figures["train_seconds"], lambda row: alone.topk(row, k=5),
            lambda rows: net.topk(rows, k=K)[0])


def pecos(name, seed, X, Y, args, folder):
    import scipy.sparse as sp
    from pecos.xmc import Indexer, LabelEmbeddingFactory
    from pecos.xmc.xlinear.model import XLinearModel

    X, Y = sp.csr_matrix(X), sp.csr_matrix(Y)

    def train():
        chain = Indexer.gen(LabelEmbeddingFactory.create(Y, X), threads=args.threads)
        return XLinearModel.train(X, Y, C=chain, threads=args.threads)

    cpu, wall, model = clocked(train)
    model.save(folder)

    def ask_all(rows):
        found = model.predict(sp.csr_matrix(rows), only_topk=K, threads=args.threads).tocsr()
        ids = np.full((rows.shape[0], K), -1)
        for i, (a, b) in enumerate(zip(found.indptr[:-1], found.indptr[1:], strict=True)):
            best = np.argsort(-found.data[a:b], kind="stable")
            ids[i, :b - a] = found.indices[a:b][best]
        return ids

    return cpu, wall, lambda row: model.predict(sp.csr_matrix(row), only_topk=5, threads=1), ask_all


def omikuji(name, seed, X, Y, args, folder):
    import omikuji

    options = omikuji.Model.default_hyper_param()
    if name == "omikuji-bonsai":  # as its README has it
        options.cluster_balanced = False
        options.cluster_k = 100
        options.max_depth = 3
    cpu, wall, model = clocked(lambda: omikuji.Model.train_on_data(args.train, options, args.threads))
    model.save(folder)

    def ask(row, k=5):
        return model.predict(list(zip(row.indices.tolist(), row.data.tolist(), strict=True)), top_k=k)

    def ask_all(rows):
        ids = np.full((rows.shape[0], K), -1)
        for i in range(rows.shape[0]):
            best = [label for label, _ in ask(rows[i:i + 1], K)]
            ids[i, :len(best)] = best
        return ids

    return cpu, wall, ask, ask_all


def napkinxc(name, seed, X, Y, args, folder):
    import scipy.sparse as sp
    from napkinxc.models import PLT

    X = sp.csr_matrix(X)
    labels = [Y.indices[a:b].tolist() for a, b in zip(Y.indptr[:-1], Y.indptr[1:], strict=True)]
    model = PLT(folder, threads=args.threads, verbose=False)
    cpu, wall, _ = clocked(lambda: model.fit(X, labels))

    def ask_all(rows):
        ids = np.full((rows.shape[0], K), -1)
        for i, best in enumerate(model.predict(sp.csr_matrix(rows), top_k=K)):
            ids[i, :len(best)] = best
        return ids

    return cpu, wall, lambda row: model.predict(sp.csr_matrix(row), top_k=5), ask_all


if __name__ == "__main__":
    main()
