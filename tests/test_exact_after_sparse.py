"""After exact outputs of a layer with sparse input, the layer can still be trained."""
import numpy as np
import pytest
import scipy.sparse as sp

import sparselsh as sl

N, N_IN, N_OUT = 40, 60, 50


@pytest.mark.parametrize("layers", [
    [sl.LSHLinear(N_IN, N_OUT, density=0.2)],
    [sl.Linear(N_IN, 16), sl.LSHLinear(16, 30, density=0.5, activation="relu"),
     sl.LSHLinear(30, N_OUT, density=0.2)],
], ids=["sparse X", "sparse hidden layer"])
def test_training_continues_after_exact_outputs(layers):
    X = sp.random(N, N_IN, density=0.2, format="csr", random_state=0, dtype=np.float32)
    y = np.arange(N) % N_OUT
    net = sl.Network(layers, random_state=0, n_threads=1).fit(
        X, y, epochs=1, batch_size=16, verbose=False)
    scores = net.decision_function(X)
    ids, best = net.topk(X, 1, exact=True)
    np.testing.assert_array_equal(ids[:, 0], scores.argmax(axis=1))
    np.testing.assert_array_equal(best[:, 0], scores.max(axis=1))
    net.fit(X, y, epochs=1, batch_size=16, verbose=False)
    assert net.layers[-1].weight.shape == (N_OUT, net.layers[-1].n_in)
    assert np.isfinite(net.decision_function(X)).all()
