"""The command ``sparselsh``: its entry, its errors, and which function does what.

An error of the user ends in one line on stderr, which names the file and the remedy, and exit code
2. Output files appear whole or not at all: they are written to a temporary file and then renamed.
Paths that cannot be written and missing packages are detected before the training.

NumPy and the compiled core are imported inside the commands, so that ``sparselsh --help`` starts
fast.
"""
from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NoReturn

from ._arguments import parser
from ._files import (
    UserError,
    check_outputs,
    write_json,
)
from ._report import describe, silent

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

LOST_PROCESS = 75  # exit code, "temporary failure": start all processes again


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    It is 0, 2 for an error, 130 for Ctrl-C, 75 where another process was lost.
    """
    _open_streams()
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
    except RuntimeError as error:
        if type(error).__name__ != "DistributedError":
            raise
        print(f"sparselsh: error: {_one_line(error)}", file=sys.stderr, flush=True)
        _leave(LOST_PROCESS)
    except (UserError, ValueError, ArithmeticError, ImportError, OSError, MemoryError) as error:
        print(f"sparselsh: error: {_one_line(error)}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:
            _drop_stdout()  # `sparselsh predict ... > FILE` on a full disk
        return 2
    return 0


def _open_streams() -> None:
    """Give what the caller has closed, as by `>&-`, an empty stream.

    Python has None there, and the next file that is opened would take the place of the stream.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nothing = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(nothing, mode, encoding="utf-8", closefd=False))


def _leave(code: int) -> NoReturn:
    """End without the end of the interpreter, which would wait for the lost process."""
    sys.stdout.flush()
    os._exit(code)


def _drop_stdout() -> None:
    """Discard what remains in the buffer: writing it has failed, and would fail again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# --- commands -------------------------------------------------------------------------------------


def train(args: argparse.Namespace) -> None:
    """Train on a file, measure on another, save."""
    from ._records import kind_of

    kind = kind_of(args.train, args.format)
    if kind == "xmc":
        from ._train import train

        train(args)
    else:
        from ._texts import train_texts

        train_texts(args, kind)


def predict(args: argparse.Namespace) -> None:
    """Write the best labels of every row of a file."""
    from ._predict import predict

    predict(args)


def evaluate(args: argparse.Namespace) -> None:
    """Measure a saved model on a file."""
    from ._predict import evaluate

    evaluate(args)


def serve(args: argparse.Namespace) -> None:
    """Answer over HTTP until a signal."""
    from ._models import serve

    serve(args)


def info(args: argparse.Namespace) -> None:
    """Describe a model."""
    from ._models import info

    info(args)


def compress(args: argparse.Namespace) -> None:
    """Write a smaller file of a model."""
    from ._models import compress

    compress(args)


def convert(args: argparse.Namespace) -> None:
    """Convert an XMC text file to a CSR file, or weights to a network for inference."""
    from ._serving import convert_weights, is_weights

    inputs, csr = [args.input, *args.more[:-1]], args.more[-1] if args.more else None
    if args.input.endswith(".parquet"):
        _convert_parquet(args, inputs, csr)
        return
    for name in ("features", "labels"):
        if getattr(args, name) is not None:
            raise UserError(f"--{name}: is of Parquet files; leave it out")
    if is_weights(args.input, args.layer, csr is not None):
        if args.output is None:
            raise UserError("convert: weights need a place to write to; give -o OUT.safetensors")
        if csr is not None:
            raise UserError(f"{csr!r}: is only for text; give -o OUT.safetensors")
        check_outputs([args.output], inputs=[args.input, args.calibration])
        convert_weights(args)
        return

    if csr is None or inputs[1:] or args.output is not None or args.calibration is not None:
        raise UserError("convert: text needs OUT.csr and no more; weights of other programs need "
                        "--layer NAME, and all weights -o OUT.safetensors")
    check_outputs([csr], inputs=inputs)
    from .. import datasets

    if os.path.exists(csr) and not os.path.isfile(csr):
        raise UserError(f"{csr!r}: is a device or a pipe; give the name of a file")
    datasets.convert_xmc(args.input, csr)
    with datasets.open_csr(csr) as file:
        print(describe("wrote", file, None))


def _convert_parquet(args: argparse.Namespace, inputs: list[str], folder: str | None) -> None:
    from .. import datasets
    from ..distributed import open_rows

    if folder is None or args.layer or args.output is not None or args.calibration is not None:
        raise UserError("convert: Parquet files need a folder to write to, and no option of "
                        "weights: sparselsh convert part-*.parquet rows/")
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise UserError(f"{folder!r}: is a file; give the name of a folder")
    datasets.convert_parquet(inputs, folder, n_features=args.features, n_labels=args.labels)
    rows = open_rows(folder)
    print(f"wrote {len(inputs)} files; {folder} has {len(rows):,} rows, {rows.shape[1]:,} "
          f"features and {rows.n_labels:,} labels")
    rows.close()


def serve_bench(args: argparse.Namespace) -> None:
    """Time the inference of a converted network."""
    check_outputs([args.json], inputs=[args.model, args.queries])
    from ._serving import serve_bench

    write_json(args.json, serve_bench(args))


def demo(args: argparse.Namespace) -> None:
    """Train on the source text of Python's own standard library."""
    check_outputs([args.json], inputs=[])
    from ._demo import run_demo

    report = run_demo(rows=args.rows, epochs=args.epochs, dense=args.dense, seed=args.seed,
                      n_threads=args.threads, verbose=not args.quiet,
                      say=silent if args.quiet else print)
    write_json(args.json, report)


def plan(args: argparse.Namespace) -> None:
    """Estimate what a training by several processes needs."""
    check_outputs([args.json], inputs=[])
    from ..distributed import estimate

    estimates = [estimate(n_labels=args.labels, n_features=args.features, nnz=args.nnz,
                          n_hidden=args.hidden, n_active=args.active, batch_size=args.batch_size,
                          processes=n, cores=args.cores, network=args.network,
                          latency=args.latency, dtype=args.dtype, core_speed=args.core_speed)
                 for n in args.processes]
    print("processes  GB per process  MB per step  seconds per step  rows per second  bound by")
    for one in estimates:
        print(f"{one['processes']:>9,}  {one['bytes_per_process'] / 1e9:>14,.2f}  "
              f"{one['bytes_sent_per_step'] / 1e6:>11,.2f}  {one['seconds_per_step']:>16.4f}  "
              f"{one['rows_per_second']:>15,.0f}  {one['bound']}")
    write_json(args.json, {"estimates": estimates})


def completion(args: argparse.Namespace) -> None:
    """Print the script that completes the command line in a shell."""
    from ._completion import script

    print(script(args.shell, parser()), end="")


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "train": train, "predict": predict, "evaluate": evaluate, "serve": serve, "info": info,
    "compress": compress, "convert": convert, "serve-bench": serve_bench,
    "completion": completion, "demo": demo, "plan": plan}


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
