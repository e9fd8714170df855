"""Every public callable refuses a wrong argument with a clear error: one row per callable.

`test_bad_input.py` and the tests of each module try many arguments; this file covers every
callable. A public name without a row fails the test, so that no new name is forgotten. The error
must be raised in the callable that the row is for.
"""
import importlib
import inspect
import re

import numpy as np
import pytest

import sparselsh as sl

pytest.importorskip("safetensors")

MODULES = ("calibration", "callbacks", "datasets", "distributed", "metrics", "protocols",
           "rebuild", "schedules", "estimators", "torch")
X = np.ones((4, 3), np.float32)
Y = np.array([0, 1, 2, 0])
IDS = np.zeros((4, 2), int)
P = np.full((4, 3), 1 / 3)
NAN = float("nan")


def trained():
    net = sl.Network([sl.Linear(3, 8), sl.LSHLinear(8, 5, density=0.5)], random_state=0)
    return net.fit(X, Y, epochs=1, verbose=False)


def calibrated():
    X, Y = np.eye(3, dtype=np.float32)[np.arange(60) % 3], np.arange(60) % 3
    return sl.Network([sl.Linear(3, 3)], random_state=0).fit(
        X, Y, epochs=1, verbose=False).calibrate(X, Y).calibration


def fitted():
    return sl.LSHIndex(sl.SimHash(3, 2), random_state=0).fit(np.eye(6, 3))


def served(tmp_path):
    np.savez(tmp_path / "w.npz", **{"fc.weight": np.eye(4, 3, dtype=np.float32)})
    return sl.from_file(tmp_path / "w.npz", X)


def estimator_network():
    """A classifier of four classes and three features."""
    from types import SimpleNamespace

    return sl.from_sklearn(SimpleNamespace(coef_=np.eye(4, 3), intercept_=np.zeros(4),
                                           classes_=np.arange(4)))


def model_with_trunk(tmp_path):
    """A model of ONNX whose last layer is cut off."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper = onnx.helper
    nodes = [helper.make_node("Sigmoid", ["x"], ["h"]),
             helper.make_node("MatMul", ["h", "W"], ["y"])]
    x, y = (helper.make_tensor_value_info(name, 1, [None, n]) for name, n in (("x", 3), ("y", 9)))
    W = onnx.numpy_helper.from_array(np.ones((3, 9), np.float32), "W")
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], [W]),
                              opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, tmp_path / "m.onnx")
    return sl.from_onnx(tmp_path / "m.onnx", head="W")


def classifier(**options):
    return estimators().LSHClassifier(max_iter=1, **options)


def regressor(**options):
    return estimators().LSHRegressor(max_iter=1, **options)


TEXTS, TAGS = ["red car", "blue bus"] * 3, [["a"], ["b"]] * 3


def tagger():
    return sl.Tagger(hidden=4, random_state=0).fit(TEXTS, TAGS)


def shop():
    return sl.Recommender(hidden=4, random_state=0).fit([["a", "b", "c"], ["b", "c"]])


def estimators():
    pytest.importorskip("sklearn")
    return sl.estimators


def torch():
    pytest.importorskip("torch")
    return importlib.import_module("sparselsh.torch")


def axes(call):
    pytest.importorskip("matplotlib")
    return call("not axes")


# name of the callable: (call with tmp_path, error, pattern of the message)
ROWS = {
    "Network": (lambda p: sl.Network(3), TypeError, "layers must be a list"),
    "Network.fit": (lambda p: trained().fit(X, Y, epochs=0), ValueError,
                    "epochs must be at least 1, got 0"),
    "Network.initialize": (lambda p: trained().initialize(X, Y), ValueError,
                           "X must be sparse to make weights from"),
    "Network.refine": (lambda p: trained().refine(X, Y, C=-1), ValueError,
                       "C must be above 0, got -1"),
    "Network.calibrate": (lambda p: trained().calibrate(X, Y), ValueError,
                          "X has 4 rows; give at least 20"),
    "Network.tune_refinement": (lambda p: trained().tune_refinement(X, Y), ValueError,
                                "no refinement; call refine"),
    "Network.predict_proba": (lambda p: trained().predict_proba(X[:, :2]), ValueError,
                              "X must have 3 features, got 2"),
    "Network.predict_labels": (lambda p: trained().predict_labels(X, 1.5), ValueError,
                               "threshold must be at most 1 and above 0, got"),
    "Network.resume": (lambda p: sl.Network([sl.Linear(3, 2)]).resume(X, Y),
                       ValueError, "no training to resume; call"),
    "Network.partial_fit": (lambda p: trained().partial_fit(X, [9] * 4),
                            ValueError, "Y must lie in 0..4, got 9"),
    "Network.profile": (lambda p: trained().profile(X, Y, optimizer="adam"),
                        TypeError, "optimizer must be .*'adam'"),
    "Network.topk": (lambda p: trained().topk(X, k=0), ValueError, "k must be at least 1, got 0"),
    "Network.score": (lambda p: trained().score(X, [[1, 2]]), ValueError,
                      r"ids must have shape \(n_ids,\), or \(4, n_ids\) with a row per query"),
    "Network.logsumexp": (lambda p: trained().logsumexp(X, error=-1), ValueError,
                          "error must be above 0, got -1"),
    "Network.predict": (lambda p: trained().predict(X[:, :2]), ValueError,
                        "X must have 3 features, got 2"),
    "Network.decision_function": (
        lambda p: trained().decision_function(X[0]), ValueError, "X must have two dim.*reshape"),
    "Recommender.fit": (lambda p: sl.Recommender().fit(["ab"]), TypeError,
                        r"sequences\[0\] is the string 'ab'; give a list"),
    "Recommender.add_items": (lambda p: shop().add_items([["a", "b"]]), ValueError,
                              "sequences hold no item that the model does not know"),
    "Recommender.partial_fit": (lambda p: sl.Recommender(decay=2).partial_fit([["a", "b"]]),
                                ValueError, "decay must be at most 1 and above 0, got 2"),
    "Recommender.recommend": (lambda p: shop().recommend(["a"], k=0), ValueError,
                              "k must be at least 1, got 0"),
    "Recommender.score": (lambda p: shop().score([["a"]]), ValueError,
                          "at least one of two items or more"),
    "Recommender.set_params": (lambda p: sl.Recommender().set_params(size=3), ValueError,
                               "'size' is no argument of Recommender"),
    "Recommender.compressed": (lambda p: shop().compressed("int4"), ValueError,
                               "storage must be .*int4"),
    "Recommender.save": (lambda p: shop().save(p), IsADirectoryError, "is a directory; give"),
    "Recommender.load": (lambda p: sl.Recommender.load(p / "none"), FileNotFoundError,
                         "no such file; check"),
    "Network.add_labels": (lambda p: trained().add_labels(0), ValueError,
                           "n must be at least 1"),
    "Network.add_features": (lambda p: trained().add_features(2.5), TypeError,
                             "n must be an integer, got 2.5"),
    "Network.save": (lambda p: trained().save(p), IsADirectoryError,
                     "is a directory; give the path of a file"),
    "Network.get_weights": (lambda p: sl.Network([sl.Linear(3, 2)]).get_weights(), ValueError,
                            "no weights yet"),
    "Network.set_weights": (lambda p: trained().set_weights([]), ValueError,
                            r"weights must be \d+ arrays, got 0"),
    "Network.architecture": (lambda p: sl.Network([sl.Linear(3, 2)]).architecture(), ValueError,
                             "no weights yet"),
    "Network.to_torch": (lambda p: trained().to_torch(refinement="no"), ValueError,
                         "refinement must be one of 'keep', 'drop', got 'no'"),
    "Network.plot_history": (lambda p: axes(trained().plot_history), TypeError,
                             "ax must be matplotlib Axes"),
    "TextVectorizer.fit": (lambda p: sl.TextVectorizer(norm="l1").fit(TEXTS), ValueError,
                           "norm must be one of 'l2', got 'l1'"),
    "TextVectorizer.transform": (lambda p: sl.TextVectorizer().fit(TEXTS).transform([3]), TypeError,
                                 r"texts\[0\] must be a string, got 3"),
    "TextVectorizer.fit_transform": (lambda p: sl.TextVectorizer().fit_transform("text"), TypeError,
                                     "texts must be a list of texts, got the string"),
    "TextVectorizer.get_feature_names_out": (
        lambda p: sl.TextVectorizer(n_features=8).fit(TEXTS).get_feature_names_out(), ValueError,
        "hashed features have no names"),
    "TextVectorizer.set_params": (lambda p: sl.TextVectorizer().set_params(df=2), ValueError,
                                  "'df' is no argument of TextVectorizer"),
    "Tagger.fit": (lambda p: sl.Tagger().fit(TEXTS, [1, 2, 3, 4, 5, 6]), TypeError,
                   r"tags\[0\] is the number 1; tags are strings"),
    "Tagger.resume": (lambda p: sl.Tagger().resume(3, TEXTS, TAGS), TypeError, "path must be"),
    "Tagger.predict": (lambda p: tagger().predict("a text"), TypeError,
                       "texts must be a list of texts, got the string"),
    "Tagger.predict_topk": (lambda p: tagger().predict_topk(TEXTS, 0), ValueError,
                            "k must be at least 1, got 0"),
    "Tagger.predict_proba": (lambda p: tagger().predict_proba([None]), TypeError,
                             r"texts\[0\] is None: there is no text"),
    "Tagger.explain": (lambda p: tagger().explain("car", "c"), ValueError,
                       "tag is 'c', which the model does not know"),
    "Tagger.score": (lambda p: tagger().score(TEXTS, TAGS[:2]), ValueError,
                     "an entry for each of the 6 rows, got 2"),
    "Tagger.add_tags": (lambda p: tagger().add_tags(TEXTS, TAGS), ValueError,
                        "tags holds no tag that the model does not know"),
    "Tagger.partial_fit": (lambda p: tagger().partial_fit(TEXTS, ["a"] * 6), TypeError,
                           "tags must be a list per text, as in fit"),
    "Tagger.set_params": (lambda p: sl.Tagger().set_params(size=3), ValueError,
                          "'size' is no argument of Tagger"),
    "Tagger.compressed": (lambda p: tagger().compressed("int4"), ValueError,
                          "storage must be .*int4"),
    "Tagger.save": (lambda p: tagger().save(p), IsADirectoryError, "is a directory; give"),
    "Tagger.load": (lambda p: sl.Tagger.load(p / "none"), FileNotFoundError, "no such file; check"),
    "load": (lambda p: sl.load(p / "none"), FileNotFoundError,
             "none: no such file; check the path"),
    "Linear": (lambda p: sl.Linear(3, 4, dtype="half"), ValueError,
               "dtype must be one of 'float32', .*'half'"),
    "Linear.set_weights": (lambda p: sl.Linear(3, 4).set_weights(X.T),
                           ValueError, "weight must have 3 columns, got 4"),
    "LSHLinear": (lambda p: sl.LSHLinear(3, 4, oversample=0), ValueError,
                  "oversample must be at least 1, got 0"),
    "LSHLinear.set_weights": (lambda p: sl.LSHLinear(3, 4).set_weights(X.T),
                              ValueError, "weight must have 3 columns"),
    "LSHLinear.from_dense": (lambda p: sl.LSHLinear.from_dense(X, [1.0]),
                             ValueError, "bias must have shape"),
    "SGD": (lambda p: sl.SGD(nesterov=True), ValueError, "nesterov=True needs momentum above 0"),
    "Adam": (lambda p: sl.Adam(second_moment="all"), ValueError,
             "second_moment must be one of .*'all'"),
    "LSHIndex": (lambda p: sl.LSHIndex(storage="int4"), ValueError,
                 "storage must be one of .*'int4'"),
    "LSHIndex.fit": (lambda p: sl.LSHIndex().fit(X * NAN), ValueError,
                     "W must be finite, got nan at row 0, column 0"),
    "LSHIndex.tune": (lambda p: fitted().tune(X, recall=2), ValueError,
                      "recall must be above 0 and below 1, got 2"),
    "LSHIndex.update": (lambda p: fitted().update(np.eye(6, 3), [6]), ValueError,
                        "rows must lie in 0..5, got 6"),
    "LSHIndex.add": (lambda p: fitted().add(np.eye(7, 3)), ValueError,
                     r"rows must be the new neurons alone.*pass rows\[6:\]"),
    "LSHIndex.remove": (lambda p: fitted().remove([2, 2]), ValueError, "rows must be distinct"),
    "LSHIndex.query": (lambda p: fitted().query(X, policy="best"), ValueError,
                       "policy must be one of .*'best'"),
    "LSHIndex.search": (lambda p: fitted().search("abc"), TypeError,
                        "X must be numeric, got .*; convert"),
    "LSHIndex.score": (lambda p: fitted().score(X, [6]), ValueError,
                       "ids must be between 0 and 5, or -1 for none, got 6"),
    "LSHIndex.estimate": (lambda p: fitted().estimate(X, bits=4), ValueError,
                          "bits must be 1 or 8, got 4"),
    "LSHIndex.logsumexp": (lambda p: fitted().logsumexp(X, error=0), ValueError,
                           "error must be above 0, got 0"),
    "LSHIndex.report": (lambda p: sl.LSHIndex().report(), ValueError, "call fit.* first"),
    "LSHIndex.plot_recall": (
        lambda p: fitted().plot_recall(X[:, :2]), ValueError, "queries must have 3 columns, got 2"),
    "LSHIndex.save": (
        lambda p: fitted().save(None), TypeError,
        "path must be a string or a path-like object, got None"),
    "LSHIndex.load": (lambda p: sl.LSHIndex.load(p, X), IsADirectoryError,
                      "is a directory; give the path of a file"),
    "choose_bits_and_tables": (lambda p: sl.choose_bits_and_tables(2, 10),
                               ValueError, "density must be above 0 and"),
    "set_num_threads": (lambda p: sl.set_num_threads(0), ValueError,
                        "n must be at least 1 and at most 1024, got 0"),
    "set_reproducible": (lambda p: sl.set_reproducible("everywhere"), ValueError,
                         "scope must be \"one-machine\" or .* got 'everywhere'"),
    "from_file": (lambda p: sl.from_file(p / "none"), FileNotFoundError,
                  "no such file; check the path"),
    "from_onnx": (
        lambda p: pytest.importorskip("onnx") and sl.from_onnx(3), TypeError,
        "path must be a string .* got 3"),
    "from_torch": (lambda p: torch() and sl.from_torch(3), TypeError,
                   "module must be a torch.nn.Module, got 3"),
    "from_sklearn": (lambda p: sl.from_sklearn(3), TypeError,
                     "estimator must be a fitted classifier with linear layers, got int"),
    "from_implicit": (lambda p: sl.from_implicit(3), TypeError, "model must have item_factors"),
    "EstimatorNetwork.topk": (lambda p: estimator_network().topk(X, k=9), ValueError,
                              "k must be at least 1 and at most 4, got 9"),
    "EstimatorNetwork.predict": (lambda p: estimator_network().predict(X[:, :2]), ValueError,
                                 "X must have 3 features, got 2"),
    "EstimatorNetwork.decision_function": (
        lambda p: estimator_network().decision_function(X * NAN), ValueError, "X must be finite"),
    "from_fasttext": (lambda p: sl.from_fasttext(p / "none"), FileNotFoundError,
                      "no such file; check the path"),
    "EstimatorNetwork.save": (
        lambda p: estimator_network().save(p / "no" / "w"), FileNotFoundError,
        "is no directory; create it"),
    "EstimatorNetwork.load": (lambda p: sl.EstimatorNetwork.load(p / "none"), FileNotFoundError,
                              "no such file; check the path"),
    "TextNetwork.load": (lambda p: sl.TextNetwork.load(p / "none"), FileNotFoundError,
                         "no such file; check the path"),
    "FactorNetwork.save": (lambda p: sl.from_implicit(X).save(p / "no" / "w"), FileNotFoundError,
                           "is no directory; create it"),
    "FactorNetwork.load": (lambda p: sl.FactorNetwork.load(p / "none"), FileNotFoundError,
                           "no such file; check the path"),
    "datasets.read_vec": (lambda p: sl.datasets.read_vec(p / "none"), FileNotFoundError,
                          "no such file; check the path"),
    "FactorNetwork.recommend": (lambda p: sl.from_implicit(X).recommend([0]), ValueError,
                                "users must be an array of factors"),
    "OnnxNetwork.topk": (
        lambda p: model_with_trunk(p).topk(X[:, :2]), ValueError, "cannot run the model for x"),
    "OnnxNetwork.predict": (
        lambda p: model_with_trunk(p).predict({"y": X}), ValueError, "no further input 'y'"),
    "OnnxNetwork.ctc": (
        lambda p: model_with_trunk(p).ctc(X, blank=-1), ValueError, "blank must be at least 0"),
    "OnnxNetwork.save": (
        lambda p: model_with_trunk(p).save(p / "no" / "w"), FileNotFoundError,
        "is no directory; create it"),
    "OnnxNetwork.load": (
        lambda p: model_with_trunk(p) and sl.OnnxNetwork.load(p / "none"), FileNotFoundError,
        "no such file; check the path"),
    "InferenceNetwork.from_network": (
        lambda p: sl.InferenceNetwork.from_network(3), TypeError, "net must be a Network .* got 3"),
    "InferenceNetwork.to_torch": (lambda p: served(p).to_torch(refinement=None), ValueError,
                                  "refinement must be one of 'keep', 'drop', got None"),
    "InferenceNetwork.topk": (lambda p: served(p).topk(X, k=0), ValueError,
                              "k must be at least 1, got 0"),
    "InferenceNetwork.score": (lambda p: served(p).score(X, [0.5]), TypeError,
                               "ids must be integers, got dtype float64"),
    "InferenceNetwork.logsumexp": (lambda p: served(p).logsumexp(X, error="a"), TypeError, "error"),
    "InferenceNetwork.predict_proba": (lambda p: served(p).predict_proba(X), ValueError,
                                       "need a calibration; call calibrate"),
    "InferenceNetwork.predict_labels": (lambda p: served(p).predict_labels(X), ValueError,
                                        "need a calibration; call calibrate"),
    "InferenceNetwork.predict": (lambda p: served(p).predict(X[0]), ValueError,
                                 "X must have two dimensions"),
    "InferenceNetwork.decision_function": (
        lambda p: served(p).decision_function(X * NAN), ValueError, "X must be finite, got nan"),
    "InferenceNetwork.save": (
        lambda p: served(p).save(p / "no" / "w"), FileNotFoundError, "is no directory; create it"),
    "InferenceNetwork.load": (lambda p: sl.InferenceNetwork.load(p / "none"),
                              FileNotFoundError, "no such file; check"),
    "datasets.CSRFile": (lambda p: sl.datasets.CSRFile(None), TypeError,
                         "path must be a string .* got None"),
    "datasets.CSRFile.chunks": (lambda p: next(csr(p).chunks(0)), ValueError,
                                "n_rows must be at least 1, got 0"),
    "datasets.open_csr": (
        lambda p: sl.datasets.open_csr(p / "none"), FileNotFoundError,
        "does not exist; check the path"),
    "datasets.write_csr": (
        lambda p: sl.datasets.write_csr(p / "f", X, Y[:2]), ValueError,
        "Y must have as many rows as X"),
    "datasets.convert_parquet": (lambda p: sl.datasets.convert_parquet([], p / "rows"), ValueError,
                                 "paths has no file"),
    "datasets.convert_xmc": (
        lambda p: sl.datasets.convert_xmc(p / "f", p / "f"), ValueError, "csr_path is the file to"),
    "datasets.read_xmc": (lambda p: sl.datasets.read_xmc(p, format="csv"),
                          ValueError, "format='csv' is unknown; give"),
    "datasets.write_xmc": (
        lambda p: sl.datasets.write_xmc(p / "f", X, Y[:2]), ValueError,
        "X has shape .* give matrices"),
    "metrics.precision_at_k": (lambda p: sl.metrics.precision_at_k(Y, IDS, 3),
                               ValueError, "k=3 exceeds the 2 columns"),
    "metrics.recall_at_k": (
        lambda p: sl.metrics.recall_at_k(Y, IDS + 0.5, 1), TypeError,
        "ids has dtype float64; give"),
    "metrics.ndcg_at_k": (lambda p: sl.metrics.ndcg_at_k(Y, IDS, 2), ValueError, "ids .*"),
    "metrics.neighbour_recall": (
        lambda p: sl.metrics.neighbour_recall(IDS, IDS - 1), ValueError, "true_ids holds no id"),
    "metrics.propensities": (lambda p: sl.metrics.propensities(Y, a="b"),
                             TypeError, "a must be a number, got 'b'"),
    "metrics.psp_at_k": (
        lambda p: sl.metrics.psp_at_k(Y, IDS, 1, [2, 2, 2]), ValueError,
        "propensities holds values out"),
    "metrics.expected_calibration_error": (
        lambda p: sl.metrics.expected_calibration_error(Y, P, k=4), ValueError,
        "k=4 exceeds the 3 columns of probabilities"),
    "metrics.calibration_curve": (lambda p: sl.metrics.calibration_curve(Y, P, n_bins=0),
                                  ValueError, "n_bins must be at least 1, got 0"),
    "metrics.log_loss": (lambda p: sl.metrics.log_loss(Y, 2 * P + 1), ValueError,
                         "probabilities holds values outside"),
    "metrics.brier_score": (lambda p: sl.metrics.brier_score(Y[:3], P), ValueError,
                            "one row for each of the 3 rows"),
    "metrics.micro_f1": (lambda p: sl.metrics.micro_f1(Y, Y[:3]), ValueError,
                         "must have the same shape"),
    "calibration.Calibration": (
        lambda p: sl.calibration.Calibration("both", 3, 3, {}, 0.5, 4), ValueError,
        "kind must be one of"),
    "calibration.Calibration.ranked": (
        lambda p: calibrated().ranked(P[:, :2].astype(np.float32)), ValueError,
        "scores must have the shape"),
    "calibration.Calibration.labels_above": (
        lambda p: calibrated().labels_above(IDS, P[:, :2].astype(np.float32), X, X),
        ValueError, "scores must have the shape"),
    "calibration.Calibration.every": (
        lambda p: calibrated().every(IDS, P[:, :2].astype(np.float32), P.astype(np.float32)),
        ValueError, "scores must have the shape"),
    "calibration.calibrate": (
        lambda p: sl.calibration.calibrate(IDS[:, :1], P[:, :1], Y), ValueError,
        "Y_true has 4 rows; give at least 20"),
    "calibration.plot_reliability": (
        lambda p: axes(lambda ax: sl.calibration.plot_reliability(Y, P, ax=ax)), TypeError,
        "ax must be matplotlib Axes"),
    "CustomOptimizer": (lambda p: sl.CustomOptimizer(3), TypeError,
                        "rule must be an object with the method update"),
    "callbacks.EarlyStopping": (
        lambda p: sl.callbacks.EarlyStopping(patience=0), ValueError, "patience must be at least"),
    "callbacks.BestModel": (lambda p: sl.callbacks.BestModel(p, mode="up"),
                            ValueError, "mode must be one of .*'up'"),
    "callbacks.Checkpoint": (lambda p: sl.callbacks.Checkpoint(3.5), TypeError,
                             "path must be a string .* got 3.5"),
    "callbacks.Log": (
        lambda p: sl.callbacks.Log("run.txt"), ValueError,
        r"path must end in .csv or .json, got '.*run.txt'"),
    "rebuild.AtOnce": (lambda p: sl.rebuild.AtOnce(growth=0.5), ValueError,
                       "growth must be at least 1, got 0.5"),
    "rebuild.Every": (lambda p: sl.rebuild.Every(0), ValueError, "steps must be at least 1, got 0"),
    "rebuild.Exponential": (lambda p: sl.rebuild.Exponential(rate=NAN),
                            ValueError, "rate must be .*got nan"),
    "rebuild.Frozen": (lambda p: sl.rebuild.Frozen(before=3), TypeError,
                       "before must be a policy such as .* got 3"),
    "rebuild.OnDrift": (lambda p: sl.rebuild.OnDrift("a"), TypeError,
                        "threshold must be a number, got 'a'"),
    "schedules.Cosine": (lambda p: sl.schedules.Cosine(-1), ValueError, "end must be .*got -1"),
    "schedules.Linear": (lambda p: sl.schedules.Linear("0"), TypeError,
                         "end must be a number, got '0'"),
    "schedules.OneCycle": (lambda p: sl.schedules.OneCycle(shape="step"),
                           ValueError, "shape must be one of .*'step'"),
    "schedules.Step": (lambda p: sl.schedules.Step(at=0.5), TypeError, "at must be a sequence"),
    "schedules.WarmUp": (lambda p: sl.schedules.WarmUp(then="up"), ValueError,
                         "then must be one of .*'up'"),
    "torch.accelerate": (lambda p: torch().accelerate(3, [], X), TypeError,
                         "model must be a torch.nn.Module, got 3"),
    "torch.restore": (lambda p: torch().restore(3), TypeError,
                      "model must be a torch.nn.Module, got 3"),
    "torch.to_torch": (lambda p: torch().to_torch(3), TypeError,
                       "network must be a Network or an InferenceN.* got 3"),
    "estimators.LSHClassifier.fit": (
        lambda p: classifier(lsh_params={"famly": 1}).fit(X, Y), ValueError,
        "lsh_params has 'famly'; it takes .*fam"),
    "estimators.LSHClassifier.partial_fit": (
        lambda p: classifier().partial_fit(X, Y), ValueError, "classes must be passed"),
    "estimators.LSHClassifier.predict": (lambda p: classifier().predict(X),
                                         ValueError, "not fitted yet. Call 'fit'"),
    "estimators.LSHClassifier.predict_proba": (
        lambda p: classifier().fit(X, Y).predict_proba(X[0]), ValueError,
        "Expected 2D array, got 1D"),
    "estimators.LSHClassifier.predict_log_proba": (
        lambda p: classifier().fit(X, Y).predict_log_proba(X[:, :2]), ValueError,
        "X has 2 features, but .* 3 feat"),
    "estimators.LSHClassifier.decision_function": (
        lambda p: classifier().fit(X, Y).decision_function(X * NAN), ValueError, "X contains NaN"),
    "estimators.LSHClassifier.predict_topk": (
        lambda p: classifier().fit(X, Y).predict_topk(X, 9), ValueError,
        "k must be at least 1 and at most 3, got 9"),
    "estimators.LSHClassifier.score": (
        lambda p: classifier().fit(X, list(TAGS[:4])).score(X, TAGS[:2]), ValueError,
        "an entry for each of the 4 rows, got 2"),
    "estimators.LSHClassifier.transform": (
        lambda p: classifier().fit(X, Y).transform(X[:, :2]), ValueError,
        "X has 2 features, but .* 3 feat"),
    "estimators.LSHClassifier.save": (
        lambda p: classifier().save(p / "c"), ValueError, "not fitted yet. Call 'fit'"),
    "estimators.LSHClassifier.load": (
        lambda p: estimators().LSHClassifier.load(p / "none"), FileNotFoundError,
        "no such file; check"),
    "estimators.LSHRegressor.transform": (
        lambda p: regressor().transform(X), ValueError, "not fitted yet. Call 'fit'"),
    "estimators.LSHRegressor.fit": (lambda p: regressor().fit(X, list("abcd")),
                                    TypeError, "y must be numeric"),
    "estimators.LSHRegressor.partial_fit": (
        lambda p: regressor(n_jobs="all").partial_fit(X, Y), TypeError,
        "n_jobs must be an integer, got 'all'"),
    "estimators.LSHRegressor.predict": (lambda p: regressor().predict(X),
                                        ValueError, "not fitted yet. Call 'fit'"),
}
for family, options in (("SimHash", {"bits": 25}), ("CrossPolytope", {"dims": 0}),
                        ("DWTA", {"bin_size": 1}), ("MinHash", {"hashes": 0})):
    new = getattr(sl, family)
    ROWS |= {
        family: (lambda p, new=new, options=options: new(**options), ValueError,
                 f"{next(iter(options))} must be at"),
        f"{family}.fit": (lambda p, new=new: new().fit(3, "seed"), ValueError,
                          "random_state must be .*'seed'"),
        f"{family}.hash": (lambda p, new=new: new().fit(4).hash(X), ValueError,
                           "V must have 4 columns, got 3"),
        f"{family}.probe": (lambda p, new=new: new().fit(3).probe(X, 0),
                            ValueError, "n_probes must be .*got 0"),
        f"{family}.collision_probability": (
            lambda p, new=new: new().collision_probability([0.5, 1.5]),
            ValueError, "similarity must be .*got 1.5"),
    }

WITHOUT = {
    "EstimatorNetwork": "made by from_sklearn", "FactorNetwork": "made by from_implicit",
    "TextNetwork": "made by from_fasttext",
    "TextNetwork.topk": "checked in tests/test_fasttext.py, which makes a model",
    "TextNetwork.save": "checked in tests/test_fasttext.py, which makes a model",
    "TextNetwork.transform": "checked in tests/test_fasttext.py, which makes a model",
    "EstimatorNetwork.transform": "the transformers of the estimator check it",
    "OnnxNetwork": "made by from_onnx and load",
    "OnnxNetwork.to_onnx": "takes nothing",
    "ConversionReport.fraction_of_time": "a look at the figures of a report",
    "get_num_threads": "takes nothing", "get_reproducible": "takes nothing",
    "SoftmaxCrossEntropy": "takes nothing", "BinaryCrossEntropy": "takes nothing",
    "MeanSquaredError": "takes nothing",
    **{f"protocols.{name}": "a protocol: users implement it" for name in sl.protocols.__all__},
    "callbacks.ActiveSet": "made by the training",
    "callbacks.Callback": "takes nothing", "callbacks.StopOnInterrupt": "takes nothing",
    "datasets.CSRFile.close": "takes nothing",
    "datasets.FileFormatError": "an error, raised by readers",
    "TextVectorizer": "as scikit-learn requires, `fit` checks the parameters",
    "Tagger": "as scikit-learn requires, `fit` checks the parameters",
    "Recommender": "as scikit-learn requires, `fit` checks the parameters",
    "Recommender.get_params": "takes nothing that can be wrong",
    "Tagger.get_params": "takes nothing that can be wrong",
    "TextVectorizer.get_params": "takes nothing that can be wrong",
    "Refinement": "made by Network.refine and load",
    "InferenceNetwork.architecture": "takes nothing",
    "schedules.OneCycle.momentum_at": "called by optimizers, as the schedule itself is",
    "schedules.WarmUp.momentum_at": "called by optimizers, as the schedule itself is",
    "InferenceNetwork": "made by from_network, from_file, from_onnx, from_torch and load",
    "ConversionReport": "made by conversions", "ConversionReport.to_dict": "takes nothing",
    "ConversionReport.plot": "its axes are checked by plotting.axes, as in the other plots",
    "estimators.LSHClassifier": "scikit-learn requires that `fit` checks the parameters",
    "estimators.LSHRegressor": "scikit-learn requires that `fit` checks the parameters",
}


def sharded():
    layers = [sl.Linear(3, 8), sl.LSHLinear(8, 5, density=0.5)]
    net = sl.distributed.ShardedNetwork(layers, shards=2, group=sl.distributed.solo(),
                                        random_state=0)
    return net.fit(X, Y, epochs=1, verbose=False)


def sharded_rows():
    """The rows of Network, whose methods ShardedNetwork has."""
    rows, names = {}, ("fit", "resume", "partial_fit", "initialize", "refine", "calibrate",
                       "tune_refinement", "set_weights", "predict", "predict_labels",
                       "predict_proba", "decision_function", "score", "logsumexp")
    bad = {"fit": dict(epochs=0), "partial_fit": dict(batch_size=0), "refine": dict(C=-1)}
    for name in names:
        if name in bad:
            rows[name] = (lambda p, name=name: getattr(sharded(), name)(X, Y, **bad[name]),
                          ValueError, next(iter(bad[name])))
    few = {"predict": "3 features",
           "predict_labels": "3 features", "predict_proba": "3 features",
           "decision_function": "3 features", "logsumexp": "3 features"}
    for name, words in few.items():
        rows[name] = (lambda p, name=name: getattr(sharded(), name)(np.ones((4, 2))), ValueError,
                      words)
    rows |= {
        "resume": (lambda p: sl.distributed.ShardedNetwork(
            [sl.Linear(3, 8), sl.LSHLinear(8, 5)]).resume(X, Y), ValueError, "no training"),
        "initialize": (lambda p: sharded().initialize(X, Y), ValueError, "X must be sparse"),
        "calibrate": (lambda p: sharded().calibrate(X, Y), ValueError, "X has 4 rows"),
        "tune_refinement": (lambda p: sharded().tune_refinement(X, Y), ValueError,
                            "no refinement"),
        "set_weights": (lambda p: sharded().set_weights([]), ValueError, "must be 4 arrays"),
        "score": (lambda p: sharded().score(X, [9]), ValueError, "ids must"),
        "topk": (lambda p: sharded().topk(X, 0), ValueError, "k must be at least 1"),
        "save": (lambda p: sharded().save(3), TypeError, "path must"),
        "profile": (lambda p: sharded().profile(X, Y, steps=0), ValueError, "steps must"),
        "to_torch": (lambda p: sharded().to_torch(refinement="x"), ValueError, "refinement must"),
        "plot_history": (lambda p: axes(sharded().plot_history), TypeError, "ax must"),
        "add_labels": (lambda p: sharded().add_labels(0), ValueError, "n must be at least 1"),
        "add_features": (lambda p: sharded().add_features(0), ValueError, "n must be at least 1"),
        "to_network": (lambda p: sharded().to_network(n_threads=0), ValueError, "n_threads must"),
    }
    return {f"distributed.ShardedNetwork.{name}": row for name, row in rows.items()}


def part_of(path):
    sharded().save(path / "model")
    return sl.distributed.Part(path / "model", 0, 1)


def front_of(path):
    part = part_of(path)
    return sl.distributed.Front(path / "model", lambda i, *query: part.topk(*query), 1)


ROWS |= sharded_rows() | {
    "distributed.ShardedNetwork": (
        lambda p: sl.distributed.ShardedNetwork([sl.Linear(3, 8)]), ValueError,
        "layers must be a Linear and an LSHLinear"),
    "distributed.load": (lambda p: sl.distributed.load(p / "none"), FileNotFoundError,
                         "no such folder"),
    "distributed.split": (lambda p: sl.distributed.split(3), TypeError, "must be a Network"),
    "distributed.Checkpoint": (lambda p: sl.distributed.Checkpoint(p, minutes=0), ValueError,
                               "minutes must be above 0"),
    "distributed.group": (lambda p: sl.distributed.group(timeout=-1), ValueError,
                          "timeout must be above 0, got -1"),
    "distributed.open_rows": (lambda p: sl.distributed.open_rows(p), FileNotFoundError,
                              "no file there ends in .csr"),
    "distributed.estimate": (lambda p: sl.distributed.estimate(n_labels=0), ValueError,
                             "n_labels must be at least 1, got 0"),
    "distributed.Part": (lambda p: sl.distributed.Part(p / "none", 0, 1), FileNotFoundError,
                         "no such folder"),
    "distributed.Part.topk": (lambda p: part_of(p).topk(np.ones((2, 3)), 1), ValueError,
                              "h must have 8 columns"),
    "distributed.Front": (lambda p: sl.distributed.Front(p, "http://a", 2), TypeError,
                          "ask must be a function of part, h, k and exact, got str"),
    "distributed.Front.topk": (lambda p: front_of(p).topk(X, 0), ValueError,
                               "k must be at least 1, got 0"),
    "distributed.Front.hidden": (lambda p: front_of(p).hidden(np.ones((4, 2))), ValueError,
                                 "3 features"),
    "distributed.AsIf": (lambda p: sl.distributed.AsIf(3, 2), ValueError,
                         "rank must be .*got 3"),
}

WITHOUT |= {
    "distributed.RowFolder": "made by open_rows",
    "distributed.Group": "a protocol", "distributed.solo": "takes nothing",
    "distributed.DistributedError": "an error, raised by calls",
    "distributed.ShardedNetwork.checksums": "takes nothing",
    "distributed.ShardedNetwork.get_weights": "takes nothing",
    "distributed.ShardedNetwork.architecture": "takes nothing",
}


def csr(folder):
    sl.datasets.write_csr(folder / "rows.csr", X, Y)
    return sl.datasets.open_csr(folder / "rows.csr")


# What users call has a docstring with one of these sections, as in docs/make_api.py.
USER_SECTION = re.compile(r"^(Parameters|Returns|Yields|Raises)\n-+$", re.MULTILINE)


def public():
    """Return {name: function} of the public functions, methods and constructors of classes."""
    found = {}
    for place in ("", *MODULES):
        try:
            module = importlib.import_module(f"sparselsh.{place}" if place else "sparselsh")
        except ImportError:  # scikit-learn is not installed
            continue
        for name in module.__all__:
            thing = getattr(module, name)
            if not callable(thing):
                continue
            label = f"{place}.{name}" if place else name
            found[label] = thing.__init__ if inspect.isclass(thing) else thing
            for method, member in inspect.getmembers(thing) if inspect.isclass(thing) else ():
                own = (inspect.isroutine(member)
                       and (getattr(member, "__module__", None) or "").startswith("sparselsh"))
                # called by the training, not by users
                hooks = (issubclass(thing, sl.callbacks.Callback)
                         or getattr(thing, "_is_protocol", False))
                is_for_users = USER_SECTION.search(inspect.getdoc(member) or "")
                if own and is_for_users and not method.startswith("_") and not hooks:
                    found[f"{label}.{method}"] = member
    return found


def test_every_public_callable_has_a_row_or_a_reason_for_having_none():
    names = set(public())
    assert (names - set(ROWS) - set(WITHOUT)
            == set()), "add a row to ROWS, or a reason to WITHOUT, for each"
    assert not set(ROWS) & set(WITHOUT)
    # scikit-learn is not installed
    absent = {name for name in (*ROWS, *WITHOUT) if name.partition(".")[0] == "estimators"} - names
    assert set(ROWS) | set(WITHOUT) <= names | absent, "rows of names that no longer exist"


@pytest.mark.parametrize("name", ROWS)
def test_a_wrong_argument_is_refused_by_the_callable_that_got_it(name, tmp_path):
    call, error, words = ROWS[name]
    with pytest.raises(error, match=words) as caught:
        call(tmp_path)
    assert len(str(caught.value)) < 1000
    function = inspect.unwrap(public()[name])
    codes = {entry.frame.code.raw for entry in caught.traceback}
    assert getattr(function, "__func__", function).__code__ in codes, \
        f"the error did not arise in {name}"
