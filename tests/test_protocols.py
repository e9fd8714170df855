"""Families, policies, losses, optimizers and schedules of a user's own, by the protocols alone."""
import pickle
import warnings

import numpy as np
import pytest

import sparselsh as sl

N_IN, N_HIDDEN, N_OUT, N_ROWS = 24, 16, 1200, 600
rng = np.random.default_rng(0)
X = rng.standard_normal((N_ROWS, N_IN)).astype(np.float32)
Y = rng.integers(N_OUT, size=N_ROWS)
FAMILY = {"tables": 5, "bits": 6}


class Signs:
    """SimHash in NumPy, with nothing but what the protocol names."""

    def __init__(self, tables=5, bits=6):
        self.tables, self.bits = tables, bits

    @property
    def n_buckets(self):
        return 2**self.bits

    def fit(self, n_dims, random_state=None):
        shape = n_dims, self.tables * self.bits
        self.planes = np.random.default_rng(random_state).standard_normal(shape)
        return self

    def hash(self, V, *, n_threads=1):
        V = V if isinstance(V, np.ndarray) else V.to_dense()
        signs = (self.planes.T @ V.T > 0).T.reshape(len(V), self.tables, self.bits)
        return (signs @ (1 << np.arange(self.bits))).astype(np.int32)

    def probe(self, V, n_probes, *, n_threads=1):
        return self.hash(V)[:, :, None]

    def config(self):
        return {"tables": self.tables, "bits": self.bits}


class MostShared:
    """The built-in policy "top"."""

    def choose(self, x, n, neurons):
        return neurons.collisions(n)[0]


class LargestOutputs:
    """An oracle: the neurons with the largest outputs."""

    def choose(self, x, n, neurons):
        return np.argsort(-(x @ neurons.weight.T + neurons.bias), axis=1)[:, :n]


class Softmax:
    outputs = "classes"

    def __call__(self, z, targets, is_computed):
        z = np.where(is_computed, z, -np.inf).astype(np.float64)
        z -= z.max(axis=1, keepdims=True)
        p = np.exp(z)
        total, n_labels = p.sum(axis=1, keepdims=True), targets.sum(axis=1, keepdims=True)
        own = np.where(targets > 0, z, 0).sum(axis=1) / n_labels[:, 0]
        return np.log(total[:, 0]) - own, p / total - targets / n_labels


class SquaredError:
    outputs = "values"

    def __call__(self, z, targets, is_computed):
        difference = np.where(is_computed, z - targets, 0)
        return (difference**2).sum(axis=1), 2 * difference


class HeavyBall:
    """SGD with momentum."""

    n_states = 1

    def update(self, w, g, states, *, lr, n_steps):
        states[0] *= 0.9
        states[0] += g
        w -= lr * states[0]


def network(*, active="batch", density=0.05, loss="softmax", dtype="float32", **options):
    options = {"family": sl.SimHash(6, 5)} | options
    plan = "auto" if active == "batch" else "rows"
    layers = [sl.Linear(N_IN, N_HIDDEN, activation="relu"),
              sl.LSHLinear(N_HIDDEN, N_OUT, density=density, active=active, plan=plan,
                           dtype=dtype, **options)]
    return sl.Network(layers, loss=loss, random_state=0)


def losses(net, optimizer=None, **options):
    options = {"epochs": 3, "batch_size": 32, "verbose": False} | options
    net.fit(X, Y, optimizer=optimizer or sl.SGD(0.1), **options)
    return [entry["loss"] for entry in net.history]


@pytest.mark.parametrize("active", ["batch", "sample"])
def test_a_policy_of_ones_own_that_does_what_top_does_trains_the_same_network(active):
    own, given = network(active=active, policy=MostShared()), network(active=active, policy="top")
    assert losses(own) == losses(given)
    assert all(np.array_equal(a, b) for a, b in zip(own.get_weights(), given.get_weights(),
                                                    strict=True))


@pytest.mark.parametrize("active", ["batch", "sample"])
def test_a_loss_of_ones_own_trains_as_the_built_in_one(active):
    got = losses(network(active=active, loss=Softmax()))
    np.testing.assert_allclose(got, losses(network(active=active)), rtol=1e-5)


def test_weights_of_samples_reach_a_loss_of_ones_own():
    weight = np.where(np.arange(N_ROWS) % 3 == 0, 0, 2).astype(np.float32)
    got = losses(network(loss=Softmax()), sample_weight=weight)
    wanted = losses(network(), sample_weight=weight)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    assert not np.allclose(got, losses(network()), rtol=1e-2)


def test_a_loss_of_values_reads_targets_and_predicts_values():
    targets = rng.standard_normal((N_ROWS, 7)).astype(np.float32)
    nets = [sl.Network([sl.Linear(N_IN, 7)], loss=loss, random_state=0).fit(
        X, targets, epochs=3, optimizer=sl.SGD(0.01), verbose=False)
        for loss in ("mse", SquaredError())]
    np.testing.assert_allclose(nets[1].predict(X), nets[0].predict(X), atol=1e-5)
    with pytest.raises(ValueError, match="predicts values"):
        nets[1].predict_proba(X)


def test_outputs_of_a_loss_say_how_probabilities_are_made():
    net = sl.Network([sl.Linear(N_IN, 7)], loss=Softmax(), random_state=0)
    net.fit(X, Y % 7, epochs=1, verbose=False, validation=(X, Y % 7))
    np.testing.assert_allclose(net.predict_proba(X).sum(axis=1), 1, atol=1e-5)
    assert "val_loss" in net.history[0]


@pytest.mark.parametrize("active", ["batch", "sample"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_rule_of_ones_own_updates_as_sgd_does(active, dtype):
    rule = sl.CustomOptimizer(HeavyBall(), 0.05, schedule="linear", clip_norm=1.0)
    own, given = network(active=active, dtype=dtype), network(active=active, dtype=dtype)
    got, wanted = losses(own, rule), losses(given, sl.SGD(
        0.05, momentum=0.9, schedule="linear", clip_norm=1.0))
    # bfloat16 is rounded at random by the kernel, and to nearest here
    np.testing.assert_allclose(got, wanted, rtol=1e-5 if dtype == "float32" else 2e-2)
    assert rule.grad_norm > 0


def test_a_rule_updates_input_major_layers_and_keeps_its_state():
    import scipy.sparse as sp

    sparse = sp.csr_array(np.where(np.abs(X) > 1, X, 0))
    rule = sl.CustomOptimizer(HeavyBall(), 0.05)
    nets = [network(), network()]
    for _ in range(2):  # the second training goes on with the momentum of the first
        nets[0].fit(sparse, Y, epochs=1, batch_size=32, optimizer=rule, verbose=False)
    given = sl.SGD(0.05, momentum=0.9)
    for _ in range(2):
        nets[1].fit(sparse, Y, epochs=1, batch_size=32, optimizer=given, verbose=False)
    assert rule.n_steps == given.n_steps > 0
    np.testing.assert_allclose(nets[0].layers[0].weight, nets[1].layers[0].weight, atol=1e-5)


def test_a_rule_that_raises_leaves_the_weights_as_they_were():
    class Fails(HeavyBall):
        n_calls = 0

        def update(self, w, g, states, **options):
            self.n_calls += 1
            super().update(w, g, states, **options)
            if self.n_calls == 7:  # the third array of the second step
                raise RuntimeError("own error")

    net = network()
    losses(net, epochs=1)
    before = net.get_weights()
    net.optimizer = None
    with pytest.raises(RuntimeError, match="own error"):
        net.fit(X[:64], Y[:64], optimizer=sl.CustomOptimizer(Fails(), 0.05), batch_size=32,
                verbose=False)
    first = net.get_weights()
    assert not np.array_equal(first[0], before[0])  # one step was taken, and a half undone
    net.resume(X[:64], Y[:64], verbose=False)
    assert net.training_progress.is_done


@pytest.mark.parametrize("options", [{"active": "batch"}, {"active": "sample"},
                                     {"active": "batch", "policy": "vanilla"}])
def test_a_family_of_ones_own_trains_and_answers(options):
    net = network(family=Signs(**FAMILY), **options)
    history = losses(net, sl.Adam(1e-2), epochs=10)
    assert history[-1] < history[0] - 0.1
    assert net.history[-1]["computed_share"] < 0.1
    ids, _ = net.topk(X[:5], 3)
    copied = pickle.loads(pickle.dumps(net))
    assert np.array_equal(copied.topk(X[:5], 3)[0], ids)


def test_a_family_of_ones_own_finds_what_simhash_with_its_planes_finds():
    class Planes(Signs):
        def fit(self, n_dims, random_state=None):
            self.planes = sl.SimHash(self.bits, self.tables).fit(
                n_dims, random_state)._projections.planes
            return self

    W = rng.standard_normal((300, 12)).astype(np.float32)
    found = [sl.LSHIndex(family, center=False, random_state=0).fit(W).query(W[:20], 5).toarray()
             for family in (Planes(4, 6), sl.SimHash(6, 4))]
    # projections within rounding of zero may differ
    assert (found[0] == found[1]).mean() > 0.98


def test_an_oracle_can_be_compared_with_hashing():
    class Watch(sl.callbacks.Callback):
        def __init__(self):
            self.found = []

        def on_active_sets(self, network, sets):
            self.found.append(sets[-1].found)

    watch = Watch()
    net = network(policy=LargestOutputs(), candidates=3)
    losses(net, callbacks=[watch], epochs=1)
    assert all(found.shape[1] == 3 for found in watch.found)


@pytest.mark.parametrize("active", ["batch", "sample"])
def test_on_active_sets_tells_what_was_computed(active):
    class Watch(sl.callbacks.Callback):
        def __init__(self):
            self.sizes, self.checked = [], 0

        def on_active_sets(self, network, sets):
            (layer,) = sets  # the first layer is dense
            assert (layer.layer, layer.n_neurons) == (1, N_OUT)
            n = len(layer.labels.indptr) - 1
            assert layer.found.shape[0] == n
            for i in range(n):
                part = (slice(None) if layer.starts is None
                        else slice(layer.starts[i], layer.starts[i + 1]))
                mine = layer.ids[part]
                labels = layer.labels.indices[layer.labels.indptr[i]:layer.labels.indptr[i + 1]]
                assert np.array_equal(mine, np.unique(mine))
                assert np.isin(labels, mine).all()
                self.checked += 1
            self.sizes.append(len(layer.ids))

    watch = Watch()
    net = network(active=active)
    losses(net, callbacks=[watch], epochs=1)
    assert watch.checked == N_ROWS
    computed = sum(watch.sizes) / N_OUT / (len(watch.sizes) if active == "batch" else N_ROWS)
    np.testing.assert_allclose(net.history[0]["computed_share"], computed, rtol=0.02)


def test_a_schedule_of_ones_own_sets_the_rate_of_each_step():
    seen = []

    class Halves:
        def __call__(self, t):
            seen.append(t)
            return 0.5

    got = losses(network(), sl.SGD(0.2, schedule=Halves()))
    assert got == losses(network(), sl.SGD(0.1))
    assert seen[0] == 0 and max(seen) < 1 and sorted(seen) == seen


# -- refusals --------------------------------------------------------------------------------------


class Broken(Signs):
    """A family whose codes are wrong in a given way."""

    def __init__(self, change):
        super().__init__(**FAMILY)
        self.change = change

    def hash(self, V, *, n_threads=1):
        return self.change(super().hash(V))


@pytest.mark.parametrize("change, words", [
    (lambda codes: codes + 64, "Broken.hash must give buckets of 0 to n_buckets - 1 = 63, or -1"),
    (lambda codes: codes[:, :2], "Broken.hash must give whole numbers of shape .*got int32 of"),
    (lambda codes: codes / 2, "Broken.hash must give whole numbers of shape .*got float64"),
])
def test_codes_of_a_family_are_checked(change, words):
    with pytest.raises(ValueError, match=words):
        losses(network(family=Broken(change)))
    with pytest.raises(ValueError, match=words):
        sl.LSHIndex(Broken(change)).fit(X)


@pytest.mark.parametrize("chosen, words", [
    (lambda x, n: np.full((len(x), n), N_OUT), f"Wrong.choose must give neurons of 0 to {N_OUT-1}"),
    (lambda x, n: np.zeros((len(x), n + 1), int), "Wrong.choose must give whole numbers of shape"),
    (lambda x, n: np.zeros((1, n)), "Wrong.choose must give whole numbers of shape .*got float64"),
])
def test_what_a_policy_chooses_is_checked(chosen, words):
    class Wrong:
        def choose(self, x, n, neurons):
            return chosen(x, n)

    net = network(policy=Wrong())
    with pytest.raises(ValueError, match=words):
        losses(net)


@pytest.mark.parametrize("result, error, words", [
    ((np.zeros(3), np.zeros((3, 2))), ValueError, r"loss Wrong must give losses of shape \(32,\)"),
    (3.0, TypeError, "loss Wrong: .*sparselsh.protocols.Loss says how"),
])
def test_what_a_loss_gives_is_checked(result, error, words):
    class Wrong:
        outputs = "labels"

        def __call__(self, z, targets, is_computed):
            return result

    with pytest.raises(error, match=words):
        losses(network(loss=Wrong()))


@pytest.mark.parametrize("call, error, words", [
    (lambda: network(family=Signs), TypeError, "family must be a hash family"),
    (lambda: network(family="auto"), TypeError, "family must be a hash family"),
    (lambda: network(family=type("Half", (), {"tables": 3, "hash": 0})()), TypeError,
     "lacks n_buckets, fit, probe, config; sparselsh.protocols.HashFamily"),
    (lambda: network(family=Signs(tables=300)), ValueError,
     "family.tables must be at least 1 and at most 255"),
    (lambda: network(policy=3), TypeError, "policy must be one of .* or an object with the method"),
    (lambda: network(policy=MostShared), TypeError, "policy must be one of"),
    (lambda: network(policy="best"), ValueError, "policy must be one of"),
    (lambda: network(loss=lambda z, targets, mask: 0), TypeError, "lacks outputs"),
    (lambda: network(loss=Softmax), ValueError, "loss must be one of 'softmax'"),
    (lambda: losses(network(), HeavyBall()), TypeError, r"CustomOptimizer\(rule, lr\)"),
    (lambda: sl.CustomOptimizer(HeavyBall), TypeError, "rule must be an object with the method"),
    (lambda: sl.CustomOptimizer(HeavyBall(), lr=0), ValueError, "lr must be above 0"),
])
def test_what_is_no_part_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("options, optimizer", [
    ({"family": Signs(**FAMILY)}, None), ({"policy": MostShared()}, None),
    ({"loss": Softmax()}, None), ({}, sl.CustomOptimizer(HeavyBall(), 0.1))])
def test_a_file_refuses_parts_of_ones_own_and_names_pickle(options, optimizer, tmp_path):
    net = network(**options)
    losses(net, optimizer, epochs=1)
    with pytest.raises(TypeError, match="use pickle"):
        net.save(tmp_path / "net.safetensors", training_state=True)
    assert list(tmp_path.iterdir()) == []


# -- labels that fill the set ----------------------------------------------------------------------


def test_a_warning_says_that_labels_fill_the_set_and_which_options_have_no_effect():
    net = network(density=0.02, family=None)
    with pytest.warns(UserWarning, match=r"layers\[1\]: the labels of a batch of 256 rows are more "
                                         r"than the 24 neurons .*density changes nothing"):
        losses(net, batch_size=256, epochs=1)
    other = network(density=0.01, family=None)
    with pytest.warns(UserWarning):
        assert losses(other, batch_size=256, epochs=1) == [net.history[0]["loss"]]


def test_the_warning_names_the_line_of_the_user():
    net = network(density=0.02)
    with pytest.warns(UserWarning, match="density and family change nothing") as caught:
        net.fit(X, Y, epochs=1, verbose=False)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("options, batch_size", [
    ({"density": 0.5, "family": None}, 256), ({"density": 0.05}, 16),
    ({"density": "auto", "family": None}, 256), ({"density": 0.02, "active": "sample"}, 256)])
def test_there_is_no_warning_where_options_have_an_effect_or_none_was_set(options, batch_size):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses(network(**options), batch_size=batch_size, epochs=1)
