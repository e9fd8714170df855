"""`sparselsh predict` and `evaluate`: rows in, labels out, from files or line by line."""
from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from ._files import UserError, check_outputs, read_matching, write_json, writing
from ._models import load_model
from ._records import check_no_columns, kind_of
from ._report import describe, summary
from ._stream import lines_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from .._arrays.types import Floats, Ids

ROWS_PER_WRITE = 4096  # predictions that are formatted at a time


def predict(args: argparse.Namespace) -> None:
    """Write the best labels of every row of a file."""
    check_outputs([args.output], inputs=[args.model, None if args.test == "-" else args.test])
    net = load_model(args.model, args.threads)
    if hasattr(net, "tags_"):
        from ._texts import predictions

        write(predictions(args, net), args.output)
        return
    _check_rows(args, net)
    if args.k > net.n_labels:
        raise UserError(f"-k {args.k}: {args.model!r} has {net.n_labels} labels; give at most that "
                        "many")

    wants_probabilities = args.probabilities or args.threshold is not None
    if wants_probabilities and getattr(net, "calibration", None) is None:
        raise UserError(f"{args.model!r}: holds no calibration, without which there are no "
                        "probabilities; train it with --hold-out")

    if args.test == "-":
        answers = _streamed(net, args)
    else:
        X, _ = read_matching(args.test, net.n_features, None, of=args.model, labelled=False,
                             ids=args.first_feature)
        answers = _answers(net, X, args)
    write(answers, args.output)


def _check_rows(args: argparse.Namespace, net: Any) -> None:
    """Refuse what is for texts."""
    check_no_columns(args, args.model)
    if getattr(args, "output_format", "auto") == "jsonl":
        raise UserError(f"--output-format jsonl: is for texts, but {args.model!r} answers rows of "
                        "features; leave it out")
    if args.test != "-" and kind_of(args.test, args.format) != "xmc":
        raise UserError(f"{args.test!r}: holds texts, but {args.model!r} answers rows of features; "
                        "train it on texts")


def write(parts: Iterator[str], path: str | None) -> None:
    """Write parts of the answer to a file or, each at once, to stdout."""
    if path is None:
        if sys.stdout is not sys.__stdout__ and sys.__stdout__ is None:
            raise UserError("standard output is closed; give --output")
        for part in parts:
            sys.stdout.write(part)
            sys.stdout.flush()
        return
    with writing(path) as file:
        file.writelines(parts)


def _streamed(net: Any, args: argparse.Namespace) -> Iterator[str]:
    """The answers to rows on stdin, as they come."""
    from ..datasets import begins_with_header, parse_rows

    for line, text in lines_of(sys.stdin.buffer):
        if line == 1 and begins_with_header(text):
            text = text.partition(b"\n")[2]
            if not text:
                continue
            line = 2
        shift = args.first_feature == 1
        X = parse_rows(text, "<stdin>", line, net.n_features + shift)
        if shift:
            if X.indices.min(initial=1) == 0:
                raise UserError(f"'<stdin>', line {line} or below: feature 0, with --one-based")
            X = X[:, 1:]
        yield from _answers(net, X, args)


def _answers(net: Any, X: Any, args: argparse.Namespace) -> Iterator[str]:
    if args.threshold is not None:
        ids, scores = _labels_above(net, X, args)
    else:
        options = {"probabilities": True} if args.probabilities else {}
        ids, scores = net.topk(X, k=args.k, exact=args.exact, **options)
    return _lines(ids, scores if args.scores else None)


def _labels_above(net: Any, X: Any, args: argparse.Namespace) -> tuple[Ids, Floats]:
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
    net = load_model(args.model, args.threads)
    if hasattr(net, "tags_"):
        from ._texts import evaluate_texts

        evaluate_texts(args, net)
        return
    _check_rows(args, net)
    X, Y = read_matching(args.test, net.n_features, net.n_labels, of=args.model,
                         ids=args.first_feature)
    from .. import metrics
    from . import _measure

    propensities = None
    if args.train:
        Y_train = read_matching(args.train, net.n_features, net.n_labels, of=args.model,
                                ids=args.first_feature)[1]
        if Y_train.shape[0] < 3:
            raise UserError(f"{args.train!r}: {Y_train.shape[0]} rows; propensities need 3 or more")
        propensities = metrics.propensities(Y_train)

    report, ids = _measure.quality(net, X, Y, args.exact)
    report |= _measure.ranking(Y, ids, propensities)
    report |= _measure.probabilities(net, X, Y, args.exact)
    report["peak_rss_bytes"] = _measure.peak_rss()
    print(describe("test", X, Y))
    print(summary(report))
    write_json(args.json, report)


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
