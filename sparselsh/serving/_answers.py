"""What a request asks of a model, and the answer: texts, sequences of items, rows of features."""
from __future__ import annotations

import json
from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from .._arrays.csr import CSR

if TYPE_CHECKING:
    from ._limits import Limits

MAX_LABELS = 1000  # per answer
DEFAULT_LABELS = 5
MAX_WORDS = 1000  # of an explanation


class BadRequest(Exception):
    """A request that the client can correct; the message says how."""


class Job(NamedTuple):
    """A checked request."""

    items: list[Any]
    k: int
    threshold: float
    n_bytes: int


def served(model: Any) -> Any:
    """The answers of a Tagger, of a Recommender, of a network or of a converted network."""
    if hasattr(model, "tags_"):
        return Texts(model)
    return Sequences(model) if hasattr(model, "items_") else Rows(model)


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is no JSON ({error})") from None
    if not isinstance(found, dict):
        raise BadRequest("the body must be a JSON object")
    return found


def _refuse_unknown(given: dict[str, Any], known: set[str]) -> None:
    if unknown := sorted(set(given) - known):
        raise BadRequest(f"{unknown[0]!r} is unknown; give {', '.join(sorted(known))}")


def _integer(value: Any, name: str, maximum: int) -> int:
    if type(value) is not int or not 1 <= value <= maximum:
        raise BadRequest(f"{name} must be a whole number of 1 to {maximum}")
    return value


class _Answers:
    """Checks requests and answers them; a subclass knows the items of its model."""

    item, items = "", ""  # their names in a request
    kind = ""  # shown by /health
    flags: ClassVar[dict[str, bool]] = {}  # that a request may set, and their defaults
    has_explanations = False

    def __init__(self, n_labels: int, network: Any) -> None:
        self.n_labels = n_labels
        self._as_json: dict[Any, str] = {}  # labels
        calibration = getattr(network, "calibration", None)
        self._n_ranked = 0 if calibration is None else calibration.n_ranked

    def job(self, body: bytes, limits: Limits) -> Job:
        """The request of a body, or BadRequest."""
        given = _object(body)
        _refuse_unknown(given, {self.item, self.items, "k", "threshold", *self.flags})
        if (self.item in given) == (self.items in given):
            raise BadRequest(f"give either {self.item!r} or {self.items!r}")
        many = [given[self.item]] if self.item in given else given[self.items]
        if not isinstance(many, list) or not 1 <= len(many) <= limits.max_items:
            raise BadRequest(f"{self.items!r} must be a list of 1 to {limits.max_items}")
        k = _integer(given.get("k", DEFAULT_LABELS), "k", MAX_LABELS)
        threshold = given.get("threshold", 0)
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not (
                0 <= threshold <= 1):
            raise BadRequest("threshold must be a number of 0 to 1")
        if threshold and not self.has_probabilities:
            raise BadRequest("the model has no probabilities, so that there is no threshold")
        flags = self.flags | {name: given[name] for name in self.flags if name in given}
        if wrong := [name for name, value in flags.items() if not isinstance(value, bool)]:
            raise BadRequest(f"{wrong[0]} must be true or false")
        k = min(k, self.n_labels)
        if self._n_ranked and k > self._n_ranked:  # further ones would need all labels
            raise BadRequest(f"k must be at most {self._n_ranked}, the labels that have "
                             "probabilities of their own")
        items = [self._checked(item, f"{self.items}[{i}]", **flags) for i, item in enumerate(many)]
        return Job(items, k, float(threshold), len(body))

    @property
    def has_probabilities(self) -> bool:
        """Whether labels come with probabilities."""
        raise NotImplementedError

    def _checked(self, item: Any, name: str, **flags: bool) -> Any:
        raise NotImplementedError

    def _best(self, items: list[Any], k: int) -> list[list[tuple[Any, float]]]:
        """The k best labels of each item, with probabilities or scores."""
        raise NotImplementedError

    def answers(self, jobs: list[Job]) -> list[bytes]:
        """The bodies of the answers; what a label gets does not depend on the other requests."""
        every = self._best([item for job in jobs for item in job.items],
                           max(job.k for job in jobs))
        word, found, begin = "probability" if self.has_probabilities else "score", [], 0
        for job in jobs:
            rows = every[begin:begin + len(job.items)]
            begin += len(job.items)
            shown = ", ".join(self._shown(row[:job.k], word, job.threshold) for row in rows)
            found.append(f'{{"predictions": [{shown}]}}'.encode("utf-8", "backslashreplace"))
        return found

    def _shown(self, row: list[tuple[Any, float]], word: str, threshold: float) -> str:
        """The labels of an item as JSON."""
        parts = []
        for label, value in row:
            if threshold and value < threshold:
                continue
            if label not in self._as_json:
                self._as_json[label] = json.dumps(label, ensure_ascii=False)
            number = repr(round(value, 6)) if isfinite(value) else json.dumps(value)
            parts.append(f'{{"label": {self._as_json[label]}, "{word}": {number}}}')
        return f"[{', '.join(parts)}]"

    def warm_up(self) -> None:
        """Answer once, so that indexes are built before workers are forked and share them."""
        raise NotImplementedError


class Texts(_Answers):
    """Answers of a Tagger."""

    item, items = "text", "texts"
    kind = "texts"
    has_explanations = True

    def __init__(self, tagger: Any) -> None:
        super().__init__(len(tagger.tags_), tagger.network_)
        self.tagger = tagger

    @property
    def has_probabilities(self) -> bool:
        return True

    def _checked(self, item: Any, name: str, **flags: bool) -> str:
        if not isinstance(item, str):
            raise BadRequest(f"{name} must be a string")
        return item

    def _best(self, items: list[Any], k: int) -> list[list[tuple[Any, float]]]:
        return self.tagger.predict_topk(items, k=k)

    def explanation(self, body: bytes) -> bytes:
        """The body of an answer to /explain, or BadRequest."""
        given = _object(body)
        _refuse_unknown(given, {"text", "label", "n"})
        for name in ("text", "label"):
            if not isinstance(given.get(name), str):
                raise BadRequest(f"{name} must be a string")
        n = _integer(given.get("n", 10), "n", MAX_WORDS)
        try:
            words = self.tagger.explain(given["text"], given["label"], n)
        except ValueError as error:
            raise BadRequest(str(error)) from None
        shown = [{"word": word, "weight": round(float(weight), 6)} for word, weight in words]
        return json.dumps({"words": shown}, ensure_ascii=False).encode("utf-8", "backslashreplace")

    def warm_up(self) -> None:
        self.tagger.predict_topk(["a"], k=1)

    def use_threads(self, n_threads: int | None) -> None:
        """Let the kernels of this process use so many threads."""
        self.tagger.n_threads = n_threads
        self.tagger.network_.n_threads = n_threads
        if hasattr(self.tagger.vectorizer_, "n_threads"):
            self.tagger.vectorizer_.n_threads = n_threads


class Sequences(_Answers):
    """Answers of a Recommender."""

    item, items = "items", "sequences"
    kind = "sequences of items"
    flags: ClassVar[dict[str, bool]] = {"exclude_seen": True}

    def __init__(self, recommender: Any) -> None:
        super().__init__(len(recommender.items_), recommender.network_)
        self.recommender = recommender

    @property
    def has_probabilities(self) -> bool:
        return True

    def _checked(self, item: Any, name: str, **flags: bool) -> tuple[list[str], bool]:
        if not isinstance(item, list) or not all(isinstance(one, str) for one in item):
            raise BadRequest(f"{name} must be a list of names of items")
        if "" in item:
            raise BadRequest(f"{name} has the item '', which is no name")
        return item, flags["exclude_seen"]

    def _best(self, items: list[Any], k: int) -> list[list[tuple[Any, float]]]:
        return [self.recommender.recommend(names, k, exclude_seen)
                for names, exclude_seen in items]

    def warm_up(self) -> None:
        self.recommender.recommend([], 1)

    def use_threads(self, n_threads: int | None) -> None:
        """Let the kernels of this process use so many threads."""
        self.recommender.n_threads = self.recommender.network_.n_threads = n_threads


class Rows(_Answers):
    """Answers of a network over features with ids."""

    item, items = "features", "rows"
    kind = "rows of features"

    def __init__(self, network: Any) -> None:
        super().__init__(network.n_labels, network)
        self.network = network

    @property
    def has_probabilities(self) -> bool:
        return self._n_ranked > 0

    def _checked(self, item: Any, name: str, **flags: bool) -> tuple[list[int], list[float]]:
        """Ids, ascending, and values of {"id": value, ...}."""
        if not isinstance(item, dict):
            raise BadRequest(f'{name} must be an object such as {{"5": 0.2, "90": 1.5}}')
        entries = []
        for key, value in item.items():
            is_id = key.isascii() and key.isdigit() and len(key) < 11
            if not is_id or int(key) >= self.network.n_features:
                raise BadRequest(f"{name}: {key[:20]!r} is no feature of 0 to "
                                 f"{self.network.n_features - 1}")
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not abs(value) < 3e38:
                raise BadRequest(f"{name}: the value of {key} must be a finite number")
            entries.append((int(key), float(value)))
        entries.sort()
        if len({j for j, _ in entries}) < len(entries):
            raise BadRequest(f"{name}: a feature occurs twice")
        return [j for j, _ in entries], [value for _, value in entries]

    def _best(self, items: list[Any], k: int) -> list[list[tuple[Any, float]]]:
        indptr = np.zeros(len(items) + 1, np.int64)
        np.cumsum([len(ids) for ids, _ in items], out=indptr[1:])
        indices = np.array([j for ids, _ in items for j in ids], np.int32)
        data = np.array([value for _, values in items for value in values], np.float32)
        X = CSR(indptr, indices, data, self.network.n_features)
        options = {"probabilities": True} if self.has_probabilities else {}
        ids, scores = self.network.topk(X, k, **options)
        return [[(j, value) for j, value in zip(*row, strict=True) if j >= 0]
                for row in zip(ids.tolist(), scores.tolist(), strict=True)]

    def warm_up(self) -> None:
        self._best([([0], [1.0])], 1)

    def use_threads(self, n_threads: int | None) -> None:
        """Let the kernels of this process use so many threads."""
        self.network.n_threads = n_threads
