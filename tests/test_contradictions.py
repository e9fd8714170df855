"""Files with a right checksum that contradict themselves are refused, by file and by part."""
import re

import numpy as np
import pytest
import scipy.sparse as sp
from support import rewrite

import sparselsh as sl
from sparselsh import distributed

RNG = np.random.default_rng(0)
X = sp.random_array((60, 20), density=0.3, format="csr", dtype=np.float32, rng=RNG)
Y = np.arange(60) % 12


def network(active="batch", **options):
    layers = [sl.Linear(20, 8, activation="relu"),
              sl.LSHLinear(8, 12, density=0.5, active=active, **options)]
    return sl.Network(layers, random_state=0, n_threads=1)


def trained():
    return network().fit(X, Y, epochs=1, verbose=False)


def refused(path, change, message, load=sl.load):
    """`load` refuses the changed file by its path and by what is wrong."""
    rewrite(path, change)
    with pytest.raises(ValueError, match=re.escape(str(path)) + ".*" + message):
        load(path)


@pytest.mark.parametrize(("change", "message"), [
    (lambda t, c: c["training"]["optimizer"]["arguments"].update(rate=1), "Adam takes .*rate"),
    (lambda t, c: c["training"].update(optimizer=None), "a training without an optimizer"),
    (lambda t, c: c["training"]["generator"].update(bit_generator="Mine"), "bit_generator must be"),
    (lambda t, c: c["training"].update(computed_share=1.5), "computed_share"),
    (lambda t, c: c["training"].update(n_steps=-1), "n_steps"),
    (lambda t, c: c["layers"][0].update(input_major_in_memory=1), "input_major_in_memory must be"),
])
def test_a_training_that_contradicts_itself(change, message, tmp_path):
    path = tmp_path / "net"
    net = network()
    net.fit(X, Y, epochs=1, verbose=False, callbacks=[sl.callbacks.Checkpoint(path)])
    assert sl.load(path).resume(X, Y, verbose=False).history == net.history
    refused(path, change, message)


@pytest.mark.parametrize(("change", "message"), [
    (lambda t, c: t["layers.0.weight"].fill(np.inf), "must be finite"),
    (lambda t, c: c["layers"].reverse(), "must be"),
    (lambda t, c: c["layers"].pop(), "index pointer size"),
    (lambda t, c: c["calibration"].update(n_labels=3), "damaged"),
])
def test_a_network_that_contradicts_itself_is_no_pretrained_one(change, message, tmp_path):
    path = tmp_path / "net"
    trained().refine(X, Y, threshold=0, verbose=False).calibrate(X, Y).save(path)
    assert sl.from_file(path).n_labels == 12
    refused(path, change, message, sl.from_file)


def test_a_network_of_an_earlier_version_is_served(tmp_path):
    def of_before(tensors, config):
        for entry in config["layers"]:
            entry["input_major"] = entry.pop("input_major_in_memory")
        tensors["layers.0.weight"] = np.ascontiguousarray(tensors["layers.0.weight"].T)

    net = trained()
    net.save(tmp_path / "net")
    rewrite(tmp_path / "net", of_before)
    for again in (sl.load(tmp_path / "net"), sl.from_file(tmp_path / "net")):
        np.testing.assert_allclose(again.topk(X, 3)[1], net.topk(X, 3)[1], rtol=1e-5)


@pytest.mark.parametrize(("density", "percent"), [(0.2, "20.0%"), ("auto", "32.0%"), (1, None)])
def test_a_network_with_sparse_hidden_layers_is_no_pretrained_one(density, percent, tmp_path):
    layers = [sl.LSHLinear(20, 200, density=density, active="sample", policy="top"),
              sl.Linear(200, 12)]
    net = sl.Network(layers, random_state=0).fit(X, Y, epochs=1, verbose=False)
    net.save(tmp_path / "net")
    if percent is None:
        assert sl.from_file(tmp_path / "net").n_labels == 12
    else:
        with pytest.raises(ValueError, match=rf"net: layers\[0\] .* {percent} .*density = 1"):
            sl.from_file(tmp_path / "net")


def last_by_inputs(tensors, config):
    tensors["layers.1.rows"] = np.ascontiguousarray(tensors["layers.1.rows"].T)
    config["layers"][1].update(input_major=True, plan={"single": "int8", "batch": "rows"})


@pytest.mark.parametrize(("change", "message"), [
    (lambda t, c: c["layers"].pop(0), "bias must have shape"),
    (lambda t, c: c.update(layers=[]), "its layers do not fit each other"),
    (lambda t, c: c["layers"].append(c["layers"][0]), "damaged"),
    (lambda t, c: t["layers.0.rows"].fill(0x7F80), "rows must be finite"),
    (lambda t, c: c["layers"][1]["plan"].update(single="lsh"), "its index is missing"),
    (last_by_inputs, "its plans contradict each other"),
])
def test_a_served_network_that_contradicts_itself(change, message, tmp_path):
    path = tmp_path / "net"
    net = trained().refine(X, Y, threshold=0, verbose=False)
    sl.InferenceNetwork.from_network(net, storage="bfloat16").save(path)
    assert sl.InferenceNetwork.load(path).n_labels == 12
    refused(path, change, message, sl.InferenceNetwork.load)


def renamed(tensors, config):
    config["text"]["kind"] = "Clusterer"


@pytest.mark.parametrize(("change", "message"), [
    (lambda t, c: c.update(text=3), "text is 3"),
    (renamed, "holds a 'Clusterer', which this version does not know"),
    (lambda t, c: t["text.name_ends"].fill(2), "ends of names must rise"),
    (lambda t, c: t["text.names"].fill(ord("a")), "a name occurs twice"),
    (lambda t, c: t.update({"text.names": t["text.names"].astype(np.int32)}), "must be bytes"),
])
def test_a_tagger_that_contradicts_itself(change, message, tmp_path):
    path = tmp_path / "model"
    texts, tags = [f"word{i % 4} and{i % 3}" for i in range(60)], [f"t{i % 4}" for i in range(60)]
    sl.Tagger(hidden=4, hold_out=20, random_state=0).fit(texts, tags).save(path)
    assert len(sl.load(path).tags_) == 4
    refused(path, change, message)


@pytest.mark.parametrize(("change", "message"), [
    (lambda t, c: t.update({"output.bias": t["output.bias"][:-1]}), "output.bias must be float32"),
    (lambda t, c: t.update({"hidden.weight": t["hidden.weight"].T.copy()}), "hidden.weight must"),
    (lambda t, c: t["output.weight"].fill(np.nan), "output.weight must be finite"),
    (lambda t, c: c.update(shards=8), "its shards is 8 and not 4"),
])
def test_a_shard_that_contradicts_itself(change, message, tmp_path):
    net = distributed.ShardedNetwork([sl.Linear(20, 8, activation="relu"),
                                      sl.LSHLinear(8, 12, density=0.5)], shards=4, random_state=0)
    net.fit(X, Y, epochs=1, verbose=False).save(tmp_path / "net")
    path, = (tmp_path / "net").glob("*/shard-00001*")
    refused(path, change, message, lambda _: distributed.load(tmp_path / "net"))


def test_more_shards_than_hidden_units_are_kept(tmp_path):
    net = distributed.ShardedNetwork([sl.Linear(20, 3, activation="relu"),
                                      sl.LSHLinear(3, 12, density=0.5)], shards=8, random_state=0)
    net.fit(X, Y, epochs=1, verbose=False).save(tmp_path / "net", training_state=True)
    assert distributed.load(tmp_path / "net").checksums() == net.checksums()


def test_an_index_of_an_earlier_version_is_sketched_again(tmp_path):
    rows = RNG.standard_normal((300, 20)).astype(np.float32)

    def of_before(tensors, config):
        del tensors["errors"], config["bounds"]

    path, queries = tmp_path / "index", RNG.standard_normal((50, 20)).astype(np.float32)
    index = sl.LSHIndex(plan="sketches", random_state=0, n_threads=1).fit(rows, queries=queries)
    index.remove([3])
    index.save(path)
    rewrite(path, of_before)
    again = sl.LSHIndex.load(path, rows)
    exact = np.argsort(-(queries @ rows.T) + 1e9 * (np.arange(300) == 3))[:, :5]
    found = again.search(queries, 5)[0]
    assert np.mean([len(np.intersect1d(a, b)) for a, b in zip(found, exact, strict=True)]) > 4.5


def test_an_own_family_is_not_saved_by_its_name(tmp_path):
    class Mine(sl.SimHash):
        pass

    index = sl.LSHIndex(family=Mine(2, 3), random_state=0).fit(
        RNG.standard_normal((300, 20)).astype(np.float32))
    with pytest.raises((TypeError, ValueError), match="family must be one of SimHash"):
        index.save(tmp_path / "index")
    assert not (tmp_path / "index").exists()
