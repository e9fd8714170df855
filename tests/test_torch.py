"""With density=1 a network equals that of torch: outputs, loss, gradients, trained weights."""
import warnings

import numpy as np
import pytest
import scipy.sparse as sp

import sparselsh as sl
from sparselsh import _validation as check

torch = pytest.importorskip("torch")

N, N_IN, N_HIDDEN, N_OUT = 24, 30, 16, 40
N_STEPS = 10
# float32 on both sides: sums of up to 40 terms in another order, about a hundred roundings of 6e-8
RTOL = 1e-5


def inputs(rng, sparse=False):
    X = rng.standard_normal((N, N_IN), np.float32)
    if not sparse:
        return X
    X[rng.random(X.shape) < 0.7] = 0
    X[:, 5] = 0  # a feature that no sample has
    return sp.csr_array(X)


def indicator(rng, most=4):
    """Return from one to `most` labels per sample."""
    Y = np.zeros((N, N_OUT), np.float32)
    for row in Y:
        row[rng.permutation(N_OUT)[:rng.integers(1, most + 1)]] = 1
    return Y


def both(rng, *, sparse_input=False, loss="softmax"):
    """Return the same network in sparselsh and in torch, with the same weights."""
    ours = sl.Network([sl.Linear(N_IN, N_HIDDEN, activation="relu"),
                       sl.LSHLinear(N_HIDDEN, N_OUT, density=1)],
                      loss=loss, random_state=0)
    theirs = torch.nn.Sequential(torch.nn.Linear(N_IN, N_HIDDEN), torch.nn.ReLU(),
                                 torch.nn.Linear(N_HIDDEN, N_OUT))
    for layer, linear in zip(ours.layers, theirs[::2], strict=True):
        w, b = (rng.standard_normal(tuple(p.shape), np.float32) / 3
                for p in (linear.weight, linear.bias))
        layer.set_weights(w, b)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(w))
            linear.bias.copy_(torch.from_numpy(b))
    return ours, theirs


LOSSES = {
    # cross entropy against the uniform distribution over the labels
    "softmax": lambda z, Y: torch.nn.CrossEntropyLoss()(z, Y / Y.sum(dim=1, keepdim=True)),
    # sums over the outputs, means over the samples
    "bce": lambda z, Y: torch.nn.BCEWithLogitsLoss(reduction="sum")(z, Y) / len(z),
    "mse": lambda z, Y: torch.nn.MSELoss(reduction="sum")(z, Y) / len(z),
}


def dense(X):
    return torch.from_numpy(X.toarray() if sp.issparse(X) else X)


def assert_close(ours, theirs, n=1):
    """Check that all entries agree within n times RTOL of the largest."""
    theirs = theirs.detach().numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=n * RTOL * max(1, abs(theirs).max()))


def assert_same_weights(ours, theirs, n=1):
    for layer, linear in zip(ours.layers, theirs[::2], strict=True):
        assert_close(layer.weight, linear.weight, n)
        assert_close(layer.bias, linear.bias, n)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense X", "CSR X"])
def test_outputs_are_those_of_torch(rng, sparse):
    ours, theirs = both(rng)
    X = inputs(rng, sparse)
    assert_close(ours.decision_function(X), theirs(dense(X)))
    scores, ids = torch.topk(theirs(dense(X)), 5)
    got_ids, got_scores = ours.topk(X, k=5)
    np.testing.assert_array_equal(got_ids, ids)
    assert_close(got_scores, scores)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("sparse", [False, True], ids=["dense X", "CSR X"])
def test_loss_and_gradients_are_those_of_torch(rng, sparse, loss):
    ours, theirs = both(rng, loss=loss)
    X, Y = inputs(rng, sparse), indicator(rng)
    before = [(layer.weight.copy(), layer.bias.copy()) for layer in ours.layers]
    ours.fit(X, Y, optimizer=sl.SGD(lr=1), epochs=1, batch_size=N, shuffle=False, verbose=False)
    want = LOSSES[loss](theirs(dense(X)), torch.from_numpy(Y))
    want.backward()
    assert ours.history[-1]["loss"] == pytest.approx(want.item(), rel=RTOL)
    for layer, linear, (w, b) in zip(ours.layers, theirs[::2], before, strict=True):
        # a step of SGD with learning rate 1 subtracts the gradient; the subtraction rounds at
        # the size of the weight
        assert_close(w - layer.weight, linear.weight.grad)
        assert_close(b - layer.bias, linear.bias.grad)


def test_class_ids_give_the_loss_of_torch(rng):
    ours, theirs = both(rng)
    X, y = inputs(rng), rng.integers(N_OUT, size=N)
    ours.fit(X, y, optimizer=sl.SGD(lr=0.1), epochs=1, batch_size=N, verbose=False)
    want = torch.nn.CrossEntropyLoss()(theirs(dense(X)), torch.from_numpy(y))
    assert ours.history[-1]["loss"] == pytest.approx(want.item(), rel=RTOL)


OPTIMIZERS = {
    "SGD": (lambda: sl.SGD(0.1), lambda p: torch.optim.SGD(p, 0.1)),
    "SGD, momentum, decay": (lambda: sl.SGD(0.1, momentum=0.9, weight_decay=0.01),
                             lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01)),
    "SGD, Nesterov": (lambda: sl.SGD(0.1, momentum=0.9, nesterov=True),
                      lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True)),
    # eps is large enough that gradients of rounding errors only do not become full steps
    "Adam": (lambda: sl.Adam(0.01, eps=1e-4), lambda p: torch.optim.Adam(p, 0.01, eps=1e-4)),
    "AdamW": (lambda: sl.Adam(0.01, eps=1e-4, weight_decay=0.1, betas=(0.8, 0.99)),
              lambda p: torch.optim.AdamW(p, 0.01, eps=1e-4, weight_decay=0.1, betas=(0.8, 0.99))),
}


def train(theirs, optimizers, X, Y, loss="softmax"):
    for x, y in zip(X, Y, strict=True):
        for optimizer in optimizers:
            optimizer.zero_grad()
        LOSSES[loss](theirs(dense(x)), torch.from_numpy(y)).backward()
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_after_ten_steps_are_those_of_torch(rng, name):
    ours, theirs = both(rng)
    X, Y = [inputs(rng) for _ in range(N_STEPS)], [indicator(rng) for _ in range(N_STEPS)]
    make_ours, make_theirs = OPTIMIZERS[name]
    ours.fit(np.concatenate(X), np.concatenate(Y), optimizer=make_ours(),
             epochs=1, batch_size=N, shuffle=False, verbose=False)
    train(theirs, [make_theirs(theirs.parameters())], X, Y)
    assert_same_weights(ours, theirs, n=N_STEPS)


@pytest.mark.parametrize("name", ["Adam", "SGD, Nesterov"])
def test_an_optimizer_continues_from_its_state(rng, name):
    ours, theirs = both(rng)
    X, Y = inputs(rng), indicator(rng)
    make_ours, make_theirs = OPTIMIZERS[name]
    optimizer = make_ours()
    ours.fit(X, Y, optimizer=optimizer, epochs=1, batch_size=N, shuffle=False, verbose=False)
    ours.partial_fit(X, Y, batch_size=N)
    ours.fit(X, Y, optimizer=optimizer, epochs=1, batch_size=N, shuffle=False, verbose=False)
    train(theirs, [make_theirs(theirs.parameters())], [X] * 3, [Y] * 3)
    assert_same_weights(ours, theirs, n=3)


class SparseFirst(torch.nn.Module):
    """The network in torch for sparse inputs: its first layer is an embedding bag."""

    def __init__(self, theirs):
        super().__init__()
        w = theirs[0].weight.detach().T.contiguous()
        self.rows = torch.nn.EmbeddingBag.from_pretrained(w, freeze=False, mode="sum", sparse=True)
        self.bias, self.last = theirs[0].bias, theirs[2]

    def forward(self, x):
        bags = self.rows(torch.from_numpy(x.indices.astype(np.int64)),
                         torch.from_numpy(x.indptr[:-1].astype(np.int64)),
                         per_sample_weights=torch.from_numpy(x.data))
        return self.last(torch.relu(bags + self.bias))


def test_sparse_input_trains_the_first_layer_like_sparse_adam(rng):
    ours, theirs = both(rng)
    reference = SparseFirst(theirs)
    X = [inputs(rng, sparse=True) for _ in range(N_STEPS)]
    for x in X[3:6]:
        x.data[x.indices == 7] = 0  # a feature that does not occur in some batches
        x.eliminate_zeros()
    Y = [indicator(rng) for _ in range(N_STEPS)]
    before = ours.layers[0].weight.copy()
    # SparseAdam adds eps at another place, so eps is small here, and so are the steps: Adam makes
    # full steps even for gradients that nearly cancel and consist of rounding errors
    ours.fit(sp.vstack(X, format="csr"), np.concatenate(Y), optimizer=sl.Adam(1e-3),
             epochs=1, batch_size=N, shuffle=False, verbose=False)
    with warnings.catch_warnings():
        # torch warns: per-sample weights of a sparse bag have no gradient
        warnings.simplefilter("ignore")
        sparse = torch.optim.SparseAdam([reference.rows.weight], 1e-3)
        rest = torch.optim.Adam([reference.bias, *reference.last.parameters()], 1e-3)
        for x, y in zip(X, Y, strict=True):
            sparse.zero_grad()
            rest.zero_grad()
            LOSSES["softmax"](reference(x), torch.from_numpy(y)).backward()
            sparse.step()
            rest.step()
    assert_close(ours.layers[0].weight, reference.rows.weight.T, n=N_STEPS)
    assert_close(ours.layers[0].bias, reference.bias, n=N_STEPS)
    assert_close(ours.layers[1].weight, reference.last.weight, n=N_STEPS)
    # no sample has this feature
    np.testing.assert_array_equal(ours.layers[0].weight[:, 5], before[:, 5])


@pytest.mark.parametrize("schedule, factor", [
    ("linear", lambda t: 1 - t),
    ("cosine", lambda t: (1 + np.cos(np.pi * t)) / 2),
    (lambda t: 0.5**t, lambda t: 0.5**t),
], ids=["linear", "cosine", "function"])
def test_schedules_are_those_of_torch(rng, schedule, factor):
    ours, theirs = both(rng)
    X, Y = [inputs(rng) for _ in range(N_STEPS)], [indicator(rng) for _ in range(N_STEPS)]
    ours.fit(np.concatenate(X), np.concatenate(Y), optimizer=sl.SGD(0.1, schedule=schedule),
             epochs=1, batch_size=N, shuffle=False, verbose=False)
    optimizer = torch.optim.SGD(theirs.parameters(), 0.1)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(step / N_STEPS))
    for x, y in zip(X, Y, strict=True):
        train(theirs, [optimizer], [x], [y])
        rates.step()
    assert_same_weights(ours, theirs, n=N_STEPS)


def test_weights_of_torch_give_the_outputs_of_torch(rng):
    linear = torch.nn.Linear(N_IN, N_OUT)
    layer = sl.LSHLinear.from_dense(linear.weight.detach().numpy(), linear.bias.detach().numpy())
    X = inputs(rng)
    assert_close(sl.Network([layer]).decision_function(X), linear(dense(X)))
    assert isinstance(check.dense(linear.weight.detach(), "weight"), np.ndarray), \
        "a tensor is accepted as an array"
