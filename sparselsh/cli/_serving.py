"""The commands that serve trained networks: `sparselsh convert` of weights, and `sparselsh serve-bench`."""
from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _validation as check
from .._arrays.csr import CSR
from ..inference import seconds_of_rounds

if TYPE_CHECKING:
    import argparse

    from ..inference import InferenceNetwork

N_SINGLE_QUERIES = 200  # queries that a round answers one after the other
MAX_SECONDS = 5.0  # of all rounds together


def is_weights(path: str, layers: list[str] | None) -> bool:
    """Whether `sparselsh convert` is given weights and not text."""
    return bool(layers) or str(path).endswith(".onnx")


def convert_weights(args: argparse.Namespace) -> None:
    """Convert layers of a file of weights and write the network to serve."""
    import sparselsh as sl

    from .. import _files

    _files.require_safetensors()
    options = {"recall": args.recall, "error": args.error, "storage": args.storage, "upcast": args.upcast,
               "random_state": args.seed, "n_threads": args.threads}
    X = None if args.calibration is None else read_inputs(args.calibration)
    if args.input.endswith(".onnx"):
        if args.layer:
            raise ValueError(f"--layer: the layers of {args.input!r} stand in its graph; leave it out")
        net = sl.from_onnx(args.input, X, **options)
    else:
        net = sl.from_file(args.input, X, layers=args.layer, **options)
    net.save(args.output)
    print(net.report)


def serve_bench(args: argparse.Namespace) -> dict[str, float]:
    """Time a converted network against itself with every neuron computed; return the figures."""
    import sparselsh as sl

    net = sl.InferenceNetwork.load(args.model, mmap=args.mmap, n_threads=args.threads)
    if args.queries is not None:
        X = read_inputs(args.queries)
    elif net.layers[0].kind == "linear":
        X = np.maximum(np.random.default_rng(0).standard_normal((256, net.n_features), dtype=np.float32), 0)
        print("sparselsh: note: random inputs; times and recall differ for real ones: give --queries", file=sys.stderr)
    else:
        raise ValueError("--queries: the network takes ids; give a file of them")
    if net.layers[0].kind == "linear":
        x = check.matrix(X, n_columns=net.n_features)
    else:
        x = X.tocsr() if hasattr(X, "tocsr") else np.asarray(X)
    if x.shape[0] == 0:
        raise ValueError(f"--queries: {args.queries!r} has no rows; give some")
    k = min(args.k, net.n_labels)
    ids, truth = (net.topk(x, k, exact=exact)[0] for exact in (False, True))
    found = np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(ids, truth, strict=True)])
    report = {"k": k, "n_queries": x.shape[0], "agreement": float((ids[:, 0] == truth[:, 0]).mean()),
              "recall": float(found)}
    for n in args.batch:
        for name, exact in (("dense", True), ("planned", False)):
            report[f"{name}_microseconds_{n}"] = _microseconds(net, x, n, k, exact)
    print(f"{x.shape[0]:,} questions; best output the same {report['agreement']:.2%}, recall@{k} {found:.2%}")
    for n in args.batch:
        dense, planned = report[f"dense_microseconds_{n}"], report[f"planned_microseconds_{n}"]
        print(f"{n:>5} at once: {planned:10.1f} us a question, {dense:10.1f} with every neuron: {dense / planned:.1f}x")
    return report


def _microseconds(net: InferenceNetwork, x: np.ndarray | CSR, n: int, k: int, exact: bool) -> float:
    """Median over some rounds of the microseconds a question."""
    n_calls = max(1, min(N_SINGLE_QUERIES if n == 1 else 8, x.shape[0] // n))
    parts = [_rows(x, np.arange(i * n, (i + 1) * n) % x.shape[0]) for i in range(n_calls)]
    times = seconds_of_rounds(lambda part: net.topk(part, k, exact=exact), parts, n, MAX_SECONDS)
    return float(np.median(times)) * 1e6


def _rows(x: np.ndarray | CSR, rows: np.ndarray) -> np.ndarray | CSR:
    return x.take(rows.astype(np.int64)) if isinstance(x, CSR) else x[rows]


def read_inputs(path: str) -> Any:
    """Rows of an .npz file: a matrix saved by scipy.sparse.save_npz, or the array X, or the only one; or an .npy file.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, it cannot be read, or it does not say which array.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file; check the path")
    try:
        with open(path, "rb") as file:  # numpy.load leaves a damaged file open
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            names = loaded.files
            if "indptr" in names:
                from scipy.sparse import load_npz

                return load_npz(path)
            if len(names) != 1 and "X" not in names:
                raise ValueError(f"it holds {', '.join(names) or 'nothing'}; name the array of inputs X")
            return loaded["X" if "X" in names else names[0]]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a readable .npz file of inputs ({error}); save it with numpy.savez(path, X=X)"
                         ) from error
