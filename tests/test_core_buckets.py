from dataclasses import dataclass

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from support import assert_same_bits, read_only, unwritten

from sparselsh._core import _buckets


@dataclass
class Tables:
    """The arrays of a set of hash tables, and the codes they were built from."""

    codes: np.ndarray
    ids: np.ndarray
    start: np.ndarray
    count: np.ndarray
    room: np.ndarray
    tail: np.ndarray
    n_threads: int

    @classmethod
    def build(cls, codes, n_buckets, slack=True, n_threads=1):
        n, n_tables = codes.shape
        ids = unwritten((n_tables, _buckets.capacity(n, n_buckets, slack)), np.int32)
        start, count, room = (unwritten((n_tables, n_buckets), np.int32) for _ in range(3))
        tables = cls(codes.copy(), ids, start, count, room, unwritten(n_tables, np.int32),
                     n_threads)
        _buckets.build(read_only(codes), slack, ids, start, count, room, tables.tail, n_threads)
        return tables

    @property
    def layout(self):
        return self.ids, self.start, self.count, self.room, self.tail

    def move(self, rows, new_codes):
        rows, new_codes = read_only(np.asarray(rows, np.int32), np.asarray(new_codes, np.int32))
        _buckets.move(rows, new_codes, self.codes, *self.layout, self.n_threads)

    def bucket(self, t, b):
        return self.ids[t, self.start[t, b] : self.start[t, b] + self.count[t, b]].tolist()

    def contents(self):
        """Every bucket as a set; asserts that no bucket overlaps another or exceeds the tail."""
        for t in range(len(self.tail)):
            end = 0
            for b in np.argsort(self.start[t], kind="stable"):
                if self.room[t, b]:
                    assert end <= self.start[t, b]
                    end = self.start[t, b] + self.room[t, b]
            assert end <= self.tail[t] <= self.ids.shape[1]
            assert np.all(self.count[t] <= self.room[t])
        n_tables, n_buckets = self.count.shape
        buckets = [[self.bucket(t, b) for b in range(n_buckets)] for t in range(n_tables)]
        assert all(len(set(bucket)) == len(bucket) for table in buckets for bucket in table)
        return [[set(bucket) for bucket in table] for table in buckets]

    def collide(self, query_codes, min_count=1, n_best=10, names=None):
        """query_codes is (n_queries, n_tables), with one more axis for several probes per table."""
        n = len(self.codes)
        query_codes = query_codes if query_codes.ndim == 3 else query_codes[:, :, None]
        out_ids, out_counts = (unwritten((len(query_codes), n_best), np.int32) for _ in range(2))
        seen = np.zeros((self.n_threads, n), np.uint8)
        keys = np.empty((self.n_threads, n), np.uint64)
        tables = read_only(self.ids, self.start, self.count)
        _buckets.collide(
            read_only(query_codes), *tables, min_count, names, seen, keys, out_ids,
            out_counts, self.n_threads)
        assert not seen.any(), "the scratch array is left as it was"
        return out_ids, out_counts

    def draw(self, query_codes, seed=0, n_wanted=10):
        n, n_tables = self.codes.shape
        query_codes = query_codes if query_codes.ndim == 3 else query_codes[:, :, None]
        out_ids = unwritten((len(query_codes), n_wanted), np.int32)
        seen = np.zeros((self.n_threads, n), np.uint8)
        keys = np.empty((self.n_threads, n), np.uint64)
        order = unwritten((self.n_threads, n_tables), np.int32)
        tables = read_only(self.ids, self.start, self.count)
        _buckets.draw(read_only(query_codes), *tables, seed, seen, keys, order, out_ids,
                      self.n_threads)
        assert not seen.any(), "the scratch array is left as it was"
        return out_ids


def random_codes(rng, n, n_tables, n_buckets):
    return rng.integers(0, n_buckets, (n, n_tables), dtype=np.int32)


def assert_same_arrays(got, want):
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


# (neurons, tables, buckets)
SIZES = [(1, 1, 1), (1, 3, 8), (17, 1, 1), (65, 4, 2), (65, 4, 512), (400, 5, 32)]


@pytest.mark.parametrize("slack", [True, False], ids=["slack", "no slack"])
@pytest.mark.parametrize("n, n_tables, n_buckets", [(0, 3, 4), *SIZES])
def test_build_puts_each_neuron_into_the_bucket_of_its_code(rng, n_threads, n, n_tables, n_buckets,
                                                            slack):
    codes = random_codes(rng, n, n_tables, n_buckets)
    tables = Tables.build(codes, n_buckets, slack, n_threads)
    assert tables.contents() == reference.build(codes, n_buckets)


@pytest.mark.parametrize("n, n_tables, n_buckets", SIZES)
def test_without_slack_the_layout_is_plain_csr(rng, n, n_tables, n_buckets):
    codes = random_codes(rng, n, n_tables, n_buckets)
    tables = Tables.build(codes, n_buckets, slack=False)
    np.testing.assert_array_equal(tables.ids, np.argsort(codes, axis=0, kind="stable").T)
    np.testing.assert_array_equal(tables.start[:, 1:], np.cumsum(tables.count, axis=1)[:, :-1])
    assert tables.ids.shape == (n_tables, n) and np.all(tables.tail == n)


@pytest.mark.parametrize("n, n_tables, n_buckets", SIZES)
def test_tables_do_not_depend_on_the_number_of_threads(rng, n, n_tables, n_buckets):
    codes = random_codes(rng, n, n_tables, n_buckets)
    tables = [Tables.build(codes, n_buckets, n_threads=n_threads) for n_threads in (1, 2)]
    for _ in range(20):
        rows = rng.permutation(n)[: rng.integers(1, n + 1)]
        new_codes = random_codes(rng, len(rows), n_tables, n_buckets)
        for t in tables:
            t.move(rows, new_codes)
    for one, two in zip(tables[0].layout, tables[1].layout, strict=True):
        assert_same_bits(one, two)


def moves(rng, n, n_tables, n_buckets):
    """Random moves, then all into one bucket, and apart again: buckets outgrow any room."""
    for _ in range(100):
        rows = rng.permutation(n)[: rng.integers(1, max(n // 10, 2))]
        yield rows, random_codes(rng, len(rows), n_tables, n_buckets)
    for target in (0, n_buckets - 1, n_buckets // 2):
        for j in rng.permutation(n):
            yield [j], np.full((1, n_tables), target)
    for j in range(n):
        yield [j], random_codes(rng, 1, n_tables, n_buckets)
    yield np.arange(n), random_codes(rng, n, n_tables, n_buckets)


@pytest.mark.parametrize("n, n_tables, n_buckets", SIZES)
def test_thousands_of_moves_leave_what_a_fresh_build_gives(rng, n_threads, n, n_tables, n_buckets):
    codes = random_codes(rng, n, n_tables, n_buckets)
    tables = Tables.build(codes, n_buckets, n_threads=n_threads)
    moved_behind = sorted_anew = 0

    for step, (rows, new_codes) in enumerate(moves(rng, n, n_tables, n_buckets)):
        tail = tables.tail.copy()
        tables.move(rows, new_codes)
        codes = reference.move(rows, new_codes, codes)
        moved_behind += np.sum(tables.tail > tail)
        sorted_anew += np.sum(tables.tail < tail)
        if step % 50 == 0:
            assert tables.contents() == Tables.build(codes, n_buckets).contents()

    np.testing.assert_array_equal(tables.codes, codes)
    fresh = Tables.build(codes, n_buckets)
    assert tables.contents() == fresh.contents() == reference.build(codes, n_buckets)
    queries = random_codes(rng, 30, n_tables, n_buckets)
    assert_same_arrays(tables.collide(queries), fresh.collide(queries))
    if n >= 65:
        assert moved_behind > 0 and sorted_anew > 0, "the moves did not use up the space"


@given(st.data())
def test_any_moves_leave_every_neuron_in_the_bucket_of_its_code(data):
    n, n_buckets = data.draw(st.integers(1, 200)), data.draw(st.integers(1, 4))
    codes = np.zeros((n, 2), np.int32)
    tables = Tables.build(codes, n_buckets)
    for _ in range(data.draw(st.integers(1, 5))):
        rows = data.draw(st.sets(st.integers(0, n - 1)).map(sorted))
        bucket = st.integers(0, n_buckets - 1)
        new_codes = np.array([[data.draw(bucket), data.draw(bucket)]], np.int32)
        new_codes = new_codes.repeat(len(rows), axis=0)
        tables.move(rows, new_codes)
        codes = reference.move(rows, new_codes, codes) if rows else codes
    assert tables.contents() == reference.build(codes, n_buckets)


@pytest.mark.parametrize("n_best", [0, 1, 5, 40, 2000])
@pytest.mark.parametrize("min_count", [1, 2, 4])
@pytest.mark.parametrize("n, n_tables, n_buckets", SIZES)
def test_collide_counts_the_shared_buckets(rng, n_threads, n, n_tables, n_buckets, min_count,
                                           n_best):
    codes, queries = (random_codes(rng, m, n_tables, n_buckets) for m in (n, 9))
    got = Tables.build(codes, n_buckets, n_threads=n_threads).collide(queries, min_count, n_best)
    assert_same_arrays(got, reference.collide(queries, codes, min_count, n_best))


@pytest.mark.parametrize("n_probes", [1, 2, 3, 8])
@pytest.mark.parametrize("min_count", [1, 2])
def test_a_neuron_in_any_probed_bucket_counts_once_for_its_table(rng, n_threads, n_probes,
                                                                 min_count):
    n, n_tables, n_buckets = 300, 5, 8
    codes = random_codes(rng, n, n_tables, n_buckets)
    probes = np.argsort(rng.random((20, n_tables, n_buckets)), axis=2)[:, :, :n_probes]
    probes = probes.astype(np.int32)
    probes[::3, :, n_probes - 1] = -1  # no bucket
    got = Tables.build(codes, n_buckets, n_threads=n_threads).collide(probes, min_count, n_best=n)
    assert_same_arrays(got, reference.collide(probes, codes, min_count, n))
    if n_probes == n_buckets:
        assert np.all(got[1][1] == n_tables), "all buckets probed: every neuron in every table"


def test_collide_counts_up_to_255_tables(rng, n_threads):
    codes = random_codes(rng, 50, 255, 2)
    ids, counts = Tables.build(codes, 2, n_threads=n_threads).collide(codes[7:9], n_best=1)
    assert ids.ravel().tolist() == [7, 8] and np.all(counts == 255)


def test_equal_counts_are_not_decided_in_favour_of_low_ids():
    n, n_best = 1000, 100
    tables = Tables.build(np.zeros((n, 1), np.int32), 1)
    ids, _ = tables.collide(np.zeros((1, 1), np.int32), n_best=n_best)
    # five standard deviations of the mean of n_best distinct ids drawn at random
    band = 5 * n / np.sqrt(12 * n_best) * np.sqrt(1 - n_best / n)
    assert abs(ids.mean() - (n - 1) / 2) < band


def test_tables_of_some_neurons_find_by_name_what_tables_of_all_find(rng, n_threads):
    n, n_best = 300, 300
    codes, queries = random_codes(rng, n, 6, 4), random_codes(rng, 9, 6, 4)
    ids, counts = Tables.build(codes, 4, n_threads=n_threads).collide(queries, 2, n_best)
    names = rng.permutation(n).astype(np.int32)[:120]
    found = Tables.build(codes[names], 4, n_threads=n_threads).collide(
        queries, 2, 20, read_only(names))
    for i in range(len(queries)):
        own = np.isin(ids[i], names)
        np.testing.assert_array_equal(found[0][i], ids[i][own][:20])
        np.testing.assert_array_equal(found[1][i], counts[i][own][:20])


def test_ids_of_the_whole_range_survive_the_tie_break():
    # one neuron with a large id: the key that breaks ties is converted back to the id
    codes = np.zeros((3_000_001, 1), np.int32)
    codes[-1] = 1
    ids, counts = Tables.build(codes, 2).collide(np.ones((1, 1), np.int32), n_best=2)
    assert ids.tolist() == [[3_000_000, -1]] and counts.tolist() == [[1, 0]]


@pytest.mark.parametrize("n, n_tables, n_queries", [(0, 3, 4), (5, 0, 4), (5, 3, 0)])
@pytest.mark.parametrize("slack", [True, False], ids=["slack", "no slack"])
def test_without_neurons_tables_or_queries_nothing_is_found(rng, n_threads, n, n_tables, n_queries,
                                                            slack):
    tables = Tables.build(random_codes(rng, n, n_tables, 4), 4, slack, n_threads)
    queries = random_codes(rng, n_queries, n_tables, 4)
    assert_same_arrays(tables.collide(queries), reference.collide(queries, tables.codes, 1, 10))


def test_moving_nothing_changes_nothing(rng):
    tables = Tables.build(random_codes(rng, 50, 3, 8), 8)
    before = [a.copy() for a in tables.layout]
    tables.move([], np.zeros((0, 3)))
    tables.move(np.arange(50), tables.codes)
    for a, b in zip(before, tables.layout, strict=True):
        assert_same_bits(a, b)


# ---- neurons that are not in a table: code -1


@pytest.mark.parametrize("slack", [True, False], ids=["slack", "no slack"])
@pytest.mark.parametrize("n, n_tables, n_buckets", SIZES)
def test_build_leaves_out_neurons_without_a_code(rng, n_threads, n, n_tables, n_buckets, slack):
    codes = random_codes(rng, n, n_tables, n_buckets)
    codes[rng.random(codes.shape) < 0.4] = -1
    tables = Tables.build(codes, n_buckets, slack, n_threads)
    assert tables.contents() == reference.build(codes, n_buckets)
    queries = random_codes(rng, 9, n_tables, n_buckets)
    assert_same_arrays(tables.collide(queries), reference.collide(queries, codes, 1, 10))


@pytest.mark.parametrize("n, n_tables, n_buckets", SIZES)
def test_neurons_leave_and_come_back(rng, n_threads, n, n_tables, n_buckets):
    codes = random_codes(rng, n, n_tables, n_buckets)
    codes[::2] = -1  # half of them are added later: the tables were built without room for them
    tables = Tables.build(codes, n_buckets, n_threads=n_threads)
    for step in range(300):
        rows = rng.permutation(n)[: rng.integers(1, max(n // 5, 2))]
        new_codes = random_codes(rng, len(rows), n_tables, n_buckets)
        new_codes[rng.random(len(rows)) < (0.8 if step // 50 % 2 else 0.2)] = -1
        tables.move(rows, new_codes)
        codes = reference.move(rows, new_codes, codes)
        if step % 20 == 0 or step > 290:
            assert tables.contents() == reference.build(codes, n_buckets)
    np.testing.assert_array_equal(tables.codes, codes)


def test_with_all_neurons_removed_nothing_is_found(rng, n_threads):
    tables = Tables.build(random_codes(rng, 65, 4, 2), 2, n_threads=n_threads)
    tables.move(rng.permutation(65), np.full((65, 4), -1))
    assert all(bucket == set() for table in tables.contents() for bucket in table)
    queries = random_codes(rng, 3, 4, 2)
    assert np.all(tables.collide(queries)[0] == -1) and np.all(tables.draw(queries) == -1)
    codes = random_codes(rng, 65, 4, 2)
    tables.move(np.arange(65), codes)
    assert tables.contents() == reference.build(codes, 2)


# ---- vanilla sampling


@pytest.mark.parametrize("n_wanted", [0, 1, 7, 40, 1000])
@pytest.mark.parametrize("n_probes", [1, 3])
@pytest.mark.parametrize("n, n_tables, n_buckets", [size for size in SIZES if size[2] > 2])
def test_draw_takes_whole_buckets_of_tables_in_random_order(
        rng, n_threads, n, n_tables, n_buckets, n_probes, n_wanted):
    codes = random_codes(rng, n, n_tables, n_buckets)
    codes[rng.random(n) < 0.1] = -1
    probes = np.argsort(rng.random((20, n_tables, n_buckets)), axis=2)[:, :, :n_probes]
    probes = probes.astype(np.int32)
    probes[::3, :, n_probes - 1] = -1  # no bucket
    for seed in (0, 2**31 - 1):
        got = Tables.build(codes, n_buckets, n_threads=n_threads).draw(probes, seed, n_wanted)
        assert [set(row[row >= 0].tolist()) for row in got] == (
            reference.draw(probes, codes, seed, n_wanted))


def test_what_is_drawn_does_not_depend_on_how_the_tables_came_about(rng, n_threads):
    codes, queries = random_codes(rng, 400, 5, 8), random_codes(rng, 30, 5, 8)
    moved = Tables.build(random_codes(rng, 400, 5, 8), 8, n_threads=n_threads)
    fresh = Tables.build(codes, 8, False)
    moved.move(rng.permutation(400), random_codes(rng, 400, 5, 8))
    moved.move(np.arange(400), codes)
    for n_wanted in (3, 30, 100):
        got, want = (np.sort(tables.draw(queries, 1, n_wanted), axis=1)
                     for tables in (moved, fresh))
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("n_wanted", [1, 30, 100, 400])
def test_drawn_neurons_are_distinct_and_share_a_bucket(rng, n_threads, n_wanted):
    codes, queries = random_codes(rng, 400, 5, 16), random_codes(rng, 50, 5, 16)
    tables = Tables.build(codes, 16, n_threads=n_threads)
    got = tables.draw(queries, 3, n_wanted)
    for ids, query in zip(got, queries, strict=True):
        sharing = np.flatnonzero((codes == query).any(axis=1))
        found = ids[ids >= 0]
        assert np.all(ids[len(found):] == -1), "filled up at the end"
        assert len(set(found.tolist())) == len(found) == min(n_wanted, len(sharing))
        assert set(found.tolist()) <= set(sharing.tolist())
    np.testing.assert_array_equal(got, tables.draw(queries, 3, n_wanted), "the seed decides")
    if n_wanted < 100:
        assert not np.array_equal(got, tables.draw(queries, 4, n_wanted))


def test_every_table_comes_first_equally_often():
    # only table t has neuron t in the probed bucket: the first neuron found is that table
    n_tables, n_queries = 5, 4000
    codes = np.where(np.eye(n_tables, dtype=bool), 1, 0).astype(np.int32)
    first = Tables.build(codes, 2).draw(np.ones((n_queries, n_tables), np.int32), 7, 1)[:, 0]
    # five standard deviations of a binomial count
    p = 1 / n_tables
    band = 5 * np.sqrt(n_queries * p * (1 - p))
    assert np.all(abs(np.bincount(first, minlength=n_tables) - n_queries * p) < band)


def test_a_bucket_that_is_not_taken_whole_favours_no_neuron():
    n, n_queries = 40, 4000
    tables = Tables.build(np.zeros((n, 1), np.int32), 1)
    drawn = tables.draw(np.zeros((n_queries, 1), np.int32), 7, 4)
    p = 4 / n
    band = 5 * np.sqrt(n_queries * p * (1 - p))
    assert np.all(abs(np.bincount(drawn.ravel(), minlength=n) - n_queries * p) < band)


@pytest.mark.parametrize("n, n_tables, n_queries", [(0, 3, 4), (5, 0, 4), (5, 3, 0)])
def test_draw_of_nothing(rng, n_threads, n, n_tables, n_queries):
    tables = Tables.build(random_codes(rng, n, n_tables, 4), 4, n_threads=n_threads)
    assert np.all(tables.draw(random_codes(rng, n_queries, n_tables, 4)) == -1)
