"""Commands for inference: `sparselsh convert` of weights, and `sparselsh serve-bench`."""
from __future__ import annotations

import sys
import zipfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _validation as check
from .._arrays.csr import CSR
from ..inference import (
    ESTIMATOR_FORMAT,
    FACTOR_FORMAT,
    TEXT_FORMAT,
    format_of,
    is_fasttext,
    is_network_file,
    is_onnx_network,
    natural,
    seconds_of_rounds,
)
from ._files import read_rows

if TYPE_CHECKING:
    import argparse

    from ..inference import InferenceNetwork

N_SINGLE_QUERIES = 200  # calls per round for batches of one query
MAX_BATCH_CALLS = 8  # calls per round for larger batches
MAX_TIMING_SECONDS = 5.0  # of all rounds together
ESTIMATOR_ENDING = ".joblib"
FACTORS = ("item_factors", "user_factors")  # of a file of implicit
N_USERS = 2000  # by which factors are timed
N_RANDOM_QUERIES = 256  # where no queries are given


def is_weights(path: str, layers: list[str] | None, to_csr: bool) -> bool:
    """Whether the input of `sparselsh convert` is weights and not text.

    Models of `sparselsh train`, fastText and implicit are recognized by their content, unless a CSR
    file is to be made.
    """
    return bool(layers) or path.endswith((".onnx", ESTIMATOR_ENDING)) or (
        not to_csr and (is_network_file(path) or is_fasttext(path) or _has_factors(path)))


def convert_weights(args: argparse.Namespace) -> None:
    """Convert layers of a file of weights and write the network for inference."""
    import sparselsh as sl

    options = {"recall": args.recall, "storage": args.storage, "random_state": args.seed,
               "n_threads": args.threads}
    layers = {"error": args.error, "upcast": args.upcast}
    if args.head != "auto" and not args.input.endswith(".onnx"):
        raise ValueError(f"--head: {args.input!r} is no .onnx file; leave it out")
    if args.layer and (kind := _kind_without_layers(args.input)):
        raise ValueError(f"--layer: {args.input!r} is {kind}, whose layers are known; leave it out"
                         + (", and name the last one by --head" if kind == "a graph" else ""))

    if args.input.endswith(".onnx"):
        X = None if args.calibration is None else read_model_inputs(args.calibration)
        net = sl.from_onnx(args.input, X, head=args.head, **options, **layers)
    elif args.input.endswith(ESTIMATOR_ENDING):
        net = _estimator(args, options | {"error": args.error})
    elif is_fasttext(args.input):
        texts = None if args.calibration is None else read_texts(args.calibration)
        net = sl.from_fasttext(args.input, texts, **options)
    elif _has_factors(args.input):
        net = sl.from_implicit(_Factors(args.input), **options)
    else:
        X = None if args.calibration is None else read_inputs(args.calibration)
        net = sl.from_file(args.input, X, layers=args.layer, **options, **layers)
    net.save(args.output)
    print(net.report)


def _kind_without_layers(path: str) -> str:
    if path.endswith(".onnx"):
        return "a graph"
    if path.endswith(ESTIMATOR_ENDING):
        return "an estimator"
    return "a model of fastText" if is_fasttext(path) else ""


def _estimator(args: argparse.Namespace, options: dict[str, Any]) -> Any:
    """The converted classifier of a file of joblib, which is read only where it is trusted."""
    import sparselsh as sl

    if not args.trust:
        raise ValueError(f"{args.input!r}: reading a file of joblib runs code that the file names; "
                         "give --trust if you know who wrote it")
    if not Path(args.input).is_file():
        raise FileNotFoundError(f"{args.input}: no such file; check the path")
    try:
        import joblib
    except ImportError as error:
        raise ImportError(f"{args.input}: needs joblib; type pip install scikit-learn") from error
    try:
        estimator = joblib.load(args.input)
    except Exception as error:  # reading a pickle raises anything
        raise ValueError(f"{args.input}: cannot be read by joblib ({type(error).__name__}: "
                         f"{error}); read it with the versions that wrote it") from error
    steps = []
    while hasattr(estimator, "steps"):
        *before, (_, estimator) = estimator.steps
        steps += [type(step).__name__ for _, step in before]
    if steps:
        print(f"sparselsh: note: without the steps before the classifier ({', '.join(steps)}); "
              "its inputs are what they give", file=sys.stderr)
    X = None if args.calibration is None else read_inputs(args.calibration)
    return sl.from_sklearn(estimator, X, **options)


class _Factors:
    """The factors in an .npz file that a model of implicit has saved."""

    def __init__(self, path: str) -> None:
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as loaded:
                self.item_factors, self.user_factors = (loaded[name] for name in FACTORS)
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: not a readable file of factors ({error}); save the model "
                             "again") from error


def _has_factors(path: str) -> bool:
    """Whether a file is a .npz with factors; False also where there is none."""
    if not path.endswith(".npz"):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return {f"{name}.npy" for name in FACTORS} <= set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def serve_bench(args: argparse.Namespace) -> dict[str, float]:
    """Time a converted network, with and without computing every neuron; return the figures."""
    import sparselsh as sl

    kind = format_of(args.model)
    if is_onnx_network(args.model):
        return _bench_model(args)
    if kind == TEXT_FORMAT:
        if args.queries is None:
            raise ValueError("--queries: the network takes texts; give a file with one in each "
                             "line")
        model = sl.TextNetwork.load(args.model, n_threads=args.threads)
        net, x = model.network, check.matrix(model.transform(read_texts(args.queries)))
    elif kind in (ESTIMATOR_FORMAT, FACTOR_FORMAT):
        loaded = (sl.EstimatorNetwork if kind == ESTIMATOR_FORMAT else sl.FactorNetwork).load(
            args.model, n_threads=args.threads)
        users = getattr(loaded, "user_factors", None)
        net = loaded.network
        x = _queries(net, args.queries) if args.queries or users is None else users[:N_USERS]
    else:
        net = sl.InferenceNetwork.load(args.model, mmap=args.mmap, n_threads=args.threads)
        x = _queries(net, args.queries)

    k = min(args.k, net.n_labels)
    ids, truth = (net.topk(x, k, exact=exact)[0] for exact in (False, True))
    found = np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(ids, truth, strict=True)])
    report = {"k": k, "n_queries": x.shape[0],
              "agreement": float((ids[:, 0] == truth[:, 0]).mean()), "recall": float(found)}
    for n in args.batch:
        for name, exact in (("dense", True), ("planned", False)):
            report[f"{name}_microseconds_{n}"] = _microseconds(net, x, n, k, exact)

    print(f"{x.shape[0]:,} queries; same best output {report['agreement']:.2%}, "
          f"recall@{k} {found:.2%}")
    for n in args.batch:
        dense, planned = report[f"dense_microseconds_{n}"], report[f"planned_microseconds_{n}"]
        print(f"{n:>5} per call: {planned:10.1f} us per query, {dense:10.1f} with every neuron: "
              f"{dense / planned:.1f}x")
    return report


def _bench_model(args: argparse.Namespace) -> dict[str, float]:
    """Time a model with a trunk, whose inputs are those of whole calls."""
    import sparselsh as sl

    if args.queries is None:
        raise ValueError("--queries: the network is a model with a trunk; give a file of its "
                         "inputs")
    net = sl.OnnxNetwork.load(args.model, n_threads=args.threads)
    inputs = read_model_inputs(args.queries)
    calls = inputs if isinstance(inputs, list) else [inputs]
    k = min(args.k, net.n_labels)
    found, truth = ([net.topk(x, k, exact=exact)[0].reshape(-1, k) for x in calls]
                    for exact in (False, True))
    ids, best = np.concatenate(found), np.concatenate(truth)
    recall = np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(ids, best, strict=True)])
    report = {"k": k, "n_calls": len(calls), "n_queries": len(ids),
              "agreement": float((ids[:, 0] == best[:, 0]).mean()), "recall": float(recall)}
    for name, exact in (("dense", True), ("planned", False)):
        times = seconds_of_rounds(partial(net.topk, k=k, exact=exact), calls, 1,
                                  MAX_TIMING_SECONDS)
        report[f"{name}_microseconds"] = float(np.median(times)) * 1e6

    print(f"{len(calls):,} calls, {len(ids):,} rows; same best output {report['agreement']:.2%}, "
          f"recall@{k} {recall:.2%}")
    dense, planned = report["dense_microseconds"], report["planned_microseconds"]
    print(f"whole network: {planned:10.1f} us per call, {dense:10.1f} with every output: "
          f"{dense / planned:.2f}x")
    return report


def _queries(net: InferenceNetwork, path: str | None) -> np.ndarray | CSR:
    """Checked inputs of a file or, without one, random inputs."""
    if path is not None:
        X = read_inputs(path)
    elif net.layers[0].kind == "linear":
        X = np.maximum(np.random.default_rng(0).standard_normal(
            (N_RANDOM_QUERIES, net.n_features), dtype=np.float32), 0)
        print("sparselsh: note: random inputs; times and recall differ for real ones: "
              "give --queries", file=sys.stderr)
    else:
        raise ValueError("--queries: the network takes ids; give a file of them")

    if net.layers[0].kind == "linear":
        x = check.matrix(X, n_columns=net.n_features)
    else:
        x = X.tocsr() if hasattr(X, "tocsr") else np.asarray(X)
    if x.shape[0] == 0:
        raise ValueError(f"--queries: {path!r} has no rows; give some")
    return x


def _microseconds(net: InferenceNetwork, x: np.ndarray | CSR, n: int, k: int, exact: bool) -> float:
    """Median over several rounds of the microseconds per query, in batches of n."""
    n_calls = max(1, min(N_SINGLE_QUERIES if n == 1 else MAX_BATCH_CALLS, x.shape[0] // n))
    parts = [_rows(x, np.arange(i * n, (i + 1) * n) % x.shape[0]) for i in range(n_calls)]
    times = seconds_of_rounds(lambda part: net.topk(part, k, exact=exact), parts, n,
                              MAX_TIMING_SECONDS)
    return float(np.median(times)) * 1e6


def _rows(x: np.ndarray | CSR, rows: np.ndarray) -> np.ndarray | CSR:
    return x.take(rows.astype(np.int64)) if isinstance(x, CSR) else x[rows]


def read_inputs(path: str) -> Any:
    """Read input rows from an .npz or .npy file, or from XMC text or a CSR file.

    An .npz file holds a matrix that scipy.sparse.save_npz wrote, an array named X, or one array.
    Labels of text and of CSR files are ignored.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, it cannot be read, or it holds several arrays and none named X.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file; check the path")
    if not _is_numpy_file(path):
        return read_rows(path, labelled=False)[0]
    try:
        with open(path, "rb") as file:  # numpy.load would leave a damaged file open
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            names = loaded.files
            if "indptr" in names:
                from scipy.sparse import load_npz

                return load_npz(path)
            if len(names) != 1 and "X" not in names:
                raise ValueError(f"it holds {', '.join(names) or 'nothing'}; name the array of "
                                 "inputs X")
            return loaded["X" if "X" in names else names[0]]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a readable .npz file of inputs ({error}); save it with "
                         "numpy.savez(path, X=X)") from error


def read_texts(path: str) -> list[str]:
    """The lines of a file of texts that are not empty."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file; check the path")
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text ({error.reason})") from error
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise ValueError(f"{path}: has no text; write one in each line")
    return texts


def read_model_inputs(path: str) -> Any:
    """Read the inputs of an ONNX model: as `read_inputs`, or a dict or a list of arrays.

    An .npz file with several arrays holds one call: the arrays have the names of the model's
    inputs. Where they are numbered (x0, x1 or arr_0, arr_1), each is the input of a call.
    """
    if Path(path).is_file() and path.endswith(".npz"):
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as loaded:
                names = sorted(loaded.files, key=natural)
                if len(names) > 1 and "indptr" not in names:
                    arrays = {name: loaded[name] for name in names}
                    stems = {name.rstrip("0123456789") for name in names}
                    return list(arrays.values()) if len(stems) == 1 else arrays
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: not a readable .npz file of inputs ({error}); save it with "
                             "numpy.savez") from error
    return read_inputs(path)


def _is_numpy_file(path: str) -> bool:
    if path.endswith((".npz", ".npy")):
        return True
    with open(path, "rb") as file:
        return file.read(6).startswith((b"\x93NUMPY", b"PK"))
