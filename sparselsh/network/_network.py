"""Network: layers in order, trained and used together."""
from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import numpy as np

from .. import _validation as check
from .. import metrics
from .._arrays import bfloat16
from .._arrays.csr import CSR, from_scipy
from .._arrays.linalg import row_chunks
from .._arrays.scipy import sp
from .._display import plot_history, progress_bar, table
from .._signals import held
from .._threads import Lock, one_at_a_time, resolve
from ..calibration import (
    MIN_FIT_ROWS,
    Calibration,
    entries_above,
    fit_calibration,
    probabilities_of,
    ranked_for,
    ranked_labels,
    tail_rows,
)
from ..callbacks import checked as checked_callbacks
from ..datasets import CSRFile, mapped_rows
from ..inference import Affine, build_module, check_dense_hidden, kept_refinement
from ..layers import Linear, LSHLinear, Step, Tally
from ..losses import checked as checked_loss
from ..optim import SGD, Adam, CustomOptimizer
from ..profiling import Profile
from ..refinement import (
    MAX_LOGISTIC_DUALS,
    MAX_LOGISTIC_WEIGHTS,
    Refinement,
    classifier_scores,
    extended,
    fit_refinement,
    followed_by,
    refined_topk,
    spread,
)
from ..training import (
    ON_NONFINITE,
    WINDOW_ROWS,
    Training,
    TrainingProgress,
    ids_are_shared,
    label_vectors,
    source_of,
    train,
    train_once,
)
from . import _file
from ._single_row import SingleRow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray
    from scipy.sparse import csr_array
    from torch import nn

    from .._arrays.selection import Selection
    from .._arrays.types import Floats, Ids, MatrixLike, PathLike, RandomState
    from .._gradients import Parameter
    from .._signals import Interrupts
    from ..callbacks import Callback
    from ..inference import InferenceNetwork
    from ..losses import Loss
    from ..optim import Optimizer
    from ..protocols import Loss as OwnLoss
    from ..training import Source

T = TypeVar("T")

ROWS_PER_CHUNK = 1024  # rows that pass through the hidden layers together
# Of the output layer: up to here waking a thread takes longer than it saves for a single row.
SINGLE_THREAD_MAX_WEIGHTS = 1 << 20


class Network:
    """A feed-forward network of linear layers, each dense or sparse by hashing.

    Parameters
    ----------
    layers : sequence of Linear and LSHLinear
        The outputs of one are the inputs of the next.
    loss : {"softmax", "bce", "mse"} or a loss object
        "softmax" for classes and tags, "bce" for independent labels, "mse" for regression.
        :class:`sparselsh.protocols.Loss` describes your own loss objects.
    random_state : None, int or numpy.random.Generator
        Determines weights, hashing, the order of samples and the random neurons. Results do not
        depend on the number of threads.
    n_threads : int or None
        Number of threads of the kernels; None for :func:`sparselsh.get_num_threads`.
    compute_dtype : {"float32", "bfloat16"}
        Dtype of the factors of matrix products in a training step: the outputs of a layer from
        dense inputs, the gradient of these inputs, and the gradient of the weights. With
        "bfloat16", the factors are rounded to the nearest bfloat16 as they enter a product, and
        sums are in float32 [1]_. The same holds for the projections whose signs are the codes of
        hash tables. Weights, moments, updates, losses, products with sparse inputs or with one
        active set per sample, and inference stay in float32. These products are then 1.8 to 3 times
        as fast on AMD since Zen 4 (AVX512_BF16) and on Intel since Sapphire Rapids (AMX). Elsewhere
        they are not faster.

    Attributes
    ----------
    history : list of dict
        One entry per epoch: epoch, loss, seconds, cpu_seconds, samples_per_second, computed_share
        and, with validation data, p_at_1 (not for the loss "mse") and val_loss (where inference
        computes every output anyway).
    computed_share : float
        Fraction of the output neurons that the last `fit` or `topk` computed, in [0, 1].
    refinement : Refinement or None
        Classifiers that `refine` added; set None to remove them.
    calibration : Calibration or None
        Map from scores to probabilities that `calibrate` fitted; set None to remove it.

    Raises
    ------
    ValueError, TypeError
        If an argument is invalid, or the layers do not fit together; the message names it.

    Notes
    -----
    Python threads may share a network: a call waits until the call of another thread has ended,
    even a whole `fit`.

    References
    ----------
    .. [1] Kalamkar et al., "A study of BFLOAT16 for deep learning training", arXiv 1905.12322,
       section 3.

    Examples
    --------
    >>> import numpy as np, sparselsh as sl
    >>> X = np.eye(40, dtype=np.float32)
    >>> layers = [sl.Linear(40, 16), sl.LSHLinear(16, 40, density=0.5)]
    >>> net = sl.Network(layers, random_state=0)
    >>> _ = net.fit(X, np.arange(40), epochs=60, batch_size=8,
    ...             verbose=False)
    >>> net.predict(X[:3])
    array([0, 1, 2], dtype=int32)
    """

    def __init__(self, layers: Sequence[Linear], *, loss: str | Loss | OwnLoss = "softmax",
                 random_state: RandomState = None, n_threads: int | None = None,
                 compute_dtype: str = "float32") -> None:
        if isinstance(layers, Linear) or not isinstance(layers, Iterable):
            raise TypeError(f"layers must be a list of layers, got {layers!r}; put it into a list")
        self.layers = list(layers)
        _check_layers(self.layers)
        loss = checked_loss(loss)
        self.n_threads = check.threads(n_threads)

        compute_dtype = check.choice(compute_dtype, "compute_dtype", bfloat16.DTYPES)
        self._training = Training(self.layers, loss, check.generator(random_state), compute_dtype)
        for i, (layer, place) in enumerate(zip(self.layers, self._training.places, strict=True)):
            if isinstance(layer, LSHLinear):
                layer.check_place(place, f"layers[{i}]")
        self._lock = Lock()
        for layer in self.layers:
            layer.share_lock(self._lock)
        self.refinement: Refinement | None = None
        self.calibration: Calibration | None = None
        self._single_row = SingleRow()
        # of `topk`, whose computed fraction is worked out where it is read
        self._last_search: tuple[int, bool] | None = None

    def _begin_call(self) -> None:
        """Finish or undo a training step that an error has ended; each locked call does it."""
        if self._training.attempt is not None:
            self._training.settle()

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            self._training.settle()
            return self.__dict__

    @property
    def n_features(self) -> int:
        """Number of inputs."""
        return self.layers[0].n_in

    @property
    def n_labels(self) -> int:
        """Number of outputs."""
        return self.layers[-1].n_out

    @property
    def loss(self) -> Loss:
        """The loss that training minimizes."""
        return self._training.loss

    @property
    def compute_dtype(self) -> str:
        """How products of a training step are computed; "float32" or "bfloat16"."""
        return self._training.compute_dtype

    @property
    def optimizer(self) -> Optimizer | None:
        """The optimizer of the last training; None before the first."""
        return self._training.optimizer

    @optimizer.setter
    def optimizer(self, optimizer: Optimizer | None) -> None:
        self._training.settle()
        self._training.optimizer = optimizer

    @property
    def history(self) -> list[dict[str, Any]]:
        return self._training.history

    @history.setter
    def history(self, history: list[dict[str, Any]]) -> None:
        self._training.history = history

    @property
    def computed_share(self) -> float:
        if self._last_search is not None:
            with self._lock:  # it may build an index
                n, exact = self._last_search
                self.computed_share = self.layers[-1].computed_fraction(n, exact=exact)
        return self._training.computed_share

    @computed_share.setter
    def computed_share(self, fraction: float) -> None:
        self._training.computed_share = fraction
        self._last_search = None

    @property
    def training_progress(self) -> TrainingProgress | None:
        """Progress of the last `fit`, for `resume`; None where there is nothing to resume.

        Its `is_done` is true when the training is complete.
        """
        return self._training.progress

    # -- training --------------------------------------------------------------------------------

    @one_at_a_time
    def fit(self, X: MatrixLike | CSRFile | Iterable[Any], Y: MatrixLike | None = None, *,
            sample_weight: ArrayLike | None = None, optimizer: Optimizer | None = None,
            epochs: int = 5, batch_size: int = 256,
            validation: tuple[MatrixLike, MatrixLike] | None = None, shuffle: bool = True,
            window: int = WINDOW_ROWS, callbacks: Sequence[Callback] = (),
            on_nonfinite: str = "raise", verbose: bool = True) -> Self:
        """Train the network.

        Parameters
        ----------
        X : array or sparse matrix of shape (n_samples, n_features), CSRFile, or iterable of (X, Y)
            A file, from :func:`sparselsh.datasets.open_csr`, is read in windows of rows. An
            iterable yields chunks of rows, each a pair like X and Y here, all dense or all sparse;
            for several epochs its `__iter__` must start anew each time, as that of a list does.
            Neither needs to fit into memory.
        Y : int array of shape (n_samples,), or matrix of shape (n_samples, n_labels)
            Class ids, or a sparse or dense indicator of labels; for the loss "mse", target values.
            None if X contains them.
        sample_weight : array of shape (n_samples,) or None
            Factors of the loss of each sample, at least 0; not for an iterable of chunks.
        optimizer : SGD, Adam, CustomOptimizer or None
            None for ``Adam(lr=1e-2, schedule="linear")``. An optimizer that was used before keeps
            its state. If X is an iterable other than a list, the schedule follows an estimate from
            `len` in the first epoch, or does not advance during it if X has no `len`.
        epochs : int
        batch_size : int
            Rows per step.
        validation : None or (X, Y)
            P@1 or the loss on these rows is measured after every epoch.
        shuffle : bool
            Draw a new random order of the samples for every epoch: within the whole matrix, within
            each window of a file, or within each chunk.
        window : int
            Rows of a file that are held in memory and shuffled at a time. A larger window mixes
            better, which matters if neighbouring rows of the file are alike. For a file in random
            order a small window is enough.
        callbacks : Callback or sequence of Callback
            See `sparselsh.callbacks`.
        on_nonfinite : {"raise", "warn", "restore"}
            What to do when a loss is not finite because the training diverges. The step is undone
            in any case, and also the one before, if it changed the weights a lot. "raise" raises
            FloatingPointError, "warn" warns and skips the batch, and "restore" warns and ends the
            training with the weights of the start of the epoch, of which it keeps a copy.
        verbose : bool
            Show a progress bar, or one line per epoch if stderr is not a terminal.

        Returns
        -------
        Network
            Itself.

        Raises
        ------
        ValueError, TypeError
            If an argument is invalid; the message names it.
        FloatingPointError
            If a loss is not finite and `on_nonfinite` is "raise"; the message names the step, the
            learning rate and remedies.
        KeyboardInterrupt
            If Ctrl-C is pressed. The current step is completed first, or undone at a second Ctrl-C:
            the network can be used, and `resume` continues the training.

        Notes
        -----
        An error before the first step, such as that of an argument, leaves the network as it was.
        An error in a step, such as MemoryError, leaves it as it was between two steps, and `resume`
        continues the training with the same bits. Handlers of signals, such as that of SIGTERM, are
        called between two steps.
        """
        on_nonfinite = check.choice(on_nonfinite, "on_nonfinite", ON_NONFINITE)
        epochs = check.integer(epochs, "epochs")
        batch_size = check.integer(batch_size, "batch_size")
        window = check.integer(window, "window")

        source = self._source(X, Y, window, epochs, sample_weight)
        validation = self._check_validation(validation)
        callbacks = checked_callbacks(callbacks)
        if optimizer is None:
            optimizer = Adam(1e-2, schedule="linear")

        progress = TrainingProgress(epochs, batch_size, bool(shuffle), window)
        with self._begun(_checked_optimizer(optimizer), source, progress, (None, None)):
            self._train(source, validation, callbacks, verbose, on_nonfinite)
        return self

    @contextmanager
    def _begun(self, optimizer: Optimizer, source: Source, progress: TrainingProgress | None,
               added: tuple[Refinement | None, Calibration | None]) -> Iterator[None]:
        """Context of a training, which an error before its first step leaves as it was before.

        An error in the first step, or Ctrl-C, leaves a training that can be resumed.
        """
        training = self._training
        before = training.optimizer, training.progress, self.refinement, self.calibration
        n_steps, generator = training.n_steps, training.rng.bit_generator.state
        new = [layer for layer in self.layers if not layer.initialized]
        try:
            training.begin(optimizer, source.is_sparse)
            training.progress = progress
            self._last_search = None
            self.refinement, self.calibration = added
            yield
        except BaseException as error:
            if training.n_steps == n_steps:
                self.refinement, self.calibration = before[2:]
                is_of_data = (isinstance(error, Exception)
                              and not isinstance(error, (MemoryError, ArithmeticError)))
                if progress is None or not progress.has_begun or is_of_data:
                    training.optimizer, training.progress = before[:2]
                    training.forget_weights(new, generator)
            raise

    def _train(self, source: Source, validation: tuple[Floats | CSR, CSR] | None,
               callbacks: Sequence[Callback], verbose: bool, on_nonfinite: str) -> None:
        self._last_search = None
        validate = None if validation is None else lambda: self._validate(*validation)
        train(self._training, source, self, validate, callbacks, resolve(self.n_threads), verbose,
              on_nonfinite, self._interrupts())

    def _interrupts(self) -> Interrupts | None:
        """What decides when a training handles signals; None for between two steps."""
        return None

    @one_at_a_time
    def resume(self, X: MatrixLike, Y: MatrixLike | None = None, *,
               sample_weight: ArrayLike | None = None, epochs: int | None = None,
               validation: tuple[MatrixLike, MatrixLike] | None = None,
               callbacks: Sequence[Callback] = (), on_nonfinite: str = "raise",
               verbose: bool = True) -> Self:
        """Continue an interrupted training from the step where it stopped.

        The training is the last `fit` of this network or, for a network that was loaded from a file
        of :class:`Checkpoint <sparselsh.callbacks.Checkpoint>` or of
        ``save(training_state=True)``, the training that was saved. Given the same data and
        callbacks, the network becomes the same, bit for bit, as without the interruption. If the
        training is complete, nothing is done.

        Parameters
        ----------
        epochs : int or None
            Epochs of the whole training, those that are done included: more of them train longer
            than was planned, also after the training was complete, and fewer end it sooner. The
            schedule stands where it would stand if they had been planned. None for what was
            planned.
        X, Y, sample_weight, validation, callbacks, on_nonfinite, verbose
            As for `fit`. A callback restores its state if it has the same position in the list as
            before.

        Returns
        -------
        Network
            Itself.

        Raises
        ------
        ValueError
            If there is no training to continue, more epochs are done than `epochs`, the data has
            another number of rows, or the schedule of the optimizer was a function, which a file
            does not keep: set ``network.optimizer.schedule`` then.
        FloatingPointError, KeyboardInterrupt
            As for `fit`.
        """
        on_nonfinite = check.choice(on_nonfinite, "on_nonfinite", ON_NONFINITE)
        progress = self._training.progress
        if progress is None:
            raise ValueError("there is no training to resume; call fit, or load a file that was "
                             "saved with training_state=True")
        if self.optimizer.missing_schedule is not None and self.optimizer.schedule is None:
            raise ValueError("the schedule of this training was "
                             f"{self.optimizer.missing_schedule}, which a file does not keep; set "
                             "network.optimizer.schedule to it, then resume")
        callbacks = checked_callbacks(callbacks)
        total = progress.epochs if epochs is None else check.integer(epochs, "epochs")
        n_begun = progress.epoch + (progress.generator is not None)
        if total < n_begun:
            raise ValueError(f"epochs must be at least {n_begun}, the epochs that have begun, got "
                             f"{total}")
        if progress.epoch == total or (progress.is_done and epochs is None):
            return self

        n_epochs = total - progress.epoch
        source = self._source(X, Y, progress.window, n_epochs, sample_weight)
        if None not in (progress.n_rows, source.n_rows) and progress.n_rows != source.n_rows:
            raise ValueError(f"X must have the {progress.n_rows} rows of the training that is "
                             f"resumed, got {source.n_rows}")

        validation = self._check_validation(validation)
        for layer in self.layers:
            layer.own()
        if epochs is not None:
            progress.__dict__.update(epochs=total, stopped=False)
        self._train(source, validation, callbacks, verbose, on_nonfinite)
        return self

    @one_at_a_time
    def partial_fit(self, X: MatrixLike | CSRFile | Iterable[Any], Y: MatrixLike | None = None, *,
                    sample_weight: ArrayLike | None = None, batch_size: int = 256,
                    on_nonfinite: str = "raise") -> Self:
        """Train on the samples once, in order, with the last optimizer (or Adam(lr=1e-3)).

        Parameters
        ----------
        X, Y, sample_weight
            As for `fit`.
        batch_size : int
            Rows per step.
        on_nonfinite : {"raise", "warn", "restore"}
            As for `fit`; "restore" returns to the weights before the call.

        Returns
        -------
        Network
            Itself.

        Raises
        ------
        ValueError, TypeError, FloatingPointError, KeyboardInterrupt
            As for `fit`.
        """
        on_nonfinite = check.choice(on_nonfinite, "on_nonfinite", ON_NONFINITE)
        batch_size = check.integer(batch_size, "batch_size")
        source = self._source(X, Y, WINDOW_ROWS, 1, sample_weight)
        optimizer = self.optimizer if self.optimizer is not None else Adam(1e-3)
        with self._begun(_checked_optimizer(optimizer), source, None,
                         (self.refinement, self.calibration)):
            train_once(self._training, source, batch_size, resolve(self.n_threads), on_nonfinite,
                       self._interrupts())
        return self

    @one_at_a_time
    def initialize(self, X: MatrixLike | CSRFile, Y: MatrixLike | None = None, *,
                   sample_weight: ArrayLike | None = None,
                   shared_ids: bool | Literal["auto"] = "auto") -> Self:
        """Compute initial weights from the data, from which `fit` starts instead of random ones.

        For sparse inputs, one hidden layer and many labels. Each label gets a random vector; the
        weights of a feature are the mean of the vectors of the labels it occurs with, and the
        weights of a label are the mean direction of its rows in the hidden layer (centroids,
        "positive instance feature aggregation" in [1]_, section 3). Where rows have at most 30
        features on average and labels are 256 or more, the weights of the features are instead
        those of a ridge regression of the mean vector of a row's labels: a random projection of one
        regression per label. One epoch of training from these weights is worth several from random
        ones.

        Parameters
        ----------
        X : sparse matrix of shape (n_samples, n_features), or CSRFile
        Y : int array of shape (n_samples,), or matrix of shape (n_samples, n_labels)
            Class ids, or a sparse or dense indicator of labels; None for a file, which contains
            them.
        sample_weight : array of shape (n_samples,) or None
            Factors of the rows in the means; 0 leaves a row out.
        shared_ids : bool or "auto"
            Whether feature j and label j are the same thing, as where the items of a session
            predict the next one. Features then also count as labels of their rows, so that items
            that occur together get similar weights. "auto" decides that they are if rows have a
            label among their own features more than ten times as often as among those of other
            rows.

        Returns
        -------
        Network
            Itself, with these weights and with biases of zero.

        Raises
        ------
        ValueError
            If the network does not have exactly two layers, X is dense, `shared_ids` is True and
            the numbers of features and labels differ, or an argument is invalid.

        References
        ----------
        .. [1] H.-F. Yu et al., "PECOS: Prediction for Enormous and Correlated Output Spaces",
           JMLR 23 (2022), arXiv:2010.05878.
        """
        if len(self.layers) != 2:
            raise ValueError("weights can be made from data for a hidden layer and an output "
                             f"layer; this network has {len(self.layers)} layers: let fit draw "
                             "random ones")
        X, Y = self._rows_of(X, Y)
        if not isinstance(X, CSR):
            raise ValueError("X must be sparse to make weights from; let fit draw random ones for "
                             "dense inputs")
        hidden, last = self.layers
        if isinstance(hidden, LSHLinear):
            raise ValueError("layers[0] must be Linear to make its weights from data, "
                             f"got {hidden!r}; let fit draw random ones")
        if shared_ids not in (True, False, "auto"):
            raise ValueError(f"shared_ids must be True, False or 'auto', got {shared_ids!r}")

        shared = ids_are_shared(X, Y) if shared_ids == "auto" else bool(shared_ids)
        if shared and X.shape[1] != Y.shape[1]:
            raise ValueError(f"shared_ids=True needs as many labels as features, got {Y.shape[1]} "
                             f"and {X.shape[1]}; number both alike, or give False")

        weight = check.sample_weight(sample_weight, X.shape[0])
        rng, generator = self._training.rng, self._training.rng.bit_generator.state
        is_done = False
        try:
            features, labels = self._label_vectors(X, Y, shared, weight)
            features, labels = hidden.first_weights(features), last.first_weights(labels)
            with held():
                hidden.take_first_weights(features, rng, True)
                last.take_first_weights(labels, rng, False)
                self.refinement = self.calibration = None
                is_done = True
        except BaseException:
            if not is_done:
                rng.bit_generator.state = generator
            raise
        return self

    def _label_vectors(self, X: CSR, Y: CSR, shared: bool,
                       weight: Floats | None) -> tuple[Floats, Floats]:
        """The weights of the two layers that `initialize` computes."""
        hidden = self.layers[0]
        return label_vectors(X, Y, hidden.n_out, hidden.activation == "relu", shared,
                             self._training.rng, resolve(self.n_threads), weight)

    def _rows_of(self, X: Any, Y: Any) -> tuple[Floats | CSR, CSR]:
        """Checked rows of a matrix, or of a file, in which they stay."""
        if not isinstance(X, CSRFile):
            return self._check_rows(X, Y, "X", "Y")
        if Y is not None:
            raise ValueError("Y must be None where X is a file, which contains the labels")
        self._check_file(X)
        return mapped_rows(X)

    @one_at_a_time
    def refine(self, X: MatrixLike | CSRFile, Y: MatrixLike | None = None, *,
               sample_weight: ArrayLike | None = None, n_negatives: int = 50, C: float = 1.0,
               threshold: float = 0.1, scale: float = 8.0, n_candidates: int = 50,
               logistic: float = 0.0, verbose: bool = True) -> Self:
        """Add one linear classifier of the inputs per label to a trained network.

        Use it for sparse inputs, such as words, and many labels: a hidden layer passes on few of
        the features that matter for only a few labels. Each classifier (one-vs-rest) learns from
        the rows of its label and from the rows for which the network ranks that label high. This is
        fast: some passes over few rows. `partial_fit` and `resume` leave the classifiers unchanged,
        and `fit` drops them. See :class:`Refinement`.

        Parameters
        ----------
        X : array or sparse matrix of shape (n_samples, n_features), or CSRFile
            Training rows; the default of C suits rows of norm 1.
        Y : int array of shape (n_samples,), or matrix of shape (n_samples, n_labels)
            Class ids, or a sparse or dense indicator of labels; None for a file, which contains
            them.
        sample_weight : array of shape (n_samples,) or None
            Factors of C, one per row.
        n_negatives : int
            Each row is a negative example for this many of the outputs that the network ranks
            first, except for its own labels.
        C : float
            Weight of the errors relative to that of the norms.
        threshold : float
            Weights whose absolute value is below it are dropped after training. That is most of
            them: it saves memory and time and changes the results little.
        scale : float
            Factor of the classifiers' outputs, which are added to the outputs of the layers.
        n_candidates : int
            Number of the network's best outputs that are reranked; all others follow, in the order
            of the network.
        logistic : float
            Factor of the weights of a multinomial logistic regression, which are added to those of
            the classifiers; 0 for none. It improves the probabilities. Each row must have one
            label, and there must be few labels, because dense weights of all features and labels
            are held in memory during the training.
        verbose : bool
            Show a progress bar.

        Returns
        -------
        Network
            Itself; `refinement` holds the classifiers.

        Raises
        ------
        ValueError
            If an argument is invalid, the network has no weights yet, or its loss is "mse"; also if
            `logistic` is above 0 and a row has another number of labels than one, features times
            labels are more than 33,554,432, or rows times labels more than 67,108,864.
        """
        return self._refine(X, Y, sample_weight, n_negatives, C, threshold, scale, n_candidates,
                            logistic, verbose)

    def _refine(self, X: Any, Y: Any, sample_weight: ArrayLike | None, n_negatives: int, C: float,
                threshold: float, scale: float, n_candidates: int, logistic: float, verbose: bool,
                keep: bool = False, rows: Ids | None = None) -> Self:
        """`refine`; see `refined`."""
        X, Y = self._rows_of(X, Y)
        self._check_initialized()
        if self.loss.outputs == "values":
            raise ValueError("this network predicts values (its loss is 'mse'); classifiers can "
                             "refine one with the loss 'softmax' or 'bce'")
        n_negatives = check.integer(n_negatives, "n_negatives")
        C, scale = check.number(C, "C", above=0), check.number(scale, "scale", minimum=0)
        threshold = check.number(threshold, "threshold", minimum=0)
        n_candidates = check.integer(n_candidates, "n_candidates")
        logistic = check.number(logistic, "logistic", minimum=0)
        weight = check.sample_weight(sample_weight, X.shape[0])
        if logistic:
            self._check_logistic(Y, weight)
        costs = np.full(X.shape[0], C, np.float32) if weight is None else np.float32(C) * weight

        n_threads = resolve(self.n_threads)
        n_negatives, n = min(n_negatives, self.n_labels), X.shape[0]
        part, start = self._part_of_refinement(), None
        before = None if self.refinement is None else self.refinement.training
        if rows is not None and before is not None and before.candidates.shape[1] == n_negatives:
            start = before, rows
        with self._refined_anew(), progress_bar("refine", "", n + self.n_labels,
                                                verbose=verbose) as bar:
            candidates = np.empty((n, n_negatives), np.int32)
            missing = np.arange(n)
            if start is not None:
                candidates[start[1]] = start[0].candidates
                missing = np.delete(missing, start[1])
                bar.update(n - len(missing))
            x = X if start is None else _take(X, missing)
            for first in range(0, len(missing), ROWS_PER_CHUNK):
                last = min(first + ROWS_PER_CHUNK, len(missing))
                h = self._hidden(x, first, last, n_threads)
                candidates[missing[first:last]] = self.layers[-1].negatives(h, n_negatives,
                                                                           n_threads)
                bar.update(last - first)

            self.refinement = fit_refinement(
                self._sparse_rows(X, 0, n), Y, candidates, costs, threshold=threshold, scale=scale,
                n_candidates=n_candidates, seed=self._draw_seed(), logistic=logistic,
                n_threads=n_threads, progress=bar.update, **part, keep=keep and not part,
                start=start)
        return self

    def _check_logistic(self, Y: CSR, weight: Floats | None) -> None:
        counts = np.diff(Y.indptr)
        wrong = np.flatnonzero((counts != 1) & (True if weight is None else weight > 0))
        if len(wrong):
            raise ValueError(f"row {wrong[0]} of Y has {counts[wrong[0]]} labels; logistic > 0 "
                             "needs one in each row")
        if self.n_features * self.n_labels > MAX_LOGISTIC_WEIGHTS:
            raise ValueError(f"logistic > 0 takes at most {MAX_LOGISTIC_WEIGHTS} weights, but "
                             f"there are {self.n_features} features and {self.n_labels} labels; "
                             "give logistic=0")
        if Y.shape[0] * self.n_labels > MAX_LOGISTIC_DUALS:
            raise ValueError(f"logistic > 0 takes at most {MAX_LOGISTIC_DUALS} dual variables, but "
                             f"there are {Y.shape[0]} rows and {self.n_labels} labels; give "
                             "logistic=0, or fewer rows")

    def _part_of_refinement(self) -> dict[str, Any]:
        """Which classifiers this process trains, and how it gets the others."""
        return {}

    @one_at_a_time
    def tune_refinement(self, X: MatrixLike | CSRFile, Y: MatrixLike | None = None, *,
                        scales: Sequence[float] = (0, 2, 4, 8, 12, 16, 24, 32)) -> Self:
        """Choose the factor of the classifiers on rows that the training did not see.

        The factor with the largest mean of P@1 and nDCG@5 is chosen. If that is 0, the classifiers
        reduce the accuracy and are removed.

        Parameters
        ----------
        X : array or sparse matrix of shape (n_samples, n_features), or CSRFile
            Rows that neither `fit` nor `refine` has seen.
        Y : int array of shape (n_samples,), or matrix of shape (n_samples, n_labels)
            Class ids, or a sparse or dense indicator of labels; None for a file, which contains
            them.
        scales : sequence of float
            Factors to try, at least 0.

        Returns
        -------
        Network
            Itself.

        Raises
        ------
        ValueError, TypeError
            If an argument is invalid, no row has a label, or the network has no refinement.
        """
        if self.refinement is None:
            raise ValueError("this network has no refinement; call refine on the training rows "
                             "first")
        scales = [check.number(scale, "scales", minimum=0) for scale in scales]
        if not scales:
            raise ValueError("scales must hold at least one factor, got none")
        X, Y = self._rows_of(X, Y)
        if not Y.nnz:
            raise ValueError("Y must have a label in at least one row, got none")

        refinement = self.refinement
        with self._refined_anew(keep=True):
            ids, z = self._topk(X, min(refinement.n_candidates, self.n_labels), False)
        x = self._sparse_rows(X, 0, X.shape[0])
        gains = classifier_scores(refinement, x, ids, resolve(self.n_threads))
        indicator, k = Y.to_scipy(), min(5, ids.shape[1])
        values = []
        for scale in scales:
            order = np.argsort(-(z + np.float32(scale) * gains), axis=1, kind="stable")[:, :k]
            best = np.take_along_axis(ids, order, axis=1)
            values.append(metrics.precision_at_k(indicator, best, 1)
                          + metrics.ndcg_at_k(indicator, best, k))
        best_scale = scales[int(np.argmax(values))]
        with held():
            self.calibration = None
            if best_scale == 0:
                self.refinement = None
            else:
                refinement.scale = best_scale
        return self

    @one_at_a_time
    def calibrate(self, X: MatrixLike | CSRFile, Y: MatrixLike | None = None, *,
                  sample_weight: ArrayLike | None = None,
                  kind: Literal["auto", "classes", "labels"] = "auto",
                  thresholds: Literal["one", "per-label"] = "one") -> Self:
        """Fit the map from scores to probabilities, and the threshold of `predict_labels`.

        `predict_proba`, `predict_labels` and ``topk(probabilities=True)`` use it. `partial_fit` and
        `resume` leave it unchanged; `fit`, `initialize` and `refine` drop it.

        Parameters
        ----------
        X : array or sparse matrix of shape (n_samples, n_features), or CSRFile
            Some hundreds of rows or more, which the training did not see: on training rows the
            network is right more often than on others.
        Y : int array of shape (n_samples,), or matrix of shape (n_samples, n_labels)
            Class ids, or a sparse or dense indicator of labels; None for a file, which contains
            them.
        sample_weight : array of shape (n_samples,) or None
        kind : {"auto", "classes", "labels"}
            "classes": each row has exactly one label, and probabilities add up to 1. "labels": each
            label is true or false independently. "auto" is "classes" if each of these rows has one
            label.
        thresholds : {"one", "per-label"}
            One threshold for all labels, or one for each that is true in eight or more rows. A
            threshold has the largest micro-averaged F1 on these rows.

        Returns
        -------
        Network
            Itself; `calibration` holds the map.

        Raises
        ------
        ValueError, TypeError
            If an argument is invalid, there are fewer than 20 rows, the network has no weights yet
            or its loss is "mse".
        """
        X, Y = self._rows_of(X, Y)
        self._check_initialized()
        if self.loss.outputs == "values":
            raise ValueError("this network predicts values (its loss is 'mse'), which have no "
                             "probabilities")
        check.choice(kind, "kind", ("auto", "classes", "labels"))
        check.choice(thresholds, "thresholds", ("one", "per-label"))
        n = X.shape[0]
        if n < MIN_FIT_ROWS:
            raise ValueError(f"X has {n} rows; give at least {MIN_FIT_ROWS}, better some hundreds, "
                             "that the training did not see")
        weight = check.sample_weight(sample_weight, n)
        counts = np.diff(Y.indptr)
        if kind == "auto":
            kind = "classes" if (counts == 1).all() else "labels"
        elif kind == "classes" and not (counts == 1).any():
            raise ValueError("kind='classes' needs rows with exactly one label, Y has none; give "
                             "kind='labels'")

        n_ranked = ranked_labels(counts, self.n_labels)
        if self.refinement is not None:
            n_ranked = min(self.n_labels, max(n_ranked, self.refinement.n_candidates))
        ids, scores = self._topk(X, n_ranked, False)
        tail = None
        if n_ranked < self.n_labels:
            rows = tail_rows(ids, Y)
            if len(rows):
                x = _take(X, rows)
                tail = rows, np.concatenate([np.array(self._scores(x, *chunk, False))
                                             for chunk in self._chunks(len(rows))])
        self.calibration = fit_calibration(ids, scores, Y, kind, tail, sample_weight=weight,
                                           thresholds=thresholds)
        return self

    @contextmanager
    def _refined_anew(self, keep: bool = False) -> Iterator[None]:
        """Context without refinement and calibration, in which the layers answer alone.

        An error leaves those of before; so does the end of the block, with `keep`.
        """
        kept, rng = (self.refinement, self.calibration), self._training.rng
        generator = rng.bit_generator.state
        try:
            self.refinement = self.calibration = None
            yield
        except BaseException:
            self.refinement, self.calibration = kept
            rng.bit_generator.state = generator
            raise
        if keep:
            self.refinement, self.calibration = kept

    def _source(self, X: Any, Y: Any, window: int, epochs: int,
                sample_weight: ArrayLike | None) -> Source:
        source = source_of(X, Y, window, epochs, self._check_rows, sample_weight)
        if isinstance(X, CSRFile):
            self._check_file(X)
        if source.n_rows == 0:
            raise ValueError("X must have at least one row, got none")
        return source

    def _check_validation(self, validation: tuple[MatrixLike, MatrixLike] | None
                          ) -> tuple[Floats | CSR, CSR] | None:
        if validation is None:
            return None
        try:
            X, Y = validation
        except (TypeError, ValueError):
            raise ValueError("validation must be a pair (X, Y)") from None
        X, Y = self._check_rows(X, Y, "validation[0]", "validation[1]")
        if X.shape[0] == 0:
            raise ValueError("validation[0] must have at least one row, got none")
        return X, Y

    def _check_rows(self, X: MatrixLike, Y: MatrixLike, x_name: str,
                    y_name: str) -> tuple[Floats | CSR, CSR]:
        X = check.matrix(X, x_name, n_columns=self.n_features)
        return X, check.targets(Y, X.shape[0], self.n_labels,
                                values=self.loss.outputs == "values",
                                name=y_name, x_name=x_name)

    def _check_file(self, file: CSRFile) -> None:
        for what, n, expected in (("features", file.shape[1], self.n_features),
                                  ("labels", file.n_labels, self.n_labels)):
            if n != expected:
                raise ValueError(f"X must have {expected} {what}, got {n} in {file.path!r}")

    @one_at_a_time
    def profile(self, X: MatrixLike, Y: MatrixLike, *, batch_size: int = 256,
                optimizer: Optimizer | None = None, steps: int | None = 8,
                warm_up: int = 2) -> Profile:
        """Count and time the work of training steps, layer by layer, on a copy of the network.

        Parameters
        ----------
        X, Y
            As for `fit`, in memory.
        batch_size : int
            Rows per step.
        optimizer : SGD, Adam or None
            None for that of the last `fit`, or else Adam.
        steps : int or None
            Steps that are counted; None for one pass over all rows. Rows are taken in order, and
            from the first one again after the last.
        warm_up : int
            Steps before these that are not counted: they allocate memory and build the first
            tables.

        Returns
        -------
        Profile
            `print` shows a table, `rows` has the figures, and `plot()` draws them.

        Raises
        ------
        ValueError, TypeError
            If an argument is invalid.
        """
        batch_size = check.integer(batch_size, "batch_size")
        warm_up = check.integer(warm_up, "warm_up", minimum=0)
        X, Y = self._check_rows(X, Y, "X", "Y")
        if X.shape[0] == 0:
            raise ValueError("X must have at least one row, got none")
        n_batches = -(-X.shape[0] // batch_size)
        steps = n_batches if steps is None else check.integer(steps, "steps")

        own = self.optimizer
        net = copy.deepcopy(self, {id(own): None})  # without an optimizer
        optimizer = _checked_optimizer(optimizer if optimizer is not None else own or Adam(1e-3))
        source = source_of(X, Y, WINDOW_ROWS, 1, self._check_rows)
        # `fresh` drops the state of `own`, which belongs to the parameters of this network
        training = net._training
        training.begin(optimizer.fresh(), source.is_sparse)

        n_threads = resolve(self.n_threads)
        tallies = [Tally(optimizer.n_states) for _ in self.layers]
        for number in range(warm_up + steps):
            start = number % n_batches * batch_size
            rows = np.arange(start, min(start + batch_size, X.shape[0]))
            x = X.take(rows) if isinstance(X, CSR) else X[rows]
            is_counted = number >= warm_up
            training.step(x, Y.take(rows), 0.0, None, n_threads, tallies if is_counted else None)

        plans = [layer.plan_report(place)
                 for layer, place in zip(net.layers, training.places, strict=True)]
        return Profile(net.layers, plans, tallies, steps, batch_size)

    def _validate(self, X: Floats | CSR, Y: CSR) -> dict[str, float]:
        """Validation measures of the history, on checked rows."""
        last, values = self.layers[-1], self.loss.outputs == "values"
        if not values and last.computed_fraction(1) < 1:
            return {"p_at_1": metrics.precision_at_k(Y.to_scipy(), self._topk(X, 1, False)[0], 1)}

        n, n_threads = X.shape[0], resolve(self.n_threads)
        ids, total = np.empty((n, 1), np.int32), 0.0
        for start, stop in row_chunks(n, max(self.n_labels, n // ROWS_PER_CHUNK + 1)):
            out = last.all_outputs(self._hidden(X, start, stop, n_threads), n_threads)
            ids[start:stop, 0] = out.argmax(axis=1)
            total += self.loss(out, Y.slice(start, stop), n_threads=n_threads)[0] * (stop - start)

        measures = {"val_loss": total / n}
        if values:
            return measures
        return {"p_at_1": metrics.precision_at_k(Y.to_scipy(), ids, 1)} | measures

    # -- growth -------------------------------------------------------------------------------

    @one_at_a_time
    def add_labels(self, n: int) -> Self:
        """Add outputs after the existing ones.

        Their weights are zero, and their biases are below every output for the inputs of the last
        steps. Predictions therefore stay the same until the new labels are trained, for example by
        `partial_fit`. Indexes, moments of the optimizer, refinement and calibration are kept.

        Parameters
        ----------
        n : int
            Number of new labels.

        Returns
        -------
        Network
            Itself.

        Raises
        ------
        ValueError, TypeError
            If n is not a positive integer, or the network has no weights yet.
        """
        n = check.integer(n, "n", maximum=check.INT32_MAX - self.n_labels)
        self._check_initialized()
        n_threads, last = resolve(self.n_threads), self.layers[-1]
        self.grow(0, np.zeros((n, last.n_in), np.float32),
                  np.full(n, last.lowest_output(n_threads), np.float32))
        return self

    @one_at_a_time
    def add_features(self, n: int) -> Self:
        """Add inputs after the existing ones.

        Their weights are zero, so rows without the new features give the same bits as before.
        Indexes, moments of the optimizer, refinement and calibration are kept.

        Parameters
        ----------
        n : int
            Number of new features.

        Returns
        -------
        Network
            Itself.

        Raises
        ------
        ValueError, TypeError
            If n is not a positive integer, or the network has no weights yet.
        """
        n = check.integer(n, "n", maximum=check.INT32_MAX - self.n_features)
        self._check_initialized()
        last = self.layers[-1]
        self.grow(n, np.zeros((0, last.n_in), np.float32), np.zeros(0, np.float32))
        return self

    @one_at_a_time
    def grow(self, n_features: int, weight: Floats, bias: Floats, inputs: Floats | None = None,
             classifiers: tuple[CSR, Floats] | None = None) -> None:
        """Add features and labels with weights, all at once.

        `weight`, (n_new, n_hidden), and `bias` are of the labels, `inputs`, (n_hidden, n_features),
        of the features, and `classifiers`, weights and biases, of the labels.
        """
        n_labels = len(weight)
        if inputs is None:
            inputs = np.zeros((self.layers[0].n_out, n_features), np.float32)
        changes, states = self._grown_layers(weight, bias, inputs)
        optimizer = self._training.optimizer
        refinement = self.refinement
        if refinement is not None:
            refinement = extended(refinement, n_labels, n_features, classifiers)
        calibration = self.calibration
        if calibration is not None and n_labels:
            calibration = _with_more_labels(calibration, n_labels)

        with held():
            for change in changes:
                change()
            for parameter, arrays in states:
                optimizer.take_grown(parameter, arrays)
            self.refinement, self.calibration = refinement, calibration
            self._training.progress = None  # its rows have fewer labels or features
            self._last_search = None

    def _grown_layers(self, weight: Floats, bias: Floats, inputs: Floats) -> tuple[
            list[Callable[[], None]], list[tuple[Parameter, list[np.ndarray]]]]:
        """What lets the layers grow, when it is called, and states of the optimizer; see `grow`."""
        first, last, n_threads = self.layers[0], self.layers[-1], resolve(self.n_threads)
        changes: list[Callable[[], None]] = []
        states = []
        optimizer = self._training.optimizer
        # the last layer first: its indexes may fail to grow
        for layer in {id(last): last, id(first): first}.values():
            new = inputs if layer is first else np.zeros((layer.n_out, 0), np.float32)
            rows, b = np.zeros((0, layer.n_in + new.shape[1]), np.float32), bias[:0]
            if layer is last:
                b, rows = bias, np.pad(weight, ((0, 0), (0, new.shape[1])))
            value, biases = layer.grown(new, rows, b)
            changes.append(partial(layer.take_grown, value, biases, n_threads))
            if optimizer is not None:
                for parameter, shape in zip(layer.parameters, (value.shape, (len(biases), 1)),
                                            strict=True):
                    states.append((parameter, optimizer.grown_arrays(parameter, shape)))
        return changes, states

    def _draw_seed(self) -> int:
        """A seed from the generator of the training."""
        return int(self._training.rng.integers(2**31))

    @contextmanager
    def seed_drawn(self) -> Iterator[int]:
        """Context with a seed from the generator of the training; an error takes it back."""
        generator = self._training.rng.bit_generator.state
        try:
            yield self._draw_seed()
        except BaseException:
            self._training.rng.bit_generator.state = generator
            raise

    # -- weights ------------------------------------------------------------------------------

    @one_at_a_time
    def get_weights(self) -> list[np.ndarray]:
        """Copies of all weights, as `set_weights` takes them.

        Returns
        -------
        list of ndarray
            Two arrays per layer: its weights, in the layout and dtype in which they are stored,
            and its bias.

        Raises
        ------
        ValueError
            If the network has no weights yet.
        """
        self._check_initialized()
        return [a for layer in self.layers for a in layer.copy_weights()]

    @one_at_a_time
    def set_weights(self, weights: Sequence[np.ndarray]) -> Self:
        """Copy weights into place; the optimizer keeps its state.

        Parameters
        ----------
        weights : list of ndarray
            As returned by `get_weights` of this network or of one with the same layers.

        Returns
        -------
        Network
            Itself.

        Raises
        ------
        ValueError
            If the network has no weights yet, or the number, shapes or dtypes differ.
        """
        self._check_initialized()
        if len(weights) != 2 * len(self.layers):
            raise ValueError(f"weights must be {2 * len(self.layers)} arrays, got {len(weights)}")
        pairs = [weights[2 * i:2 * i + 2] for i in range(len(self.layers))]
        for layer, pair in zip(self.layers, pairs, strict=True):
            layer.check_weights(*pair)
        with held():
            for layer, pair in zip(self.layers, pairs, strict=True):
                layer.load_weights(*pair)
        return self

    # -- inference -------------------------------------------------------------------------------

    @one_at_a_time
    def topk(self, X: MatrixLike, k: int = 5, *, exact: bool = False,
             probabilities: bool = False, allow: MatrixLike | None = None,
             exclude: MatrixLike | None = None) -> tuple[Ids, Floats]:
        """The k outputs with the largest scores; their order does not depend on k.

        Parameters
        ----------
        X : array or sparse matrix of shape (n_samples, n_features)
        k : int
        exact : bool
            Compute every output neuron instead of those that the index finds.
        probabilities : bool
            Return probabilities instead of scores: those of `predict_proba`, without computing all
            of them. It needs a `calibration`, and k may be at most the number of labels that it
            ranks.
        allow, exclude : array or sparse matrix, or None
            Labels that may, or may not, be returned: a bool mask of shape (n_labels,), an array of
            ids, or a sparse matrix of shape (n_samples, n_labels) with the labels of each row, such
            as the items that a user has already.

        Returns
        -------
        ids : ndarray of shape (n_samples, k), int32
            Best first; -1 if fewer labels may be returned.
        scores : ndarray of shape (n_samples, k), float32
            Exact for the returned ids: the outputs before softmax or sigmoid. For a refined
            network, the scores of :class:`Refinement`. With `probabilities`, the probabilities.

        Raises
        ------
        ValueError, TypeError
            If an argument is invalid, or the network has no weights yet.
        """
        X = check.matrix(X, n_columns=self.n_features)
        self._check_initialized()
        k = check.integer(k, "k")
        selection = check.selection(allow, exclude, X.shape[0], self.n_labels)
        if probabilities:
            ids, scores = self._topk_probabilities(X, k, exact, selection)
        else:
            ids, scores = self._topk(X, k, exact, selection)
        self._last_search = max(k, min(self._n_searched, self.n_labels)), exact
        return ids, scores

    def _topk(self, X: Floats | CSR, k: int, exact: bool,
              selection: Selection | None = None) -> tuple[Ids, Floats]:
        n = X.shape[0]
        if n <= ROWS_PER_CHUNK:
            return self._ranked(X, 0, n, k, exact, selection)
        ids, scores = np.empty((n, k), np.int32), np.empty((n, k), np.float32)
        for start in range(0, n, ROWS_PER_CHUNK):
            stop = min(start + ROWS_PER_CHUNK, n)
            some = None if selection is None else selection.slice(start, stop)
            ids[start:stop], scores[start:stop] = self._ranked(X, start, stop, k, exact, some)
        return ids, scores

    def _topk_probabilities(self, X: Floats | CSR, k: int, exact: bool,
                            selection: Selection | None) -> tuple[Ids, Floats]:
        n_ranked = ranked_for(self.calibration, k, selection)
        if X.shape[0] == 1 and not exact and (found := self._of_single_row(
                X, 0, k, self._single_row_threads(), self.calibration)):
            return found
        ids, scores = self._topk(X, n_ranked, exact)
        return ids[:, :k], self.calibration.ranked(scores)[:, :k]

    def _ranked(self, X: Floats | CSR, start: int, stop: int, k: int, exact: bool,
                selection: Selection | None = None,
                h: Floats | CSR | None = None) -> tuple[Ids, Floats]:
        """The k best labels and their scores, of which every answer is made.

        At least as many labels are searched for as the refinement ranks again and the calibration
        reads, so that the first labels do not depend on k.
        """
        is_single = stop - start == 1
        n_threads = self._single_row_threads() if is_single else resolve(self.n_threads)
        if is_single and h is None and selection is None and not exact and (
                found := self._of_single_row(X, start, k, n_threads)):
            return found
        if h is None:
            h = self._hidden(X, start, stop, n_threads)
        ids, z = self._found(h, k, exact, selection, n_threads)
        if self.refinement is None:
            return ids[:, :k], z[:, :k]
        return refined_topk(self.refinement, self._sparse_rows(X, start, stop), ids, z, k,
                            n_threads)

    def _of_single_row(self, X: Floats | CSR, row: int, k: int, n_threads: int,
                       calibration: Calibration | None = None) -> tuple[Ids, Floats] | None:
        """`_ranked` of a sparse row by one call to the core, or None where it takes several.

        With a calibration, probabilities instead of scores.
        """
        n_found = min(self._n_searched, self.n_labels) or k
        if not isinstance(X, CSR) or k > n_found:
            return None
        x = X if X.shape[0] == 1 else X.slice(row, row + 1)
        return self._single_row.topk(self.layers, self.refinement, calibration, n_found, x, k,
                                     n_threads)

    @one_at_a_time
    def answer_of_single_row(self, k: int, n_features: int, answer: Callable[[Any], T]) -> T | None:
        """What `answer` makes of the network as the core takes it, for the k most probable labels.

        None where ``topk(x, k, probabilities=True)`` of a row of so many features has to answer.
        """
        calibration = self.calibration
        if calibration is None or k > calibration.n_ranked or n_features != self.n_features:
            return None
        n_found = min(self._n_searched, self.n_labels)
        mlp = self._single_row.prepared(self.layers, self.refinement, calibration, n_found, k,
                                        self._single_row_threads())
        if mlp is None:
            return None
        self._last_search = max(k, n_found), False
        return answer(mlp)

    def _single_row_threads(self) -> int:
        """Threads for the output layer of one row."""
        if self.n_labels * self.layers[-1].n_in <= SINGLE_THREAD_MAX_WEIGHTS:
            return 1
        return resolve(self.n_threads)

    def _found(self, h: Floats | CSR, k: int, exact: bool, selection: Selection | None,
               n_threads: int) -> tuple[Ids, Floats]:
        """At least k labels of the output layer: first those that every search finds."""
        last, n = self.layers[-1], min(self._n_searched, self.n_labels)
        found = last.topk(h, max(k, n), exact=exact, n_threads=n_threads,
                          selection=selection)
        if not 0 < n < k or exact or last.computed_fraction(n) == 1:
            return found
        # a search for more labels may find others among the best
        return followed_by(last.topk(h, n, n_threads=n_threads, selection=selection), found)

    @property
    def _n_searched(self) -> int:
        """Labels per row that every search finds."""
        return max(0 if self.refinement is None else self.refinement.n_candidates,
                   0 if self.calibration is None else self.calibration.n_ranked)

    def _scores(self, X: Floats | CSR, start: int, stop: int, exact: bool) -> Floats:
        """The scores of all labels, for the rows from start to stop; until the next call."""
        n_threads, last = resolve(self.n_threads), self.layers[-1]
        h = self._hidden(X, start, stop, n_threads)
        if self.refinement is None:
            return last.all_outputs(h, n_threads)
        n = min(self.refinement.n_candidates, self.n_labels)
        ids, scores = self._ranked(X, start, stop, n, exact, h=h)
        return spread(ids, scores, last.all_outputs(h, n_threads))

    def _probabilities(self, X: Floats | CSR, start: int, stop: int, exact: bool) -> Floats:
        """The probabilities of all labels, for the rows from start to stop; until the next call."""
        if self.calibration is None:
            return probabilities_of(self.loss, self._scores(X, start, stop, exact))
        ids, scores = self._ranked(X, start, stop, self.calibration.n_ranked, exact)
        return self.calibration.every(ids, scores, self._scores(X, start, stop, exact))

    def _chunks(self, n_rows: int) -> list[tuple[int, int]]:
        """Ranges of rows whose outputs are held in memory together."""
        return [(first, min(first + ROWS_PER_CHUNK, stop))
                for start, stop in row_chunks(n_rows, self.n_labels)
                for first in range(start, stop, ROWS_PER_CHUNK)]

    @staticmethod
    def _sparse_rows(X: Floats | CSR, start: int, stop: int) -> CSR:
        X = _part(X, start, stop)
        return X if isinstance(X, CSR) else from_scipy(sp.csr_array(X))

    def _hidden(self, X: Floats | CSR, start: int, stop: int, n_threads: int) -> Floats | CSR:
        x = _part(X, start, stop)
        for layer, place in zip(self.layers[:-1], self._training.places, strict=False):
            x, _ = layer.forward(x, Step(n_threads=n_threads, place=place))
        return x

    @one_at_a_time
    def predict(self, X: MatrixLike, *, exact: bool = False) -> np.ndarray:
        """The output with the largest score per row or, for the loss "mse", all outputs.

        Parameters
        ----------
        X : array or sparse matrix of shape (n_samples, n_features)
        exact : bool
            As for `topk`; for the loss "mse" every output is computed anyway.

        Returns
        -------
        ndarray of shape (n_samples,), int32, or (n_samples, n_labels), float32
            Class ids; predicted values for the loss "mse".

        Raises
        ------
        ValueError, TypeError
            As for `topk`.
        """
        if self.loss.outputs != "values":
            return self.topk(X, 1, exact=exact)[0][:, 0]
        return self.decision_function(X)

    @one_at_a_time
    def predict_labels(self, X: MatrixLike, threshold: float | ArrayLike | None = None, *,
                       exact: bool = False) -> csr_array:
        """The labels whose probability is at least the threshold.

        Parameters
        ----------
        X : array or sparse matrix of shape (n_samples, n_features)
        threshold : float, array of shape (n_labels,) or None
            None for that of the `calibration`, or for 0.5 without one.
        exact : bool
            As for `topk`.

        Returns
        -------
        csr_array of shape (n_samples, n_labels), float32
            The probabilities of these labels, sorted by label in each row: the entries of
            `predict_proba` that reach the threshold. A row may be empty.

        Raises
        ------
        ValueError, TypeError
            As for `predict_proba`; also if `threshold` is not in (0, 1].
        """
        X = self._checked_queries(X)
        if threshold is None:
            threshold = 0.5 if self.calibration is None else self.calibration.threshold
        limits = check.thresholds(threshold, self.n_labels)
        parts = [self._labels_above(X, *chunk, limits, exact) for chunk in self._chunks(X.shape[0])]
        if not parts:
            return sp.csr_array((X.shape[0], self.n_labels), dtype=np.float32)
        return sp.vstack(parts, format="csr")

    def _labels_above(self, X: Floats | CSR, start: int, stop: int, limits: Floats,
                      exact: bool) -> csr_array:
        if self.calibration is None:
            return entries_above(self._probabilities(X, start, stop, exact), limits)
        ids, scores = self._ranked(X, start, stop, self.calibration.n_ranked, exact)
        return self.calibration.labels_above(
            ids, scores, limits,
            lambda rows: self._probabilities(_take(X, start + rows), 0, len(rows), exact))

    @one_at_a_time
    def predict_proba(self, X: MatrixLike, *, exact: bool = False) -> Floats:
        """Probabilities of all labels, as a dense array.

        They come from the `calibration`: call `calibrate` first, on rows that the training did not
        see. Without it, they are the softmax or the sigmoids of the scores, depending on the loss.
        Those rank the labels but are overconfident.

        Parameters
        ----------
        X : array or sparse matrix of shape (n_samples, n_features)
        exact : bool
            As for `topk`.

        Returns
        -------
        ndarray of shape (n_samples, n_labels), float32
            Rows add up to 1 if labels are classes. The label that `predict` returns has the largest
            probability.

        Raises
        ------
        ValueError, TypeError
            As for `topk`; also if the loss is "mse".
        """
        X = self._checked_queries(X)
        out = np.empty((X.shape[0], self.n_labels), np.float32)
        for start, stop in self._chunks(X.shape[0]):
            out[start:stop] = self._probabilities(X, start, stop, exact)
        return out

    def _checked_queries(self, X: MatrixLike) -> Floats | CSR:
        X = check.matrix(X, n_columns=self.n_features)
        self._check_initialized()
        if self.loss.outputs == "values":
            raise ValueError("this network predicts values (its loss is 'mse'), which have no "
                             "probabilities; call predict")
        return X

    @one_at_a_time
    def decision_function(self, X: MatrixLike, *, exact: bool = True) -> Floats:
        """The scores of all labels, before softmax, sigmoid or calibration.

        Parameters
        ----------
        X : array or sparse matrix of shape (n_samples, n_features)
        exact : bool
            For a refined network: whether the classifiers rerank the labels with the largest
            outputs, or, if False, those that the index finds, as in `topk`.

        Returns
        -------
        ndarray of shape (n_samples, n_labels), float32
            In the order of `topk`.

        Raises
        ------
        ValueError, TypeError
            As for `topk`.
        """
        X = check.matrix(X, n_columns=self.n_features)
        self._check_initialized()
        out = np.empty((X.shape[0], self.n_labels), np.float32)
        for start, stop in self._chunks(X.shape[0]):
            out[start:stop] = self._scores(X, start, stop, exact)
        return out

    @one_at_a_time
    def score(self, X: MatrixLike, ids: ArrayLike) -> Floats:
        """Exact scores of given labels. If the layer has an index, no others are computed.

        Parameters
        ----------
        X : array or sparse matrix of shape (n_samples, n_features)
        ids : array of shape (n_ids,) or (n_samples, n_ids)
            The same labels for all rows, or the labels of each row; -1 for none.

        Returns
        -------
        ndarray of shape (n_samples, n_ids), float32
            As returned by `topk`; -inf for none. A refined network computes all scores for it.

        Raises
        ------
        ValueError, TypeError
            If an argument is invalid, or the network has no weights yet.
        """
        X = check.matrix(X, n_columns=self.n_features)
        self._check_initialized()
        ids = check.neuron_table(ids, "ids", X.shape[0], self.n_labels)
        out = np.empty(ids.shape, np.float32)
        n_threads = resolve(self.n_threads)
        for start, stop in self._chunks(X.shape[0]):
            if self.refinement is None:
                h = self._hidden(X, start, stop, n_threads)
                out[start:stop] = self.layers[-1].score(h, ids[start:stop], n_threads)
            else:
                z = self._scores(X, start, stop, False)
                out[start:stop] = np.take_along_axis(z, np.maximum(ids[start:stop], 0), 1)
        out[ids < 0] = -np.inf
        return out

    @one_at_a_time
    def logsumexp(self, X: MatrixLike, *,
                  error: float = 0.01) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The logarithm of the sum of exp(score) over all labels, and its error.

        With the loss "softmax", ``score(X, ids) - logsumexp(X)[0][:, None]`` are the
        log-probabilities of labels, before a calibration.

        Parameters
        ----------
        X : array or sparse matrix of shape (n_samples, n_features)
        error : float
            Largest allowed error, above 0.

        Returns
        -------
        values, errors : ndarray of shape (n_samples,), float64
            As returned by :meth:`LSHIndex.logsumexp`. An index estimates the sum for fewer than 32
            rows; otherwise all scores are computed.

        Raises
        ------
        ValueError, TypeError
            If an argument is invalid, the network has no weights yet, or it is refined: the scores
            of labels that were not reranked do not determine probabilities.
        """
        X = check.matrix(X, n_columns=self.n_features)
        self._check_initialized()
        error = check.number(error, "error", above=0)
        if self.refinement is not None:
            raise ValueError("logsumexp is of the outputs of the layers, and this network is "
                             "refined; call predict_proba for probabilities, or set "
                             "network.refinement to None")
        values, errors = np.empty(X.shape[0]), np.empty(X.shape[0])
        n_threads = resolve(self.n_threads)
        for start, stop in self._chunks(X.shape[0]):
            h = self._hidden(X, start, stop, n_threads)
            values[start:stop], errors[start:stop] = self.layers[-1].log_sum_exp(h, error,
                                                                                 n_threads)
        return values, errors

    def _check_initialized(self) -> None:
        if not all(layer.initialized for layer in self.layers):
            raise ValueError("this network has no weights yet; call fit, or set_weights on its "
                             "layers")

    # -- files -----------------------------------------------------------------------------------

    @one_at_a_time
    def save(self, path: PathLike, *, training_state: bool = False, indexes: bool = False) -> None:
        """Write weights and configuration as one safetensors file.

        The file is written in the same folder and then renamed: a reader sees the old file or the
        new one, even if this process is killed.

        Parameters
        ----------
        path : str or path-like
        training_state : bool
            Also keep the state of the optimizer, the random generator and the indexes, so that
            `resume`, `fit` and `partial_fit` continue with the same bits. With Adam the file is
            three times as large.
        indexes : bool
            Keep hash tables and sketches without the rest of the training state. If both are False,
            the indexes of this network are dropped and rebuilt when needed, as they are after
            loading, so that the loaded network gives the same results.

        Raises
        ------
        ValueError
            If the network has no weights yet.
        TypeError
            If a layer is an instance of a user-defined class, which `load` would not know.
        OSError
            If the file cannot be written.
        """
        self._save(path, bool(training_state), bool(indexes), ({}, {}))

    def _save(self, path: PathLike, training_state: bool, indexes: bool,
              others: tuple[dict[str, Any], dict[str, Any]]) -> None:
        self._check_initialized()
        with_indexes = training_state or indexes
        _file.write(path, self._training, self.refinement, self.calibration, with_indexes,
                    training_state, others)
        if not with_indexes:
            for layer in self.layers:
                layer.drop_indexes()

    def to_torch(self, *, refinement: str = "keep") -> nn.Module:
        """The network as a ``torch.nn.Module`` with the same weights, bit for bit.

        The module takes dense rows or sparse tensors, and returns all outputs before softmax or
        sigmoid.

        Parameters
        ----------
        refinement : {"keep", "drop"}
            With "keep", the module of a refined network returns the refined scores of all labels:
            the classifiers score the `n_candidates` labels with the largest outputs of the layers,
            and the others follow in the order of the layers. "drop" returns the layers alone.

        Returns
        -------
        torch.nn.Sequential, or torch.nn.Module where there is a refinement
            In evaluation mode.

        Raises
        ------
        ImportError
            If torch is missing.
        ValueError
            If `refinement` is neither, the network has no weights yet, or a hidden layer passes on
            a part of its outputs only, as an LSHLinear with one set per sample does.
        """
        check_dense_hidden(self.layers)
        return build_module(self.architecture(), kept_refinement(self.refinement, refinement))

    @one_at_a_time
    def architecture(self) -> list[Affine]:
        """The layers as affine maps, with views of their weights. A refinement is not a layer.

        Returns
        -------
        list of Affine
            One named tuple per layer: name, weight (n_out, n_in), bias (n_out,), activation.

        Raises
        ------
        ValueError
            If the network has no weights yet.
        """
        self._check_initialized()
        return [Affine(str(i), layer.weight, layer.bias, layer.activation)
                for i, layer in enumerate(self.layers)]

    def plot_history(self, ax: Any = None) -> Any:
        """Plot losses and P@1 by epoch; needs matplotlib.

        Parameters
        ----------
        ax : matplotlib Axes or None
            None for a new figure.

        Returns
        -------
        Axes

        Raises
        ------
        ValueError
            If there is no history.
        ImportError
            If matplotlib is missing.
        """
        return plot_history(self.history, ax)

    def _repr_html_(self) -> str:
        rows = []
        for layer, place in zip(self.layers, self._training.places, strict=True):
            active = "" if not isinstance(layer, LSHLinear) else (
                f"{layer.n_active_at(place):,} active, one set per {layer.active_at(place)}")
            rows.append((type(layer).__name__, f"{layer.n_in:,} → {layer.n_out:,}",
                         layer.activation or "", active, f"{(layer.n_in + 1) * layer.n_out:,}",
                         "" if layer.initialized else "no weights yet"))

        trained = f", {len(self.history)} epochs" if self.history else ""
        if self.history:
            last = self.history[-1]
            shown = ("loss", "val_loss", "p_at_1")
            trained += "".join(f", {key} {last[key]:.4g}" for key in shown if key in last)
        return table(f"Network, loss {self.loss!r}{trained}", rows,
                     ("layer", "shape", "activation", "neurons in training", "weights", ""))

    def __repr__(self) -> str:
        layers = zip(self.layers, self._training.places, strict=True)
        body = ",\n         ".join(layer.repr_at(place) for layer, place in layers)
        return f"Network([{body}],\n        loss={self.loss!r})"


def _part(X: Floats | CSR, start: int, stop: int) -> Floats | CSR:
    if start == 0 and stop == X.shape[0]:
        return X
    return X.slice(start, stop) if isinstance(X, CSR) else X[start:stop]


def _take(X: Floats | CSR, rows: np.ndarray) -> Floats | CSR:
    return X.take(rows.astype(np.int64)) if isinstance(X, CSR) else X[rows]


def _with_more_labels(calibration: Calibration, n: int) -> Calibration:
    """A calibration of n more labels; where all were ranked, the new ones are, too."""
    config = calibration.config()
    if config["n_ranked"] == config["n_labels"]:
        config["n_ranked"] += n
    config["n_labels"] += n
    if isinstance(config["threshold"], list):
        config["threshold"] += [float(np.median(config["threshold"]))] * n
    return Calibration.from_config(config, config["n_labels"])


def _check_layers(layers: list[Linear]) -> None:
    if not layers:
        raise ValueError("layers must hold at least one layer, got none")

    for i, layer in enumerate(layers):
        if not isinstance(layer, Linear):
            raise TypeError(f"layers[{i}] must be Linear or LSHLinear, got {layer!r}")
        if any(layer is other for other in layers[:i]):
            raise ValueError(f"layers[{i}] is a layer that the network holds already; "
                             "make one for each place")
        if i and layers[i - 1].n_out != layer.n_in:
            raise ValueError(f"layers[{i}] takes {layer.n_in} inputs but layers[{i - 1}] gives "
                             f"{layers[i - 1].n_out}; make them equal")

    if layers[-1].dropout:
        raise ValueError(f"layers[{len(layers) - 1}] is the output layer and has dropout="
                         f"{layers[-1].dropout:g}; drop outputs of hidden layers")


def _checked_optimizer(optimizer: Optimizer) -> Optimizer:
    if not isinstance(optimizer, (SGD, Adam, CustomOptimizer)):
        own = "; wrap a rule of your own: CustomOptimizer(rule, lr)"
        raise TypeError("optimizer must be an SGD or Adam object, such as Adam(lr=1e-3), "
                        f"got {optimizer!r}{own if hasattr(optimizer, 'update') else ''}")
    return optimizer


def contributions(network: Network | InferenceNetwork, x: CSR, label: int) -> Floats:
    """What each entry of a sparse row adds to the score of a label, (nnz,) float32.

    By the layers and by the classifier of the label. A ReLU passes on what it passes on of the
    whole row. For a network with one hidden layer.
    """
    hidden, last = network.architecture()
    w = last.weight[label]
    rows = hidden.weight[:, x.indices].T
    if hidden.activation is not None:
        w = np.where(x.data @ rows + hidden.bias > 0, w, np.float32(0))
    weights = rows @ w
    if network.refinement is not None:
        ids = np.full((x.nnz, 1), label, np.int32)
        each = CSR(np.arange(x.nnz + 1, dtype=np.int64), x.indices, np.ones(x.nnz, np.float32),
                   x.n_columns)
        alone = classifier_scores(network.refinement, each, ids, 1)[:, 0]
        weights = weights + np.float32(network.refinement.scale) * (
            alone - network.refinement.bias[label])
    return x.data * weights


def refined(network: Network, X: Any, Y: Any, *, sample_weight: Any = None, n_negatives: int,
            C: float, threshold: float = 0.1, scale: float = 8.0, n_candidates: int,
            logistic: float, verbose: bool, keep: bool = False,
            rows: Ids | None = None) -> Network:
    """`Network.refine` in two parts, for the recipe: some rows, and then these and others.

    With `keep`, the classifiers hold what the second call starts from. There, `rows` are the places
    of the rows of the first, int32, whose labels and weights are as they were; the layers too.
    """
    with network._lock.held:
        network._begin_call()
        return network._refine(X, Y, sample_weight, n_negatives, C, threshold, scale, n_candidates,
                               logistic, verbose, keep, rows)


def hidden_outputs(network: Network, X: MatrixLike) -> Floats:
    """The outputs of the last hidden layer, (n_samples, n_hidden) float32."""
    with network._lock.held:
        network._begin_call()
        rows = check.matrix(X, n_columns=network.n_features)
        network._check_initialized()
        out = np.zeros((rows.shape[0], network.layers[-1].n_in), np.float32)
        for start in range(0, rows.shape[0], ROWS_PER_CHUNK):
            stop = min(start + ROWS_PER_CHUNK, rows.shape[0])
            h = network._hidden(rows, start, stop, resolve(network.n_threads))
            out[start:stop] = h.to_dense() if isinstance(h, CSR) else h
    return out


def save_with(network: Network, path: PathLike, tensors: dict[str, np.ndarray],
              config: dict[str, Any]) -> None:
    """`Network.save`, with arrays and entries of the configuration of others."""
    with network._lock.held:
        network._begin_call()
        network._save(path, False, False, (tensors, config))


def load_with(path: PathLike, name: str, *, n_threads: int | None = None
              ) -> tuple[Network, dict[str, np.ndarray], dict[str, Any] | None]:
    """`load`, and what `save_with` has added as `name`: the arrays, and the entry or None."""
    n_threads = check.threads(n_threads)
    with _file.opened(path) as stored:
        network = Network(stored.layers(), loss=stored.loss, n_threads=n_threads,
                          compute_dtype=stored.compute_dtype)
        network.refinement = stored.refinement((network.n_labels, network.n_features))
        network.calibration = stored.calibration(network.n_labels)
        stored.restore(network._training)
        others = {key[len(name) + 1:]: a for key, a in stored.tensors.items()
                  if key.startswith(f"{name}.")}
        return network, others, stored.config.get(name)


def load(path: PathLike, *, n_threads: int | None = None) -> Network:
    """Read a network that :meth:`Network.save` wrote.

    Parameters
    ----------
    path : str or path-like
    n_threads : int or None
        Number of threads of the kernels; None for :func:`sparselsh.get_num_threads`.

    Returns
    -------
    Network

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        If there is no such file, or `path` is a directory.
    ValueError
        If it is not a safetensors file, is truncated, or holds no network of this library.
    """
    return load_with(path, "", n_threads=n_threads)[0]
