"""`sparselsh train`, `predict` and `evaluate` on texts: a Tagger and its files."""
from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from ._files import UserError, write_json
from ._records import (
    Columns,
    Records,
    json_object,
    kind_of,
    opened,
    read_records,
    text_of,
    without_labels,
)
from ._report import silent, summary
from ._stream import lines_of
from ._train import (
    callbacks,
    check_early_stopping,
    check_resumed,
    check_train_outputs,
    interrupted,
    save,
    validation_fraction,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

# options of the training that a Tagger has, of those that are noted in `given`
TAGGER_OPTIONS = {"--hidden", "--batch-size", "--lr", "--dropout", "--seed", "--effort"}
TEXTS_PER_CALL = 4096
MAX_LABELS_ABOVE = 1000  # that --threshold looks at, per text


def columns_of(args: argparse.Namespace) -> Columns:
    """The columns that the options name."""
    return Columns(args.text or ["text"], getattr(args, "label", None),
                   getattr(args, "separator", None))


def train_texts(args: argparse.Namespace, kind: str) -> None:
    """Train a Tagger on a file of texts, measure it on another, save it."""
    _check_options(args)
    if args.resume:
        check_resumed(args)
    checkpoint = args.checkpoint or args.resume
    check_train_outputs(args, checkpoint)
    import sparselsh as sl

    from . import _measure

    say = silent if args.quiet else print
    records = read_records(args.train, kind, columns_of(args))
    _note_parts(args, records)
    say(_describe("train", records))
    test = None
    if args.test:
        test = read_records(args.test, kind_of(args.test, args.format), columns_of(args))
        say(_describe("test", test))

    validation = _validation(args)
    options: dict[str, Any] = {}
    if "--hidden" in getattr(args, "given", []):
        options["hidden"] = args.hidden
    if "--batch-size" in getattr(args, "given", []):
        options["batch_size"] = args.batch_size
    tagger = sl.Tagger(epochs=args.epochs, lr=args.lr, dropout=args.dropout,
                       refine=args.refine != "no", effort=args.effort, hold_out=args.hold_out,
                       random_state=args.seed, n_threads=args.threads, verbose=not args.quiet,
                       **options)
    train = tagger.fit
    if args.resume:
        train = partial(tagger.resume, args.resume, epochs=args.epochs)
    try:
        wall, cpu = _measure.seconds(train, *records, validation=validation,
                                     callbacks=callbacks(args, checkpoint))
    except KeyboardInterrupt:
        raise interrupted(checkpoint) from None
    except ValueError as error:
        if args.separator is None and "whose parts are tags" in str(error):
            raise UserError(f"{args.train!r}: {str(error).split(':')[0]}; part such labels with "
                            "--separator, or write each as a list of one name") from error
        raise
    net = tagger.network_
    report: dict[str, Any] = {"train_seconds": wall, "train_cpu_seconds": cpu,
                              "refined": net.refinement is not None,
                              "computed_share": float(net.computed_share)}
    if args.model:
        save(tagger, args.model)
    if test is not None:
        report |= measured(tagger, test)
    report["peak_rss_bytes"] = _measure.peak_rss()
    say(summary(report))
    write_json(args.json, report)


def _check_options(args: argparse.Namespace) -> None:
    """Refuse options that rows of features have and texts have not."""
    unused = [name for name in getattr(args, "given", []) if name not in TAGGER_OPTIONS]
    if args.on_nonfinite != "raise":
        unused.append("--on-nonfinite")
    if not args.shuffle:
        unused.append("--no-shuffle")
    if args.first_feature != "auto":
        unused.append("--one-based" if args.first_feature else "--zero-based")
    if unused:
        raise UserError(f"{unused[0]}: is for rows of features, but {args.train!r} holds texts; "
                        "leave it out")


def _validation(args: argparse.Namespace) -> float | Records | None:
    """The fraction of the texts to validate on, or the texts of a file and their labels."""
    if args.validation is None:
        check_early_stopping(args)
        return None
    fraction = validation_fraction(args)
    if fraction is not None:
        return fraction
    return read_records(args.validation, kind_of(args.validation, args.format), columns_of(args))


def _note_parts(args: argparse.Namespace, records: Records) -> None:
    """Say where labels look like several in one string."""
    if args.separator is not None:
        return
    names = {label for label in records.labels if isinstance(label, str)}
    for mark in (",", "|", ";"):
        if len(names) >= 2 and sum(mark in name for name in names) > len(names) / 2:
            print(f"sparselsh: note: {args.train!r}: most labels contain {mark!r}; each whole "
                  f"string is taken as one label, unless you give --separator {mark!r}",
                  file=sys.stderr)
            return


def measured(tagger: Any, records: Records) -> dict[str, Any]:
    """P@1, P@3, P@5 and micro-averaged F1, or the accuracy, and microseconds per text."""
    tagger.predict_topk(records.texts[:1], k=5)  # builds what the first query needs
    begin = time.perf_counter()
    found = tagger.predict_topk(records.texts, k=5)
    microseconds = 1e6 * (time.perf_counter() - begin) / len(found)
    true = [set([label] if isinstance(label, str) else label) for label in records.labels]
    best = [[name for name, _ in row] for row in found]
    report: dict[str, Any] = {
        f"p_at_{k}": sum(name in labels for row, labels in zip(best, true, strict=True)
                         for name in row[:k]) / (k * len(best)) for k in (1, 3, 5)}
    name = "accuracy" if tagger.one_per_text else "micro_f1"
    report[name] = float(tagger.score(records.texts, records.labels))
    report["microseconds_per_query"] = microseconds
    return report


def _describe(name: str, records: Records) -> str:
    n, labels = len(records.texts), records.labels
    names = [label for row in labels for label in ([row] if isinstance(row, str) else row)]
    return (f"{name:<6}{n:,} texts, {len(set(names)):,} labels "
            f"({len(names) / n:.1f} per text)")


def evaluate_texts(args: argparse.Namespace, tagger: Any) -> None:
    """Measure a Tagger on a file of texts."""
    from . import _measure

    if args.train or args.exact:
        raise UserError(f"{'--train' if args.train else '--exact'}: is for rows of features, but "
                        f"{args.model!r} answers texts; leave it out")
    records = read_records(args.test, _text_kind(args.test, args), columns_of(args))
    report = measured(tagger, records)
    report["peak_rss_bytes"] = _measure.peak_rss()
    print(_describe("test", records))
    print(summary(report))
    write_json(args.json, report)


def _text_kind(path: str, args: argparse.Namespace) -> str:
    kind = kind_of(path, args.format)
    if kind == "xmc":
        raise UserError(f"{path!r}: is not recognized as JSONL, CSV, TSV, Parquet or lines of "
                        f"__label__, but {args.model!r} answers texts; give --format")
    return kind


# -- predictions -----------------------------------------------------------------------------------


def predictions(args: argparse.Namespace, tagger: Any) -> Iterator[str]:
    """Yield the lines of the answers, some texts at a time, or as they come from stdin."""
    if args.exact or args.first_feature != "auto":
        option = "--exact" if args.exact else "--one-based and --zero-based"
        raise UserError(f"{option}: is for rows of features, but {args.model!r} answers texts; "
                        "leave it out")
    columns = columns_of(args)
    if args.test == "-":
        parts = _of_stdin(args, columns)
    else:
        parts = _of_file(args, columns)
    for objects, texts in parts:
        found = _labels(args, tagger, texts)
        as_json = args.output_format == "jsonl" or (args.output_format == "auto" and objects)
        if as_json:
            yield "".join(_json_line(record, columns, row, args.scores) for record, row in
                          zip(objects or [{} for _ in texts], found, strict=True))
        else:
            yield "".join(_line(row, args.scores) for row in found)


def _labels(args: argparse.Namespace, tagger: Any,
            texts: list[str]) -> list[list[tuple[str, float]]]:
    if args.threshold is None:
        return tagger.predict_topk(texts, k=args.k)
    calibration = tagger.network_.calibration
    k = MAX_LABELS_ABOVE if calibration is None else calibration.n_ranked
    if args.threshold != "auto":
        return tagger.predict_topk(texts, k=k, threshold=args.threshold)
    names, found = tagger.predict(texts), tagger.predict_topk(texts, k=k)
    wanted = [{name} if isinstance(name, str) else set(name) for name in names]
    return [[pair for pair in row if pair[0] in some]
            for row, some in zip(found, wanted, strict=True)]


def _line(row: list[tuple[str, float]], with_probabilities: bool) -> str:
    """Labels, parted by tabs, as names may contain spaces."""
    shown = [f"{name}:{p:.6g}" if with_probabilities else name for name, p in row]
    return "\t".join(" ".join(word.split("\n")).replace("\t", " ") for word in shown) + "\n"


def _json_line(record: dict[str, Any], columns: Columns, row: list[tuple[str, float]],
               with_probabilities: bool) -> str:
    """The object without its text, and the answer."""
    kept = {name: value for name, value in record.items() if name not in columns.text}
    kept["predicted"] = [name for name, _ in row]
    if with_probabilities:
        kept["probability"] = [round(p, 6) for _, p in row]
    return json.dumps(kept, ensure_ascii=False) + "\n"


def _of_file(args: argparse.Namespace,
             columns: Columns) -> Iterator[tuple[list[dict[str, Any]], list[str]]]:
    """(objects of JSONL or none, texts) of a file."""
    kind = kind_of(args.test, args.format)
    if kind in ("jsonl", "fasttext", "xmc"):  # plain lines of text look like nothing else
        if not os.path.exists(args.test):
            raise FileNotFoundError(2, "No such file", args.test)
        with opened(args.test) as file:
            lines: list[str] = []
            n = 1
            for line in file:
                lines.append(line)
                if len(lines) == TEXTS_PER_CALL:
                    yield _of_lines(lines, n, repr(args.test), kind == "jsonl", columns)
                    n, lines = n + len(lines), []
            if lines:
                yield _of_lines(lines, n, repr(args.test), kind == "jsonl", columns)
        return
    texts = read_records(args.test, kind, columns, labelled=False).texts
    for begin in range(0, len(texts), TEXTS_PER_CALL):
        yield [], texts[begin:begin + TEXTS_PER_CALL]


def _of_stdin(args: argparse.Namespace,
              columns: Columns) -> Iterator[tuple[list[dict[str, Any]], list[str]]]:
    """(objects of JSONL or none, texts) of the lines that have come."""
    is_json = args.format == "jsonl"
    if args.format not in ("auto", "jsonl", "fasttext"):
        raise UserError(f"--format {args.format}: is not read from stdin; give a file, or lines of "
                        "text or JSON")
    for n, text in lines_of(sys.stdin.buffer):
        lines = text.decode("utf-8", "replace").removesuffix("\n").split("\n")
        if n == 1 and args.format == "auto":
            is_json = lines[0].lstrip("\ufeff \t").startswith("{")
        yield _of_lines(lines, n, "'<stdin>'", is_json, columns)


def _of_lines(lines: list[str], first: int, name: str, is_json: bool,
              columns: Columns) -> tuple[list[dict[str, Any]], list[str]]:
    if not is_json:
        return [], [without_labels(line) for line in lines]
    places = [(f"{name}, line {first + i}", line) for i, line in enumerate(lines) if line.strip()]
    objects = [json_object(line.lstrip("\ufeff"), place) for place, line in places]
    return objects, [text_of(record, columns, place)
                     for record, (place, _) in zip(objects, places, strict=True)]
