"""Many labels, all defaults: the library beside PECOS, Omikuji, napkinXC and fastText.

usage: python -P bench/accuracy.py TRAIN TEST [--only NAMES] [--seeds N ...] [--rounds N]
           [--pecos-python PATH] [--rivals-python PATH] [--json FILE] [--markdown FILE]
           [--plot FILE]

TRAIN and TEST are XMC text. Each contender has a process of its own (bench/xmc_rivals.py, whose
head says in which mode each one answers), and the processes take turns: in each training round
every contender trains once, in each round of queries every contender answers the same rows. A rival
whose first training took more than --repeat-below seconds is not trained again. A contender that is
not installed in its environment is listed as such.

Seconds are those of the training alone, all threads together for CPU seconds: without reading the
text for sparselsh, PECOS and napkinXC, with it for Omikuji and fastText, which read their own file
(about half a second). "Single" is the median time of 100 queries of one row each, on one thread;
"batch" is the time per row of up to 512 rows in one call, on all threads. Figures are medians of
rounds, with the smallest and the largest. Precisions count all test rows, also those without
labels. HR@20 and MRR@20 are for the first correct label among 20. MB are those of the saved files.
"""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import sparselsh as sl

sys.path.insert(0, str(Path(__file__).parent))
from common import (
    BENCH,
    child_environment,
    last_line,
    log_x_axis,
    markdown_table,
    spread,
    write_json,
)
from xmc_rivals import CONTENDERS, save_data

K = 20
TITLES = {"sparselsh": "sparselsh", "pecos": "PECOS, XR-Linear",
          "omikuji-parabel": "Omikuji, Parabel", "omikuji-bonsai": "Omikuji, Bonsai",
          "napkinxc": "napkinXC, PLT", "fasttext": "fastText, hierarchical softmax"}


class Failed(Exception):
    """A contender could not do what it was told."""


class Process:
    """A contender in a process of its own."""

    def __init__(self, name, data, args):
        python = {"sparselsh": sys.executable, "pecos": args.pecos_python}.get(
            name, args.rivals_python)
        self.name = name
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [python, "-P", str(BENCH / "xmc_rivals.py"), name, data, "--threads", str(args.threads),
             "--k", str(K)],
            env=child_environment(args.threads, passive=name != "sparselsh"), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors)
        self.missing = self.read().get("missing")

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            raise Failed(last_line(self.errors.read()) or f"exit code {self.process.returncode}")
        answer = json.loads(line)
        if "failed" in answer:
            raise Failed(answer["failed"])
        return answer

    def __call__(self, do, **arguments):
        """Send a command and return its answer."""
        try:
            self.process.stdin.write(json.dumps({"do": do} | arguments) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # `read` says why the process has ended
        return self.read()

    def end(self):
        if not self.process.stdin.closed:
            self.process.stdin.close()
        self.process.wait()
        self.errors.close()


def measure(args):
    """{"data": shapes, "contenders": {name: figures}, "left_out": {name: why}}."""
    X, Y = sl.datasets.read_xmc(args.train)
    X_test, Y_test = sl.datasets.read_xmc(args.test, n_features=X.shape[1], n_labels=Y.shape[1])
    document = {"data": describe(X, Y, X_test), "threads": args.threads, "contenders": {},
                "left_out": {}}
    with tempfile.TemporaryDirectory() as folder:
        data = f"{folder}/data.npz"
        save_data(data, {"X": X, "Y": Y, "X_test": X_test}, args.train, args.options)
        processes, runs = {}, {}

        def attempt(name, do, **arguments):
            """One command; a contender that fails is left out from there on."""
            print(f"{name}: {do}", file=sys.stderr, flush=True)
            try:
                return processes[name](do, **arguments)
            except Failed as error:
                document["left_out"][name] = str(error)
                processes.pop(name).end()
                return None

        try:
            for name in args.names:
                try:
                    process = Process(name, data, args)
                except Failed as error:
                    document["left_out"][name] = str(error)
                    continue
                if process.missing:
                    process.end()
                    package = CONTENDERS[name][2]
                    document["left_out"][name] = f"not installed (pip install {package})"
                else:
                    processes[name], runs[name] = process, {"train": [], "single": [], "batch": []}

            scores = {name: [] for name in processes}
            for number, seed in enumerate(args.seeds):
                for name in list(processes):
                    first = runs[name]["train"][:1]
                    slow = first and first[0]["wall"] > args.repeat_below
                    if name != "sparselsh" and (number >= args.rival_trainings or slow):
                        continue
                    if (report := attempt(name, "train", seed=seed)) is None:
                        continue
                    runs[name]["train"].append(report | {"seed": seed})
                    path = f"{folder}/{name}.npy"
                    # rivals are deterministic or nearly so: their first answers count
                    if (name == "sparselsh" or not first) and \
                            attempt(name, "predict", file=path) is not None:
                        scores[name].append(score(Y, Y_test, np.load(path)))

            for number in range(args.rounds):
                for do, arguments in (("single", {"round": number}), ("batch", {})):
                    for name in list(processes):
                        if (report := attempt(name, do, **arguments)) is not None:
                            runs[name][do].append(report)
            for name in processes:
                document["contenders"][name] = summary(runs[name], scores[name])
        finally:
            for process in processes.values():
                process.end()
    return document


def describe(X, Y, X_test):
    return {"train_rows": X.shape[0], "test_rows": X_test.shape[0], "features": X.shape[1],
            "labels": Y.shape[1], "values_per_row": X.nnz / max(1, X.shape[0]),
            "labels_per_row": Y.nnz / max(1, Y.shape[0])}


def score(Y, Y_test, ids):
    """Measures of the best K labels of each test row."""
    first = np.full(len(ids), np.inf)
    for i, (a, b) in enumerate(zip(Y_test.indptr[:-1], Y_test.indptr[1:], strict=True)):
        hits = np.flatnonzero(np.isin(ids[i], Y_test.indices[a:b]))
        if len(hits):
            first[i] = hits[0] + 1
    measures = {f"p_at_{k}": sl.metrics.precision_at_k(Y_test, ids, k) for k in (1, 3, 5)}
    measures["psp_at_5"] = sl.metrics.psp_at_k(Y_test, ids, 5, sl.metrics.propensities(Y))
    return measures | {"hr_at_20": float(np.isfinite(first).mean()),
                       "mrr_at_20": float((1 / first).mean())}


def summary(runs, scores):
    """Medians and spread of the rounds of a contender."""
    figures = {"train_cpu_s": [r["cpu"] for r in runs["train"]],
               "train_wall_s": [r["wall"] for r in runs["train"]]}
    for do in ("single", "batch"):
        for kind in ("wall_us", "cpu_us"):
            figures[f"{do}_{kind}"] = [r[kind] for r in runs[do]]
    figures |= {measure: [s[measure] for s in scores] for measure in scores[0]}
    last = runs["train"][-1]
    return {name: spread(values) for name, values in figures.items() if values} | {
        "bytes": last["bytes"], "peak_mb": last["peak_mb"], "load_seconds": last["load_seconds"],
        "seeds": [r["seed"] for r in runs["train"]]}


# --- tables -------------------------------------------------------------------------------------


def number(figure, digits=1, factor=1.0):
    """A median and, where there are several runs, their smallest and largest."""
    if figure is None:
        return "-"
    middle, low, high = (f"{factor * figure[key]:,.{digits}f}" for key in ("median", "min", "max"))
    return middle if figure["n"] == 1 or low == high else f"{middle} ({low} to {high})"


def table(document):
    """The figures of a data set as Markdown."""
    single_label = document["data"]["labels_per_row"] == 1
    measures = {"p_at_1": "P@1", "p_at_3": "P@3", "p_at_5": "P@5", "psp_at_5": "PSP@5"}
    if single_label:
        measures = {"p_at_1": "P@1", "hr_at_20": "HR@20", "mrr_at_20": "MRR@20"}
    header = ["contender", *(f"{title}, %" for title in measures.values()), "training, CPU s",
              "wall s", "single query, µs", "batch, µs per row", "files, MB"]
    rows = []
    for name, figures in document["contenders"].items():
        rows.append([
            TITLES[name], *(number(figures[measure], 2, 100) for measure in measures),
            number(figures["train_cpu_s"]), number(figures["train_wall_s"]),
            number(figures.get("single_wall_us"), 0), number(figures.get("batch_wall_us"), 0),
            f"{figures['bytes'] / 1e6:.1f}"])
    notes = [f"- {TITLES[name]}: {why}" for name, why in document["left_out"].items()]
    return "\n".join([markdown_table(header, rows), *([""] if notes else []), *notes])


def plot(documents, path):
    """P@1 against CPU seconds of training and against the time of a single query.

    documents: {title of the data set: what `measure` returned}
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(documents), 2, figsize=(9, 3.4 * len(documents)),
                                sharey="row", squeeze=False, layout="constrained")
    columns = (("train_cpu_s", "training, CPU seconds"),
               ("single_wall_us", "single query, microseconds"))
    for row, (title, document) in zip(axes, documents.items(), strict=True):
        for ax, (key, label) in zip(row, columns, strict=True):
            for i, name in enumerate(TITLES):
                figures = document["contenders"].get(name, {})
                if key in figures:
                    ax.plot(figures[key]["median"], 100 * figures["p_at_1"]["median"],
                            "*" if name == "sparselsh" else "o", color=f"C{i}",
                            markersize=14 if name == "sparselsh" else 7, label=TITLES[name])
            ax.set(xlabel=label, title=title)
            log_x_axis(ax)
        row[0].set_ylabel("P@1 on the test rows, %")
    handles = {label: handle for ax in axes.flat
               for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3,
                  fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--only", help=f"contenders, separated by commas: {', '.join(CONTENDERS)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2],
                        help="one training of the library per seed")
    parser.add_argument("--rival-trainings", type=int, default=3,
                        help="trainings of a rival, at most; never more than seeds")
    parser.add_argument("--repeat-below", type=float, default=15, metavar="SECONDS",
                        help="train a rival again if its first training was not longer")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of queries")
    parser.add_argument("--options", default="", help="more options of `sparselsh train`")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pecos-python", default=sys.executable, metavar="PATH",
                        help="the interpreter with libpecos, which needs NumPy 1")
    parser.add_argument("--rivals-python", default=sys.executable, metavar="PATH",
                        help="the interpreter with the other rivals")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--markdown", metavar="FILE")
    parser.add_argument("--plot", metavar="FILE")
    args = parser.parse_args()
    args.names = args.only.split(",") if args.only else list(CONTENDERS)
    if unknown := set(args.names) - CONTENDERS.keys():
        parser.error(f"--only: no contender {', '.join(sorted(unknown))}; "
                     f"there are {', '.join(CONTENDERS)}")
    return args


def main():
    args = arguments()
    document = measure(args)
    text = table(document)
    print(text)
    if args.markdown:
        Path(args.markdown).write_text(text + "\n", encoding="utf-8")
    if args.json:
        write_json(args.json, document)
    if args.plot:
        plot({Path(args.train).parent.name: document}, args.plot)


if __name__ == "__main__":
    main()
