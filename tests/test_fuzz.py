"""Some inputs of fuzz.py: every damaged file yields a valid object or a clear error."""
import json
import sys

import numpy as np
import pytest
import scipy.sparse as sp

import sparselsh as sl
from sparselsh import _files

if sys.platform == "win32":
    pytest.skip("fuzz.py needs the resource limits of POSIX", allow_module_level=True)

import fuzz


@pytest.mark.parametrize("name", fuzz.READERS)
def test_damaged_files_yield_valid_objects_or_are_refused(name):
    n_inputs = 120
    counts, findings = fuzz.run(name, seed=1, begin=0, n_inputs=n_inputs)
    assert findings == []
    assert counts["read"] + counts["refused"] == n_inputs
    assert counts["read"] and counts["refused"], "some changed files are valid and some are not"


def test_an_input_is_the_same_in_every_run(tmp_path):
    for name, reader in fuzz.READERS.items():
        seeds = fuzz.seeds_of(name, tmp_path)
        one, other = ([reader.make(fuzz.random.Random(f"0 {name} {i}"), seeds) for i in range(5)]
                      for _ in range(2))
        assert one == other, name


def test_a_crash_and_a_hang_are_findings(monkeypatch, tmp_path):
    script = tmp_path / "fuzz.py"  # the script that run() starts in its place
    script.write_text("import os, signal, sys, time\nprint(7, file=sys.stderr, flush=True)\n"
                      "os.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setattr(fuzz, "__file__", str(script))
    counts, findings = fuzz.run("xmc", seed=0, begin=7, n_inputs=1)
    assert (counts["findings"] == 1 and findings[0]["number"] == 7
            and "-11" in findings[0]["finding"])


# ---- findings of earlier runs


def rewritten(path, kind, change):
    """Write a valid file again with other metadata and a correct checksum."""
    tensors, metadata = _files.read(path, kind)
    change(tensors, metadata)
    metadata["checksum"] = _files.checksum(tensors, metadata["config"])
    _files.write(path, tensors, metadata)


def test_a_header_without_rows_is_refused_in_chunks_too(tmp_path):
    # it was read as one empty row, so that a file truncated after its header was converted
    path = tmp_path / "cut.txt"
    path.write_bytes(b"1 5 5\n")
    for read in (sl.datasets.read_xmc,
                 lambda path: sl.datasets.convert_xmc(path, tmp_path / "cut.csr")):
        with pytest.raises(ValueError, match="line 2: the file ends after 0 of the 1 rows"):
            read(path)
    path.write_bytes(b"0 5 5\n")
    sl.datasets.convert_xmc(path, tmp_path / "empty.csr")
    assert sl.datasets.open_csr(tmp_path / "empty.csr").shape == (0, 5)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "net.safetensors"
    net = sl.Network([sl.LSHLinear(4, 9, density=0.5, family=sl.SimHash(3, 2))], random_state=0)
    net.fit(np.eye(9, 4), np.arange(9), epochs=1, verbose=False).save(path)
    return path


def test_a_deeply_nested_config_is_refused(model):
    rewritten(model, "sparselsh.network",
              lambda tensors, metadata: metadata.update(config="[" * 100_000))
    with pytest.raises(ValueError, match=r"net\.safetensors: .*RecursionError"):
        sl.load(model)


@pytest.mark.parametrize("dtype, size", [("F8_E4M3", 1), ("BF16", 2)])
def test_numbers_of_a_type_that_numpy_lacks_are_refused(model, dtype, size):
    data = model.read_bytes()
    name = rb'"F32","shape":[9]'
    assert name in data
    changed = data.replace(name, f'"{dtype}","shape":[{36 // size}]'.encode())
    size = int.from_bytes(data[:8], "little") + len(changed) - len(data)
    model.write_bytes(size.to_bytes(8, "little") + changed[8:])
    with pytest.raises(ValueError,
                       match=r"net\.safetensors: a safetensors file with a type of numbers"):
        sl.load(model)


def test_a_family_in_a_file_with_far_more_buckets_than_neurons_is_refused(model):
    rewritten(model, "sparselsh.network", lambda tensors, metadata: metadata.update(
        config=metadata["config"].replace('"bits": 3, "tables": 2', '"bits": 24, "tables": 255')))
    net = sl.load(model)  # its tables are not allocated yet
    with pytest.raises(
            ValueError,
            match=r"SimHash\(bits=24.*16777216 buckets per table for 9 neurons.*fewer buckets"):
        net.partial_fit(np.eye(9, 4), np.arange(9))


@pytest.mark.parametrize("wrong", [1, 0, "true", None, [True]])
def test_a_truth_value_that_is_none_is_refused(tmp_path, wrong):
    # 1 was taken as true: a classifier of one class per row gave a matrix of labels
    linear_model = pytest.importorskip("sklearn.linear_model")
    estimator = linear_model.RidgeClassifier().fit(np.eye(4), np.arange(4))
    path = tmp_path / "net.safetensors"
    sl.from_sklearn(estimator).save(path)
    rewritten(path, "sparselsh.estimator", lambda tensors, metadata: metadata.update(
        config=json.dumps(json.loads(metadata["config"]) | {"is_multilabel": wrong})))
    with pytest.raises(ValueError, match=r"net\.safetensors: .*is_multilabel must be true or"):
        sl.EstimatorNetwork.load(path)


def test_more_probes_than_buckets_are_refused_when_a_model_is_read(model):
    rewritten(model, "sparselsh.network", lambda tensors, metadata: metadata.update(
        config=metadata["config"].replace('"n_probes": 1', '"n_probes": 9')))
    with pytest.raises(
            ValueError,
            match=r"net\.safetensors: .*n_probes must be at least 1 and at most 8, got 9"):
        sl.load(model)


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint of a training that was left after its first epoch."""
    path = tmp_path / "run.safetensors"
    net = sl.Network([sl.Linear(4, 9)], random_state=0)
    net.fit(np.eye(9, 4), np.arange(9), epochs=2, verbose=False,
            callbacks=[sl.callbacks.EarlyStopping(), Left(path)])
    return path


class Left(sl.callbacks.Callback):
    def __init__(self, path):
        self.path = path

    def on_epoch_end(self, network, entry):
        network.save(self.path, training_state=True)
        return True


def damaged(path, **changes):
    """Change values of the training in a checkpoint and correct its checksum."""
    def change(tensors, metadata):
        config = json.loads(metadata["config"])
        config["training"] |= changes
        config["training"]["run"]["stopped"] = False  # as if the process had been killed
        metadata["config"] = json.dumps(config)
        metadata["checksum"] = _files.checksum(tensors, metadata["config"])

    rewritten(path, "sparselsh.network", change)
    return path


def test_an_invalid_state_of_a_callback_is_refused_with_the_name_of_the_callback(checkpoint):
    states = [{"name": "EarlyStopping",
               "state": {"best": "high", "best_epoch": 1, "n_waited": 0, "weights": []}}]
    net = sl.load(damaged(checkpoint, callbacks=states))
    with pytest.raises(
            ValueError,
            match=r"callbacks\[0\], EarlyStopping.*best must be a number, got 'high'.*without"):
        net.resume(np.eye(9, 4), np.arange(9), verbose=False,
                   callbacks=[sl.callbacks.EarlyStopping()])


@pytest.mark.parametrize("changes, message", [
    ({"generator": {"bit_generator": "PCG64", "state": {"state": 1, "inc": 1},
                    "has_uint32": 0, "uinteger": 2**70}},
     "OverflowError"),
    ({"optimizer": None}, "a training without an optimizer"),
])
def test_a_training_that_cannot_be_resumed_is_refused_when_it_is_loaded(
        checkpoint, changes, message):
    with pytest.raises(ValueError, match=rf"run\.safetensors: .*{message}"):
        sl.load(damaged(checkpoint, **changes))


def test_a_deep_training_that_diverges_ends_with_an_error_of_its_loss():
    # it raised LinAlgError from the second moment of infinite inputs
    hidden = sl.LSHLinear(8, 16, density=0.5, active="sample", policy="sketches", sketch_bits=64)
    net = sl.Network([sl.Linear(4, 8), hidden, sl.Linear(16, 3)], random_state=0)
    net.layers[0].set_weights(np.full((8, 4), 3e38))
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match="learning rate"):
        net.fit(np.eye(9, 4), np.arange(9) % 3, epochs=1, verbose=False)


def test_inference_on_large_values_gives_no_warning():
    # the sum of their squares overflows float32: it only speeds up the check for finite values
    net = sl.Network([sl.Linear(4, 9)], random_state=0).fit(
        np.eye(9, 4), np.arange(9), epochs=1, verbose=False)
    for x in (np.full((1, 4), 1e30, np.float32), sp.csr_array(np.full((1, 4), 1e30, np.float32))):
        assert net.predict(x).shape == (1,)


@pytest.mark.parametrize("value, layer", [(2**31, 0), (1, 0), (True, 1)])
def test_a_layer_of_a_tagger_that_cannot_be_input_major_is_refused(tmp_path, value, layer):
    # any true value was taken, and the last layer of a tagger was stored input-major, which
    # `explain` does not expect
    path = tmp_path / "tagger.safetensors"
    texts, tags = ["red apple", "fast car"] * 5, [["fruit"], ["traffic"]] * 5
    sl.Tagger(hidden=4, random_state=0).fit(texts, tags).save(path)

    def change(tensors, metadata):
        config = json.loads(metadata["config"])
        config["layers"][layer]["input_major_in_memory"] = value
        metadata["config"] = json.dumps(config)

    rewritten(path, "sparselsh.network", change)
    with pytest.raises(ValueError, match=r"tagger\.safetensors: .*input.major"):
        sl.load(path)


def test_a_layout_that_is_no_truth_value_is_not_converted(tmp_path):
    path = tmp_path / "net.safetensors"
    sl.Network([sl.Linear(3, 2).set_weights(np.ones((2, 3)))]).save(path)

    def change(tensors, metadata):
        config = json.loads(metadata["config"])
        config["layers"][0]["input_major_in_memory"] = 2
        metadata["config"] = json.dumps(config)

    rewritten(path, "sparselsh.network", change)
    with pytest.raises(ValueError, match="must be true or false, got 2"):
        sl.from_file(path)


def test_a_huge_shape_without_entries_is_refused(model):
    tensors, metadata = fuzz.unpack(model.read_bytes())
    tensors["layers.0.bias"] = ("F32", [2**62, 0], b"")
    model.write_bytes(fuzz.pack(tensors, metadata))
    with pytest.raises(ValueError, match=r"net\.safetensors: .*layers\.0\.bias"):
        sl.load(model)


# ---- contradictions in files of converted networks


@pytest.fixture(scope="module")
def served_files(tmp_path_factory):
    """Files whose last layers have the plans "rows" and "lsh", and a refined one in bfloat16."""
    seeds = fuzz.Served().seeds(tmp_path_factory.mktemp("served"))
    return {"rows": seeds[0], "lsh": seeds[1], "refined": seeds[-2]}


def layer_of(plan, config):
    return next(i for i, entry in enumerate(config["layers"]) if plan in entry["plan"].values())


def without_kept(tensors, config):
    config["layers"][0] |= {"plan": dict.fromkeys(config["layers"][0]["plan"], "lsh"), "kept": None}


def refined_without_features(tensors, config):
    config["layers"][0]["kind"] = "embedding"


def of_float64(tensors, config):
    tensors["layers.0.weight"] = tensors["layers.0.weight"].astype(np.float64)


def input_major_with_an_index(tensors, config):
    i = layer_of("lsh", config)
    config["layers"][i]["input_major"] = True
    tensors[f"layers.{i}.weight"] = tensors[f"layers.{i}.weight"].T.copy()


def without_importance(tensors, config):
    config["layers"][0]["kept"] = 1
    tensors.pop("layers.0.importance", None)


def without_index(tensors, config):
    config["layers"][layer_of("lsh", config)].pop("index")


def compact_float32(tensors, config):
    config["layers"][0]["storage"] = "float32"


@pytest.mark.parametrize("file, change, message", [
    ("lsh", without_kept, "kept or exponents"),
    ("refined", refined_without_features, "contradict"),
    ("lsh", of_float64, "weight must be a float32 matrix"),
    ("lsh", input_major_with_an_index, "its plans contradict each other"),
    ("lsh", without_importance, "importance is missing"),
    ("lsh", without_index, "its index is missing"),
    ("refined", compact_float32, "its weights in fewer bits contradict"),
])
def test_a_converted_network_that_contradicts_itself_is_refused(tmp_path, served_files, file,
                                                                change, message):
    path = tmp_path / "served.safetensors"
    path.write_bytes(served_files[file])

    def apply(tensors, metadata):
        config = json.loads(metadata["config"])
        change(tensors, config)
        metadata["config"] = json.dumps(config)

    sl.InferenceNetwork.load(path)
    rewritten(path, "sparselsh.inference", apply)
    with pytest.raises(ValueError, match=rf"served\.safetensors: .*({message})"):
        sl.InferenceNetwork.load(path)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A converted network with sparse inputs, 40 hidden units and 30 labels."""
    path = tmp_path_factory.mktemp("served") / "net.safetensors"
    net = sl.Network([sl.Linear(20, 40, activation="relu"), sl.Linear(40, 30)], random_state=0)
    X = sp.csr_array(np.eye(20, dtype=np.float32))
    net.partial_fit(X, np.arange(20))
    sl.InferenceNetwork.from_network(net).save(path)
    return path.read_bytes()


@pytest.mark.parametrize("layer, change, message", [
    (0, {"kind": "sparse"}, "kind must be"),
    (0, {"activation": "step"}, "activation must be"),
    (0, {"storage": "float8"}, "storage must be"),
    (0, {"plan": {"single": "lsh", "batch": "dense"}}, "its plans contradict each other"),
    (1, {"plan": {"single": "lsh", "batch": "dense"}}, "its index is missing"),
    (1, {"kept": 3}, "importance is missing"),
    (1, {"is_compact": True}, "'rows'"),
    (1, {"kind": "embedding_bag"}, r"bias must have shape \(40,\), got \(30,\)"),
    (1, {"widening": 0}, "widening must be"),
])
def test_every_entry_of_a_converted_layer_is_checked(served, tmp_path, layer, change, message):
    path = tmp_path / "net.safetensors"
    path.write_bytes(served)

    def apply(tensors, metadata):
        config = json.loads(metadata["config"])
        config["layers"][layer] |= change
        metadata["config"] = json.dumps(config)

    rewritten(path, _files.metadata(path)["format"], apply)
    with pytest.raises(ValueError, match=rf"net\.safetensors: .*{message}"):
        sl.InferenceNetwork.load(path)
