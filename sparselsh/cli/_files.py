"""Input and output files of the commands.

Errors of the user become a `UserError` of one line that names the file and the remedy. Outputs
that cannot be written are detected before any work.
"""
from __future__ import annotations

import json
import os
import sys
import tempfile
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from scipy.sparse import csr_array

    from ..network import Network


class UserError(Exception):
    """An error that the user can correct; the message is one line that says how."""


def read_rows(path: str, labelled: bool = True,
              ids: int | str = "auto") -> tuple[csr_array, csr_array]:
    """Read (X, Y) of a file that must have rows and, if `labelled`, labels.

    `ids` is the id of the first feature: 0, 1 or "auto". A note says where ids are lowered by the
    look of the file, which may not be what was meant.
    """
    X, Y, is_shifted = _read(path, labelled, ids)
    if is_shifted:
        _note_shifted(path)
    return X, Y


def _read(path: str, labelled: bool, ids: int | str) -> tuple[csr_array, csr_array, bool]:
    from .. import datasets

    is_shifted = False
    if datasets.is_csr_file(path):
        with datasets.open_csr(path) as file:
            X, Y = file[:]
    else:
        X, Y, is_shifted = datasets.read_shifted(path, first_feature=ids)
    _check_rows_and_labels(path, X.shape, Y.nnz if labelled else 1)
    return X, Y, is_shifted


def _note_shifted(path: str) -> None:
    print(f"sparselsh: note: {path!r} has no header and no feature 0, so that its ids are taken to "
          "begin at 1; --zero-based takes them as they are, --one-based silences this note",
          file=sys.stderr)


def read_or_open(path: str, net: Network | None = None, of: str = "",
                 ids: int | str = "auto") -> tuple[Any, csr_array | None, int]:
    """X, Y and the number of labels of a text file; for a CSR file, X is the open file, Y is None.

    If a network is given, which was read from the file `of`, the numbers of features and labels
    must be those of the network.
    """
    from .. import datasets

    if not datasets.is_csr_file(path):
        X, Y = (read_rows(path, ids=ids) if net is None
                else read_matching(path, net.n_features, net.n_labels, of, ids=ids))
        return X, Y, Y.shape[1]
    file = datasets.open_csr(path)
    _check_rows_and_labels(path, file.shape, file.label_nnz)
    return file, None, file.n_labels


def _check_rows_and_labels(path: str, shape: tuple[int, ...], n_labels: int) -> None:
    if 0 in shape:
        raise UserError(f"{path!r}, line 1: {shape[0]} rows of {shape[1]} features; give some")
    if n_labels == 0:
        raise UserError(f"{path!r}: no row has a label; give a file with labels at the start of "
                        "its lines")


def read_matching(path: str, n_features: int, n_labels: int | None, of: str,
                  labelled: bool = True, ids: int | str = "auto") -> tuple[csr_array, csr_array]:
    """Read a file whose features and labels must be numbered as in the file or model `of`.

    `n_labels` is None where the number of labels does not matter.
    """
    from .. import datasets

    X, Y, is_shifted = _read(path, labelled, ids)
    if X.shape[1] == n_features and n_labels in (None, Y.shape[1]):
        if is_shifted:
            _note_shifted(path)
        return X, Y
    try:
        # svmlight text does not contain its counts: ids below the given ones are enough. XMC text
        # contains them, and fails here.
        found = datasets.read_shifted(path, n_features=n_features, n_labels=n_labels,
                                      format="svmlight", first_feature=ids)
        if found[2]:
            _note_shifted(path)
        return found[:2]
    except datasets.FileFormatError as error:
        if error.line != 1:
            raise

    what, found, expected = ("features", X.shape[1], n_features)
    if found == expected:
        what, found, expected = ("labels", Y.shape[1], n_labels)
    raise UserError(f"{path!r}, line 1: {found} {what}, but {of!r} has {expected}; "
                    f"write both files with the same numbering of {what}")


def load_network(path: str, n_threads: int | None, group: Any = None) -> Network:
    from ..network import load

    if os.path.exists(os.path.join(path, "network.json")):
        from .. import distributed

        group = distributed.solo() if group is None else group
        return distributed.load(path, group=group, n_threads=n_threads)
    if os.path.isdir(path):
        raise UserError(f"{path!r}: is a folder; give the file that `sparselsh train --model` has "
                        "written")
    return load(path, n_threads=n_threads)


def check_outputs(paths: Iterable[str | None], inputs: Iterable[str | None]) -> None:
    """Refuse, before any work, an output that cannot be written or that would replace an input."""
    taken = {os.path.realpath(path): path for path in inputs if path}
    for path in filter(None, paths):
        real = os.path.realpath(path)
        if real in taken:
            raise UserError(f"{path!r}: is also given as {taken[real]!r}; choose another name for "
                            "the output")
        taken[real] = path
        if os.path.isdir(real):
            raise UserError(f"{path!r}: is a folder; give the name of a file in it")
        if not os.path.exists(real) or os.path.isfile(real):
            try:
                tempfile.TemporaryFile(dir=os.path.dirname(real)).close()
            except OSError as error:
                raise unwritable(path, error) from error


@contextmanager
def writing(path: str) -> Iterator[IO[str]]:
    """Open a text file that appears whole or not at all; a device or a pipe is opened directly."""
    from .._files import replacing

    place = os.path.realpath(path)  # does not replace a symbolic link
    is_device = os.path.exists(place) and not os.path.isfile(place)
    try:
        with (open if is_device else replacing)(place, "w", encoding="utf-8") as file:
            yield file
    except BrokenPipeError:
        raise
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: str, error: OSError) -> UserError:
    return UserError(f"{path!r}: cannot be written ({error.strerror or error}); "
                     f"give a file in a folder that exists, is writable and has room")


def write_json(path: str | None, report: dict[str, Any]) -> None:
    if path is None:
        return
    known = {key: value for key, value in report.items() if value is not None}
    with writing(path) as file:
        file.write(json.dumps(known, indent=2) + "\n")
