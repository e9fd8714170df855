import numpy as np
import pytest
import reference
from support import (
    SIZES,
    assert_same_bits,
    assert_sums_close,
    eighths,
    gaussian,
    on_threads,
    read_only,
    unwritten,
)

from sparselsh._core import _hashing, _projections, _winners


def pack_codes(projections, n_bits, n_tables):
    def call(n_threads):
        codes = unwritten((len(projections), n_tables), np.int32)
        _hashing.pack_codes(projections, n_bits, codes, n_threads)
        return codes

    return on_threads(call)


@pytest.mark.parametrize("n_bits", [1, 2, 7, 16, 29, 30])
@pytest.mark.parametrize("n_tables", [1, 3, 16])
@pytest.mark.parametrize("n", [0, 1, 65])
def test_a_code_has_one_bit_per_positive_projection(rng, n_bits, n_tables, n):
    projections = gaussian(rng, n, n_tables * n_bits)
    codes = pack_codes(projections, n_bits, n_tables)
    np.testing.assert_array_equal(codes, reference.pack_codes(projections, n_bits))
    assert np.all((0 <= codes) & (codes < 1 << n_bits))


def test_only_numbers_above_zero_set_a_bit():
    projections = read_only(np.array([[0.0, -0.0, np.nan, -np.inf, np.inf, 1e-45, -1e-45]],
                                     np.float32))
    assert pack_codes(projections, 7, 1).item() == 0b0110000


def test_no_tables_give_no_codes(rng):
    assert pack_codes(gaussian(rng, 3, 0), 4, 0).shape == (3, 0)


@pytest.mark.parametrize("n", [0, 1, 3, 255, 257, 600])  # around a block of rows
@pytest.mark.parametrize("d, n_bits, n_tables", [(1, 30, 1), (33, 5, 3), (129, 14, 12), (0, 4, 2),
                                                 (7, 4, 0)])
@pytest.mark.parametrize("in_bfloat16", [False, True], ids=["float32", "bfloat16"])
def test_sign_codes_are_those_of_the_projections(rng, n, d, n_bits, n_tables, in_bfloat16):
    # products without rounding
    v, planes = read_only(eighths(rng, n, d), eighths(rng, d, n_bits * n_tables))

    def call(n_threads):
        codes = unwritten((n, n_tables), np.int32)
        _hashing.sign_codes(v, planes, n_bits, codes, n_threads, in_bfloat16)
        return codes

    want = reference.pack_codes(v.astype(float) @ planes, n_bits)
    np.testing.assert_array_equal(on_threads(call), want)


@pytest.mark.parametrize("degrees", [10, 45, 60, 90, 120, 170])
@pytest.mark.parametrize("d", [2, 65])
def test_bits_agree_with_the_probability_one_minus_angle_over_pi(rng, degrees, d):
    n_bits, n_tables = 25, 800
    angle = np.deg2rad(degrees)
    x = np.zeros((2, d), np.float32)
    x[0, 0], x[1, :2] = 1, [np.cos(angle), np.sin(angle)]
    planes = gaussian(rng, d, n_bits * n_tables)
    a, b = pack_codes(x @ planes, n_bits, n_tables)
    equal = 1 - np.bitwise_count(a ^ b).sum() / planes.shape[1]
    p = 1 - angle / np.pi
    # five standard deviations of independent bits
    band = 5 * np.sqrt(p * (1 - p) / planes.shape[1])
    assert abs(equal - p) < band


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1e3, 1e20])
@pytest.mark.parametrize("d", SIZES)
def test_codes_do_not_depend_on_the_length_of_a_vector(rng, scale, d):
    projections = gaussian(rng, d, 60)
    np.testing.assert_array_equal(
        pack_codes(projections, 20, 3), pack_codes(projections * np.float32(scale), 20, 3))


# ---- probing


def assert_cheapest_first(codes, costs):
    """The codes of each table are distinct and the cheapest of {code: cost}; then -1.

    Of equally cheap first codes the lowest is taken.
    """
    for row, row_costs in zip(codes.tolist(), costs, strict=True):
        for found, cost in zip(row, row_costs, strict=True):
            n = min(len(found), len(cost))
            assert found[n:] == [-1] * (len(found) - n)
            assert len(set(found)) == n + (len(found) > n), "a code comes twice"
            assert found[0] == min(cost, key=lambda code: (cost[code], code))
            # float64 sums in another order
            np.testing.assert_allclose([cost[code] for code in found[:n]],
                                       sorted(cost.values())[:n], rtol=1e-14)


def probed(kernel, *arguments, shape):
    def call(n_threads):
        codes = unwritten(shape, np.int32)
        kernel(*arguments, codes, n_threads)
        return codes

    return on_threads(call)


@pytest.mark.parametrize("n_bits, n_probes", [(1, 1), (1, 2), (4, 1), (4, 16), (7, 30), (7, 128)])
@pytest.mark.parametrize("n, n_tables", [(0, 2), (1, 1), (20, 3)])
def test_probes_of_signs_are_all_codes_in_order_of_squared_margin(rng, n, n_tables, n_bits,
                                                                  n_probes):
    projections = gaussian(rng, n, n_tables * n_bits)
    codes = probed(_hashing.probe_signs, projections, n_bits, shape=(n, n_tables, n_probes))
    assert_cheapest_first(codes, reference.probe_signs(projections, n_bits))
    np.testing.assert_array_equal(codes[:, :, 0], pack_codes(projections, n_bits, n_tables))


def test_probes_of_many_bits_are_distinct_and_ascend(rng):
    n_bits, n_probes = 24, 2000
    p = gaussian(rng, 3, n_bits)
    codes = probed(_hashing.probe_signs, p, n_bits, shape=(3, 1, n_probes))[:, 0]
    flipped = (codes ^ codes[:, :1])[:, :, None] >> np.arange(n_bits) & 1
    cost = (flipped * p[:, None, :].astype(float) ** 2).sum(axis=2)
    # sums of at most 24 terms below 25, added in another order
    assert np.all(np.diff(cost, axis=1) >= -24 * 25 * 2.0**-52)
    assert all(len(set(row)) == n_probes for row in codes.tolist())


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_margins_give_every_code_once(value):
    codes = probed(_hashing.probe_signs, np.full((1, 5), value, np.float32), 5, shape=(1, 1, 32))
    assert sorted(codes.ravel().tolist()) == list(range(32))
    codes = probed(_hashing.nearest_vertices, np.full((1, 6), value, np.float32), 3, 2,
                   shape=(1, 1, 36))
    assert sorted(codes.ravel().tolist()) == list(range(36)) and codes[0, 0, 0] == 0


@pytest.mark.parametrize("n_dims, n_polytopes, n_probes",
                         [(2, 1, 1), (2, 1, 4), (3, 2, 36), (17, 2, 1), (17, 2, 50), (64, 1, 128),
                          (3, 4, 200)])
@pytest.mark.parametrize("n, n_tables", [(0, 2), (1, 1), (9, 3)])
def test_vertices_and_their_probes_by_brute_force(rng, simd_level, n, n_tables, n_dims, n_polytopes,
                                                  n_probes):
    projections = gaussian(rng, n, n_tables * n_polytopes * n_dims)
    codes = probed(_hashing.nearest_vertices, projections, n_dims, n_polytopes,
                   shape=(n, n_tables, n_probes))
    assert_cheapest_first(codes, reference.nearest_vertices(projections, n_dims, n_polytopes))


# ---- projections


def csr_of(v):
    indptr = np.concatenate([[0], np.cumsum((v != 0).sum(axis=1))])
    return read_only(indptr.astype(np.int64), np.nonzero(v)[1].astype(np.int32), v[v != 0])


def dense_entries(v):
    return np.arange(len(v) + 1) * v.shape[1], None, v.ravel()


def sparse_rows(rng, n, d, values=gaussian):
    """Rows with half of the entries zero, every third row empty; dense."""
    v = np.where(rng.random((n, d)) < 0.5, values(rng, n, d), np.float32(0))
    v[1::3] = 0
    return read_only(v)


def projected(kernel, *arguments, shape):
    def call(n_threads):
        out = unwritten(shape, np.float32)
        kernel(*arguments, out, n_threads)
        return out

    return on_threads(call)


@pytest.mark.parametrize("n, n_planes", [(0, 3), (1, 1), (31, 5), (32, 40), (67, 9)])
@pytest.mark.parametrize("d", [0, *SIZES])
def test_signed_sums_of_dense_and_sparse_rows(rng, simd_level, n, d, n_planes):
    v, signs = sparse_rows(rng, n, d), read_only(rng.integers(-1, 2, (d, n_planes), dtype=np.int8))
    lists = [np.flatnonzero(plane == sign).astype(np.int32)
             for plane in signs.T for sign in (1, -1)]
    starts = np.cumsum([0] + [len(ids) for ids in lists])
    dense = projected(_projections.signed_sums, v, starts, np.concatenate(lists),
                      shape=(n, n_planes))
    sparse = projected(_projections.signed_sums_csr, *csr_of(v), signs, shape=(n, n_planes))
    want, magnitude = reference.signed_sums(v, signs), reference.signed_sums(abs(v), abs(signs))
    assert_sums_close(dense, want, magnitude, d)
    np.testing.assert_array_equal(dense, sparse)


@pytest.mark.parametrize("n", [0, 1, 9])
@pytest.mark.parametrize("d, order, n_out",
                         [(1, 1, 3), (2, 4, 4), (16, 16, 40), (65, 128, 7), (128, 128, 128)])
def test_rotations_of_dense_and_sparse_rows(rng, simd_level, n, d, order, n_out):
    v = sparse_rows(rng, n, d, eighths)
    signs = rng.integers(0, 2, (-(-n_out // order), 3, order)) * 2 - 1
    signs = read_only(signs.astype(np.float32) / 8)
    dense = projected(_projections.rotate, *dense_entries(v), signs, shape=(n, n_out))
    # sums of up to 128^3 terms below 2 * 2^-9 in steps of 2^-12: few enough bits to be exact here
    want = reference.rotate(v, signs, n_out)
    bound = 2.0**-20 * max(1, np.abs(want).max(initial=0))
    np.testing.assert_allclose(dense, want, rtol=0, atol=bound)
    assert_same_bits(dense, projected(_projections.rotate, *csr_of(v), signs, shape=(n, n_out)))


# ---- winners and minima


def random_places(rng, d, n_permutations, n_slots):
    """Columns to slots: each slot has at most one column; some columns have no slot."""
    places = np.full((d, n_permutations), -1, np.int32)
    for q, slots in enumerate(np.array_split(rng.permutation(n_slots), n_permutations)):
        columns = rng.permutation(d)[: len(slots)]
        places[columns, q] = slots[: len(columns)]
    return read_only(places)


@pytest.mark.parametrize("bin_size, n_digits, n_probes",
                         [(2, 1, 1), (2, 1, 2), (8, 2, 5), (3, 3, 27), (5, 2, 40)])
@pytest.mark.parametrize("n, d, n_tables", [(0, 5, 2), (7, 1, 1), (9, 40, 4), (6, 200, 3)])
def test_winners_of_dense_and_sparse_rows(rng, n, d, n_tables, bin_size, n_digits, n_probes):
    v = sparse_rows(rng, n, d)
    places = random_places(rng, d, 2, n_tables * n_digits * bin_size)
    rest = (places, bin_size, n_digits, 2**63 + 11)
    dense = probed(_winners.winners, *dense_entries(v), *rest, shape=(n, n_tables, n_probes))
    assert_cheapest_first(dense, reference.winners(v, *rest[:3], n_tables, rest[3]))
    sparse = probed(_winners.winners, *csr_of(v), *rest, shape=(n, n_tables, n_probes))
    assert_same_bits(dense, sparse)


def test_of_equal_entries_the_lowest_slot_wins():
    places = read_only(np.array([[2], [1], [0], [-1]], np.int32))
    codes = probed(_winners.winners, *dense_entries(np.float32([[5, 5, 1, 9]])), places, 3, 1, 0,
                   shape=(1, 1, 3))
    assert codes.ravel().tolist() == [1, 2, 0]


@pytest.mark.parametrize("n_digits, n_bits", [(1, 1), (2, 12), (5, 31)])
@pytest.mark.parametrize("n, d, n_tables", [(0, 5, 2), (7, 1, 1), (9, 40, 4), (6, 200, 70)])
def test_minima_of_dense_and_sparse_rows(rng, n, d, n_tables, n_digits, n_bits):
    v = sparse_rows(rng, n, d)
    dense = probed(_winners.minima, *dense_entries(v), n_digits, n_bits, 2**63 + 11,
                   shape=(n, n_tables))
    want = reference.minima(v, n_digits, n_tables, n_bits, 2**63 + 11)
    np.testing.assert_array_equal(dense, want)
    sparse = probed(_winners.minima, *csr_of(v), n_digits, n_bits, 2**63 + 11,
                    shape=(n, n_tables))
    assert_same_bits(dense, sparse)


def test_a_single_entry_fills_every_bin(rng):
    # one full bin among thousands: after the random draws an empty bin searches for it in order
    v = np.zeros((1, 10), np.float32)
    v[0, 3] = 1
    codes = probed(_winners.minima, *csr_of(v), 1, 31, 5, shape=(1, 5000))
    assert len(set(codes.ravel().tolist())) == 1
