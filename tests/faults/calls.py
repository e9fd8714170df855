"""Public calls on small data, and what must hold after a fault has ended one.

A call that failed must leave its object as it was, or between two steps. So it is called again, or
its training is resumed, and the result must have the bits of a call without a fault.
"""
import contextlib
import copy
import functools
import json
import os
import tempfile
import warnings
from pathlib import Path

import numpy as np
import scipy.sparse as sp

import sparselsh as sl
from sparselsh import callbacks, rebuild
from sparselsh.cli._models import load_model
from sparselsh.inference import _conversion
from sparselsh.inference.readers.affine import Affine

RNG = np.random.default_rng(5)
N, D, LABELS = 48, 12, 4500  # LABELS: from 4,096 on, topk searches an index
X = RNG.standard_normal((N, D), dtype=np.float32)
S = sp.random_array((N, 60), density=0.2, format="csr", dtype=np.float32, rng=RNG)
Y = RNG.integers(0, LABELS, N)
FEW = RNG.integers(0, 40, N)
ONE_HOT = sp.csr_array((np.ones(N, np.float32), FEW, np.arange(N + 1, dtype=np.int32)),
                       shape=(N, 40))
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


def added(net):
    """Refinement and calibration of a network, as bytes and text."""
    refinement, calibration = net.refinement, net.calibration
    parts = []
    if refinement is not None:
        parts += [refinement.weight.toarray().tobytes(), refinement.bias.tobytes(),
                  repr((refinement.scale, refinement.n_candidates))]
    return [*parts, None if calibration is None else json.dumps(calibration.config())]


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
        ids, _ = net.topk(x[:3], 3, exact=True)
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
        is_new = (all(map(same, net.get_weights(), self.whole.get_weights()))
                  and added(net) == added(self.whole))
        if failed and not is_new:
            before = self.make(None)
            expect_same_weights(net, before, "what failed")
            expect(added(net) == added(before), "what failed has changed what was added")
            self.run(net, folder)
        expect_same_weights(net, self.whole, "the change")
        expect(added(net) == added(self.whole), "refinement or calibration is another one")


class ChangeIndex(Call):
    """A change of an index that happens or does not; made again it gives the same answers."""

    def __init__(self, change, make=None):
        self.change, self.prepared = change, make or (lambda: fitted_index())

    def make(self, folder):
        return copy.deepcopy(self.prepared())

    def run(self, index, folder):
        self.change(index)

    @functools.cached_property
    def answers(self):
        """Before and after the change."""
        index = self.make(None)
        before = answers_of(index)
        self.run(index, None)
        return before, answers_of(index)

    def check(self, index, folder, failed):
        before, after = self.answers
        got = answers_of(index)
        if failed and got != after:
            expect(got == before, "what failed has changed the index")
            self.run(index, folder)
        expect(answers_of(index) == after, "the change gives other answers")


class Write(Call):
    """Files that callbacks or the command write: the old one stays, or the new one is there."""

    def __init__(self, write, read, names=("file",)):
        self.write, self.read, self.names = write, read, names

    def make(self, folder):
        for name in self.names:
            (Path(folder) / name).write_bytes(b"old")
        return None

    def run(self, thing, folder):
        self.write(Path(folder))

    def check(self, thing, folder, failed):
        self.check_files(folder, True)  # a checkpoint that cannot be written is a warning
        self.run(thing, folder)
        self.check_files(folder, False)

    def check_after_kill(self, thing, folder):
        for name in self.names:
            path = Path(folder) / name
            if path.read_bytes() != b"old":
                self.read(path)
        self.run(thing, folder)  # sweeps what is left
        self.check_files(folder, False)

    def check_files(self, folder, failed):
        left = sorted(p.name for p in Path(folder).iterdir())
        expect(left == sorted(self.names), f"{left} are left")
        for name in self.names:
            path = Path(folder) / name
            if not (failed and path.read_bytes() == b"old"):
                self.read(path)


class Make(Call):
    """A call that gives a new object: called again it gives the same answers."""

    def __init__(self, create, answers):
        self.create, self.answers_of = create, answers

    def make(self, folder):
        return None

    def run(self, thing, folder):
        return self.create()

    @functools.cached_property
    def answers(self):
        return self.answers_of(self.run(None, None))

    def check(self, thing, folder, failed):
        got = self.answers_of(self.run(None, folder))
        expect(all(map(same, got, self.answers)), "called again it gives other answers")


class Estimator(Call):
    """An estimator: a call that failed leaves it as it was, and made again it gives the same.

    Ctrl-C may also end a training early without an error; then only `fit`, which begins anew, is
    called again. `half` is what a call of two parts has done when the first one is complete.
    """

    def __init__(self, call, make=None, answers=None, half=None):
        self.call, self.prepared = call, make or classifier
        self.half, self.answers = half, answers or predictions

    def make(self, folder):
        return copy.deepcopy(self.prepared())

    def run(self, thing, folder):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that Ctrl-C has ended the training
            self.call(thing)

    @functools.cached_property
    def whole(self):
        things = [self.make(None) for _ in range(3)]
        if self.half is not None:
            self.half(things[1])
        self.run(things[2], None)
        return [self.answers(thing) for thing in things]

    def check(self, thing, folder, failed):
        after = self.whole[-1]
        got = self.answers(thing)
        if failed:
            expect(got in self.whole, "what failed has changed the estimator")
        if got != after:
            self.run(thing, folder)
        expect(self.answers(thing) == after, "the estimator predicts otherwise")


def predictions(thing):
    """What a classifier answers, as bytes."""
    if not hasattr(thing, "network_"):
        return []
    return [thing.predict_proba(X[:5]).tobytes(), str(thing.classes_)]


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

    def check_after_kill(self, thing, folder):
        path = Path(folder) / "file"
        if path.read_bytes() != b"old":
            self.load(path)
        self.save(thing, path)  # sweeps what is left
        self.load(path)
        left = sorted(p.name for p in Path(folder).iterdir())
        expect(left == ["file"], f"{left} are left")


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


NEURONS = np.random.default_rng(7).standard_normal((600, 8), dtype=np.float32)
QUERIES = np.random.default_rng(8).standard_normal((64, 8), dtype=np.float32)


@functools.cache
def fitted_index(**options):
    options = {"family": sl.SimHash(3, 3), "dynamic": True, "plan": "sketches"} | options
    return sl.LSHIndex(random_state=0, n_threads=1, **options).fit(
        NEURONS, np.linspace(-1, 1, 600, dtype=np.float32), QUERIES,
        ids=np.arange(600) * 3 if options["plan"] == "exact" else None)


def load_index(path):
    return sl.LSHIndex.load(path, NEURONS, np.linspace(-1, 1, 600, dtype=np.float32), n_threads=1)


def answers_of(index):
    """What an index answers, and how many neurons it has, as bytes."""
    if index._engine is None:
        return []
    ids, scores = index.search(QUERIES[:8], 5)
    found = [] if index.family is None else [index.query(QUERIES[:8], 20).indices.tobytes()]
    among = index.search(QUERIES[:4], 3, exclude=ids[0, :2])
    return [len(index), ids.tobytes(), scores.tobytes(), *(a.tobytes() for a in among), *found]


@functools.cache
def refined():
    net = copy.deepcopy(trained("sparse input"))
    return net.refine(S, FEW, verbose=False).calibrate(S, FEW)


def refined_again(net):
    net.refine(S, FEW, C=0.5, verbose=False)


def with_refined(change):
    call = Change(change)
    call.make = lambda folder: copy.deepcopy(refined())
    return call


def logged(folder):
    net = network("sparse input")[0]
    net.fit(S, FEW, epochs=2, callbacks=[
        callbacks.Log(folder / "log.csv"), callbacks.Log(folder / "log.json"),
        callbacks.BestModel(folder / "best"), callbacks.EarlyStopping(patience=1),
        callbacks.Checkpoint(folder / "checkpoint", every_steps=2)], **QUIET)


def read_any(path):
    if path.suffix == ".json":
        return json.loads(path.read_text())
    return path.read_text() if path.suffix in (".csv", ".txt") else load_model(str(path))


class CommandFailed(MemoryError, OSError):
    """The command ended with code 2, for either."""


def run_command(main, arguments):
    code = main(arguments)
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise CommandFailed(f"code {code}")


def by_command_of_texts(folder):
    """Train a tagger, name tags, and write a network in fewer bits."""
    from sparselsh import cli

    texts = folder.parent / f"{folder.name}-texts.jsonl"
    network = folder.parent / f"{folder.name}-network"
    try:
        texts.write_text("".join(json.dumps({"text": text, "tags": tags}) + "\n"
                                 for text, tags in zip(TEXTS, TAGS, strict=True)))
        refined().save(network)
        for arguments in (
                ["train", str(texts), "--model", str(folder / "model"), "--epochs", "1",
                 "--hidden", "4", "--quiet", "--threads", "1"],
                ["predict", str(folder / "model"), str(texts), "--output",
                 str(folder / "tags.txt"), "--threads", "1"],
                ["compress", str(network), "--output", str(folder / "small"), "--storage", "int8",
                 "--threads", "1"]):
            run_command(cli.main, arguments)
    finally:
        for path in (texts, network):
            path.unlink(missing_ok=True)


@functools.cache
def sharded():
    from sparselsh.distributed import ShardedNetwork

    net = ShardedNetwork([sl.Linear(60, 8), sl.LSHLinear(8, 40, density=0.5)], shards=4,
                         random_state=0, n_threads=1)
    return net.fit(S, FEW, epochs=1, **QUIET)


class Shards(Call):
    """A folder of shards is written over an older one: that stays, or the new one is there."""

    def make(self, folder):
        path = Path(folder) / "folder"
        copy.deepcopy(sharded()).save(path)
        net = copy.deepcopy(sharded())
        return net.fit(S, FEW, epochs=1, **QUIET)

    def run(self, net, folder):
        net.save(Path(folder) / "folder", training_state=True)

    def answer(self, path):
        from sparselsh.distributed import load

        net = load(path, n_threads=1)
        return [a.tobytes() for a in net.topk(S[:9], 3, exact=True)], len(net.history)

    @functools.cached_property
    def states(self):
        with tempfile.TemporaryDirectory() as folder:
            net = self.make(folder)
            before = self.answer(Path(folder) / "folder")
            self.run(net, folder)
            return before, self.answer(Path(folder) / "folder")

    def check(self, net, folder, failed):
        path = Path(folder) / "folder"
        expect(self.answer(path) in self.states, "the folder holds neither network")
        self.run(net, folder)
        expect(self.answer(path) == self.states[1], "saved again it holds another network")
        left = sorted(p.name for p in path.iterdir())
        expect(len(left) == 2, f"{left} are left")

    check_after_kill = functools.partialmethod(check, failed=True)


def by_command(folder):
    from sparselsh import cli

    data = folder.parent / f"{folder.name}-data.txt"
    try:
        sl.datasets.write_xmc(data, S, ONE_HOT)
        train = ["train", str(data), "--model", str(folder / "model"), "--epochs", "1", "--quiet",
                 "--json", str(folder / "report.json"), "--threads", "1"]
        run_command(cli.main, train)
        predict = ["predict", str(folder / "model"), str(data), "--output",
                   str(folder / "labels.txt"), "--threads", "1"]
        run_command(cli.main, predict)
    finally:
        data.unlink(missing_ok=True)


def classifier():
    from sparselsh.estimators import LSHClassifier

    return LSHClassifier(8, max_iter=2, random_state=0, n_jobs=1)


@functools.cache
def fitted_classifier():
    return classifier().fit(X, FEW % 3)


# --- texts, tags and items ------------------------------------------------------------------------

TEXTS = [f"word{i % 7} word{i % 5} naïve 日本" for i in range(60)]
TAGS = [[f"tag{i % 7}", f"tag{i % 5}"] for i in range(60)]
MORE_TEXTS, MORE_TAGS = ([f"word{i % 3} another{i % 4} naïve" for i in range(20)],
                         [[f"tag{i % 3}", f"new{i % 4}"] for i in range(20)])
ITEMS, MORE_ITEMS = [[*row, "x", "y"] for row in TAGS], [[*row, "y"] for row in MORE_TAGS]


def tagger():
    return sl.Tagger(hidden=4, epochs=2, hold_out=20, random_state=0, n_threads=1)


@functools.cache
def fitted_tagger():
    return tagger().fit(TEXTS, TAGS)


@functools.cache
def interrupted_run():
    """A folder with the checkpoint of a tagger's first epoch of two."""
    folder = tempfile.TemporaryDirectory()
    path = os.path.join(folder.name, "run")
    saving = callbacks.Checkpoint(path)
    with contextlib.suppress(InterruptedError):
        tagger().fit(TEXTS, TAGS, callbacks=[saving, AfterAnEpoch()])
    return folder


class AfterAnEpoch(callbacks.Callback):
    def on_step(self, network):
        if len(network.history) == 1:
            raise InterruptedError


def tagger_to_resume():
    interrupted_run()
    return tagger()


def recommender():
    return sl.Recommender(hidden=4, epochs=2, random_state=0, n_threads=1)


@functools.cache
def fitted_recommender():
    return recommender().fit(ITEMS)


def named(thing):
    """What a tagger or a recommender knows and answers."""
    if not hasattr(thing, "network_"):
        return []
    kept = thing._kept
    rows = [kept.n_seen, *(a.tobytes() for part in kept[:2] for a in part[:3])]
    if isinstance(thing, sl.Recommender):
        return [*rows, thing.items_.tolist(),
                thing.recommend([["tag1", "x"], ["new1", "nothing"]], k=4)]
    texts = ["word1 word2 another1 naïve", "日本", ""]
    return [*rows, thing.vectorizer_.n_texts_, thing.tags_.tolist(),
            thing.predict_topk(texts, 20), thing.predict(texts), str(thing.threshold_),
            thing.explain(texts[0], "tag1")]


def rows_of_texts(vectorizer):
    """What a vectorizer makes of some texts."""
    if not hasattr(vectorizer, "n_texts_"):
        return []
    rows = vectorizer.transform(MORE_TEXTS)
    return [rows.shape, rows.indices.tobytes(), rows.data.tobytes(), vectorizer.n_texts_]


@functools.cache
def fitted_vectorizer(**options):
    return sl.TextVectorizer(n_threads=1, **options).fit(TEXTS)


def served_answers(tagger, texts):
    """Bodies that `sparselsh serve` answers with."""
    from sparselsh.serving._answers import served
    from sparselsh.serving._limits import Limits

    answers = served(tagger)
    job = answers.job(json.dumps({"texts": texts, "k": 4}).encode(), Limits())
    body = json.dumps({"text": texts[0], "label": "tag1"}).encode()
    return [*answers.answers([job, job]), answers.explanation(body)]


class Serve(Call):
    """A worker's answer to a request: asked again it gives the same bytes."""

    def make(self, folder):
        return copy.deepcopy(fitted_tagger())

    def run(self, tagger, folder):
        return served_answers(tagger, MORE_TEXTS)

    @functools.cached_property
    def answer(self):
        return self.run(self.make(None), None)

    def check(self, tagger, folder, failed):
        expect(self.run(tagger, folder) == self.answer, "the answer is another one")


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
    "refine, again": with_refined(refined_again),
    "tune_refinement": with_refined(lambda net: net.tune_refinement(S, FEW, scales=(0, 1, 3))),
    "tune_refinement, removed": with_refined(lambda net: net.tune_refinement(S, FEW, scales=(0,))),
    "calibrate": Change(lambda net: net.calibrate(S, FEW)),
    "calibrate, again": with_refined(lambda net: net.calibrate(S, FEW, kind="labels",
                                                               thresholds="per-label")),
    "add_labels": Change(lambda net: net.add_labels(3)),
    "add_labels, tables": Change(lambda net: net.add_labels(3), "tables"),
    "add_features": Change(lambda net: net.add_features(3)),
    "set_weights": Change(set_all),
    "layer.set_weights": Change(set_first),
    "LSHIndex.fit": ChangeIndex(
        lambda index: index.fit(NEURONS[:500], queries=QUERIES)),
    "LSHIndex.fit, new": ChangeIndex(
        lambda index: index.fit(NEURONS, queries=QUERIES),
        lambda: sl.LSHIndex(sl.SimHash(3, 3), plan="sketches", random_state=0, n_threads=1)),
    "LSHIndex.add": ChangeIndex(lambda index: index.add(NEURONS[:40] * 2)),
    "LSHIndex.add, ids": ChangeIndex(
        lambda index: index.add(NEURONS[:40] * 2, ids=np.arange(40) * 3 + 1),
        lambda: fitted_index(plan="exact")),
    "LSHIndex.update": ChangeIndex(
        lambda index: index.update(-NEURONS[::20], np.arange(0, 600, 20))),
    "LSHIndex.update, all": ChangeIndex(
        lambda index: index.update(NEURONS * np.float32(0.5), np.arange(0, 600, 20))),
    "LSHIndex.update, int8": ChangeIndex(
        lambda index: index.update(-NEURONS[::20], np.arange(0, 600, 20)),
        lambda: fitted_index(storage="int8", family=None, dynamic=False)),
    "LSHIndex.remove": ChangeIndex(lambda index: index.remove(np.arange(0, 600, 7))),
    "LSHIndex.tune": ChangeIndex(lambda index: index.tune(QUERIES, recall=0.9)),
    "LSHIndex.search": ChangeIndex(lambda index: index.search(QUERIES, 5, allow=[1, 5, 7, 9])),
    "from_network": Make(
        lambda: sl.InferenceNetwork.from_network(refined(), storage="int8", random_state=0,
                                                 n_threads=1),
        lambda net: net.topk(S[:5], 3)),
    "LSHClassifier.fit": Estimator(lambda clf: clf.fit(X, FEW % 5)),
    "LSHClassifier.fit, again": Estimator(lambda clf: clf.fit(X, FEW % 5), fitted_classifier),
    "LSHClassifier.partial_fit": Estimator(
        lambda clf: clf.partial_fit(X, FEW % 5, np.arange(5))),
    "LSHClassifier.partial_fit, more classes": Estimator(
        lambda clf: clf.partial_fit(X, FEW % 5, np.arange(6)), fitted_classifier),
    "TextVectorizer.fit": Estimator(
        lambda vectorizer: vectorizer.fit(MORE_TEXTS), fitted_vectorizer, rows_of_texts),
    "TextVectorizer.fit_transform, hashed": Estimator(
        lambda vectorizer: vectorizer.fit_transform(MORE_TEXTS),
        lambda: fitted_vectorizer(n_features=32), rows_of_texts),
    "Tagger.fit": Estimator(lambda tagger: tagger.fit(TEXTS, TAGS), tagger, named),
    "Tagger.fit, again": Estimator(
        lambda tagger: tagger.fit(MORE_TEXTS * 2, MORE_TAGS * 2), fitted_tagger, named),
    "Tagger.resume": Estimator(
        lambda tagger: tagger.resume(os.path.join(interrupted_run().name, "run"), TEXTS, TAGS),
        tagger_to_resume, named),
    "Tagger.add_tags": Estimator(
        lambda tagger: tagger.add_tags(MORE_TEXTS, MORE_TAGS), fitted_tagger, named),
    "Tagger.partial_fit": Estimator(
        lambda tagger: tagger.partial_fit(MORE_TEXTS, MORE_TAGS), fitted_tagger, named,
        lambda tagger: tagger._grow(*tagger._new_rows(MORE_TEXTS, MORE_TAGS), learns=True)),
    "Recommender.fit": Estimator(lambda model: model.fit(ITEMS), recommender, named),
    "Recommender.add_items": Estimator(
        lambda model: model.add_items(MORE_ITEMS), fitted_recommender, named),
    "Recommender.partial_fit": Estimator(
        lambda model: model.partial_fit(MORE_ITEMS), fitted_recommender, named,
        lambda model: model._grow(MORE_ITEMS, learns=True)),
    "serve": Serve(),
    "callbacks": Write(logged, read_any, ("log.csv", "log.json", "best", "checkpoint")),
    "command, texts": Write(by_command_of_texts, read_any, ("model", "small", "tags.txt")),
    "shards": Shards(),
    "command": Write(by_command, read_any, ("model", "report.json", "labels.txt")),
    "save": Save(lambda net, path: net.save(path), sl.load),
    "save, indexes": Save(lambda net, path: net.save(path, indexes=True), sl.load),
    "save, training_state": Save(lambda net, path: net.save(path, training_state=True), sl.load),
    "InferenceNetwork.save": SaveIndexless(lambda net, path: net.save(path),
                                           sl.InferenceNetwork.load, converted),
    "save, refined": SaveIndexless(lambda net, path: net.save(path), sl.load,
                                   lambda: copy.deepcopy(refined())),
    "save, deep": SaveIndexless(lambda net, path: net.save(path, training_state=True), sl.load,
                                lambda: copy.deepcopy(trained("sketches on drift"))),
    "Tagger.save": SaveIndexless(lambda tagger, path: tagger.save(path), sl.Tagger.load,
                                 lambda: copy.deepcopy(fitted_tagger())),
    "Recommender.save": SaveIndexless(lambda model, path: model.save(path), sl.Recommender.load,
                                      lambda: copy.deepcopy(fitted_recommender())),
    "LSHIndex.save": SaveIndexless(lambda index, path: index.save(path), load_index,
                                   lambda: fitted_index()),
    "write_xmc": SaveIndexless(lambda rows, path: sl.datasets.write_xmc(path, S, ONE_HOT),
                               sl.datasets.read_xmc, lambda: None),
    "write_csr": SaveIndexless(lambda rows, path: sl.datasets.write_csr(path, *rows), read_rows,
                               lambda: (S, FEW)),
    "load": Load(saved(), sl.load),
    "load, training_state": Load(saved(True), sl.load),
    "Tagger.load": Load(lambda path: fitted_tagger().save(path), sl.Tagger.load),
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

    def served(path, x=X[:3]):
        return [*sl.InferenceNetwork.load(path, n_threads=1).topk(x, 3)]

    def probabilities(path):
        loaded = sl.load(path, n_threads=1)
        return [*loaded.topk(few, 3), loaded.predict_proba(few),
                loaded.predict_labels(few).toarray()]

    W = np.random.default_rng(0).standard_normal((30, 4), dtype=np.float32)
    hidden = {"density": 0.5, "activation": "relu", "dtype": "bfloat16"}
    deep_net = sl.Network([sl.LSHLinear(4, 6, policy="sketches", sketch_bits=64, **hidden),
                           sl.LSHLinear(6, 6, policy="top", family=sl.SimHash(2, 2), **hidden),
                           sl.Linear(6, 9)], random_state=0, n_threads=1)
    deep_net.fit(rows, labels, epochs=1, batch_size=4, verbose=False)
    few = sp.csr_array(np.repeat(np.eye(5, dtype=np.float32), 6, axis=0))
    of_words = sl.Network([sl.Linear(5, 2), sl.Linear(2, 5)], random_state=0, n_threads=1)
    of_words.fit(few, np.arange(30) // 6, epochs=1, batch_size=8, verbose=False)
    of_words.refine(few, np.arange(30) // 6, verbose=False)
    small = sl.InferenceNetwork.from_network(of_words, storage="int8", random_state=0, n_threads=1)
    of_words.calibrate(few, np.arange(30) // 6, kind="labels", thresholds="per-label")
    names = [f"n{i}" for i in range(30)]
    few_bits = {"sketch_bits": 64, "plan": "sketches", "random_state": 0, "n_threads": 1}

    kinds = {
        "model": (lambda: net.save(path), lambda path: answers(sl.load(path, n_threads=1))),
        "checkpoint": (lambda: net.save(path, training_state=True), resumed),
        "deep": (lambda: deep_net.save(path), lambda path: answers(sl.load(path, n_threads=1))),
        "deep, checkpoint": (lambda: deep_net.save(path, training_state=True), resumed),
        "deep, indexes": (lambda: deep_net.save(path, indexes=True), resumed),
        "refined, calibrated": (lambda: of_words.save(path), probabilities),
        "index": (lambda: sl.LSHIndex(sl.SimHash(2, 2), **few_bits).fit(W).save(path), index),
        "index, own ids": (lambda: sl.LSHIndex(storage="int8", **few_bits).fit(
            W, ids=np.arange(30) * 7).save(path), index),
        "index, names": (lambda: sl.LSHIndex(sl.SimHash(2, 2), dynamic=True, **few_bits).fit(
            W, queries=W, ids=names).save(path), index),
        "converted": (lambda: converted().save(path), served),
        "quantized": (lambda: small.save(path), lambda path: served(path, few[::6])),
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
