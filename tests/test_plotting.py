"""Plots show the numbers they are given; every object has an HTML form for notebooks."""
import builtins
from html.parser import HTMLParser

import numpy as np
import pytest
from support import clustered

import sparselsh as sl
from sparselsh import _display
from sparselsh import callbacks as cb

HISTORY = [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.5, "val_loss": 1.7, "p_at_1": 0.4},
           {"epoch": 3, "loss": 1.0, "val_loss": 1.6, "p_at_1": 0.5}]


@pytest.fixture
def plt():
    """Pyplot with a backend that draws into memory; figures are closed at the end."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    yield plt
    plt.close("all")


def lines(ax):
    return {line.get_label(): (list(line.get_xdata()),
                               list(line.get_ydata())) for line in ax.get_lines()}


def test_a_history_is_plotted_by_epoch(plt):
    net = sl.Network([sl.Linear(2, 2)])
    net.history = HISTORY
    ax = net.plot_history()
    right = next(other for other in ax.figure.axes if other is not ax)
    assert lines(ax) == {"training loss": ([1, 2, 3], [2.0, 1.5, 1.0]),
                         "validation loss": ([2, 3], [1.7, 1.6])}
    assert lines(right) == {"P@1 of validation": ([2, 3], [0.4, 0.5])}
    assert ax.get_xlabel() == "epoch" and ax.get_ylabel() == "loss" and right.get_ylabel() == "P@1"
    assert len(ax.get_legend().get_texts()) == 3
    assert not {text.get_text() for text in ax.get_xticklabels()} & {"1.5", "2.5"}
    ax.figure.canvas.draw()  # drawing raises no error


def test_given_axes_are_used(plt):
    _, ax = plt.subplots()
    assert _display.plot_history(HISTORY[:1], ax) is ax
    assert (len(plt.get_fignums()) == 1
            and len(ax.figure.axes) == 1), "without P@1 there is no right axis"


def test_a_recall_curve_rises_to_one(plt, rng):
    W, Q = clustered(rng, n=5000, d=32)
    index = sl.LSHIndex(sl.SimHash(6, 8), random_state=0, plan="sketches",
                        scaling=0).fit(W, queries=Q)
    n, recall = lines(index.plot_recall(Q, k=3))["scan of sketches"]
    assert n[0] == 3 and n == sorted(n) and recall[0] < recall[-1] and recall[-1] >= 0.99
    trials = lines(index.plot_recall())["scan of sketches"]
    assert sorted(trials[0]) == sorted(trial["n_candidates"] for trial in index.report()["trials"])
    assert f"wanted: {index.recall:.1%}" in lines(index.plot_recall())


def test_objects_without_data_to_plot_are_refused(plt, rng):
    with pytest.raises(ValueError, match="no history to plot; call fit"):
        sl.Network([sl.Linear(2, 2)]).plot_history()
    W = rng.standard_normal((50, 4))
    with pytest.raises(ValueError, match="no neurons yet"):
        sl.LSHIndex().plot_recall()
    with pytest.raises(ValueError, match="no trials to plot; give queries"):
        sl.LSHIndex().fit(W).plot_recall()
    with pytest.raises(ValueError, match="sketch_bits is 0"):
        sl.LSHIndex(sl.SimHash(), sketch_bits=0).fit(W).plot_recall(W)
    with pytest.raises(ValueError, match="queries must have at least one row"):
        sl.LSHIndex().fit(W).plot_recall(W[:0])


@pytest.mark.parametrize("module, line, act", [
    ("matplotlib", r'pip install "sparselsh-nn\[plot\]"', lambda: _display.plot_history(HISTORY)),
    ("sklearn", r'pip install "sparselsh-nn\[sklearn\]"',
     lambda: __import__("importlib").import_module(
        "sparselsh.estimators")),
])
def test_a_missing_extra_gives_the_install_command(module, line, act, monkeypatch):
    import sys

    for name in [name for name in sys.modules if name.split(".")[0] == module
                 or name.startswith("sparselsh.estimators")]:
        monkeypatch.delitem(sys.modules, name)
    real = builtins.__import__

    def missing(name, *args, **options):
        if name.split(".")[0] == module:
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=line):
        act()


# ---- notebooks


class Cells(HTMLParser):
    """Collect the text and check that every tag that is opened is closed."""

    def __init__(self, html):
        super().__init__()
        self.open, self.texts = [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def fitted_network():
    net = sl.Network([sl.Linear(4, 8, activation="relu"), sl.LSHLinear(8, 40, density=0.5)],
                     random_state=0)
    return net.fit(np.eye(4), [0, 1, 2, 3], epochs=1, verbose=False,
                   validation=(np.eye(4), [0, 1, 2, 3]))


@pytest.mark.parametrize("make, texts", [
    (lambda: sl.Network([sl.Linear(4000, 8)]), ["4,000 → 8", "no weights yet", "32,008"]),
    (fitted_network, ["20 active, one set per batch", "360", "relu"]),
    (lambda: sl.Linear(3, 4), ["Linear", "n_in", "3"]),
    (lambda: sl.LSHLinear(3, 4), ["density", "auto"]),
    (lambda: sl.Adam(0.5), ["Adam", "lr", "0.5", "betas"]), (lambda: sl.SGD(), ["momentum"]),
    (lambda: sl.SimHash(bits=3), ["SimHash", "bits", "3"]), (lambda: sl.DWTA(), ["DWTA"]),
    (lambda: sl.CrossPolytope(), ["tables"]), (lambda: sl.MinHash(), ["hashes"]),
    (lambda: sl.LSHIndex(), ["LSHIndex, not fitted"]),
    (lambda: sl.LSHIndex(random_state=0).fit(np.eye(5)), ["5 x 5", "neurons", "candidates"]),
    (lambda: cb.EarlyStopping(), ["patience", "3"]),
    (lambda: cb.Checkpoint("<a>"), ["every_steps"]),
    (lambda: cb.Log("a.csv"), ["path"]), (lambda: cb.BestModel("a"), ["monitor"]),
    (lambda: cb.StopOnInterrupt(), ["StopOnInterrupt"]),
], ids=lambda value: "" if callable(value) else value[0])
def test_objects_are_shown_as_html_tables(make, texts):
    shown = Cells(make()._repr_html_()).texts
    for text in texts:
        assert text in shown or any(text in cell for cell in shown)


def test_the_html_of_a_file_shows_its_size(tmp_path):
    sl.datasets.write_csr(tmp_path / "rows.csr", np.eye(3), [0, 1, 2])
    with sl.datasets.open_csr(tmp_path / "rows.csr") as file:
        assert "3" in Cells(file._repr_html_()).texts
    assert "(closed)" in file._repr_html_()


def test_html_is_escaped():
    assert ("<b>" not in _display.table("<b>", [("<b>", "&")])
            and "&amp;" in _display.table("", [("&",)]))


@pytest.mark.parametrize("n, text",
                         [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (2.5e6, "2.5 MB"),
                          (3e12, "3000.0 GB")])
def test_sizes_are_readable(n, text):
    assert _display.size(n) == text


@pytest.mark.parametrize("callback", [
    cb.EarlyStopping(patience=2), cb.BestModel("/m"), cb.Checkpoint("/c", every_steps=3),
    cb.Log("/l.csv"), cb.StopOnInterrupt()], ids=repr)
def test_the_repr_of_a_callback_recreates_it(callback):
    again = eval(repr(callback), vars(cb).copy())
    assert repr(again) == repr(callback)
