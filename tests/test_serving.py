"""Networks of this library in files, as converted networks and as PyTorch modules."""
import json

import numpy as np
import pytest
import scipy.sparse as sp
from support import assert_same_bits

import sparselsh as sl
from sparselsh._arrays.linalg import transposed

pytest.importorskip("safetensors")
from safetensors import safe_open
from safetensors.numpy import save_file

N = 40  # features and labels of the square networks


def rows(rng, n, n_features, n_labels):
    """Sparse rows of three features; label j has features near 3 j."""
    labels = rng.integers(0, n_labels, n)
    columns = (3 * labels[:, None] + rng.integers(0, 5, (n, 3))) % n_features
    values = rng.uniform(0.2, 1, (n, 3)).astype(np.float32)
    X = sp.csr_array((values.ravel(), columns.ravel(), np.arange(0, 3 * n + 1, 3)),
                     shape=(n, n_features))
    X.sum_duplicates()
    return X, labels


def trained(n_features=N, hidden=N, n_labels=N, *, sparse=True, activation="relu", seed=0,
            refined=False, n=400, **layer):
    X, y = rows(np.random.default_rng(seed), n, n_features, n_labels)
    net = sl.Network([sl.Linear(n_features, hidden, activation=activation),
                      sl.LSHLinear(hidden, n_labels, **layer)], random_state=seed, n_threads=1)
    net.fit(X if sparse else X.toarray(), y, epochs=2, batch_size=32, verbose=False)
    if refined:
        net.refine(X, y, verbose=False, n_candidates=7, scale=3.0)
    return net


def tensors_of(path):
    with safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


def as_before(path, old):
    """Write a network file as earlier versions did: input-major weights under the same name."""
    tensors, metadata = tensors_of(path)
    config = json.loads(metadata["config"])
    for i, entry in enumerate(config["layers"]):
        entry["input_major"] = entry.pop("input_major_in_memory")
        if entry["input_major"]:
            name = f"layers.{i}.weight"
            tensors[name] = np.ascontiguousarray(tensors[name].T)
    save_file(tensors, old, metadata | {"config": json.dumps(config)})
    return old


# --- files of networks ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (300, 1), (513, 70)])
def test_a_transposed_copy_has_the_same_numbers(rng, shape):
    a = rng.standard_normal(shape).astype(np.float32)
    assert_same_bits(transposed(a), np.ascontiguousarray(a.T))


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("indexes", [True, False])
def test_a_file_has_weights_of_outputs_by_inputs_whatever_the_rows_were(sparse, indexes, tmp_path):
    net = trained(sparse=sparse)
    assert net.layers[0].parameters[0].input_major == sparse
    net.save(tmp_path / "net.safetensors", indexes=indexes)
    tensors, _ = tensors_of(tmp_path / "net.safetensors")
    for i, layer in enumerate(net.layers):
        assert_same_bits(tensors[f"layers.{i}.weight"], np.ascontiguousarray(layer.weight))
    loaded = sl.load(tmp_path / "net.safetensors", n_threads=1)
    assert loaded.layers[0].parameters[0].input_major == sparse
    for a, b in zip(net.get_weights(), loaded.get_weights(), strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_files_of_before_give_the_same_bits(sparse, dtype, tmp_path):
    net = trained(sparse=sparse, dtype=dtype)
    net.save(tmp_path / "net.safetensors")
    before, now = (sl.load(path, n_threads=1) for path in (
        as_before(tmp_path / "net.safetensors", tmp_path / "old.safetensors"),
        tmp_path / "net.safetensors"))
    for a, b, c in zip(net.get_weights(), before.get_weights(), now.get_weights(), strict=True):
        assert_same_bits(a, b)
        assert_same_bits(a, c)


def test_a_checkpoint_keeps_the_layout_of_the_layer_under_another_name(tmp_path):
    net = trained()
    net.save(tmp_path / "run.safetensors", training_state=True)
    tensors, _ = tensors_of(tmp_path / "run.safetensors")
    assert "layers.0.weight" not in tensors
    assert_same_bits(tensors["layers.0.weight_input_major"],
                     np.ascontiguousarray(net.layers[0].weight.T))
    loaded = sl.load(tmp_path / "run.safetensors", n_threads=1)
    X, y = rows(np.random.default_rng(3), 64, N, N)
    for a, b in zip(net.partial_fit(X, y).get_weights(), loaded.partial_fit(X, y).get_weights(),
                    strict=True):
        assert_same_bits(a, b)
