"""The options of the command line and their defaults."""
from __future__ import annotations

import argparse
import ast
import math
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    Commands: TypeAlias = "argparse._SubParsersAction[Parser]"

# Defaults of `sparselsh train`. A learning rate of None leaves the optimizer to the network.
ACTIVATION = "none"
EPOCHS_FROM_RANDOM = 5  # from weights computed from the data: _recipe.EPOCHS_FROM_DATA
BATCH_SIZE = 256
LEARNING_RATE = None
SCHEDULE = "linear"  # of the learning rate, where one is given
WINDOW_ROWS = 65_536  # as training.WINDOW_ROWS, whose import here would load NumPy
DENSITY = "auto"

# Defaults of `sparselsh demo`, which trains in a minute on two cores, the dense network included.
DEMO_MAX_ROWS = 100_000
DEMO_EPOCHS = 2

ABOUT = ("Train and serve wide neural networks on a CPU: hashing finds the neurons that are "
         "computed.")
FORMAT = ("Files are texts with labels: JSONL, CSV, TSV, Parquet, or lines of fastText's "
          "__label__NAME; or rows of features, as XMC text: a first line `rows features labels`, "
          "then one line per row: labels, a space, feature:value pairs, as in "
          "`3,17 5:0.2 90:1.5`; or binary files that "
          "`sparselsh convert` has made from such text. Start with `sparselsh demo`.")


def parser() -> Parser:
    """Return the argument parser; ``command`` is the name of the command that was given."""
    top = Parser(prog="sparselsh", description=ABOUT, epilog=FORMAT)
    top.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND",
                                  title="commands")
    for add in (_add_train, _add_predict, _add_evaluate, _add_serve, _add_info, _add_compress,
                _add_convert, _add_serve_bench, _add_completion, _add_demo):
        add(commands)
    _add_plan(commands)
    return top


def _add_train(commands: Commands) -> None:
    sub = new_command(commands, "train", help="train on texts or on rows of features",
                      epilog=FORMAT)
    sub.add_argument("train", metavar="TRAIN", help="texts with labels, or rows of features")
    sub.add_argument("--test", metavar="TEST", help="file on which to measure the model")
    sub.add_argument("--model", metavar="OUT.safetensors", help="file to save the model to")
    _add_columns(sub, labelled=True)
    sub.add_argument("--checkpoint", metavar="RUN.safetensors",
                     help="file to save the network and the state of its training to, after each "
                          "epoch and on Ctrl-C")
    sub.add_argument("--resume", metavar="RUN.safetensors",
                     help="continue the training of a --checkpoint, on the same TRAIN, and save it "
                          "there again; options of the network and the steps, such as --lr, are "
                          "those it was started with, but --epochs may be larger; give --effort, "
                          "--refine, --hold-out, --validation and the columns as before")
    _add_ids(sub)
    _option(sub, "--shards", "shards of a network that several processes, started by torchrun or "
                             "mpiexec, train together; the results depend on it and not on the "
                             "number of processes; --model and --checkpoint are folders then",
            None, unset="one network in one process", type=_whole(1), metavar="N", action=_Given)

    _option(sub, "--hidden", "number of hidden neurons", None,
            unset="256, with --effort high 512; 128 for texts", type=_whole(1), metavar="N",
            action=_Given)
    _option(sub, "--activation", "activation of the hidden layer", ACTIVATION,
            choices=["none", "relu"], action=_Given)
    _option(sub, "--loss", "softmax over all labels, or binary cross-entropy of each", "softmax",
            choices=["softmax", "bce"], action=_Given)
    _option(sub, "--density", "fraction of the output neurons to compute; 1 computes all of them",
            DENSITY, type=_fraction_or_auto, metavar="auto|FLOAT", action=_Given)
    _option(sub, "--init", "initial weights: computed from the rows and their labels, or random; "
                           "auto computes them for the loss softmax, if there are 1,000 "
                           "labels or eight times as many features as hidden units",
            "auto", choices=["auto", "labels", "random"], action=_Given)
    _option(sub, "--effort", "what --init and --refine spend: hidden neurons, epochs, negatives "
                             "per row, and labels that are ranked again; low is quicker, high "
                             "ranks better",
            "default", choices=["low", "default", "high"], action=_Given)
    _option(sub, "--shared-ids", "whether feature j and label j are the same thing, as the items "
                                 "of a session and the next item; for weights that --init "
                                 "computes; auto decides from the rows",
            "auto", choices=["auto", "yes", "no"], action=_Given)
    _option(sub, "--refine", "add one classifier of the inputs per label; auto adds them under the "
                             "same conditions as --init, if they help on the rows held out",
            "auto", choices=["auto", "yes", "no"])
    _option(sub, "--hold-out", "rows, a random sample, that the training leaves out, by which "
                               "--refine is judged and probabilities are calibrated; 0 trains on "
                               "all rows and gives no probabilities",
            None, unset="a tenth, at most 1,024, or 4,096 where labels are fewer than "
                        "1,000; 0 for fewer than 500 rows", type=_whole(0),
            metavar="N")

    _option(sub, "--epochs", "passes over the rows", None,
            unset=f"2, with --effort low 1 and with high 4, or {EPOCHS_FROM_RANDOM} from random "
                  "weights; with --resume, what was planned", type=_whole(1), metavar="N")
    _option(sub, "--batch-size", "rows per step", BATCH_SIZE, type=_whole(1), metavar="N",
            action=_Given)
    _option(sub, "--lr", "learning rate of Adam", LEARNING_RATE,
            unset="by the number of steps, or 0.01 from random weights", type=_number,
            metavar="FLOAT", action=_Given)
    _option(sub, "--dropout", "fraction of the hidden neurons that a step leaves out", None,
            unset="0, or 0.2 in 2,000 steps and more from weights that --init computes",
            type=_fraction, metavar="FLOAT", action=_Given)
    _option(sub, "--window", "rows of a converted TRAIN in memory, and shuffled, at a time",
            WINDOW_ROWS, type=_whole(1), metavar="N", action=_Given)
    _add_validation(sub)
    _add_optimizer(sub)
    _add_layers(sub)
    _add_run_options(sub)


def _add_validation(sub: argparse._ActionsContainer) -> None:
    group = sub.add_argument_group("validation")
    _option(group, "--validation", "measure P@1 or the loss after each epoch: on a file of rows, "
                                   "or on this fraction of TRAIN, which the training leaves out "
                                   "and by which it is calibrated, in place of --hold-out",
            None, unset="no validation", metavar="FRACTION|FILE")
    group.add_argument("--early-stopping", nargs="?", const=3, type=_whole(1), metavar="EPOCHS",
                       help="end the training after this many epochs without a new best, with the "
                            "weights of the best; needs --validation (default: off; 3 without a "
                            "number)")
    group.add_argument("--log", metavar="FILE",
                       help="write loss, seconds and P@1 of each epoch to FILE, .csv or .json")
    _option(group, "--on-nonfinite", "what to do where a loss is not finite: end with an error, "
                                     "skip the batch with a warning, or end with the weights of "
                                     "the last good epoch",
            "raise", choices=["raise", "warn", "restore"])


def _add_optimizer(sub: argparse._ActionsContainer) -> None:
    group = sub.add_argument_group("optimizer")
    _option(group, "--optimizer", "rule of the updates", "adam", choices=["adam", "sgd"],
            action=_Given)
    _option(group, "--momentum", "momentum of SGD", 0.9, type=_fraction, metavar="FLOAT",
            action=_Given)
    _option(group, "--weight-decay", "factor of the weight that is added to the gradient, or with "
                                     "adam decoupled from it", 0.0, type=_not_negative,
            metavar="FLOAT", action=_Given)
    _option(group, "--schedule", "learning rate over the training: none, linear, cosine, or an "
                                 "object of sparselsh.schedules such as 'WarmUp(0.1)'",
            SCHEDULE, type=_call, metavar="NAME", action=_Given)
    _option(group, "--clip-norm", "largest norm of all gradients of a step together", None,
            unset="no limit", type=_number, metavar="FLOAT", action=_Given)
    _option(group, "--second-moment", "of adam: one per weight, or one per row, which takes a "
                                      "third less memory", None,
            unset="row from weights that --init computes, element from random ones",
            choices=["element", "row"], action=_Given)
    _option(group, "--state-dtype", "data type of the moments", "float32",
            choices=["float32", "bfloat16"], action=_Given)
    group.add_argument("--shuffle", action=argparse.BooleanOptionalAction, default=True,
                       help="train on the rows in random order (default: yes)")


def _add_layers(sub: argparse._ActionsContainer) -> None:
    group = sub.add_argument_group(
        "layers", "See sparselsh.LSHLinear; objects are written as in Python, in quotes.")
    _option(group, "--dtype", "data type of the weights", "float32",
            choices=["float32", "bfloat16"], action=_Given)
    _option(group, "--active", "neurons that a step computes: one set for the batch, or one per "
                               "row", "batch", choices=["batch", "sample"], action=_Given)
    _option(group, "--candidates", "neurons per row that hashing adds to the set of a batch", 5,
            type=_whole(0), metavar="N", action=_Given)
    _option(group, "--policy", "how active neurons are found", "top",
            choices=["top", "score", "vanilla", "sketches"], action=_Given)
    _option(group, "--family", "hash tables, such as 'DWTA(bins=6, tables=50)'", None,
            unset="SimHash by the number of labels", type=_call, metavar="FAMILY", action=_Given)
    _option(group, "--n-probes", "buckets per table that are read", 1, type=_whole(1), metavar="N",
            action=_Given)
    _option(group, "--rebuild", "when tables are rebuilt, such as 'Every(50)'", None,
            unset="AtOnce()", type=_call, metavar="POLICY", action=_Given)
    _option(group, "--plan", "how a layer with one set per row is computed", "auto",
            choices=["auto", "dense", "exact", "rows", "gather"], action=_Given)
    _option(group, "--recall", "fraction of the five best labels that a query is to find", 0.995,
            type=_below_one, metavar="FLOAT", action=_Given)


def _add_columns(sub: argparse._ActionsContainer, labelled: bool) -> None:
    group = sub.add_argument_group("texts")
    _option(group, "--format", "kind of the file", "auto",
            choices=["auto", "jsonl", "csv", "tsv", "parquet", "fasttext", "xmc"])
    group.add_argument("--text", metavar="COLUMN", action="append",
                       help="column, or key of JSON objects, with the text; several are joined "
                            "(default: text)")
    if labelled:
        group.add_argument("--label", metavar="COLUMN",
                           help="column with the labels: a string, or in JSONL and Parquet a list "
                                "of them (default: the first of tags, labels, label and tag)")
        group.add_argument("--separator", metavar="TEXT", type=_not_empty,
                           help="what parts several labels in one string (default: none, the whole "
                                "string is one label)")


def _add_serve(commands: Commands) -> None:
    sub = new_command(
        commands, "serve", help="answer over HTTP",
        description="POST /predict, POST /explain, GET /health, GET /metrics, and a page to try "
                    "the model at /. Needs the extra serve: starlette and uvicorn.")
    sub.add_argument("model", metavar="MODEL",
                     help="file that `sparselsh train --model` or `compress` has written")
    _option(sub, "--host", "address to listen at; 0.0.0.0 is all of them", "127.0.0.1",
            metavar="ADDRESS")
    _option(sub, "--port", "port to listen at; 0 for a free one", 8000, type=_whole(0), metavar="N")
    _option(sub, "--workers", "processes that answer, which share the model", 1, type=_whole(1),
            metavar="N")
    _option(sub, "--threads", "threads of each worker", 1, type=_whole(1), metavar="N")
    _option(sub, "--batch", "waiting texts or rows that are answered together", 64, type=_whole(1),
            metavar="N")
    _option(sub, "--max-bytes", "bytes of a request", 1 << 20, type=_whole(1), metavar="N")
    _option(sub, "--max-items", "texts or rows of a request", 1024, type=_whole(1), metavar="N")
    _option(sub, "--max-waiting", "texts or rows that wait in a worker", 4096, type=_whole(1),
            metavar="N")
    _option(sub, "--timeout", "seconds within which a request must have come", 10.0, type=_number,
            metavar="FLOAT")
    _option(sub, "--rate", "requests per second and client address", None, unset="no limit",
            type=_number, metavar="FLOAT")


def _add_ids(sub: argparse._ActionsContainer) -> None:
    ids = sub.add_mutually_exclusive_group()
    ids.add_argument("--one-based", dest="first_feature", action="store_const", const=1,
                     default="auto",
                     help="feature ids begin at 1 (default: as the file looks, with a note where "
                          "they are lowered)")
    ids.add_argument("--zero-based", dest="first_feature", action="store_const", const=0,
                     help="feature ids begin at 0")


def _add_info(commands: Commands) -> None:
    sub = new_command(commands, "info", help="describe a model: layers, labels, size, training")
    sub.add_argument("model", metavar="MODEL", help="a file of this library")
    _add_json(sub)


def _add_compress(commands: Commands) -> None:
    sub = new_command(
        commands, "compress",
        help="write a smaller file of a trained network, for predict and evaluate",
        description="Weights are rounded to fewer bits. The file answers, and cannot be trained.")
    sub.add_argument("model", metavar="MODEL",
                     help="file that `sparselsh train --model` has written")
    sub.add_argument("-o", "--output", metavar="OUT.safetensors", required=True,
                     help="file to write")
    _option(sub, "--storage", "data type in which weights are stored", "int8",
            choices=["bfloat16", "int8"])
    sub.add_argument("--calibration", metavar="X",
                     help="some hundreds of rows, by which plans are chosen and the effect of the "
                          "rounding is measured: XMC text, a CSR file, .npz or .npy")
    _add_threads(sub)


def _add_completion(commands: Commands) -> None:
    sub = new_command(
        commands, "completion",
        help="print a script that completes commands, options and files",
        description="bash: source <(sparselsh completion bash). zsh: the same in .zshrc, after "
                    "compinit. fish: sparselsh completion fish | source.")
    sub.add_argument("shell", choices=["bash", "zsh", "fish"])


def _add_convert(commands: Commands) -> None:
    sub = new_command(
        commands, "convert",
        help="convert an XMC file to a binary file, Parquet files to a folder of these, or "
             "trained weights to a network for inference",
        description="An XMC file becomes a binary file that needs no parsing and little memory in "
                    "training; Parquet files with the columns features, values and labels, which "
                    "hold lists, become a folder of such files. Weights (--layer, a .onnx file, or "
                    "a file that `sparselsh train --model` has written), a classifier of "
                    "scikit-learn (.joblib), a model of fastText (.bin) and factors of implicit "
                    "(.npz) become a network for serve-bench and for load of InferenceNetwork, "
                    "OnnxNetwork, EstimatorNetwork, TextNetwork and FactorNetwork.",
        usage="%(prog)s TEXT.txt OUT.csr\n"
              "       %(prog)s PART.parquet ... OUT/ [--features N] [--labels N]\n"
              "       %(prog)s MODEL.safetensors --calibration X.txt -o OUT.safetensors [options]\n"
              "       %(prog)s WEIGHTS --layer NAME ... --calibration X.npz -o OUT.safetensors "
              "[options]\n"
              "       %(prog)s MODEL.onnx --calibration X.npz -o OUT.safetensors [options]\n"
              "       %(prog)s MODEL.joblib --trust --calibration X.npz -o OUT.safetensors "
              "[options]\n"
              "       %(prog)s MODEL.bin --calibration TEXTS.txt -o OUT.safetensors [options]")
    sub.add_argument("input", metavar="INPUT",
                     help="XMC text, compressed if its name says so; Parquet; or weights: a "
                          ".safetensors, .npz, .pt, .onnx or .joblib file, or a .bin file of "
                          "fastText")
    sub.add_argument("more", metavar="OUT", nargs="*",
                     help="file to write from text, for any command that takes an XMC file; of "
                          "Parquet, more files, and last the folder to write")
    for what in ("features", "labels"):
        sub.add_argument(f"--{what}", metavar="N", type=_whole(1),
                         help=f"{what} of all Parquet files, also of those that are converted "
                              "elsewhere (default: counted in these)")

    weights = sub.add_argument_group("weights")
    weights.add_argument("--layer", metavar="NAME", action="append",
                         help="a linear layer: NAME.weight (outputs, inputs) and NAME.bias, or "
                              "WEIGHT:BIAS; several, in order, have a ReLU between them")
    weights.add_argument("--calibration", metavar="X",
                         help="inputs of the first layer, some hundreds of rows: a .npz or .npy "
                              "file, XMC text or a CSR file; of an ONNX model also a .npz file "
                              "with an array per input, or numbered arrays, one per call; of "
                              "fastText, lines of text")
    weights.add_argument("--trust", action="store_true",
                         help="read a .joblib file, which runs code that it names: only for files "
                              "whose author you know")
    _option(weights, "--head", "the wide layer at which an ONNX model is cut: the name of its "
                               "node; auto finds it by its shape", "auto", metavar="NAME")
    weights.add_argument("-o", "--output", metavar="OUT.safetensors",
                         help="file to write from weights")
    _option(weights, "--recall", "fraction of the best outputs to find", 0.99, type=_below_one,
            metavar="FLOAT")
    _option(weights, "--error", "relative error of the outputs that hidden layers may cause", 0.02,
            type=_fraction, metavar="FLOAT")
    _option(weights, "--storage", "data type in which weights are stored", "float32",
            choices=["float32", "bfloat16", "int8"])
    weights.add_argument("--upcast", action="store_true",
                         help="convert weights of other types to float32")
    _option(weights, "--seed", "seed of the index", 0, type=_whole(0), metavar="N")
    _add_threads(weights)


def _add_serve_bench(commands: Commands) -> None:
    sub = new_command(commands, "serve-bench",
                              help="time a converted network, with and without computing every "
                                   "neuron")
    sub.add_argument("model", metavar="MODEL", help="file that `sparselsh convert -o` has written")
    sub.add_argument("--queries", metavar="X",
                     help="inputs to time it with: a .npz or .npy file, XMC text or a CSR file, "
                          "or lines of text; as for the --calibration of convert")
    _option(sub, "--batch", "queries per call", [1, 256], type=_whole(1), nargs="+", metavar="N")
    _option(sub, "-k", "outputs per query", 5, type=_whole(1), metavar="N")
    sub.add_argument("--mmap", action="store_true", help="leave the weights in the file")
    _add_threads(sub)
    _add_json(sub)


def _add_predict(commands: Commands) -> None:
    sub = new_command(commands, "predict",
                      help="write the best labels of every text or row, label:probability ...")
    sub.add_argument("model", metavar="MODEL",
                     help="file that `sparselsh train --model` has written")
    sub.add_argument("test", metavar="TEST", nargs="?", default="-",
                     help="texts or rows to predict, whose labels are ignored; - reads lines from "
                          "stdin, of text, JSON or rows with ids from 0, and answers each at once "
                          "(default: -)")
    _option(sub, "-k", "labels per row", 5, type=_whole(1), metavar="N")
    sub.add_argument("--probabilities", action="store_true",
                     help="write the probability after each label instead of its score")
    _option(sub, "--threshold", "write all labels whose probability is at least this, instead of k "
                                "labels; auto is the one with the best F1 on the rows held out",
            None, unset="k labels", type=_fraction_or_auto, metavar="auto|FLOAT")
    sub.add_argument("--output", metavar="FILE", help="write to FILE instead of the terminal")
    _add_columns(sub, labelled=False)
    _option(sub, "--output-format", "of texts: lines of label:probability parted by tabs, or "
                                    "JSONL, the objects of the input without the text",
            "auto", unset="that of the input", choices=["auto", "lines", "jsonl"])
    sub.add_argument("--exact", action="store_true", help="compute every output neuron")
    _add_ids(sub)
    _add_threads(sub)
    sub.add_argument("--scores", action=argparse.BooleanOptionalAction, default=True,
                     help="write the score after each label, or only the labels")


def _add_evaluate(commands: Commands) -> None:
    sub = new_command(commands, "evaluate",
                              help="measure a network: P@k, nDCG@k, PSP@k, time per query")
    sub.add_argument("model", metavar="MODEL",
                     help="file that `sparselsh train --model` has written")
    sub.add_argument("test", metavar="TEST", help="texts or rows with their true labels")
    _add_columns(sub, labelled=True)
    sub.add_argument("--train", metavar="TRAIN.txt",
                     help="its training rows: their label frequencies give the propensities for "
                          "PSP@k")
    sub.add_argument("--exact", action="store_true", help="compute every output neuron")
    _add_ids(sub)
    _add_threads(sub)
    _add_json(sub)


def _add_plan(commands: Commands) -> None:
    sub = new_command(
        commands, "plan",
        help="estimate memory, traffic and speed of a training by several processes")
    sub.add_argument("--labels", type=_count, metavar="N", required=True,
                     help="number of labels, such as 1e8")
    _option(sub, "--features", "number of features", 1_000_000, type=_count, metavar="N")
    _option(sub, "--nnz", "features per row", 100.0, type=_number, metavar="FLOAT")
    _option(sub, "--hidden", "number of hidden neurons", 128, type=_whole(1), metavar="N")
    _option(sub, "--active", "output neurons that a step computes", 4096, type=_count, metavar="N")
    _option(sub, "--batch-size", "rows per step", 256, type=_whole(1), metavar="N")
    _option(sub, "--processes", "numbers of processes", [1, 2, 4, 8, 16, 32, 64], type=_whole(1),
            nargs="+", metavar="N")
    _option(sub, "--cores", "cores per process", 32, type=_whole(1), metavar="N")
    _option(sub, "--core-speed", "speed of a core, where 1 is that of an AMD EPYC (Zen 5)", 1.0,
            type=_number, metavar="FLOAT")
    _option(sub, "--network", "gigabits per second of each process", 10.0, type=_number,
            metavar="FLOAT")
    _option(sub, "--latency", "microseconds of an exchange", 50.0, type=_number, metavar="FLOAT")
    _option(sub, "--dtype", "data type of weights and moments", "float32",
            choices=["float32", "bfloat16"])
    _add_json(sub)


def _add_demo(commands: Commands) -> None:
    sub = new_command(commands, "demo", help="guess identifiers in Python's own standard library")
    _option(sub, "--rows", "maximum number of training rows", DEMO_MAX_ROWS, type=_whole(1000),
            metavar="N")
    _option(sub, "--epochs", "passes over the rows", DEMO_EPOCHS, type=_whole(1), metavar="N")
    sub.add_argument("--dense", action=argparse.BooleanOptionalAction, default=True,
                     help="also train the same network without hashing, to compare")
    _add_run_options(sub)


class Parser(argparse.ArgumentParser):
    """Reports an error in one line, without the usage; takes whole names of options only.

    An abbreviation would change its meaning, or end to be one, when an option is added.
    """

    text = ""  # what a command does

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def arguments(self) -> list[argparse.Action]:
        """The arguments and options, for completion."""
        return self._actions

    def commands(self) -> dict[str, Parser]:
        """The parsers of the commands by name, for completion."""
        return {name: sub for action in self._actions
                if isinstance(action, argparse._SubParsersAction)
                for name, sub in action.choices.items()}

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"sparselsh: error: {message}; see `{self.prog} --help`\n")


def new_command(commands: Commands, name: str, *, help: str, **options: Any) -> Parser:
    """Add a command."""
    sub = commands.add_parser(name, help=help, **options)
    sub.text = help
    return sub


class _Version(argparse.Action):
    """Imports the version only when `--version` is given."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from .._version import __version__

        print(f"sparselsh {__version__}")
        parser.exit()


class _Given(argparse.Action):
    """Stores the value, and the option's name in `given`: --resume does not allow these options."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any,
                 option: str | None = None) -> None:
        setattr(namespace, self.dest, value)
        namespace.given = [*getattr(namespace, "given", []), option]


def _add_threads(sub: argparse._ActionsContainer) -> None:
    _option(sub, "--threads", "number of threads", None, unset="that of the library",
            type=_whole(1), metavar="N")


def _add_run_options(sub: argparse._ActionsContainer) -> None:
    _add_threads(sub)
    _option(sub, "--seed", "seed of every random choice", 0, type=_whole(0), metavar="N",
            action=_Given)
    sub.add_argument("--quiet", action="store_true", help="print only errors")
    _add_json(sub)


def _add_json(sub: argparse._ActionsContainer) -> None:
    sub.add_argument("--json", metavar="FILE",
                     help="also write the figures to FILE, as one JSON object")


def _option(sub: argparse._ActionsContainer, name: str, text: str, default: object,
            unset: str | None = None, **options: Any) -> None:
    """Add an option whose help ends with its default, or with `unset` where the default is None."""
    shown = default if default is not None else unset
    sub.add_argument(name, default=default, help=f"{text} (default: {shown})", **options)


def _whole(minimum: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {minimum} or more")
        return value

    return whole


def _not_empty(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("'' parts nothing; give a text such as ',', or leave it "
                                         "out")
    return text


def _number(text: str, maximum: float = math.inf) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 < value <= maximum and value < math.inf):
        bounds = "above 0" if maximum == math.inf else f"above 0 and up to {maximum:g}"
        raise argparse.ArgumentTypeError(f"{text!r} is not a number {bounds}")
    return value


def _not_negative(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def _call(text: str) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """A name, or a call with plain arguments, such as ``Every(50)``: (name, args, keywords)."""
    wrong = argparse.ArgumentTypeError(
        f"{text!r} is neither a name nor a call with plain arguments, such as 'Every(50)'")
    try:
        node = ast.parse(text, mode="eval").body
        if isinstance(node, ast.Name | ast.Constant):
            return text, (), {}
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            raise wrong
        return (node.func.id, tuple(ast.literal_eval(value) for value in node.args),
                {str(key.arg): ast.literal_eval(key.value) for key in node.keywords})
    except (SyntaxError, ValueError):
        raise wrong from None


def _below_one(text: str) -> float:
    value = _number(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and below 1")
    return value


def _count(text: str) -> int:
    """A whole number, which may be written as 1e8."""
    value = _number(text)
    if value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(value)


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0 and below 1")
    return value


def _fraction_or_auto(text: str) -> float | str:
    """A fraction in (0, 1], or "auto"."""
    if text == "auto":
        return text
    try:
        return _number(text, maximum=1.0)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, nor 'auto'") from None
