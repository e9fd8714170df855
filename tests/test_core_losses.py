import numpy as np
import pytest
import reference
from scipy.special import expit
from support import SIZES, UNIT, assert_same_bits, gaussian, on_threads, read_only, unwritten

from sparselsh._core import _losses

pytestmark = pytest.mark.usefixtures("simd_level")

# Bounds of the relative error of one result in units of rounding (2^-24); measured at any level:
SOFTMAX_UNITS = 9  # 5.8 (exp is within 2 ulp; then a sum, a division and a product)
SIGMOID_UNITS = 7  # 4.4
SOFTPLUS_UNITS = 7  # 4.9


def run(name, offsets, z, indptr, positions, *values, scale=1.0):
    """Return the losses and the gradient, the same bits for 1 and 2 threads."""
    def call(n_threads):
        losses, gradient = unwritten(len(offsets) - 1, np.float32), np.array(z)
        getattr(_losses, name)(offsets, gradient, indptr, positions, *values, scale, losses,
                               n_threads)
        return losses, gradient

    return on_threads(call)


def logits(*rows):
    """Offsets and values of ragged rows."""
    offsets = np.cumsum([0] + [len(row) for row in rows]).astype(np.int64)
    return read_only(offsets, np.concatenate([np.zeros(0), *rows]).astype(np.float32))


def targets(*rows):
    return read_only(np.cumsum([0] + [len(row) for row in rows]).astype(np.int64),
                     np.array([t for row in rows for t in row], np.int32))


def random_targets(rng, offsets, most=4):
    lengths = np.diff(offsets)
    return targets(*(rng.permutation(n)[: rng.integers(0, most + 1)] for n in lengths))


def magnitudes(name, offsets, z, indptr, positions, *values):
    """Sum of the absolute terms of each loss: its rounding errors are relative to it."""
    out = np.zeros(len(offsets) - 1)
    for i in range(len(out)):
        row, chosen = abs(z[slice(*offsets[i : i + 2])].astype(float)), slice(*indptr[i : i + 2])
        if name == "squared_error":
            out[i] = (row.sum() + abs(values[0][chosen]).sum()) ** 2
        else:
            out[i] = np.logaddexp(0, row).sum() + row[positions[chosen]].sum() + row.max(initial=0)
    return out


LOSSES = ["softmax_cross_entropy", "binary_cross_entropy", "squared_error"]


@pytest.mark.parametrize("scale", [1.0, 1 / 256])
@pytest.mark.parametrize("n", [0, 1, 9])
@pytest.mark.parametrize("width", [*SIZES, "ragged"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_are_those_of_the_formula(rng, name, width, n, scale):
    widths = rng.integers(0, 40, n) if width == "ragged" else [width] * n
    offsets, z = logits(*(3 * rng.standard_normal(k) for k in widths))
    indptr, positions = random_targets(rng, offsets)
    values = [gaussian(rng, len(positions))] if name == "squared_error" else []
    losses, gradient = run(name, offsets, z, indptr, positions, *values, scale=scale)
    want_losses, want = getattr(reference, name)(offsets, z, indptr, positions, *values,
                                                 scale=scale)
    # each term of a loss has its own error, and each addition one unit more
    n_units = max(widths, default=0) + SOFTMAX_UNITS
    bound = n_units * UNIT * magnitudes(name, offsets, z, indptr, positions, *values)
    assert np.all(abs(losses - want_losses) <= bound)
    # probability minus target: both at most 1; or the residual, here below 16
    largest = 16 if name == "squared_error" else 1
    assert np.all(abs(gradient - want) <= 2 * SOFTMAX_UNITS * UNIT * scale * largest)


@pytest.mark.parametrize("name", LOSSES)
def test_rows_without_outputs_cost_nothing(name):
    offsets, z = logits([], [], [])
    values = [read_only(np.zeros(0, np.float32))] if name == "squared_error" else []
    losses, gradient = run(name, offsets, z, *targets([], [], []), *values)
    assert losses.tolist() == [0, 0, 0] and gradient.shape == (0,)


def test_softmax_passes_over_rows_without_labels(rng):
    offsets, z = logits(*gaussian(rng, 3, 17))
    losses, gradient = run("softmax_cross_entropy", offsets, z, *targets([4], [], [0]))
    assert losses[1] == 0 and not gradient[17:34].any()
    assert np.all(losses[[0, 2]] > 0) and gradient[:17].any() and gradient[34:].any()


@pytest.mark.parametrize("width", SIZES)
def test_the_softmax_gradient_of_a_row_sums_to_zero(rng, width):
    offsets, z = logits(*gaussian(rng, 5, width))
    labels = [[0, width - 1][: min(width, 2)]] * 5
    _, gradient = run("softmax_cross_entropy", offsets, z, *targets(*labels))
    # probabilities with an error of a few units each; `width` additions round
    sums = gradient.reshape(5, width).astype(float).sum(axis=1)
    assert np.all(abs(sums) < (width + SOFTMAX_UNITS) * UNIT)


@pytest.mark.parametrize("low", [-1e4, -1e30, -3e38])
@pytest.mark.parametrize("high", [0, 1e4])
@pytest.mark.parametrize("width", [2, 17, 129])
def test_softmax_of_extreme_logits_is_finite(width, high, low):
    row = np.full(width, low, np.float32)
    row[1] = high
    losses, gradient = run("softmax_cross_entropy", *logits(row, row), *targets([1], [0]))
    right, wrong = gradient.reshape(2, width)
    assert losses[0] == 0 and losses[1] == np.float32(high - np.float64(np.float32(low)))
    # a probability below e^-87 is returned as e^-87, about 1.6e-38
    assert np.all(abs(right) < 2e-38)
    assert wrong[0] == -1 and wrong[1] == 1 and np.all(abs(wrong[2:]) < 2e-38)


@pytest.mark.parametrize("size", [100, 1e4, 1e30])
def test_sigmoids_of_extreme_logits_are_finite(size):
    row = np.float32([size, -size] * 9)
    losses, gradient = run("binary_cross_entropy", *logits(row, row, row), *targets([], [0], [1]))
    np.testing.assert_allclose(losses / np.float32(size), [9, 8, 10], rtol=20 * UNIT)
    want = np.tile([1.0, 0.0], (3, 9))
    want[1, 0] -= 1
    want[2, 1] -= 1
    np.testing.assert_allclose(gradient.reshape(3, 18), want, rtol=0, atol=2e-38)


def test_softmax_probabilities_keep_their_digits():
    # only exp: two outputs, whose second probability is e^x / (1 + e^x)
    x = np.concatenate([-np.geomspace(1e-6, 86.9, 20_000), np.linspace(-86.9, 0, 20_000)])
    x = x.astype(np.float32)
    offsets, z = logits(*np.stack([np.zeros_like(x), x], axis=1))
    _, gradient = run("softmax_cross_entropy", offsets, z, *targets(*[[0]] * len(x)))
    want = expit(x.astype(float))
    units = np.max(abs(gradient[1::2] / want - 1)) / UNIT
    assert units < SOFTMAX_UNITS, units


def test_sigmoids_keep_their_digits():
    z = np.concatenate([np.linspace(-86.9, 86.9, 20_001), np.geomspace(1e-6, 1, 5000)])
    z = z.astype(np.float32)
    z = np.concatenate([z, -z])
    losses, gradient = run("binary_cross_entropy", *logits(*z[:, None]), *targets(*[[]] * len(z)))
    sigmoid = np.max(abs(gradient / expit(z.astype(float)) - 1)) / UNIT
    softplus = np.max(abs(losses / np.logaddexp(0, z.astype(float)) - 1)) / UNIT
    assert sigmoid < SIGMOID_UNITS, sigmoid
    assert softplus < SOFTPLUS_UNITS, softplus


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_the_slopes_of_the_loss(rng, name):
    # central differences of the reference in float64, against the gradient of the kernel
    offsets, z = logits(2 * gaussian(rng, 17))
    indptr, positions = targets([3, 16, 0])
    values = [gaussian(rng, 3)] if name == "squared_error" else []
    _, gradient = run(name, offsets, z, indptr, positions, *values)
    h = 1e-5

    def loss(step):
        return getattr(reference, name)(offsets, z + step, indptr, positions, *values,
                                        scale=1)[0][0]

    slopes = [(loss(h * e) - loss(-h * e)) / (2 * h) for e in np.eye(17)]
    # rounding of the gradient, which is below 16, and of differences of losses below 1000
    assert np.all(abs(slopes - gradient) < 16 * SOFTMAX_UNITS * UNIT + 1000 * 2.0**-52 / h)


def test_the_scale_multiplies_the_gradient_and_not_the_loss(rng):
    offsets, z = logits(*gaussian(rng, 4, 33))
    chosen = random_targets(rng, offsets)
    for name in LOSSES:
        values = [gaussian(rng, len(chosen[1]))] if name == "squared_error" else []
        losses, gradient = run(name, offsets, z, *chosen, *values)
        halved_losses, halved = run(name, offsets, z, *chosen, *values, scale=0.5)
        assert_same_bits(losses, halved_losses)  # a power of two: exact
        assert_same_bits(gradient * np.float32(0.5), halved)


def test_locate_finds_labels_in_ascending_rows_and_says_where_there_are_none(rng):
    rows = [np.flatnonzero(rng.random(50) < fraction) for fraction in (0, 0.1, 0.5, 1, 0.02)]
    labels = [rng.permutation(50)[:n] for n in (3, 0, 20, 50, 7)]
    indptr, label_indptr = (np.cumsum([0, *map(len, part)]).astype(np.int64)
                            for part in (rows, labels))
    indices, label = (np.concatenate(part).astype(np.int32) for part in (rows, labels))
    positions = unwritten(len(label), np.int32)
    _losses.locate(*read_only(indptr, indices, label_indptr, label), positions)
    assert positions.tolist() == reference.locate(indptr, indices, label_indptr, label)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 1000])
def test_locate_shared_finds_every_id_of_a_set(rng, n):
    ids = np.sort(rng.permutation(5 * n)[:n]).astype(np.int32)
    wanted = rng.permutation(n).astype(np.int32)
    positions = unwritten(n, np.int32)
    _losses.locate_shared(*read_only(ids, ids[wanted]), positions)
    assert positions.tolist() == wanted.tolist()


# ---- softmax by parts


def by_parts(offsets, z, indptr, positions, n_parts, scale=1.0):
    """The losses and the gradient of rows that lie in n_parts parts each, and what the parts gave.

    The same bits for 1 and 2 threads.
    """
    n = (len(offsets) - 1) // n_parts

    def call(n_threads):
        gradient, parts = np.array(z), unwritten((n * n_parts, 3), np.float32)
        _losses.softmax_parts(offsets, gradient, indptr, positions, parts, n_threads)
        whole = parts[::n_parts].copy()
        for p in range(1, n_parts):
            joined = unwritten((n, 3), np.float32)
            _losses.join_softmax_parts(whole, parts[p::n_parts].copy(), joined)
            whole = joined
        losses = unwritten(n, np.float32)
        n_targets = np.diff(indptr[::n_parts])
        _losses.softmax_of_parts(offsets, gradient, indptr, positions, parts, whole, n_targets,
                                 scale, losses, n_threads)
        return losses, gradient, parts, whole

    return on_threads(call)


@pytest.mark.parametrize("n", [0, 1, 9])
@pytest.mark.parametrize("n_parts", [1, 2, 5])
def test_softmax_by_parts_is_that_of_whole_rows(rng, n, n_parts):
    widths = rng.integers(0, 40, n * n_parts)
    widths[::n_parts] += 1  # a row has at least one logit
    offsets, z = logits(*(3 * rng.standard_normal(k) for k in widths))
    indptr, positions = random_targets(rng, offsets, most=2)
    losses, gradient, parts, whole = by_parts(offsets, z, indptr, positions, n_parts, 1 / 256)

    wanted = reference.softmax_parts(offsets, z, indptr, positions)
    np.testing.assert_array_equal(parts[:, 0], wanted[:, 0])
    np.testing.assert_allclose(parts[:, 1:], wanted[:, 1:], rtol=50 * UNIT, atol=100 * UNIT)
    joined = wanted[::n_parts]
    for p in range(1, n_parts):
        joined = reference.join_softmax_parts(joined, wanted[p::n_parts])
    np.testing.assert_allclose(whole, joined, rtol=50 * UNIT, atol=100 * UNIT)

    want_losses, want = reference.softmax_of_parts(offsets, z, indptr, positions, n_parts, 1 / 256)
    np.testing.assert_allclose(losses, want_losses, atol=500 * UNIT)  # sums of up to 200 terms
    np.testing.assert_allclose(gradient, want, atol=2 * SOFTMAX_UNITS * UNIT / 256)


def test_softmax_of_one_part_has_the_bits_of_softmax_cross_entropy(rng):
    offsets, z = logits(*(3 * rng.standard_normal(k) for k in (0, 1, 7, 40, 300)))
    labels = random_targets(rng, offsets)
    losses, gradient, _, _ = by_parts(offsets, z, *labels, 1, scale=1 / 3)
    want_losses, want = run("softmax_cross_entropy", offsets, z, *labels, scale=1 / 3)
    assert_same_bits(losses, want_losses)
    assert_same_bits(gradient + 0, want + 0)  # a row without labels has zeros of either sign


def test_parts_of_no_logits_change_nothing():
    parts = read_only(np.array([[1.5, 2, 3]], np.float32))
    nothing = read_only(np.array([[-np.inf, 0, 0]], np.float32))
    out = unwritten((1, 3), np.float32)
    for left, right, want in ((parts, nothing, parts), (nothing, parts, parts),
                              (nothing, nothing, nothing)):
        _losses.join_softmax_parts(left, right, out)
        np.testing.assert_array_equal(out, want)
