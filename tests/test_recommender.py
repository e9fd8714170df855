"""Recommender: sequences of items in, the next items out."""
import pickle

import numpy as np
import pytest

import sparselsh as sl
from sparselsh.text._recommender import _numbers

pytest.importorskip("safetensors")

N_ITEMS = 60


def sessions(rng, n, items=N_ITEMS):
    """Walks on a ring: the next item is the next number, or the one after it."""
    found = []
    for _ in range(n):
        place, row = rng.integers(items), []
        for _ in range(rng.integers(3, 9)):
            row.append(f"item {place}")
            place = (place + rng.integers(1, 3)) % items
        found.append(row)
    return found


@pytest.fixture(scope="module")
def shop():
    return sl.Recommender(random_state=0, hidden=48).fit(sessions(np.random.default_rng(0), 800))


def test_what_follows_is_recommended(shop, rng):
    right = 0
    for place in range(N_ITEMS):
        history = [f"item {(place - 1) % N_ITEMS}", f"item {place}"]
        pairs = shop.recommend(history, k=2)
        right += {name for name, _ in pairs} == {f"item {(place + 1) % N_ITEMS}",
                                                 f"item {(place + 2) % N_ITEMS}"}
        assert 0 < pairs[1][1] <= pairs[0][1] <= 1
    assert right > 0.9 * N_ITEMS
    assert shop.score(sessions(rng, 100), k=4) > 0.95


def test_probabilities_are_those_of_what_follows(shop, rng):
    rows = sessions(rng, 400)
    found = shop.recommend([row[:-1] for row in rows], k=1, exclude_seen=False)
    p = [best for ((_, best),) in found]
    right = [name == row[-1] for ((name, _),), row in zip(found, rows, strict=True)]
    assert np.mean(p) == pytest.approx(np.mean(right), abs=0.08)


def test_seen_items_are_left_out(shop):
    history = [f"item {j}" for j in (5, 6, 7, 9, 8)]
    every = shop.recommend(history, k=N_ITEMS, exclude_seen=False)
    others = shop.recommend(history, k=N_ITEMS)
    assert len(every) == N_ITEMS and len(others) == N_ITEMS - 5
    assert not {name for name, _ in others} & set(history)
    assert [pair[0] for pair in every if pair[0] not in history] == [name for name, _ in others]
    few = shop.recommend(history, k=3)
    assert [name for name, _ in few] == [name for name, _ in others[:3]]


def test_several_histories_at_once(shop):
    histories = [["item 3"], ["item 4", "item 5"], []]
    found = shop.recommend(histories, k=2)
    assert len(found) == 3 and found[0] == shop.recommend(["item 3"], k=2)
    assert shop.recommend([["item 3"]], k=2) == found[:1]
    assert shop.recommend((), k=2) == found[2]
    assert shop.recommend(["unheard"], k=2) == found[2]  # what follows most often


def test_rows_are_the_last_items_with_falling_weights():
    shop = sl.Recommender(n_last=3, decay=0.5)
    ids = {name: j for j, name in enumerate("abcd")}
    x, y = shop._steps(*_numbers([list("abcda"), list("bab"), ["c"]], ids), 4)
    want = [{0: 1}, {0: 0.5, 1: 1}, {0: 0.25, 1: 0.5, 2: 1}, {1: 0.25, 2: 0.5, 3: 1},
            {1: 1}, {1: 0.5, 0: 1}]
    dense = np.zeros((6, 4), np.float32)
    for i, row in enumerate(want):
        dense[i, list(row)] = list(row.values())
    np.testing.assert_array_equal(x.to_dense(), dense)
    assert y.indices.tolist() == [1, 2, 3, 0, 0, 1]
    x, _ = shop._steps(*_numbers([list("aab")], ids), 4)  # a repeated item counts by its last place
    assert x.to_dense()[1].tolist() == [1, 0, 0, 0]


def test_new_items_are_added(shop, rng):
    grown = pickle.loads(pickle.dumps(shop))
    rows = [[name.replace("item 7", "new 7") for name in row] for row in sessions(rng, 400)]
    rows = [row for row in rows if any(name.startswith("new") for name in row)]
    assert grown.add_items(rows) is grown
    assert grown.items_[:N_ITEMS].tolist() == shop.items_.tolist() and "new 7" in grown.items_
    # as before; each of the two follows in half of the sessions
    assert {name for name, _ in grown.recommend(["item 30"], k=2)} == {"item 31", "item 32"}
    assert grown.recommend(["new 7"], k=2)[0][0] in ("item 8", "item 9")
    assert "new 7" in [name for name, _ in grown.recommend(["item 5", "item 6"], k=3)]


def test_partial_fit_begins_and_goes_on(rng):
    shop = sl.Recommender(random_state=0, hidden=32).partial_fit(sessions(rng, 300, 40))
    shop.partial_fit(sessions(rng, 300, 50))
    assert len(shop.items_) == 50 and shop.score(sessions(rng, 60, 50), k=6) > 0.8


def shown(items):
    """Sessions as they are given to a Recommender."""
    return [[f"item {j}" for j in row] for row in items]


@pytest.fixture(scope="module")
def clicks():
    """Sessions in which what follows depends on the item before the last, in their order."""
    rng, rows = np.random.default_rng(5), []
    for _ in range(1500):
        row = rng.integers(0, 20, 2).tolist()
        while len(row) < rng.integers(4, 8):  # a network that adds up items cannot tell their order
            row.append((row[-2] + 7 * row[-1] + rng.integers(0, 2)) % 40)
        rows.append(row)
    return shown(rows)


def test_votes_of_sessions_help(clicks):
    training, test = clicks[:1200], clicks[1200:]
    options = {"hidden": 16, "epochs": 2, "random_state": 0}
    voted = sl.Recommender(**options).fit(training)
    alone = sl.Recommender(neighbors=0, **options).fit(training)
    assert voted.score(test, k=5) > alone.score(test, k=5) + 0.05


def test_without_a_vote_the_network_answers(shop):
    row = shop._rows(np.zeros(0, np.int32), np.array([0]), np.array([0]), N_ITEMS)
    ids, p = shop.network_.topk(row, 5, probabilities=True)
    assert shop.recommend(["unheard"], k=5) == list(zip(shop.items_[ids[0]], p[0].tolist(),
                                                        strict=True))


@pytest.mark.parametrize("k", [1, 7, N_ITEMS])
def test_answers_are_the_same_alone_and_together(shop, rng, k):
    rows = [row[:-1] for row in sessions(rng, 40)] + [[], ["unheard"]]
    together = shop.recommend(rows, k=k)
    assert together == [shop.recommend(row, k=k) for row in rows]
    for pairs in together:
        p = [value for _, value in pairs]
        assert p == sorted(p, reverse=True) and len({name for name, _ in pairs}) == len(pairs)
        assert sum(p) <= 1.0001  # float32


@pytest.mark.parametrize("k", [3, N_ITEMS - 2])
def test_score_is_the_share_of_recommended_items(shop, rng, k):
    rows = [*sessions(rng, 30), ["item 1", "unheard", "item 3"], ["unheard", "item 4"]]
    hits = [row[j] in [name for name, _ in shop.recommend(row[:j], k=k, exclude_seen=False)]
            for row in rows for j in range(1, len(row))]
    assert shop.score(rows, k=k) == pytest.approx(np.mean(hits))


def test_there_may_be_more_items_than_candidates(rng):
    names = [f"item {j}" for j in range(400)]
    shop = sl.Recommender(hidden=8, random_state=0).fit(
        [rng.choice(names, 5).tolist() for _ in range(300)])
    seen = names[:250]
    few, every = (shop.recommend(seen, k=k) for k in (100, 400))
    assert len(few) == 100 and every[:100] == few
    assert {name for name, _ in every} == set(shop.items_.tolist()) - set(seen)
    p = [value for _, value in every]
    assert p == sorted(p, reverse=True)
    assert shop.score([seen[:3]], k=400) == 1


def test_new_sessions_vote_at_once(clicks):
    shop = sl.Recommender(hidden=16, random_state=0).fit(clicks[:600])
    n_before = len(shop._sessions.lengths)
    shop.add_items([["item 1", "item 2", "a new item"]] * 20)
    assert len(shop._sessions.lengths) == n_before + 20
    names = [name for name, _ in shop.recommend(["item 1", "item 2"], k=3)]
    assert "a new item" in names


def test_without_votes_the_network_answers_alone(clicks, tmp_path):
    shop = sl.Recommender(hidden=16, neighbors=0, random_state=0).fit(clicks[:300])
    assert shop._sessions is None
    row = shop._rows(np.array([3, 5], np.int32), np.array([2]), np.array([0]), len(shop.items_))
    ids, _ = shop.network_.topk(row, 4)
    names = shop.items_[[3, 5]].tolist()
    assert [name for name, _ in shop.recommend(names, k=4, exclude_seen=False)] == \
        shop.items_[ids[0]].tolist()
    shop.save(tmp_path / "shop")
    assert sl.load(tmp_path / "shop").recommend(names) == shop.recommend(names)
    refined = sl.Recommender(hidden=16, refine=True, random_state=0).fit(clicks[:300])
    assert refined._sessions is None and len(refined.recommend(names)) == 10


def test_a_file_of_before_there_were_votes_is_read(clicks, tmp_path):
    shop = sl.Recommender(hidden=16, neighbors=0, random_state=0).fit(clicks[:300])
    shop.get_params = lambda deep: {name: value for name, value in sl.Recommender.get_params(
        shop, deep=deep).items() if name != "neighbors"}
    shop.save(tmp_path / "old")
    old = sl.load(tmp_path / "old")
    assert old.neighbors == 0 and old.recommend(["item 1"]) == shop.recommend(["item 1"])


@pytest.mark.parametrize("n_items", [1, 2, 9])
@pytest.mark.parametrize("neighbors", [0, 300])
def test_probabilities_of_few_items_sum_to_one(n_items, neighbors, rng):
    # a part was that of other items, of which there are none
    rows = [[f"item {j}" for j in rng.integers(n_items, size=3)] for _ in range(40)]
    shop = sl.Recommender(hidden=4, neighbors=neighbors, random_state=0).fit(rows)
    for query in ([], ["item 0"], ["unknown"], rows[1]):
        found = shop.recommend(query, k=n_items, exclude_seen=False)
        assert len(found) == len(shop.items_)
        assert sum(p for _, p in found) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("neighbors", [0, 300])
@pytest.mark.parametrize("storage", ["int8", "bfloat16"])
def test_a_compressed_copy_of_a_small_training_answers(neighbors, storage, tmp_path):
    # of so few sequences none are held out, and there is no calibration
    rows = [["tea", "milk", "sugar"], ["tea", "milk", "cup"], ["pen", "ink", "paper"]] * 10
    shop = sl.Recommender(hidden=16, neighbors=neighbors, random_state=0).fit(rows)
    small = shop.compressed(storage)
    small.save(tmp_path / "small")
    loaded = sl.load(tmp_path / "small")
    for query in ([], ["tea"], ["pen", "ink"]):
        found = small.recommend(query, k=3)
        assert loaded.recommend(query, k=3) == found
        assert dict(found) == pytest.approx(dict(shop.recommend(query, k=3)), abs=0.02)
    assert small.score(rows, k=2) == shop.score(rows, k=2)


@pytest.mark.parametrize("storage", ["int8", "bfloat16"])
def test_a_compressed_copy_votes(shop, rng, storage, tmp_path):
    small, rows = shop.compressed(storage), sessions(rng, 100)
    assert small.score(rows, k=4) == pytest.approx(shop.score(rows, k=4), abs=0.02)
    small.save(tmp_path / "small")
    row = rows[0][:-1]
    assert sl.load(tmp_path / "small").recommend(row) == small.recommend(row)
    assert shop.recommend(row) == shop.recommend(row)  # neither has taken the other's weights


def test_answers_follow_the_weights(clicks):
    shop = sl.Recommender(hidden=16, random_state=0).fit(clicks[:600])
    before = shop.recommend(["item 1"], k=3)
    layer = shop.network_.layers[1]
    layer.set_weights(np.zeros_like(layer.weight))
    assert shop.recommend(["item 1"], k=3) != before


@pytest.mark.parametrize("damage, message", [
    ({"lengths": lambda a: a[:-1]}, "lengths of sessions must be 2 or more, and sum to"),
    ({"items": lambda a: a + np.int32(1)}, r"sessions.items must lie in 0\.\.59, got 60"),
    ({"items": lambda a: a.astype(np.int64)}, "must be vectors of int32"),
    ({"parameters": lambda a: a[:-1]}, "must be 27 values of float64"),
    ({"parameters": lambda a: a * np.nan}, "must be at most 20 and finite")])
def test_damaged_sessions_are_refused(shop, tmp_path, damage, message):
    ((name, change),) = damage.items()
    broken = pickle.loads(pickle.dumps(shop))
    setattr(broken._sessions, name, change(getattr(broken._sessions, name)))
    broken.save(tmp_path / "shop")
    with pytest.raises(ValueError, match=message):
        sl.load(tmp_path / "shop")


def test_a_file_gives_the_same_answers(shop, tmp_path):
    shop.save(tmp_path / "shop")
    for other in (sl.load(tmp_path / "shop"), sl.Recommender.load(tmp_path / "shop")):
        assert isinstance(other, sl.Recommender)
        assert other.recommend(["item 3", "item 4"]) == shop.recommend(["item 3", "item 4"])
        assert other.get_params()["hidden"] == 48
    with pytest.raises(ValueError, match="holds a Recommender, no Tagger"):
        sl.Tagger.load(tmp_path / "shop")


@pytest.mark.parametrize("sequences, error, message", [
    ("abc", TypeError, "sequences must be a list of sequences of items, got the string"),
    (["a", "b"], TypeError, r"sequences\[0\] is the string 'a'; give a list of items"),
    ([["a", "b"], None], TypeError, r"sequences\[1\] is None: there are no items; leave the row"),
    ([["a", "b"], float("nan")], TypeError, r"sequences\[1\] is nan: there are no items"),
    ([["a", None]], TypeError, r"sequences\[0\] has None .* items are strings: leave it out"),
    ([["a", b"b"]], TypeError, r"sequences\[0\] has b'b' .* items are strings: decode it"),
    ([b"ab"], TypeError, r"sequences\[0\] must be a list of items.*got b'ab' of type bytes"),
    ([["a", 3]], TypeError, r"sequences\[0\] has 3 of type int as an item; items are strings"),
    ([["a", ""]], ValueError, r"sequences\[0\] has the item '', which is no name"),
    ([{"a", "b"}], TypeError, r"sequences\[0\] must be a list of items in their order, got \{"),
    ([["a"], ["b"]], ValueError, "at least one of two items or more, got none"),
    ([], ValueError, "at least one of two items or more, got none"),
])
def test_what_are_no_sequences_is_refused(sequences, error, message):
    with pytest.raises(error, match=message):
        sl.Recommender().fit(sequences)


@pytest.mark.parametrize("options, message", [
    ({"decay": 0}, "decay must be at most 1 and above 0, got 0"),
    ({"neighbors": -1}, "neighbors must be at least 0"),
    ({"n_last": 0}, "n_last must be at least 1"), ({"hidden": 0}, "hidden must be at least 1")])
def test_wrong_parameters_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sl.Recommender(**options).fit([["a", "b"]])
