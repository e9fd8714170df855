"""Rebuild policies: when each rebuilds, what it hashes in between, and that a file keeps it."""
import copy

import numpy as np
import pytest

import sparselsh as sl
from sparselsh import rebuild
from sparselsh.index import _file
from sparselsh.layers import Step

POLICIES = [
    rebuild.AtOnce(4, 2.0), rebuild.Exponential(5, 0.2), rebuild.Every(7), rebuild.OnDrift(0.2, 3),
    rebuild.Frozen(2, rebuild.Every(3)), rebuild.Frozen(1, rebuild.OnDrift()),
]


def builds(policy, n_steps, steps_per_epoch=10, drift=lambda: 0.0):
    clock = policy.start()
    return [step for step in range(n_steps) if clock.due(step, step // steps_per_epoch, drift)]


def test_policies_rebuild_at_their_intervals():
    assert builds(rebuild.AtOnce(4, 2.0), 40) == [0, 4, 12, 28]
    assert builds(rebuild.Every(7), 30) == [0, 7, 14, 21, 28]
    # SLIDE: sums of N0 exp(lambda i)
    want = np.cumsum([0, *(round(5 * np.exp(0.2 * i)) for i in range(5))])
    assert builds(rebuild.Exponential(5, 0.2), want[-1] + 1) == list(want)
    assert builds(rebuild.Frozen(2, rebuild.Every(3)), 60) == [0, 3, 6, 9, 12, 15, 18]
    assert builds(rebuild.Frozen(0), 30) == []


def test_drift_is_measured_at_intervals_and_triggers_the_rebuild():
    measured = []
    drifts = iter([0.1, 0.3, 0.0, 0.5])
    policy = rebuild.OnDrift(0.2, 3)
    clock = policy.start()

    def drift():
        measured.append(1)
        return next(drifts)

    built = [step for step in range(14) if clock.due(step, 0, drift)]
    assert len(measured) == 4, "at steps 3, 6, 9 and 12"
    assert built == [0, 6, 12], "at step 0 in any case, then where the drift was above 0.2"


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_one_policy_serves_several_layers_independently_and_a_file_keeps_it(policy):
    first, second = policy.start(), policy.start()
    steps = [first.due(step, 0, lambda: 1.0) for step in range(20)]
    assert [second.due(step, 0, lambda: 1.0) for step in range(20)] == steps
    assert rebuild.from_config(rebuild.config(policy)) == policy
    third = policy.start()
    third.restore(first.state())
    later = range(20, 60)
    assert ([third.due(step, 0, lambda: 0.5) for step in later]
            == [first.due(step, 0, lambda: 0.5) for step in later])
    assert copy.deepcopy(first).due(10**6, 0, lambda: 1.0) == first.due(10**6, 0, lambda: 1.0)


# ---- the effect on a layer


def network(policy, rng, active="batch"):
    layer = sl.LSHLinear(16, 300, density=0.2, active=active, policy="top",
                         rebuild=policy, family=sl.SimHash(5, 8))
    net = sl.Network([sl.Linear(12, 16), layer], random_state=0)
    return net, layer


def data(rng):
    return rng.standard_normal((120, 12), np.float32), rng.integers(0, 300, 120)


def codes_of(layer):
    tables = layer._finder.engine.tables
    now = tables.family.hash(
        layer._finder.engine.vectors(np.arange(layer.n_out, dtype=np.int32), 1))
    return tables.codes, now


@pytest.mark.parametrize("policy, follows",
                         [(rebuild.AtOnce(10**6), True), (rebuild.Every(10**6), False)])
def test_changed_rows_are_hashed_at_once_or_at_the_next_rebuild(rng, policy, follows):
    net, layer = network(policy, rng)
    net.fit(*data(rng), optimizer=sl.Adam(1e-2), epochs=3, batch_size=40, verbose=False)
    stored, now = codes_of(layer)
    assert (stored == now).all() == follows


def test_drift_of_tables_is_the_fraction_of_codes_that_changed(rng):
    net, layer = network(rebuild.Every(10**6), rng)
    net.fit(*data(rng), optimizer=sl.Adam(1e-2), epochs=3, batch_size=40, verbose=False)
    stored, now = codes_of(layer)
    drift = layer._finder.engine.drift(np.arange(300, dtype=np.int32), 1)
    assert drift == pytest.approx((stored != now).mean()) and drift > 0


def test_with_a_large_learning_rate_tables_are_rebuilt_more_often(rng):
    X, y = data(rng)
    n_builds = []
    for lr in (1e-5, 3e-2):
        net, _layer = network(rebuild.OnDrift(0.2, 1), rng)
        profile = net.profile(X, y, optimizer=sl.Adam(lr), batch_size=20, steps=30, warm_up=1)
        n_builds.append(profile.rows[1]["rebuilds"])
    assert n_builds[0] == 0 and n_builds[1] >= 2


def test_frozen_tables_insert_labels_into_the_buckets_of_their_inputs(rng):
    # once the tables are frozen, inputs find their own labels: the fraction of labels found rises
    X, y = data(rng)
    found = {}
    for policy in (rebuild.Frozen(0), rebuild.Every(10**6)):
        net, layer = network(policy, rng, active="sample")
        net.fit(X, y, optimizer=sl.Adam(1e-6), epochs=2, batch_size=40, verbose=False)
        h = net._hidden(X, 0, len(X), 1)
        ids = layer._found(h, layer.n_active, Step())
        found[type(policy)] = (ids == y[:, None]).any(axis=1).mean()
    assert found[rebuild.Frozen] > 0.95, "each label was inserted into eight buckets of its input"
    assert found[rebuild.Every] < 0.7, "measured: 0.45, for sets of 60 of 300 neurons"


def test_frozen_tables_are_not_rebuilt(rng):
    net, layer = network(rebuild.Frozen(1, rebuild.Every(1)), rng)
    X, y = data(rng)
    net.fit(X, y, optimizer=sl.Adam(1e-2), epochs=1, batch_size=40, verbose=False)
    before = layer._finder.engine.tables.codes.copy()
    net.fit(X, y, optimizer=sl.Adam(1e-2), epochs=3, batch_size=40, verbose=False)
    np.testing.assert_array_equal(layer._finder.engine.tables.codes, before)


@pytest.mark.parametrize("active", ["batch", "sample"])
def test_a_checkpoint_of_frozen_tables_keeps_the_inserted_labels(rng, tmp_path, active):
    net, layer = network(rebuild.Frozen(0), rng, active)
    X, y = data(rng)
    net.fit(X, y, optimizer=sl.Adam(1e-2), epochs=2, batch_size=40, verbose=False)
    tables = layer._finder.engine.tables
    assert (tables.count.sum()
            > (tables.codes
               >= 0).sum()), "some neurons are in more buckets than those of their codes"
    net.save(tmp_path / "net", training_state=True)
    loaded = sl.load(tmp_path / "net")
    again = loaded.layers[1]._finder.engine.tables
    for name in ("start", "count", "room", "tail", "codes"):
        np.testing.assert_array_equal(getattr(again, name), getattr(tables, name))
    # the room between buckets, which nobody has written, is not in the file
    ids = _file.BucketIds(tables.ids, tables.start, tables.count)[:]
    np.testing.assert_array_equal(again.ids, ids)
    for one in (net, loaded):
        one.fit(X, y, optimizer=sl.Adam(1e-2), epochs=1, batch_size=40, verbose=False)
    np.testing.assert_array_equal(loaded.layers[1].weight, layer.weight)


def test_a_full_table_grows_for_inserted_labels(rng):
    index = sl.LSHIndex(sl.SimHash(3, 4), sketch_bits=0, dynamic=True, random_state=0)
    index.fit(rng.standard_normal((40, 8), np.float32))
    x = rng.standard_normal((200, 8), np.float32)
    samples = np.repeat(np.arange(200, dtype=np.int32), 40)
    neurons = np.tile(np.arange(40, dtype=np.int32), 200)
    for _ in range(2):  # the second pass changes nothing: a neuron is in a bucket once
        index._engine.insert(x, samples, neurons, 1)
    ids, counts = index._engine.candidates(x, 40, 1)
    assert (np.sort(ids, axis=1) == np.arange(40)).all() and (counts == 4).all()
