"""Digests of what the library computes: a refactoring that changes no bit changes none of them.

usage: python -P bench/digests.py OUT.json [--threads 1 2] [--s20k TRAIN TEST] [--tib TRAIN TEST]
           [--files DIR] [--read DIR] [--only WORD ...]
       python -P bench/digests.py --compare BEFORE.json AFTER.json [--threads 1] [--only WORD ...]

Run it before and after, on one machine with the same packages and the same options, and compare.
Exit code 1: a digest differs or is missing, depends on the number of threads, or a part has failed.

Design
------
a. Only public names are used, so that the same script runs before and after.
b. A digest is the SHA-256 of dtype, shape and bytes of arrays, and of plain values. Seconds,
   versions and prose are left out. So are the raw bytes of safetensors files, whose metadata stand
   in random order: tensors and parsed metadata are digested instead.
c. What is chosen by the clock is chosen by a clock of ours: `Clock` takes the place of
   `time.perf_counter` before the library is imported. Where it is "even" no plan gains and layers
   stay dense; where it is "falling" the plan that is tried last wins: "lsh" or "rows".
d. Every part runs for each number of threads. All digests must agree between them, but those of
   single queries of converted networks: a large dense layer is then summed in another order.
e. `--files DIR` keeps the files that the part "files" writes. `--read DIR` answers with files that
   another version kept there; the names of these digests ("read ...") do not depend on the option.
f. Data are files in XMC text. Most parts train on 2,000 rows of `--s20k`, any file of some
   thousand labels; `--tib` is for the two trainings of the command line on a larger one.
"""
import argparse
import contextlib
import copy
import functools
import hashlib
import importlib.util
import io
import itertools
import json
import os
import pickle
import platform
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # rotations are factorized by it

import numpy as np
import scipy.sparse as sp


class Clock:
    """A `perf_counter` that can be told what to show."""

    def __init__(self, real):
        self.real, self.now, self.step, self.factor = real, 0.0, None, 1.0

    def __call__(self):
        if self.step is None:
            return self.real()
        self.now += self.step
        self.step *= self.factor
        return self.now

    @contextlib.contextmanager
    def showing(self, kind):
        """ "even": a step per reading. "falling": each step is shorter than the one before."""
        self.now, self.step = 0.0, 1e-3
        self.factor = {"even": 1.0, "falling": 0.98}[kind]
        try:
            yield
        finally:
            self.step = None


CLOCK = time.perf_counter = Clock(time.perf_counter)

import sparselsh as sl  # noqa: E402  (after the clock)
from sparselsh import callbacks, rebuild, schedules  # noqa: E402

FEW_ROWS, FEW_FEATURES, FEW_LABELS = 2000, 16_384, 8192  # of the training set of --s20k
TEST_ROWS = 200
HIDDEN = 48
KS = (1, 5, 100)
N_WIDE = 4224  # outputs of networks to convert: from 4,096 on an index may serve them
LEFT_OUT = {  # of metadata, reports and histories: times, versions, prose
    "seconds", "cpu_seconds", "samples_per_second", "microseconds", "microseconds_dense", "times",
    "milliseconds", "train_seconds", "train_cpu_seconds", "microseconds_per_query",
    "peak_rss_bytes", "reason", "why", "version", "checksum", "function",
}
PARTS = {}


# --- digests ----------------------------------------------------------------------------------


def digest(value):
    """The SHA-256 of arrays and plain values, nested in any way."""
    state = hashlib.sha256()
    _feed(state, value)
    return state.hexdigest()


def _feed(state, value):
    if sp.issparse(value):
        value = {"shape": value.shape, "indptr": value.indptr, "indices": value.indices,
                 "data": value.data}
    if isinstance(value, dict):
        value = [(key, value[key]) for key in sorted(value, key=str) if key not in LEFT_OUT]

    if isinstance(value, np.ndarray) and value.dtype != object:
        state.update(f"array {value.dtype.str} {value.shape}".encode())
        state.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, (list, tuple, np.ndarray)):
        state.update(f"list {len(value)}".encode())
        for entry in value:
            _feed(state, entry)
    elif isinstance(value, np.generic):
        _feed(state, value.item())
    elif isinstance(value, bytes):
        state.update(b"bytes" + value)
    elif value is None or isinstance(value, (bool, int, float, str)):
        state.update(f"{type(value).__name__} {value!r};".encode())
    else:
        raise TypeError(f"no digest of {type(value).__name__}")


def contents(path):
    """Tensors and parsed metadata of a safetensors file."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        metadata = dict(file.metadata() or {})
    for name in tensors:
        if name.endswith("bucket_ids"):
            tensors[name] = used_slots(tensors, name.removesuffix("ids"))
    return tensors, metadata | {"config": json.loads(metadata["config"])}


def used_slots(tensors, prefix):
    """The neurons in the buckets of tables; -1 for the room between them, which nobody writes."""
    ids = np.full_like(tensors[f"{prefix}ids"], -1)
    for t, (start, count) in enumerate(zip(tensors[f"{prefix}start"], tensors[f"{prefix}count"],
                                           strict=True)):
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        slots = np.repeat(start, count) + within
        ids[t, slots] = tensors[f"{prefix}ids"][t, slots]
    return ids


class Run:
    """The digests of one number of threads, and what the parts need."""

    def __init__(self, args, n_threads, folder):
        self.args, self.n_threads, self.folder = args, n_threads, Path(folder)
        self.is_first = n_threads == args.threads[0]
        self.digests, self.part = {}, ""
        self._numbers = itertools.count()

    def add(self, name, value):
        name = f"{self.part}: {name}"
        if name in self.digests:
            raise ValueError(f"the name {name!r} is taken")
        self.digests[name] = digest(value)

    def path(self, suffix):
        """A new name in the temporary folder."""
        return str(self.folder / f"{next(self._numbers)}{suffix}")

    def safetensors(self, name, path):
        tensors, metadata = contents(path)
        self.add(f"{name}, tensors", tensors)
        self.add(f"{name}, metadata", metadata)

    def network(self, name, net, X=None):
        """Weights, history, the state of the training and, with inputs, hashed answers."""
        self.add(f"{name}, weights", [[layer.weight, layer.bias] for layer in net.layers])
        self.add(f"{name}, history", net.history)
        path = self.path(".safetensors")
        net.save(path, training_state=True)
        self.safetensors(f"{name}, checkpoint", path)
        os.remove(path)
        if X is not None:
            self.add(f"{name}, topk", net.topk(X, 5))

    @functools.cached_property
    def few(self):
        """X and Y of some training rows, and of test rows: a part of the features and labels."""
        parts = []
        for path, n_rows in zip(self.args.s20k, (FEW_ROWS, TEST_ROWS), strict=True):
            X, Y = (a.tocsr() for a in sl.datasets.read_xmc(path))
            X, Y = X[:, :FEW_FEATURES], Y[:, :FEW_LABELS]
            labelled = np.flatnonzero(np.diff(Y.indptr))
            rows = labelled[np.linspace(0, len(labelled) - 1, n_rows).astype(int)]
            parts += [X[rows], Y[rows]]
        return parts


def part(*needs):
    """Register a function of a Run under its name; `needs` are options and packages."""

    def register(function):
        PARTS[function.__name__.replace("_", " ")] = function, needs
        return function

    return register


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


# --- trainings --------------------------------------------------------------------------------


def network(run, *, hidden=None, loss="softmax", **output):
    """Two layers for the few rows: a linear hidden layer and a hashed output layer."""
    n_features, n_labels = run.few[0].shape[1], run.few[1].shape[1]
    output = {"density": 0.1} | output
    return sl.Network([sl.Linear(n_features, HIDDEN, **(hidden or {})),
                       sl.LSHLinear(HIDDEN, n_labels, **output)], loss=loss, random_state=0)


def trained(run, name, net=None, optimizer=None, **options):
    """Train a network on the few rows and make its digests."""
    X, Y, X_test, _ = run.few
    net = network(run) if net is None else net
    options = {"X": X, "Y": Y, "epochs": 1, "verbose": False} | options
    net.fit(options.pop("X"), options.pop("Y"), optimizer=optimizer, **options)
    run.network(name, net, X_test[:40])
    return net


def command(run, *arguments):
    from sparselsh.cli import main

    with contextlib.redirect_stdout(io.StringIO()):
        code = main([*map(str, arguments)])
    if code:
        raise RuntimeError(f"sparselsh {' '.join(map(str, arguments))}: exit code {code}")


def some_rows(run, path):
    """A file of the first rows of another: answers for all of them would take long."""
    X, Y = sl.datasets.read_xmc(path)
    some = run.path(".txt")
    sl.datasets.write_xmc(some, X[:TEST_ROWS], Y[:TEST_ROWS])
    return some


def by_command(run, name, train, test, *options):
    """Train, predict and evaluate by the command line."""
    model, checkpoint = run.path(".safetensors"), run.path(".safetensors")
    text, figures = run.path(".txt"), run.path(".json")
    command(run, "train", train, "--test", test, "--model", model, "--checkpoint", checkpoint,
            "--json", figures, "--threads", run.n_threads, "--quiet", *options)
    run.add(f"{name}, train --json", json.loads(Path(figures).read_text()))
    run.safetensors(f"{name}, model", model)
    run.safetensors(f"{name}, checkpoint", checkpoint)

    for extra in ((), ("--exact",), ("-k", 100, "--no-scores")):
        command(run, "predict", model, test, "--output", text, "--threads", run.n_threads, *extra)
        run.add(f"{name}, predict {' '.join(map(str, extra))}", Path(text).read_bytes())
    command(run, "evaluate", model, test, "--train", train, "--json", figures,
            "--threads", run.n_threads)
    run.add(f"{name}, evaluate", json.loads(Path(figures).read_text()))
    for path in (model, checkpoint):
        os.remove(path)


@part("tib")
def command_on_tib(run):
    train, test = run.args.tib[0], some_rows(run, run.args.tib[1])
    by_command(run, "recipe", train, test)
    by_command(run, "random", train, test, "--init", "random", "--refine", "no", "--epochs", 1)


@part("s20k")
def command_on_s20k(run):
    by_command(run, "recipe", run.args.s20k[0], some_rows(run, run.args.s20k[1]))
    X, Y, X_test, Y_test = run.few
    train, test, rows = run.path(".txt"), run.path(".txt"), run.path(".csr")
    sl.datasets.write_xmc(train, X, Y)
    sl.datasets.write_xmc(test, X_test, Y_test)
    command(run, "convert", train, rows)
    random = ("--init", "random", "--refine", "no")
    by_command(run, "random", train, test, *random)
    by_command(run, "file", rows, test, *random, "--window", 1000, "--epochs", 2, "--lr", 0.02,
               "--activation", "relu", "--dropout", 0.2, "--hidden", 96, "--batch-size", 100)
    by_command(run, "bce", train, test, "--loss", "bce", "--density", 0.1, "--epochs", 1)
    by_command(run, "refined", train, test, "--init", "labels", "--refine", "yes",
               "--shared-ids", "no", "--epochs", 1)


@part("s20k")
def output_layers(run):
    variants = {
        "defaults": {"density": "auto"}, "density 0.02": {"density": 0.02}, "dense": {"density": 1},
        "relu": {"activation": "relu"}, "not filled": {"fill": False, "density": 0.05},
        "random": {"candidates": 0, "density": 0.05}, "candidates": {"candidates": 12},
        "min_count": {"min_count": 2, "n_probes": 2}, "recall": {"recall": 0.9},
        "score": {"policy": "score"}, "vanilla": {"policy": "vanilla"},
        "sample": {"active": "sample"}, "bfloat16": {"dtype": "bfloat16"},
        "sample, bfloat16": {"active": "sample", "dtype": "bfloat16"},
    }
    for name, options in variants.items():
        hidden = {"dtype": "bfloat16"} if options.get("dtype") else {}
        trained(run, name, network(run, hidden=hidden, **options))
    for name, hidden in {"relu": {"activation": "relu"}, "dropout": {"dropout": 0.3},
                         "scale": {"init_scale": 0.5, "activation": "relu"}}.items():
        trained(run, f"hidden {name}", network(run, hidden=hidden))


@part("s20k")
def sample_sets(run):
    families = {
        "SimHash": sl.SimHash(bits=8, tables=6),
        "SimHash sparse": sl.SimHash(bits=8, tables=6, projection="sparse"),
        "SimHash orthogonal": sl.SimHash(bits=8, tables=6, projection="orthogonal"),
        "CrossPolytope": sl.CrossPolytope(polytopes=2, tables=6, dims=16),
        "DWTA": sl.DWTA(bins=4, tables=6, bin_size=8), "MinHash": sl.MinHash(hashes=2, tables=6),
    }
    for (name, family), policy in itertools.product(families.items(), ("top", "score", "vanilla")):
        n_probes = 1 if name == "MinHash" else 2
        net = network(run, active="sample", density=0.01, family=family, policy=policy,
                      n_probes=n_probes, min_count=1 + (policy == "top"), fill=policy != "vanilla")
        trained(run, f"{name}, {policy}", net, X=run.few[0][:600], Y=run.few[1][:600])
    for policy, plan in (("sketches", "auto"), ("sketches", "gather"), ("top", "rows")):
        options = {"oversample": 3, "sketch_bits": 192} if policy == "sketches" else {}
        net = network(run, active="sample", density=0.01, policy=policy, plan=plan, **options)
        trained(run, f"{policy}, {plan}", net, X=run.few[0][:600], Y=run.few[1][:600])


@part("s20k")
def rebuild_policies(run):
    X, Y = run.few[0][:1500], run.few[1][:1500]
    policies = {
        "AtOnce": rebuild.AtOnce(first=3), "Every": rebuild.Every(4),
        "Exponential": rebuild.Exponential(2, 0.3), "OnDrift": rebuild.OnDrift(0.02, 2),
        "Frozen": rebuild.Frozen(1, before=rebuild.Exponential(2, 0.3)),
    }
    for (name, policy), active in itertools.product(policies.items(), ("batch", "sample")):
        net = network(run, active=active, density=0.02, rebuild=policy)
        trained(run, f"{name}, {active}", net, X=X, Y=Y, batch_size=100, epochs=2)


def half_way(progress):
    return 1.0 if progress < 0.5 else 0.25


@part("s20k")
def optimizers(run):
    variants = {
        "Adam": sl.Adam(5e-3), "Adam per row": sl.Adam(5e-3, second_moment="row"),
        "Adam bfloat16": sl.Adam(5e-3, state_dtype="bfloat16"),
        "Adam decay": sl.Adam(5e-3, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.02),
        "Adam clipped": sl.Adam(5e-3, clip_norm=0.05),
        "Adam clipped per row": sl.Adam(5e-3, clip_norm=0.05, second_moment="row"),
        "SGD": sl.SGD(0.5), "SGD momentum": sl.SGD(0.5, momentum=0.9, weight_decay=1e-4),
        "SGD Nesterov": sl.SGD(0.5, momentum=0.9, nesterov=True, clip_norm=0.1),
        "SGD bfloat16": sl.SGD(0.5, momentum=0.9, state_dtype="bfloat16"),
    }
    for name, optimizer in variants.items():
        trained(run, name, optimizer=optimizer, X=run.few[0][:1200], Y=run.few[1][:1200],
                batch_size=100)
    for active in ("batch", "sample"):
        net = network(run, active=active, density=0.05, dtype="bfloat16",
                      hidden={"dtype": "bfloat16"})
        trained(run, f"all bfloat16, {active}", net,
                sl.Adam(5e-3, second_moment="row", state_dtype="bfloat16", clip_norm=0.1))


@part("s20k")
def learning_rates(run):
    kinds = {
        "linear": "linear", "cosine": "cosine", "function": half_way,
        "Linear": schedules.Linear(end=0.1), "Cosine": schedules.Cosine(end=0.1),
        "Step": schedules.Step(at=(0.3, 0.6)), "OneCycle": schedules.OneCycle(),
        "OneCycle linear": schedules.OneCycle(shape="linear"),
        "WarmUp": schedules.WarmUp(0.3, schedules.Cosine()),
    }
    X, Y = run.few[0][:1000], run.few[1][:1000]
    for name, schedule in kinds.items():
        trained(run, name, optimizer=sl.Adam(5e-3, schedule=schedule), X=X, Y=Y, batch_size=100)
        if callable(schedule):
            run.add(f"{name}, factors", [float(schedule(t)) for t in np.linspace(0, 1, 33)])
    trained(run, "OneCycle, SGD", X=X, Y=Y, batch_size=100,
            optimizer=sl.SGD(0.5, momentum=0.9, schedule=schedules.OneCycle()))


@part("s20k")
def losses(run):
    X, Y, X_test, Y_test = run.few
    for loss, active in itertools.product(("softmax", "bce", "mse"), ("batch", "sample")):
        targets = Y.multiply(0.5).tocsr() if loss == "mse" else Y
        net = trained(run, f"{loss}, {active}", network(run, loss=loss, active=active), Y=targets)
        run.add(f"{loss}, {active}, outputs", net.decision_function(X_test[:20]))
        run.add(f"{loss}, {active}, predict", net.predict(X_test[:20]))
    for loss in ("softmax", "bce", "mse"):
        trained(run, f"{loss}, all", network(run, loss=loss, density=1), X=X[:1000], Y=Y[:1000],
                validation=(X_test[:100], Y_test[:100]))
    weights = np.abs(normal(5, X.shape[0]))
    weights[::7] = 0
    for active in ("batch", "sample"):
        trained(run, f"sample_weight, {active}", network(run, active=active),
                sample_weight=weights)
    ids = np.array([Y.indices[start] for start in Y.indptr[:-1]])
    trained(run, "class ids", Y=ids, batch_size=70)
    trained(run, "validation", validation=(X_test, Y_test), epochs=2)


class Chunks:
    """Chunks of rows, without a length."""

    def __init__(self, X, Y, n_rows):
        self.parts = [(X[i:i + n_rows], Y[i:i + n_rows]) for i in range(0, X.shape[0], n_rows)]

    def __iter__(self):
        yield from self.parts


@part("s20k")
def streams(run):
    X, Y, _, _ = run.few
    path = run.path(".csr")
    sl.datasets.write_csr(path, X, Y)
    trained(run, "in order", shuffle=False, batch_size=100)
    with sl.datasets.open_csr(path) as file:
        for window in (700, 65_536):
            trained(run, f"file, window {window}", X=file, Y=None, window=window, epochs=2)
        run.add("chunks of a file", [a for chunk in file.chunks(1300) for a in chunk])
        run.add("rows of a file", [*file[np.array([5, 3, 1999])], *file[10:200:3]])
    for kind, chunks in (("list", Chunks(X, Y, 800).parts), ("iterable", Chunks(X, Y, 800))):
        trained(run, f"{kind} of chunks", X=chunks, Y=None, epochs=2)
    trained(run, "chunks in order", X=Chunks(X, Y, 800), Y=None, shuffle=False, batch_size=100)
    net = trained(run, "more rows", X=X[:1200], Y=Y[:1200])
    net.partial_fit(X[1200:], Y[1200:], batch_size=90)
    run.network("more rows, partial_fit", net)
    net = network(run).partial_fit(Chunks(X, Y, 800))
    run.network("partial_fit alone", net)


class PressAfter(callbacks.Callback):
    """Press Ctrl-C after a number of steps."""

    def __init__(self, n_steps):
        self.n_left = n_steps

    def on_step(self, network):
        self.n_left -= 1
        if self.n_left == 0:
            signal.raise_signal(signal.SIGINT)


@part("s20k")
def resumed(run):
    X, Y, X_test, Y_test = run.few
    path, best = run.path(".safetensors"), run.path(".safetensors")
    kinds = {"batch": {}, "sample": {"active": "sample", "policy": "vanilla", "density": 0.02},
             "frozen": {"rebuild": rebuild.Frozen(1)}}
    for kind, options in kinds.items():
        fit = {"epochs": 2, "batch_size": 200, "verbose": False, "validation": (X_test, Y_test),
               "optimizer": sl.Adam(5e-3, schedule="cosine")}
        whole = network(run, **options).fit(X, Y, **fit)
        run.network(f"{kind}, whole", whole, X_test)

        net = network(run, **options)
        fit["optimizer"] = sl.Adam(5e-3, schedule="cosine")
        with contextlib.suppress(KeyboardInterrupt):
            net.fit(X, Y, callbacks=[callbacks.Checkpoint(path), PressAfter(14)], **fit)
        run.safetensors(f"{kind}, interrupted", path)
        for name, again in (("file", sl.load(path)), ("memory", net)):
            again.resume(X, Y, validation=fit["validation"], verbose=False)
            run.network(f"{kind}, resumed from {name}", again, X_test)

    trained(run, "early stopping", epochs=6, optimizer=sl.Adam(0.05), validation=(X_test, Y_test),
            callbacks=[callbacks.EarlyStopping(patience=1), callbacks.BestModel(best),
                       callbacks.Checkpoint(path, every_steps=5)])
    run.safetensors("best model", best)


@part()
def deep(run):
    X, y = normal(1, 320, 120), np.random.default_rng(2).integers(0, 30, 320)
    sparse = sp.csr_array(X * (np.abs(X) > 1.2))
    variants = {f"sketches, {plan}": {"plan": plan} for plan in
                ("auto", "dense", "exact", "rows", "gather")}
    variants |= {f"{policy}, {plan}": {"plan": plan, "policy": policy}
                 for policy in ("top", "score", "vanilla") for plan in ("dense", "rows", "gather")}
    variants |= {"linear": {"activation": None}, "dropout": {"dropout": 0.2},
                 "linear, dropout": {"activation": None, "dropout": 0.2},
                 "oversample": {"oversample": 6, "sketch_bits": 64, "plan": "gather"},
                 "bfloat16": {"dtype": "bfloat16", "plan": "gather"},
                 "on drift": {"rebuild": rebuild.OnDrift(0.01, 2), "plan": "gather"}}
    for (name, options), (kind, rows) in itertools.product(
            variants.items(), (("dense", X), ("sparse", sparse))):
        if kind == "dense" and "policy" in options:
            continue
        options = {"density": 0.1, "activation": "relu"} | options
        layers = [sl.LSHLinear(a, b, **options) for a, b in ((120, 384), (384, 256))]
        net = sl.Network([*layers, sl.Linear(256, 30)], random_state=0)
        net.fit(rows, y, optimizer=sl.Adam(5e-3, schedule="linear"), epochs=2, batch_size=64,
                verbose=False)
        run.network(f"{name}, {kind} inputs", net, rows[:50])
    rows = copy.deepcopy(net.profile(X, y, batch_size=128, steps=3).rows)
    run.add("profile", [{k: v for k, v in row.items() if k != "layer"} for row in rows])
    net = sl.Network([sl.LSHLinear(120, 512, density=0.1, activation="relu"),
                      sl.LSHLinear(512, 6000, density=0.01, active="sample")], random_state=0)
    run.network("wide output", net.fit(X, y * 200, epochs=2, verbose=False), X[:50])


@part("s20k")
def many_labels(run):
    X, Y, X_test, _ = run.few
    width = min(X.shape[1], Y.shape[1])
    kinds = {"labels": (network(run), X, X_test, False),
             "relu": (network(run, hidden={"activation": "relu"}), X, X_test, "auto")}
    X_shared, labels = X[:, :width].tocsr(), sp.csr_array(Y[:, :width])
    kinds["shared ids"] = (sl.Network([sl.Linear(width, HIDDEN), sl.LSHLinear(HIDDEN, width)],
                                      random_state=0), X_shared, X_test[:, :width].tocsr(), True)
    for name, (net, rows, asked, shared) in kinds.items():
        net.initialize(rows, labels if shared is True else Y, shared_ids=shared)
        run.network(f"{name}, first weights", net)
        net.fit(rows, labels if shared is True else Y, epochs=1, verbose=False)
        weight = np.abs(normal(3, rows.shape[0])) + 0.1
        net.refine(rows, labels if shared is True else Y, n_negatives=20, sample_weight=weight,
                   verbose=False)
        run.network(f"{name}, refined", net)
        for exact in (False, True):
            run.add(f"{name}, topk, exact={exact}", net.topk(asked[:100], 100, exact=exact))
        run.add(f"{name}, outputs", net.decision_function(asked[:20]))
        net.refinement.scale = 3
        run.add(f"{name}, rescaled", net.topk(asked, 5))


# --- answers ----------------------------------------------------------------------------------


def answers(run, name, net, X, ks=KS):
    """Hashed and exact answers for single rows and batches."""
    for k, exact in itertools.product(ks, (False, True)):
        run.add(f"{name}, k={k}, exact={exact}", net.topk(X, k, exact=exact))
        single = [net.topk(X[i:i + 1], k, exact=exact) for i in range(6)]
        run.add(f"{name}, k={k}, exact={exact}, single", single)
        run.add(f"{name}, k={k}, exact={exact}, three", net.topk(X[:3], k, exact=exact))
    run.add(f"{name}, outputs", net.decision_function(X[:20]))
    run.add(f"{name}, output of one row", net.decision_function(X[:1]))
    run.add(f"{name}, predict", [net.predict(X), net.predict(X, exact=True)])


@part("s20k")
def network_answers(run):
    X, Y, X_test, _ = run.few
    for name, options in {"defaults": {}, "bfloat16": {"dtype": "bfloat16"},
                          "sample": {"active": "sample"}, "dense": {"density": 1}}.items():
        net = network(run, **options).fit(X, Y, epochs=1, verbose=False)
        answers(run, name, net, X_test)
        run.add(f"{name}, dense inputs", net.topk(X_test[:10].toarray(), 5))
        run.add(f"{name}, computed share", net.computed_share)
        net.partial_fit(X[:150], Y[:150])
        run.add(f"{name}, after an update", net.topk(X_test, 5))
        for how, other in (("pickled", pickle.loads(pickle.dumps(net))),
                           ("copied", copy.deepcopy(net))):
            run.add(f"{name}, {how}", other.topk(X_test, 5))

    W, b, H = layer_weights()
    layer = sl.LSHLinear.from_dense(W, b, queries=H, recall=0.95)
    first = sl.Linear(32, W.shape[1], activation="relu").set_weights(normal(8, W.shape[1], 32))
    answers(run, "from_dense", sl.Network([first, layer], random_state=0), normal(9, 120, 32))


@part("s20k")
def metrics(run):
    _, Y, _, Y_test = run.few
    ids = np.random.default_rng(4).integers(0, Y.shape[1], (Y_test.shape[0], 5))
    ids[:, 0] = [Y_test.indices[start] for start in Y_test.indptr[:-1]]
    propensities = sl.metrics.propensities(Y)
    run.add("propensities", propensities)
    for k in (1, 3, 5):
        for measure in ("precision", "recall", "ndcg"):
            run.add(f"{measure}@{k}", getattr(sl.metrics, f"{measure}_at_k")(Y_test, ids, k))
        run.add(f"psp@{k}", sl.metrics.psp_at_k(Y_test, ids, k, propensities))
    run.add("neighbour recall", sl.metrics.neighbour_recall(ids, np.sort(ids, axis=1)[:, :3]))


def estimator(run, name, model, X, proba=True):
    """Answers, curves and the network of a fitted estimator."""
    run.network(name, model.network_)
    run.add(f"{name}, curves", [model.loss_curve_, model.validation_scores_, model.n_iter_,
                                getattr(model, "threshold_", None)])
    run.add(f"{name}, predict", model.predict(X))
    if proba:
        run.add(f"{name}, one row", model.predict_proba(X[:1]))
        for method in ("decision_function", "predict_proba", "predict_log_proba"):
            run.add(f"{name}, {method}", getattr(model, method)(X[:50]))
        n_classes = min(len(model.classes_), 5)
        run.add(f"{name}, topk", [model.predict_topk(X, k, exact=exact)
                                  for k in (1, n_classes) for exact in (False, True)])


@part("s20k", "sklearn")
def multilabel_estimators(run):
    X, Y, X_test, _ = run.few
    Y = sp.csr_array(Y)
    kinds = {"defaults": {}, "random": {"init": "random", "refine": False, "max_iter": 2},
             "early stopping": {"early_stopping": True, "max_iter": 3, "n_iter_no_change": 1},
             "options": {"solver": "sgd", "class_weight": "balanced", "init": "random",
                         "refine": False, "max_iter": 2, "lsh_params": {"active": "sample"}}}
    for name, options in kinds.items():
        model = sl.estimators.LSHClassifier(HIDDEN, random_state=0, **options)
        estimator(run, name, model.fit(X, Y), X_test)
    few = Y[:, np.argsort(-np.bincount(Y.indices, minlength=Y.shape[1]), kind="stable")[:300]]
    model = sl.estimators.LSHClassifier(HIDDEN, random_state=0, max_iter=2).fit(X, few)
    estimator(run, "few labels", model, X_test)
    estimator(run, "few labels, partial_fit", model.partial_fit(X[:500], few[:500]), X_test)


@part("sklearn")
def small_estimators(run):
    X = normal(20, 800, 20)
    y = np.argmax(X[:, :8] + 0.3 * normal(21, 800, 8), axis=1)
    kinds = {"defaults": {"max_iter": 10}, "two hidden": {"hidden_layer_sizes": (64, 256),
                                                         "hidden_density": 0.25, "max_iter": 5},
             "early stopping": {"early_stopping": True, "max_iter": 20},
             "cosine": {"learning_rate": "cosine", "solver": "sgd", "max_iter": 5}}
    for name, options in kinds.items():
        model = sl.estimators.LSHClassifier(random_state=0, **options)
        estimator(run, f"classes, {name}", model.fit(X, y), X[:100])
        model = sl.estimators.LSHRegressor(random_state=0, **options)
        estimator(run, f"values, {name}", model.fit(X, X[:, :2] ** 2), X[:100], proba=False)
    model = sl.estimators.LSHClassifier(random_state=0, warm_start=True, max_iter=3)
    names = np.array(["few", "many"])[(y > 3).astype(int)]
    model.fit(X, names, sample_weight=np.abs(X[:, 0])).fit(X, names)
    estimator(run, "warm start", model, X[:100])
    model.partial_fit(X[:200], names[:200])
    estimator(run, "partial_fit", model, X[:100])


# --- indexes ----------------------------------------------------------------------------------


@functools.cache
def layer_weights(n=6000, d=48):
    """Weights, a bias and queries, in clusters as those of a trained layer are."""
    centres = normal(10, 150, d)
    which = np.random.default_rng(11).integers(0, len(centres), n)
    W = (centres[which] + 0.7 * normal(12, n, d)) * np.exp(0.3 * normal(13, n, 1))
    H = np.maximum(centres[which[:500]] + 0.5 * normal(14, 500, d), 0)
    return np.ascontiguousarray(W), 0.5 * normal(15, n), np.ascontiguousarray(H)


def index_kinds():
    """Arguments of indexes by name."""
    simhash = sl.SimHash(bits=7, tables=10)
    kinds = {
        "sketches": {}, "not centred": {"center": False}, "not scaled": {"scaling": 0},
        "scaled": {"scaling": 0.5}, "fully scaled": {"scaling": 1}, "recall": {"recall": 0.9},
        "short sketches": {"sketch_bits": 64}, "long sketches": {"sketch_bits": 1024},
        "exact": {"plan": "exact"},
    }
    kinds |= {f"{plan}, {storage}": {"plan": plan, "storage": storage, "family": simhash}
              for plan in ("sketches", "probes", "exact") for storage in ("bfloat16", "int8")}
    families = {
        "SimHash": simhash, "CrossPolytope": sl.CrossPolytope(polytopes=1, tables=8, dims=16),
        "sparse SimHash": sl.SimHash(7, 10, projection="sparse"), "DWTA": sl.DWTA(3, 10),
        "orthogonal SimHash": sl.SimHash(7, 10, projection="orthogonal"),
        "MinHash": sl.MinHash(hashes=1, tables=8, bits=8), "auto": "auto",
    }
    for name, family in families.items():
        kinds[f"probes, {name}"] = {"plan": "probes", "family": family}
        kinds[f"dynamic, {name}"] = {"plan": "probes", "family": family, "dynamic": True,
                                     "center": name not in ("DWTA", "MinHash")}
    kinds["tables alone"] = {"plan": "sketches", "family": simhash, "sketch_bits": 0}
    return {name: {"plan": "sketches", "random_state": 0} | kind for name, kind in kinds.items()}


def searches(run, name, index, H):
    """Answers of an index for batches and single queries, and active sets where it has tables."""
    for k in KS:
        found = [index.search(H[:n], k) for n in (1, 3, 10, 200)]
        found += [index.search(H[i:i + 1], k) for i in range(4)]
        run.add(f"{name}, k={k}", found)
    run.add(f"{name}, n_candidates", [index.search(H[:n], 5, n_candidates=n_candidates)
                                      for n in (1, 40) for n_candidates in (5, 33, 700)])
    if index.family_ is None:
        return
    n_probes = 1 if isinstance(index.family_, sl.MinHash) else 2
    active = [index.query(H[:60], n, policy=policy, n_probes=n_probes, seed=3)
              for n in (7, 100) for policy in ("top", "score", "vanilla")]
    run.add(f"{name}, query", [*active, index.query(H[:60], 50, min_count=2)])


def saved_index(run, name, index, W, b, H):
    """What an index and its file hold; the answers of the file must be those of the index."""
    run.add(f"{name}, report", index.report())
    path = run.path(".safetensors")
    index.save(path)
    run.safetensors(f"{name}, file", path)
    searches(run, f"{name}, loaded", sl.LSHIndex.load(path, W, b), H)
    os.remove(path)


@part()
def indexes(run):
    W, b, H = layer_weights()
    for name, kind in index_kinds().items():
        index = sl.LSHIndex(**kind).fit(W, b, queries=H[:300])
        searches(run, name, index, H[200:])
        saved_index(run, name, index, W, b, H[200:])
        if kind.get("sketch_bits") != 0:
            index.tune(H[300:], k=10, recall=0.9)
            run.add(f"{name}, tuned", [index.report(), index.search(H[:200], 10)])
        index = sl.LSHIndex(**kind).fit(W[:1500])
        searches(run, f"{name}, without bias and queries", index, H[200:])


@part()
def index_changes(run):
    W, b, H = layer_weights()
    for name, kind in index_kinds().items():
        W, b = W.copy(), b.copy()
        index = sl.LSHIndex(**kind).fit(W[:5500].copy(), b[:5500].copy(), queries=H[:300])
        index.add(W[5500:], b[5500:])
        run.add(f"{name}, added", index.search(H, 5))
        rows = np.random.default_rng(16).permutation(len(W))[:900].astype(np.int32)
        changed = W.copy()
        changed[rows] += 0.3 * normal(17, len(rows), W.shape[1])
        index.update(changed, rows)
        index.remove(rows[:100])
        searches(run, f"{name}, updated and removed", index, H[200:])
        index.update(changed, rows[:40])
        saved_index(run, f"{name}, brought back", index, changed, b, H[200:])


@part()
def index_plans_by_the_clock(run):
    W, b, H = layer_weights()
    families = {"no tables": None, "SimHash": sl.SimHash(bits=7, tables=10), "auto": "auto"}
    for (name, family), kind in itertools.product(families.items(), ("even", "falling")):
        with CLOCK.showing(kind):
            index = sl.LSHIndex(family, random_state=0).fit(W, b, queries=H[:300])
        searches(run, f"{name}, {kind}", index, H[200:])
        saved_index(run, f"{name}, {kind}", index, W, b, H[200:])


@part()
def hashing(run):
    V = normal(18, 500, 40)
    sparse = np.where(np.abs(V) > 1, V, 0).astype(np.float32)
    families = [sl.SimHash(9, 5, projection) for projection in ("gaussian", "sparse", "orthogonal")]
    families += [sl.CrossPolytope(2, 5, 16), sl.DWTA(4, 5), sl.MinHash(2, 5)]
    for i, family in enumerate(families):
        family.fit(40, random_state=1)
        name = f"{i}, {type(family).__name__}"
        run.add(f"{name}, hash", [family.hash(rows, n_threads=run.n_threads)
                                  for rows in (V, sparse, V[:1], V[:0])])
        n_probes = 1 if isinstance(family, sl.MinHash) else 6
        run.add(f"{name}, probe", family.probe(V, n_probes, n_threads=run.n_threads))
        run.add(f"{name}, law", [float(family.collision_probability(s)) for s in (0.1, 0.5, 0.9)])
    run.add("choice", [(choice.bits, choice.tables) if hasattr(choice, "bits") else choice
                       for choice in (sl.choose_bits_and_tables(density, n)
                                      for density in (0.03, 0.1) for n in (1000, 50_000))])


# --- converted networks -----------------------------------------------------------------------


@functools.cache
def perceptron(sizes=(300, 1024, 256, N_WIDE)):
    """Weights by name of an MLP whose units are rarely active, and inputs of it."""
    arrays = {}
    for i, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
        scale = np.exp(normal(30 + i, 1, n_in)) / np.sqrt(n_in)
        arrays[f"fc{i}.weight"] = np.ascontiguousarray(normal(40 + i, n_out, n_in) * scale)
        arrays[f"fc{i}.bias"] = normal(50 + i, n_out) * 0.3 - (0.5 if n_out < N_WIDE else 0)
    X = normal(60, 420, sizes[0])
    return {name: a.astype(np.float32) for name, a in arrays.items()}, X


def converted(run, name, net, X):
    """Answers, report and file of a converted network."""
    run.add(f"{name}, report", net.report.to_dict())
    answers(run, name, net, X)
    if sp.issparse(X) or X.dtype.kind == "f":
        run.add(f"{name}, sparse inputs", net.topk(sp.csr_array(X[:40]), 5))
    path = run.path(".safetensors")
    net.save(path)
    run.safetensors(f"{name}, file", path)
    for mmap in (False, True):
        loaded = sl.InferenceNetwork.load(path, mmap=mmap)
        run.add(f"{name}, loaded, mmap={mmap}",
                [loaded.topk(X, 5), loaded.topk(X[:1], 5), loaded.predict(X, exact=True)])
    del loaded
    os.remove(path)


def hidden_index():
    """An MLP whose first layer is wide enough for an index, and of which few units matter."""
    arrays, X = perceptron((256, 4352, 64, N_WIDE))
    arrays = dict(arrays)
    arrays["fc1.weight"] = arrays["fc1.weight"] * np.exp(3 * normal(61, 1, 4352))
    return arrays, X


@part()
def conversions(run):
    sizes = {"rows": perceptron, "hidden index": hidden_index}
    for (kind, weights), storage in itertools.product(sizes.items(),
                                                      ("float32", "bfloat16", "int8")):
        arrays, X = weights()
        path = run.path(".npz")
        np.savez(path, **arrays)
        both = (kind, storage) == ("rows", "float32")
        for clock in ("even", "falling") if both else ("falling",):
            with CLOCK.showing(clock):
                net = sl.from_file(path, X[:200], storage=storage, error=0.3, recall=0.9,
                                   random_state=0)
            converted(run, f"{kind}, {storage}, {clock}", net, X[300:])
        os.remove(path)


@part()
def weight_files(run):
    from safetensors.numpy import save_file

    arrays, X = perceptron()
    path, zipped = run.path(".safetensors"), run.path(".npz")
    save_file(arrays, path)
    np.savez(zipped, **{name: a.astype(np.float16) for name, a in arrays.items()})
    for name, options in {"no calibration": {}, "exact": {"error": 0, "k": 3},
                          "two": {"layers": ["fc0", "fc1.weight:fc1.bias"]},
                          "linear": {"activation": None, "layers": "fc[12]"}}.items():
        rows = X if name != "linear" else np.ascontiguousarray(np.tile(X, 4)[:, :1024])
        calibration = None if name == "no calibration" else rows[:300]
        with CLOCK.showing("falling"):
            net = sl.from_file(path, calibration, random_state=0, **options)
        converted(run, name, net, rows[300:])
    with CLOCK.showing("falling"):
        net = sl.from_file(zipped, X[:300], upcast=True, random_state=0)
    converted(run, "float16", net, X[300:])
    command(run, "convert", path, "--layer", "fc0", "--layer", "fc1", "-o", f"{path}.out")
    run.safetensors("by command", f"{path}.out")


@part("onnx")
def onnx_files(run):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    arrays, X = perceptron()
    nodes, value = [], "x"
    for i in range(3):
        weights = [f"fc{i}.weight", f"fc{i}.bias"]
        nodes.append(helper.make_node("Gemm", [value, *weights], [f"z{i}"], transB=1))
        value = f"z{i}"
        if i < 2:
            nodes.append(helper.make_node("Relu", [value], [f"h{i}"]))
            value = f"h{i}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width])
            for name, width in (("x", X.shape[1]), (value, N_WIDE))]
    constants = [numpy_helper.from_array(a, name) for name, a in arrays.items()]
    model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], constants),
                              opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    path = run.path(".onnx")
    onnx.save(model, path)
    with CLOCK.showing("falling"):
        net = sl.from_onnx(path, X[:300], storage="int8", random_state=0)
    converted(run, "Gemm", net, X[300:])
    os.remove(path)


def torch_network(first, last):
    import torch

    arrays, _ = perceptron((64, 512, N_WIDE))
    layers = [torch.nn.Linear(64, 512), torch.nn.ReLU(), torch.nn.Linear(512, N_WIDE)]
    for i, layer in enumerate(layers[::2]):
        layer.weight.data.copy_(torch.from_numpy(arrays[f"fc{i}.weight"]))
        layer.bias.data.copy_(torch.from_numpy(arrays[f"fc{i}.bias"]))
    return torch.nn.Sequential(*first, *layers[:last])


@part("torch")
def torch_modules(run):
    import torch

    torch.set_num_threads(run.n_threads)
    bag = torch.nn.EmbeddingBag(2000, 64, mode="mean", padding_idx=0)
    bag.weight.data.copy_(torch.from_numpy(normal(70, 2000, 64)))
    table = torch.nn.Embedding(500, 16)
    table.weight.data.copy_(torch.from_numpy(normal(71, 500, 16)))
    rng = np.random.default_rng(72)
    kinds = {"linear": ([], normal(73, 420, 64)),
             "bag": ([bag], rng.integers(0, 2000, (420, 7))),
             "table": ([table, torch.nn.Flatten()], rng.integers(0, 500, (420, 4)))}
    for (name, (first, X)), storage in itertools.product(kinds.items(), ("float32", "int8")):
        module = torch_network(first, 3)
        with CLOCK.showing("falling"):
            net = sl.from_torch(module, X[:300], storage=storage, error=0.1, random_state=0)
        converted(run, f"{name}, {storage}", net, X[300:])
        run.add(f"{name}, {storage}, to_torch",
                {key: a.numpy() for key, a in net.to_torch().state_dict().items()})


@part("torch")
def torch_layers(run):
    import torch

    import sparselsh.torch

    torch.set_num_threads(1)  # its own products are none of our concern
    W, b, H = layer_weights()
    linear = torch.nn.Linear(W.shape[1], len(W))
    linear.weight.data.copy_(torch.from_numpy(W))
    linear.bias.data.copy_(torch.from_numpy(b))
    for storage, n_logits in itertools.product(("float32", "bfloat16", "int8"), (None, 300)):
        model = torch.nn.Sequential(copy.deepcopy(linear))
        with CLOCK.showing("falling"):
            report = sparselsh.torch.accelerate(
                model, "0", torch.from_numpy(H[:400]), storage=storage, n_logits=n_logits,
                random_state=0, n_threads=run.n_threads)
        name = f"{storage}, {n_logits} logits"
        run.add(f"{name}, report", report.to_dict())
        rows = [torch.from_numpy(H[400:400 + n]) for n in (1, 3, 60)]
        run.add(f"{name}, forward", [model(x).numpy() for x in rows])
        run.add(f"{name}, topk", [a.numpy() for x in rows for a in model[0].topk(x, k=7)])
        kept = sparselsh.torch.restore(model)[0]
        run.add(f"{name}, restored", [kept.weight.detach().numpy(), kept.bias.detach().numpy()])


# --- files ------------------------------------------------------------------------------------


@part("s20k")
def files(run):
    kept = Path(run.args.files) if run.args.files and run.is_first else None
    folder = kept or run.folder / "files"
    folder.mkdir(parents=True, exist_ok=True)
    write_networks(run, folder)
    write_others(run, folder)
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors":
            run.safetensors(path.name, path)
        else:
            run.add(f"{path.name}, bytes", path.read_bytes())
    read_files(run, Path(run.args.read) if run.args.read else folder)


def write_networks(run, folder):
    X, Y, _, _ = run.few
    net = network(run).fit(X, Y, epochs=1, verbose=False)
    net.save(folder / "network.safetensors")
    net = network(run, dtype="bfloat16", active="sample", family=sl.DWTA(), hidden={
        "dtype": "bfloat16", "activation": "relu"}).fit(X, Y, epochs=1, verbose=False)
    net.save(folder / "network-bfloat16.safetensors")
    net = network(run).initialize(X, Y).fit(X, Y, epochs=1, verbose=False)
    net.refine(X, Y, verbose=False).save(folder / "network-refined.safetensors")

    fit = {"epochs": 2, "batch_size": 200, "verbose": False}
    for name, optimizer, options in (
            ("adam", sl.Adam(5e-3, schedule=schedules.OneCycle(), second_moment="row"), {}),
            ("sgd", sl.SGD(0.5, momentum=0.9, schedule="cosine"),
             {"active": "sample", "density": 0.02, "rebuild": rebuild.Exponential(3, 0.2)})):
        save = callbacks.Checkpoint(folder / f"checkpoint-{name}.safetensors")
        with contextlib.suppress(KeyboardInterrupt):
            network(run, **options).fit(X, Y, optimizer=optimizer, **fit,
                                        callbacks=[save, PressAfter(14)])


def write_others(run, folder):
    X, Y, _, _ = run.few
    W, b, H = layer_weights()
    for name in ("sketches", "probes, SimHash", "dynamic, auto", "sketches, int8"):
        index = sl.LSHIndex(**index_kinds()[name]).fit(W, b, queries=H[:300])
        index.remove(np.arange(40))
        index.save(folder / f"index-{name.replace(', ', '-')}.safetensors")

    weights = run.path(".npz")
    for name, (arrays, inputs) in (("rows", perceptron()), ("index", hidden_index())):
        np.savez(weights, **arrays)
        for storage in ("float32", "int8"):
            with CLOCK.showing("falling"):
                net = sl.from_file(weights, inputs[:200], storage=storage, error=0.3, recall=0.9,
                                   random_state=0)
            net.save(folder / f"converted-{name}-{storage}.safetensors")

    sl.datasets.write_csr(folder / "rows.csr", X, Y)
    sl.datasets.write_xmc(folder / "rows.txt", X[:500], Y[:500])
    sl.datasets.write_xmc(folder / "rows.svm", X[:500], Y[:500], format="svmlight")


def read_files(run, folder):
    X, Y, X_test, _ = run.few
    W, b, H = layer_weights()
    for path in sorted(folder.iterdir()):
        kind, name = path.stem.partition("-")[0], f"read {path.name}"
        if kind in ("network", "checkpoint"):
            net = sl.load(path)
            answers(run, name, net, X_test[:60])
            net.partial_fit(X[:600], Y[:600])  # without a generator in the file, weights alone
            run.add(f"{name}, trained on", [[layer.weight, layer.bias] for layer in net.layers])
        if kind == "checkpoint":
            net = sl.load(path)
            if "adam" in path.name:
                net.optimizer.schedule = schedules.OneCycle()  # which a file does not keep
            net.resume(X, Y, verbose=False)
            run.network(f"{name}, resumed", net, X_test[:60])
        if kind == "index":
            index = sl.LSHIndex.load(path, W, b)
            searches(run, name, index, H[200:])
            index.update(W, np.arange(80))
            run.add(f"{name}, updated", index.search(H, 5))
        if kind == "converted":
            inputs = (perceptron() if "rows" in path.name else hidden_index())[1]
            answers(run, name, sl.InferenceNetwork.load(path), inputs[300:])
        if path.suffix == ".csr":
            with sl.datasets.open_csr(path) as file:
                run.add(name, [*file[:], file.n_labels, file.shape])
        if path.suffix in (".txt", ".svm"):
            run.add(name, sl.datasets.read_xmc(path))


# --- the command ------------------------------------------------------------------------------


def wanted(name, words):
    return not words or any(word in name for word in words)


def missing(args, needs):
    """What of the options and packages that a part needs is not there."""
    packages = {"sklearn", "onnx", "torch"}
    return [need for need in needs if (importlib.util.find_spec(need) is None if need in packages
                                       else getattr(args, need) is None)]


def run_parts(args, n_threads, skipped):
    """The digests of all parts for a number of threads, and the names of those that failed."""
    sl.set_num_threads(n_threads)
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        run = Run(args, n_threads, folder)
        for name, (function, needs) in PARTS.items():
            if not wanted(name, args.only):
                continue
            if lacking := missing(args, needs):
                skipped[name] = f"without {', '.join(lacking)}"
                continue
            run.part, begin = name, time.process_time()
            try:
                function(run)
            except Exception:  # one part must not hide the others
                traceback.print_exc()
                failed.append(name)
            seconds = time.process_time() - begin
            print(f"{n_threads} threads, {name}: {seconds:.1f} CPU s", flush=True)
    return run.digests, failed


def may_differ(name):
    """Whether a digest may depend on the number of threads: see (d) above."""
    converts = name.partition(":")[0] in ("conversions", "weight files", "onnx files",
                                          "torch modules")
    return (converts or "read converted" in name) and (
        name.endswith(", single") or ", loaded, mmap" in name)


def differing(before, after):
    """Names of the digests that differ or that one side lacks."""
    return sorted(name for name in before.keys() | after.keys()
                  if before.get(name) != after.get(name))


def make(args):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    skipped, threads, failed = {}, {}, []
    for n_threads in args.threads:
        threads[str(n_threads)], some = run_parts(args, n_threads, skipped)
        failed += [f"{name}, {n_threads} threads" for name in some]
    result = {"environment": environment(), "skipped": skipped, "failed": failed,
              "threads": threads}
    Path(args.paths[0]).write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")

    first, *others = threads.values()
    unequal = sorted({name for other in others for name in differing(first, other)
                      if not may_differ(name)})
    for name in unequal:
        print(f"depends on the number of threads: {name}")
    for name in failed:
        print(f"failed: {name}")
    for name, reason in skipped.items():
        print(f"skipped: {name} ({reason})")
    print(f"{len(first)} digests for each of {', '.join(threads)} threads")
    return 1 if unequal or failed else 0


def environment():
    versions = {name: sys.modules[name].__version__ for name in
                ("numpy", "scipy", "sklearn", "torch", "onnx") if name in sys.modules}
    return versions | {"python": platform.python_version(), "machine": platform.machine(),
                       "simd": os.environ.get("SPARSELSH_SIMD", "")}


def compare(args):
    before, after = (json.loads(Path(path).read_text()) for path in args.paths)
    if before["environment"] != after["environment"]:
        print(f"note: made in {before['environment']} and {after['environment']}")
    n_wrong = n_same = 0
    known = sorted(before["threads"].keys() | after["threads"].keys())
    for n_threads in map(str, args.threads or known):
        some, others = ({name: value for name, value in side["threads"].get(n_threads, {}).items()
                         if wanted(name.partition(":")[0], args.only)} for side in (before, after))
        wrong = differing(some, others)
        for name in wrong:
            state = "differs" if name in some and name in others else "is missing"
            where = "" if state == "differs" else " after" if name in some else " before"
            print(f"{n_threads} threads: {name} {state}{where}")
        n_wrong += len(wrong)
        n_same += len(some.keys() | others.keys()) - len(wrong)
    for name in before["failed"] + after["failed"]:
        print(f"failed: {name}")
    print(f"{n_same} digests are the same, {n_wrong} are not")
    return 1 if n_wrong or not n_same or before["failed"] or after["failed"] else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="+", metavar="JSON")
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--threads", type=int, nargs="+")
    parser.add_argument("--s20k", nargs=2, metavar=("TRAIN", "TEST"))
    parser.add_argument("--tib", nargs=2, metavar=("TRAIN", "TEST"))
    parser.add_argument("--files", metavar="DIR", help="keep the files of the part 'files' here")
    parser.add_argument("--read", metavar="DIR", help="files of another version to answer with")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="parts whose name has a word")
    args = parser.parse_args()
    if len(args.paths) != 1 + args.compare:
        parser.error("give one file to write, or two to compare")
    if args.compare:
        return compare(args)
    args.threads = args.threads or [1, 2]
    return make(args)


if __name__ == "__main__":
    sys.exit(main())
