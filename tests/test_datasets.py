"""Text files of sparse rows: reading, writing, and the error messages for bad files."""
import bz2
import gzip
import lzma
import os
import pickle

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import parse_rows

from sparselsh._core import _parse
from sparselsh.datasets import FileFormatError, read_xmc, write_xmc

XMC = "3 6 4\n1,3 0:0.5 5:1e-3\n 2:-7\n2\n"


@pytest.fixture
def write(tmp_path):
    """Write text to a file and return its path."""

    def _write(text, name="data.txt"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return _write


def assert_same_csr(A, B):
    assert A.shape == B.shape
    np.testing.assert_array_equal(A.indptr, B.indptr)
    np.testing.assert_array_equal(A.indices, B.indices)
    # compare bits: -0.0 is not 0.0
    np.testing.assert_array_equal(A.data.view(np.int32), B.data.view(np.int32))


# ---- reading -------------------------------------------------------------------------------------


def test_xmc_text_is_read(write):
    X, Y = read_xmc(write(XMC))
    assert isinstance(X, sp.csr_array) and isinstance(Y, sp.csr_array)
    assert X.dtype == Y.dtype == np.float32
    assert X.indices.dtype == X.indptr.dtype == Y.indices.dtype == Y.indptr.dtype == np.int32
    np.testing.assert_array_equal(X.toarray(), np.array(
        [[0.5, 0, 0, 0, 0, 1e-3], [0, 0, -7, 0, 0, 0], [0] * 6], np.float32))
    np.testing.assert_array_equal(Y.toarray(), [[0, 1, 0, 1], [0] * 4, [0, 0, 1, 0]])


@pytest.mark.parametrize("text", [
    pytest.param("2 3 2\n0 0:1 2:2\n1 1:3\n", id="plain"),
    pytest.param("2 3 2\n0 0:1 2:2\n1 1:3", id="no newline at the end"),
    pytest.param("2 3 2\r\n0 0:1 2:2\r\n1 1:3\r\n", id="Windows line ends"),
    pytest.param("\ufeff2 3 2\n0 0:1 2:2\n1 1:3\n", id="byte order mark"),
    pytest.param("2 3 2\n0 0:1 2:2\n1 1:3\n\n \n", id="blank lines after the last row"),
    pytest.param("2 3 2\n0 2:2 0:1\n1 1:3\n", id="unsorted features"),
    pytest.param("2 3 2\n0,0 0:1 2:2\n1,1,1 1:3\n", id="labels twice"),
    pytest.param("2\t3 2 \n0\t0:1  2:2 \t\n1 1:3\n", id="tabs and repeated blanks"),
    pytest.param("+2 3 2\n+0 00:+1. 02:2e0\n01 1:.3E+1\n", id="other spellings of numbers"),
    pytest.param("0 0:1 2:2\n1 1:3\n", id="svmlight from 0"),
    pytest.param("0 1:1 3:2\n1 2:3\n", id="svmlight from 1"),
    pytest.param("# comment 0:0\n0 0:1 2:2# 7:x\n\n1 1:3 #\n#",
                 id="svmlight with comments and blank lines"),
])
def test_all_spellings_of_the_same_rows_are_read_alike(write, text):
    X, Y = read_xmc(write(text))
    np.testing.assert_array_equal(X.toarray(), [[1, 0, 2], [0, 3, 0]])
    np.testing.assert_array_equal(Y.toarray(), [[1, 0], [0, 1]])
    assert X.has_sorted_indices and Y.has_sorted_indices
    assert Y.data.tolist() == [1, 1]


def test_rows_without_features_or_labels_and_stored_zeros_are_read(write):
    X, Y = read_xmc(write("5 4 3\n\n \n 3:0\n2\n1:-0 0:2\n"))
    assert X.shape == (5, 4) and Y.shape == (5, 3)
    assert X.indptr.tolist() == [0, 0, 0, 1, 1, 3] and X.indices.tolist() == [3, 0, 1]
    assert X.data.tolist() == [0, 2, 0] and np.signbit(X.data[2])
    assert Y.indptr.tolist() == [0, 0, 0, 0, 1, 1]


def test_a_file_without_rows_is_read(write):
    X, Y = read_xmc(write("0 4 3\n"))
    assert X.shape == (0, 4) and Y.shape == (0, 3)


def test_long_unsorted_rows_with_repeated_labels_are_read(write):
    rng = np.random.default_rng(0)
    order, labels = rng.permutation(1000), rng.integers(0, 50, 300)
    row = ",".join(map(str, labels)) + "".join(f" {j}:{j + 0.5}" for j in order)
    X, Y = read_xmc(write(f"1 1000 50\n{row}\n"))
    np.testing.assert_array_equal(X.indices, np.arange(1000))
    np.testing.assert_array_equal(X.data, np.arange(1000) + 0.5)
    np.testing.assert_array_equal(Y.indices, np.unique(labels))


def test_given_sizes_are_the_shape(write):
    path = write(XMC)
    X, Y = read_xmc(path, n_features=10, n_labels=8)
    assert X.shape == (3, 10) and Y.shape == (3, 8)
    path = write("1 1:2 3:1\n")
    assert read_xmc(path)[0].shape == (1, 3)
    X, Y = read_xmc(path, n_features=3, n_labels=9)  # ids from 1: feature 3 is the last of three
    assert X.shape == (1, 3) and Y.shape == (1, 9)
    assert read_xmc(write("1 0:2 2:1\n"), n_features=3)[0].shape == (1, 3)


def test_a_given_format_is_not_guessed_again(write):
    path = write("1 2 3\n")
    assert read_xmc(write("0 2 3\n"), format="xmc")[0].shape == (0, 2)
    with pytest.raises(FileFormatError, match="feature '2' has no value"):
        read_xmc(path, format="svmlight")


@pytest.mark.parametrize("name, pack", [
    ("a.gz", gzip.compress), ("a.txt.bz2", bz2.compress), ("a.xz", lzma.compress)])
def test_compressed_files_are_read_or_refused_if_damaged(write, name, pack):
    expected = read_xmc(write(XMC))
    packed = pack(XMC.encode())
    for got, want in zip(read_xmc(write(packed, name)), expected, strict=True):
        assert_same_csr(got, want)
    with pytest.raises(FileFormatError, match="compressed data is damaged"):
        read_xmc(write(packed[:-9], name))
    with pytest.raises(FileFormatError, match="compressed data is damaged"):
        read_xmc(write(XMC, name))


def test_paths_may_be_strings_bytes_or_path_objects(write):
    path = write(XMC)
    for form in (path, str(path), os.fsencode(path)):
        assert read_xmc(form)[0].shape == (3, 6)


# ---- values --------------------------------------------------------------------------------------

HARD_NUMBERS = [
    "0.1", "16777217", "16777219", "33554434.000000001", "0.50000000000000000000000000000000001",
    "1.00000005960464477539062", "1.00000005960464477539063", "1.000000059604644775390625",
    "12345678901234567890123456789", "0.000000000000000000000000000000000012345",
    "1e-45", "7e-46", "8e-46",
    "1.1754943508e-38", "3.4028235e38", "0e999999999999999999999", "1e-99999999999999",
    "9007199254740993", "9007199254740993e-22", "0.1234567890123456789", "1" + "0" * 38,
    "0." + "0" * 44 + "1", "." + "3" * 400, "5." + "0" * 30 + "e-1", "123456789012345678e-5",
]


@pytest.mark.parametrize("number", HARD_NUMBERS)
def test_a_value_is_rounded_as_python_and_numpy_do(write, number):
    X, _ = read_xmc(write(f"2 1 1\n 0:{number}\n 0:-{number}\n"))
    want = np.array([float(number), -float(number)], np.float32)
    assert X.data.view(np.int32).tolist() == want.view(np.int32).tolist()


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture],
          deadline=None)
@given(numbers=st.lists(st.one_of(
    st.floats(-1e38, 1e38).map(repr),
    st.floats(-(2.0**126), 2.0**126, width=32).map(lambda v: f"{v:.25g}"),
    st.tuples(st.integers(0, 10**25), st.integers(-60, 10)).map(lambda t: f"{t[0]}e{t[1]}")),
    min_size=1))
def test_any_decimal_is_rounded_as_python_and_numpy_do(write, numbers):
    row = "".join(f" {j}:{number}" for j, number in enumerate(numbers))
    X, _ = read_xmc(write(f"1 {len(numbers)} 0\n{row}\n"))
    want = np.array([float(number) for number in numbers], np.float32)
    np.testing.assert_array_equal(X.data.view(np.int32), want.view(np.int32))


# ---- round trips ---------------------------------------------------------------------------------

finite32 = st.floats(allow_nan=False, allow_infinity=False, width=32)


@st.composite
def data_sets(draw, row_without_anything=True):
    """Draw (X, Y) with rows of all kinds."""
    n_features, n_labels = draw(st.integers(1, 30)), draw(st.integers(1, 12))
    rows = draw(st.lists(st.tuples(
        st.dictionaries(st.integers(0, n_features - 1), finite32, max_size=6),
        st.sets(st.integers(0, n_labels - 1), max_size=4)), max_size=8))
    if not row_without_anything:
        rows = [row for row in rows if row[0] or row[1]]
    rows = [(sorted(x.items()), sorted(y)) for x, y in rows]
    x_indptr = np.cumsum([0] + [len(x) for x, _ in rows])
    y_indptr = np.cumsum([0] + [len(y) for _, y in rows])
    X = sp.csr_array((np.array([v for x, _ in rows for _, v in x], np.float32),
                      np.array([j for x, _ in rows for j, _ in x], np.int32), x_indptr),
                     shape=(len(rows), n_features))
    labels = np.array([j for _, y in rows for j in y], np.int32)
    return X, sp.csr_array((np.ones(len(labels), np.float32), labels, y_indptr),
                           shape=(len(rows), n_labels))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture],
          deadline=None)
@given(data=data_sets(), suffix=st.sampled_from(["", ".gz", ".bz2", ".xz"]))
def test_xmc_text_is_written_and_read_back(tmp_path, data, suffix):
    path = tmp_path / f"round.txt{suffix}"
    write_xmc(path, *data)
    for got, want in zip(read_xmc(path), data, strict=True):
        assert_same_csr(got, want)
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".tmp")] == []


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture],
          deadline=None)
@given(data=data_sets(row_without_anything=False).filter(lambda data: data[0].shape[0] > 0))
def test_svmlight_text_is_written_and_read_back(tmp_path, data):
    path = tmp_path / "round.svm"
    X, Y = data
    write_xmc(path, X, Y, format="svmlight")
    for got, want in zip(read_xmc(path, n_features=X.shape[1], n_labels=Y.shape[1]),
                         data, strict=True):
        assert_same_csr(got, want)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture],
          deadline=None)
@given(data=data_sets())
def test_the_reader_agrees_with_its_reference_implementation(tmp_path, data):
    path = tmp_path / "rows.txt"
    write_xmc(path, *data)
    X, Y, stored = parse_rows(path.read_text(), has_header=True)
    got_X, got_Y = read_xmc(path)
    np.testing.assert_array_equal(got_X.toarray(), X)
    np.testing.assert_array_equal(got_Y.toarray(), Y)
    assert got_X.nnz == stored.sum()


def test_svmlight_agrees_with_its_reference_implementation(write):
    text = "# head\n3,1 0:1.5 7:-2e-3\n\n 4:1 # tail\n2\n5:3\n"
    X, Y, stored = parse_rows(text, has_header=False)
    got_X, got_Y = read_xmc(write(text))
    np.testing.assert_array_equal(got_X.toarray(), X)
    np.testing.assert_array_equal(got_Y.toarray(), Y)
    assert got_X.nnz == stored.sum() == 4


def test_every_kind_of_float32_is_written_and_read_back(tmp_path):
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 2**32, 50_000, dtype=np.uint32)
    near = np.array([10.0**e for e in range(-38, 39)], np.float32)
    values = np.concatenate(
        [bits.view(np.float32), near, np.nextafter(near, np.float32(0)),
         np.nextafter(near, np.float32(np.inf)), rng.standard_normal(50_000, np.float32),
         np.arange(3000, dtype=np.float32), (np.arange(100_000) / 1e5).astype(np.float32)])
    values = values[np.isfinite(values)]
    X = sp.csr_array(values[None, :])
    path = tmp_path / "values.txt"
    write_xmc(path, X, sp.csr_array((1, 1)))
    assert_same_csr(read_xmc(path)[0], X)


@pytest.mark.parametrize("value, text", [
    (0.1, "0.1"), (3, "3"), (-0.25, "-0.25"), (1e-5, "1e-05"), (2e-5, "0.00002"),
    (123456.0, "123456"), (16777216, "16777216"), (1e8, "100000000"), (0.08386, "0.08386"),
    (1e9, "1e+09"), (1e-30, "1e-30"), (-0.0, "-0"), (1 / 3, "0.33333334"),
    (999999.94, "999999.94"), (0.99999994, "0.99999994"),
    (1e-4, "0.0001"),
])
def test_values_are_written_with_the_fewest_digits(tmp_path, value, text):
    path = tmp_path / "short.txt"
    X = sp.csr_array((np.array([value], np.float32), np.array([0]), np.array([0, 1])), shape=(1, 1))
    write_xmc(path, X, np.array([0]))
    assert path.read_text() == f"1 1 1\n0 0:{text}\n"


def test_writing_in_many_chunks_gives_the_same_file(tmp_path, monkeypatch):
    X = sp.random_array((500, 40), density=0.3, format="csr", dtype=np.float32,
                        rng=np.random.default_rng(2))
    Y = sp.csr_array(np.random.default_rng(3).random((500, 7)) < 0.2, dtype=np.float32)
    whole, parts = tmp_path / "whole.txt", tmp_path / "parts.txt"
    write_xmc(whole, X, Y)
    monkeypatch.setattr("sparselsh.datasets._xmc_text._WRITE_CHUNK_BYTES", 1000)
    write_xmc(parts, X, Y)
    assert whole.read_bytes() == parts.read_bytes()


def test_write_accepts_what_converts_and_does_not_change_it(tmp_path):
    path = tmp_path / "a.txt"
    X = sp.csr_matrix((np.array([1.0, 2.0, 4.0]), np.array([1, 0, 1]), np.array([0, 3])),
                      shape=(1, 2))
    write_xmc(path, X, np.array([[0, 2.0]]))
    assert path.read_text() == "1 2 2\n1 0:2 1:5\n"
    assert X.indices.tolist() == [1, 0, 1]
    X32 = sp.csr_array((X.data.astype(np.float32), X.indices, X.indptr), shape=X.shape)
    write_xmc(path, X32, sp.coo_matrix(np.array([[True, False]])))
    assert path.read_text() == "1 2 2\n0 0:2 1:5\n" and X32.indices.tolist() == [1, 0, 1]


def test_write_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    X, Y = sp.csr_array(np.eye(2, dtype=np.float32)), np.array([0, 1])
    write_xmc(path, X, Y)
    before = path.read_bytes()

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_xmc(path, 2 * X, Y)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_write_through_a_link_keeps_the_link(tmp_path):
    target, link = tmp_path / "target.txt", tmp_path / "link.txt"
    target.write_text("old")
    link.symlink_to(target)
    write_xmc(link, np.ones((1, 1)), np.array([0]))
    assert link.is_symlink() and target.read_text() == "1 1 1\n0 0:1\n"


# ---- against scikit-learn ------------------------------------------------------------------------


@pytest.mark.parametrize("zero_based", [True, False])
def test_svmlight_files_are_read_as_by_sklearn(tmp_path, zero_based):
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    rng = np.random.default_rng(4)
    X = sp.random_array((200, 50), density=0.2, format="csr", dtype=np.float64, rng=rng)
    Y = (rng.random((200, 9)) < 0.25).astype(float)
    Y[Y.sum(axis=1) == 0, 0] = 1
    path = str(tmp_path / "a.svm")
    sklearn_datasets.dump_svmlight_file(X, Y, path, multilabel=True,
                                        zero_based=zero_based, comment="x: 1")
    want_X, want_Y = sklearn_datasets.load_svmlight_file(path, multilabel=True, dtype=np.float32)
    got_X, got_Y = read_xmc(path)
    assert_same_csr(got_X, sp.csr_array(want_X))
    assert ([tuple(got_Y.indices[a:b])
             for a, b in zip(got_Y.indptr[:-1], got_Y.indptr[1:], strict=True)]
            == [tuple(sorted(int(label) for label in labels)) for labels in want_Y])


# ---- errors -------------------------------------------------------------------------------------

BIG = 2**31 - 1
BAD_CONTENT = [
    # text, the line that the message names, what it says, and arguments of the reader
    ("", None, ["empty", "check"]),
    ("3 6 4\n0 1:1\n", 3, ["ends after 1 of the 3 rows", "copy it again"]),
    ("3 6 4", 2, ["ends after 0 of the 3 rows"]),
    ("1 6 4\n0 1:1\n0 1:1\n", 3, ["says 1 rows", "more follow", "correct the header"]),
    ("0 6 4\n0 1:1\n", 2, ["says 0 rows"]),
    ("2 6 4\n0 1:1\n0 1:1 5:", 3, ["feature '5:' has no value", "cut", "copy it again"]),
    ("2 6 4\n0 1:1\n0 1:1 5", 3, ["feature '5' has no value", "cut"]),
    ("2 6 4\n0 1:1\n0 1:1 5:1e", 3, ["value '1e' of feature '5' is not a number", "cut"]),
    ("1 6 4\n0 1:1 5:\n", 2, ["feature '5:' has no value", "write id:value"]),
    ("1 6 4\n0 1: 5:1\n", 2, ["feature '1:' has no value"]),
    ("1 6 4\n0 1:1\0\0\n", 2, [r"'1:1\x00\x00' is binary data", "text file"]),
    (b"\x1f\x8b\x08\x00\x12\x34\n", 1, ["binary data", "text file"]),
    (bytes(range(256)) * 40, 1, ["binary data"]),
    ("1 6 4\n0 -3:1\n", 2, ["feature '-3' is negative", "from 0"]),
    ("1 6 4\n-1 3:1\n", 2, ["label '-1' is negative", "from 0"]),
    ("2 6 4\n\n0 6:1\n", 3, ["feature '6' is not below n_features=6", "larger n_features"]),
    ("1 6 4\n2,4 5:1\n", 2, ["label '4' is not below n_labels=4", "larger n_labels"]),
    (f"0 {BIG}:1\n", 1, [f"feature '{BIG}' is over {BIG - 1}"]),
    (f"0 {BIG + 1}:1\n", 1, [f"feature '{BIG + 1}' is over {BIG - 1}"]),
    (f"0 {2**64 + 1}:1\n", 1, [f"feature '{2**64 + 1}' is over"]),
    (f"{2**63} 1:1\n", 1, [f"label '{2**63}' is over"]),
    (f"0 {'9' * 500}:1\n", 1, ["feature '99999999999999999999999999999...' is over"]),
    ("1 6 4\n0 3:nan\n", 2, ["value 'nan' of feature '3' is not finite", "remove"]),
    ("1 6 4\n0 3:-Inf\n", 2, ["value '-Inf' of feature '3' is not finite"]),
    ("1 6 4\n0 3:infinity\n", 2, ["not finite"]),
    ("1 6 4\n0 3:1e39\n", 2, ["value '1e39' of feature '3' is too large for float32", "scale"]),
    ("1 6 4\n0 3:3.4028235677973366e38\n", 2, ["too large"]),
    ("1 6 4\n0 3:-1e999\n", 2, ["value '-1e999' of feature '3' is too large"]),
    ("1 6 4\n0 3:" + "9" * 400 + "\n", 2, ["too large"]),
    ("1 6 4\n0 3:abc\n", 2, ["value 'abc' of feature '3' is not a number"]),
    ("1 6 4\n0 3:1_0\n", 2, ["value '1_0' of feature '3' is not a number"]),
    ("1 6 4\n0 3:1,5\n", 2, ["value '1,5' of feature '3' is not a number"]),
    ("1 6 4\n0 3:0x10\n", 2, ["value '0x10'"]),
    ("1 6 4\n0 3:1.2.3\n", 2, ["value '1.2.3'"]),
    ("1 6 4\n0 3:.\n", 2, ["value '.'"]),
    ("1 6 4\n0 3:+-1\n", 2, ["value '+-1'"]),
    ("1 6 4\n0 3:1e+\n", 2, ["value '1e+'"]),
    ("1 6 4\n0 3:" + "z" * 100 + "\n", 2, ["'" + "z" * 29 + "...'"]),
    ("1 6 4\n0 3:1:2\n", 2, ["value '1:2'"]),
    ("1 6 4\n0 x3:1\n", 2, ["feature 'x3' is no integer id"]),
    ("1 6 4\n0 3.0:1\n", 2, ["feature '3.0' is no integer id"]),
    ("1 6 4\n0 :1\n", 2, ["a feature id is missing before ':'"]),
    ("1 6 4\n0 3:1 word\n", 2, ["feature 'word' is no integer id"]),
    ("1 6 4\n0 3:1 # note\n", 2, ["feature '#' is no integer id"]),
    ("1 6 4\n0 na\u00efve:1\n", 2, [r"feature 'na\xc3\xafve' is no integer id"]),
    ("1 6 4\n1.5 3:1\n", 2, ["label '1.5' is no integer id"]),
    ("1 6 4\ncat 3:1\n", 2, ["label 'cat' is no integer id"]),
    ("1 6 4\n1,,2 3:1\n", 2, ["a label id is missing", "one comma"]),
    ("1 6 4\n1, 3:1\n", 2, ["a label id is missing"]),
    ("1 6 4\n,1 3:1\n", 2, ["a label id is missing"]),
    ("1 6 4\n1,2:1 3:1\n", 2, ["label '2:1' is no integer id"]),
    ("2 6 4\n0 3:1 1:2 4:1 1:2\n\n", 2, ["feature '1' occurs twice", "merge"]),
    ("0 3:1\n\n# 1:1\n1 3:1 4:1 3:2 # 4:1\n", 4, ["feature '3' occurs twice"]),
    ("0 qid:3 1:1\n", 1, ["'qid:3' is a query id", "remove"]),
    ("\n# nothing\n", None, ["no rows"]),
    ("-3 6 4\n", 1, ["header says n_rows='-3'", "outside 0 to"]),
    (f"3 {10**12} 4\n", 1, [f"header says n_features='{10**12}'"]),
    ("3 4 -1\n", 1, ["header says n_labels='-1'"]),
    (f"{10**12} 6 4\n0 1:1\n", 3, [f"after 1 of the {10**12} rows"]),
    (f"{'9' * 150} 6 4\n0 1:1\n", 1, ["header says n_rows='99999"]),
    ("0 1:1\n", 1, ["header '0 1:1' is not 'n_rows n_features n_labels'", "svmlight"],
     {"format": "xmc"}),
    ("2 6\n", 1, ["header '2 6'"], {"format": "xmc"}),
    ("2 6 4 1\n", 1, ["header '2 6 4 1'"], {"format": "xmc"}),
    ("2 6 4.0\n", 1, ["header '2 6 4.0'"], {"format": "xmc"}),
    ("1 6 4\n2 5:1\n", 2, ["feature '5' is not below n_features=5"], {"n_features": 5}),
    ("1 6 4\n3 5:1\n", 2, ["label '3' is not below n_labels=3"], {"n_labels": 3}),
    ("0 0:1\n1 2:1\n", 2, ["feature '2' is not below n_features=2"], {"n_features": 2}),
    ("0 1:1\n1 4:1\n", 2, ["feature '4' is not below n_features="], {"n_features": 2}),
]


@pytest.mark.parametrize("text, line, says, arguments", [(*case, {})[:4] for case in BAD_CONTENT])
def test_bad_content_is_refused_with_its_line(write, text, line, says, arguments):
    path = write(text)
    with pytest.raises(FileFormatError) as caught:
        read_xmc(path, **arguments)
    error, message = caught.value, str(caught.value)
    assert error.path == str(path) and error.line == line
    assert message.startswith(repr(str(path)) + (f", line {line}: " if line else ": "))
    assert "\n" not in message and len(message) < len(str(path)) + 200
    for part in says:
        assert part in message
    assert str(pickle.loads(pickle.dumps(error))) == message


@pytest.mark.parametrize("cut", range(len(XMC) - 1))
def test_a_truncated_file_is_refused_or_lacks_only_digits(write, cut):
    text = XMC[: -len("2\n")] + "2 1:0.25\n"
    try:
        X, _ = read_xmc(write(text[:cut]), format="xmc")
    except FileFormatError:
        return
    assert cut >= len(text) - 5 and X.shape == (3, 6)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture],
          deadline=None)
@given(junk=st.binary(max_size=80) | st.text("0123456789:., -+e#\n\r\t",
                                             max_size=80).map(str.encode),
       start=st.sampled_from([b"", b"2 9 9\n", b"0 1:1\n"]),
       format=st.sampled_from(["auto", "xmc", "svmlight"]))
def test_random_bytes_raise_at_worst_an_error(write, junk, start, format):
    try:
        X, Y = read_xmc(write(start + junk), format=format)
    except FileFormatError:
        return
    for matrix in (X, Y):
        matrix.check_format(full_check=True)
        assert np.isfinite(matrix.data).all()
        plain = sp.csr_array((matrix.data, matrix.indices, matrix.indptr), shape=matrix.shape)
        assert plain.has_canonical_format  # computed by scipy, not taken from the reader's flag


def test_missing_files_and_directories_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.txt' does not exist; check the path"):
        read_xmc(tmp_path / "nothing.txt")
    with pytest.raises(IsADirectoryError, match="is a directory; give the path of a file"):
        read_xmc(tmp_path)
    with pytest.raises(FileNotFoundError, match="none' is no directory; create it"):
        write_xmc(tmp_path / "none" / "a.txt", np.ones((1, 1)), np.array([0]))
    with pytest.raises(IsADirectoryError, match="is a directory"):
        write_xmc(tmp_path, np.ones((1, 1)), np.array([0]))


@pytest.mark.parametrize("arguments, exception, says", [
    ({"format": "csv"}, ValueError, "format='csv' is unknown; give 'auto', 'xmc' or 'svmlight'"),
    ({"n_features": -1}, ValueError, "n_features must be at least 0, got -1"),
    ({"n_labels": 2**31}, ValueError,
     "n_labels must be at least 0 and at most 2147483647, got 2147483648"),
    ({"n_labels": 2.0}, TypeError, "n_labels must be an integer, got 2.0"),
    ({"n_features": True}, TypeError, "n_features must be an integer, got True"),
])
def test_bad_arguments_of_read_are_refused(write, arguments, exception, says):
    with pytest.raises(exception, match=says):
        read_xmc(write(XMC), **arguments)


@pytest.mark.parametrize("X, Y, arguments, exception, says", [
    (np.ones((2, 3)), np.array([1]), {}, ValueError, r"X has shape \(2, 3\) and Y \(1, 2\)"),
    (np.ones(3), np.array([1]), {}, ValueError, r"X has shape \(3,\)"),
    (np.array([[1.0], [np.nan]]), np.array([0, 1]), {}, ValueError, "X holds NaN.* in row 1"),
    (np.array([[1e39]]), np.array([0]), {}, ValueError, "too large for float32 in row 0"),
    (np.ones((1, 1)), np.array([-1]), {}, ValueError, "Y holds the class id -1"),
    (np.ones((1, 1)), np.array([0.5]), {}, TypeError, "Y has dtype float64"),
    (np.ones((1, 1)), np.array(["a"]), {}, TypeError, "Y has dtype <U1"),
    (np.ones((1, 1)), np.ones((1, 1, 1)), {}, ValueError, r"Y has shape \(1, 1, 1\)"),
    (np.ones((1, 1)), np.array([0]), {"format": "csv"}, ValueError, "format='csv' is unknown"),
    (np.zeros((1, 1)), np.zeros((1, 1)), {"format": "svmlight"}, ValueError, "row 0 has neither"),
])
def test_bad_arguments_of_write_are_refused(tmp_path, X, Y, arguments, exception, says):
    with pytest.raises(exception, match=says):
        write_xmc(tmp_path / "a.txt", X, Y, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_count_over_blocks():
    text = b"\n::,,," * 1000
    assert _parse.count(text) == (1000, 2000, 3000)
    assert _parse.count(b"") == (0, 0, 0)


def test_the_format_before_xz_is_refused(tmp_path):
    # its header has no checksum and may ask for more memory than there is
    path = tmp_path / "rows.txt.xz"
    path.write_bytes(lzma.compress(b"1 1 1\n0 0:1\n", format=lzma.FORMAT_ALONE))
    with pytest.raises(FileFormatError, match="compressed data is damaged"):
        read_xmc(path)
