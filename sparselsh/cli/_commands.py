"""The command ``sparselsh``: training, prediction and evaluation with XMC files, and a demo.

An error of the user ends in one line on stderr, which names the file and the remedy, and exit code
2. Output files appear whole or not at all: they are written to a temporary file and then renamed.
Paths that cannot be written and missing packages are detected before the training.

NumPy and the compiled core are imported inside the commands, so that ``sparselsh --help`` starts
fast.
"""
from __future__ import annotations

import os
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from ._arguments import EPOCHS_FROM_RANDOM, SCHEDULE, parser
from ._files import (
    UserError,
    check_outputs,
    load_network,
    read_matching,
    read_or_open,
    unwritable,
    write_json,
    writing,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from .._arrays.types import Floats, Ids
    from ..callbacks import Callback
    from ..network import Network

ROWS_PER_WRITE = 4096  # predictions that are formatted at a time
SHARED_IDS: dict[str, Any] = {"auto": "auto", "yes": True, "no": False}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 2 for an error, 130 for Ctrl-C."""
    args = parser().parse_args(argv)

    try:
        COMMANDS[args.command](args)
        sys.stdout.flush()  # reports a closed pipe here and not at interpreter exit
    except KeyboardInterrupt as interrupt:
        print("; ".join(["sparselsh: interrupted", *filter(None, map(str, interrupt.args))]),
              file=sys.stderr)
        return 130
    except BrokenPipeError:
        _drop_stdout()  # `sparselsh predict ... | head`
        return 141
    except (UserError, ValueError, ArithmeticError, ImportError, OSError, MemoryError) as error:
        print(f"sparselsh: error: {_one_line(error)}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:
            _drop_stdout()  # `sparselsh predict ... > FILE` on a full disk
        return 2
    return 0


def _drop_stdout() -> None:
    """Discard what remains in the buffer: writing it has failed, and would fail again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# --- commands -------------------------------------------------------------------------------------


def train(args: argparse.Namespace) -> None:
    """Train a network on a file, measure it on another, save it."""
    if args.resume and getattr(args, "given", []):
        raise UserError(f"{args.given[0]}: a resumed training keeps the options it was started "
                        "with; leave it out")
    checkpoint = args.checkpoint or args.resume
    _check_train_outputs(args, checkpoint)
    from . import _measure

    say = _silent if args.quiet else print
    resumed = _resumed(args) if args.resume else None
    X, Y, n_labels = read_or_open(args.train, resumed, of=args.resume)
    say(_describe("train", X, Y))
    if args.test:
        X_test, Y_test = read_matching(args.test, X.shape[1], n_labels, of=args.train)
        say(_describe("test", X_test, Y_test))

    net = resumed or _new_network(args, X.shape[1], n_labels)
    weight, held_out = _split(args, X, Y, n_labels)
    options = {"callbacks": _checkpoints(checkpoint), "verbose": not args.quiet,
               "sample_weight": weight}
    try:
        if resumed:
            is_done = net.training_progress.is_done
            say(f"{len(net.history)} epochs are done"
                + (": the training is complete" if is_done else ""))
            wall, cpu = _measure.seconds(net.resume, X, Y, **options)
        else:
            wall, cpu = _measure.seconds(partial(_fit, net, args), X, Y, **options)
    except KeyboardInterrupt:
        remedy = f"continue with --resume {checkpoint}" if checkpoint else ""
        raise KeyboardInterrupt(remedy) from None

    refining = _measure.seconds(partial(_finish, net, args, held_out), X, Y, sample_weight=weight)
    report: dict[str, Any] = {"train_seconds": wall + refining[0],
                              "train_cpu_seconds": cpu + refining[1],
                              "refined": net.refinement is not None,
                              "computed_share": float(net.computed_share)}
    if args.model:  # before the test, in case that fails
        try:
            net.save(os.path.realpath(args.model))  # does not replace a symbolic link
        except OSError as error:
            raise unwritable(args.model, error) from error

    if args.test:
        report |= _measure.quality(net, X_test, Y_test)[0]
    report["peak_rss_bytes"] = _measure.peak_rss()
    say(_summary(report))
    write_json(args.json, report)


def _check_train_outputs(args: argparse.Namespace, checkpoint: str | None) -> None:
    """Refuse, before any work, outputs that cannot be written."""
    overwrites = (checkpoint and args.resume
                  and os.path.realpath(checkpoint) == os.path.realpath(args.resume))
    check_outputs([args.model, args.json, None if overwrites else checkpoint],
                  inputs=[args.train, args.test, args.resume])
    for path in filter(None, (args.model, checkpoint)):
        if os.path.exists(path) and not os.path.isfile(path):
            raise UserError(f"{path!r}: is a device or a pipe; give the name of a file")


def _new_network(args: argparse.Namespace, n_features: int, n_labels: int) -> Network:
    import sparselsh as sl

    activation = None if args.activation == "none" else args.activation
    return sl.Network(
        [sl.Linear(n_features, args.hidden, activation=activation, dropout=args.dropout or 0),
         sl.LSHLinear(args.hidden, n_labels, density=args.density)],
        loss=args.loss, random_state=args.seed, n_threads=args.threads,
    )


def _fit(net: Network, args: argparse.Namespace, X: Any, Y: Any, *, sample_weight: Any,
         **options: Any) -> None:
    """Train a new network, by the recipe for many labels where it applies."""
    from .. import _recipe
    from ..optim import Adam

    from_labels = args.init == "labels" or (args.init == "auto" and _recipe.suits(net, X))
    epochs, lr = args.epochs, args.lr
    if from_labels:
        epochs = epochs or _recipe.EPOCHS_FROM_DATA
        n_steps = _recipe.steps(X.shape[0], args.batch_size, epochs)
        lr = lr or _recipe.rate(n_steps)
        _recipe.begin(net, X, Y, n_steps, dropout=args.dropout,
                      shared_ids=SHARED_IDS[args.shared_ids], sample_weight=sample_weight)
    optimizer = None if lr is None else Adam(
        lr, schedule=SCHEDULE, second_moment="row" if from_labels else "element")
    net.fit(X, Y, sample_weight=sample_weight, optimizer=optimizer,
            epochs=epochs or EPOCHS_FROM_RANDOM, batch_size=args.batch_size, window=args.window,
            **options)


def _split(args: argparse.Namespace, X: Any, Y: Any, n_labels: int) -> tuple[Any, Any]:
    """Leave out rows for the calibration; the same ones where a training is resumed."""
    from .. import _recipe

    if args.hold_out is not None and args.hold_out > X.shape[0] // 2:
        raise UserError(f"--hold-out {args.hold_out}: {args.train!r} has {X.shape[0]} rows; give "
                        "at most half of them")
    return _recipe.split(X, Y, n_labels, args.hold_out)


def _finish(net: Network, args: argparse.Namespace, held_out: Any, X: Any, Y: Any,
            sample_weight: Any) -> None:
    """Refine a trained network, and calibrate its probabilities."""
    from .. import _recipe

    options = {"sample_weight": sample_weight, "verbose": not args.quiet}
    if args.refine == "yes":
        net.refine(X, Y, **options)
    elif args.refine == "auto" and net.refinement is None and _recipe.suits(net, X):
        _recipe.refine(net, X, Y, held_out, **options)
    if held_out is not None:
        net.calibrate(*held_out)


def _resumed(args: argparse.Namespace) -> Network:
    """The network of a checkpoint, whose training can be continued."""
    net = load_network(args.resume, args.threads)
    if net.training_progress is None:
        raise UserError(f"{args.resume!r}: holds a network, but no training to continue; give a "
                        "file that `sparselsh train --checkpoint` has written")
    return net


def _checkpoints(path: str | None) -> list[Callback]:
    from ..callbacks import Checkpoint

    return [] if path is None else [Checkpoint(path)]


def convert(args: argparse.Namespace) -> None:
    """Convert an XMC text file to a CSR file, or weights to a network for inference."""
    from ._serving import convert_weights, is_weights

    if is_weights(args.input, args.layer, args.csr is not None):
        if args.output is None:
            raise UserError("convert: weights need a place to write to; give -o OUT.safetensors")
        if args.csr is not None:
            raise UserError(f"{args.csr!r}: is only for text; give -o OUT.safetensors")
        check_outputs([args.output], inputs=[args.input, args.calibration])
        convert_weights(args)
        return

    if args.csr is None or args.output is not None or args.calibration is not None:
        raise UserError("convert: text needs OUT.csr and no more; weights of other programs need "
                        "--layer NAME, and all weights -o OUT.safetensors")
    check_outputs([args.csr], inputs=[args.input])
    from .. import datasets

    if os.path.exists(args.csr) and not os.path.isfile(args.csr):
        raise UserError(f"{args.csr!r}: is a device or a pipe; give the name of a file")
    datasets.convert_xmc(args.input, args.csr)
    with datasets.open_csr(args.csr) as file:
        print(_describe("wrote", file, None))


def serve_bench(args: argparse.Namespace) -> None:
    """Time the inference of a converted network."""
    check_outputs([args.json], inputs=[args.model, args.queries])
    from ._serving import serve_bench

    write_json(args.json, serve_bench(args))


def predict(args: argparse.Namespace) -> None:
    """Write the best labels of every row of a file."""
    check_outputs([args.output], inputs=[args.model, args.test])
    net = load_network(args.model, args.threads)
    if args.k > net.n_labels:
        raise UserError(f"-k {args.k}: {args.model!r} has {net.n_labels} labels; give at most that "
                        "many")

    if (args.probabilities or args.threshold is not None) and net.calibration is None:
        raise UserError(f"{args.model!r}: holds no calibration, without which there are no "
                        "probabilities; train it with --hold-out")

    X, _ = read_matching(args.test, net.n_features, None, of=args.model, labelled=False)
    if args.threshold is None:
        ids, scores = net.topk(X, k=args.k, exact=args.exact, probabilities=args.probabilities)
    else:
        ids, scores = _labels_above(net, X, args)
    lines = _lines(ids, scores if args.scores else None)
    if args.output is None:
        sys.stdout.writelines(lines)
    else:
        with writing(args.output) as file:
            file.writelines(lines)


def _labels_above(net: Network, X: Any, args: argparse.Namespace) -> tuple[Ids, Floats]:
    """The labels that reach the threshold, as a table, best first, -1 for none."""
    import numpy as np

    threshold = None if args.threshold == "auto" else args.threshold
    labels = net.predict_labels(X, threshold, exact=args.exact)
    counts = np.diff(labels.indptr)
    ids = np.full((X.shape[0], counts.max(initial=1)), -1, np.int32)
    p = np.zeros(ids.shape, np.float32)
    places = np.arange(ids.shape[1]) < counts[:, None]
    ids[places], p[places] = labels.indices, labels.data
    order = np.argsort(-p, axis=1, kind="stable")
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(p, order, axis=1)


def evaluate(args: argparse.Namespace) -> None:
    """Measure a saved network on a file."""
    check_outputs([args.json], inputs=[args.model, args.test, args.train])
    net = load_network(args.model, args.threads)
    X, Y = read_matching(args.test, net.n_features, net.n_labels, of=args.model)
    from .. import metrics
    from . import _measure

    propensities = None
    if args.train:
        Y_train = read_matching(args.train, net.n_features, net.n_labels, of=args.model)[1]
        if Y_train.shape[0] < 3:
            raise UserError(f"{args.train!r}: {Y_train.shape[0]} rows; propensities need 3 or more")
        propensities = metrics.propensities(Y_train)

    report, ids = _measure.quality(net, X, Y, args.exact)
    report |= _measure.ranking(Y, ids, propensities)
    report |= _measure.probabilities(net, X, Y, args.exact)
    report["peak_rss_bytes"] = _measure.peak_rss()
    print(_describe("test", X, Y))
    print(_summary(report))
    write_json(args.json, report)


def demo(args: argparse.Namespace) -> None:
    """Train on the source text of Python's own standard library."""
    check_outputs([args.json], inputs=[])
    from ._demo import run_demo

    report = run_demo(rows=args.rows, epochs=args.epochs, dense=args.dense, seed=args.seed,
                      n_threads=args.threads, verbose=not args.quiet,
                      say=_silent if args.quiet else print)
    write_json(args.json, report)


COMMANDS = {"train": train, "convert": convert, "serve-bench": serve_bench, "predict": predict,
            "evaluate": evaluate, "demo": demo}


# --- text -----------------------------------------------------------------------------------------


def _lines(ids: Ids, scores: Floats | None) -> Iterator[str]:
    """Yield the text of the predictions, ROWS_PER_WRITE rows at a time; ids of -1 are left out."""
    for start in range(0, len(ids), ROWS_PER_WRITE):
        rows = ids[start:start + ROWS_PER_WRITE].tolist()
        if scores is None:
            words = [[str(j) for j in row if j >= 0] for row in rows]
        else:
            values = scores[start:start + ROWS_PER_WRITE].tolist()
            words = [[f"{j}:{s:.6g}" for j, s in zip(row, value, strict=True) if j >= 0]
                     for row, value in zip(rows, values, strict=True)]
        yield "".join(" ".join(row) + "\n" for row in words)


def _describe(name: str, X: Any, Y: Any) -> str:
    """Describe two matrices or, where Y is None, a CSR file in one line."""
    n = max(X.shape[0], 1)
    n_labels, label_nnz = (X.n_labels, X.label_nnz) if Y is None else (Y.shape[1], Y.nnz)
    return (f"{name:<6}{X.shape[0]:,} rows, {X.shape[1]:,} features ({X.nnz / n:.1f} per row), "
            f"{n_labels:,} labels ({label_nnz / n:.1f} per row)")


def _summary(report: dict[str, Any]) -> str:
    """Format a report as lines of text; keys that are missing or None are left out."""
    lines = []
    for name, key in (("P", "p_at_"), ("nDCG", "ndcg_at_"), ("PSP", "psp_at_")):
        if f"{key}1" in report:
            lines.append("   ".join(f"{name}@{k} {report[f'{key}{k}']:6.2%}" for k in (1, 3, 5)))
    if "micro_f1" in report:
        lines.append(f"micro-F1 {report['micro_f1']:6.2%}   calibration error "
                     f"{report['calibration_error']:.3f}")
    if "train_seconds" in report:
        lines.append(f"training {report['train_seconds']:.1f} s, "
                     f"{report['train_cpu_seconds']:.1f} CPU s")
    if report.get("peak_rss_bytes"):
        lines.append(f"peak memory {report['peak_rss_bytes'] / 2**20:,.0f} MiB")
    if "microseconds_per_query" in report:
        lines.append(f"query {report['microseconds_per_query']:.1f} microseconds")
    lines.append(f"output neurons computed {report['computed_share']:.2%}")
    return "\n".join(lines)


def _one_line(error: BaseException) -> str:
    """Format an error without line breaks; that of an OSError names the file."""
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"{error.filename!r}: no such file; check the path"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename!r}: {error.strerror}; check the path and its permissions"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MemoryError):
        return (f"not enough memory ({error}); try a smaller --hidden or --batch-size, or fewer "
                "rows")
    return " ".join(str(error).split())


def _silent(*_: object) -> None:
    pass
