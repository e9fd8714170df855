"""The gradient of every layer and loss against central differences of a float64 network.

The kernels compute in float32, in which differences are lost in rounding. So the library runs once
and its active sets are recorded. A reference network below has the same sets in float64; its
central differences are compared with the gradients of the library.
"""
import numpy as np
import pytest
import scipy.sparse as sp

import sparselsh as sl
from sparselsh import _validation as check
from sparselsh._arrays import csr
from sparselsh._core import _updates
from sparselsh.layers import Step

STEP = 1e-6  # central differences in float64 are then accurate to about 1e-9
# a float32 gradient is a sum of about a hundred products at most: 100 roundings of 6e-8,
# relative to the largest
TOLERANCE = 1e-5


# ---- the reference network in float64


def plain_loss(name, z, mask, Y):
    """Return the mean over the samples of a loss summed over the neurons of `mask`."""
    total = 0.0
    for z_i, active, y in zip(z, mask, Y, strict=True):
        z_i, y = z_i[active], y[active]
        if name == "mse":
            total += ((z_i - y) ** 2).sum()
        elif name == "bce":
            total += np.logaddexp(0, z_i).sum() - z_i[y > 0].sum()
        elif (y > 0).any():
            total += np.log(np.exp(z_i).sum()) - z_i[y > 0].mean()
    return total / len(z)


def plain_forward(x, weights, activations, masks):
    for (w, b), activation, mask in zip(weights, activations, masks, strict=True):
        x = x @ w.T + b
        if activation == "relu":
            x = np.maximum(x, 0)
        x = np.where(mask, x, 0)
    return x


def differences(f, array):
    """Return df / d array, one entry at a time; f reads the array."""
    out = np.empty_like(array)
    for k in np.ndindex(array.shape):
        before = array[k]
        array[k] = before + STEP
        above = f()
        array[k] = before - STEP
        out[k] = (above - f()) / (2 * STEP)
        array[k] = before
    return out


# ---- the library


def dense_gradient(parameter, gradient):
    """Return what SGD with learning rate 1 subtracts from the parameter, as (n_out, n_in)."""
    w = np.zeros_like(parameter.value)
    gradient.apply(_updates.sgd(1, 0, False, 0), w, None, None, 1)
    return -(w.T if parameter.input_major else w)


def record(layer):
    """Return a list that receives the active set of the layer's next forward pass.

    With tables it is the set before ReLU drops neurons.
    """
    sets = []

    def listening(choose):
        def spy(*arguments):
            # a later call of `_best` replaces the set by its best neurons
            sets[:] = [choose(*arguments)]
            return sets[0]

        return spy

    layer._batch_set, layer._sample_sets, layer._best = map(
        listening, (layer._batch_set, layer._sample_sets,
                    layer._best))
    return sets


def as_mask(active, n, n_out):
    mask = np.zeros((n, n_out), bool)
    if isinstance(active, csr.CSR):
        mask[np.repeat(np.arange(n), np.diff(active.indptr)), active.indices] = True
    else:
        mask[:, active] = True
    return mask


def library_step(layers, loss, X, Y, rng, in_bfloat16=False):
    """Return a network, its targets, active sets, loss, gradient of X and gradients of a step."""
    net = sl.Network(layers, loss=loss, random_state=0)
    x = check.matrix(X)
    for i, layer in enumerate(net.layers):
        layer.initialize(rng, sparse_input=i == 0 and sp.issparse(X))
        layer._b.value[:, 0] = rng.standard_normal(layer.n_out) / 4
    targets = check.targets(Y, X.shape[0], net.n_labels, values=loss == "mse")
    sets = [record(layer) if isinstance(layer, sl.LSHLinear) else [] for layer in net.layers]

    backward, out = [], x
    for i, layer in enumerate(net.layers):
        labels = targets if i == len(net.layers) - 1 else None
        step = Step(True, labels, seed=8 * i + 1, n_threads=2, place=net._training.places[i],
                    in_bfloat16=in_bfloat16)
        out, backprop = layer.forward(out, step)
        backward.append(backprop)
    got_loss, d = net.loss(out, targets)
    pairs = []
    for backprop in reversed(backward):
        d, new = backprop(d)
        pairs = new + pairs
    return net, targets, sets, got_loss, d, pairs


def assert_gradients(layers, loss, X, Y, rng):
    """Check one training step against central differences, the gradient of X included."""
    net, targets, sets, got_loss, d, pairs = library_step(layers, loss, X, Y, rng)

    # the same network in float64
    dense_x = X.toarray().astype(float) if sp.issparse(X) else X.astype(float)
    stored = dense_x != 0 if sp.issparse(X) else np.ones(X.shape, bool)
    weights = [(layer.weight.astype(float), layer.bias.astype(float)) for layer in net.layers]
    masks = [as_mask(found[0], len(dense_x), layer.n_out) if found
             else np.ones((len(dense_x), layer.n_out), bool)
             for layer, found in zip(net.layers, sets, strict=True)]
    dense_y = targets.to_dense().astype(float)

    def f():
        z = plain_forward(dense_x, weights, [layer.activation for layer in net.layers], masks)
        return plain_loss(loss, z, masks[-1], dense_y)

    assert got_loss == pytest.approx(f(), rel=TOLERANCE)
    for layer, mask, (w, b) in zip(net.layers, masks, weights, strict=True):
        of_layer = dict((id(p), dense_gradient(p, g)) for p, g in pairs)
        for parameter, plain in ((layer._w, w), (layer._b, b)):
            assert_close(of_layer[id(parameter)].reshape(plain.shape), differences(f, plain))
        gradient = next(g for p, g in pairs if p is layer._w)
        if gradient.rows is not None and not layer._w.input_major:
            assert (set(gradient.rows)
                    <= set(np.flatnonzero(mask.any(axis=0)))), "the gradient has active rows only"
    want = differences(f, dense_x)
    got = np.zeros(want.shape)
    got[stored] = d if sp.issparse(X) else d.ravel()
    assert_close(got, np.where(stored, want, 0))


def assert_close(got, want):
    np.testing.assert_allclose(got, want, rtol=0,
                               atol=TOLERANCE * max(1e-2, abs(want).max(initial=0)))


# ---- cases


def rows(rng, n, n_in, sparse):
    X = rng.standard_normal((n, n_in), np.float32)
    if not sparse:
        return X
    X[rng.random(X.shape) < 0.6] = 0
    X[n // 2] = 0  # a sample without features
    return sp.csr_array(X)


def labels(rng, n, n_out, loss):
    """Return up to three labels per sample, none for the first; for mse, values."""
    Y = np.zeros((n, n_out), np.float32)
    for i in range(1, n):
        chosen = rng.permutation(n_out)[:rng.integers(1, 4)]
        Y[i, chosen] = rng.standard_normal(len(chosen)) if loss == "mse" else 1
    return sp.csr_array(Y)


LAYERS = {
    "Linear": lambda n_in, n_out, activation: sl.Linear(n_in, n_out, activation=activation),
    "LSHLinear, dense": lambda n_in, n_out, activation: sl.LSHLinear(
        n_in, n_out, density=1, activation=activation),
    "LSHLinear, batch": lambda n_in, n_out, activation: sl.LSHLinear(
        n_in, n_out, density=0.4, active="batch", activation=activation),
    "LSHLinear, sample": lambda n_in, n_out, activation: sl.LSHLinear(
        n_in, n_out, density=0.4, active="sample", activation=activation),
    "LSHLinear, sample, tables": lambda n_in, n_out, activation: sl.LSHLinear(
        n_in, n_out, density=0.4, active="sample", activation=activation, policy="top"),
}
SHAPES = [(1, 1, 1), (5, 1, 7), (3, 9, 4), (6, 5, 19)]  # samples, inputs, outputs


@pytest.mark.parametrize("n, n_in, n_out", SHAPES)
@pytest.mark.parametrize("loss", ["softmax", "bce", "mse"])
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense X", "CSR X"])
@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_of_one_layer_are_those_of_the_reference(
        rng, layer, sparse, activation, loss, n, n_in, n_out):
    X, Y = rows(rng, n, n_in, sparse), labels(rng, n, n_out, loss)
    assert_gradients([LAYERS[layer](n_in, n_out, activation)], loss, X, Y, rng)


@pytest.mark.parametrize("hidden_activation", [None, "relu"])
@pytest.mark.parametrize("loss", ["softmax", "bce", "mse"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense X", "CSR X"])
@pytest.mark.parametrize("last", LAYERS)
def test_gradients_through_hidden_layers_are_those_of_the_reference(
        rng, last, sparse, loss, hidden_activation):
    layers = [
        sl.Linear(7, 6, activation=hidden_activation),
        sl.LSHLinear(6, 14, density=0.5, activation=hidden_activation),
        sl.LSHLinear(14, 10, density=0.6, activation=hidden_activation),
        sl.Linear(10, 8, activation=hidden_activation),
        LAYERS[last](8, 11, None),
    ]
    assert_gradients(layers, loss, rows(rng, 5, 7, sparse), labels(rng, 5, 11, loss), rng)


@pytest.mark.parametrize("last", LAYERS)
def test_gradients_of_an_output_layer_after_a_sparse_hidden_one_are_those_of_the_reference(
        rng, last):
    layers = [sl.LSHLinear(7, 15, density=0.6, activation="relu"), LAYERS[last](15, 11, None)]
    assert_gradients(layers, "softmax", rows(rng, 5, 7, True), labels(rng, 5, 11, "softmax"), rng)


@pytest.mark.parametrize("plan", ["dense", "exact", "rows", "gather"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense X", "CSR X"])
def test_gradients_under_every_plan_are_those_of_the_reference(rng, plan, sparse):
    # the second layer's input is sparse; its gradient must be given at the
    # entries, whatever the plan
    X, Y = rows(rng, 6, 7, sparse), labels(rng, 6, 9, "softmax")
    layers = [sl.LSHLinear(7, 12, density=0.5, activation="relu", plan="gather"),
              sl.LSHLinear(12, 15, density=0.4, activation="relu", plan=plan),
              sl.LSHLinear(15, 11, density=0.4, activation="relu", plan=plan),
              sl.Linear(11, 9)]
    assert_gradients(layers, "softmax", X, Y, rng)


# ---- products of factors rounded to bfloat16


MANY_SPREADS = 6  # no sum of independent roundings is as far off
LARGEST_FACTOR = 2.0**-8  # relative rounding of bfloat16, to the nearest of 8 significant bits


class Spread:
    """Float64 numbers, and the variance of the errors that the library's may have.

    Roundings of factors are independent, and their sums grow like the square root of the number of
    terms; bounds that add all of them say nothing after three layers (N. J. Higham and T. Mary,
    "A new approach to probabilistic rounding error analysis", 2019).
    """

    def __init__(self, value, variance=0.0):
        self.value, self.variance = value, np.broadcast_to(variance, np.shape(value))

    @property
    def T(self):
        return Spread(self.value.T, self.variance.T)

    @property
    def error(self):
        return MANY_SPREADS * np.sqrt(self.variance)

    def where(self, mask):
        return Spread(np.where(mask, self.value, 0), np.where(mask, self.variance, 0))


def product(a, b, unit):
    """a @ b of factors, each of which is rounded by at most `unit` of its size."""
    square_a, square_b = a.value**2 + a.variance, b.value**2 + b.variance
    variance = a.variance @ square_b + square_a @ b.variance + 2 * unit**2 * (square_a @ square_b)
    return Spread(a.value @ b.value, variance)


def loss_gradient(name, z, mask, Y):
    """d loss / dz with the variance of its errors."""
    n = len(Y)
    if name == "mse":
        return Spread(2 * (z.value - Y) / n, 4 * z.variance / n**2).where(mask)
    if name == "bce":  # the slope of the sigmoid is at most 1/4
        return Spread((1 / (1 + np.exp(-z.value)) - (Y > 0)) / n,
                      z.variance / (4 * n) ** 2).where(mask)
    n_labels = (Y > 0).sum(axis=1, keepdims=True)
    exps = np.where(mask, np.exp(z.value), 0)
    p = exps / exps.sum(axis=1, keepdims=True)
    of_mean = (p**2 * z.variance).sum(axis=1, keepdims=True)
    return Spread((p - (Y > 0) / np.maximum(n_labels, 1)) / n,
                  p**2 * (z.variance + of_mean) / n**2).where(mask & (n_labels > 0))


def spread_step(x, weights, activations, masks, loss, Y, unit):
    """The gradient of x and those of weights and biases, as Spread.

    Where an error may change the sign of a neuron before ReLU, its gradient may be there or not.
    """
    inputs, outputs, h = [], [], Spread(x)
    for (w, b), activation, mask in zip(weights, activations, masks, strict=True):
        inputs.append(h)
        z = product(h, Spread(w.T), unit)
        z = Spread(z.value + b, z.variance).where(mask)
        outputs.append(z)
        h = Spread(np.maximum(z.value, 0), z.variance) if activation == "relu" else z

    d, gradients = loss_gradient(loss, h, masks[-1], Y), []
    for (w, _), activation, mask, h, z in reversed(list(zip(
            weights, activations, masks, inputs, outputs, strict=True))):
        if activation == "relu":
            is_unsure = (abs(z.value) <= z.error) & (z.error > 0)
            d = Spread(d.value * (z.value > 0),
                       np.where(is_unsure, d.value**2 + d.variance, d.variance * (z.value > 0)))
        d = d.where(mask)
        gradients.append((product(d.T, h, unit),
                          Spread(d.value.sum(axis=0), d.variance.sum(axis=0))))
        d = product(d, Spread(w), unit)
    return d, gradients[::-1]


@pytest.mark.parametrize("in_bfloat16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("loss", ["softmax", "bce", "mse"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense X", "CSR X"])
@pytest.mark.parametrize("last", LAYERS)
def test_gradients_are_as_far_from_the_reference_as_rounded_factors_allow(
        rng, last, sparse, loss, activation, in_bfloat16):
    X, Y = rows(rng, 20, 9, sparse), labels(rng, 20, 23, loss)
    layers = [sl.Linear(9, 12, activation=activation),
              sl.LSHLinear(12, 30, density=1, activation=activation),
              LAYERS[last](30, 23, None)]
    net, targets, sets, _, d, pairs = library_step(layers, loss, X, Y, rng, in_bfloat16)

    unit = LARGEST_FACTOR if in_bfloat16 else 0
    x = X.toarray() if sparse else X
    weights = [(layer.weight.astype(float), layer.bias.astype(float)) for layer in net.layers]
    masks = [as_mask(found[0], len(x), layer.n_out) if found
             else np.ones((len(x), layer.n_out), bool)
             for layer, found in zip(net.layers, sets, strict=True)]
    activations = [layer.activation for layer in net.layers]
    dx, gradients = spread_step(x.astype(float), weights, activations, masks, loss,
                                targets.to_dense().astype(float), unit)

    off = 0.0
    for layer, want in zip(net.layers, gradients, strict=True):
        of_layer = dict((id(p), dense_gradient(p, g)) for p, g in pairs)
        for parameter, spread in zip((layer._w, layer._b), want, strict=True):
            got = of_layer[id(parameter)].reshape(spread.value.shape)
            off = max(off, assert_within(got, spread))
    stored = x != 0 if sparse else np.ones(x.shape, bool)
    got = np.zeros(x.shape)
    got[stored] = d if sparse else d.ravel()
    assert_within(got, dx.where(stored))
    # an eighth of the largest rounding of a factor: factors are rounded at all
    assert (off > LARGEST_FACTOR / 8) == in_bfloat16


def assert_within(got, spread):
    """Return the largest error, relative to the largest number."""
    largest = max(1e-2, abs(spread.value).max(initial=0))
    error = abs(got - spread.value)
    assert (error <= spread.error + TOLERANCE * largest).all()
    return error.max(initial=0) / largest
