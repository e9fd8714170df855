"""Protocols for parts of your own: what the library calls, and what it expects back.

    HashFamily       ``LSHLinear(family=...)``, ``LSHIndex(family)``
    SamplingPolicy   ``LSHLinear(policy=...)``
    Loss             ``Network(loss=...)``
    UpdateRule       ``fit(optimizer=CustomOptimizer(rule, lr))``
    Schedule         ``schedule=`` of an optimizer

An object fits if it has the methods; no base class is needed. What it returns is checked, because
the kernels trust their input. ``Network.save`` refuses networks with parts of your own, as a file
keeps no code: pickle keeps them.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

if TYPE_CHECKING:
    import numpy as np

    from ._arrays.csr import CSR
    from ._arrays.types import Floats, Ids, RandomState

__all__ = ["HashFamily", "Loss", "Neurons", "SamplingPolicy", "Schedule", "UpdateRule"]


class HashFamily(Protocol):
    """Map each row to one bucket number per table.

    Rows are a C-contiguous float32 array, or compressed sparse rows with `indptr`, `indices`,
    `data` and `to_dense()`; their values are finite. An index copies the family, shallowly, before
    it calls `fit`: let `fit` set attributes, and change no array in place.

    Attributes
    ----------
    tables : int
        Number of tables, 1 to 255.
    n_buckets : int
        Buckets per table, 1 to 2**24.
    """

    tables: int

    @property
    def n_buckets(self) -> int:
        """Buckets per table."""

    def fit(self, n_dims: int, random_state: RandomState = None) -> Self:
        """Draw the hash functions.

        Parameters
        ----------
        n_dims : int
            Columns of the rows that will be hashed.
        random_state : None, int or numpy.random.Generator
            The same one must give the same functions.

        Returns
        -------
        HashFamily
            Itself.
        """

    def hash(self, V: Floats | CSR, *, n_threads: int = 1) -> Ids:
        """The bucket of each row in each table.

        Parameters
        ----------
        V : ndarray of shape (n, n_dims), float32, or CSR
        n_threads : int

        Returns
        -------
        ndarray of shape (n, tables), int32
            0 to n_buckets - 1; -1 keeps a row out of a table.
        """

    def probe(self, V: Floats | CSR, n_probes: int, *, n_threads: int = 1) -> Ids:
        """The buckets in which to look for neighbours of each row.

        Parameters
        ----------
        V : ndarray of shape (n, n_dims), float32, or CSR
        n_probes : int
            1 unless `n_probes` of the layer or of the search is larger.
        n_threads : int

        Returns
        -------
        ndarray of shape (n, tables, n_probes), int32
            The bucket of the row first, all different; -1 for none.
        """

    def config(self) -> dict[str, Any]:
        """The arguments of the constructor.

        Returns
        -------
        dict
            Families of one class with equal ones hash alike.
        """


class Neurons(Protocol):
    """The parts of a layer that a :class:`SamplingPolicy` may read.

    Attributes
    ----------
    weight : ndarray of shape (n_out, n_in), float32
        Not to be changed.
    bias : ndarray of shape (n_out,), float32
        Not to be changed.
    seed : int
        Differs from step to step; the same one must give the same choice.
    n_threads : int
        Threads of the kernels.
    """

    weight: Floats
    bias: Floats
    seed: int
    n_threads: int

    def collisions(self, n: int) -> tuple[Ids, Ids]:
        """The neurons that share most buckets of the hash tables with each input.

        The tables are built at the first call, and kept up to date by the `rebuild` policy.

        Parameters
        ----------
        n : int
            Neurons per input.

        Returns
        -------
        ids : ndarray of shape (n_samples, n), int32
            Most shared buckets first; -1 where fewer share one.
        counts : ndarray of shape (n_samples, n), int32
            Tables that share the bucket.
        """

    def codes(self) -> Ids:
        """The bucket of each neuron in each table.

        Returns
        -------
        ndarray of shape (n_out, tables), int32
        """


class SamplingPolicy(Protocol):
    """Chooses the neurons that a training step computes, beside the labels."""

    def choose(self, x: Floats, n: int, neurons: Neurons) -> Ids:
        """Neurons for each input.

        Parameters
        ----------
        x : ndarray of shape (n_samples, n_in), float32
            Inputs of the layer.
        n : int
            Neurons per input: `candidates` of the layer where the batch shares its set, those that
            fill the set otherwise.
        neurons : Neurons
            Weights, hash tables and the seed of the step.

        Returns
        -------
        int array of shape (n_samples, up to n)
            Best first, distinct per row; -1 for none. Where the batch shares its set, the first
            choices of all samples come before the second ones.
        """


class Loss(Protocol):
    """A loss over the outputs that were computed.

    Attributes
    ----------
    outputs : {"classes", "labels", "values"}
        What outputs stand for. Without a calibration, probabilities are the softmax of "classes"
        and the sigmoids of "labels"; "values" are predicted as they are.
    """

    outputs: Literal["classes", "labels", "values"]

    def __call__(self, z: Floats, targets: Floats, is_computed: np.ndarray
                 ) -> tuple[np.ndarray, np.ndarray]:
        """Losses of the samples and their gradients.

        Parameters
        ----------
        z : ndarray of shape (n_samples, n_computed), float32
            Outputs. All samples have the same columns, or each its own set of neurons.
        targets : ndarray of shape (n_samples, n_computed), float32
            1 for a label and 0 for the others; the targets themselves for "values".
        is_computed : ndarray of shape (n_samples, n_computed), bool
            False at the end of rows whose sets are smaller than the largest; z is 0 there.

        Returns
        -------
        losses : array of shape (n_samples,)
            Each the loss of one sample: the library takes the mean, and applies the weights of
            samples.
        gradient : array of shape (n_samples, n_computed)
            Of the loss of the sample with respect to z.
        """


class UpdateRule(Protocol):
    """How an optimizer changes rows of weights; see :class:`sparselsh.CustomOptimizer`.

    Attributes
    ----------
    n_states : int
        Arrays of state per parameter, such as 1 for a momentum.
    """

    n_states: int

    def update(self, w: Floats, g: Floats, states: list[Floats], *, lr: float,
               n_steps: int) -> None:
        """Change the rows that a batch has touched, in place.

        Parameters
        ----------
        w : ndarray of shape (n_rows, n_columns), float32
            Copies of the rows; one column for biases.
        g : ndarray of shape (n_rows, n_columns), float32
            The gradient.
        states : list of ndarray, each of the shape of w, float32
            The state of these rows, zero at first.
        lr : float
            Learning rate after the schedule.
        n_steps : int
            Number of this step of the network, from 1.
        """


class Schedule(Protocol):
    """The learning rate over a training; with `momentum_at`, the momentum too."""

    def __call__(self, t: float) -> float:
        """A factor of the learning rate.

        Parameters
        ----------
        t : float
            Completed fraction of the training, in [0, 1).

        Returns
        -------
        float
            At least 0.
        """
