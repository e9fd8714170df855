"""The hash families: collision laws, probing, dense and sparse rows, determinism, arguments."""
import numpy as np
import pytest
import scipy.sparse as sp
from support import assert_same_bits

import sparselsh as sl
from sparselsh._arrays import csr
from sparselsh.hashing import DWTA, CrossPolytope, MinHash, SimHash, choose_bits_and_tables
from sparselsh.index.transforms import simple_lsh_neurons, simple_lsh_queries

FAMILIES = [SimHash(7, 5), SimHash(7, 5, "sparse"), SimHash(7, 5, "orthogonal"), DWTA(3, 5, 4),
            CrossPolytope(2, 5, 8), MinHash(2, 5, 10)]
SIMPLE = [SimHash(5, 4), SimHash(5, 4, "sparse"), SimHash(5, 4, "orthogonal"),
          DWTA(2, 4, 6), CrossPolytope(2, 4, 3)]
every_family = pytest.mark.parametrize("family", FAMILIES, ids=repr)
probing_family = pytest.mark.parametrize("family", SIMPLE, ids=repr)


def rows(rng, n, d, density=1.0):
    values = rng.standard_normal((n, d), dtype=np.float32)
    return values if density == 1 else np.where(rng.random((n, d)) < density,
                                                np.abs(values), np.float32(0))


def to_csr(V):
    return csr.from_scipy(sp.csr_array(V))


# ---- collision laws


def assert_law(equal, p, widest):
    """Check that the mean of `equal` is p within five standard errors.

    `equal` (pairs, tables) is True where the two rows of a pair are in the same bucket of a table.
    Pairs are independent, the tables of one pair are not: the standard error is that of the mean
    over pairs, and at least that of a binomial count with as many trials. Five standard errors must
    be below `widest`, so that the test can fail.
    """
    by_pair = equal.mean(axis=1)
    error = max(by_pair.std() / np.sqrt(len(by_pair)), np.sqrt(p * (1 - p) / equal.size))
    assert 5 * error < widest, "too few pairs for a test that can fail"
    assert abs(equal.mean() - p) <= 5 * error


def pairs_at(rng, cosine, n, d):
    """Make pairs of unit vectors with exactly this cosine."""
    a, b = rng.standard_normal((2, n, d))
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    b -= (a * b).sum(axis=1, keepdims=True) * a
    b /= np.linalg.norm(b, axis=1, keepdims=True)
    return a.astype(np.float32), (cosine * a + np.sqrt(1 - cosine**2) * b).astype(np.float32)


@pytest.mark.parametrize("cosine", [-0.5, 0.0, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("family, d", [
    *((SimHash(bits, 255, kind),
       d) for kind in ("gaussian", "orthogonal") for bits in (1, 4) for d in (2, 50, 128)),
    # planes of 0, 1 and -1 need many coordinates
    *((SimHash(2, 255, "sparse"), d) for d in (50, 128)),
], ids=repr)
def test_simhash_collides_with_the_probability_of_the_angle(rng, family, d, cosine):
    a, b = pairs_at(rng, cosine, 400, d)
    equal = np.concatenate([family.fit(d, seed).hash(x) == family.hash(y)
                            for seed, (x, y) in enumerate(zip(np.split(a, 8),
                                                              np.split(b, 8), strict=True))])
    assert_law(equal, family.collision_probability(cosine), 0.05)


@pytest.mark.parametrize("cosine", [0.0, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize(
    "family", [CrossPolytope(1, 255, 2), CrossPolytope(1, 255, 16), CrossPolytope(2, 255, 8)],
                         ids=repr)
def test_cross_polytopes_collide_with_the_probability_of_the_integral(rng, family, cosine):
    a, b = pairs_at(rng, cosine, 400, 256)
    equal = np.concatenate([family.fit(256, seed).hash(x) == family.hash(y)
                            for seed, (x, y) in enumerate(zip(np.split(a, 8),
                                                              np.split(b, 8), strict=True))])
    assert_law(equal, family.collision_probability(cosine), 0.05)


@pytest.mark.parametrize("correlation", [-0.6, 0.0, 0.4, 0.8, 0.97])
@pytest.mark.parametrize("family", [DWTA(1, 200, 2), DWTA(1, 200, 8), DWTA(2, 200, 4)], ids=repr)
def test_dwta_collides_with_the_probability_of_the_integral_for_gaussian_rows(
        rng, family, correlation):
    a, b = rng.standard_normal((2, 2000, 100), dtype=np.float32)
    b = correlation * a + np.float32(np.sqrt(1 - correlation**2)) * b
    family.fit(100, 0)
    assert_law(family.hash(a) == family.hash(b), family.collision_probability(correlation), 0.05)


def sets_at(rng, jaccard, n, n_union, d):
    """Make pairs of binary rows of about this Jaccard similarity; return them and the value."""
    a, b = np.zeros((2, n, d), np.float32)
    shared = round(jaccard * n_union)
    for i in range(n):
        union = rng.permutation(d)[:n_union]
        owner = np.arange(n_union - shared) % 2
        a[i, union[:shared]] = b[i, union[:shared]] = 1
        a[i, union[shared:][owner == 0]] = b[i, union[shared:][owner == 1]] = 1
    return a, b, shared / n_union


@pytest.mark.parametrize("jaccard", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("n_union", [20, 400])
@pytest.mark.parametrize("family", [MinHash(1, 60, 3), MinHash(1, 60, 20)], ids=repr)
def test_minhash_collides_with_the_probability_of_the_jaccard_similarity(
        rng, family, n_union, jaccard):
    # 20 features for 60 bins: most bins are copies
    a, b, jaccard = sets_at(rng, jaccard, 600, n_union, 1000)
    equal = np.concatenate([family.fit(1000, seed).hash(x) == family.hash(y)
                            for seed, (x, y) in enumerate(zip(np.split(a, 30),
                                                              np.split(b, 30), strict=True))])
    assert_law(equal, family.collision_probability(jaccard), 0.12)


@pytest.mark.parametrize("jaccard", [0.2, 0.5, 0.9])
def test_several_minima_must_all_agree(rng, jaccard):
    family = MinHash(3, 20, 16)
    a, b, jaccard = sets_at(rng, jaccard, 2000, 600, 1000)
    equal = np.concatenate([family.fit(1000, seed).hash(x) == family.hash(y)
                            for seed, (x, y) in enumerate(zip(np.split(a, 50),
                                                              np.split(b, 50), strict=True))])
    assert_law(equal, family.collision_probability(jaccard), 0.05)


@pytest.mark.parametrize("jaccard", [0.2, 0.6, 0.9])
def test_dwta_of_binary_rows_is_a_minwise_hash(rng, jaccard):
    # as its docstring says: with few empty bins the first occupied slot is a minwise hash
    a, b, jaccard = sets_at(rng, jaccard, 1000, 700, 1000)
    family = DWTA(1, 30, 32)
    equal = np.concatenate([family.fit(1000, seed).hash(x) == family.hash(y)
                            for seed, (x, y) in enumerate(zip(np.split(a, 50),
                                                              np.split(b, 50), strict=True))])
    assert_law(equal, jaccard, 0.05)


@pytest.mark.parametrize(
    "family", [SimHash(6, 1), SimHash(6, 1, "sparse"), DWTA(3, 1, 4), CrossPolytope(2, 1, 4),
               MinHash(2, 1, 8)], ids=repr)
def test_collision_probabilities_rise_from_chance_to_one(family):
    p = family.collision_probability(np.linspace(0, 1, 21))
    assert p.shape == (21,) and np.all(np.diff(p) > 0)
    np.testing.assert_allclose(p[[0, -1]], [1 / family.n_buckets, 1], rtol=1e-9)
    assert family.collision_probability(0.5) == p[10]


def test_a_bin_of_two_and_a_polytope_of_many_dimensions_have_known_collision_laws():
    r = np.linspace(-0.95, 0.95, 9)
    signs = SimHash(1, 1).collision_probability(r)
    np.testing.assert_allclose(DWTA(1, 1, 2).collision_probability(r), signs, rtol=1e-9)
    # theorem 1 of Andoni et al. has a remainder of O(ln ln m): the ratio of
    # logarithms falls towards 1
    t2 = 2 - 2 * 0.8
    ratio = [np.log(1 / CrossPolytope(1, 1, m).collision_probability(0.8))
             / (t2 / (4 - t2) * np.log(m))
             for m in (16, 64, 1024, 65536)]
    assert np.all(np.diff(ratio) < 0) and ratio[-1] > 1


# ---- every family


@every_family
@pytest.mark.parametrize("d", [1, 3, 16, 65, 128])
@pytest.mark.parametrize("n", [0, 1, 40])
def test_codes_are_the_same_for_dense_and_sparse_rows_and_any_number_of_threads(rng, family, n, d):
    V = rows(rng, n, d, density=0.3)
    family.fit(d, 3)
    codes = family.hash(V)
    assert codes.shape == (n, family.tables) and codes.dtype == np.int32
    assert np.all((codes >= 0) & (codes < family.n_buckets))
    for other in (V, to_csr(V)):
        for n_threads in (1, 2):
            assert_same_bits(codes, family.hash(other, n_threads=n_threads))


@probing_family
def test_probes_are_the_same_for_dense_and_sparse_rows_and_any_number_of_threads(rng, family):
    V = rows(rng, 30, 65, density=0.4)
    probes = family.fit(65, 3).probe(V, 6)
    for other in (V, to_csr(V)):
        for n_threads in (1, 2):
            assert_same_bits(probes, family.probe(other, 6, n_threads=n_threads))


@every_family
def test_a_row_has_the_same_codes_alone_and_in_a_batch(rng, family):
    V = rows(rng, 2100, 20)  # more than are projected at a time
    codes = family.fit(20, 0).hash(V)
    for i in (0, 1023, 1024, 2099):
        assert_same_bits(codes[i:i + 1], family.hash(V[i:i + 1]))
    C = to_csr(V)
    assert_same_bits(codes[1000:1100], family.hash(C.slice(1000, 1100)))


@every_family
def test_the_seed_determines_the_hash_functions(rng, family):
    V = rows(rng, 50, 30)
    first, again = family.fit(30, 5).hash(V), type(family)(**family.config()).fit(30, 5).hash(V)
    assert_same_bits(first, again)
    assert np.any(first != family.fit(30, 6).hash(V))


@every_family
def test_empty_rows_share_all_buckets(rng, family):
    family.fit(9, 0)
    codes = family.hash(np.zeros((3, 9), np.float32))
    assert np.all(codes == codes[0])
    assert_same_bits(codes, family.hash(to_csr(np.zeros((3, 9)))))
    if not isinstance(family, MinHash):
        assert np.all(family.probe(np.zeros((1, 9), np.float32), 4)[0, :, 0] == codes[0])


@pytest.mark.parametrize("family", [f for f in FAMILIES if not isinstance(f, MinHash)], ids=repr)
def test_scaling_a_row_does_not_change_its_codes(rng, family):
    V = rows(rng, 30, 33)
    codes = family.fit(33, 0).hash(V)
    assert_same_bits(codes, family.hash(V * np.float32(2.0**-30)))
    assert_same_bits(codes, family.hash(V * np.float32(2.0**30)))


@every_family
def test_a_family_is_restored_from_its_configuration(family):
    again = type(family)(**family.config())
    assert again.config() == family.config() and repr(again) == repr(family)
    assert eval(repr(family)).config() == family.config()
    assert getattr(sl, type(family).__name__) is type(family)


# ---- probing


@probing_family
@pytest.mark.parametrize("d", [1, 20])
def test_probes_begin_with_the_bucket_of_the_row_and_are_distinct(rng, family, d):
    V = rows(rng, 25, d)
    family.fit(d, 1)
    for n_probes in (1, 2, 10, family.n_buckets):
        probes = family.probe(V, n_probes)
        assert probes.shape == (25, 4, n_probes) and probes.dtype == np.int32
        np.testing.assert_array_equal(probes[:, :, 0], family.hash(V))
        assert np.all((probes >= -1) & (probes < family.n_buckets))
        ordered = np.sort(probes, axis=2)
        assert np.all((np.diff(ordered, axis=2) > 0) | (ordered[:, :, 1:] == -1))


@probing_family
def test_more_probes_begin_with_the_same_buckets_as_fewer(rng, family):
    V = rows(rng, 25, 40)
    all_probes = family.fit(40, 1).probe(V, family.n_buckets)
    assert np.all(all_probes >= 0)
    for n_probes in (1, 3, 17):
        assert_same_bits(family.probe(V, n_probes),
                         np.ascontiguousarray(all_probes[:, :, :n_probes]))


@probing_family
def test_earlier_probes_hold_near_rows_more_often(rng, family):
    a, b = pairs_at(rng, 0.8, 8000, 48)
    probes, codes = family.fit(48, 2).probe(a, family.n_buckets), family.hash(b)
    place = np.argmax(probes == codes[:, :, None], axis=2)
    fraction = np.array([(place == k).mean() for k in range(6)])
    slack = 5 * np.sqrt(fraction[1:] / place.size)  # five standard errors of a count
    assert np.all(np.diff(fraction) <= slack), fraction
    # far more often than a bucket taken at random
    assert fraction[1] > 2 / family.n_buckets


@probing_family
def test_recall_grows_with_probes(rng, family):
    W, Q = rows(rng, 2000, 32), rows(rng, 100, 32)
    near = np.argsort(-(Q @ W.T) / np.linalg.norm(W, axis=1), axis=1)[:, :5]
    codes = family.fit(32, 3).hash(W)
    recall = []
    for n_probes in (1, 3, 10, family.n_buckets):
        probes = family.probe(Q, n_probes)
        found = (codes[near][:, :, :, None] == probes[:, None]).any(axis=(2, 3))
        recall.append(found.mean())
    assert recall[0] < recall[1] < recall[2] <= recall[3] == 1, recall


def test_minhash_refuses_several_probes_as_it_has_no_probing_order(rng):
    family, V = MinHash().fit(20, 0), rows(rng, 4, 20, 0.5)
    assert_same_bits(family.probe(V, 1)[:, :, 0], family.hash(V))
    with pytest.raises(
            ValueError,
            match="no order in which to probe further buckets, got n_probes=2; use n_probes=1"):
        family.probe(V, 2)


# ---- what codes do not depend on


def test_dwta_depends_only_on_the_order_of_the_values(rng):
    V = rows(rng, 30, 40, 0.6)
    family = DWTA(2, 10, 5).fit(40, 0)
    assert_same_bits(family.hash(V), family.hash(np.sqrt(V)))
    assert_same_bits(family.hash(V), family.hash(V**3))


def test_minhash_ignores_values(rng):
    V = rows(rng, 30, 40, 0.6)
    family = MinHash().fit(40, 0)
    assert_same_bits(family.hash(V), family.hash((V != 0).astype(np.float32)))
    assert_same_bits(family.hash(V), family.hash(-V))


# ---- errors


@pytest.mark.parametrize("make, error, message", [
    (lambda: SimHash(0), ValueError, "bits must be at least 1 and at most 24, got 0"),
    (lambda: SimHash(25), ValueError, "bits must be at least 1 and at most 24, got 25"),
    (lambda: SimHash(2.0), TypeError, "bits must be an integer, got 2.0"),
    (lambda: SimHash(4, 256), ValueError, "tables must be at least 1 and at most 255, got 256"),
    (lambda: SimHash(4, 2, "dense"), ValueError,
     "projection must be one of 'gaussian', 'sparse', 'orthogonal', got"),
    (lambda: DWTA(0), ValueError, "bins must be at least 1"),
    (lambda: DWTA(4, 0), ValueError, "tables must be at least 1"),
    (lambda: DWTA(4, 8, 1), ValueError, "bin_size must be at least 2"),
    (lambda: DWTA(9, 8, 8), ValueError,
     r"bin_size\*\*bins = 8\*\*9 must give at most 16777216 buckets"),
    (lambda: CrossPolytope(0), ValueError, "polytopes must be at least 1"),
    (lambda: CrossPolytope(1, 2, 1), ValueError, "dims must be at least 2"),
    (lambda: CrossPolytope(5, 2, 32), ValueError, r"64\*\*5 must give at most 16777216 buckets"),
    (lambda: MinHash(0), ValueError, "hashes must be at least 1"),
    (lambda: MinHash(2, -1), ValueError, "tables must be at least 1"),
    (lambda: MinHash(2, 2, 25), ValueError, "bits must be at least 1 and at most 24"),
    (lambda: MinHash(True), TypeError, "hashes must be an integer, got True"),
])
def test_bad_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@every_family
def test_wrong_calls_of_a_family_are_refused(family):
    family = type(family)(**family.config())
    V = np.zeros((2, 5), np.float32)
    with pytest.raises(
            ValueError,
            match=f"this {type(family).__name__} has drawn no hash functions yet; call fit"):
        family.hash(V)
    with pytest.raises(ValueError, match="n_dims must be at least 1, got 0"):
        family.fit(0)
    with pytest.raises(ValueError, match="random_state must be None"):
        family.fit(5, "seed")
    family.fit(4)
    with pytest.raises(ValueError, match="V must have 4 columns, got 5"):
        family.hash(V)
    with pytest.raises(ValueError, match="V must have 4 columns, got 5"):
        family.hash(to_csr(V))
    with pytest.raises(ValueError, match="n_probes must be at least 1"):
        family.probe(V[:, :4], 0)
    if not isinstance(family, MinHash):
        with pytest.raises(ValueError,
                           match=f"n_probes must be at least 1 and at most {family.n_buckets}"):
            family.probe(np.ascontiguousarray(V[:, :4]), family.n_buckets + 1)


# ---- the choice of bits and tables


@pytest.mark.parametrize("density", [0.3, 0.05, 0.01])
@pytest.mark.parametrize("similarity, recall", [(0.8, 0.9), (0.9, 0.99), (0.95, 0.5)])
def test_chosen_tables_reach_the_recall_within_the_density(density, similarity, recall):
    bits, tables = choose_bits_and_tables(density, 10**6, similarity=similarity, recall=recall)

    def found(cosine, bits, tables):
        return 1 - (1 - SimHash(bits, tables).collision_probability(cosine)) ** tables

    assert found(similarity, bits, tables) >= recall
    assert found(0, bits, tables) <= density
    if tables > 1:
        assert found(similarity, bits, tables - 1) < recall
    if bits > 1:
        fewer = int(np.ceil(
            np.log1p(-recall) / np.log1p(-SimHash(bits - 1, 1).collision_probability(similarity))))
        assert found(0, bits - 1, fewer) > density


@pytest.mark.parametrize("arguments, message", [
    ((0, 100), "density must be above 0 and below 1, got 0"),
    ((1, 100), "density must be above 0 and below 1, got 1"),
    ((0.1, 0), "n_neurons must be at least 1"),
    ((0.1, 100, 1.0, 0.9), "similarity must be above 0 and below 1, got 1"),
    ((0.1, 100, 0.8, 0.0), "recall must be above 0 and below 1, got 0"),
    ((0.001, 10**6, 0.3, 0.9), "need more than 255 tables or 20 bits: .* allow a higher density"),
    ((0.001, 10, 0.9, 0.9), "or 4 bits"),
])
def test_requirements_that_no_tables_meet_are_refused(arguments, message):
    names = ("density", "n_neurons", "similarity", "recall")
    arguments = dict(zip(names, arguments, strict=False))
    with pytest.raises(ValueError, match=message):
        choose_bits_and_tables(**arguments)


# ---- simple LSH


def test_after_simple_lsh_the_cosine_ranks_as_the_inner_product(rng):
    W = rows(rng, 300, 20) * rng.gamma(2.0, size=(300, 1)).astype(np.float32)
    X = rows(rng, 50, 20)
    V, Q = simple_lsh_neurons(W), simple_lsh_queries(X)
    assert V.dtype == Q.dtype == np.float32 and V.shape == (300, 21) and Q.shape == (50, 21)
    for array in (V, Q):
        np.testing.assert_allclose(np.linalg.norm(array, axis=1), 1, rtol=1e-6)
    norms = np.linalg.norm(W.astype(float), axis=1)
    inner = (X.astype(float) @ W.T.astype(float) / norms.max()
             / np.linalg.norm(X.astype(float), axis=1, keepdims=True))
    cosine = Q.astype(float) @ V.T.astype(float)
    # sums of 21 float32 products, in vectors of length one
    bound = 21 * 2.0**-23
    np.testing.assert_allclose(cosine, inner, rtol=0, atol=bound)
    in_order = np.take_along_axis(inner, np.argsort(-cosine, axis=1), axis=1)
    assert np.all(np.diff(in_order, axis=1) <= 2 * bound), \
        "the rankings are equal, except for ties within rounding"


def test_simple_lsh_transforms_parts_alike_and_edge_cases():
    W = np.array([[3, 4], [0, 0], [0, 1]], np.float32)
    np.testing.assert_allclose(simple_lsh_neurons(W),
                               [[0.6, 0.8, 0], [0, 0, 1], [0, 0.2, np.sqrt(0.96)]], rtol=1e-6)
    np.testing.assert_array_equal(simple_lsh_neurons(W)[2:],
                                  simple_lsh_neurons(W[2:], largest_norm=5.0))
    np.testing.assert_allclose(simple_lsh_neurons(W, largest_norm=1.0)[0], [0.6, 0.8, 0], rtol=1e-6)
    np.testing.assert_array_equal(simple_lsh_neurons(np.zeros((2, 3), np.float32)),
                                  [[0, 0, 0, 1]] * 2)
    np.testing.assert_array_equal(simple_lsh_queries(np.array([[0, 0], [0, 2]], np.float32)),
                                  [[0, 0, 0], [0, 1, 0]])
    assert simple_lsh_neurons(np.zeros((0, 3), np.float32)).shape == (0, 4)


def test_simhash_finds_long_neurons_after_simple_lsh(rng):
    S, d = 0.7, 30
    w = rng.standard_normal((1, d)).astype(np.float32)
    x = S * w / np.linalg.norm(w)
    other = rng.standard_normal((1, d))
    other -= (other @ w.T) / (w @ w.T) * w
    x = (x + np.sqrt(1 - S**2) * other / np.linalg.norm(other)).astype(np.float32)
    family = SimHash(1, 255)
    equal = np.stack(
        [family.fit(d + 1,
                    seed).hash(simple_lsh_neurons(w))[0] == family.hash(simple_lsh_queries(x))[0]
         for seed in range(100)])
    assert_law(equal, family.collision_probability(S), 0.05)
