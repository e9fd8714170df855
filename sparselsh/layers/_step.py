"""The arguments, besides the input, that a network passes to a layer."""
from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .._arrays.csr import CSR
    from .._arrays.types import Floats, Ids
    from .._gradients import Pair
    from ._tally import Tally

Backprop: TypeAlias = "Callable[[Floats], tuple[Floats | None, list[Pair]]]"


class Following(Protocol):
    """What a layer uses of the layer that takes its outputs."""

    def dense_input_cost(self, n: int, n_active: int, place: Place) -> float:
        """Nanoseconds that n samples with every input take longer than with n_active inputs."""


class Place(NamedTuple):
    """The position of a layer in its network, on which its defaults and plan costs depend."""

    is_output: bool = True
    following: Following | None = None
    following_place: Place | None = None

    def dense_output_cost(self, n: int, n_active: int) -> float:
        """Nanoseconds that the next layer takes longer if it gets every output of n samples."""
        if self.following is None or self.following_place is None:
            return 0.0
        return self.following.dense_input_cost(n, n_active, self.following_place)


OUTPUT = Place()  # of the last layer, and of a layer by itself


def places_of(layers: Sequence[Following]) -> list[Place]:
    """The place of each layer of a network."""
    places = [OUTPUT]
    for following in reversed(layers[1:]):
        places.append(Place(False, following, places[-1]))
    return places[::-1]


class Step(NamedTuple):
    """What a forward pass needs to know besides its input."""

    training: bool = False
    labels: CSR | None = None  # the labels of the batch, for the output layer
    seed: int = 0
    need_input_gradient: bool = True
    n_threads: int = 1
    tally: Tally | None = None  # counts what is computed
    place: Place = OUTPUT
    found: list[Ids] | None = None  # takes what the hash tables or sketches find
    in_bfloat16: bool = False  # products of matrices, of factors rounded to bfloat16
