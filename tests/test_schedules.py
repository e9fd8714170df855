"""The effect of schedules of learning rate and momentum, and of clipping, on the weights."""
import math

import numpy as np
import pytest
import scipy.sparse as sp

import sparselsh as sl
from sparselsh import schedules

SCHEDULES = [
    schedules.Linear(0.1), schedules.Cosine(0.1), schedules.Step((0.3, 0.6), 0.5),
    schedules.OneCycle(), schedules.OneCycle(peak=0.5, momentum=None, shape="linear"),
    schedules.WarmUp(0.2, schedules.Cosine()), schedules.WarmUp(0.1, "linear", start=0.5),
]


def test_schedules_follow_their_formulas():
    assert [schedules.Linear(0.2)(t) for t in (0, 0.5, 1)] == pytest.approx([1, 0.6, 0.2])
    assert [schedules.Cosine(0.2)(t) for t in (0, 0.5, 1)] == pytest.approx([1, 0.6, 0.2])
    assert schedules.Cosine()(0.25) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert ([schedules.Step((0.3, 0.6), 0.5)(t) for t in (0, 0.3, 0.59, 0.6, 1)]
            == [1, 0.5, 0.5, 0.25, 0.25])
    warm = schedules.WarmUp(0.2, schedules.Linear())
    assert [warm(t) for t in (0, 0.1, 0.2, 0.6, 1)] == pytest.approx([0, 0.5, 1, 0.5, 0])


@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_one_cycle_is_that_of_torch(shape):
    torch = pytest.importorskip("torch")
    n = 50
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1, momentum=0.9)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.4, total_steps=n, pct_start=0.3,
                                                 anneal_strategy="cos"
                                                 if shape == "cosine" else "linear")
    # torch's last step reaches the end, and its peak is step 0.3 n - 1
    ours = schedules.OneCycle(peak=(0.3 * n - 1) / (n - 1), shape=shape)
    for step in range(n):
        group = optimizer.param_groups[0]
        t = step / (n - 1)
        assert 0.4 * ours(t) == pytest.approx(group["lr"], rel=1e-6, abs=1e-9)
        assert ours.momentum_at(t) == pytest.approx(group["momentum"], rel=1e-6)
        if step < n - 1:
            optimizer.step()
            theirs.step()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_each_step_uses_the_learning_rate_of_its_progress(schedule):
    # one weight and a constant gradient: without momentum a step equals the learning rate
    optimizer = sl.Adam(0.1, schedule=schedule, betas=(0.0, 0.0), eps=1e-30)
    net = sl.Network([sl.Linear(1, 1)], loss="mse", random_state=0)
    net.layers[0].set_weights([[1000.0]])
    steps = []

    class Spy(type(optimizer)):
        def step(self, pairs, *, progress, n_threads):
            pairs = list(pairs)
            before = pairs[0][0].value.copy()
            super().step(pairs, progress=progress, n_threads=n_threads)
            steps.append((progress, float((before - pairs[0][0].value)[0, 0])))

    spy = Spy(0.1, schedule=schedule, betas=(0.0, 0.0), eps=1e-30)
    net.fit(np.ones((20, 1), np.float32), np.zeros((20, 1)), optimizer=spy,
            epochs=1, batch_size=2, verbose=False)
    assert [t for t, _ in steps] == pytest.approx([i / 10 for i in range(10)])
    if schedules.momentum(schedule, 0.5) is None:
        # 1000 in float32 is accurate to 6e-5
        assert [size for _, size in steps] == pytest.approx(
            [0.1 * schedule(t) for t, _ in steps], abs=1.3e-4)
    else:
        assert [size for _, size in steps][5] > next(size for _, size in steps) > 0


def test_the_momentum_of_a_cycle_is_used_in_the_update():
    # a gradient of one, then zero gradients: w moves by lr * momentum, then by the
    # momentum of the next step
    X = np.array([[1.0], [0.0]], np.float32)
    for pair in ((0.1, 0.1), (0.6, 0.6)):
        cycle = schedules.OneCycle(momentum=pair, start=1.0, end=1.0)
        net = sl.Network([sl.Linear(1, 1)], loss="mse").fit(
            X, X * 0, epochs=1, optimizer=sl.SGD(1e-9), verbose=False)
        net.layers[0].set_weights([[1.0]])
        net.fit(X, np.zeros((2, 1)), optimizer=sl.SGD(0.01, momentum=0.9, schedule=cycle),
                epochs=1, batch_size=1, shuffle=False, verbose=False)
        assert net.layers[0].weight[0, 0] == pytest.approx(1 - 0.02 - 0.02 * pair[0], abs=1e-6)


# ---- clipping


LAYERS = {
    "dense": lambda: [sl.Linear(20, 15, activation="relu"), sl.Linear(15, 12)],
    "batch": lambda: [sl.Linear(20, 15, activation="relu"), sl.LSHLinear(15, 60, density=0.3)],
    "sample": lambda: [sl.LSHLinear(20, 50, density=0.3, activation="relu"),
                       sl.LSHLinear(50, 40, density=0.3, activation="relu"),
                       sl.LSHLinear(40, 30, density=0.4, active="sample")],
}


def weights(layers):
    return np.concatenate(
        [np.append(layer.weight.ravel(), layer.bias) for layer in layers]).astype(float)


def one_step(kind, sparse, clip_norm, n_threads=1):
    rng = np.random.default_rng(3)
    layers = LAYERS[kind]()
    net = sl.Network(layers, random_state=0, n_threads=n_threads)
    X = rng.standard_normal((30, 20)) * (rng.random((30, 20)) < 0.5)
    X, y = sp.csr_array(X) if sparse else X, rng.integers(0, layers[-1].n_out, 30)
    before = sl.SGD(1e-30)
    net.fit(X, y, optimizer=before, epochs=1, batch_size=30, shuffle=False, verbose=False)
    start = weights(layers)
    optimizer = sl.SGD(1.0, clip_norm=clip_norm)
    net._training.n_steps = 0  # the same active sets in every call
    net.optimizer = optimizer
    net.partial_fit(X, y, batch_size=30)
    return start - weights(layers), optimizer


@pytest.mark.parametrize("sparse", [False, True], ids=["dense X", "CSR X"])
@pytest.mark.parametrize("kind", LAYERS)
def test_grad_norm_is_the_norm_of_what_a_step_subtracts(kind, sparse):
    step, optimizer = one_step(kind, sparse, 1e9)
    # steps of size 0.01 are subtracted from float32 weights of size 1, with an error of 6e-8 each
    assert optimizer.grad_norm == pytest.approx(np.linalg.norm(step), rel=1e-4)
    clipped, optimizer = one_step(kind, sparse, 0.01, n_threads=2)
    np.testing.assert_allclose(clipped, step * (0.01 / optimizer.grad_norm), atol=2e-7)
    assert np.linalg.norm(clipped) == pytest.approx(0.01, rel=1e-3)


def test_clipping_is_that_of_torch(rng):
    torch = pytest.importorskip("torch")
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((7, 5), (3,)))
    theirs = [torch.nn.Parameter(torch.zeros(g.shape)) for g in (a, b)]
    for p, g in zip(theirs, (a, b), strict=True):
        p.grad = torch.from_numpy(g.copy())
    norm = torch.nn.utils.clip_grad_norm_(theirs, 0.7)
    from sparselsh._gradients import DenseGradient

    ours = [DenseGradient(a), DenseGradient(b)]
    optimizer = sl.SGD(1.0, clip_norm=0.7)
    optimizer._clip(ours, 0.7, 2)
    assert optimizer.grad_norm == pytest.approx(float(norm), rel=1e-6)
    for p, g in zip(theirs, ours, strict=True):
        np.testing.assert_allclose(g.value, p.grad.numpy(), rtol=1e-5)
