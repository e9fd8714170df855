"""Index files: they restore the index, and damaged files are refused."""
import json
import os

import numpy as np
import pytest
from support import assert_same_bits

import sparselsh as sl
from sparselsh import _files
from sparselsh.index import _file

D = 20


def dense(rng, n):
    return rng.standard_normal((n, D)).astype(np.float32)


def positive(rng, n):
    return np.maximum(dense(rng, n), 0)


def sets(rng, n):
    return (rng.random((n, D)) < 0.3).astype(np.float32)


KINDS = {
    "sketches": (dense, {}),
    "short sketches, one plan": (dense, {"sketch_bits": 64, "plan": "sketches",
                                         "center": False, "scaling": 0.5}),
    "exact": (dense, {"plan": "exact"}),
    "tables": (dense, {"family": sl.SimHash(4, 6), "sketch_bits": 0}),
    "both, probed": (dense, {"family": sl.SimHash(4, 6), "plan": "probes", "dynamic": True}),
    "sparse hyperplanes": (dense, {"family": sl.SimHash(4, 6, "sparse")}),
    "orthogonal hyperplanes": (dense, {"family": sl.SimHash(4, 6, "orthogonal"), "scaling": 0.3}),
    "cross-polytopes": (dense, {"family": sl.CrossPolytope(1, 5, dims=8)}),
    "winners": (positive, {"family": sl.DWTA(2, 6, bin_size=4), "center": False, "dynamic": True}),
    "sets": (sets, {"family": sl.MinHash(1, 6, bits=8), "center": False, "sketch_bits": 0}),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "index.safetensors"


def fitted(rng, rows, options, n=150):
    """Return an index of rows, most of them short, with its weights, bias and queries."""
    W, X = rows(rng, n), rows(rng, 40)
    W[n // 3:] *= np.float32(0.02)
    bias = rng.standard_normal(n).astype(np.float32) / 8
    return sl.LSHIndex(random_state=5, **options).fit(W, bias, queries=X), W, bias, X


def assert_same(a, b, X):
    """Check that reports and answers are equal bit by bit, for one row of X and for all."""
    assert a.report() == b.report() and repr(a) == repr(b)
    for x in (X, X[:1]):
        pairs = [(a.search(x), b.search(x)),
                 (a.search(x, 9, n_candidates=12), b.search(x, 9, n_candidates=12))]
        if a.family is not None:
            for policy in ("top", "score", "vanilla"):
                sets = [index.query(x, 8, policy=policy, seed=3) for index in (a, b)]
                pairs.append([(s.indptr, s.indices, s.data) for s in sets])
        for one, other in pairs:
            for p, q in zip(one, other, strict=True):
                assert_same_bits(p, q)


def test_a_loaded_index_gives_the_same_answers(rng, kind, path):
    index, W, bias, X = fitted(rng, *kind)
    index.save(path)
    assert_same(index, sl.LSHIndex.load(path, W, bias), X)


def test_an_index_without_queries_and_bias_is_loaded_with_the_same_answers(rng, kind, path):
    rows, options = kind
    W, X = rows(rng, 33), rows(rng, 40)
    index = sl.LSHIndex(random_state=5, **options).fit(W)
    index.save(path)
    assert_same(index, sl.LSHIndex.load(path, W, n_threads=2), X)


def test_changes_to_a_loaded_index_give_the_same_as_to_the_saved_one(rng, kind, path):
    rows, _ = kind
    index, W, bias, X = fitted(rng, *kind)
    index.remove(np.arange(20, 40))
    index.save(path)
    other = sl.LSHIndex.load(path, W, bias)
    assert_same(index, other, X)
    W[[3, 30, 100]] = rows(rng, 3)
    bias[[3, 30, 100]] += 1
    more = np.concatenate([W, rows(rng, 45)])
    for each in (index, other):
        each.update(W, [3, 30, 100])
        each.remove([4, 5])
        each.add(more[len(W):])
    assert_same(index, other, X)
    index.save(path)
    assert_same(index, sl.LSHIndex.load(path, more, np.append(bias, np.zeros(45, np.float32))), X)


def test_a_loaded_index_can_be_calibrated(rng, path):
    index, W, bias, X = fitted(rng, dense, {"plan": "sketches"})
    index.save(path)
    other = sl.LSHIndex.load(path, W, bias)
    trials = [[trial | {"microseconds": 0} for trial in each.tune(X, k=3, recall=0.9)]
              for each in (index, other)]
    assert trials[0] == trials[1]
    assert_same_bits(index.search(X)[1], other.search(X)[1])


def test_an_index_from_which_all_neurons_were_removed_is_saved(rng, kind, path):
    index, W, bias, X = fitted(rng, *kind)
    index.remove(np.arange(len(W)))
    index.save(path)
    other = sl.LSHIndex.load(path, W, bias)
    assert_same(index, other, X)
    for each in (index, other):
        each.update(W, np.arange(len(W)))
    assert_same(index, other, X)


# ---- errors


def test_other_weights_are_refused(rng, kind, path):
    index, W, bias, _ = fitted(rng, *kind)
    index.save(path)
    changed = W.copy()
    changed[7, 3] += 1
    for weights, b in ((changed, bias), (W, bias + 1), (W, None), (W[:-1], bias[:-1]),
                       (W[:, :-1], bias), (np.concatenate([W, W]), np.append(bias, bias)),
                       (W[::-1], bias)):
        with pytest.raises(ValueError, match=r"index\.safetensors: .*other weights"):
            sl.LSHIndex.load(path, weights, b)
    for weights, b in ((W, bias[1:]), (W[0], bias), (W * np.nan, bias)):
        with pytest.raises(ValueError):
            sl.LSHIndex.load(path, weights, b)
    assert (sl.LSHIndex.load(path, W.astype(float), bias.tolist()).report()
            == index.report()), "the weights have the same values"


def test_missing_files_and_files_of_other_kinds_are_refused(rng, tmp_path):
    W = dense(rng, 9)
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors: no such file"):
        sl.LSHIndex.load(tmp_path / "none.safetensors", W)
    net = sl.Network([sl.Linear(D, 9)], random_state=0)
    net.fit(W, np.arange(9), epochs=1, verbose=False).save(tmp_path / "net")
    with pytest.raises(ValueError,
                       match=r"net: a safetensors file, but not one of sparselsh\.index"):
        sl.LSHIndex.load(tmp_path / "net", W)
    sl.LSHIndex(random_state=0).fit(W).save(tmp_path / "index")
    with pytest.raises(ValueError, match=r"not one of sparselsh\.network"):
        sl.load(tmp_path / "index")
    (tmp_path / "text").write_text("index")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        sl.LSHIndex.load(tmp_path / "text", W)
    with pytest.raises(IsADirectoryError, match="is a directory; give the path of a file in it"):
        sl.LSHIndex.load(tmp_path, W)


def test_a_truncated_file_is_refused(rng, kind, path):
    index, W, bias, _ = fitted(rng, *kind)
    index.save(path)
    data = path.read_bytes()
    for length in {0, 1, 7, 8, 9, len(data) - 1, *rng.integers(0, len(data), 40).tolist()}:
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"index\.safetensors: "):
            sl.LSHIndex.load(path, W, bias)


def test_a_file_with_a_flipped_bit_is_refused(rng, kind, path):
    # in the header, in the config, in every array
    index, W, bias, _ = fitted(rng, *kind)
    index.save(path)
    data = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    places = [*range(8), *rng.integers(8, header, 80), *rng.integers(header, len(data), 80)]
    for place in places:
        data[place] ^= 1 << (bit := int(rng.integers(8)))
        path.write_bytes(data)
        try:
            other = sl.LSHIndex.load(path, W, bias)
        except ValueError:
            pass
        else:  # for example white space in the header
            assert other.report() == index.report()
        data[place] ^= 1 << bit


def changed_file(path, W, bias, change):
    """Rewrite the file after change(tensors, config) with a correct checksum, and load it."""
    tensors, config = _file.read(path)
    change(tensors, config)
    _files.write_checked(path, tensors, _file.FORMAT, json.dumps(config))
    return sl.LSHIndex.load(path, W, bias)


def setting(name, value):
    return lambda tensors, config: config.__setitem__(name, value)


def tensor(name, change):
    return lambda tensors, config: tensors.__setitem__(name, change(tensors[name]))


def with_first(value):
    def change(a):
        a = a.copy()
        a.ravel()[0] = value
        return a
    return change


def without_one(part, name):
    return lambda *parts: parts[part].pop(name)


INCONSISTENT = {
    **{f"{name} is missing": without_one(0, name) for name in (
        "offset", "gone", "codes", "rotation", "blocks", "factors", "ids",
        "neuron_map", "query_map")},
    **{f"{name} is missing in the config": without_one(1, name) for name in (
        "arguments", "family", "seed", "scaling", "norm_floor", "n_candidates",
        "n_probes", "methods", "times",
        "trials", "fingerprint")},
    **{f"{name} is cut too": tensor(name, lambda a: a[:-1]) for name in (
        "errors", "biases", "short_norms")},
    **{f"{name} is infinite": tensor(name, with_first(np.inf)) for name in (
        "errors", "biases", "short_norms")},
    "a norm for a neuron with a sketch": lambda tensors, config: tensors["short_norms"].__setitem__(
        tensors["ids"][0], 1),
    **{f"bounds {value!r}": setting("bounds", value) for value in (
        None, 3, {}, {"recall": 2.0, "sketches": 1.0, "cells": 0.1, "evidence": 32, "short": 5.0},
        {"recall": 0.9, "sketches": -1.0, "cells": 0.1, "evidence": 32, "short": 5.0},
        {"recall": 0.9, "sketches": 1.0, "cells": 0.1, "evidence": 0, "short": 5.0},
        *({"recall": 0.9, "sketches": 1.0, "cells": 0.1, "evidence": 8, "short": 5.0,
           "raises": raises}
          for raises in (3, [3], [[1]], [[0, 1]], [[1, 8]], [[1, -1]], [[1, "a"]])))},
    **{f"n_computed {value!r}": setting("n_computed", value) for value in (3, [-1.0, 5], [1.0, 0])},
    **{f"vector_scale {value!r}": setting("vector_scale", value) for value in (0, -1.0, "a")},
    **{f"{name} is cut": tensor(name, lambda a: a[:-1]) for name in (
        "offset", "gone", "codes", "rotation", "factors", "neuron_map", "query_map")},
    "blocks for half of the neurons": lambda tensors, config: tensors.update(
        blocks=tensors["blocks"][:1], factors=tensors["factors"][:32]),
    **{f"{name} is flattened": tensor(name, np.ravel) for name in ("codes", "rotation",
                                                                   "blocks", "query_map")},
    **{f"{name} is one number": tensor(name, lambda a: np.zeros(1, a.dtype)) for name in (
        "offset", "gone", "codes", "rotation", "factors", "blocks")},
    **{f"{name} is of another type": tensor(name, lambda a: a.astype(np.float64)) for name in (
        "offset", "codes", "rotation", "blocks", "factors", "ids", "neuron_map")},
    **{f"{name} is nan": tensor(name, with_first(np.nan)) for name in (
        "offset", "rotation", "factors", "neuron_map", "query_map")},
    "a code beyond the last bucket": tensor("codes", with_first(16)),
    "a code below -1": tensor("codes", with_first(-2)),
    "an id beyond the last neuron": tensor("ids", with_first(150)),
    "a negative id": tensor("ids", with_first(-1)),
    "a duplicate id": lambda tensors, config: tensors["ids"].__setitem__(0, tensors["ids"][1]),
    "gone is a matrix": tensor("gone", lambda a: np.stack([a, a], axis=1)),
    "no bits": tensor("rotation", lambda a: a[:0]),
    "more bits than the sums can hold": lambda tensors, config: tensors.update(
        rotation=np.zeros((1088, D + 1), np.float32),
        blocks=np.zeros((len(tensors["blocks"]), 272 * 16), np.uint8)),
    **{f"seed {value!r}": setting("seed", value) for value in (-1, "a", None, 1.5)},
    **{f"norm_floor {value!r}": setting("norm_floor", value) for value in (-1, "a", None, 1e308)},
    **{f"n_candidates {value!r}": setting("n_candidates", value) for value in (0, -5, "a", 1.5)},
    **{f"n_probes {value!r}": setting("n_probes", value) for value in (0, 17, "a", None)},
    **{f"methods {value!r}": setting("methods", value) for value in (
        {}, {"single": "sketches"}, {"single": "sketches", "batch": "guess"}, "sketches", None)},
    **{f"times {value!r}": setting("times", value) for value in (3, [1], {"single": 3})},
    **{f"trials {value!r}": setting("trials", value) for value in (3, [3], None)},
    **{f"arguments {value!r}": setting("arguments", value) for value in (
        {"depth": 3}, {"plan": "guess"}, {"sketch_bits": 3}, {"family": None}, [], None)},
    **{f"family {value!r}": setting("family", value) for value in (
        {"type": "SimHash", "bits": 5, "tables": 7}, {"type": "SimHash", "bits": 99},
        {"type": "Guess"}, {}, [], "a", {"type": "SimHash", "bits": 24, "tables": 6},
        {"type": "SimHash", "depth": 1})},
}


@pytest.mark.parametrize("change", INCONSISTENT.values(), ids=INCONSISTENT)
def test_an_inconsistent_file_is_refused(rng, path, change):
    index, W, bias, _ = fitted(rng, dense,
                               {"family": sl.SimHash(4, 6), "plan": "sketches", "scaling": 0.5})
    index.save(path)
    with pytest.raises(
            ValueError,
            match=r"index\.safetensors: this index cannot be used \(.*fit and save it again"):
        changed_file(path, W, bias, change)


CELLS = {
    **{f"{name} is missing": without_one(0, name) for name in (
        "cell_sizes", "cell_scales", "cell_variances", "cell_tails", "cell")},
    **{f"{name} is cut": tensor(name, lambda a: a[..., :-1]) for name in (
        "cell_sizes", "cell_scales", "cell_variances", "cell_tails", "cell_spread",
        "cell_biases")},
    **{f"{name} is negative": tensor(name, with_first(-1)) for name in (
        "cell_sizes", "cell_scales", "cell_variances", "cell_tails")},
    **{f"{name} is nan": tensor(name, with_first(np.nan)) for name in (
        "cell_variances", "cell_tails", "cell_spread", "cell_means")},
}


@pytest.mark.parametrize("change", CELLS.values(), ids=CELLS)
def test_cells_that_contradict_each_other_are_refused(rng, path, monkeypatch, change):
    monkeypatch.setattr("sparselsh.index._build.CELLS_MIN_NEURONS", 16)
    monkeypatch.setattr("sparselsh.index._build.MAX_SCANNED_IN_CELLS", 20.0)
    index, W, bias, _ = fitted(rng, dense, {"plan": "sketches"})
    assert index._engine.sketches.cells is not None
    index.save(path)
    with pytest.raises(ValueError, match="this index cannot be used"):
        changed_file(path, W, bias, change)


FAST = {
    "signs are missing": without_one(0, "rotation_signs"),
    "signs are cut": tensor("rotation_signs", lambda a: a[:, :3]),
    "signs are of another order": tensor("rotation_signs", lambda a: a[:, :, ::2]),
    "signs are flattened": tensor("rotation_signs", np.ravel),
    "signs are of another type": tensor("rotation_signs", lambda a: a.astype(np.float64)),
    "a sign is nan": tensor("rotation_signs", with_first(np.nan)),
    "a sign is 2": tensor("rotation_signs", with_first(2)),
    "queries are scaled": lambda tensors, config: tensors.update(
        neuron_map=np.eye(601, dtype=np.float32), query_map=np.eye(601, dtype=np.float32)),
    "a matrix of other bits": lambda tensors, config: tensors.update(
        rotation=0 * tensors.pop("rotation_signs").reshape(4, -1)),
    **{f"exponent {value!r}": setting("exponent", value) for value in ("a", 1.5, 1000, None)},
}


@pytest.mark.parametrize("change", FAST.values(), ids=FAST)
def test_an_inconsistent_file_of_wide_rows_is_refused(rng, path, change):
    W = rng.standard_normal((80, 600)).astype(np.float32)
    sl.LSHIndex(metric="l2", plan="sketches", random_state=0).fit(W).save(path)
    assert sl.LSHIndex.load(path, W).search(W[:3], 1)[0].ravel().tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"index\.safetensors: this index cannot be used \("):
        changed_file(path, W, None, change)


def test_probing_without_tables_is_refused(rng, path):
    index, W, bias, _ = fitted(rng, dense, {"plan": "sketches"})
    index.save(path)
    with pytest.raises(ValueError, match="methods must be one of 'sketches', 'exact'"):
        changed_file(path, W, bias, setting("methods", {"single": "probes", "batch": "probes"}))


@pytest.mark.parametrize("config",
                         ["", "{", "[]", "null", "3", '"a"', json.dumps({"arguments": {}})])
def test_an_invalid_config_is_refused(rng, path, config):
    tensors = {"gone": np.zeros(9, np.uint8)}
    _files.write(path, tensors, {"format": "sparselsh.index", "config": config,
                                 "checksum": _files.checksum(tensors, config)})
    with pytest.raises(ValueError, match=r"index\.safetensors: "):
        sl.LSHIndex.load(path, dense(rng, 9))


# ---- atomic writes


def test_a_failed_save_leaves_the_old_file(rng, path, monkeypatch):
    index, W, bias, X = fitted(rng, dense, {})
    index.save(path)
    before = path.read_bytes()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    index.remove([3])
    with pytest.raises(OSError, match="No space left"):
        index.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name], "no temporary file is left"
    monkeypatch.undo()
    index.save(path)
    assert_same(index, sl.LSHIndex.load(path, W, bias), X)


def test_an_index_that_is_not_fitted_cannot_be_saved(path):
    with pytest.raises(ValueError, match="call fit"):
        sl.LSHIndex().save(path)
    assert not path.exists()


def test_an_index_with_a_custom_family_cannot_be_saved(rng, path):
    class OwnHash(sl.SimHash):
        pass

    index = sl.LSHIndex(OwnHash(3, 2), random_state=0).fit(dense(rng, 9))
    with pytest.raises(
            TypeError,
            match="family must be one of SimHash, CrossPolytope, DWTA, MinHash to be saved"):
        index.save(path)
    assert not path.exists()


def test_the_file_does_not_hold_the_weights(rng, path):
    index, W, _, _ = fitted(rng, dense, {"sketch_bits": 64}, n=2000)
    index.save(path)
    assert path.stat().st_size < W.nbytes / 2
