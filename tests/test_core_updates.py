import sys

import numpy as np
import pytest
import reference
from support import (
    PATTERNS,
    SIZES,
    UNIT,
    assert_same_bits,
    assert_sums_close,
    eighths,
    gaussian,
    on_threads,
    random_csr,
    read_only,
    unwritten,
)

from sparselsh._core import _updates

pytestmark = pytest.mark.usefixtures("simd_level")

LR = 0.02
# name: (function, arguments, which moments it keeps)
SGD = {
    "sgd": ((LR, 0.0, False, 0.0), ""),
    "sgd, decay": ((LR, 0.0, False, 0.1), ""),
    "momentum": ((LR, 0.9, False, 0.0), "m"),
    "momentum, decay": ((LR, 0.9, False, 0.1), "m"),
    "nesterov, decay": ((LR, 0.9, True, 0.1), "m"),
}
ADAM = {
    "adam": ((LR, 0.9, 0.999, 1e-8, 0.0), "mv"),
    "adam, decay": ((LR, 0.9, 0.999, 1e-8, 0.3), "mv"),
    "adam, no memory": ((LR, 0.0, 0.9, 1e-3, 0.0), "mv"),
}
OPTIMIZERS = SGD | ADAM


class Optimizer:
    """One optimizer twice: the kernel's rule and its reference, at the current step."""

    def __init__(self, name):
        self.kind = "sgd" if name in SGD else "adam"
        self.arguments, self.moments = OPTIMIZERS[name]

    def at(self, module, step):
        return getattr(module, self.kind)(*self.arguments, *([step] if self.kind == "adam" else []))

    def start(self, w):
        """w and its moments, None for those that the rule does not keep."""
        return [np.array(w), *(np.zeros_like(w) if name in self.moments else None for name in "mv")]


@pytest.fixture(params=OPTIMIZERS)
def optimizer(request):
    return Optimizer(request.param)


@pytest.fixture(params=PATTERNS.values(), ids=PATTERNS)
def pattern(request):
    """(n_samples, n_neurons, density) of the active sets."""
    return request.param


def apply(kernel, rule, state, *arguments):
    """The state after the kernel, the same bits for 1 and 2 threads."""
    def call(n_threads):
        new = [None if a is None else a.copy() for a in state]
        getattr(_updates, kernel)(rule, *new, *arguments, n_threads)
        return tuple(new)

    return list(on_threads(call))


def assert_state_close(got, want, n_steps):
    """A step rounds each number a few times; v has the error of 1 - beta2 in addition.

    v is a sum of (1 - beta2) g^2; in float32 the error of 1 - 0.999 is 1.3e-5. It cancels in w, as
    v is corrected by the beta2 that made it.
    """
    for name, a, b in zip("wmv", got, want, strict=False):
        assert (a is None) == (b is None)
        if a is not None:
            units = 8 * n_steps + (250 if name == "v" else 0)
            assert np.max(abs(a - b), initial=0) <= units * UNIT * np.max(abs(b), initial=1), name


N_STEPS = 10


@pytest.mark.parametrize("d", SIZES)
def test_ten_steps_on_rows_equal_the_reference(rng, optimizer, d):
    got = want = optimizer.start(gaussian(rng, 7, d))
    for step in range(1, N_STEPS + 1):
        rows = read_only(rng.permutation(7)[: rng.integers(0, 8)].astype(np.int32))
        dw = gaussian(rng, len(rows), d)
        got = apply("update_rows", optimizer.at(_updates, step), got, rows, dw)
        want = reference.update_rows(optimizer.at(reference, step), *want, rows, dw)
    assert_state_close(got, want, N_STEPS)


@pytest.mark.parametrize("n", (0, *SIZES, 4095, 4096, 4097, 10_000))
def test_ten_steps_on_all_of_a_parameter_equal_the_reference(rng, optimizer, n):
    got = want = optimizer.start(gaussian(rng, n))
    for step in range(1, N_STEPS + 1):
        dw = gaussian(rng, n)
        got = apply("update_all", optimizer.at(_updates, step), got, dw)
        want = reference.update_all(optimizer.at(reference, step), *want, dw)
    assert_state_close(got, want, N_STEPS)


def groups_of(indptr, indices):
    return read_only(*reference.group_columns(indptr, indices))


# the step itself is tested with update_rows; here the sums and their positions are tested
some_optimizers = pytest.mark.parametrize(
    "optimizer", ["sgd, decay", "momentum, decay", "adam, decay"], indirect=True)


@some_optimizers
@pytest.mark.parametrize("d", (0, 1, 17, 64, 129))
def test_update_grouped_applies_the_gradient_of_the_whole_batch(rng, optimizer, pattern, d):
    n, m, density = pattern
    got = want = optimizer.start(gaussian(rng, m, d))

    for step in range(1, 4):
        indptr, indices, data = random_csr(rng, n, m, density, eighths)
        x = eighths(rng, n, d)  # the sums are exact, so that only the step rounds
        before = got
        got = apply("update_grouped", optimizer.at(_updates, step), got,
                    *groups_of(indptr, indices), data, x)
        want = reference.update_grouped(optimizer.at(reference, step), *want, indptr, indices, data,
                                        x)
        untouched = np.setdiff1d(np.arange(m), indices)
        for a, b in zip(before, got, strict=True):
            if a is not None:
                assert_same_bits(a[untouched], b[untouched])
    assert_state_close(got, want, 3)


@some_optimizers
@pytest.mark.parametrize("d", (0, 1, 17, 64))
@pytest.mark.parametrize("x_density", [0, 0.05, 0.6])
def test_update_grouped_csr_touches_active_outputs_at_active_inputs(rng, optimizer, pattern, d,
                                                                    x_density):
    n, m, density = pattern
    got = want = optimizer.start(gaussian(rng, m, d))

    for step in range(1, 4):
        indptr, indices, data = random_csr(rng, n, m, density, eighths)
        x = random_csr(rng, n, d, x_density, eighths)
        before = got
        groups = groups_of(indptr, indices)
        got = apply("update_grouped_csr", optimizer.at(_updates, step), got, *groups, data, *x)
        want = reference.update_grouped_csr(optimizer.at(reference, step), *want, indptr, indices,
                                            data, *x)
        active, inputs = (reference.dense(*csr[:2], np.ones(len(csr[1])), width)
                          for csr, width in [((indptr, indices), m), (x, d)])
        untouched = active.T @ inputs == 0
        for a, b in zip(before, got, strict=True):
            if a is not None:
                assert_same_bits(a[untouched], b[untouched])
    assert_state_close(got, want, 3)


@pytest.mark.parametrize("d", SIZES)
def test_update_grouped_sums_within_rounding(rng, d):
    # plain SGD with rate 1 on zeros: the result is minus the gradient
    indptr, indices, data = random_csr(rng, 20, 30, 0.5)
    x, w = gaussian(rng, 20, d), np.zeros((30, d), np.float32)
    rule = _updates.sgd(1.0, 0.0, False, 0.0)
    arguments = *groups_of(indptr, indices), data
    gradient = -reference.dense(indptr, indices, data, 30).T @ x.astype(float)
    magnitude = abs(reference.dense(indptr, indices, data, 30)).T @ abs(x).astype(float)
    got, *_ = apply("update_grouped", rule, [w, None, None], *arguments, x)
    assert_sums_close(got, gradient, magnitude, 20)
    x_csr = read_only(np.arange(21) * d, np.tile(np.arange(d, dtype=np.int32), 20), x.ravel())
    got, *_ = apply("update_grouped_csr", rule, [w, None, None], *arguments, *x_csr)
    assert_sums_close(got, gradient, magnitude, 20)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows commits memory that is never touched")
def test_rows_are_found_beyond_the_reach_of_32_bits():
    w = np.zeros((2**11 + 2, 2**20), np.float32)  # pages that are never touched need no memory
    last = len(w) - 1
    zero = np.zeros(1, np.int32)
    one = read_only(np.array([last], np.int32), np.array([0, 1]), zero, zero)
    data, x = read_only(np.ones(1, np.float32)), np.zeros((1, w.shape[1]), np.float32)
    x[0, -1] = 2
    rule = _updates.sgd(1.0, 0.0, False, 0.0)
    _updates.update_grouped(rule, w, None, None, *one, data, x, 1)
    _updates.update_rows(rule, w, None, None, one[0], x, 1)
    x_csr = read_only(np.array([0, 1]), np.array([w.shape[1] - 1], np.int32),
                      np.array([2], np.float32))
    _updates.update_grouped_csr(rule, w, None, None, *one, data, *x_csr, 1)
    assert w[last, -1] == -6


@pytest.mark.parametrize("n, m, density", PATTERNS.values(), ids=PATTERNS)
def test_sum_groups_is_the_bias_gradient_of_the_touched_rows(rng, n, m, density):
    indptr, indices, data = random_csr(rng, n, m, density)
    rows, starts, entries, _ = groups_of(indptr, indices)
    out = unwritten(len(rows), np.float32)
    _updates.sum_groups(starts, entries, data, out)
    want = reference.sum_groups(starts, entries, data)
    assert_sums_close(out, want, reference.sum_groups(starts, entries, abs(data)), n)
    np.testing.assert_allclose(want, reference.dense(indptr, indices, data, m).sum(axis=0)[rows],
                               atol=1e-12)


@pytest.mark.parametrize("n, n_out", [(0, 3), (1, 1), (5, 0), (7, 33), (256, 1024), (30, 2500)])
def test_sum_columns_is_the_bias_gradient_of_shared_outputs(rng, n, n_out):
    d_out = gaussian(rng, n, n_out)

    def call(n_threads):
        out = unwritten(n_out, np.float32)
        _updates.sum_columns(d_out, out, n_threads)
        return out

    want = d_out.astype(np.float64).sum(axis=0)
    assert_sums_close(on_threads(call), want, abs(d_out).astype(np.float64).sum(axis=0), n)


def test_a_gradient_of_nan_stays_in_its_entry(rng, optimizer):
    dw = np.array(gaussian(rng, 2, 33))
    dw[0, 5] = np.nan
    rows = np.array([3, 1], np.int32)
    w, *_ = apply("update_rows", optimizer.at(_updates, 1), optimizer.start(gaussian(rng, 5, 33)),
                  rows, dw)
    assert np.argwhere(np.isnan(w)).tolist() == [[3, 5]]


@pytest.mark.parametrize("beta2", [0.9, 0.999, 0.99999])
@pytest.mark.parametrize("step", [1, 500])
def test_adams_step_for_a_constant_gradient_is_the_learning_rate(beta2, step):
    # m^ = g and v^ = g^2 for any betas, if the moments are corrected by the betas that made them
    g = np.float32([[1e-3, -1, 100]])
    state = [np.zeros((1, 3), np.float32) for _ in "wmv"]
    for t in range(1, step + 1):
        state[0][:] = 0
        rule = _updates.adam(1.0, 0.9, beta2, 0.0, 0.0, t)
        _updates.update_rows(rule, *state, np.zeros(1, np.int32), g, 1)
    # both moments round up to three times per step
    np.testing.assert_allclose(-state[0], np.sign(g), rtol=(6 * step + 8) * UNIT)


# ---- against torch


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "adam, no memory"])
def test_ten_dense_steps_are_those_of_torch(rng, torch, name):
    optimizer = Optimizer(name)
    w = gaussian(rng, 5, 17)
    p = torch.nn.Parameter(torch.tensor(np.array(w), dtype=torch.float64))
    if optimizer.kind == "sgd":
        lr, momentum, nesterov, decay = optimizer.arguments
        theirs = torch.optim.SGD([p], lr=lr, momentum=momentum, nesterov=nesterov,
                                 weight_decay=decay)
    else:
        lr, beta1, beta2, eps, decay = optimizer.arguments
        theirs = torch.optim.AdamW([p], lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=decay)

    state = optimizer.start(w)
    everything = read_only(np.arange(5, dtype=np.int32))
    for step in range(1, N_STEPS + 1):
        dw = gaussian(rng, 5, 17)
        p.grad = torch.tensor(np.array(dw), dtype=torch.float64)
        theirs.step()
        state = apply("update_rows", optimizer.at(_updates, step), state, everything, dw)
    assert_state_close(state[:1], [p.detach().numpy()], N_STEPS)


# the message of torch when it creates its first sparse tensor
@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
def test_ten_lazy_steps_are_those_of_torchs_sparse_adam(rng, torch):
    optimizer = Optimizer("adam")
    lr, beta1, beta2, eps, _ = optimizer.arguments
    n, m, d = 6, 20, 17
    w = gaussian(rng, m, d)
    p = torch.nn.Parameter(torch.tensor(np.array(w), dtype=torch.float64))
    theirs = torch.optim.SparseAdam([p], lr=lr, betas=(beta1, beta2), eps=eps)
    state = optimizer.start(w)

    for step in range(1, N_STEPS + 1):
        indptr, indices, data = random_csr(rng, n, m, 0.15, eighths)
        x = eighths(rng, n, d)
        rows = np.unique(indices)
        gradient = (reference.dense(indptr, indices, data, m).T @ x.astype(float))[rows]
        p.grad = torch.sparse_coo_tensor(rows[None].astype(np.int64), torch.from_numpy(gradient),
                                         (m, d))
        theirs.step()
        rule = optimizer.at(_updates, step)
        state = apply("update_grouped", rule, state, *groups_of(indptr, indices), data, x)

    # torch adds eps to the root of v before the correction, this library after it: for gradients
    # that are 0 or at least 1/64, the difference is below eps * 64 / sqrt(1 - beta2)
    assert_state_close(state[:1], [p.detach().numpy()], N_STEPS)
