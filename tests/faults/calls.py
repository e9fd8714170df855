"""Public calls on small data, and what must hold after a fault has ended one.

A call that failed must leave its object as it was, or between two steps. So it is called again, or
its training is resumed, and the result must have the bits of a call without a fault.
"""
import copy
import functools
import json
from pathlib import Path

import numpy as np
import scipy.sparse as sp

import sparselsh as sl
from sparselsh import callbacks, rebuild
from sparselsh.inference import _conversion
from sparselsh.inference.readers.affine import Affine

RNG = np.random.default_rng(5)
N, D, LABELS = 48, 12, 4500  # LABELS: from 4,096 on, topk searches an index
X = RNG.standard_normal((N, D), dtype=np.float32)
S = sp.random_array((N, 60), density=0.2, format="csr", dtype=np.float32, rng=RNG)
Y = RNG.integers(0, LABELS, N)
FEW = RNG.integers(0, 40, N)
QUIET = {"batch_size": 16, "verbose": False}


def wide(**options):
    options = {"density": 0.05, "candidates": 20} | options
    return [sl.Linear(D, 16, activation="relu"), sl.LSHLinear(16, LABELS, **options)]


def deep(**options):
    hidden = {"density": 0.3, "activation": "relu", "policy": "sketches", "sketch_bits": 64}
    return [sl.Linear(D, 16, activation="relu", dropout=0.1),
            sl.LSHLinear(16, 300, **hidden | options), sl.LSHLinear(300, 40, density=0.5)]


NETWORKS = {  # layers, X, Y
    "tables": (wide, X, Y),
    "one set per sample": (functools.partial(wide, active="sample"), X, Y),
    "frozen tables": (functools.partial(wide, policy="vanilla", family=sl.SimHash(4, 3),
                                        rebuild=rebuild.Frozen(1, rebuild.Every(2))), X, Y),
    "sketches": (deep, X, FEW),
    "sketches on drift": (functools.partial(deep, rebuild=rebuild.OnDrift(0.01, 2)), X, FEW),
    "sparse input": (lambda: [sl.Linear(60, 8), sl.LSHLinear(8, 40, density=0.5)], S, FEW),
    "bfloat16": (functools.partial(wide, dtype="bfloat16"), X, Y),
}


def network(kind):
    layers, x, y = NETWORKS[kind]
    return sl.Network(layers(), random_state=0, n_threads=1), x, y


@functools.cache
def trained(kind):
    net, x, y = network(kind)
    return net.fit(x, y, epochs=1, **QUIET)


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def expect(holds, what):
    if not holds:
        raise AssertionError(what)


def expect_same_weights(net, other, what):
    pairs = zip(net.get_weights(), other.get_weights(), strict=True)
    expect(all(same(a, b) for a, b in pairs), f"{what} gives other weights")


class Call:
    """A call; subclasses say on what, and what holds afterwards."""

    def make(self, folder):
        """Return a fresh object."""
        raise NotImplementedError

    def run(self, thing, folder):
        """Call what is tested."""
        raise NotImplementedError

    def check(self, thing, folder, failed):
        """Check the object after the call, which a fault has ended if `failed`."""
        raise NotImplementedError


class Fit(Call):
    """A training, resumed after a fault: the weights are those of a training without one."""

    def __init__(self, kind, optimizer=None, new=True, epochs=2):
        self.kind, self.optimizer, self.new, self.epochs = kind, optimizer, new, epochs

    def make(self, folder):
        return network(self.kind)[0] if self.new else copy.deepcopy(trained(self.kind))

    def run(self, net, folder):
        _, x, y = network(self.kind)
        net.fit(x, y, epochs=self.epochs, optimizer=copy.deepcopy(self.optimizer), **QUIET)

    @functools.cached_property
    def whole(self):
        net = self.make(None)
        self.run(net, None)
        return net

    def check(self, net, folder, failed):
        whole = self.whole
        _, x, y = network(self.kind)
        if failed:
            progress = net.training_progress
            begun = progress is not None and not progress.is_done
            if begun and len(net.history) < len(whole.history):
                net.resume(x, y, verbose=False)
            elif len(net.history) < len(whole.history):
                self.run(net, folder)
        expect_same_weights(net, whole, "the training")
        expect([entry["loss"] for entry in net.history]
               == [entry["loss"] for entry in whole.history], "the history has other losses")
        ids, _ = net.topk(x[:3], 3)
        expect(ids.min() >= 0 and ids.max() < net.n_labels, "topk gives no ids")


class PartialFit(Fit):
    def __init__(self, kind):
        super().__init__(kind, new=False)

    def run(self, net, folder):
        _, x, y = network(self.kind)
        net.partial_fit(x, y, batch_size=N)

    def check(self, net, folder, failed):
        if failed and net._training.n_steps < self.whole._training.n_steps:
            self.run(net, folder)
        expect_same_weights(net, self.whole, "partial_fit")


class Ask(Call):
    """A question: asked again it gives the same answer, and the weights are unchanged."""

    def __init__(self, ask, kind="tables"):
        self.ask, self.kind = ask, kind

    def make(self, folder):
        return copy.deepcopy(trained(self.kind))

    def run(self, net, folder):
        return self.ask(net, network(self.kind)[1])

    @functools.cached_property
    def answer(self):
        return self.run(self.make(None), None)

    def check(self, net, folder, failed):
        for got, want in zip(self.run(net, folder), self.answer, strict=True):
            expect(same(np.asarray(got), np.asarray(want)), "the answer is another one")
        expect_same_weights(net, trained(self.kind), "the question")


class AskAfterSteps(Ask):
    """topk whose index has to follow steps that were taken since it was built."""

    def make(self, folder):
        net = copy.deepcopy(trained(self.kind))
        net.topk(X)
        return net.partial_fit(X[:1], Y[:1], batch_size=1)

    def check(self, net, folder, failed):
        ids, scores = net.topk(X, 5)
        true_ids, true_scores = net.topk(X, 5, exact=True)
        found = np.mean([len(np.intersect1d(a, b)) / 5 for a, b in zip(ids, true_ids, strict=True)])
        expect(found > 0.9, f"topk finds {found:.2f} of the best")
        expect(np.allclose(scores[:, 0], true_scores[:, 0], atol=1e-4)
               or found < 1, "scores are stale")


class Change(Call):
    """A change of a network that happens or does not; made again it gives the same."""

    def __init__(self, change, kind="sparse input"):
        self.change, self.kind = change, kind

    def make(self, folder):
        return copy.deepcopy(trained(self.kind))

    def run(self, net, folder):
        self.change(net)

    @functools.cached_property
    def whole(self):
        net = self.make(None)
        self.run(net, None)
        return net

    def check(self, net, folder, failed):
        before = self.make(None)
        is_new = all(map(same, net.get_weights(), self.whole.get_weights()))
        if failed and not is_new:
            expect_same_weights(net, before, "what failed")
            self.run(net, folder)
        elif failed and net.refinement is None and self.whole.refinement is not None:
            self.run(net, folder)
        expect_same_weights(net, self.whole, "the change")
        for name in ("weight", "bias"):
            a, b = (getattr(n.refinement, name, None) for n in (net, self.whole))
            if b is not None and name == "weight":
                a, b = a.toarray(), b.toarray()
            expect((a is None) == (b is None) and (b is None or same(a, b)),
                   "the refinement is another one")


class Save(Call):
    """A file: the old one stays, or the new one is there; nothing else is."""

    def __init__(self, save, load):
        self.save, self.load = save, load

    def make(self, folder):
        thing = self.thing()
        self.path = Path(folder) / "file"
        self.path.write_bytes(b"old")
        return thing

    def thing(self):
        return copy.deepcopy(trained("tables"))

    def run(self, thing, folder):
        self.save(thing, Path(folder) / "file")

    def check(self, thing, folder, failed):
        path = Path(folder) / "file"
        expect([p.name for p in Path(folder).iterdir()] == ["file"], "another file is left")
        if not (failed and path.read_bytes() == b"old"):
            self.load(path)
        self.save(thing, path)
        self.load(path)


class SaveIndexless(Save):
    """A converted network, or rows."""

    def __init__(self, save, load, thing):
        super().__init__(save, load)
        self.thing = thing


class Load(Call):
    """A file is read, or MemoryError is raised."""

    def __init__(self, save, load):
        self.save, self.load = save, load

    def make(self, folder):
        path = Path(folder) / "file"
        self.save(path)
        return path

    def run(self, path, folder):
        return self.load(path)

    def check(self, path, folder, failed):
        self.load(path)


@functools.cache
def converted():
    rng = np.random.default_rng(0)
    layers = [Affine(f"fc{i}", rng.standard_normal(shape, dtype=np.float32),
                     rng.standard_normal(shape[0], dtype=np.float32), activation)
              for i, (shape, activation) in enumerate((((24, D), "relu"), ((40, 24), None)))]
    return _conversion.convert(layers, X, storage="int8", error=0.5, random_state=0, n_threads=1)


def saved(training_state=False):
    return lambda path: copy.deepcopy(trained("tables")).save(path, training_state=training_state)


def set_first(net):
    layer = net.layers[1]
    layer.set_weights(np.ones((layer.n_out, layer.n_in), np.float32))


def set_all(net):
    net.set_weights([a * 0 + 1 for a in net.get_weights()])


def read_rows(path):
    with sl.datasets.open_csr(path) as file:
        return file[:]


def checkpointed(net, path):
    net.fit(X, Y, epochs=1, callbacks=callbacks.Checkpoint(path), **QUIET)


ADAM_ROW = sl.Adam(1e-2, second_moment="row", clip_norm=1.0)
CALLS = {
    **{f"fit, {kind}": Fit(kind) for kind in NETWORKS},
    "fit, again": Fit("tables", new=False),
    "fit, clipped, row moments": Fit("one set per sample", ADAM_ROW),
    "fit, momentum": Fit("sketches", sl.SGD(0.1, momentum=0.9)),
    "partial_fit, tables": PartialFit("tables"),
    "partial_fit, sketches": PartialFit("sketches"),
    "partial_fit, sparse input": PartialFit("sparse input"),
    "topk": Ask(lambda net, x: net.topk(x)),
    "topk, exact": Ask(lambda net, x: net.topk(x, exact=True)),
    "topk after steps": AskAfterSteps(lambda net, x: net.topk(x)),
    "predict": Ask(lambda net, x: (net.predict(x),)),
    "decision_function": Ask(lambda net, x: (net.decision_function(x),), "sketches"),
    "get_weights": Ask(lambda net, x: net.get_weights()),
    "profile": Ask(lambda net, x: (net.profile(x, Y, steps=1).batch_size,)),
    "architecture": Ask(lambda net, x: [affine.weight for affine in net.architecture()]),
    "initialize": Change(lambda net: net.initialize(S, FEW)),
    "refine": Change(lambda net: net.refine(S, FEW, verbose=False)),
    "set_weights": Change(set_all),
    "layer.set_weights": Change(set_first),
    "save": Save(lambda net, path: net.save(path), sl.load),
    "save, indexes": Save(lambda net, path: net.save(path, indexes=True), sl.load),
    "save, training_state": Save(lambda net, path: net.save(path, training_state=True), sl.load),
    "InferenceNetwork.save": SaveIndexless(lambda net, path: net.save(path),
                                           sl.InferenceNetwork.load, converted),
    "write_csr": SaveIndexless(lambda rows, path: sl.datasets.write_csr(path, *rows), read_rows,
                               lambda: (S, FEW)),
    "load": Load(saved(), sl.load),
    "load, training_state": Load(saved(True), sl.load),
    "InferenceNetwork.load": Load(lambda path: converted().save(path), sl.InferenceNetwork.load),
    "open_csr": Load(lambda path: sl.datasets.write_csr(path, S, FEW), read_rows),
}


def small_files(folder):
    """{name: (bytes, read)} of a small file of each kind; `read` returns what it answers."""
    path = Path(folder) / "small"
    net = sl.Network([sl.Linear(4, 3), sl.LSHLinear(3, 9, density=0.5, family=sl.SimHash(3, 2))],
                     random_state=0, n_threads=1)
    rows, labels = np.eye(9, 4, dtype=np.float32), np.arange(9)
    net.fit(rows, labels, epochs=1, batch_size=4, verbose=False)

    def answers(net):
        return [*net.topk(rows, 3), *net.get_weights()]

    def resumed(path):
        net = sl.load(path, n_threads=1)
        return [*answers(net), *net.partial_fit(rows, labels).get_weights(),
                np.frombuffer(json.dumps([net.history, repr(net.optimizer)]).encode(), np.uint8)]

    def index(path):
        return [*sl.LSHIndex.load(path, W, n_threads=1).search(W[:4], 3)]

    W = np.random.default_rng(0).standard_normal((30, 4), dtype=np.float32)
    kinds = {
        "model": (lambda: net.save(path), lambda path: answers(sl.load(path, n_threads=1))),
        "checkpoint": (lambda: net.save(path, training_state=True), resumed),
        "index": (lambda: sl.LSHIndex(sl.SimHash(2, 2), random_state=0, plan="sketches").fit(
            W).save(path), index),
        "converted": (lambda: converted().save(path), lambda path: [
            *sl.InferenceNetwork.load(path, n_threads=1).topk(X[:3], 3)]),
        "csr": (lambda: sl.datasets.write_csr(path, S[:20], FEW[:20]), lambda path: [
            np.frombuffer(part, np.uint8) for matrix in read_rows(path)
            for part in (matrix.indptr.tobytes(), matrix.indices.tobytes(),
                         matrix.data.tobytes(), str(matrix.shape).encode())]),
    }
    files = {}
    for name, (write, read) in kinds.items():
        write()
        files[name] = path.read_bytes(), read
    path.unlink()
    return files
