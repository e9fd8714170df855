"""Training on rows that are not all in memory: chunks, and windows of a file."""
import itertools
import re
import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp
from support import assert_same_bits

import sparselsh as sl
from sparselsh.datasets import open_csr, write_csr
from sparselsh.training import _batches

N_FEATURES, N_LABELS, N = 20, 80, 130


def network(**options):
    layers = [sl.Linear(N_FEATURES, 16), sl.LSHLinear(16, N_LABELS, density=0.2)]
    return sl.Network(layers, random_state=0, **options)


@pytest.fixture(params=["dense", "sparse"])
def data(request, rng):
    X = rng.standard_normal((N, N_FEATURES), np.float32)
    X[rng.random(X.shape) < 0.5] = 0
    Y = sp.csr_array((rng.random((N, N_LABELS)) < 0.03).astype(np.float32))
    return (sp.csr_array(X) if request.param == "sparse" else X), Y


@pytest.fixture
def file(tmp_path, data):
    write_csr(tmp_path / "rows.csr", sp.csr_array(data[0]), data[1])
    with open_csr(tmp_path / "rows.csr") as file:
        yield file


def cut(X, Y, size):
    return [(X[i:i + size], Y[i:i + size]) for i in range(0, X.shape[0], size)]


class Again:
    """An iterable of chunks that starts anew for each epoch."""

    def __init__(self, chunks):
        self.chunks, self.n_starts = chunks, 0

    def __iter__(self):
        self.n_starts += 1
        return iter(self.chunks)


class AgainWithLength(Again):
    def __len__(self):
        return len(self.chunks)


def assert_same_network(a, b):
    for one, other in zip(a.layers, b.layers, strict=True):
        assert_same_bits(one.weight, other.weight)
        assert_same_bits(one.bias, other.bias)


def fit(net, X, Y=None, **options):
    return net.fit(X, Y, **({"epochs": 2, "batch_size": 16, "verbose": False} | options))


# ---- the same results as from memory


@pytest.mark.parametrize("size", [1, 7, 16, 50, 129, 130, 500])
def test_chunks_train_the_same_network_as_the_whole_arrays(data, size):
    whole = fit(network(), *data, shuffle=False)
    for chunks in (cut(*data, size), tuple(cut(*data, size))):
        parts = fit(network(), chunks, shuffle=False)
        assert_same_network(whole, parts)
        assert [e["loss"] for e in parts.history] == [e["loss"] for e in whole.history]
        assert [e.keys() for e in parts.history] == [e.keys() for e in whole.history]


@pytest.mark.parametrize("kind", [Again, AgainWithLength])
def test_iterables_of_chunks_train_the_same_network_as_the_whole_arrays(data, kind):
    chunks = kind(cut(*data, 9))
    # a schedule would use an estimate in the first epoch
    optimizer = [sl.Adam(1e-2), sl.Adam(1e-2)]
    whole = fit(network(), *data, shuffle=False, optimizer=optimizer[0])
    assert_same_network(whole, fit(network(), chunks, shuffle=False, optimizer=optimizer[1]))
    assert chunks.n_starts == 2, "once per epoch"


@pytest.mark.parametrize("window", [1, 7, 50, 130, 1000])
def test_a_file_trains_the_same_network_as_its_matrices(file, window):
    X, Y = file[:]
    whole = fit(network(), X, Y, shuffle=False)
    assert_same_network(whole, fit(network(), file, shuffle=False, window=window))


def test_a_window_that_holds_the_whole_file_shuffles_the_whole(file):
    assert_same_network(fit(network(), *file[:]), fit(network(), file))
    assert_same_network(fit(network(), *file[:]), fit(network(), [file[:]]))


def test_partial_fit_takes_chunks_and_files(data, file):
    X, Y = data
    whole = network().partial_fit(X, Y, batch_size=16)
    assert_same_network(whole, network().partial_fit(iter(cut(X, Y, 9)), batch_size=16))
    X, Y = file[:]
    assert_same_network(network().partial_fit(X, Y, batch_size=16),
                        network().partial_fit(file, batch_size=16))


def test_chunks_without_rows_are_skipped(data):
    X, Y = data
    chunks = [(X[:0], Y[:0]), *cut(X, Y, 40), (X[:0], Y[:0])]
    assert_same_network(fit(network(), X, Y, shuffle=False), fit(network(), chunks, shuffle=False))


def test_a_generator_is_enough_for_one_epoch(data):
    X, Y = data
    net = fit(network(), (chunk for chunk in cut(X, Y, 40)), epochs=1, validation=(X, Y))
    assert len(net.history) == 1 and "p_at_1" in net.history[0]
    assert net.history[0]["samples_per_second"] > 0


# ---- shuffling


def rows_of(blocks, batch_size, rng):
    """Return the row numbers of each batch."""
    return [x.data.astype(int).tolist() for x, _, _ in _batches.batches(blocks, batch_size, rng)]


@pytest.mark.parametrize("size", [1, 10, 33, 100, 1000])
@pytest.mark.parametrize("batch_size", [1, 8, 100, 300])
def test_every_row_occurs_once_per_epoch_in_a_new_order(tmp_path, size, batch_size, rng):
    write_csr(tmp_path / "rows", sp.csr_array(np.arange(1, 101)[:, None]), np.zeros(100, int))
    source = _batches.source_of(open_csr(tmp_path / "rows"), None, size, 2, None)
    epochs = [rows_of(source.blocks(), batch_size, rng) for _ in range(2)]
    for batches in epochs:
        rows = list(itertools.chain(*batches))
        assert sorted(rows) == list(range(1, 101))
        assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
        # a row stays in its window
        assert [(row - 1) // size for row in rows] == [place // size for place in range(100)]
    assert (epochs[0] != epochs[1]) == (size > 1)


def test_shuffling_depends_only_on_the_seed(data, file):
    for X in (cut(*data, 40), file):
        assert_same_network(fit(network(), X, window=40), fit(network(), X, window=40))


# ---- schedules and progress


def rates(X, Y=None, **options):
    """Return the progress values at which a schedule was called in training."""
    called = []
    fit(network(), X, Y, optimizer=sl.Adam(1e-2, schedule=lambda t: called.append(t) or 1.0),
        **options)
    return called


def test_the_schedule_uses_what_is_known_of_the_number_of_rows(data, file):
    want = rates(*data)  # 9 batches per epoch
    assert want == pytest.approx(np.arange(18) / 18)
    assert rates(file, window=30) == want
    assert rates(cut(*data, 40)) == want
    # unknown until the last chunk, of which the ninth batch is the rest
    assert rates(Again(cut(*data, 40))) == [0] * 8 + want[8:]
    # with a length the number is estimated from the chunks so far: 4 of 40 rows are
    # 160, but there are 130
    estimated = rates(AgainWithLength(cut(*data, 40)))
    assert estimated[9:] == want[9:]
    assert estimated[:7] == pytest.approx(np.arange(7) / 20)
    assert all(0 <= t <= 0.5 for t in estimated[:9])


@pytest.mark.parametrize("form", ["list", "unknown", "length", "file"])
def test_the_progress_bar_counts_rows(terminal, data, file, form):
    chunks = cut(*data, 40)
    X = {"list": chunks, "unknown": Again(chunks), "length": AgainWithLength(chunks),
         "file": file}[form]
    net = fit(network(), X, verbose=True)
    lines = re.split("[\r\n]", terminal.readouterr().err)
    for number, entry in enumerate(net.history, 1):
        last = [line for line in lines if line.startswith(f"epoch {number}/2")][-1]
        assert f"loss={entry['loss']:.3f}" in last
        assert ("130/130" in last) or (form == "unknown" and number == 1 and "130 samples" in last)


# ---- memory


def test_training_on_a_file_holds_one_window_in_memory(tmp_path, rng):
    n, width = 40_000, 50

    def chunks():
        for _ in range(10):
            indices = np.tile(np.arange(width, dtype=np.int32), n // 10)
            values = rng.standard_normal(len(indices), np.float32)
            yield (sp.csr_array((values, indices, np.arange(0, len(indices) + 1, width)),
                                shape=(n // 10, 60)),
                   rng.integers(0, 10, n // 10))

    write_csr(tmp_path / "rows", chunks(), n_labels=10)
    net = sl.Network([sl.Linear(60, 4), sl.Linear(4, 10)], random_state=0)
    peaks = {}
    for window in (500, 5000):
        with open_csr(tmp_path / "rows") as file:
            tracemalloc.start()
            net.fit(file, epochs=1, window=window, verbose=False)
            peaks[window] = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
    # a row has 400 bytes; a window is held together with copies of parts and with batches
    size = (tmp_path / "rows").stat().st_size
    assert size > 16e6
    assert peaks[500] < 2e6 and peaks[5000] < 3 * 5000 * 400


def test_training_on_chunks_holds_two_of_them_in_memory(rng):
    def chunks():
        for _ in range(20):
            yield rng.standard_normal((5000, 50), np.float32), rng.integers(0, 10, 5000)

    net = sl.Network([sl.Linear(50, 4), sl.Linear(4, 10)], random_state=0)
    tracemalloc.start()
    net.fit(chunks(), epochs=1, verbose=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3.5 * 5000 * 50 * 4  # 20 MB in all


# ---- errors


X2, Y2 = np.ones((2, N_FEATURES), np.float32), np.array([0, 1])


@pytest.mark.parametrize("X, Y, options, error, says", [
    (iter([(X2, Y2)]), None, {}, ValueError,
     r"X is an iterator.*epochs=2.*__iter__ starts anew, or epochs=1"),
    ([], None, {}, ValueError, "X gave no chunks"),
    ([(X2[:0], Y2[:0])], None, {}, ValueError, "X must have at least one row"),
    (Again([(X2[:0], Y2[:0])]), None, {}, ValueError, "X gave no rows"),
    (X2, None, {}, TypeError, "Y is missing, and X, ndarray,"),
    (sp.csr_array(X2), None, {}, TypeError, "Y is missing, and X, csr_array,"),
    ("rows.csr", None, {}, TypeError, "Y is missing, and X, str,.*open_csr"),
    (7, None, {}, TypeError, "Y is missing, and X, int,"),
    ((X2, Y2), None, {}, TypeError, "pairs .* got ndarray as chunk 0; give Y, or chunks as tuples"),
    ([(X2, Y2), (X2,)], None, {}, TypeError, "got tuple as chunk 1"),
    ([(X2, Y2), (X2[:, 1:], Y2)], None, {}, ValueError,
     "X of chunk 1 must have 20 features, got 19"),
    ([(X2, Y2), (X2, Y2[1:])], None, {}, ValueError,
     "Y of chunk 1 must have as many rows as X of chunk 1"),
    ([(X2, Y2), (X2 * np.nan, Y2)], None, {}, ValueError, "X of chunk 1 must be finite"),
    ([(X2, Y2), (X2, Y2 + 99)], None, {}, ValueError, r"Y of chunk 1 must lie in 0\.\.79, got 100"),
    ([(X2, Y2), (sp.csr_array(X2), Y2)], None, {}, TypeError,
     "X of chunk 1 must be dense as in chunk 0"),
    ([(sp.csr_array(X2), Y2), (X2, Y2)], None, {}, TypeError,
     "X of chunk 1 must be sparse as in chunk 0"),
    (X2, Y2, {"window": 0}, ValueError, "window must be at least 1"),
    (X2, Y2, {"window": 2.5}, TypeError, "window must be an integer"),
])
def test_bad_chunks_and_windows_are_refused(X, Y, options, error, says):
    with pytest.raises(error, match=says):
        fit(network(), X, Y, **options)


def test_an_iterable_that_does_not_start_anew_is_refused(data):
    class Once:
        def __init__(self, chunks):
            self.iterator = iter(chunks)

        def __iter__(self):
            yield from self.iterator

    with pytest.raises(ValueError, match="X gave no rows; its __iter__ must start anew"):
        fit(network(), Once(cut(*data, 40)))


def test_a_file_that_does_not_fit_the_network_is_refused(tmp_path):
    write_csr(tmp_path / "rows", np.ones((2, 3)), [0, 1])
    with open_csr(tmp_path / "rows") as file:
        with pytest.raises(ValueError, match=r"X must have 20 features, got 3 in '.*rows'"):
            fit(network(), file)
        with pytest.raises(ValueError, match=r"X must have 7 labels, got 2"):
            fit(sl.Network([sl.Linear(3, 7)]), file)
        with pytest.raises(ValueError, match="Y must be None where X is a CSR file"):
            fit(network(), file, [0, 1])


def test_an_error_in_a_chunk_reaches_the_caller(data):
    def chunks():
        yield cut(*data, 40)[0]
        raise KeyError("the source is gone")

    with pytest.raises(KeyError, match="the source is gone"):
        fit(network(), chunks(), epochs=1, verbose=True)
