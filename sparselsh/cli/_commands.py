"""The command ``sparselsh``: train, predict and evaluate on XMC text files or converted ones, and a demo.

Whatever a person can get wrong ends in one line on stderr that names the file and the remedy, and exit
code 2. Outputs appear whole or not at all: they are written beside their place and moved there. Places that
cannot be written and packages that are missing are found before the training, not after it.

NumPy and the compiled core are imported inside the commands: ``sparselsh --help`` answers at once.
"""
from __future__ import annotations

import json
import os
import sys
import tempfile
from contextlib import contextmanager
from functools import partial
from typing import IO, TYPE_CHECKING, Any

from ._arguments import EPOCHS, SCHEDULE, parser

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator, Sequence

    from scipy.sparse import csr_array

    from .._arrays.types import Floats, Ids
    from ..callbacks import Callback
    from ..network import Network

ROWS_A_WRITE = 4096
SHARED_IDS: dict[str, Any] = {"auto": "auto", "yes": True, "no": False}


class UserError(Exception):
    """Something the user can put right; the message is one line that says how."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 2 for an error, 130 for Ctrl-C."""
    args = parser().parse_args(argv)
    try:
        COMMANDS[args.command](args)
        sys.stdout.flush()  # a reader that has gone shows here and not when the interpreter ends
    except KeyboardInterrupt as interrupt:
        print("; ".join(["sparselsh: interrupted", *filter(None, map(str, interrupt.args))]), file=sys.stderr)
        return 130
    except BrokenPipeError:
        _drop_stdout()  # `sparselsh predict ... | head`
        return 141
    except (UserError, ValueError, ImportError, OSError, MemoryError) as error:
        print(f"sparselsh: error: {_one_line(error)}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:
            _drop_stdout()  # `sparselsh predict ... > FILE` on a full disk
        return 2
    return 0


def _drop_stdout() -> None:
    """Send what remains in the buffer nowhere: it could not be written, and would fail again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# --- the commands -----------------------------------------------------------------------------------------


def train(args: argparse.Namespace) -> None:
    """Train a network on a file, measure it on another, save it."""
    if args.resume and getattr(args, "given", []):
        raise UserError(f"{args.given[0]}: a training that is resumed keeps what it began with; leave it out")
    checkpoint = args.checkpoint or args.resume
    goes_on = checkpoint and args.resume and os.path.realpath(checkpoint) == os.path.realpath(args.resume)
    _check_outputs([args.model, args.json, None if goes_on else checkpoint],
                   inputs=[args.train, args.test, args.resume])
    from .. import _files
    from . import _measure

    for path in filter(None, (args.model, checkpoint)):
        _files.require_safetensors()
        if os.path.exists(path) and not os.path.isfile(path):
            raise UserError(f"{path!r}: is a device or a pipe; give the name of a file")

    say = _silent if args.quiet else print
    resumed = _resumed(args) if args.resume else None
    X, Y, n_labels = _read_or_open(args.train, resumed, of=args.resume)
    say(_describe("train", X, Y))
    if args.test:
        X_test, Y_test = _read_matching(args.test, X.shape[1], n_labels, of=args.train)
        say(_describe("test", X_test, Y_test))

    net = resumed or _new_network(args, X.shape[1], n_labels)
    options = {"callbacks": _checkpoints(checkpoint), "verbose": not args.quiet}
    try:
        if resumed:
            say(f"{len(net.history)} epochs are done" + (": the training is complete" if net.training_progress.is_done else ""))
            wall, cpu = _measure.seconds(net.resume, X, Y, **options)
        else:
            wall, cpu = _measure.seconds(partial(_fit, net, args), X, Y, **options)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"go on with --resume {checkpoint}" if checkpoint else "") from None
    more = _measure.seconds(partial(_refine, net, args), X, Y)
    report: dict[str, Any] = {"train_seconds": wall + more[0], "train_cpu_seconds": cpu + more[1],
                              "refined": net.refinement is not None, "computed_share": float(net.computed_share)}
    if args.model:  # before the test: a trained network is worth more than its score
        try:
            net.save(os.path.realpath(args.model))  # a symbolic link stays one
        except OSError as error:
            raise _unwritable(args.model, error) from error
    if args.test:
        report |= _measure.quality(net, X_test, Y_test)[0]
    report["peak_rss_bytes"] = _measure.peak_rss()
    say(_summary(report))
    _write_json(args.json, report)


def _new_network(args: argparse.Namespace, n_features: int, n_labels: int) -> Network:
    import sparselsh as sl

    activation = None if args.activation == "none" else args.activation
    return sl.Network(
        [sl.Linear(n_features, args.hidden, activation=activation, dropout=args.dropout or 0),
         sl.LSHLinear(args.hidden, n_labels, density=args.density)],
        loss=args.loss, random_state=args.seed, n_threads=args.threads,
    )


def _fit(net: Network, args: argparse.Namespace, X: Any, Y: Any, **options: Any) -> None:
    """Train a new network, by the recipe for many labels where that suits."""
    from .. import _recipe
    from ..optim import Adam

    from_labels = args.init == "labels" or (args.init == "auto" and _recipe.suits(net, X))
    epochs, lr = args.epochs, args.lr
    if from_labels:
        epochs = epochs or _recipe.EPOCHS
        n_steps = _recipe.steps(X.shape[0], args.batch_size, epochs)
        lr = lr or _recipe.rate(n_steps)
        _recipe.begin(net, X, Y, n_steps, dropout=args.dropout, shared_ids=SHARED_IDS[args.shared_ids])
    optimizer = None if lr is None else Adam(lr, schedule=SCHEDULE, second_moment="row" if from_labels else "element")
    net.fit(X, Y, optimizer=optimizer, epochs=epochs or EPOCHS, batch_size=args.batch_size, window=args.window,
            **options)


def _refine(net: Network, args: argparse.Namespace, X: Any, Y: Any) -> None:
    from .. import _recipe

    if args.refine == "yes":
        net.refine(X, Y, verbose=not args.quiet)
    elif args.refine == "auto" and net.refinement is None and _recipe.suits(net, X):
        _recipe.refine(net, X, Y, verbose=not args.quiet)


def _resumed(args: argparse.Namespace) -> Network:
    """The network of a checkpoint, whose training can be gone on with."""
    net = _load(args.resume, args.threads)
    if net.training_progress is None:
        raise UserError(f"{args.resume!r}: holds a network, but no training to go on with; give a file that "
                        "`sparselsh train --checkpoint` has written")
    return net


def _checkpoints(path: str | None) -> list[Callback]:
    from ..callbacks import Checkpoint

    return [] if path is None else [Checkpoint(path)]


def convert(args: argparse.Namespace) -> None:
    """Make a CSR file of an XMC text file, or a network to serve of weights."""
    from ._serving import convert_weights, is_weights

    if is_weights(args.input, args.layer):
        if args.output is None:
            raise UserError("convert: weights need a place to write to; give -o OUT.safetensors")
        if args.csr is not None:
            raise UserError(f"{args.csr!r}: is only for text; give -o OUT.safetensors")
        _check_outputs([args.output], inputs=[args.input, args.calibration])
        convert_weights(args)
        return
    if args.csr is None or args.output is not None or args.calibration is not None:
        raise UserError("convert: text needs OUT.csr and no more; weights need --layer NAME and -o OUT.safetensors")
    _check_outputs([args.csr], inputs=[args.input])
    from .. import datasets

    if os.path.exists(args.csr) and not os.path.isfile(args.csr):
        raise UserError(f"{args.csr!r}: is a device or a pipe; give the name of a file")
    datasets.convert_xmc(args.input, args.csr)
    with datasets.open_csr(args.csr) as file:
        print(_describe("wrote", file, None))


def serve_bench(args: argparse.Namespace) -> None:
    """Time a converted network."""
    _check_outputs([args.json], inputs=[args.model, args.queries])
    from ._serving import serve_bench

    _write_json(args.json, serve_bench(args))


def predict(args: argparse.Namespace) -> None:
    """Write the best labels of every row of a file."""
    _check_outputs([args.output], inputs=[args.model, args.test])
    net = _load(args.model, args.threads)
    if args.k > net.n_labels:
        raise UserError(f"-k {args.k}: {args.model!r} has {net.n_labels} labels; ask for no more than that")
    X, _ = _read_matching(args.test, net.n_features, None, of=args.model, labelled=False)
    ids, scores = net.topk(X, k=args.k, exact=args.exact)
    lines = _lines(ids, scores if args.scores else None)
    if args.output is None:
        sys.stdout.writelines(lines)
    else:
        with _writing(args.output) as file:
            file.writelines(lines)


def evaluate(args: argparse.Namespace) -> None:
    """Measure a saved network on a file."""
    _check_outputs([args.json], inputs=[args.model, args.test, args.train])
    net = _load(args.model, args.threads)
    X, Y = _read_matching(args.test, net.n_features, net.n_labels, of=args.model)
    from .. import metrics
    from . import _measure

    propensities = None
    if args.train:
        Y_train = _read_matching(args.train, net.n_features, net.n_labels, of=args.model)[1]
        if Y_train.shape[0] < 3:
            raise UserError(f"{args.train!r}: {Y_train.shape[0]} rows; propensities need 3 or more")
        propensities = metrics.propensities(Y_train)
    report, ids = _measure.quality(net, X, Y, args.exact)
    report |= _measure.ranking(Y, ids, propensities)
    report["peak_rss_bytes"] = _measure.peak_rss()
    print(_describe("test", X, Y))
    print(_summary(report))
    _write_json(args.json, report)


def demo(args: argparse.Namespace) -> None:
    """Train on the source text of Python's own standard library."""
    _check_outputs([args.json], inputs=[])
    from ._demo import run_demo

    report = run_demo(rows=args.rows, epochs=args.epochs, dense=args.dense, seed=args.seed,
                      n_threads=args.threads, verbose=not args.quiet, say=_silent if args.quiet else print)
    _write_json(args.json, report)


COMMANDS = {"train": train, "convert": convert, "serve-bench": serve_bench, "predict": predict, "evaluate": evaluate,
            "demo": demo}


# --- files ------------------------------------------------------------------------------------------------


def _read(path: str, labelled: bool = True) -> tuple[csr_array, csr_array]:
    """Read a file that must have rows and, where they are to be learnt or compared, labels."""
    from .. import datasets
    from ..datasets import _csr_file

    if _csr_file.is_csr_file(path):
        with datasets.open_csr(path) as file:
            X, Y = file[:]
    else:
        X, Y = datasets.read_xmc(path)
    _check_some(path, X.shape, Y.nnz if labelled else 1)
    return X, Y


def _read_or_open(path: str, net: Network | None = None, of: str = "") -> tuple[Any, csr_array | None, int]:
    """X, Y and the number of labels of a file; of a CSR file, the file itself, None and the number.

    With a network, of the file `of`, the numbers of features and labels are to be those of the network.
    """
    from ..datasets import _csr_file

    if not _csr_file.is_csr_file(path):
        X, Y = _read(path) if net is None else _read_matching(path, net.n_features, net.n_labels, of)
        return X, Y, Y.shape[1]
    file = _csr_file.open_csr(path)
    _check_some(path, file.shape, file.label_nnz)
    return file, None, file.n_labels


def _check_some(path: str, shape: tuple[int, ...], n_labels: int) -> None:
    if 0 in shape:
        raise UserError(f"{path!r}, line 1: {shape[0]} rows of {shape[1]} features; give some")
    if n_labels == 0:
        raise UserError(f"{path!r}: no row has a label; give a file with labels at the start of its lines")


def _read_matching(path: str, n_features: int, n_labels: int | None, of: str,
                   labelled: bool = True) -> tuple[csr_array, csr_array]:
    """Read a file whose features and labels must be numbered as those of the file or model `of`.

    `n_labels` is None where labels do not matter.
    """
    from .. import datasets

    X, Y = _read(path, labelled)
    if X.shape[1] == n_features and n_labels in (None, Y.shape[1]):
        return X, Y
    try:
        # svmlight text does not say its counts: ids below ours will do. XMC text, which does, fails here.
        return datasets.read_xmc(path, n_features=n_features, n_labels=n_labels, format="svmlight")
    except datasets.FileFormatError as error:
        if error.line != 1:
            raise
    what, found, expected = ("features", X.shape[1], n_features)
    if found == expected:
        what, found, expected = ("labels", Y.shape[1], n_labels)
    raise UserError(f"{path!r}, line 1: {found} {what}, but {of!r} has {expected}; "
                    f"write both files with the same numbering of {what}")


def _load(path: str, n_threads: int | None) -> Network:
    import sparselsh as sl

    if os.path.isdir(path):
        raise UserError(f"{path!r}: is a folder; give the file that `sparselsh train --model` has written")
    return sl.load(path, n_threads=n_threads)


def _check_outputs(paths: Iterable[str | None], inputs: Iterable[str | None]) -> None:
    """Refuse, before any work, an output that cannot be written or that would replace an input."""
    taken = {os.path.realpath(path): path for path in inputs if path}
    for path in filter(None, paths):
        real = os.path.realpath(path)
        if real in taken:
            raise UserError(f"{path!r}: is also given as {taken[real]!r}; choose another name for the output")
        taken[real] = path
        if os.path.isdir(real):
            raise UserError(f"{path!r}: is a folder; give the name of a file in it")
        if not os.path.exists(real) or os.path.isfile(real):
            try:
                tempfile.TemporaryFile(dir=os.path.dirname(real)).close()
            except OSError as error:
                raise _unwritable(path, error) from error


@contextmanager
def _writing(path: str) -> Iterator[IO[str]]:
    """Open a text file that appears whole or not at all. A device or a pipe is written as it is."""
    from .._files import replacing

    place = os.path.realpath(path)  # a symbolic link stays one
    is_device = os.path.exists(place) and not os.path.isfile(place)
    try:
        with (open if is_device else replacing)(place, "w", encoding="utf-8") as file:
            yield file
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: str, error: OSError) -> UserError:
    return UserError(f"{path!r}: cannot be written ({error.strerror or error}); "
                     f"give a file in a folder that exists, is writable and has room")


def _write_json(path: str | None, report: dict[str, Any]) -> None:
    if path is None:
        return
    known = {key: value for key, value in report.items() if value is not None}
    with _writing(path) as file:
        file.write(json.dumps(known, indent=2) + "\n")


# --- text -------------------------------------------------------------------------------------------------


def _lines(ids: Ids, scores: Floats | None) -> Iterator[str]:
    """Yield the text of the predictions, some thousand rows at a time; an id of -1 stands for none."""
    for start in range(0, len(ids), ROWS_A_WRITE):
        rows = ids[start:start + ROWS_A_WRITE].tolist()
        if scores is None:
            words = [[str(j) for j in row if j >= 0] for row in rows]
        else:
            values = scores[start:start + ROWS_A_WRITE].tolist()
            words = [[f"{j}:{s:.6g}" for j, s in zip(row, value, strict=True) if j >= 0]
                     for row, value in zip(rows, values, strict=True)]
        yield "".join(" ".join(row) + "\n" for row in words)


def _describe(name: str, X: Any, Y: Any) -> str:
    """Return a line about matrices, or about a CSR file, where Y is None."""
    n = max(X.shape[0], 1)
    n_labels, label_nnz = (X.n_labels, X.label_nnz) if Y is None else (Y.shape[1], Y.nnz)
    return (f"{name:<6}{X.shape[0]:,} rows, {X.shape[1]:,} features ({X.nnz / n:.1f} a row), "
            f"{n_labels:,} labels ({label_nnz / n:.1f} a row)")


def _summary(report: dict[str, Any]) -> str:
    """Return the lines of a report for a person; keys that are missing or None leave no line."""
    lines = []
    for name, key in (("P", "p_at_"), ("nDCG", "ndcg_at_"), ("PSP", "psp_at_")):
        if f"{key}1" in report:
            lines.append("   ".join(f"{name}@{k} {report[f'{key}{k}']:6.2%}" for k in (1, 3, 5)))
    if "train_seconds" in report:
        lines.append(f"training {report['train_seconds']:.1f} s, {report['train_cpu_seconds']:.1f} CPU s")
    if report.get("peak_rss_bytes"):
        lines.append(f"peak memory {report['peak_rss_bytes'] / 2**20:,.0f} MiB")
    if "microseconds_per_query" in report:
        lines.append(f"query {report['microseconds_per_query']:.1f} microseconds")
    lines.append(f"output neurons computed {report['computed_share']:.2%}")
    return "\n".join(lines)


def _one_line(error: BaseException) -> str:
    """Return the text of an error without line breaks, with the file an OSError is about."""
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"{error.filename!r}: no such file; check the path"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename!r}: {error.strerror}; check the path and its permissions"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MemoryError):
        return f"not enough memory ({error}); try a smaller --hidden or --batch-size, or fewer rows"
    return " ".join(str(error).split())


def _silent(*_: object) -> None:
    pass
