"""Wrong arguments: what was passed, which error is raised, and what its message names."""
import numpy as np
import pytest
import scipy.sparse as sp

import sparselsh as sl
from sparselsh import rebuild, schedules

NAN, INF = float("nan"), float("inf")
X = np.ones((4, 3), np.float32)
Y = np.array([0, 1, 2, 0])


def network(*layers, **options):
    return sl.Network(layers or [sl.Linear(3, 8), sl.LSHLinear(8, 5, density=0.5)],
                      random_state=0, **options)


def trained():
    return network().fit(X, Y, epochs=1, verbose=False)


def fitted():
    return sl.LSHIndex(sl.SimHash(3, 2), random_state=0).fit(np.eye(6, 3))


def with_ids():
    """Return an index whose neurons have names."""
    return sl.LSHIndex(random_state=0).fit(np.eye(6, 3), ids=list("abcdef"))


def probed():
    return sl.LSHIndex(sl.SimHash(3, 2), plan="probes", random_state=0).fit(np.eye(6, 3))


def loaded(path="none", W=X, **options):
    return sl.LSHIndex.load(path, W, **options)


def fit(x=X, y=Y, loss="softmax", **options):
    return network(loss=loss).fit(x, y, **({"epochs": 1, "verbose": False} | options))


def with_entry(value, dtype=np.float32):
    a = X.astype(dtype)
    a[2, 1] = value
    return a


def check(call, error, *names):
    """Check that the call raises exactly this error type and that its message has all the names."""
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    for name in names:
        assert name in str(caught.value)


def table(*cases):
    """Parametrize by rows (call, error, *names); the first name is the id of the test."""
    return pytest.mark.parametrize("call, error, names", [
        pytest.param(call, error, names, id=names[0]) for call, error, *names in cases])


WHOLE = [(0, ValueError, "at least 1"), (-3, ValueError, "-3"),
         (2.0, TypeError, "must be an integer"), ("4", TypeError, "'4'"),
         (True, TypeError, "bool"), (None, TypeError, "None"), (2**40, ValueError, "at most")]


@pytest.mark.parametrize("value, error, message", WHOLE, ids=lambda value: str(value)[:12])
@pytest.mark.parametrize("name, call", [
    ("bits", lambda v: sl.SimHash(bits=v)),
    ("tables", lambda v: sl.SimHash(tables=v)),
    ("n_dims", lambda v: sl.SimHash().fit(v)),
    ("n_in", lambda v: sl.Linear(v, 3)),
    ("n_out", lambda v: sl.Linear(3, v)),
    ("n_in", lambda v: sl.LSHLinear(v, 3)),
    ("n_out", lambda v: sl.LSHLinear(3, v)),
    ("first", lambda v: rebuild.AtOnce(first=v)),
    ("first", lambda v: rebuild.Exponential(first=v)),
    ("steps", lambda v: rebuild.Every(v)),
    ("check_every", lambda v: rebuild.OnDrift(check_every=v)),
    ("oversample", lambda v: sl.LSHLinear(3, 3, oversample=v)),
    ("epochs", lambda v: fit(epochs=v)),
    ("batch_size", lambda v: fit(batch_size=v)),
    ("batch_size", lambda v: network().partial_fit(X, Y, batch_size=v)),
    ("k", lambda v: trained().topk(X, k=v)),
    ("k", lambda v: fitted().search(X, k=v)),
    ("n", lambda v: fitted().query(X, n=v)),
    ("min_count", lambda v: fitted().query(X, min_count=v)),
    ("n_probes", lambda v: fitted().query(X, n_probes=v)),
    ("k", lambda v: fitted().tune(X, k=v)),
    ("polytopes", lambda v: sl.CrossPolytope(polytopes=v)),
    ("bins", lambda v: sl.DWTA(bins=v)),
    ("hashes", lambda v: sl.MinHash(hashes=v)),
])
def test_a_count_must_be_an_integer_of_at_least_1(name, call, value, error, message):
    check(lambda: call(value), error, name, message)


@pytest.mark.parametrize("value, error, message", [(v, e, m) for v, e, m in WHOLE if v is not None],
                         ids=lambda value: str(value)[:12])
@pytest.mark.parametrize("name, call", [
    ("n_threads", lambda v: network(n_threads=v)),
    ("n_threads", lambda v: sl.LSHIndex(n_threads=v)),
    ("n_threads", lambda v: sl.load("none", n_threads=v)),
    ("n_threads", lambda v: loaded(n_threads=v)),
    ("n ", sl.set_num_threads),
])
def test_a_number_of_threads_must_be_none_or_an_integer_of_at_least_1(
        name, call, value, error, message):
    before = sl.get_num_threads()
    check(lambda: call(value), error, name, message)
    assert sl.get_num_threads() == before


def test_set_num_threads_takes_numpy_integers_and_none():
    before = sl.get_num_threads()
    sl.set_num_threads(np.int64(1))
    assert sl.get_num_threads() == 1
    sl.set_num_threads(None)
    assert sl.get_num_threads() == before


REAL = [(NAN, ValueError, "nan"), (INF, ValueError, "inf"), (10**400, ValueError, "inf"),
        ("0.1", TypeError, "'0.1'"), (None, TypeError, "None"), (True, TypeError, "bool"),
        ([0.1], TypeError, "list")]


@pytest.mark.parametrize("value, error, message", REAL, ids=lambda value: str(value)[:12])
@pytest.mark.parametrize("name, call", [
    ("lr", lambda v: sl.SGD(v)),
    ("momentum", lambda v: sl.SGD(momentum=v)),
    ("weight_decay", lambda v: sl.SGD(weight_decay=v)),
    ("lr", lambda v: sl.Adam(v)),
    ("betas[0]", lambda v: sl.Adam(betas=(v, 0.9))),
    ("betas[1]", lambda v: sl.Adam(betas=(0.9, v))),
    ("eps", lambda v: sl.Adam(eps=v)),
    ("weight_decay", lambda v: sl.Adam(weight_decay=v)),
    ("scaling", lambda v: sl.LSHIndex(scaling=v)),
    ("recall", lambda v: sl.LSHIndex(recall=v)),
    ("density", lambda v: sl.LSHLinear(3, 4, density=v)),
    ("growth", lambda v: rebuild.AtOnce(growth=v)),
    ("rate", lambda v: rebuild.Exponential(rate=v)),
    ("threshold", lambda v: rebuild.OnDrift(threshold=v)),
    ("dropout", lambda v: sl.Linear(3, 4, dropout=v)),
    ("end", lambda v: schedules.Cosine(end=v)),
    ("end", lambda v: schedules.Linear(end=v)),
    ("share", lambda v: schedules.WarmUp(share=v)),
    ("start", lambda v: schedules.WarmUp(start=v)),
    ("factor", lambda v: schedules.Step(factor=v)),
    ("at[0]", lambda v: schedules.Step(at=(v,))),
    ("peak", lambda v: schedules.OneCycle(peak=v)),
    ("momentum[1]", lambda v: schedules.OneCycle(momentum=(0.1, v))),
])
def test_a_number_must_be_finite(name, call, value, error, message):
    check(lambda: call(value), error, name, message)


@table(
    (lambda: sl.SGD(0), ValueError, "lr must be above 0", "0"),
    (lambda: sl.SGD(-1), ValueError, "lr", "-1"),
    (lambda: sl.SGD(momentum=1), ValueError, "momentum must be at least 0 and below 1"),
    (lambda: sl.SGD(momentum=-0.1), ValueError, "momentum"),
    (lambda: sl.SGD(nesterov=True), ValueError, "nesterov=True needs momentum above 0"),
    (lambda: sl.SGD(weight_decay=-1), ValueError, "weight_decay"),
    (lambda: sl.SGD(schedule="step"), ValueError, "schedule", "'linear', 'cosine'", "'step'"),
    (lambda: sl.SGD(schedule=[1]), ValueError, "schedule", "[1]"),
    (lambda: sl.SGD(schedule=3), ValueError, "schedule", "3"),
    (lambda: sl.Adam(0), ValueError, "lr"),
    (lambda: sl.Adam(betas=(0.9, 1)), ValueError, "betas[1]", "below 1"),
    (lambda: sl.Adam(betas=(-0.1, 0.9)), ValueError, "betas[0]", "-0.1"),
    (lambda: sl.Adam(betas=0.9), ValueError, "betas must be a pair", "0.9"),
    (lambda: sl.Adam(betas=(0.9, 0.99, 0.999)), ValueError, "betas must be a pair"),
    (lambda: sl.Adam(eps=0), ValueError, "eps must be above 0"),
    (lambda: sl.Adam(weight_decay=-1), ValueError, "weight_decay"),
    (lambda: sl.SimHash(bits=25), ValueError, "bits", "at most 24", "25"),
    (lambda: sl.SimHash(tables=256), ValueError, "tables", "at most 255"),
    (lambda: sl.SimHash().fit(3, "seed"), ValueError, "random_state", "'seed'"),
    (lambda: sl.SimHash().hash(X), ValueError, "fit"),
    (lambda: sl.SimHash().fit(4).hash(X), ValueError, "V must have 4 columns, got 3"),
    (lambda: sl.SimHash().fit(3).hash(X[0]), ValueError, "V", "two dimensions"),
    (lambda: sl.SimHash().fit(3).hash([["a"]]), TypeError, "V must be numeric"),
    (lambda: sl.Linear(3, 4, activation="tanh"), ValueError, "activation", "'relu'", "'tanh'"),
    (lambda: sl.Linear(3, 4, init_scale=-1), ValueError, "init_scale", "-1"),
    (lambda: sl.LSHLinear(3, 4, density=0), ValueError, "density must be at most 1 and above 0"),
    (lambda: sl.LSHLinear(3, 4, density=1.1), ValueError, "density", "1.1"),
    (lambda: sl.LSHLinear(3, 4, density="all"), TypeError, "density", "'all'"),
    (lambda: sl.LSHLinear(3, 4, active="rows"), ValueError, "active",
     "'batch', 'sample'", "'rows'"),
    (lambda: sl.LSHLinear(3, 4, activation="tanh"), ValueError, "activation", "'tanh'"),
    (lambda: sl.LSHLinear(3, 4, candidates=-1), ValueError, "candidates"),
    (lambda: rebuild.AtOnce(growth=0.5), ValueError, "growth must be at least 1"),
    (lambda: rebuild.Frozen(before="every"), TypeError, "before", "'every'"),
    (lambda: rebuild.Frozen(epochs=-1), ValueError, "epochs", "-1"),
    (lambda: sl.LSHLinear(3, 4, rebuild="every"), TypeError, "rebuild", "'every'"),
    (lambda: sl.LSHLinear(3, 4, sketch_bits=100), ValueError,
     "sketch_bits must be a multiple of 64, got 100"),
    (lambda: sl.LSHLinear(3, 4, plan="fast"), ValueError, "plan", "'fast'"),
    (lambda: sl.LSHLinear(3, 4, policy="best"), ValueError, "policy", "'best'"),
    (lambda: sl.Network([sl.LSHLinear(3, 4, policy="sketches")]), ValueError,
     "policy='sketches'", "active='sample'"),
    (lambda: sl.Network([sl.Linear(3, 4, dropout=0.5)]), ValueError, "layers[0]",
     "dropout=0.5", "hidden layers"),
    (lambda: sl.Linear(3, 4, dropout=1), ValueError, "dropout must be at least 0 and below 1"),
    (lambda: sl.SGD(clip_norm=0), ValueError, "clip_norm must be above 0"),
    (lambda: sl.SGD(schedule=schedules.OneCycle()), ValueError,
     "sets the momentum, but momentum=0", "OneCycle"),
    (lambda: schedules.WarmUp(then="step"), ValueError, "then must be one of", "'step'"),
    (lambda: schedules.Step(at=(0.5, 0.2)), ValueError, "at must rise", "(0.5, 0.2)"),
    (lambda: schedules.Step(at=0.5), TypeError, "at must be a sequence", "0.5"),
    (lambda: schedules.OneCycle(momentum=0.9), ValueError, "momentum must be a pair", "0.9"),
    (lambda: schedules.OneCycle(shape="step"), ValueError, "shape", "'step'"),
    (lambda: sl.LSHLinear(3, 4, min_count=256), ValueError, "min_count", "at most 255"),
    (lambda: sl.LSHLinear(3, 4, family=sl.SimHash(3, 2), n_probes=9), ValueError,
     "n_probes", "at most 8", "9"),
    (lambda: sl.LSHLinear(3, 4, family=sl.MinHash(), n_probes=2), ValueError, "n_probes", "2"),
    (lambda: sl.LSHLinear(3, 4, family="simhash"), TypeError, "family", "'simhash'"),
    (lambda: sl.LSHLinear(3, 4, family=sl.SimHash), TypeError, "family", "SimHash"),
    (lambda: sl.Linear(3, 4).weight, ValueError, "no weights", "set_weights"),
    (lambda: sl.Linear(3, 4).bias, ValueError, "no weights"),
)
def test_wrong_arguments_of_optimizers_families_and_layers_are_refused(call, error, names):
    check(call, error, *names)


@pytest.mark.parametrize("kind", [sl.Linear, sl.LSHLinear])
@table(
    (lambda set_weights: set_weights(np.ones((3, 4))), ValueError,
     "weight must have 3 columns, got 4"),
    (lambda set_weights: set_weights(np.ones((5, 3))), ValueError,
     "weight must have 4 rows, got 5"),
    (lambda set_weights: set_weights(np.ones(3)), ValueError, "weight", "two dimensions"),
    (lambda set_weights: set_weights(np.full((4, 3), NAN)), ValueError,
     "weight", "nan at row 0, column 0"),
    (lambda set_weights: set_weights(np.full((4, 3), 1e300)), ValueError,
     "weight must be finite, got inf"),
    (lambda set_weights: set_weights(np.ones((4, 3)), np.ones(3)), ValueError,
     "bias must have shape (4,), got (3,)"),
    (lambda set_weights: set_weights(np.ones((4, 3)), np.ones((4, 1))),
     ValueError, "bias", "(4, 1)"),
    (lambda set_weights: set_weights(np.ones((4, 3)), [0, 0, INF, 0]),
     ValueError, "bias", "inf at entry 2"),
    (lambda set_weights: set_weights(np.ones((4, 3)), list("abcd")), TypeError,
     "bias must be numeric"),
    (lambda set_weights: set_weights("weights"), TypeError, "weight must be numeric"),
    (lambda set_weights: set_weights(None), TypeError, "weight must be numeric"),
    (lambda set_weights: set_weights([[1, 2, 3], [1]]), ValueError,
     "weight must be a rectangular array"),
    (lambda set_weights: set_weights(sp.csr_array(np.ones((4, 3)))), TypeError,
     "weight", "weight.toarray()"),
)
def test_weights_that_do_not_fit_are_refused(kind, call, error, names):
    layer = kind(3, 4)
    check(lambda: call(layer.set_weights), error, *names)
    assert not layer.initialized


@table(
    (lambda: sl.LSHLinear.from_dense(np.ones(3)), ValueError, "W", "two dimensions"),
    (lambda: sl.LSHLinear.from_dense(np.ones((0, 3))), ValueError, "n_out must be at least 1"),
    (lambda: sl.LSHLinear.from_dense(np.ones((4, 3)), np.ones(5)), ValueError,
     "bias must have shape (4,)"),
    (lambda: sl.LSHLinear.from_dense(np.ones((4, 3)), density=2), ValueError, "density"),
    (lambda: sl.LSHIndex(3), TypeError, "family", "SimHash()", "3"),
    (lambda: sl.LSHIndex(scaling=1.5), ValueError,
     "scaling must be at least 0 and at most 1", "1.5"),
    (lambda: sl.LSHIndex(sketch_bits=100), ValueError,
     "sketch_bits must be a multiple of 64", "100"),
    (lambda: sl.LSHIndex(sketch_bits=2048), ValueError, "sketch_bits", "at most 1024"),
    (lambda: sl.LSHIndex(sketch_bits=64.0), TypeError, "sketch_bits"),
    (lambda: sl.LSHIndex(sketch_bits=0), ValueError, "sketch_bits=0", "give one of them"),
    (lambda: sl.LSHIndex(sl.SimHash), TypeError, "family must be a hash family", "SimHash"),
    (lambda: sl.LSHIndex("SimHash"), TypeError, "family", "'SimHash'"),
    (lambda: sl.LSHIndex(scaling="none"), TypeError, "scaling", "'none'"),
    (lambda: sl.LSHIndex(recall=0), ValueError, "recall must be above 0 and below 1", "0"),
    (lambda: sl.LSHIndex(recall=1), ValueError, "recall must be above 0 and below 1", "1"),
    (lambda: sl.LSHIndex(plan="fast"), ValueError, "plan",
     "'auto', 'sketches', 'probes', 'exact'", "'fast'"),
    (lambda: sl.LSHIndex(plan=None), ValueError, "plan", "None"),
    (lambda: sl.LSHIndex(plan="probes"), ValueError, "plan='probes' needs tables and sketches",
     "give a family"),
    (lambda: sl.LSHIndex(sl.SimHash(), plan="probes", sketch_bits=0), ValueError,
     "leave sketch_bits at None"),
    (lambda: sl.LSHIndex(sketch_bits=-64), ValueError, "sketch_bits must be at least 0", "-64"),
    (lambda: sl.LSHIndex(random_state=-1).fit(X), ValueError, "random_state", "-1"),
    (lambda: sl.LSHIndex(random_state="a").fit(X), ValueError, "random_state", "'a'"),
    (lambda: sl.LSHIndex().search(X), ValueError, "call fit(W) first"),
    (lambda: sl.LSHIndex().update(X, [0]), ValueError, "call fit(W) first"),
    (lambda: sl.LSHIndex(sl.SimHash()).query(X), ValueError, "call fit(W) first"),
    (lambda: sl.LSHIndex().nbytes, ValueError, "call fit(W) first"),
    (lambda: sl.LSHIndex().fit(X[:0]), ValueError, "W must have at least one row", "(0, 3)"),
    (lambda: sl.LSHIndex().fit(X[:, :0]), ValueError, "W", "(4, 0)"),
    (lambda: sl.LSHIndex().fit(X[0]), ValueError, "W", "two dimensions"),
    (lambda: sl.LSHIndex().fit(with_entry(NAN)), ValueError,
     "W must be finite, got nan at row 2, column 1"),
    (lambda: sl.LSHIndex().fit(sp.csr_array(X)), TypeError, "W", "W.toarray()"),
    (lambda: sl.LSHIndex().fit(X.astype(object)), TypeError, "W must be numeric", "object"),
    (lambda: sl.LSHIndex().fit(X.astype(complex)), TypeError, "W must be numeric", "complex"),
    (lambda: sl.LSHIndex().fit(X, np.ones(3)), ValueError, "bias must have shape (4,)"),
    (lambda: sl.LSHIndex().fit(X, [0, 0, 0, NAN]), ValueError, "bias", "entry 3"),
    (lambda: sl.LSHIndex().fit(X, queries=np.ones((2, 4))), ValueError,
     "queries must have 3 columns, got 4"),
    (lambda: sl.LSHIndex().fit(X, queries=with_entry(INF)), ValueError, "queries", "inf"),
    (lambda: fitted().search(np.ones((2, 4))), ValueError, "X must have 3 columns, got 4"),
    (lambda: fitted().search(X[0]), ValueError, "X", "X.reshape(1, -1)"),
    (lambda: fitted().search(with_entry(NAN)), ValueError, "X", "nan"),
    (lambda: fitted().search(sp.csr_array(X)), TypeError, "X", "X.toarray()"),
    (lambda: fitted().search("abc"), TypeError, "X must be numeric"),
    (lambda: fitted().search(X, k=5, n_candidates=4), ValueError,
     "n_candidates must be at least 5"),
    (lambda: fitted().search(X, n_candidates=10.5), TypeError, "n_candidates"),
    (lambda: fitted().query(np.ones((2, 4))), ValueError, "X must have 3 columns, got 4"),
    (lambda: fitted().query(X, min_count=256), ValueError, "min_count", "at most 255"),
    (lambda: sl.LSHIndex().fit(X).query(X), ValueError, "query needs tables", "family=SimHash"),
    (lambda: fitted().query(X, policy="best"), ValueError, "policy",
     "'top', 'score', 'vanilla'", "'best'"),
    (lambda: fitted().query(X, policy=None), ValueError, "policy", "None"),
    (lambda: fitted().query(X, n_probes=9), ValueError,
     "n_probes must be at least 1 and at most 8", "9"),
    (lambda: sl.LSHIndex(sl.MinHash()).fit(X).query(X, n_probes=2), ValueError,
     "n_probes", "MinHash"),
    (lambda: fitted().query(X, seed=-1), ValueError, "seed must be at least 0", "-1"),
    (lambda: fitted().query(X, seed=None), TypeError, "seed must be an integer", "None"),
    (lambda: fitted().query(sp.csr_array(X)), TypeError, "X", "X.toarray()"),
    (lambda: probed().search(with_entry(NAN)), ValueError, "X must be finite"),
    (lambda: fitted().tune(np.ones((2, 4))), ValueError, "queries must have 3 columns, got 4"),
    (lambda: fitted().tune(X[:0]), ValueError, "queries must have at least one row, got none"),
    (lambda: fitted().tune(with_entry(INF)), ValueError, "queries must be finite"),
    (lambda: fitted().tune(X, recall=1.5), ValueError, "recall must be above 0 and below 1", "1.5"),
    (lambda: fitted().tune(X, recall=NAN), ValueError, "recall", "nan"),
    (lambda: fitted().tune(X, recall="0.9"), TypeError, "recall", "'0.9'"),
    (lambda: sl.LSHIndex(sl.SimHash(3, 2), sketch_bits=0).fit(X).tune(X),
     ValueError, "tune needs sketches"),
    (lambda: sl.LSHIndex().tune(X), ValueError, "call fit(W) first"),
    (lambda: sl.LSHIndex().add(X), ValueError, "call fit(W) first"),
    (lambda: sl.LSHIndex().remove([0]), ValueError, "call fit(W) first"),
    (lambda: sl.LSHIndex().report(), ValueError, "call fit(W) first"),
    (lambda: sl.LSHIndex().save("none"), ValueError, "call fit(W) first"),
    (lambda: fitted().add(np.eye(7, 3)), ValueError, "rows must be the new neurons alone",
     "pass rows[6:]"),
    (lambda: fitted().add(np.eye(7, 4)), ValueError, "rows must have 3 columns, got 4"),
    (lambda: fitted().add(np.full((7, 3), NAN)), ValueError, "rows must be finite"),
    (lambda: fitted().add(np.ones(3)), ValueError, "rows must have two dimensions"),
    (lambda: fitted().add(X, ids=[1, 2, 3, 4]), ValueError, "ids must be given to add if"),
    (lambda: with_ids().add(X), ValueError, "ids must be given to add if"),
    (lambda: with_ids().add(X, ids=["a", "g", "h", "i"]), ValueError, "ids must be new", "'a'"),
    (lambda: with_ids().add(X, ids=[1, 2, 3, 4]), ValueError, "ids must be strings"),
    (lambda: with_ids().remove([0]), ValueError, "rows must be", "strings"),
    (lambda: with_ids().remove(["z"]), ValueError, "rows must be ids of this index", "'z'"),
    (lambda: with_ids().remove(["a", "a"]), ValueError, "rows must be distinct"),
    (lambda: with_ids().search(X, allow=["a", "z"]), ValueError, "allow must be ids", "'z'"),
    (lambda: sl.LSHIndex().fit(X, ids=[1, 2, 3]), ValueError,
     "ids must have an entry for each of the 4 rows of W, got 3"),
    (lambda: sl.LSHIndex().fit(X, ids=[1, 1, 2, 3]), ValueError, "ids must be distinct"),
    (lambda: sl.LSHIndex().fit(X, ids=[-1, 1, 2, 3]), ValueError, "ids must be at least 0"),
    (lambda: sl.LSHIndex().fit(X, ids=["", "a", "b", "c"]), ValueError, "ids must not be empty"),
    (lambda: sl.LSHIndex().fit(X, ids=[0.5, 1, 2, 3]), TypeError, "ids must be", "or strings"),
    (lambda: sl.LSHIndex(metric="dot"), ValueError, "metric must be one of 'ip', 'cosine', 'l2'",
     "'dot'"),
    (lambda: sl.LSHIndex(metric="l2", scaling=0.5), ValueError, "scaling must be 'auto' or 0"),
    (lambda: sl.LSHIndex(metric="l2").fit(X, np.ones(4)), ValueError,
     "bias must be None with metric='l2'"),
    (lambda: fitted().search(X, allow=np.ones(5, bool)), ValueError, "allow must have shape (6,)"),
    (lambda: fitted().search(X, exclude=[6]), ValueError, "exclude must lie in 0..5, got 6"),
    (lambda: fitted().search(X, exclude=np.ones((4, 6))), ValueError, "exclude must be a mask"),
    (lambda: fitted().search(X, allow=sp.csr_array((3, 6))), ValueError,
     "allow must have a row for each of the 4 queries and 6 columns, got shape (3, 6)"),
    (lambda: fitted().score(X, [-2]), ValueError, "ids must be between 0 and 5", "got -2"),
    (lambda: fitted().score(X, "a"), ValueError, "ids must have shape (n_ids,)"),
    (lambda: with_ids().score(X, ["z"]), ValueError, "ids must be ids of this index", "'z'"),
    (lambda: sl.LSHIndex(metric="l2").fit(X).logsumexp(X), ValueError,
     "logsumexp needs scores that are inner products, but metric is 'l2'"),
    (lambda: sl.LSHIndex(metric="l2").fit(X).estimate(X), ValueError,
     "estimate needs scores that are inner products, but metric is 'l2'"),
    (lambda: fitted().estimate(X, -1), ValueError, "k must be at least 0, got -1"),
    (lambda: sl.LSHIndex().score(X, [0]), ValueError, "call fit(W) first"),
    (lambda: fitted().search(X, 1, n_candidates=2, certify=True), ValueError,
     "n_candidates must be None with certify or exact, got 2"),
    (lambda: fitted().search(X, 1, n_candidates=2, exact=True), ValueError,
     "n_candidates must be None with certify or exact, got 2"),
    (lambda: fitted().search(X, certify=True, exact=True), ValueError,
     "certify must be False with exact=True"),
    (lambda: fitted().search(X, certify=1.5), ValueError, "certify must be", "1.5"),
    (lambda: fitted().search(X, 1, n_candidates=2, exclude=[0]), ValueError,
     "n_candidates must be None with allow or exclude"),
    (lambda: fitted().add(np.eye(7, 3), np.ones(6)), ValueError,
     "bias must have shape (7,), got (6,)"),
    (lambda: fitted().add(np.eye(7, 3), [INF] * 7), ValueError, "bias must be finite"),
    (lambda: fitted().remove([6]), ValueError, "rows must lie in 0..5, got 6"),
    (lambda: fitted().remove([-1]), ValueError, "rows must lie in 0..5, got -1"),
    (lambda: fitted().remove([2, 2]), ValueError, "rows must be distinct"),
    (lambda: fitted().remove(3), ValueError, "rows must be a one-dimensional array"),
    (lambda: fitted().remove([0.5]), ValueError, "rows", "integers"),
    (lambda: loaded("no such file"), FileNotFoundError, "no such file"),
    (lambda: loaded(W=np.ones(3)), ValueError, "W must have two dimensions"),
    (lambda: loaded(W=np.zeros((0, 3))), ValueError, "W must have at least one row"),
    (lambda: loaded(bias=np.ones(3)), ValueError, "bias must have shape (4,), got (3,)"),
    (lambda: fitted().update(np.eye(6, 3), [6]), ValueError, "rows must lie in 0..5, got 6"),
    (lambda: fitted().update(np.eye(6, 3), [-1]), ValueError, "rows must lie in 0..5, got -1"),
    (lambda: fitted().update(np.eye(6, 3), [2, 2]), ValueError, "rows must be distinct"),
    (lambda: fitted().update(np.eye(6, 3), [0.5]), ValueError, "rows", "integers"),
    (lambda: fitted().update(np.eye(6, 3), 3), ValueError, "rows must be a one-dimensional array"),
    (lambda: fitted().update(np.eye(6, 3), [True] * 6), ValueError, "rows", "integers"),
    (lambda: fitted().update(np.eye(5, 3), [0]), ValueError,
     "W must have 6 rows, all weights, or 1, those that change, got 5"),
    (lambda: fitted().update(np.eye(6, 4), [0]), ValueError, "W must have 3 columns, got 4"),
    (lambda: fitted().update(np.full((6, 3), NAN), [0]), ValueError, "W must be finite"),
)
def test_wrong_arguments_of_the_index_are_refused(call, error, names):
    check(call, error, *names)


def test_rows_that_became_nan_in_place_are_not_indexed():
    W = np.eye(6, 3, dtype=np.float32)
    index = sl.LSHIndex().fit(W)
    W[4, 1] = NAN
    check(lambda: index.update(W, [2, 4]), ValueError, "W", "nan")


def test_a_failed_update_leaves_the_index_as_it_was():
    index = fitted()
    before = index.search(X)
    for W, rows in ((np.eye(5, 3), [0]), (np.full((6, 3), NAN), [0]), (2 * np.eye(6, 3), [7])):
        with pytest.raises(ValueError):
            index.update(W, rows)
    for queries in (X[:0], with_entry(NAN)):
        with pytest.raises(ValueError):
            index.tune(queries)
    for a, b in zip(before, index.search(X), strict=True):
        np.testing.assert_array_equal(a, b)


ONE = sl.Linear(3, 3)


@table(
    (lambda: sl.Network([]), ValueError, "layers", "at least one"),
    (lambda: sl.Network(sl.Linear(3, 4)), TypeError, "layers", "list"),
    (lambda: sl.Network([3]), TypeError, "layers[0] must be Linear or LSHLinear, got 3"),
    (lambda: sl.Network([sl.Linear]), TypeError, "layers[0]"),
    (lambda: sl.Network([sl.Linear(3, 4), sl.Linear(5, 6)]), ValueError,
     "layers[1] takes 5", "layers[0] gives 4"),
    (lambda: sl.Network([ONE, ONE]), ValueError, "layers[1]", "holds already"),
    (lambda: network(loss="hinge"), ValueError, "loss", "'softmax', 'bce', 'mse'", "'hinge'"),
    (lambda: network(loss=None), ValueError, "loss", "None"),
    (lambda: network(loss=sl.SoftmaxCrossEntropy), ValueError, "loss", "SoftmaxCrossEntropy"),
    (lambda: sl.Network([sl.Linear(3, 4)], random_state="a"), ValueError, "random_state", "'a'"),
    (lambda: sl.Network([sl.Linear(3, 4)], random_state=1.5), ValueError, "random_state", "1.5"),
    (lambda: network().topk(X), ValueError, "no weights yet", "fit"),
    (lambda: network().predict(X), ValueError, "no weights yet"),
    (lambda: network().decision_function(X), ValueError, "no weights yet"),
    (lambda: network().save("none"), ValueError, "no weights yet"),
    (lambda: fit(optimizer="adam"), TypeError, "optimizer", "'adam'", "Adam(lr=1e-3)"),
    (lambda: fit(optimizer=sl.Adam), TypeError, "optimizer", "Adam"),
    (lambda: fit(validation=X), ValueError, "validation must be a pair (X, Y)"),
    (lambda: fit(validation=3), ValueError, "validation must be a pair (X, Y)"),
    (lambda: fit(validation=(X[:, :2], Y)), ValueError,
     "validation[0] must have 3 features, got 2"),
    (lambda: fit(validation=(X, [9, 9, 9, 9])), ValueError,
     "validation[1] must lie in 0..4, got 9"),
    (lambda: fit(validation=(X, Y[:2])), ValueError,
     "validation[1] must have as many rows as validation[0]"),
)
def test_wrong_arguments_of_networks_are_refused(call, error, names):
    check(call, error, *names)


# every call that takes inputs makes the same checks
TAKES_X = {
    "fit": lambda x: fit(x, np.zeros(x.shape[0] if hasattr(x, "shape") and x.ndim else 4, int)),
    "partial_fit": lambda x: network().partial_fit(x, Y),
    "topk": lambda x: trained().topk(x),
    "predict": lambda x: trained().predict(x),
    "decision_function": lambda x: trained().decision_function(x),
}


@pytest.mark.parametrize("call_with", TAKES_X.values(), ids=TAKES_X)
@table(
    (lambda call_with: call_with(np.ones((4, 2))), ValueError, "X must have 3 features, got 2"),
    (lambda call_with: call_with(sp.csr_array(np.ones((4, 2)))), ValueError,
     "X must have 3 features, got 2"),
    (lambda call_with: call_with(np.ones(3)), ValueError,
     "X must have two dimensions, got shape (3,)", "X.reshape(1, -1)"),
    (lambda call_with: call_with(np.ones((2, 2, 3))), ValueError, "X must have two dimensions"),
    (lambda call_with: call_with(np.float32(3)), ValueError, "X must have two dimensions"),
    (lambda call_with: call_with(with_entry(NAN)), ValueError,
     "X must be finite, got nan at row 2, column 1", "(1 such values"),
    (lambda call_with: call_with(with_entry(-INF)), ValueError,
     "X must be finite, got -inf at row 2, column 1"),
    (lambda call_with: call_with(with_entry(1e300, float)), ValueError,
     "X must be finite, got inf at row 2, column 1"),
    (lambda call_with: call_with(sp.csr_array(with_entry(NAN))), ValueError,
     "X must be finite, got nan at row 2, column 1"),
    (lambda call_with: call_with(sp.csc_array(with_entry(INF))), ValueError,
     "X must be finite, got inf at row 2, column 1"),
    (lambda call_with: call_with(X.astype(object)), TypeError,
     "X must be numeric, got dtype object"),
    (lambda call_with: call_with(X.astype(complex)), TypeError,
     "X must be numeric, got dtype complex"),
    (lambda call_with: call_with(X.astype(str)), TypeError, "X must be numeric"),
    (lambda call_with: call_with(sp.csr_array(X.astype(complex))), TypeError,
     "X must be numeric, got dtype complex"),
    (lambda call_with: call_with("features"), TypeError, "X must be numeric"),
    (lambda call_with: call_with(None), TypeError, "X must be numeric"),
    (lambda call_with: call_with([[1, 2, 3], [1]]), ValueError, "X must be a rectangular array"),
    (lambda call_with: call_with(sp.coo_array(np.ones(3))), ValueError,
     "X must have two dimensions"),
    (lambda call_with: call_with(np.ma.masked_equal(np.eye(4, 3), 1)),
     ValueError, "X is masked at 3 entries", "X.filled(value)"),
)
def test_wrong_inputs_are_refused(call_with, call, error, names):
    check(lambda: call(call_with), error, *names)


@pytest.mark.parametrize("call",
                         [lambda x: fit(x, Y[:0]), lambda x: network().partial_fit(x, Y[:0])],
                         ids=["fit", "partial_fit"])
@pytest.mark.parametrize("empty", [X[:0], sp.csr_array(X[:0])], ids=["dense", "CSR"])
def test_training_needs_rows(call, empty):
    check(lambda: call(empty), ValueError, "X must have at least one row")


@table(
    (lambda fit: fit([0, 1, 2, 5]), ValueError, "Y must lie in 0..4, got 5"),
    (lambda fit: fit([0, 1, 2, -1]), ValueError, "Y must lie in 0..4, got -1"),
    (lambda fit: fit(np.array([0, 1, 2, 2**33])), ValueError, "Y must lie in 0..4, got 8589934592"),
    (lambda fit: fit(np.array([0, 1, 2, 2**63], np.uint64)), ValueError, "Y must lie in 0..4"),
    (lambda fit: fit([0, 1, 2, 1.5]), ValueError, "Y", "integers"),
    (lambda fit: fit([0, 1, 2, NAN]), ValueError, "Y", "integers"),
    (lambda fit: fit(["a", "b", "c", "d"]), ValueError, "Y", "integers"),
    (lambda fit: fit(np.array([0, 1, 2, 3], object)), ValueError, "Y", "object"),
    (lambda fit: fit([0, 1, 2]), ValueError, "Y must have as many rows as X, got 3 and 4"),
    (lambda fit: fit([]), ValueError, "Y must have as many rows as X, got 0 and 4"),
    (lambda fit: fit(3), ValueError, "Y", "two dimensions"),
    (lambda fit: fit(None), TypeError, "Y"),
    (lambda fit: fit(np.ones((4, 4))), ValueError, "Y must have 5 labels, got 4"),
    (lambda fit: fit(np.ones((3, 5))), ValueError, "Y must have as many rows as X, got 3 and 4"),
    (lambda fit: fit(np.full((4, 5), NAN)), ValueError, "Y must be finite"),
    (lambda fit: fit(sp.csr_array(np.ones((4, 6)))), ValueError, "Y must have 5 labels, got 6"),
    (lambda fit: fit(sp.csr_array(np.ones((3, 5)))), ValueError,
     "Y must have as many rows as X, got 3 and 4"),
    (lambda fit: fit(sp.csr_array(np.full((4, 5), NAN))), ValueError, "Y must be finite"),
    (lambda fit: fit([[0, 1], [2], [3], [4]]), ValueError, "Y", "rectangular"),
    (lambda fit: fit(np.zeros((4, 1), int)), ValueError, "Y has one column",
     "5 labels", "Y.ravel()"),
)
@pytest.mark.parametrize("train", [fit, lambda x, y: network().partial_fit(x, y)],
                         ids=["fit", "partial_fit"])
def test_wrong_targets_are_refused(train, call, error, names):
    check(lambda: call(lambda y: train(X, y)), error, *names)


@table(
    (lambda: fit(y=np.ones(4), loss="mse"), ValueError, "Y must have 5 labels, got 1"),
    (lambda: fit(y=np.full((4, 5), INF), loss="mse"), ValueError, "Y must be finite"),
    (lambda: fit(y=[["a"] * 5] * 4, loss="mse"), TypeError, "Y must be numeric"),
)
def test_wrong_targets_of_a_regression_are_refused(call, error, names):
    check(call, error, *names)


# ---- sparse matrices with corrupt arrays, which scipy does not check


def csr(indptr, indices, data, shape=(3, 4), kind=sp.csr_array):
    """Make a matrix whose arrays are set after scipy's checks."""
    matrix = kind(shape, dtype=np.float32)
    matrix.indptr, matrix.indices = np.array(indptr, np.int32), np.array(indices, np.int32)
    matrix.data = np.array(data, np.float32)
    return matrix


CORRUPT = {
    "a column beyond the last": (csr([0, 1, 2, 3], [0, 4, 1], [1, 1, 1]),
                                 ".indices must lie in 0..3, got 4"),
    "a column far beyond": (csr([0, 1, 2, 3], [0, 2**31 - 1, 1], [1, 1, 1]),
                            ".indices must lie in 0..3"),
    "a negative column": (csr([0, 1, 2, 3], [0, -1, 1], [1, 1, 1]),
                          ".indices must lie in 0..3, got -1"),
    "offsets that decrease": (csr([0, 2, 1, 3], [0, 1, 2], [1, 1, 1]),
                              ".indptr must begin with 0, never fall"),
    "offsets that do not begin with 0": (csr([1, 1, 2, 3], [0, 1, 2], [1, 1, 1]),
                                         ".indptr must begin with 0"),
    "too few offsets": (csr([0, 1, 2], [0, 1], [1, 1]),
                        ".indptr must begin with 0, never fall and have 4 entries"),
    "too many offsets": (csr([0, 1, 2, 3, 3], [0, 1, 2], [1, 1, 1]), "have 4 entries"),
    "offsets beyond the entries": (csr([0, 1, 2, 9], [0, 1, 2], [1, 1, 1]),
                                   "must have indptr[-1] = 9 entries"),
    "fewer values than columns": (csr([0, 1, 2, 3], [0, 1, 2], [1, 1]), "got 3 and 2"),
    "a row beyond the last, by columns": (
        csr([0, 1, 2, 3, 3], [0, 3, 1], [1, 1, 1], kind=sp.csc_array),
        ".indices must lie in 0..2, got 3"),
    "offsets beyond the entries, by columns": (
        csr([0, 1, 2, 3, 9], [0, 1, 2], [1, 1, 1], kind=sp.csc_array),
        "must have indptr[-1] = 9 entries"),
}


@pytest.mark.parametrize("matrix, message", CORRUPT.values(), ids=CORRUPT)
def test_corrupt_sparse_matrices_are_refused(matrix, message):
    net = network(sl.Linear(4, 5))
    check(lambda: net.fit(matrix, [0, 1, 2], epochs=1, verbose=False), ValueError, "X", message)
    net.layers[0].set_weights(np.ones((5, 4)))
    check(lambda: net.topk(matrix), ValueError, "X", message)
    net = network(sl.Linear(2, 4))
    check(lambda: net.fit(np.ones((3, 2)), matrix, epochs=1, verbose=False),
          ValueError, "Y", message)


def test_corrupt_blocks_are_refused():
    matrix = sp.bsr_array(np.ones((4, 4), np.float32), blocksize=(2, 2))
    matrix.indices = np.array([0, 9, 0, 1], np.int32)
    net = network(sl.Linear(4, 5))
    with pytest.raises(ValueError, match="X"):
        net.fit(matrix, [0, 1, 2, 3], epochs=1, verbose=False)


NON_CANONICAL = {
    "unsorted columns": csr([0, 2, 2, 5], [3, 0, 2, 1, 0], [1, 2, 3, 4, 5]),
    "a duplicate column": csr([0, 3, 3, 5], [0, 3, 0, 1, 1], [1, 1, 1, 2, 3]),
    "stored zeros": csr([0, 2, 3, 5], [0, 3, 1, 1, 2], [0, 1, 0, 2, 0]),
    "spare room": csr([0, 1, 1, 2], [3, 0, 77, -5], [1, 2, NAN, 3]),
    "64-bit offsets": sp.csr_array((np.ones(2), np.array([1, 2], np.int64),
                                    np.array([0, 1, 1, 2], np.int64)), (3, 4)),
    "whole numbers": sp.csr_array(np.array([[0, 2, 0, 1], [0, 0, 0, 0], [3, 0, 0, 0]])),
    "truth values": sp.csr_array(np.array([[0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]], bool)),
    "no entries": sp.csr_array((3, 4)),
}


def as_dense(matrix):
    """Return the dense matrix, with duplicates summed by hand."""
    out = np.zeros(matrix.shape, np.float32)
    for i in range(matrix.shape[0]):
        for k in range(matrix.indptr[i], matrix.indptr[i + 1]):
            out[i, matrix.indices[k]] += matrix.data[k]
    return out


@pytest.mark.parametrize("matrix", NON_CANONICAL.values(), ids=NON_CANONICAL)
def test_non_canonical_sparse_matrices_are_accepted(matrix):
    kept = matrix.indptr.copy(), matrix.indices.copy(), matrix.data.copy()
    X, labels = sp.csr_array(as_dense(matrix)), np.array([0, 1, 2])
    as_input = [network(sl.Linear(4, 5)).fit(x, labels, epochs=2,
                                             verbose=False) for x in (matrix, X)]
    as_target = [network(sl.Linear(2, 4)).fit(np.eye(3, 2), y, epochs=2,
                                              verbose=False) for y in (matrix, X)]
    as_values = [network(sl.Linear(2, 4), loss="mse").fit(np.eye(3, 2), y, epochs=2, verbose=False)
                 for y in (matrix, X)]
    for a, b in (as_input, as_target, as_values):
        np.testing.assert_array_equal(a.layers[0].weight, b.layers[0].weight)
    np.testing.assert_array_equal(as_input[0].decision_function(matrix),
                                  as_input[0].decision_function(X))
    for before, after in zip(kept, (matrix.indptr, matrix.indices, matrix.data), strict=True):
        np.testing.assert_array_equal(before, after)


def test_a_refused_call_leaves_the_network_as_it_was():
    net = trained()
    before = [layer.weight.copy() for layer in net.layers]
    for x, y in ((with_entry(NAN), Y), (X, [0, 1, 2, 9]), (X[:, :2], Y)):
        with pytest.raises(ValueError):
            net.fit(x, y, verbose=False)
    for layer, weight in zip(net.layers, before, strict=True):
        np.testing.assert_array_equal(layer.weight, weight)
    assert len(net.history) == 1


def test_offsets_whose_differences_overflow_are_refused():
    # their differences were compared with 0, and SciPy then wrote outside of its arrays
    least = np.iinfo(np.int64).min
    matrix = sp.csr_array((2, 4), dtype=np.float32)
    matrix.indptr = np.array([0, 1, least])
    matrix.indices, matrix.data = np.zeros(1, np.int64), np.ones(1, np.float32)
    net = sl.Network([sl.Linear(4, 3)], random_state=0)
    with pytest.raises(ValueError, match=r"X\.indptr must begin with 0, never fall"):
        net.partial_fit(matrix, [0, 1])
