"""`sparselsh train`, on rows of features: network and optimizer from the options, and files.

    split ─► new network, or that of a checkpoint ─► fit or resume ─► refine, calibrate ─► save
"""
from __future__ import annotations

import os
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from ._arguments import EPOCHS_FROM_RANDOM
from ._files import (
    UserError,
    check_outputs,
    load_network,
    read_matching,
    read_or_open,
    unwritable,
    write_json,
)
from ._records import check_no_columns
from ._report import describe, silent, summary

if TYPE_CHECKING:
    import argparse

    from ..callbacks import Callback
    from ..network import Network

SHARED_IDS: dict[str, Any] = {"auto": "auto", "yes": True, "no": False}


def train(args: argparse.Namespace) -> None:
    """Train a network on a file, measure it on another, save it."""
    check_no_columns(args, args.train)
    if args.resume:
        check_resumed(args)
    checkpoint = args.checkpoint or args.resume
    check_train_outputs(args, checkpoint)
    from . import _measure

    is_first = _is_first(args)
    say = print if is_first and not args.quiet else silent
    resumed = _resumed(args) if args.resume else None
    X, Y, n_labels = read_or_open(args.train, resumed, of=args.resume, ids=args.first_feature)
    say(describe("train", X, Y))
    if args.test:
        X_test, Y_test = read_matching(args.test, X.shape[1], n_labels, of=args.train,
                                       ids=args.first_feature)
        say(describe("test", X_test, Y_test))

    net = resumed or new_network(args, X.shape[1], n_labels)
    fraction, validation = _validation(args, X.shape[1], n_labels)
    weight, held_out = _split(args, fraction, X, Y, n_labels)
    options = {"callbacks": callbacks(args, checkpoint), "verbose": not args.quiet,
               "sample_weight": weight, "on_nonfinite": args.on_nonfinite,
               "validation": held_out if fraction is not None else validation}
    try:
        if resumed:
            is_done = net.training_progress.is_done and args.epochs is None
            say(f"{len(net.history)} epochs are done"
                + (": the training is complete" if is_done else ""))
            wall, cpu = _measure.seconds(partial(net.resume, epochs=args.epochs), X, Y, **options)
        else:
            wall, cpu = _measure.seconds(partial(_fit, net, args), X, Y, **options)
    except KeyboardInterrupt:
        raise interrupted(checkpoint) from None

    refining = _measure.seconds(partial(_finish, net, args, held_out), X, Y, sample_weight=weight)
    report: dict[str, Any] = {"train_seconds": wall + refining[0],
                              "train_cpu_seconds": cpu + refining[1],
                              "refined": net.refinement is not None,
                              "computed_share": float(net.computed_share)}
    if args.model:  # before the test, in case that fails
        save(net, args.model)

    if args.test:
        report |= _measure.quality(net, X_test, Y_test)[0]
    report["peak_rss_bytes"] = _measure.peak_rss()
    say(summary(report))
    if is_first:
        write_json(args.json, report)


def _is_sharded(args: argparse.Namespace) -> bool:
    """Whether the network is one of shards."""
    return (getattr(args, "shards", None) is not None
            or bool(args.resume and os.path.isdir(args.resume)))


def _is_first(args: argparse.Namespace) -> bool:
    """Whether this process writes and prints, of those that were started together."""
    from .. import distributed

    if _is_sharded(args):
        args.group = distributed.group()
        return args.group.rank == 0
    if distributed.launched_processes() > 1:
        raise UserError("several processes were started together, but without --shards each would "
                        "train the same network; give --shards, a power of two")
    return True


def interrupted(checkpoint: str | None) -> KeyboardInterrupt:
    """What ends the command, with the remedy."""
    return KeyboardInterrupt(f"continue with --resume {checkpoint}" if checkpoint else "")


def check_resumed(args: argparse.Namespace) -> None:
    """Refuse options that are in the file of the training."""
    given = [name for name in getattr(args, "given", []) if name != "--effort"]
    given += [] if args.shuffle else ["--no-shuffle"]
    if given:
        raise UserError(f"{given[0]}: a resumed training keeps the options it was started with; "
                        "leave it out")


def check_train_outputs(args: argparse.Namespace, checkpoint: str | None = None) -> None:
    """Refuse, before any work, outputs that cannot be written."""
    overwrites = (checkpoint and args.resume
                  and os.path.realpath(checkpoint) == os.path.realpath(args.resume))
    valid = args.validation if args.validation and os.path.exists(args.validation) else None
    if _is_sharded(args):
        check_outputs([args.json, args.log], inputs=[args.train, args.test, valid])
        for path in filter(None, (args.model, checkpoint)):
            if os.path.exists(path) and not os.path.isdir(path):
                raise UserError(f"{path!r}: is a file; a network of shards is a folder: give "
                                "another name")
        return
    check_outputs([args.model, args.json, args.log, None if overwrites else checkpoint],
                  inputs=[args.train, args.test, args.resume, valid])
    for path in filter(None, (args.model, checkpoint)):
        if os.path.exists(path) and not os.path.isfile(path):
            raise UserError(f"{path!r}: is a device or a pipe; give the name of a file")


def save(model: Any, path: str) -> None:
    """Save a network or a tagger; an error names the file and the remedy."""
    try:
        model.save(os.path.realpath(path))  # does not replace a symbolic link
    except OSError as error:
        raise unwritable(path, error) from error


def new_network(args: argparse.Namespace, n_features: int, n_labels: int) -> Network:
    """The untrained network that the options describe."""
    import sparselsh as sl
    from sparselsh import _recipe, distributed, hashing, rebuild

    activation = None if args.activation == "none" else args.activation
    n_hidden = args.hidden or _recipe.EFFORTS[args.effort].n_hidden
    hidden = sl.Linear(n_features, n_hidden, activation=activation, dropout=args.dropout or 0,
                       dtype=args.dtype)
    last = sl.LSHLinear(
        n_hidden, n_labels, density=args.density, active=args.active,
        candidates=args.candidates, policy=args.policy, n_probes=args.n_probes, plan=args.plan,
        family=made(args.family, "--family", hashing, hashing.__all__),
        rebuild=made(args.rebuild, "--rebuild", rebuild, rebuild.__all__),
        recall=args.recall, dtype=args.dtype)
    if _is_sharded(args):
        return distributed.ShardedNetwork(
            [hidden, last], shards=args.shards, group=args.group, loss=args.loss,
            random_state=args.seed, n_threads=args.threads)
    return sl.Network([hidden, last], loss=args.loss, random_state=args.seed,
                      n_threads=args.threads)


def made(call: tuple[str, tuple[Any, ...], dict[str, Any]] | None, option: str, module: Any,
         names: list[str]) -> Any:
    """The object that an option describes, such as ``Every(50)``; None for none."""
    if call is None:
        return None
    name, arguments, keywords = call
    kind = getattr(module, name, None)
    if name not in names or not isinstance(kind, type):
        known = ", ".join(n for n in names if isinstance(getattr(module, n), type))
        raise UserError(f"{option} {name}: is none of {known}")
    try:
        return kind(*arguments, **keywords)
    except (TypeError, ValueError) as error:
        raise UserError(f"{option} {name}: {error}") from error


def _optimizer(args: argparse.Namespace, lr: float, from_labels: bool) -> Any:
    from .. import schedules
    from ..optim import SGD, Adam

    name = args.schedule[0]
    schedule: Any = None if name == "none" else name
    if name not in ("none", "linear", "cosine"):
        schedule = made(args.schedule, "--schedule", schedules, schedules.__all__)
    options = {"schedule": schedule, "weight_decay": args.weight_decay,
               "clip_norm": args.clip_norm, "state_dtype": args.state_dtype}
    if args.optimizer == "sgd":
        if args.second_moment is not None:
            raise UserError("--second-moment: is for --optimizer adam; leave it out")
        return SGD(lr, momentum=args.momentum, **options)
    if "--momentum" in getattr(args, "given", []):
        raise UserError("--momentum: is for --optimizer sgd; leave it out")
    default = "row" if from_labels else "element"
    return Adam(lr, second_moment=args.second_moment or default, **options)


def _fit(net: Network, args: argparse.Namespace, X: Any, Y: Any, *, sample_weight: Any,
         **options: Any) -> None:
    """Train a new network, by the recipe for many labels where it applies."""
    from .. import _recipe

    from_labels = args.init == "labels" or (args.init == "auto" and _recipe.suits(net, X))
    epochs, lr = args.epochs, args.lr
    if args.optimizer == "sgd" and lr is None:
        raise UserError("--optimizer sgd: needs --lr, such as --lr 0.1")
    optimizer = _optimizer(args, lr or 1e-2, from_labels)  # refuses options before any work
    if from_labels:
        epochs = epochs or _recipe.EFFORTS[args.effort].epochs
        n_steps = _recipe.steps(X.shape[0], args.batch_size, epochs)
        optimizer = _optimizer(args, lr or _recipe.rate(n_steps), from_labels)
        _recipe.begin(net, X, Y, n_steps, dropout=args.dropout,
                      shared_ids=SHARED_IDS[args.shared_ids], sample_weight=sample_weight)
    net.fit(X, Y, sample_weight=sample_weight, optimizer=optimizer,
            epochs=epochs or EPOCHS_FROM_RANDOM, batch_size=args.batch_size, window=args.window,
            shuffle=args.shuffle, **options)


def _validation(args: argparse.Namespace, n_features: int,
                n_labels: int) -> tuple[float | None, Any]:
    """The fraction of the rows to validate on, or the rows of a file."""
    if args.validation is None:
        check_early_stopping(args)
        return None, None
    fraction = validation_fraction(args)
    if fraction is not None:
        return fraction, None
    return None, read_matching(args.validation, n_features, n_labels, of=args.train,
                               ids=args.first_feature)


def check_early_stopping(args: argparse.Namespace) -> None:
    """Refuse --early-stopping without rows by which to stop."""
    if args.early_stopping and args.validation is None:
        raise UserError("--early-stopping: needs --validation, such as --validation 0.1")


def validation_fraction(args: argparse.Namespace) -> float | None:
    """--validation as a fraction, or None where it is a file; UserError for other numbers."""
    try:
        fraction = float(args.validation)
    except ValueError:
        return None
    if os.path.exists(args.validation):
        return None
    if not 0 < fraction <= 0.5:
        raise UserError(f"--validation {args.validation}: is neither a file nor a fraction above 0 "
                        "and up to 0.5")
    if args.hold_out is not None:
        raise UserError("--hold-out: the rows of --validation are held out; leave one of them out")
    return fraction


def _split(args: argparse.Namespace, fraction: float | None, X: Any, Y: Any,
           n_labels: int) -> tuple[Any, Any]:
    """Leave rows out for the calibration; the same ones where a training is resumed."""
    from .. import _recipe

    n_rows = args.hold_out
    if fraction is not None:
        n_rows = round(fraction * X.shape[0])
        if n_rows == 0:
            raise UserError(f"--validation {args.validation}: of {X.shape[0]} rows is none; give a "
                            "larger fraction, or a file")
    elif n_rows is not None and n_rows > X.shape[0] // 2:
        raise UserError(f"--hold-out {n_rows}: {args.train!r} has {X.shape[0]} rows; give at most "
                        "half of them")
    return _recipe.split(X, Y, n_labels, n_rows)


def _finish(net: Network, args: argparse.Namespace, held_out: Any, X: Any, Y: Any,
            sample_weight: Any) -> None:
    """Refine a trained network, and calibrate its probabilities."""
    from .. import _recipe
    from ..calibration import MIN_FIT_ROWS

    options = {"sample_weight": sample_weight, "verbose": not args.quiet}
    if args.refine == "yes":
        net.refine(X, Y, **options)
    elif args.refine == "auto" and net.refinement is None and _recipe.suits(net, X):
        _recipe.refine(net, X, Y, held_out, effort=args.effort, **options)
    if held_out is None:
        return
    if args.validation is not None and held_out[0].shape[0] < MIN_FIT_ROWS:
        print(f"sparselsh: note: {held_out[0].shape[0]} rows of --validation are too few to "
              "calibrate probabilities; the model gives none", file=sys.stderr)
        return
    net.calibrate(*held_out)


def _resumed(args: argparse.Namespace) -> Network:
    """The network of a checkpoint, whose training can be continued."""
    net = load_network(args.resume, args.threads, getattr(args, "group", None))
    if getattr(net, "training_progress", None) is None:
        raise UserError(f"{args.resume!r}: holds a network, but no training to continue; give a "
                        "file that `sparselsh train --checkpoint` has written")
    return net


def callbacks(args: argparse.Namespace, checkpoint: str | None = None) -> list[Callback]:
    """What happens beside the steps of the training."""
    from ..callbacks import Checkpoint, EarlyStopping, Log

    found: list[Callback] = []
    if args.early_stopping:
        found.append(EarlyStopping(patience=args.early_stopping,
                                   restore_best=not _is_sharded(args)))
    if args.log is not None:
        try:
            found.append(Log(args.log))
        except ValueError as error:
            raise UserError(f"--log: {error}") from error
    if checkpoint is not None:
        if _is_sharded(args):
            from ..distributed import Checkpoint as ShardedCheckpoint

            found.append(ShardedCheckpoint(checkpoint))
        else:
            found.append(Checkpoint(checkpoint))
    return found
