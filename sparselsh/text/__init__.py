"""Texts and names in, names out: what is around a network where people tag and recommend.

    texts ─► TextVectorizer ─► Network ─► ids ─► names
             words to rows     labels     └─ Tagger keeps both ends and is one file

    _vectorizer   TextVectorizer: words and runs of words, counted, hashed and weighted in _core
    _characters   which characters are part of a word
    _inputs       lists, columns and frames of texts and of names; what is refused, and why
    _parameters   get_params and set_params, as scikit-learn expects them
    _training     a network for sparse rows and ids, by the recipe for many labels
    _named_network  NamedNetwork: what the two below share, their parameters and their file
    _tagger       Tagger
    _recommender  Recommender: the same for sequences of items
    _sessions     past sequences that vote for the next item, beside the network of a Recommender
    _file, _load  the one file of each; load, which reads any
"""
from ._inputs import has_names, names_of
from ._load import load
from ._recommender import Recommender
from ._tagger import Tagger
from ._vectorizer import TextVectorizer

__all__ = ["Recommender", "Tagger", "TextVectorizer", "has_names", "load", "names_of"]
