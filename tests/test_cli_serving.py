"""`sparselsh convert` for weights and `sparselsh serve-bench`, each in its own process."""
import json

import numpy as np
import pytest
import scipy.sparse as sp
from test_cli import assert_one_line_error, sparselsh

import sparselsh as sl

st = pytest.importorskip("safetensors.numpy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving")
    rng = np.random.default_rng(0)
    arrays = {"body.fc1.weight": (16, 12), "body.fc1.bias": (16,), "head.weight": (9000, 16),
              "head.bias": (9000,)}
    st.save_file({k: rng.standard_normal(s).astype(np.float32) for k, s in arrays.items()},
                 folder / "m.safetensors")
    np.savez(folder / "X.npz", X=rng.standard_normal((200, 12)).astype(np.float32))
    np.savez(folder / "H.npz", abs(rng.standard_normal((200, 16))).astype(np.float32))
    np.savez(folder / "two.npz", A=np.zeros(3), B=np.zeros(3))
    (folder / "cut.npz").write_bytes((folder / "X.npz").read_bytes()[:300])
    return folder


def test_weights_are_converted_and_timed(folder):
    done = sparselsh("convert", "m.safetensors", "--layer", "body.fc1",
                     "--layer", "head", "--calibration", "X.npz",
                     "-o", "out.safetensors", "--storage", "int8", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "body.fc1" in done.stdout and "9000 x 16" in done.stdout
    done = sparselsh("serve-bench", "out.safetensors", "--queries", "X.npz",
                     "--batch", 1, 32, "--json", "f.json",
                     "--mmap", cwd=folder)
    assert done.returncode == 0, done.stderr
    figures = json.loads((folder / "f.json").read_text())
    assert ({f"{kind}_microseconds_{n}" for kind in ("dense", "planned") for n in (1, 32)}
            <= set(figures))
    # requested: 0.99 of the five best, for 200 rows
    assert figures["n_queries"] == 200 and figures["recall"] > 0.9
    assert "recall@5" in done.stdout and "32 per call" in done.stdout


def test_a_single_layer_is_timed_on_random_inputs(folder):
    done = sparselsh("convert", "m.safetensors", "--layer", "head", "--calibration",
                     "H.npz", "-o", "one.safetensors", cwd=folder)
    assert done.returncode == 0, done.stderr
    done = sparselsh("serve-bench", "one.safetensors", "--batch", 1, cwd=folder)
    assert done.returncode == 0 and "note: random inputs" in done.stderr


def test_a_network_of_the_library_is_converted_with_text_and_timed(folder):
    rng = np.random.default_rng(1)
    X = sp.random_array((120, 50), density=0.1, format="csr", dtype=np.float32, rng=rng)
    Y = sp.csr_array(np.eye(120, 30, dtype=np.float32)[rng.integers(30, size=120)])
    sl.datasets.write_xmc(folder / "rows.txt", X, Y)
    done = sparselsh("train", "rows.txt", "--hidden", 8, "--epochs", 1, "--refine", "yes",
                     "--model", "own.safetensors", cwd=folder)
    assert done.returncode == 0, done.stderr
    done = sparselsh("convert", "own.safetensors", "--calibration", "rows.txt", "-o",
                     "small.safetensors", "--storage", "int8", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "MB of arrays, weights in int8" in done.stdout and "refinement" in done.stdout
    done = sparselsh("serve-bench", "small.safetensors", "--queries", "rows.txt", "--batch", 1,
                     "--mmap", cwd=folder)
    assert done.returncode == 0 and "120 queries" in done.stdout, done.stderr
    done = sparselsh("convert", "own.safetensors", "-o", "small.safetensors", cwd=folder)
    assert done.returncode == 0 and "rows: sparse inputs" in done.stdout


def converted_and_timed(folder, *given, queries=()):
    done = sparselsh("convert", *given, "-o", "other.safetensors", cwd=folder)
    assert done.returncode == 0, done.stderr
    timed = sparselsh("serve-bench", "other.safetensors", *queries, "--batch", 1, cwd=folder)
    assert timed.returncode == 0 and "same best output" in timed.stdout, timed.stderr
    return done


def test_models_of_fasttext_are_converted_and_timed(folder, rng):
    from test_fasttext import LABELS, TEXTS, content

    (folder / "m.bin").write_bytes(content(rng))
    (folder / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    converted_and_timed(folder, "m.bin", "--calibration", "texts.txt",
                        queries=("--queries", "texts.txt"))
    net = sl.TextNetwork.load(folder / "other.safetensors")
    plain = sl.from_fasttext(folder / "m.bin", TEXTS)
    assert net.labels == LABELS
    for a, b in zip(net.topk(TEXTS, 5), plain.topk(TEXTS, 5), strict=True):
        np.testing.assert_array_equal(a, b)


def test_factors_of_implicit_are_converted_and_timed(folder, rng):
    items, users = (rng.standard_normal((n, 8)).astype(np.float32) for n in (5000, 300))
    np.savez(folder / "als.npz", item_factors=items, user_factors=users, factors=8)
    converted_and_timed(folder, "als.npz")
    net = sl.FactorNetwork.load(folder / "other.safetensors")
    ids, _ = net.recommend([3, 4], exact=True)
    np.testing.assert_array_equal(ids, np.argsort(-users[3:5] @ items.T)[:, :10])


def test_estimators_are_read_by_joblib_only_where_they_are_trusted(folder, rng):
    joblib = pytest.importorskip("joblib")
    linear_model = pytest.importorskip("sklearn.linear_model")
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MaxAbsScaler

    X, y = rng.standard_normal((200, 12)), rng.choice(list("abcde"), 200)
    estimator = linear_model.SGDClassifier(random_state=0).fit(X, y)
    joblib.dump(estimator, folder / "sgd.joblib")
    assert_one_line_error(sparselsh("convert", "sgd.joblib", "-o", "o", cwd=folder),
                          "sgd.joblib", "runs code", "--trust")
    converted_and_timed(folder, "sgd.joblib", "--trust", "--calibration", "X.npz",
                        queries=("--queries", "X.npz"))
    net = sl.EstimatorNetwork.load(folder / "other.safetensors")
    np.testing.assert_array_equal(net.predict(X), estimator.predict(X))

    joblib.dump(make_pipeline(MaxAbsScaler(), estimator).fit(X, y), folder / "p.joblib")
    done = converted_and_timed(folder, "p.joblib", "--trust")
    assert "without the steps before the classifier (MaxAbsScaler)" in done.stderr
    (folder / "bad.joblib").write_bytes(b"no pickle")
    assert_one_line_error(sparselsh("convert", "bad.joblib", "--trust", "-o", "o", cwd=folder),
                          "bad.joblib", "cannot be read by joblib")


@pytest.mark.parametrize("args, named", [
    (["convert", "m.safetensors", "--layer", "tail", "-o", "o"],
     ["m.safetensors", "'tail'", "head.weight"]),
    (["convert", "m.safetensors", "--layer", "head"], ["-o OUT.safetensors"]),
    (["convert", "m.safetensors", "out.csr", "--layer", "head", "-o", "o"], ["out.csr", "-o"]),
    (["convert", "m.safetensors", "--layer", "head", "-o", "m.safetensors"],
     ["m.safetensors", "another name"]),
    (["convert", "m.safetensors", "-o", "o"], ["--layer NAME"]),
    (["convert", "m.safetensors", "--layer", "head", "--calibration", "no.npz", "-o", "o"],
     ["no.npz", "no such file"]),
    (["convert", "m.safetensors", "--layer", "head", "--calibration", "cut.npz", "-o", "o"],
     ["cut.npz", "readable"]),
    (["convert", "m.safetensors", "--layer", "head", "--calibration", "two.npz", "-o", "o"],
     ["two.npz", "A, B", "X"]),
    (["convert", "m.safetensors", "--layer", "head", "--calibration", "X.npz", "-o", "o"],
     ["16 features, got 12"]),
    (["convert", "m.safetensors", "--layer", "head", "--recall", "1", "-o", "o"],
     ["--recall", "below 1"]),
    (["convert", "no.onnx", "-o", "o"], ["no.onnx"]),
    (["convert", "no.joblib", "--trust", "-o", "o"], ["no.joblib", "no such file"]),
    (["convert", "no.joblib", "--layer", "a", "-o", "o"], ["--layer", "an estimator"]),
    (["serve-bench", "m.safetensors"], ["m.safetensors", "sparselsh.inference"]),
    (["serve-bench", "no.safetensors"], ["no.safetensors", "no such file"]),
])
def test_mistakes_are_reported_in_one_line(folder, args, named):
    if "onnx" in str(args):
        pytest.importorskip("onnx")
    assert_one_line_error(sparselsh(*args, cwd=folder), *named)
