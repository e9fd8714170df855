"""ConvertedNetwork: layers, and what stands before and behind them; its report and its file."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

from .. import _validation as check
from . import _file
from ._inference_network import InferenceNetwork

if TYPE_CHECKING:
    import numpy as np

    from .._arrays.types import PathLike
    from ._report import ConversionReport


class ConvertedNetwork:
    """A converted model of another library: its layers, and what its answers are named by."""

    network: InferenceNetwork
    _format: ClassVar[str]  # of its files

    @property
    def report(self) -> ConversionReport:
        """Choices and measurements of the conversion."""
        return self.network.report

    def save(self, path: PathLike) -> None:
        """Write the layers, their plans and everything else that inference needs as one file.

        Parameters
        ----------
        path : str or path-like

        Raises
        ------
        TypeError, ValueError
            If an EstimatorNetwork has steps before the classifier, or classes that are neither
            numbers nor strings: these could only be pickled.
        OSError
            If the file cannot be written.
        """
        tensors, config = self._state()
        _file.write(path, self.network.layers, self.report, kind=self._format, tensors=tensors,
                    config=config)

    @classmethod
    def load(cls, path: PathLike, *, n_threads: int | None = None) -> Self:
        """Read a network that :meth:`save` wrote.

        Parameters
        ----------
        path : str or path-like
        n_threads : int or None
            Number of threads; None for :func:`sparselsh.get_num_threads`.

        Returns
        -------
        EstimatorNetwork, FactorNetwork, OnnxNetwork or TextNetwork
            An object of the class on which this is called.

        Raises
        ------
        ImportError
            If the model has a trunk, and onnx or onnxruntime is missing.
        FileNotFoundError
            If there is no such file.
        ValueError
            If it is cut short, damaged, or holds no such network.
        """
        n_threads = check.threads(n_threads)
        whole = _file.read_whole(path, False, n_threads, kind=cls._format)
        network = InferenceNetwork(whole.layers, whole.report, n_threads)
        with _file.named(path):
            made = cls._restored(whole, network, str(path))
        made.network = network
        return made

    def _state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The arrays and plain values of a file, beside those of the layers."""
        raise NotImplementedError

    @classmethod
    def _restored(cls, whole: _file.Whole, network: InferenceNetwork, source: str) -> Self:
        """The object of the file `source` around its layers; what does not fit raises."""
        raise NotImplementedError
