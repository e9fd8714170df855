r"""Which characters are part of a word: those that ``\w`` of Python's `re` matches."""
from __future__ import annotations

import re
import sys
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@cache
def word_bits() -> NDArray[np.uint8]:
    """A bit per code point, the lowest of a byte first."""
    n = sys.maxunicode + 1
    every = np.arange(n, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
    is_word = np.zeros(n, bool)
    for run in re.finditer(r"\w+", every):
        is_word[run.start():run.end()] = True
    return np.packbits(is_word, bitorder="little")
