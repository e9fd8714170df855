"""ShardedNetwork: a network of two layers whose shards lie in any number of processes."""
from __future__ import annotations

import os
import re
import warnings
import zlib
from collections.abc import Iterable
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np

from .. import _files
from .. import _validation as check
from .._arrays import bfloat16
from .._arrays.csr import CSR
from .._core._simd import is_reproducible, level, set_level, use_fastest
from .._signals import Interrupts
from .._threads import get_num_threads, one_at_a_time, resolve
from .._version import __version__
from ..callbacks import BestModel, EarlyStopping, Log
from ..callbacks import Checkpoint as FileCheckpoint
from ..layers import Linear, LSHLinear
from ..network import Network
from ..optim import SGD, Adam
from ..training import Diverged, Training, feature_vectors, label_directions
from . import _folder
from ._groups import group as default_group
from ._groups import local_processes
from ._interrupts import SharedInterrupts
from ._layers import ColumnLinear, RowLSHLinear, shard_generators
from ._losses import sharded
from ._rows import RowFolder, SplitRows
from ._shards import DistributedError, Shards

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .._arrays.types import Floats, Ids, MatrixLike, PathLike, RandomState
    from .._gradients import Parameter
    from ..callbacks import Callback
    from ..inference import Affine
    from ..losses import Loss
    from ..optim import Optimizer
    from ..profiling import Profile
    from ..training import Source, TrainingProgress
    from ._groups import Group


ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # in the repr of a function, other in each process
SAVING = BestModel, FileCheckpoint, _folder.Checkpoint
N_CHECKED_ROWS = 512  # that processes compare at the start of a training
LEVELS = ("baseline", "v3", "avx-vnni", "v4", "v4-vnni", "v4-bf16", "amx")  # of SIMD, slowest first


class ShardedTraining(Training):
    """A training whose layers lie in several processes."""

    shards: Shards

    def begin(self, optimizer: Optimizer, sparse_input: bool) -> None:
        if not isinstance(optimizer, (SGD, Adam)):
            raise TypeError("optimizer must be an SGD or Adam object in a network of shards, got "
                            f"{optimizer!r}; use Network for a rule of your own")
        super().begin(optimizer, sparse_input)
        self.suit_layers()

    def suit_layers(self) -> None:
        """Let the layers hold what they own as the optimizer needs it."""
        hidden, last = cast("tuple[ColumnLinear, RowLSHLinear]", self.layers)
        hidden.split_for(self.optimizer)
        last.state_is_rounded = self.optimizer.state_dtype == "bfloat16" and self.shards.n > 1

    def step(self, *args: Any, **kwargs: Any) -> tuple[float, float]:
        self.shards.step = self.n_steps
        return super().step(*args, **kwargs)

    def _largest(self, x: Floats | CSR, d_out: Floats | CSR) -> float:
        return self.shards.agree(super()._largest(x, d_out))

    def _is_finite(self) -> bool:
        return not self.shards.agree(not super()._is_finite())

    def agreed(self, is_stopped: bool) -> bool:
        return bool(self.shards.from_first(bool(is_stopped)))


class ShardedNetwork(Network):
    """A network of two layers that several processes train and use together.

    All processes create it with the same arguments and make the same calls with the same rows.
    Labels and hidden units are divided among `shards` shards. The number of processes may be any
    power of two up to `shards`. The results do not depend on it: weights, history and predictions
    have the same bits. Another number of processes can continue a training that has ended for any
    reason. With ``shards=1`` it trains as :class:`Network`, bit for bit.

    Parameters
    ----------
    layers : sequence of Linear and LSHLinear
        A hidden layer and an output layer. The output layer has one active set per batch, the
        policy "top", and a rebuild policy that knows steps only.
    shards : int
        A power of two, at least the number of processes. The results depend on it.
    group : Group or None
        The processes; None for :func:`group`.
    loss, random_state, compute_dtype
        As for :class:`Network`.
    n_threads : int or None
        Number of threads of this process; None for the default, divided by the number of processes
        on this machine where their launcher tells it.

    Attributes
    ----------
    shards : Shards
        Which labels and hidden units this process owns.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid, or the number of processes does not divide `shards`.
    DistributedError
        If the processes differ in version, instruction set or arguments; the message names them.

    See Also
    --------
    Network : The same in one process; its methods are those of this class too.

    Examples
    --------
    >>> import numpy as np, sparselsh as sl
    >>> from sparselsh import distributed
    >>> X = np.eye(40, dtype=np.float32)
    >>> layers = [sl.Linear(40, 16), sl.LSHLinear(16, 40, density=0.5)]
    >>> net = distributed.ShardedNetwork(layers, shards=4,
    ...                                  random_state=0)
    >>> _ = net.fit(X, np.arange(40), epochs=60, batch_size=8,
    ...             verbose=False)
    >>> net.predict(X[:3])
    array([0, 1, 2], dtype=int32)
    """

    def __init__(self, layers: Sequence[Linear], *, shards: int = 16, group: Group | None = None,
                 loss: str | Loss = "softmax", random_state: RandomState = None,
                 n_threads: int | None = None, compute_dtype: str = "float32") -> None:
        if isinstance(layers, Linear) or not isinstance(layers, Iterable):
            raise TypeError(f"layers must be a list of two layers, got {layers!r}; give "
                            "[Linear(...), LSHLinear(...)]")
        layers = list(layers)
        if len(layers) != 2 or isinstance(layers[0], LSHLinear):
            raise ValueError("layers must be a Linear and an LSHLinear or a Linear, got "
                             f"{layers!r}; other networks are trained by one process: use Network")
        group = default_group() if group is None else group
        self.shards = Shards(shards, group)
        last = layers[1] if isinstance(layers[1], LSHLinear) else _as_lsh(layers[1])
        if random_state is None:  # the same in all processes
            random_state = self.shards.from_first(int(np.random.default_rng().integers(2**62)))
        if n_threads is None and group.size > 1:
            n_threads = max(1, _processors() // local_processes())

        parts = [ColumnLinear(layers[0], self.shards), RowLSHLinear(last, self.shards)]
        super().__init__(parts, loss=loss, random_state=random_state, n_threads=n_threads,
                         compute_dtype=compute_dtype)
        training = ShardedTraining(self.layers, sharded(self.loss, self.shards),
                                   self._training.rng, self.compute_dtype)
        training.shards = self.shards
        self._training = training
        self.shards.greet({"the version of sparselsh": __version__,
                           "shards": self.shards.n, **_facts_of([layers[0], last]),
                           "loss": repr(self.loss),
                           "compute_dtype": self.compute_dtype})
        _use_common_level(self.shards)

    @property
    def parts(self) -> tuple[ColumnLinear, RowLSHLinear]:
        """The two layers."""
        return cast("tuple[ColumnLinear, RowLSHLinear]", tuple(self.layers))

    @property
    def group(self) -> Group:
        """The processes."""
        return self.shards.group

    @property
    def computed_share(self) -> float:
        """Fraction of the output neurons that the last epoch, or search, computed."""
        return self._training.computed_share

    @computed_share.setter
    def computed_share(self, fraction: float) -> None:
        self._training.computed_share = fraction
        self._last_search = None

    # -- training --------------------------------------------------------------------------------

    def _source(self, X: Any, Y: Any, window: int, epochs: int, sample_weight: Any) -> Source:
        with self.shards.together("use its rows"):
            if isinstance(X, RowFolder):
                source: Any = self._split_rows(X, Y, window, sample_weight)
            else:
                source = super()._source(X, Y, window, epochs, sample_weight)
        state = self._training.rng.bit_generator.state
        self.shards.greet({"the number of rows": source.n_rows, "epochs": epochs,
                           "window": window, "the number of steps before": self._training.n_steps,
                           "the state of the random generator":
                               f"{zlib.crc32(repr(state).encode()):08x}"})
        if self.group.size > 1:
            with self.shards.together("read its rows"):
                checksum = _checksum_of_some_rows(source)
            self.shards.greet({"the rows (a checksum of some)": checksum})
        return source

    def _split_rows(self, X: RowFolder, Y: Any, window: int, sample_weight: Any) -> SplitRows:
        if Y is not None:
            raise ValueError("Y must be None where X is a folder of files, which have the labels")
        for what, n, expected in (("features", X.shape[1], self.n_features),
                                  ("labels", X.n_labels, self.n_labels)):
            if n != expected:
                raise ValueError(f"X must have {expected} {what}, got {n} in {X.path!r}")
        if not len(X):
            raise ValueError("X must have at least one row, got none")
        return SplitRows(X, window, check.sample_weight(sample_weight, len(X)), self.shards)

    @contextmanager
    def _begun(self, optimizer: Any, source: Source, progress: TrainingProgress | None,
               added: Any) -> Iterator[None]:
        with self._left_on_error(), super()._begun(optimizer, source, progress, added):
            facts: dict[str, Any] = {"optimizer": ADDRESS.sub("", repr(optimizer))}
            if progress is not None:
                facts |= {"batch_size": progress.batch_size, "shuffle": progress.shuffle}
            self.shards.greet(facts)
            yield

    @contextmanager
    def _left_on_error(self) -> Iterator[None]:
        """Context of what all processes do together: an error of one leaves the group."""
        try:
            yield
        except (DistributedError, Diverged, KeyboardInterrupt):
            raise
        except BaseException as error:
            self.group.fail(f"{type(error).__name__}: {error}")
            raise

    def _train(self, source: Source, validation: Any, callbacks: Sequence[Callback],
               verbose: bool, on_nonfinite: str) -> None:
        is_first = self.group.rank == 0
        callbacks = [callback if is_first or not isinstance(callback, Log) else _Silent(callback)
                     for callback in callbacks]
        for i, callback in enumerate(callbacks):
            if isinstance(callback, EarlyStopping) and callback.restore_best:
                raise ValueError(f"callbacks[{i}] is EarlyStopping(restore_best=True), which keeps "
                                 "weights that a checkpoint of shards does not hold; give "
                                 "restore_best=False and save the best network with BestModel")
        sources = [callback.raised for callback in callbacks
                   if isinstance(callback, _folder.Checkpoint)]
        with self._left_on_error(), self.shards.flagging(*sources):
            # what exchanges something must be in all processes
            self.shards.greet({
                "callbacks that save": [[type(callback).__name__,
                                         getattr(callback, "every_steps", None)]
                                        for callback in callbacks if isinstance(callback, SAVING)],
                "the number of rows of validation":
                    0 if validation is None else validation[0].shape[0]})
            super()._train(source, validation, callbacks, verbose and is_first, on_nonfinite)

    def _interrupts(self) -> Interrupts:
        return SharedInterrupts(self.shards)

    def _label_vectors(self, X: CSR, Y: CSR, shared: bool,
                       weight: Floats | None) -> tuple[Floats, Floats]:
        hidden, last = self.parts
        shards, n_threads = self.shards, resolve(self.n_threads)
        blocks = []
        generators = shard_generators(self._training.rng, shards)
        for s, rng in zip(range(shards.first, shards.last), generators, strict=True):
            width = shards.columns(hidden.n_out, s + 1) - shards.columns(hidden.n_out, s)
            blocks.append(feature_vectors(X, Y, width, shared, rng, n_threads, weight))
        features = blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=1)

        owned = shards.owns(Y.indices)
        counts = np.concatenate([[0], np.cumsum(owned)])
        own = CSR(counts[Y.indptr].astype(np.int64), shards.rows(Y.indices[owned], last.starts),
                  Y.data[owned], last.n_rows)
        return label_directions(X, own, features, hidden.activation == "relu", n_threads, weight,
                                lambda h: shards.whole_of_columns(h, hidden.n_out))

    def _part_of_refinement(self) -> dict[str, Any]:
        return {"part": (self.group.rank, self.group.size), "gathered": self.shards.gather_arrays}

    def refine(self, X: Any, Y: Any = None, *, verbose: bool = True, **options: Any) -> Self:
        """Add one linear classifier of the inputs per label to a trained network.

        The labels, in blocks of some million weights, are divided among the processes, which get
        the classifiers of all.

        Parameters
        ----------
        X, Y, verbose, **options
            As for :meth:`Network.refine`.

        Returns
        -------
        ShardedNetwork
            Itself; `refinement` holds the classifiers.

        Raises
        ------
        ValueError
            As for :meth:`Network.refine`.
        DistributedError
            If a process is lost.
        """
        super().refine(X, Y, verbose=verbose and self.group.rank == 0, **options)
        return self

    def _grown_layers(self, weight: Floats, bias: Floats, inputs: Floats) -> tuple[
            list[Callable[[], None]], list[tuple[Parameter, list[np.ndarray]]]]:
        (hidden, last), n_threads = self.parts, resolve(self.n_threads)
        optimizer, states = self.optimizer, []
        changes: list[Callable[[], None]]
        n_out, n_in = last.n_out + len(weight), hidden.n_in + inputs.shape[1]
        names, value, biases = last.with_labels(weight, bias)
        changes = [partial(last.take_labels, n_out, value, biases, n_threads)]
        if optimizer is not None:
            places = np.flatnonzero(names < last.n_out)
            for parameter, shape in zip(last.parameters, (value.shape, (len(value), 1)),
                                        strict=True):
                states.append((parameter, optimizer.grown_arrays(parameter, shape, places)))
        if n_in > hidden.n_in:
            changes.append(partial(hidden.__dict__.update, n_in=n_in))
            for block, columns in hidden.owned():
                grown, b = block.grown(inputs[columns], np.zeros((0, n_in), np.float32), bias[:0])
                changes.append(partial(block.take_grown, grown, b, n_threads))
                if optimizer is not None:
                    states.append((block.parameters[0],
                                   optimizer.grown_arrays(block.parameters[0], grown.shape)))
        return changes, states

    # -- inference -------------------------------------------------------------------------------

    @one_at_a_time
    def topk(self, X: MatrixLike, k: int = 5, **options: Any) -> tuple[Ids, Floats]:
        """The k outputs with the largest scores, the same in all processes.

        Each shard gives its k best, and these are merged by score and id: with ``exact=True`` the
        ids and scores of one process that computes every output. A search gives the same for any
        number of processes. At the first search after a change of weights, the shards are
        calibrated together, so that what is merged has the recall that the output layer asks for.

        Parameters
        ----------
        X : array or sparse matrix of shape (n_samples, n_features)
        k : int
        **options
            `exact`, `probabilities`, `allow` and `exclude`, as for :meth:`Network.topk`.

        Returns
        -------
        ids : ndarray of shape (n_samples, k), int32
        scores : ndarray of shape (n_samples, k), float32

        Raises
        ------
        ValueError, TypeError
            As for :meth:`Network.topk`.
        DistributedError
            If a process is lost.
        """
        found = super().topk(X, k, **options)
        self.computed_share = self.layers[-1].computed_fraction(
            k, exact=bool(options.get("exact", False)))
        return found

    # -- files -----------------------------------------------------------------------------------

    @one_at_a_time
    def save(self, path: PathLike, *, training_state: bool = False, indexes: bool = False) -> None:
        """Write the network as a folder: a file per shard, and one that names them.

        A reader finds the previous files or the new ones, complete, even if processes are killed.
        Any number of processes that divides the shards can open the folder.

        Parameters
        ----------
        path : str or path-like
            A folder; it is created if it is missing. All processes must see the same folder.
        training_state : bool
            Also keep the state of the optimizer, the random generator and the hash tables, so that
            `resume` continues with the same bits.
        indexes : bool
            Ignored: hash tables belong to the state of a training, and the indexes of `topk` are
            built when they are needed.

        Raises
        ------
        ValueError
            If the network has no weights yet.
        OSError
            If this process cannot write its files; nothing has changed then.
        DistributedError
            If another process cannot.
        """
        self._check_initialized()
        _folder.write(self, path, bool(training_state))

    def checksums(self) -> dict[str, int]:
        """Checksums of the own shards: weights, moments, and codes of the hash tables.

        Returns
        -------
        dict of str to int
            CRC-32 by number of the shard and name of the array.

        Raises
        ------
        ValueError
            If the network has no weights yet.
        """
        self._check_initialized()
        return _folder.checksums(self)

    def to_network(self, *, n_threads: int | None = None) -> Network:
        """The whole network in this process, without the state of its training.

        Parameters
        ----------
        n_threads : int or None

        Returns
        -------
        Network

        Raises
        ------
        ValueError
            If the network has no weights yet.
        DistributedError
            If a process is lost.
        """
        self._check_initialized()
        hidden, last = self.parts
        value, bias, input_major = hidden.joined()
        value = bfloat16.as_float32(value)
        parts = self.shards.gather_arrays([value if input_major else value.T, bias])
        first = Linear(hidden.n_in, hidden.n_out, activation=hidden.activation,
                       dropout=hidden.dropout, dtype=hidden.dtype)
        first.set_weights(np.concatenate([part[0] for part in parts], axis=1).T,
                          np.concatenate([part[1] for part in parts]))

        config = last.config()
        second = LSHLinear.from_config(config)
        weight, biases = np.empty((last.n_out, last.n_in), np.float32), np.empty(last.n_out,
                                                                               np.float32)
        own = [last.names, bfloat16.as_float32(last.parameters[0].value),
               last.parameters[1].value[:, 0]]
        for names, value, bias in self.shards.gather_arrays(own):
            weight[names], biases[names] = value, bias
        second.set_weights(weight, biases)
        second._inputs = last._inputs
        net = Network([first, second], loss=self.loss.plain, random_state=0,
                      n_threads=n_threads, compute_dtype=self.compute_dtype)
        net.refinement, net.calibration = self.refinement, self.calibration
        net.history = [dict(entry) for entry in self.history]
        return net

    def architecture(self) -> list[Affine]:
        """The layers as affine maps of the whole network, which each process gets.

        Returns
        -------
        list of Affine

        Raises
        ------
        ValueError
            If the network has no weights yet.
        """
        return self.to_network().architecture()

    def to_torch(self, *, refinement: str = "keep") -> Any:
        """The whole network as a ``torch.nn.Module``, which each process gets.

        Parameters
        ----------
        refinement : {"keep", "drop"}
            As for :meth:`Network.to_torch`.

        Returns
        -------
        torch.nn.Module

        Raises
        ------
        ImportError, ValueError
            As for :meth:`Network.to_torch`.
        """
        return self.to_network().to_torch(refinement=refinement)

    def profile(self, X: MatrixLike, Y: MatrixLike, **options: Any) -> Profile:
        """Count and time training steps of the whole network in this process.

        Parameters
        ----------
        X, Y, **options
            As for :meth:`Network.profile`.

        Returns
        -------
        Profile

        Raises
        ------
        ValueError, TypeError
            As for :meth:`Network.profile`; also if the network has no weights yet.
        """
        return self.to_network(n_threads=self.n_threads).profile(X, Y, **options)

    def __repr__(self) -> str:
        body = ",\n         ".join(repr(layer) for layer in self.layers)
        return (f"ShardedNetwork([{body}],\n        shards={self.shards.n}, group={self.group!r}, "
                f"loss={self.loss!r})")


def _facts_of(layers: Sequence[Linear]) -> dict[str, Any]:
    """The arguments of layers, which must be the same in all processes."""
    return {f"{name} of layers[{i}]": value for i, layer in enumerate(layers)
            for name, value in layer.config().items() if name not in ("seed", "chosen_plan")}


def _checksum_of_some_rows(source: Source | SplitRows) -> str | None:
    """Digits that other rows, or another order, would change; None for rows that are not there.

    Processes that list files in different orders have as many rows, and would train nonsense.
    """
    rows = source.some_rows(N_CHECKED_ROWS)
    if rows is None:
        return None
    checksum = 0
    for part in rows:
        for array in part[:3] if isinstance(part, CSR) else () if part is None else (part,):
            checksum = zlib.crc32(array.tobytes(), checksum)
    return f"{checksum:08x}"


def _use_common_level(shards: Shards) -> None:
    """Take the lowest SIMD level of all processes: results depend on it.

    Reproducible levels give the same results; if a process uses one, all do.
    """
    levels = shards.gather_json(level())
    if any(name.startswith("reproducible") for name in levels):
        if not is_reproducible():
            use_fastest(True)
        return
    lowest = min(levels, key=lambda name: LEVELS.index(name) if name in LEVELS else -1)
    if lowest != level():
        slow = levels.index(lowest)
        warnings.warn(f"this process uses the SIMD level {lowest} in place of {level()}, because "
                      f"process {slow} ({shards.hosts[slow]}) has no other", RuntimeWarning,
                      stacklevel=3)
        set_level(lowest)


class _Silent:
    """Stands for a callback of process 0 in the others."""

    def __new__(cls, callback: Callback) -> Any:
        from ..callbacks import Callback as Base

        return Base()


def _as_lsh(layer: Linear) -> LSHLinear:
    """A layer that computes every neuron as one that may skip some, and does not."""
    lsh = LSHLinear(layer.n_in, layer.n_out, density=1.0, activation=layer.activation,
                    init_scale=layer.init_scale, dtype=layer.dtype)
    if layer.initialized:
        lsh.set_weights(layer.weight, layer.bias)
    return lsh


def _processors() -> int:
    """Processors of this process; launchers set OMP_NUM_THREADS to 1 where they start several."""
    given = os.environ.pop("OMP_NUM_THREADS", None) if "LOCAL_WORLD_SIZE" in os.environ else None
    try:
        return get_num_threads()
    finally:
        if given is not None:
            os.environ["OMP_NUM_THREADS"] = given


def split(network: Network, *, shards: int = 16, group: Group | None = None,
          n_threads: int | None = None) -> ShardedNetwork:
    """Convert a trained network to a ShardedNetwork with the same weights.

    Parameters
    ----------
    network : Network
        The same in all processes: a hidden layer and an output layer.
    shards : int
    group : Group or None
    n_threads : int or None
        As for :class:`ShardedNetwork`.

    Returns
    -------
    ShardedNetwork

    Raises
    ------
    TypeError, ValueError
        If it is not such a network, or an argument is invalid.
    """
    if not isinstance(network, Network) or isinstance(network, ShardedNetwork):
        raise TypeError(f"network must be a Network of one process, got {network!r}")
    if not all(layer.initialized for layer in network.layers):
        raise ValueError("this network has no weights yet; call fit, or make a ShardedNetwork")
    net = ShardedNetwork(network.layers, shards=shards, group=group, loss=network.loss,
                         random_state=0, n_threads=n_threads,
                         compute_dtype=network.compute_dtype)
    net.refinement, net.calibration = network.refinement, network.calibration
    net.history = [dict(entry) for entry in network.history]
    return net


def load(path: PathLike, *, group: Group | None = None,
         n_threads: int | None = None) -> ShardedNetwork:
    """Read a network that :meth:`ShardedNetwork.save` wrote, by any number of processes.

    Parameters
    ----------
    path : str or path-like
        The folder.
    group : Group or None
        The processes; None for :func:`group`.
    n_threads : int or None

    Returns
    -------
    ShardedNetwork

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or a file of it is missing.
    ValueError
        If a file is damaged or belongs to another set, or the number of processes does not divide
        the shards; the message names the file.
    DistributedError
        If another process cannot read its files.
    """
    path = os.path.abspath(check.path(path))
    group = default_group() if group is None else group
    name, config = _folder.read_head(path)
    file = os.path.join(path, _folder.HEAD)
    try:
        hidden = Linear.from_config(config["layers"][0])
        last = LSHLinear.from_config(config["layers"][1])
        n_shards, loss, compute_dtype = (config["shards"], config["loss"],
                                         config["compute_dtype"])
    except _folder.DAMAGES as error:
        raise _files.damaged(file, "network", error) from error
    net = ShardedNetwork([hidden, last], shards=n_shards, group=group, loss=loss, random_state=0,
                         n_threads=n_threads, compute_dtype=compute_dtype)
    net.parts[1]._seed = last._seed
    with net.shards.together("read its shards"):
        _folder.restore(net, path, name, config)
    net.shards.checkpoint = path
    net.shards.written[path] = config["token"]
    return net
