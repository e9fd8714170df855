"""Models in files, of any kind: load, and the commands `info`, `compress` and `serve`."""
from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from ._files import UserError, check_outputs, load_network, unwritable, write_json

if TYPE_CHECKING:
    import argparse

INDEX = "sparselsh.index"  # a format in the metadata


def load_model(path: str, n_threads: int | None = None, mmap: bool = False) -> Any:
    """The network, compressed network or tagger of a file, or the network of a folder of shards.

    With `mmap` the weights of a compressed network stay in the file.
    """
    from ..text import load

    if os.path.isdir(path):
        return load_network(path, n_threads)
    return load(path, n_threads=n_threads, mmap=mmap)


def info(args: argparse.Namespace) -> None:
    """Print what a file holds."""
    check_outputs([args.json], inputs=[args.model])
    report = _described(args.model)
    width = max(map(len, report)) + 2
    for name, value in report.items():
        shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
        print(f"{name.replace('_', ' '):<{width}}{shown}")
    write_json(args.json, report)


def _described(path: str) -> dict[str, Any]:
    import sparselsh as sl

    from .. import _files
    from .._display import size

    kind = "" if os.path.isdir(path) else _files.metadata(path).get("format", "")
    n_bytes = _bytes_of(path)
    report: dict[str, Any] = {"file": path, "size": size(n_bytes), "bytes": n_bytes}
    if kind == INDEX:
        raise UserError(f"{path!r}: holds an index of neurons, not a model; read it with "
                        "sparselsh.LSHIndex.load")
    model = load_model(path, mmap=True)
    net = getattr(model, "network_", model)
    report["kind"] = {"Network": "network", "Tagger": "tagger of texts",
                      "Recommender": "recommender of items",
                      "InferenceNetwork": "compressed or converted network, which only answers",
                      }.get(type(model).__name__, type(model).__name__)
    report |= {"features": net.n_features, "labels": net.n_labels,
               "layers": " -> ".join(map(str, [net.n_features,
                                               *(layer.n_out for layer in net.layers)])),
               "refined": net.refinement is not None}
    for what in ("tags", "items"):
        if hasattr(model, f"{what}_"):
            names = getattr(model, f"{what}_").tolist()
            report[what] = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    if not isinstance(net, sl.Network):
        report["storage"] = ", ".join(dict.fromkeys(
            layer.storage for layer in net.layers))
        report["probabilities"] = getattr(net, "calibration", None) is not None
        return report

    report |= {"loss": repr(net.loss), "weights": net.layers[-1].dtype,
               "probabilities": net.calibration is not None}
    if net.calibration is not None and not hasattr(net.calibration.threshold, "__len__"):
        report["threshold"] = round(float(net.calibration.threshold), 4)
    progress = net.training_progress
    if progress is not None:
        state = "complete" if progress.is_done else "can be resumed"
        report |= {"optimizer": repr(net.optimizer),
                   "training": f"{progress.epoch} of {progress.epochs} epochs, {state}"}
        last = net.history[-1] if net.history else {}
        report |= {name: round(last[name], 4) for name in ("loss", "val_loss", "p_at_1")
                   if name in last and name != "loss"}
    return report


def _bytes_of(path: str) -> int:
    """Size of a file, or of all files of a folder of shards."""
    if not os.path.isdir(path):
        return os.path.getsize(path)
    return sum(os.path.getsize(os.path.join(folder, name))
               for folder, _, names in os.walk(path) for name in names)


def compress(args: argparse.Namespace) -> None:
    """Write a model with weights of fewer bits."""
    check_outputs([args.output], inputs=[args.model, args.calibration])
    import sparselsh as sl

    from .._display import size
    from ._serving import read_inputs

    model = load_model(args.model, args.threads)
    if isinstance(getattr(model, "network_", model), sl.InferenceNetwork):
        raise UserError(f"{args.model!r}: is compressed or converted already; give the file that "
                        "`sparselsh train --model` has written")
    X = None
    if not isinstance(model, sl.Network):
        if args.calibration is not None:
            raise UserError(f"--calibration: {args.model!r} holds a {type(model).__name__}, of "
                            "which no plans are chosen; leave it out")
        small = model.compressed(args.storage)
    else:
        X = None if args.calibration is None else read_inputs(args.calibration)
        small = sl.InferenceNetwork.from_network(model, X, storage=args.storage,
                                                 n_threads=args.threads)
    try:
        small.save(os.path.realpath(args.output))
    except OSError as error:
        raise unwritable(args.output, error) from error
    before, after = _bytes_of(args.model), _bytes_of(args.output)
    print(f"{args.output}: {size(after)}, {after / before:.0%} of {size(before)}; weights in "
          f"{args.storage}")
    if X is not None:
        print(small.report)


def serve(args: argparse.Namespace) -> None:
    """Answer over HTTP until SIGTERM or Ctrl-C."""
    try:
        from ..serving import Limits, serve
    except ImportError as error:
        raise UserError(f"serve: {error.name or error} is missing; type pip install "
                        '"sparselsh-nn[serve]"') from error
    if args.port > 65535:
        raise UserError(f"--port {args.port}: must be at most 65535")
    limits = Limits(max_bytes=args.max_bytes, max_items=args.max_items,
                    max_waiting=args.max_waiting, batch=args.batch, timeout=args.timeout,
                    rate=args.rate)

    def ready(host: str, port: int) -> None:
        place = f"[{host}]" if ":" in host else host
        print(f"sparselsh: {args.model} at http://{place}:{port}/, {args.workers} workers",
              file=sys.stderr, flush=True)

    model = load_model(args.model, n_threads=1, mmap=True)
    try:
        serve(model, host=args.host, port=args.port, workers=args.workers, n_threads=args.threads,
              limits=limits, name=os.path.basename(args.model), ready=ready)
    except OSError as error:
        if error.filename is not None:
            raise
        raise UserError(f"--host {args.host} --port {args.port}: cannot be used "
                        f"({error.strerror or error}); choose another port") from error
