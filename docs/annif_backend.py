"""A back end for Annif: subjects of documents by sparselsh.Tagger.

Annif (https://annif.org) finds subjects of a vocabulary for documents. Importing this module adds
the back end "sparselsh" to it: put the file on the path of Python and import it before a command
of Annif runs,

    python -c "import annif_backend, annif.cli; annif.cli.cli()" train sparselsh-en corpus.tsv

with a project like this in projects.cfg:

    [sparselsh-en]
    name=sparselsh English
    language=en
    backend=sparselsh
    analyzer=simple
    vocab=my-vocab
    limit=100
    allow_learn=True

More keys are `hidden`, the neurons of the hidden layer, `ngram`, the most words of a run, and
`min_df`, the fewest documents with a run. Words are those of the analyzer of the project, so that
its stemming applies. Subjects are kept by their URIs: a vocabulary may grow, and `annif learn` adds
subjects and words that are new.
"""
from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, ClassVar

from annif import backend
from annif.backend.backend import AnnifLearningBackend
from annif.exception import NotInitializedException, NotSupportedException
from annif.suggestion import SubjectSuggestion, SuggestionBatch

import sparselsh as sl

if TYPE_CHECKING:
    from collections.abc import Iterable

    from annif.corpus import Document, DocumentCorpus


class SparselshBackend(AnnifLearningBackend):
    """A Tagger whose tags are the URIs of subjects."""

    name = "sparselsh"

    MODEL_FILE = "sparselsh-model.safetensors"
    DEFAULT_PARAMETERS: ClassVar = {"hidden": 128, "ngram": 2, "min_df": 2}

    _model = None

    @property
    def _path(self) -> str:
        return os.path.join(self.datadir, self.MODEL_FILE)

    def initialize(self, parallel: bool = False) -> None:
        """Read the model."""
        if self._model is not None:
            return
        if not os.path.exists(self._path):
            raise NotInitializedException(f"model {self._path} not found",
                                          backend_id=self.backend_id)
        self._model = sl.Tagger.load(self._path)

    def _text(self, document: Document) -> str:
        return " ".join(self.project.analyzer.tokenize_words(document.text))

    def _rows(self, documents: Iterable[Document]) -> tuple[list[str], list[list[str]]]:
        """Texts that have words, and the URIs of their subjects."""
        texts, tags = [], []
        for document in documents:
            text = self._text(document)
            if text:
                texts.append(text)
                tags.append([self.project.subjects[j].uri for j in document.subject_set])
        return texts, tags

    def _train(self, corpus: DocumentCorpus, params: dict[str, Any], jobs: int = 0) -> None:
        if corpus == "cached":
            raise NotSupportedException("sparselsh keeps no training data; give the documents")
        texts, tags = self._rows(corpus.documents)
        if not any(tags):
            raise NotSupportedException("cannot train sparselsh without documents with subjects")
        words = sl.TextVectorizer((1, int(params["ngram"])), min_df=int(params["min_df"]))
        tagger = sl.Tagger(words, hidden=int(params["hidden"]), random_state=0,
                           n_threads=jobs or None)
        self._model = tagger.fit(texts, tags)
        self._model.save(self._path)  # it replaces the file at once

    def _learn(self, corpus: DocumentCorpus, params: dict[str, Any]) -> None:
        self.initialize()
        self._model.partial_fit(*self._rows(corpus.documents))
        self._model.save(self._path)

    def _suggest_batch(self, documents: list[Document], params: dict[str, Any]) -> SuggestionBatch:
        texts = [self._text(document) for document in documents]
        found = self._model.predict_topk(texts, int(params["limit"]))
        rows = []
        for text, pairs in zip(texts, found, strict=True):
            ids = [(self.project.subjects.by_uri(uri), p) for uri, p in pairs] if text else []
            rows.append([SubjectSuggestion(subject_id=j, score=p) for j, p in ids
                         if j is not None])
        return SuggestionBatch.from_sequence(rows, self.project.subjects)


backend._backend_fns[SparselshBackend.name] = lambda: SparselshBackend
