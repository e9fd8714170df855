import numpy as np
import pytest
import reference
from support import UNIT, assert_same_bits, eighths, gaussian, on_threads, read_only, unwritten

from sparselsh._core import _simd, _sketches
from sparselsh.index._rotations import MatrixRotation
from sparselsh.index._tuning import deviation

BLOCK = _sketches.NEURONS_PER_BLOCK
# one neuron, part of a block, whole blocks, and more than the 64 blocks scored at a time
COUNTS = (1, 31, 32, 33, 257, 64 * BLOCK + 5)
BITS = (64, 128, 1024)  # 1024 is the most that the 16-bit sums hold


def n_blocks(n):
    return -(-n // BLOCK)


def pack(rotated, rows=None, blocks=None):
    rows = np.arange(len(rotated), dtype=np.int32) if rows is None else rows
    if blocks is None:
        blocks = np.zeros((n_blocks(len(rotated)), rotated.shape[1] // 4 * 16), np.uint8)
    _sketches.pack(rotated, read_only(rows), blocks)
    return blocks


def scan(queries, blocks, factors, n, n_best, slot_ids=None, biases=None):
    """Ids and scores, the same bits for 1 and 2 threads.

    Neuron s is in slot s, unless `slot_ids` says otherwise.
    """
    # factors beyond n must not be read
    room = np.full(len(blocks) * BLOCK, np.nan, np.float32)
    room[:n] = factors

    def call(n_threads):
        shape = len(queries), n_best
        ids, scores = unwritten(shape, np.int32), unwritten(shape, np.float32)
        slots = np.arange(max(n, 1), dtype=np.int32) if slot_ids is None else slot_ids
        _sketches.scan(queries, read_only(blocks), read_only(room), biases, read_only(slots), n,
                       ids, scores, n_threads)
        best_first = np.lexsort((ids, -scores))  # the kernel returns them in any order
        return np.take_along_axis(ids, best_first, 1), np.take_along_axis(scores, best_first, 1)

    return on_threads(call)


@pytest.fixture(params=COUNTS)
def n(request):
    return request.param


def refined(rotated, gram, n_sweeps):
    """Signs, products and squares of `refine`, the same bits for 1 and 2 threads."""
    def call(n_threads):
        signs = np.where(rotated > 0, np.float32(1), np.float32(-1))
        sums = (signs.astype(float) @ gram).astype(np.float32)
        products, squares = unwritten((2, len(rotated)), np.float64)
        _sketches.refine(read_only(rotated), read_only(gram), signs, sums, products, squares,
                         n_sweeps, n_threads)
        return signs, products, squares

    return on_threads(call)


def refined_by_definition(v, gram, n_sweeps):
    """The signs of one row, by the cosine of each sketch that is tried."""
    def cosine(s):
        return s @ v / np.sqrt(s @ gram @ s)

    s = np.where(v > 0, 1.0, -1.0)
    for i in list(range(len(v))) * n_sweeps:
        other = s.copy()
        other[i] *= -1
        if cosine(other) > cosine(s) * (1 + 1e-6):
            s = other
    return s


@pytest.mark.parametrize(("n_bits", "n_dims"), [(64, 48), (64, 5), (128, 65), (192, 129)])
@pytest.mark.parametrize("n_sweeps", [0, 1, 2])
def test_refined_signs_are_those_of_the_definition(rng, simd_level, n_bits, n_dims, n_sweeps):
    R = MatrixRotation.drawn(n_bits, n_dims, rng).matrix.astype(float)
    gram, V = (R @ R.T).astype(np.float32), rng.standard_normal((20, n_dims))
    rotated = (V @ R.T).astype(np.float32)
    signs, products, squares = refined(rotated, gram, n_sweeps)

    want = np.array([refined_by_definition(v.astype(float), gram.astype(float), n_sweeps)
                     for v in rotated])
    # a sign that changes nothing but for rounding may differ, and then later ones
    assert (signs == want).all(axis=1).mean() >= 0.9
    np.testing.assert_allclose(products, (signs * rotated).sum(axis=1), rtol=1e-4)
    np.testing.assert_allclose(squares, ((signs @ R) ** 2).sum(axis=1), rtol=1e-4)


@pytest.mark.parametrize("n_bits", [192, 256, 512])
def test_refined_signs_of_normal_rows_have_the_angles_of_the_power_law(rng, n_bits):
    V, rotation = gaussian(rng, 500, 128), MatrixRotation.drawn(n_bits, 128, rng)
    rotated = rotation.of_rows(V, 1)
    _, products, squares = refined(rotated, rotation.gram, 2)
    tangents = np.sqrt(np.square(V).sum(axis=1) * squares / products**2 - 1)
    assert deviation(n_bits, 128) == pytest.approx(tangents.mean() / np.sqrt(128), rel=0.03)
    plain = np.abs(rotated).sum(axis=1)
    assert (tangents < np.sqrt(np.square(V).sum(axis=1) * n_bits**2 / 128 / plain**2)).all()


def test_rows_of_zeros_and_of_any_length_are_refined_alike(rng):
    rotation = MatrixRotation.drawn(128, 20, rng)
    rotated = rotation.of_rows(gaussian(rng, 5, 20), 1)
    signs, _, _ = refined(rotated, rotation.gram, 2)
    for factor in (2.0**-60, 2.0**60):
        np.testing.assert_array_equal(refined(rotated * np.float32(factor), rotation.gram, 2)[0],
                                      signs)
    zeros, products, _ = refined(np.zeros((1, 128), np.float32), rotation.gram, 2)
    assert (zeros == -1).all() and products[0] == 0
    refined(np.zeros((0, 128), np.float32), rotation.gram, 2)


@pytest.mark.parametrize("n_bits", [16, *BITS])
def test_pack_writes_the_signs_nibble_by_nibble(rng, n_bits):
    rotated = gaussian(rng, 70, n_bits)
    empty = np.zeros((n_blocks(70), n_bits // 4 * 16), np.uint8)
    np.testing.assert_array_equal(pack(rotated), reference.pack(rotated, range(70), empty, BLOCK))


def test_pack_replaces_the_sketches_of_the_rows_it_is_given_and_no_others(rng):
    blocks = pack(gaussian(rng, 70, 64))
    rows, changed = np.array([69, 3, 19, 35, 0], np.int32), gaussian(rng, 5, 64)
    want = reference.pack(changed, rows, blocks, BLOCK)
    np.testing.assert_array_equal(pack(changed, rows, blocks), want)


def test_pack_of_zero_is_the_sign_minus():
    zeros = np.zeros((1, 64), np.float32)
    np.testing.assert_array_equal(pack(zeros), pack(zeros - 1))


@pytest.mark.usefixtures("simd_level")
@pytest.mark.parametrize("n_bits", BITS)
def test_scores_are_those_of_the_signs_within_the_steps_of_the_table(rng, n, n_bits):
    rotated, queries = gaussian(rng, n, n_bits), gaussian(rng, 3, n_bits)
    factors = abs(gaussian(rng, n))
    ids, scores = scan(queries, pack(rotated), factors, n, n)
    np.testing.assert_array_equal(np.sort(ids), np.tile(np.arange(n), (3, 1)),
                                  "every neuron is ranked once")
    assert np.all(np.diff(scores) <= 0), "best first"
    want = reference.sketch_scores(queries, rotated, factors)
    # besides the error of the table, some roundings of numbers as large as the sum of |q|
    rounding = 8 * UNIT * np.outer(abs(queries).sum(axis=1), factors)
    error = reference.sketch_error(queries, factors) + rounding
    difference = abs(scores - np.take_along_axis(want, ids, 1))
    assert np.all(difference <= np.take_along_axis(error, ids, 1))


@pytest.mark.usefixtures("simd_level")
def test_the_largest_sums_fit_into_16_bits(rng):
    # 256 groups, each at the top of the table: 65,280 of 65,535
    queries = np.ones((1, 1024), np.float32)
    rotated = np.concatenate([np.ones((40, 1024)), -np.ones((40, 1024))]).astype(np.float32)
    blocks = pack(read_only(rotated))
    _, scores = scan(queries, blocks, np.ones(80, np.float32), 80, 80)
    np.testing.assert_allclose(scores, [[1024] * 40 + [-1024] * 40], rtol=4 * UNIT)


@pytest.mark.parametrize("n_bits", BITS)
def test_every_simd_level_scores_alike(rng, n, n_bits):
    # sums of table entries are integers; only one multiplication and one addition round
    rotated, queries = gaussian(rng, n, n_bits), gaussian(rng, 3, n_bits)
    factors = abs(gaussian(rng, n))
    blocks = pack(rotated)
    bound = 4 * UNIT * np.outer(abs(queries).sum(axis=1), factors)
    by_level, before = [], _simd.level()
    for level in _simd.available_levels():
        _simd.set_level(level)
        ids, scores = scan(queries, blocks, factors, n, n)
        by_level.append(np.take_along_axis(scores, np.argsort(ids), 1))
    _simd.set_level(before)
    for other in by_level[1:]:
        assert np.all(abs(other - by_level[0]) <= bound)


@pytest.mark.usefixtures("simd_level")
@pytest.mark.parametrize("n_best", [1, 2, 10, 100, 3000])
def test_the_best_are_the_head_of_the_full_ranking(rng, n, n_best):
    rotated, queries, factors = gaussian(rng, n, 64), gaussian(rng, 4, 64), abs(gaussian(rng, n))
    blocks = pack(rotated)
    all_ids, all_scores = scan(queries, blocks, factors, n, n)
    ids, scores = scan(queries, blocks, factors, n, n_best)
    k = min(n, n_best)
    assert_same_bits(ids[:, :k], all_ids[:, :k])
    assert_same_bits(scores[:, :k], all_scores[:, :k])
    assert np.all(ids[:, k:] == -1), "filled up where there are no more"
    assert np.all(scores[:, k:] == -np.inf), "filled up where there are no more"


@pytest.mark.usefixtures("simd_level")
def test_ties_go_to_the_lower_id(rng):
    blocks = pack(np.ones((100, 64), np.float32))
    ids, scores = scan(gaussian(rng, 2, 64), blocks, np.ones(100, np.float32), 100, 7)
    np.testing.assert_array_equal(ids, [range(7)] * 2)
    assert np.all(scores == scores[:, :1])


@pytest.mark.usefixtures("simd_level")
def test_a_query_of_zeros_ties_all_neurons(rng):
    ids, scores = scan(np.zeros((1, 64), np.float32), pack(gaussian(rng, 40, 64)),
                       np.ones(40, np.float32), 40, 5)
    np.testing.assert_array_equal(ids, [range(5)])
    assert np.all(scores == 0)


@pytest.mark.usefixtures("simd_level")
def test_biases_are_added_to_the_scores(rng, n):
    rotated, queries, factors = gaussian(rng, n, 64), gaussian(rng, 4, 64), abs(gaussian(rng, n))
    blocks = pack(rotated)
    biases = np.full(len(blocks) * BLOCK, np.nan, np.float32)
    biases[:n] = gaussian(rng, n)
    plain_ids, plain = scan(queries, blocks, factors, n, n)
    ids, scores = scan(queries, blocks, factors, n, n, biases=read_only(biases))
    want = np.take_along_axis(plain, np.argsort(plain_ids), 1) + biases[:n]
    got = np.take_along_axis(scores, np.argsort(ids), 1)
    np.testing.assert_allclose(got, want, rtol=0, atol=4 * UNIT * np.abs(want).max())

    candidates = read_only(np.tile(np.arange(n, dtype=np.int32), (4, 1)))
    room = np.zeros(len(blocks) * BLOCK, np.float32)
    room[:n] = factors
    best = rank(queries, candidates, blocks, read_only(room), np.arange(n, dtype=np.int32), 9,
                read_only(biases))
    # scan and rank round the last addition differently, which no score here is close enough for
    np.testing.assert_array_equal(best, np.sort(np.pad(ids, ((0, 0), (0, 9)),
                                                       constant_values=-1)[:, :9], axis=1))


def rerank(ids, x, w, bias, k):
    def call(n_threads):
        # what the call does not write stays as the caller has filled it
        out_ids = np.full((len(x), k), -1, np.int32)
        out_scores = np.full((len(x), k), -np.inf, np.float32)
        _sketches.rerank(ids, x, w, None, bias, out_ids, out_scores, n_threads)
        return out_ids, out_scores

    return on_threads(call)


@pytest.mark.usefixtures("simd_level")
@pytest.mark.parametrize("k", [1, 3, 40, 60])
@pytest.mark.parametrize("d", [1, 17, 129])
def test_rerank_gives_the_best_candidates_with_their_exact_scores(rng, d, k):
    # multiples of 1/8: no rounding, and many ties
    x, w, bias = eighths(rng, 6, d), eighths(rng, 50, d), eighths(rng, 50)
    ids = np.array([rng.permutation(50)[:40] for _ in range(6)], np.int32)
    ids[rng.random(ids.shape) < 0.3] = -1
    ids[1] = -1
    got_ids, got_scores = rerank(read_only(ids), x, w, bias, k)
    want_ids, want_scores = reference.rerank(ids, x, w, bias, k)
    np.testing.assert_array_equal(got_ids, want_ids)
    np.testing.assert_array_equal(got_scores, want_scores)


@pytest.mark.usefixtures("simd_level")
@pytest.mark.parametrize("n, n_candidates, k", [(0, 4, 2), (3, 0, 2), (3, 4, 0)])
def test_rerank_of_nothing_leaves_no_ids(rng, n, n_candidates, k):
    ids = read_only(np.zeros((n, n_candidates), np.int32))
    got, scores = rerank(ids, gaussian(rng, n, 5), gaussian(rng, 9, 5), gaussian(rng, 9), k)
    assert np.all(got == -1) and np.all(scores == -np.inf)


# ---- neurons in any slots


@pytest.mark.usefixtures("simd_level")
@pytest.mark.parametrize("n_best", [1, 10, 3000])
def test_scan_finds_the_same_neurons_wherever_they_stand(rng, n, n_best):
    rotated, queries, factors = gaussian(rng, n, 64), gaussian(rng, 4, 64), abs(gaussian(rng, n))
    want = scan(queries, pack(rotated), factors, n, n_best)
    slot_ids = rng.permutation(n).astype(np.int32)
    got = scan(queries, pack(read_only(rotated[slot_ids])), factors[slot_ids], n, n_best, slot_ids)
    for a, b in zip(got, want, strict=True):
        assert_same_bits(a, b)


def rank(queries, candidates, blocks, factors, slot, n_best, biases=None):
    """Ids in ascending order, -1 first; the kernel returns them in any order."""
    def call(n_threads):
        ids = unwritten((len(queries), n_best), np.int32)
        _sketches.rank(queries, *read_only(candidates, blocks, factors), biases, read_only(slot),
                       ids, n_threads)
        return np.sort(ids, axis=1)

    return on_threads(call)


@pytest.mark.usefixtures("simd_level")
@pytest.mark.parametrize("n_best", [1, 5, 50, 300])
@pytest.mark.parametrize("n_bits", BITS)
def test_rank_takes_the_candidates_that_a_scan_of_them_alone_would(rng, n_bits, n_best):
    n = 257
    rotated, queries = gaussian(rng, n, n_bits), gaussian(rng, 6, n_bits)
    factors = abs(gaussian(rng, n))
    slot_ids = rng.permutation(n).astype(np.int32)
    blocks = pack(read_only(rotated[slot_ids]))
    room = np.zeros(len(blocks) * BLOCK, np.float32)
    room[:n] = factors[slot_ids]
    slot = np.argsort(slot_ids).astype(np.int32)
    slot[rng.random(n) < 0.2] = -1  # too short to have a sketch
    candidates = np.array([rng.permutation(n)[:90] for _ in queries], np.int32)
    candidates[rng.random(candidates.shape) < 0.3] = -1
    candidates[1] = -1
    got = rank(queries, candidates, blocks, room, slot, n_best)

    for i, row in enumerate(candidates):
        able = row[row >= 0]
        able = np.sort(able[slot[able] >= 0])
        want = np.full(n_best, -1, np.int32)
        if len(able):
            alone = pack(read_only(rotated[able]))
            want = scan(queries[i:i + 1], alone, factors[able], len(able), n_best, able)[0][0]
        np.testing.assert_array_equal(got[i], np.sort(want))


@pytest.mark.parametrize("n_queries, n_candidates, n_best", [(0, 4, 2), (3, 0, 2), (3, 4, 0)])
def test_rank_of_nothing(rng, n_queries, n_candidates, n_best):
    blocks, slot = pack(gaussian(rng, 40, 64)), np.arange(40, dtype=np.int32)
    got = rank(gaussian(rng, n_queries, 64), np.zeros((n_queries, n_candidates), np.int32), blocks,
               np.ones(64, np.float32), slot, n_best)
    assert got.shape == (n_queries, n_best) and np.all(got == -1)


def test_rank_without_any_sketches_finds_nothing(rng):
    got = rank(gaussian(rng, 2, 64), np.zeros((2, 3), np.int32), np.empty((0, 256), np.uint8),
               np.empty(0, np.float32), np.full(5, -1, np.int32), 4)
    assert np.all(got == -1)


@pytest.mark.parametrize("n_bits", [16, *BITS])
def test_copy_slots_copies_sketch_and_factor(rng, n_bits):
    n = 5 * BLOCK
    blocks, factors = read_only(pack(gaussian(rng, n, n_bits)), gaussian(rng, n))
    slots = rng.permutation(n).astype(np.int32)
    # both halves of blocks
    sources, targets = slots[: n // 2], rng.permutation(n)[: n // 2].astype(np.int32)
    out_blocks, out_factors = pack(gaussian(rng, n, n_bits)), np.array(gaussian(rng, n))
    want = reference.copy_slots(sources, targets, blocks, factors, out_blocks, out_factors, BLOCK)
    _sketches.copy_slots(*read_only(sources, targets), blocks, factors, out_blocks, out_factors)
    np.testing.assert_array_equal(out_blocks, want[0])
    assert_same_bits(out_factors, want[1])
