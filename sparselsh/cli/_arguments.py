"""The options of the command line, and the recipe that stands behind their defaults."""
from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

# The recipe of `sparselsh train`. A learning rate of None leaves the optimizer to the network.
HIDDEN = 256
ACTIVATION = "none"
EPOCHS = 5  # from random weights
BATCH_SIZE = 256
LR = None
SCHEDULE = "linear"  # of the learning rate, where one is given
WINDOW = 65_536  # that of Network.fit, which cannot be imported here: NumPy would come along
DENSITY = "auto"

# The demo: a network that trains in a minute on two cores, the dense one included.
DEMO_ROWS = 100_000
DEMO_EPOCHS = 2

ABOUT = "Train and serve wide neural networks on a CPU: hashing finds the neurons that are computed."
FORMAT = ("Files are XMC text: a first line `rows features labels`, then a line a row: labels, a space, "
          "feature:value pairs, as in `3,17 5:0.2 90:1.5`; or what `sparselsh convert` made of them. "
          "Start with `sparselsh demo`.")


def parser() -> argparse.ArgumentParser:
    """Return the argument parser; ``command`` is the name of the command that was given."""
    top = _Parser(prog="sparselsh", description=ABOUT, epilog=FORMAT)
    top.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")

    sub = commands.add_parser("train", help="train a network on an XMC file", epilog=FORMAT)
    sub.add_argument("train", metavar="TRAIN.txt", help="rows to learn from")
    sub.add_argument("--test", metavar="TEST.txt", help="rows to measure it on")
    sub.add_argument("--model", metavar="OUT.safetensors", help="file to save the network to")
    sub.add_argument("--checkpoint", metavar="RUN.safetensors",
                     help="file to save the network and the state of its training to, after each epoch and on Ctrl-C")
    sub.add_argument("--resume", metavar="RUN.safetensors",
                     help="go on with the training of a --checkpoint, on the same TRAIN, and save it there again; what "
                          "the training began with, such as --epochs, stays")
    _option(sub, "--hidden", "hidden neurons", HIDDEN, type=_whole(1), metavar="N", action=_Given)
    _option(sub, "--activation", "what follows the hidden layer", ACTIVATION, choices=["none", "relu"], action=_Given)
    _option(sub, "--loss", "softmax over all labels, or binary cross-entropy of each", "softmax",
            choices=["softmax", "bce"], action=_Given)
    _option(sub, "--density", "share of output neurons to compute; 1 computes all of them", DENSITY,
            type=_density, metavar="auto|FLOAT", action=_Given)
    _option(sub, "--init", "first weights: made of the rows and their labels, or random; auto makes them for 1,000 "
                           "labels or more and the loss softmax", "auto", choices=["auto", "labels", "random"],
            action=_Given)
    _option(sub, "--shared-ids", "whether feature j and label j are the same thing, as items of a session and the next "
                                 "one; counts for weights that --init makes; auto looks", "auto",
            choices=["auto", "yes", "no"], action=_Given)
    _option(sub, "--refine", "add to the network a classifier of the inputs for each label; auto adds them under the "
                             "same conditions, if they learn their rows", "auto", choices=["auto", "yes", "no"])
    _option(sub, "--epochs", "passes over the rows", None, unset=f"2, or {EPOCHS} from random weights", type=_whole(1),
            metavar="N", action=_Given)
    _option(sub, "--batch-size", "rows a step", BATCH_SIZE, type=_whole(1), metavar="N", action=_Given)
    _option(sub, "--lr", "learning rate of Adam", LR, unset="by the number of steps, or 0.01 from random weights",
            type=_number, metavar="FLOAT", action=_Given)
    _option(sub, "--dropout", "share of the hidden neurons that a step leaves out", None,
            unset="0, or 0.2 in 2,000 steps and more from weights that --init makes", type=_share,
            metavar="FLOAT", action=_Given)
    _option(sub, "--window", "rows of a converted TRAIN in memory, and shuffled, at a time", WINDOW, type=_whole(1),
            metavar="N", action=_Given)
    _add_run_options(sub)

    sub = commands.add_parser(
        "convert", help="make a binary file of an XMC file, or a network to serve of trained weights",
        description="Of an XMC file it makes a binary one: nothing to parse, and training on it takes little memory. "
                    "Of weights (--layer, or a file .onnx) it makes a network that serve-bench and "
                    "sparselsh.InferenceNetwork.load take.",
        usage="%(prog)s TEXT.txt OUT.csr\n"
              "       %(prog)s WEIGHTS --layer NAME ... --calibration X.npz -o OUT.safetensors [options]\n"
              "       %(prog)s MODEL.onnx --calibration X.npz -o OUT.safetensors [options]")
    sub.add_argument("input", metavar="INPUT", help="XMC text, compressed if its name says so; or weights: a file "
                                                    ".safetensors, .npz or .onnx")
    sub.add_argument("csr", metavar="OUT.csr", nargs="?", help="file to write from text, for any command that takes "
                                                               "an XMC file")
    weights = sub.add_argument_group("weights")
    weights.add_argument("--layer", metavar="NAME", action="append",
                         help="a linear layer: NAME.weight (outputs, inputs) and NAME.bias, or WEIGHT:BIAS; several, "
                              "in order, have a ReLU between them")
    weights.add_argument("--calibration", metavar="X.npz", help="inputs of the first layer, some hundreds of rows")
    weights.add_argument("-o", "--output", metavar="OUT.safetensors", help="file to write from weights")
    _option(weights, "--recall", "share of the best outputs to find", 0.99, type=_below_one, metavar="FLOAT")
    _option(weights, "--error", "error of the outputs that hidden layers may bring about", 0.02, type=_share,
            metavar="FLOAT")
    _option(weights, "--storage", "how rows of weights are kept", "float32", choices=["float32", "bfloat16", "int8"])
    weights.add_argument("--upcast", action="store_true", help="take weights of other types, as float32")
    _option(weights, "--seed", "seed of the index", 0, type=_whole(0), metavar="N")
    _add_threads(weights)

    sub = commands.add_parser("serve-bench", help="time a converted network, beside computing every neuron")
    sub.add_argument("model", metavar="MODEL", help="file that `sparselsh convert -o` has written")
    sub.add_argument("--queries", metavar="X.npz", help="inputs to ask")
    _option(sub, "--batch", "questions asked at once", [1, 256], type=_whole(1), nargs="+", metavar="N")
    _option(sub, "-k", "best outputs asked for", 5, type=_whole(1), metavar="N")
    sub.add_argument("--mmap", action="store_true", help="leave float32 weights in the file")
    _add_threads(sub)
    _add_json(sub)

    sub = commands.add_parser("predict", help="write the best labels of every row, label:score ...")
    sub.add_argument("model", metavar="MODEL", help="file that `sparselsh train --model` has written")
    sub.add_argument("test", metavar="TEST.txt", help="rows to predict; their labels are not looked at")
    _option(sub, "-k", "labels a row", 5, type=_whole(1), metavar="N")
    sub.add_argument("--output", metavar="FILE", help="write to FILE instead of the terminal")
    sub.add_argument("--exact", action="store_true", help="compute every output neuron")
    _add_threads(sub)
    sub.add_argument("--scores", action=argparse.BooleanOptionalAction, default=True,
                     help="write the score behind each label, or the labels alone")

    sub = commands.add_parser("evaluate", help="measure a network: P@k, nDCG@k, PSP@k, time a query")
    sub.add_argument("model", metavar="MODEL", help="file that `sparselsh train --model` has written")
    sub.add_argument("test", metavar="TEST.txt", help="rows with their true labels")
    sub.add_argument("--train", metavar="TRAIN.txt",
                     help="rows it learnt from: their label frequencies give the propensities, and so PSP@k")
    sub.add_argument("--exact", action="store_true", help="compute every output neuron")
    _add_threads(sub)
    _add_json(sub)

    sub = commands.add_parser("demo", help="guess identifiers in Python's own standard library")
    _option(sub, "--rows", "rows to learn from, at most", DEMO_ROWS, type=_whole(1000), metavar="N")
    _option(sub, "--epochs", "passes over the rows", DEMO_EPOCHS, type=_whole(1), metavar="N")
    sub.add_argument("--dense", action=argparse.BooleanOptionalAction, default=True,
                     help="train the same network without hashing too, to compare")
    _add_run_options(sub)
    return top


class _Parser(argparse.ArgumentParser):
    """Complains in one line, without the usage in front."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"sparselsh: error: {message}; see `{self.prog} --help`\n")


class _Version(argparse.Action):
    """Reads the version only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from .._version import __version__

        print(f"sparselsh {__version__}")
        parser.exit()


class _Given(argparse.Action):
    """Stores the value and, in `given`, that there was one: a training that is resumed has its own."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any,
                 option: str | None = None) -> None:
        setattr(namespace, self.dest, value)
        namespace.given = [*getattr(namespace, "given", []), option]


def _add_threads(sub: argparse._ActionsContainer) -> None:
    _option(sub, "--threads", "threads to use", None, unset="the library's", type=_whole(1), metavar="N")


def _add_run_options(sub: argparse._ActionsContainer) -> None:
    _add_threads(sub)
    _option(sub, "--seed", "seed of every random choice", 0, type=_whole(0), metavar="N", action=_Given)
    sub.add_argument("--quiet", action="store_true", help="print nothing but errors")
    _add_json(sub)


def _add_json(sub: argparse._ActionsContainer) -> None:
    sub.add_argument("--json", metavar="FILE", help="also write the figures to FILE, as one JSON object")


def _option(sub: argparse._ActionsContainer, name: str, text: str, default: object, unset: str | None = None,
            **options: Any) -> None:
    """Add an option whose help ends with its default, or with `unset` in words where that is None."""
    shown = default if default is not None else unset
    sub.add_argument(name, default=default, help=f"{text} (default: {shown})", **options)


def _whole(least: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {least} or more")
        return value

    return whole


def _number(text: str, most: float = math.inf) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 < value <= most and value < math.inf):
        bounds = "above 0" if most == math.inf else f"above 0 and up to {most:g}"
        raise argparse.ArgumentTypeError(f"{text!r} is not a number {bounds}")
    return value


def _below_one(text: str) -> float:
    value = _number(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and below 1")
    return value


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0 and below 1")
    return value


def _density(text: str) -> float | str:
    if text == "auto":
        return text
    try:
        return _number(text, most=1.0)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, nor 'auto'") from None
