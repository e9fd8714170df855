"""Calibration: from scores and their ranks to probabilities that can be believed.

The outputs of a network rank labels; they are no probabilities. A softmax that was trained on few
rows is too sure of itself, for several labels per row it adds up to 1 where the labels do not, and
the classifiers of a refinement are trained on margins. A `Calibration` is a map from the scores of
the best labels of a row, and their ranks, to probabilities; it is fitted on rows that the training
did not see (:meth:`Network.calibrate <sparselsh.Network.calibrate>`). It keeps the order: the label
with the larger score has the larger probability.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from . import _validation as check
from ._arrays import portable
from ._arrays.csr import from_scipy
from ._arrays.scipy import sp
from ._core import _calibration
from ._display import axes
from .metrics import calibration_curve

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike
    from scipy.sparse import csr_array

    from ._arrays.csr import CSR
    from ._arrays.selection import Selection
    from ._arrays.types import Floats, Ids, MatrixLike
    from .losses import Loss

__all__ = ["Calibration", "calibrate", "plot_reliability"]

MIN_RANKED, MAX_RANKED = 50, 500  # labels per row with probabilities of their own
RANKED_PER_LABEL = 3  # times the number of labels of a row that has many
N_SEGMENTS = 4  # of the piecewise linear map of the gaps between scores
MAX_FEATURE = 3.0  # standard deviations at which the features of a row are cut off
MAX_LOG = 50.0  # of a slope or an odds
PENALTY = 10.0  # of the squared parameters, in rows: few rows leave the map near a temperature
MIN_RIDGE = 1e-6  # of the inputs of a row, some of which may be the same in all rows
MIN_FIT_ROWS = 20
# On other rows the log-loss is no higher than after 100 (docs/log/accuracy.md).
MAX_ITERATIONS = 30
TAIL_ROWS = 512  # rows whose outputs are all computed, to fit how the rest is distributed
MAX_TAIL_OUTPUTS = 1 << 25  # of these rows together
TAIL_SLOPES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
UNIFORM_SHARES = (0.01, 0.05, 0.2, 1.0)
SMALLEST_THRESHOLD = 1e-6
MIN_POSITIVES = 8  # rows with a label, from which on it may have a threshold of its own
FREQUENCY_SLOPES = (0.1, 0.2, 0.3, 0.4)  # of the log odds of a threshold, by the log of a frequency
CHANCE_GAIN = 0.2  # of F1, over the root of the number of labels: less does not choose a slope


class Calibration:
    """Probabilities of labels from the scores of a network.

    The scores of a row, best first, are ``s_1 >= s_2 >= ...``. The gap of the label of rank r is
    ``d_r = s_1 - s_r``, and ``g_r = -t(u) phi(d_r) - c(r)`` its *log odds against the best label*:
    phi is piecewise linear and increasing, c depends on the rank, and t > 0 is a temperature that
    depends on what tells how sure a row is, u: its best score, its gaps to the second and to the
    next labels, and how many labels are close. Then

    - for classes, one per row: ``p_r = exp(g_r) / (sum_r exp(g_r) + rest)``, a softmax;
    - for labels, any number per row: ``p_r = 1 / (1 + exp(-(b(u) + g_r)))``, a sigmoid each. The
      log odds of the best label are corrected once more, by fifths of the rows.

    Where a label would get a larger probability than one with a larger score, both get the mean.
    The labels beyond the first `n_ranked` share the rest: the probability that the class is among
    them, or the expected number of labels among them, both a function of u. It is divided in
    proportion to a mixture of ``exp(slope s_j)`` and a constant, and none of them gets more than
    the last ranked label. All parameters minimize the negative log-likelihood of the rows of the
    fit, with a small ridge penalty; with phi linear, c = 0 and t constant this is temperature
    scaling [1]_.

    Attributes
    ----------
    kind : {"classes", "labels"}
        One class per row, or any number of labels.
    n_labels, n_ranked : int
        Number of labels of the network, and of labels per row with probabilities of their own.
    threshold : float or ndarray of shape (n_labels,), float32
        For labels: the probability from which on a label is predicted; it maximizes the
        micro-averaged F1 of the rows of the fit, as a whole or per label. Can be set.
    n_rows : int
        Number of rows of the fit.

    References
    ----------
    .. [1] C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv:1706.04599,
       section 4.2.
    """

    def __init__(self, kind: str, n_labels: int, n_ranked: int, parameters: dict[str, list[float]],
                 threshold: float | np.ndarray, n_rows: int) -> None:
        self.kind = check.choice(kind, "kind", ("classes", "labels"))
        self.n_labels = check.integer(n_labels, "n_labels")
        self.n_ranked = check.integer(n_ranked, "n_ranked", maximum=self.n_labels)
        self.n_rows = check.integer(n_rows, "n_rows", minimum=0)
        self._parameters = {
            name: _finite(parameters[name], name, size) for name, size in _SIZES.items()}
        self.threshold = threshold
        self._prepared: Any = None  # the parameters as the kernel takes them

    @property
    def threshold(self) -> float | np.ndarray:
        return self._threshold

    @threshold.setter
    def threshold(self, threshold: float | ArrayLike) -> None:
        if np.ndim(threshold) == 0:
            self._threshold: float | np.ndarray = check.number(threshold, "threshold", above=0,
                                                               maximum=1)
            return
        self._threshold = check.thresholds(threshold, self.n_labels)

    # -- probabilities ---------------------------------------------------------------------------

    def ranked(self, scores: Floats) -> Floats:
        """Probabilities of the best labels of each row.

        Parameters
        ----------
        scores : ndarray of shape (n_rows, n_ranked), float32
            Best first, as of :meth:`Network.topk <sparselsh.Network.topk>`; -inf for none.

        Returns
        -------
        ndarray of shape (n_rows, n_ranked), float32
            Strictly decreasing in each row as far as they are above 0; 0 for none.
        """
        return self._ranked(scores)[0]

    def _ranked(self, scores: Floats) -> tuple[Floats, np.ndarray]:
        """Probabilities of the ranked labels, and the rest of each row."""
        if scores.ndim != 2 or scores.shape[1] != self.n_ranked:
            raise ValueError(f"scores must have the shape (n_rows, {self.n_ranked}), got "
                             f"{scores.shape}; take topk of {self.n_ranked}")
        scores = np.ascontiguousarray(scores, np.float32)
        out, rest = np.empty(scores.shape, np.float32), np.empty(len(scores))
        _calibration.ranked(self.prepared(), scores, out, rest)
        return out, rest

    def prepared(self) -> Any:
        """The parameters as the kernels take them."""
        if self._prepared is None:
            p = self._parameters
            self._prepared = _calibration.prepare(
                p["knots"], p["location"], p["spread"], p["temperature"], p["slopes"], p["rank"],
                RANK_STEPS_AS_FLOATS, p["best"], p["rest"], p["first_at"], p["first_shift"],
                self.kind == "classes", self.n_labels, self.n_ranked)
        return self._prepared

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_prepared": None}

    def every(self, ids: Ids, scores: Floats, all_scores: Floats) -> Floats:
        """Probabilities of all labels, which overwrite `all_scores`.

        Parameters
        ----------
        ids : ndarray of shape (n_rows, n_ranked), int32
        scores : ndarray of shape (n_rows, n_ranked), float32
            The best labels, as for `ranked`, and their scores.
        all_scores : ndarray of shape (n_rows, n_labels), float32
            Scores of all labels.

        Returns
        -------
        ndarray of shape (n_rows, n_labels), float32
        """
        values, rest = self._ranked(scores)
        out = all_scores
        found = ids >= 0
        if self.n_ranked < self.n_labels:
            slope, uniform = self._parameters["tail"]
            n_found = found.sum(axis=1)
            last = np.where(found, scores, np.inf).min(axis=1, initial=np.inf)
            last[n_found == 0] = 0
            out -= last[:, None]
            np.minimum(out, 0, out=out)
            out *= np.float32(slope)
            portable.exp(out)
            _put(out, ids, found, np.zeros_like(values))

            n_tail = self.n_labels - n_found
            out *= np.float32(1 - uniform) / np.maximum(out.sum(axis=1), 1e-30)[:, None]
            out += (uniform / np.maximum(n_tail, 1)).astype(np.float32)[:, None]
            _put(out, ids, found, np.zeros_like(values))
            limit = np.where(n_found == self.n_ranked, values[:, -1], 1.0)
            self._divide(out, rest, limit, n_tail)
        _put(out, ids, found, values)
        return out

    def labels_above(self, ids: Ids, scores: Floats, limits: Floats,
                     every: Callable[[np.ndarray], Floats]) -> csr_array:
        """The labels whose probability reaches the limit of the label.

        Parameters
        ----------
        ids : ndarray of shape (n_rows, n_ranked), int32
        scores : ndarray of shape (n_rows, n_ranked), float32
            The best labels, as for `ranked`, and their scores.
        limits : ndarray of shape (n_labels,), float32
        every : callable
            Gives the probabilities of all labels for some of the rows: those in which labels that
            are not ranked may reach a limit.

        Returns
        -------
        csr_array of shape (n_rows, n_labels), float32
            The probabilities of these labels, sorted by label in each row.
        """
        n = len(ids)
        # labels that are not ranked have at most the probability of the last that is
        p = self.ranked(scores)
        rows, ranks = np.nonzero((ids >= 0) & (p >= limits[ids]))
        columns = ids[rows, ranks]
        order = np.lexsort((columns, rows))
        indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n))])
        found = sp.csr_array((p[rows, ranks][order], columns[order], indptr),
                             shape=(n, self.n_labels))

        wide = np.flatnonzero(p[:, -1] >= limits.min())
        if not len(wide) or self.n_ranked == self.n_labels:
            return found
        place = np.arange(n)
        place[wide] = n + np.arange(len(wide))
        return sp.vstack([found, entries_above(every(wide), limits)], format="csr")[place]

    @staticmethod
    def _divide(shares: Floats, rest: np.ndarray, limit: np.ndarray, n_tail: np.ndarray) -> None:
        """Give each share its part of the rest, none more than the limit of its row."""
        n_tail = np.maximum(n_tail, 1)
        rest = np.minimum(rest, limit * n_tail)
        largest = shares.max(axis=1) * rest
        flat = rest / n_tail
        # a mixture of the shares and of equal ones, whose largest is the limit
        mixed = np.divide(limit - flat, largest - flat, out=np.ones_like(flat),
                          where=largest > limit)
        mixed = np.clip(mixed, 0, 1)
        shares *= (rest * mixed).astype(np.float32)[:, None]
        shares += (flat * (1 - mixed)).astype(np.float32)[:, None]
        np.minimum(shares, limit.astype(np.float32)[:, None], out=shares)

    # -- files -----------------------------------------------------------------------------------

    @classmethod
    def from_config(cls, config: dict[str, Any], n_labels: int) -> Calibration:
        """The calibration of a file, of a network with n_labels labels; ValueError if damaged."""
        if config["n_labels"] != n_labels:
            raise ValueError(f"the calibration is of {config['n_labels']} labels, the network has "
                             f"{n_labels}")
        return cls(**config)

    def config(self) -> dict[str, Any]:
        """The plain values, for a file; `threshold` is a list where labels have their own."""
        threshold = self._threshold
        return {"kind": self.kind, "n_labels": self.n_labels, "n_ranked": self.n_ranked,
                "parameters": {name: [float(v) for v in values]
                               for name, values in self._parameters.items()},
                "threshold": threshold if isinstance(threshold, float) else threshold.tolist(),
                "n_rows": self.n_rows}

    def __repr__(self) -> str:
        threshold = "" if self.kind == "classes" else ", threshold=" + (
            f"{self.threshold:.3g}" if isinstance(self.threshold, float) else "one per label")
        return (f"Calibration(kind={self.kind!r}, n_ranked={self.n_ranked}, "
                f"n_rows={self.n_rows}{threshold})")


# -- the map -------------------------------------------------------------------------------------

RANK_STEPS = (1, 2, 3, 5)  # after which the log odds may jump
RANK_STEPS_AS_FLOATS = np.array(RANK_STEPS, np.float64)
# By how much they may rise there, where a row has several labels: of two labels with almost the
# same score the first is often true no more than the second. Both then get the mean.
MIN_STEP = -0.5
N_FIRST = 5  # parts of the rows by which the best label is corrected
PRIOR_ROWS = 100  # that are right as often as expected, added to each part
SMALLEST_RATE = 1e-6
N_FEATURES = 4
BENDS = (-1.0, 0.0, 1.0)  # of the piecewise linear functions of a feature, in standard deviations
N_ROW_INPUTS = 1 + (1 + len(BENDS)) * N_FEATURES
_SIZES = {"knots": N_SEGMENTS, "location": N_FEATURES, "spread": N_FEATURES,
          "temperature": N_ROW_INPUTS, "slopes": N_SEGMENTS, "rank": 1 + len(RANK_STEPS),
          "best": N_ROW_INPUTS, "rest": N_ROW_INPUTS,
          "first_at": N_FIRST, "first_shift": N_FIRST, "tail": 2}


def _row_inputs(scores: Floats, location: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """What a piecewise linear function of the features of a row is linear in, and a constant 1."""
    u = np.clip((_features(scores) - location) / spread, -MAX_FEATURE, MAX_FEATURE)
    return np.concatenate([np.ones((len(u), 1)), u, *(np.maximum(u - bend, 0) for bend in BENDS)],
                          axis=1)


def _features(scores: Floats) -> np.ndarray:
    """What tells how sure a row is, (n_rows, N_FEATURES); 0 where it has no scores.

    The best score, its gaps to the second and the mean of the next four, and the logarithm of the
    sum of the exponentials of the gaps.
    """
    found = np.isfinite(scores[:, :6])
    s = np.where(found, scores[:, :6], 0).astype(np.float64)
    best = s[:, 0]
    gaps = np.where(found, best[:, None] - s, 0)
    second = gaps[:, 1] if s.shape[1] > 1 else np.zeros(len(s))
    others = gaps[:, 1:].sum(axis=1) / np.maximum(found[:, 1:].sum(axis=1), 1)
    with np.errstate(invalid="ignore"):  # -inf of a row without scores
        crowd = np.exp(np.where(np.isfinite(scores), scores - scores[:, :1], -np.inf)).sum(axis=1)
    return np.stack([best, second, others, np.log(np.maximum(crowd, 1))], axis=1)


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * z))


def _put(out: Floats, ids: Ids, found: np.ndarray, values: Floats) -> None:
    rows, ranks = np.nonzero(found)
    out[rows, ids[rows, ranks]] = values[rows, ranks]


def _finite(values: Any, name: str, size: int) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.shape != (size,) or not np.isfinite(values).all():
        raise ValueError(f"the parameter {name} of a calibration must be {size} finite numbers")
    return values


# -- the fit -------------------------------------------------------------------------------------


def calibrate(ids: ArrayLike, scores: ArrayLike, Y_true: MatrixLike, *,
              n_labels: int | None = None, kind: Literal["auto", "classes", "labels"] = "auto",
              sample_weight: ArrayLike | None = None,
              thresholds: Literal["one", "per-label"] = "one") -> Calibration:
    """Fit a calibration for the scores of any model.

    :meth:`Network.calibrate <sparselsh.Network.calibrate>` does it for a network.

    Parameters
    ----------
    ids : int array of shape (n_rows, n_ranked)
        The best labels of each row, best first; -1 for none.
    scores : array of shape (n_rows, n_ranked)
        Their scores, in falling order; -inf where there is no label.
    Y_true : sparse or dense matrix of shape (n_rows, n_labels), or int array of shape (n_rows,)
        The true labels of these rows, which the training did not see.
    n_labels : int or None
        Number of labels of the model; None for the columns of `Y_true` or, for class ids, the
        largest id plus one.
    kind : {"auto", "classes", "labels"}
        "classes": each row has exactly one label, and probabilities add up to 1. "labels": each
        label is true or false independently. "auto" is "classes" if each of these rows has one
        label.
    sample_weight : array of shape (n_rows,) or None
    thresholds : {"one", "per-label"}
        One threshold for all labels, or one for each that is true in eight or more rows.

    Returns
    -------
    Calibration

    Raises
    ------
    ValueError, TypeError
        If an argument is invalid or scores rise in a row; the message names it.

    Examples
    --------
    >>> import numpy as np, sparselsh as sl
    >>> rng = np.random.default_rng(0)
    >>> y = rng.integers(3, size=300)
    >>> z = rng.standard_normal((300, 3)) + 4 * np.eye(3)[y]
    >>> ids = np.argsort(-z, axis=1)
    >>> ranked = np.take_along_axis(z, ids, axis=1)
    >>> calibration = sl.calibration.calibrate(ids, ranked, y)
    >>> calibration.ranked(ranked.astype(np.float32)).shape
    (300, 3)
    """
    true = check.indicator(Y_true, "Y_true")
    n = true.shape[0]
    if n_labels is None:
        n_labels = true.shape[1]
    n_labels = check.integer(n_labels, "n_labels", minimum=true.shape[1])
    true = type(true)((true.data, true.indices, true.indptr), shape=(n, n_labels))
    ids = check.id_table(ids, n, "ids")
    check.distinct(ids, "ids")
    if n < MIN_FIT_ROWS:
        raise ValueError(f"Y_true has {n} rows; give at least {MIN_FIT_ROWS}, better some hundreds")
    if ids.max() >= n_labels:
        raise ValueError(f"ids holds {ids.max()}, but there are {n_labels} labels; give n_labels")

    values = check.numeric(scores, "scores")
    if values.shape != ids.shape:
        raise ValueError(f"scores must have the shape of ids, {ids.shape}, got {values.shape}")
    with np.errstate(invalid="ignore", over="ignore"):
        values = np.where(ids >= 0, values, -np.inf).astype(np.float32)
        rises = np.diff(values, axis=1) > 0
    if not (values < np.inf).all() or rises.any():  # False for NaN as well
        raise ValueError("scores must be finite and fall from left to right in each row; sort them")
    check.choice(kind, "kind", ("auto", "classes", "labels"))
    check.choice(thresholds, "thresholds", ("one", "per-label"))
    y = from_scipy(true)
    if kind == "auto":
        kind = "classes" if (np.diff(y.indptr) == 1).all() else "labels"
    return fit_calibration(ids.astype(np.int32), values, y, kind, None,
                           sample_weight=check.sample_weight(sample_weight, n),
                           thresholds=thresholds)



def ranked_labels(counts: np.ndarray, n_labels: int) -> int:
    """How many labels per row get probabilities of their own, by the numbers of their labels."""
    most = int(np.quantile(counts, 0.99)) if len(counts) else 1
    return min(n_labels, max(MIN_RANKED, min(MAX_RANKED, RANKED_PER_LABEL * most)))


def ranked_for(calibration: Calibration | None, k: int, selection: Selection | None) -> int:
    """How many labels are searched for k probabilities; ValueError where there are none."""
    if calibration is None:
        raise ValueError("probabilities need a calibration; call calibrate on rows that the "
                         "training did not see, before the network is converted")
    if selection is not None:
        raise ValueError("probabilities=True is for all labels; without allow and exclude take "
                         "more labels and leave some out, or take scores")
    if k > calibration.n_ranked:
        raise ValueError(f"k={k} exceeds the {calibration.n_ranked} labels per row that have "
                         "probabilities of their own; lower k, or call predict_proba")
    return calibration.n_ranked


def tail_rows(ids: Ids, y: CSR) -> np.ndarray:
    """Some rows with labels that are not among the ids, spread over all of them."""
    rows = np.flatnonzero(np.diff(y.indptr) > _hits(ids, y).sum(axis=1))
    n = min(TAIL_ROWS, MAX_TAIL_OUTPUTS // y.n_columns)
    return rows if len(rows) <= n else rows[np.linspace(0, len(rows) - 1, n).astype(np.int64)]


def fit_calibration(ids: Ids, scores: Floats, y: CSR, kind: str,
                    tail: tuple[np.ndarray, Floats] | None, *, sample_weight: Floats | None = None,
                    thresholds: Literal["one", "per-label"] = "one") -> Calibration:
    """Fit the map on rows that the training did not see.

    Parameters
    ----------
    ids, scores : ndarray of shape (n_rows, n_ranked), int32 and float32
        Best labels of each row, best first.
    y : CSR of shape (n_rows, n_labels)
    kind : {"classes", "labels"}
    tail : None or (rows, all_scores)
        Some of the rows, and the scores of all labels for them, (n, n_labels).
    sample_weight : None or ndarray of shape (n_rows,), float32
    thresholds : {"one", "per-label"}

    Returns
    -------
    Calibration
    """
    n_labels = y.n_columns
    hit = _hits(ids, y)
    n_missed = np.diff(y.indptr) - hit.sum(axis=1)
    weight = np.ones(len(ids)) if sample_weight is None else sample_weight.astype(np.float64)
    if kind == "classes":
        weight = weight * (np.diff(y.indptr) == 1)
    weight /= max(weight.sum(), 1e-30)

    features = _features(scores)
    gaps = (scores[:, :1] - scores)[np.isfinite(scores)]
    knots = np.concatenate([[0.0], _knots(gaps)])
    parameters = {"knots": knots, "location": features.mean(axis=0),
                  "spread": np.maximum(features.std(axis=0), 1e-6)}
    u = _row_inputs(scores, parameters["location"], parameters["spread"])
    parameters |= _minimized(scores, u, hit, n_missed, weight, knots, kind,
                             n_labels > ids.shape[1], by_row=n_labels > 2)
    parameters |= _first_shift(scores, u, hit, weight, parameters["best"], kind)
    parameters["tail"] = (np.array([1.0, 0.05]) if tail is None else
                          _fitted_tail(ids[tail[0]], scores[tail[0]], tail[1],
                                       y.take(tail[0].astype(np.int64))))

    fitted = Calibration(kind, n_labels, ids.shape[1],
                         {name: values.tolist() for name, values in parameters.items()}, 0.5,
                         len(ids))
    if kind == "labels":
        p = fitted.ranked(scores)
        fitted.threshold = best_threshold(p, hit, y.nnz)
        if thresholds == "per-label":
            fitted.threshold = _label_thresholds(ids, p, hit, y, float(fitted.threshold))
    return fitted


def _hits(ids: Ids, y: CSR) -> np.ndarray:
    """Which of the ids are labels of their rows, bool."""
    width = y.n_columns
    rows = np.repeat(np.arange(len(ids), dtype=np.int64), np.diff(y.indptr))
    true = np.sort(rows * width + y.indices)
    keys = np.arange(len(ids), dtype=np.int64)[:, None] * width + ids
    return np.isin(keys, true) & (ids >= 0)


def _knots(gaps: np.ndarray) -> np.ndarray:
    """Inner knots of the map of gaps: quantiles, made increasing."""
    positive = gaps[gaps > 0]
    if not len(positive):
        return np.arange(1.0, N_SEGMENTS)
    knots = np.quantile(positive, [0.02, 0.1, 0.4])
    return np.maximum.accumulate(knots + 1e-6 * np.arange(1, N_SEGMENTS))


def _minimized(scores: Floats, u: np.ndarray, hit: np.ndarray, n_missed: np.ndarray,
               weight: np.ndarray, knots: np.ndarray, kind: str, has_tail: bool,
               by_row: bool) -> dict[str, np.ndarray]:
    """The parameters with the smallest negative log-likelihood."""
    classes = kind == "classes"
    ranks = np.arange(1, scores.shape[1] + 1)
    by_rank = np.stack([np.log(ranks), *(ranks > r for r in RANK_STEPS)], axis=1)
    rows = (np.ascontiguousarray(scores, np.float32), hit.view(np.uint8),
            n_missed.astype(np.float64), weight, knots)
    d_log_t, d_best, d_rest = np.empty((3, len(scores)))
    penalty = PENALTY * float(weight @ weight)  # 1 / n for n rows of equal weight
    # coordinates in which the inputs of a row are uncorrelated: a third of the iterations
    to_u = np.linalg.inv(np.linalg.cholesky(
        (u * weight[:, None]).T @ u + max(penalty, MIN_RIDGE) * np.eye(N_ROW_INPUTS))).T
    v = u @ to_u

    def parameters(theta: np.ndarray) -> list[np.ndarray]:
        temperature, slopes, rank, best, rest = np.split(theta, SPLITS)
        return [to_u @ temperature, slopes, rank, to_u @ best, to_u @ rest]

    def cost(theta: np.ndarray) -> tuple[float, np.ndarray]:
        temperature, slopes, rank, best, rest = parts = parameters(theta)
        d_slopes, d_costs = np.zeros(len(slopes)), np.zeros(len(ranks))
        loss = _calibration.losses(
            *rows, np.exp(slopes), by_rank @ rank, np.clip(u @ temperature, -MAX_LOG, MAX_LOG),
            u @ best, np.clip(u @ rest, -MAX_LOG, MAX_LOG), classes, has_tail, d_log_t, d_best,
            d_rest, d_slopes, d_costs)
        penalized = np.where(IS_PENALIZED, np.concatenate(parts), 0)
        p = np.split(2 * penalty * penalized, SPLITS)
        gradient = np.concatenate([
            v.T @ d_log_t + to_u.T @ p[0], d_slopes + p[1], d_costs @ by_rank + p[2],
            v.T @ d_best + to_u.T @ p[3], v.T @ d_rest + to_u.T @ p[4]])
        return loss + penalty * float(penalized @ penalized), gradient

    bounds: list[Any] = [(None, None)] * N_PARAMETERS
    bounds[SPLITS[0]:SPLITS[1]] = [(-MAX_LOG, MAX_LOG)] * N_SEGMENTS
    least = 0.0 if classes else MIN_STEP
    bounds[SPLITS[1]:SPLITS[2]] = [(0.0, MAX_LOG)] + [(least, MAX_LOG)] * len(RANK_STEPS)
    if not by_row:  # two classes: the order of the rows is that of their scores
        bounds[1:SPLITS[0]] = [(0.0, 0.0)] * (N_ROW_INPUTS - 1)  # to_u is upper triangular
        bounds[SPLITS[1]:SPLITS[2]] = [(0.0, 0.0)] * _SIZES["rank"]
    start = np.zeros(N_PARAMETERS)
    gaps = (scores[:, :1] - scores[:, 1:6])[np.isfinite(scores[:, 1:6])]
    typical = gaps.mean() if len(gaps) else 1.0
    # from where the search finds any scale
    start[0] = -np.log(max(float(typical), 1e-6)) / to_u[0, 0]
    from scipy.optimize import minimize  # 0.1 s, which `import sparselsh` need not take

    found = minimize(cost, start, jac=True, method="L-BFGS-B", bounds=bounds,
                     options={"maxiter": MAX_ITERATIONS})
    names = ("temperature", "slopes", "rank", "best", "rest")
    return dict(zip(names, parameters(found.x), strict=True))


def _first_shift(scores: Floats, u: np.ndarray, hit: np.ndarray, weight: np.ndarray,
                 best: np.ndarray, kind: str) -> dict[str, np.ndarray]:
    """Shifts of the log odds of the best label, by parts of the rows with similar ones.

    The parameters weigh all ranks alike; few labels of a row are ranked first, but these are what
    is looked at.
    """
    at, shift = np.arange(float(N_FIRST)), np.zeros(N_FIRST)
    rows = np.flatnonzero(np.isfinite(scores[:, 0]) & (weight > 0))
    if kind == "labels" and len(rows) >= MIN_FIT_ROWS:
        logits = u[rows] @ best
        for i, part in enumerate(np.array_split(np.argsort(logits, kind="stable"), N_FIRST)):
            w = weight[rows[part]] / weight[rows].mean()
            n_true, n = w @ hit[rows[part], 0], w.sum()
            at[i] = logits[part].mean()
            # some rows more that are as expected, so that few rows change little
            expected = np.clip(_sigmoid(logits[part]).mean(), SMALLEST_RATE, 1 - SMALLEST_RATE)
            shift[i] = (np.log((n_true + PRIOR_ROWS * expected)
                               / (n - n_true + PRIOR_ROWS * (1 - expected)))
                        - np.log(expected / (1 - expected)))
        at = np.maximum.accumulate(at + 1e-6 * np.arange(N_FIRST))
    return {"first_at": at, "first_shift": np.clip(shift, -MAX_LOG, MAX_LOG)}


SPLITS = np.cumsum([_SIZES[name] for name in ("temperature", "slopes", "rank", "best")])
N_PARAMETERS = int(SPLITS[-1]) + _SIZES["rest"]
# the dependence on the row and the steps of the ranks, and how the slopes differ: not the level of
# anything
IS_PENALIZED = np.ones(N_PARAMETERS, bool)
IS_PENALIZED[[0, *SPLITS[1:]]] = False


def _fitted_tail(ids: Ids, scores: Floats, every: Floats, y: CSR) -> np.ndarray:
    """How the rest is divided: a slope and a uniform share, by the labels that it held."""
    best, found = (np.inf, (1.0, 0.05)), ids >= 0
    hit = _hits(ids, y)
    rows = np.repeat(np.arange(len(ids)), np.diff(y.indptr))
    ranked = set(zip(np.nonzero(hit)[0].tolist(), ids[hit].tolist(), strict=True))
    pairs = [(i, j) for i, j in zip(rows.tolist(), y.indices.tolist(), strict=True)
             if (i, j) not in ranked]
    if not pairs:
        return np.array(best[1])
    i, j = (np.array(side) for side in zip(*pairs, strict=True))
    last = np.where(found, scores, np.inf).min(axis=1)
    gaps = np.minimum(every - np.where(np.isfinite(last), last, 0)[:, None], 0)
    _put(gaps, ids, found, np.full(ids.shape, -np.inf, np.float32))
    n_tail = y.n_columns - found.sum(axis=1)
    for slope in TAIL_SLOPES:
        shares = np.exp(slope * gaps) if slope else np.isfinite(gaps).astype(np.float32)
        own = shares[i, j] / np.maximum(shares.sum(axis=1), 1e-30)[i]
        for uniform in UNIFORM_SHARES:
            loss = -np.log((1 - uniform) * own + uniform / np.maximum(n_tail[i], 1)).mean()
            if loss < best[0]:
                best = float(loss), (slope, uniform)
    return np.array(best[1])


def probabilities_of(loss: Loss, scores: Floats) -> Floats:
    """Probabilities without a calibration, as the loss reads the scores; in place."""
    if loss.outputs == "classes":
        return softmax(scores)
    portable.sigmoid(scores)
    return scores


def softmax(scores: Floats) -> Floats:
    """The softmax of each row; in place."""
    scores -= scores.max(axis=1, keepdims=True, initial=-np.inf)
    portable.exp(scores)
    scores /= scores.sum(axis=1, keepdims=True)
    return scores


def entries_above(p: Floats, limits: Floats) -> csr_array:
    """The entries of p that reach the limit of their column."""
    return sp.csr_array(np.where(p >= limits, p, np.float32(0)))


# -- thresholds ----------------------------------------------------------------------------------


def best_threshold(p: Floats, hit: np.ndarray, n_true: int) -> float:
    """The threshold of p with the largest micro-averaged F1, between two of the values.

    Parameters
    ----------
    p : ndarray, float32
        Probabilities of pairs of rows and labels.
    hit : ndarray of the same shape, bool
        Which of the pairs are true.
    n_true : int
        Number of true pairs, those that p has not included.

    Returns
    -------
    float
    """
    order = np.argsort(-p.ravel(), kind="stable")
    values = p.ravel()[order]
    f1 = 2 * np.cumsum(hit.ravel()[order]) / (np.arange(1, len(order) + 1) + n_true)
    # a threshold cannot part equal values
    f1[:-1][values[:-1] == values[1:]] = -1
    if not len(f1):
        return 0.5
    best = int(f1.argmax())
    below = float(values[best + 1]) if best + 1 < len(values) else 0.0
    return max((float(values[best]) + below) / 2, SMALLEST_THRESHOLD)


def _label_thresholds(ids: Ids, p: Floats, hit: np.ndarray, y: CSR, common: float) -> np.ndarray:
    """A threshold per label that occurs often enough, and the common one for the others."""
    thresholds = np.full(y.n_columns, common, np.float32)
    counts = np.bincount(y.indices, minlength=y.n_columns)
    order = np.argsort(ids.ravel(), kind="stable")
    labels = ids.ravel()[order]
    for j in np.flatnonzero(counts >= MIN_POSITIVES):
        at = order[slice(*np.searchsorted(labels, [j, j + 1]))]
        if len(at):
            own = best_threshold(p.ravel()[at], hit.ravel()[at], int(counts[j]))
            # few rows tell little: between the label's own and the common one
            share = counts[j] / (counts[j] + MIN_POSITIVES)
            thresholds[j] = share * own + (1 - share) * common
    return thresholds


def thresholds_by_frequency(ids: Ids, p: Floats, y: CSR, counts: np.ndarray,
                            common: float) -> float | np.ndarray:
    """Thresholds whose log odds rise with the logarithm of how often a label was trained on.

    Parameters
    ----------
    ids, p : ndarray of shape (n_rows, n_ranked), int32 and float32
        The best labels of rows that the training did not see, -1 for none, and probabilities.
    y : CSR of shape (n_rows, n_labels)
    counts : ndarray of shape (n_labels,)
        Number of training rows of each label.
    common : float
        The threshold with the largest micro-averaged F1 among those that are the same for all.

    Returns
    -------
    float or ndarray of shape (n_labels,), float32
        `common`, unless a slope gains on it by more than chance.
    """
    hit, frequency = _hits(ids, y), np.log1p(counts)
    frequency -= frequency[y.indices].mean() if y.nnz else 0
    logits = _logit(p)

    def f1(named: np.ndarray) -> float:
        return float(2 * (hit & named).sum() / max(1, named.sum() + y.nnz))

    thresholds: float | np.ndarray = common
    best = f1(p >= common) + CHANCE_GAIN / np.sqrt(max(1, y.nnz))
    for slope in FREQUENCY_SLOPES:
        shifted = _sigmoid(logits - slope * frequency[ids]).astype(np.float32)
        cut = best_threshold(shifted, hit, y.nnz)
        if (value := f1(shifted >= cut)) > best:
            best = value
            own = _sigmoid(_logit(np.array(cut)) + slope * frequency)
            thresholds = np.clip(own, SMALLEST_THRESHOLD, 1).astype(np.float32)
    return thresholds


def _logit(p: np.ndarray) -> np.ndarray:
    p = np.clip(np.asarray(p, np.float64), 1e-12, 1 - 1e-12)
    return np.log(p / (1 - p))


# -- diagrams ------------------------------------------------------------------------------------


def plot_reliability(Y_true: MatrixLike, probabilities: ArrayLike, *, k: int = 1,
                     n_bins: int = 15, ax: Any = None) -> Any:
    """Plot the observed frequency of labels against their probability; needs matplotlib.

    Parameters
    ----------
    Y_true : int array of shape (n,), or sparse or dense matrix of shape (n, n_labels)
        One class id per row, or an indicator of labels.
    probabilities : array of shape (n, n_labels)
        As of `predict_proba`.
    k : int
        The k best labels of each row are counted.
    n_bins : int
        Number of bins of equal width of the probability.
    ax : matplotlib Axes or None
        None for a new figure.

    Returns
    -------
    Axes

    Raises
    ------
    ValueError, TypeError
        As for :func:`sparselsh.metrics.expected_calibration_error`.
    ImportError
        If matplotlib is missing.
    """
    stated, observed, counts = calibration_curve(Y_true, probabilities, k=k, n_bins=n_bins)
    ax = axes(ax, (4.5, 4.5))
    kept = counts > 0
    ax.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    ax.plot(stated[kept], observed[kept], marker="o")
    ax.set(xlabel="probability stated", ylabel="fraction true", xlim=(0, 1), ylim=(0, 1))
    return ax
